"""TLS towards endpoints: whom to trust, and what to show them. Files are read again when they change.

Rule: a connection takes the context of the moment. A file that cannot be used is refused at the start, ignored later.
"""

import ssl
from collections.abc import Sequence
from pathlib import Path

from tierline import logs
from tierline.bearer import file_stamp
from tierline.errors import ConfigurationError, TierlineError

log = logs.get(__name__)

_KEYS = "endpoint_ca, endpoint_certificate, endpoint_key"


class EndpointTls:
    """What connections to ``https://`` endpoints are encrypted with.

    Parameters
    ----------
    authorities
        PEM file with the authorities that endpoints' certificates come from; ``None``: the system's.
    certificate, key
        PEM files of the certificate that endpoints are shown, and of its key; ``None``: none is.

    Raises
    ------
    UsageError
        A file cannot be read, or they do not belong together.
    """

    def __init__(self, authorities: Path | None, certificate: Path | None, key: Path | None) -> None:
        self._authorities, self._certificate, self._key = authorities, certificate, key
        self._stamp = self._stamps()
        self._context = self._load() if self._stamp else None

    @property
    def context(self) -> ssl.SSLContext:
        """What the next connection is encrypted with."""
        if self._context is None:  # reading the system's authorities takes 20 ms, and who has no https needs none
            self._context = self._load()
        return self._context

    def reload(self) -> None:
        """Read the files again if they have changed; where they cannot be used, what is in force stays so."""
        try:
            stamp = self._stamps()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._context = self._load()
        except TierlineError as error:
            log.error("the TLS files for endpoints cannot be used; the former ones stay in force", error=str(error))
            return
        log.info("TLS files for endpoints loaded")

    def _load(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self._authorities)
            if self._certificate is not None:
                context.load_cert_chain(self._certificate, self._key, password="")  # without it, OpenSSL would ask
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            files = ", ".join(str(file) for file in (self._authorities, self._certificate, self._key) if file)
            raise ConfigurationError(_KEYS, files, f"PEM files, the key without a passphrase ({error})") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def _stamps(self) -> Sequence[tuple[int, int, int]]:
        files = (self._authorities, self._certificate, self._key)
        return [file_stamp(file, _KEYS) for file in files if file is not None]
