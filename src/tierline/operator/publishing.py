"""What clients must trust, written where they fetch it: ``tlsCertificateOutputS3Uri``, on S3 and what speaks like it.

Only certificates are written, never a key. Credentials come from the environment, as AWS' own tools take them.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from urllib.parse import urlsplit

from tierline.errors import NotPublished, UsageError
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.certificates import AUTHORITY, CERTIFICATE
from tierline.s3 import BucketSettings, open_bucket, said

_PUBLIC = (CERTIFICATE, AUTHORITY)
AGAIN_SECONDS = 300.0
"""After what could not be written."""
_TIMEOUT_S = 10.0
_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)
"""Variables by which AWS' tools are given credentials in a pod; the machine's own are not the operator's to use."""


@dataclass(frozen=True)
class Published:
    """Where certificates are.

    Parameters
    ----------
    bucket, keys
        Of S3.
    """

    bucket: str
    keys: tuple[str, ...]


def is_wanted(endpoint: Endpoint) -> bool:
    """Whether the endpoint says where clients look for its certificate."""
    tls = endpoint.spec.tls_config
    return tls is not None and bool(tls.tls_certificate_output_s3_uri)


@dataclass(frozen=True)
class _Written:
    """What was last written for an endpoint, or why it was not, and until when it is not tried again."""

    digest: str
    outcome: Published | NotPublished
    rests_until: float


class Publisher:
    """Writes certificates as they change, and not more often.

    Parameters
    ----------
    s3_endpoint
        URL of what speaks S3's protocol; ``None``: AWS's of the region.
    s3_region
        Region of the buckets; ``None``: that of each endpoint's model.
    environment
        Where credentials are.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        s3_endpoint: str | None,
        s3_region: str | None,
        environment: Mapping[str, str],
        clock: Callable[[], float],
    ) -> None:
        self._s3_endpoint = s3_endpoint
        self._s3_region = s3_region
        self._has_credentials = any(environment.get(name) for name in _CREDENTIALS)
        self._clock = clock
        self._written: dict[str, _Written] = {}

    async def keep(self, endpoint: Endpoint, secret: Mapping[str, bytes]) -> Published:
        """Have the certificate of ``secret`` be where the endpoint says.

        Raises
        ------
        NotPublished
            It is not there; it is tried again later.
        """
        if not self._has_credentials:
            raise NotPublished(f"the operator has no credentials for S3: none of {', '.join(_CREDENTIALS)} is set")
        tls = endpoint.spec.tls_config
        assert tls is not None
        place = f"{tls.tls_certificate_output_s3_uri or ''} {_region(endpoint, self._s3_region)}"
        parts = [place.encode(), *(secret.get(key, b"") for key in _PUBLIC)]
        digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
        known = self._written.get(endpoint.uid)
        if known is None or known.digest != digest or self._clock() >= known.rests_until:
            try:
                known = _Written(digest, await publish(endpoint, secret, self._s3_endpoint, self._s3_region), inf)
            except NotPublished as error:
                known = _Written(digest, error, self._clock() + AGAIN_SECONDS)
            self._written[endpoint.uid] = known
        if isinstance(known.outcome, NotPublished):
            raise NotPublished(str(known.outcome))
        return known.outcome

    def forget(self, uid: str) -> None:
        """Take an endpoint for gone."""
        self._written.pop(uid, None)


async def publish(
    endpoint: Endpoint, secret: Mapping[str, bytes], s3_endpoint: str | None, s3_region: str | None
) -> Published:
    """Write the certificate, and that of who signed it, into the bucket that the endpoint names.

    Parameters
    ----------
    endpoint
        With ``tlsCertificateOutputS3Uri``.
    secret
        Content of the Secret with the certificate.
    s3_endpoint
        URL of what speaks S3's protocol; ``None``: AWS's of the region.
    s3_region
        Region of the bucket; ``None``: that of the model's.

    Raises
    ------
    NotPublished
        The bucket cannot be written, or the package for it is not there.
    """
    tls = endpoint.spec.tls_config
    assert tls is not None
    parts = urlsplit(tls.tls_certificate_output_s3_uri or "")
    settings = BucketSettings(
        bucket=parts.netloc,
        endpoint=s3_endpoint,
        region=_region(endpoint, s3_region),
        timeout_s=_TIMEOUT_S,
        retries=1,
        retry_s=_TIMEOUT_S,
    )
    try:
        store = open_bucket(settings, "the certificate cannot be written")
    except UsageError as error:
        raise NotPublished(str(error)) from None
    import obstore
    from obstore.exceptions import BaseError

    folder = "/".join(filter(None, (parts.path.strip("/"), endpoint.namespace, endpoint.name)))
    wanted = {f"{folder}/{name}": secret[name] for name in _PUBLIC if name in secret}
    try:
        for key, content in wanted.items():
            await obstore.put_async(store, key, content)
    except (BaseError, OSError) as error:
        why = said(error) or type(error).__name__
        raise NotPublished(f"s3://{parts.netloc}/{folder}: the certificate cannot be written: {why}") from None
    return Published(parts.netloc, tuple(wanted))


def _region(endpoint: Endpoint, s3_region: str | None) -> str | None:
    """Return the region of the bucket: the endpoint's own, the operator's, the model's; ``None``: the environment's."""
    return endpoint.annotation("certificates-region") or s3_region or endpoint.model_region
