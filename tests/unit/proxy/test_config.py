"""Wrong settings are named; the documentation has an entry for every setting of the proxy."""

import re
from pathlib import Path

import pytest

from tierline.configuration import load
from tierline.errors import ConfigurationError
from tierline.proxy.config import ProxyConfig

PAGE = (Path(__file__).parents[3] / "docs/proxy.md").read_text()
MODEL = {"upstream": "http://127.0.0.1:8000"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--upstream"),
        ({"upstream": "127.0.0.1:8000"}, "URLs like http://127.0.0.1:8001"),
        (MODEL | {"max_concurrent_requests": -1}, "--max-concurrent-requests"),
        (MODEL | {"max_queue_size": 4}, "0 without max_concurrent_requests"),
        (MODEL | {"overflow_status": 200}, "--overflow-status"),
        (MODEL | {"capture_uri": "/var/captures"}, "s3://BUCKET/PREFIX or file:///FOLDER"),
        (MODEL | {"capture_uri": "s3:///prefix"}, "s3://BUCKET/PREFIX or file:///FOLDER"),
        (MODEL | {"capture_uri": "s3://key:secret@bucket"}, "s3://BUCKET/PREFIX or file:///FOLDER"),
        (MODEL | {"capture_uri": "file://host/folder"}, "s3://BUCKET/PREFIX or file:///FOLDER"),
        (MODEL | {"capture_percent": 101}, "--capture-percent"),
        (MODEL | {"capture_modes": ["both"]}, "--capture-mode"),
        (MODEL | {"capture_batch": 0}, "--capture-batch"),
        (MODEL | {"resource_type": "model"}, "--resource-type"),
        (MODEL | {"s3_endpoint": "minio"}, "--s3-endpoint"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        load(ProxyConfig, None, settings, environment={})


@pytest.mark.parametrize("key", set(ProxyConfig.model_fields) - {"log_level", "log_format"})
def test_the_documentation_has_every_setting(key: str) -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| ")]
    assert any(f"`{key}`" in row for row in rows)
