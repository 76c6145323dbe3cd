"""Buckets of S3, as they are opened: what is asked with, and what is never shown."""

import sys
from typing import Any

import obstore
import pytest
from obstore.exceptions import BaseError

from tierline.errors import UsageError
from tierline.s3 import BucketSettings, open_bucket, said

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCY"
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)


def settings(**changes: Any) -> BucketSettings:
    return BucketSettings(**{"bucket": "models", "endpoint": NOBODY, "timeout_s": 2.0, "retries": 0, **changes})


def test_a_bucket_is_asked_as_it_is_said() -> None:
    store = open_bucket(
        settings(prefix="/toy/", region="eu-central-1", connect_timeout_s=1.0, retry_s=3.0, kms_key="key-1"), "--place"
    )
    assert store.prefix == "toy"
    assert store.config["region"] == "eu-central-1"
    assert store.config["sse_kms_key_id"] == "key-1"
    assert store.client_options == {"timeout": "2s", "connect_timeout": "1s", "allow_http": "true"}
    assert store.retry_config["max_retries"] == 0


def test_an_endpoint_with_tls_is_not_asked_without() -> None:
    assert open_bucket(settings(endpoint="https://s3.example"), "--place").client_options["allow_http"] == "false"


@pytest.mark.parametrize("has_profiles", [False, True], ids=["environment", "AWS' own search"])
def test_no_secret_is_in_what_is_shown_or_said(has_profiles: bool) -> None:
    given = settings(has_profiles=has_profiles)
    store = open_bucket(given, "--place")
    with pytest.raises(BaseError) as failed:
        obstore.put(store, "a", b"b")
    for shown in (repr(given), repr(store), str(store.config), said(failed.value), str(failed.value)):
        assert SECRET not in shown


def test_credentials_in_an_endpoint_are_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="they come from the environment") as refused:
        open_bucket(settings(endpoint="https://user:hush-hush@s3.example"), "--place")
    assert "hush-hush" not in str(refused.value)


def test_what_an_error_says_is_one_line_of_bounded_length() -> None:
    assert said(OSError("first\nsecond")) == "first"
    assert len(said(OSError("a" * 5000))) == 300


def test_who_lacks_the_package_is_told_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UsageError, match=r"--place: S3 needs a package: pip install 'tierline\[s3\]'"):
        open_bucket(settings(), "--place")
