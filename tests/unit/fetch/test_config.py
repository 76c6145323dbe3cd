"""Wrong settings are named; the documentation has an entry for every setting of fetching."""

import re
from pathlib import Path

import pytest

from tierline.configuration import load
from tierline.errors import ConfigurationError
from tierline.fetch.config import FetchConfig

PAGE = (Path(__file__).parents[3] / "docs/proxy.md").read_text().partition("## `tierline fetch`")[2]
GIVEN = {"source": "s3://models/m", "folder": "/tmp/m"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "SOURCE"),
        ({"source": "s3://models/m"}, "FOLDER"),
        (GIVEN | {"source": "models/m"}, "SOURCE: got 'models/m'; allowed: s3://BUCKET/PREFIX"),
        (GIVEN | {"streams": 0}, "--streams"),
        (GIVEN | {"part_bytes": "64MB"}, "--part-bytes"),
        (GIVEN | {"s3_endpoint": "minio:9000"}, "--s3-endpoint"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        load(FetchConfig, None, settings, environment={})


@pytest.mark.parametrize("key", set(FetchConfig.model_fields) - {"log_level", "log_format"})
def test_the_documentation_has_every_setting(key: str) -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| ")]
    assert any(f"`{key}`" in row for row in rows)
