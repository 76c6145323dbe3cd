"""S3, and what speaks its protocol: how a bucket is opened, and how what it says of a failure is told.

Rules: credentials come from where AWS' own tools take them, and never from a setting or a URL, so that none is in what
is shown or logged. The package for it is loaded where a bucket is opened, and nowhere else.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from tierline.errors import UsageError

_LONGEST_SAID = 300


@dataclass(frozen=True, kw_only=True)
class BucketSettings:
    """A bucket, and how patiently it is asked.

    Parameters
    ----------
    bucket
        Its name.
    prefix
        Of all names in it that are asked for; empty for none.
    endpoint
        URL of the S3 endpoint; ``None``: AWS's of the region.
    region
        Of the bucket; ``None``: what the environment says.
    timeout_s
        Of a request, with all that comes.
    connect_timeout_s
        Of a connection; ``None``: the package's own.
    retries, retry_s
        How often a request is sent again, and for how long at most; ``None``: the package's own.
    kms_key
        What objects are encrypted with; ``None``: as the bucket says.
    has_profiles
        Credentials are looked for in the files of AWS' tools too, where their package is installed.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    timeout_s: float
    connect_timeout_s: float | None = None
    retries: int | None = None
    retry_s: float | None = None
    kms_key: str | None = None
    has_profiles: bool = False


def open_bucket(settings: BucketSettings, asked_by: str) -> Any:
    """Return a store of obstore's, which asks nobody anything yet.

    Parameters
    ----------
    settings
        Which.
    asked_by
        What errors begin with, such as an option.

    Raises
    ------
    UsageError
        The package is missing, or the settings are not allowed.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ImportError:
        raise UsageError(f"{asked_by}: S3 needs a package: pip install 'tierline[s3]'") from None
    endpoint = urlsplit(settings.endpoint or "")
    if endpoint.username is not None or endpoint.password is not None:
        raise UsageError(f"{asked_by}: credentials in the endpoint's URL; they come from the environment")
    encryption = {"aws_server_side_encryption": "aws:kms", "aws_sse_kms_key_id": settings.kms_key}
    given = {
        "prefix": settings.prefix.strip("/"),
        "endpoint": settings.endpoint,
        "region": settings.region,
        "retry_config": _retries(settings),
        "credential_provider": _profiles() if settings.has_profiles else None,
        **(encryption if settings.kms_key else {}),
    }
    try:
        return S3Store(
            settings.bucket,
            client_options=_client(settings, is_plain=endpoint.scheme == "http"),
            **{name: value for name, value in given.items() if value},
        )
    except (BaseError, ValueError) as error:
        raise UsageError(f"{asked_by}: {said(error)}") from None


def said(error: BaseException) -> str:
    """Return what an error says, without the pages that obstore adds, of which some have the whole request."""
    return str(error).strip().partition("\n")[0][:_LONGEST_SAID]


def _client(settings: BucketSettings, *, is_plain: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"timeout": timedelta(seconds=settings.timeout_s), "allow_http": is_plain}
    if settings.connect_timeout_s is not None:
        options["connect_timeout"] = timedelta(seconds=settings.connect_timeout_s)
    return options


def _retries(settings: BucketSettings) -> dict[str, Any]:
    config: dict[str, Any] = {} if settings.retries is None else {"max_retries": settings.retries}
    return config if settings.retry_s is None else {**config, "retry_timeout": timedelta(seconds=settings.retry_s)}


def _profiles() -> Any:
    """Return AWS' own search for credentials, in its files too, where its package is there; else the environment's."""
    try:
        from boto3 import Session
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    session = Session()
    return Boto3CredentialProvider(session) if session.get_credentials() is not None else None
