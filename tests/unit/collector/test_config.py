"""Wrong settings are named; the documentation has an entry for every setting of the collector."""

import re
from pathlib import Path

import pytest

from tierline.collector.config import CollectorConfig
from tierline.configuration import load
from tierline.errors import ConfigurationError

PAGE = (Path(__file__).parents[3] / "docs/proxy.md").read_text().partition("## `tierline collector`")[2]
LABELS = (Path(__file__).parents[3] / "docs/proxy.md").read_text().partition("### Labels")[2]
TARGET = {"targets": ["model-container=http://127.0.0.1:8000/metrics"]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--target"),
        ({"targets": []}, "--target"),
        ({"targets": ["http://127.0.0.1:8000/metrics"]}, "NAME=URL"),
        ({"targets": ["Model=http://127.0.0.1:8000/metrics"]}, "NAME=URL"),
        ({"targets": ["a=http://h:1/m", "a=http://h:2/m"]}, "each name once"),
        ({"targets": ["a=file:///etc/passwd"]}, "NAME=URL"),
        ({"targets": ["a=http://h:port/"]}, "NAME=URL"),
        (TARGET | {"interval_s": 0}, "--interval-s"),
        (TARGET | {"otlp_endpoint": "otel:4317"}, "a URL such as http://127.0.0.1:4318"),
        (TARGET | {"otlp_endpoint": "https://u:secret@h"}, "without a password"),
        ({"targets": ["a=http://u:secret@h:1/m"]}, "NAME=URL"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)) as raised:
        load(CollectorConfig, None, settings, environment={})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("key", set(CollectorConfig.model_fields) - {"log_level", "log_format"})
def test_the_documentation_has_every_setting(key: str) -> None:
    rows = [line.split("|")[1] for line in (PAGE + LABELS).splitlines() if line.startswith("| ")]
    assert any(f"`{key}`" in row for row in rows)
