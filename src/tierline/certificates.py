"""A server's certificate: loaded, tried out, and replaced without a restart.

Rule: a context is handed out only after a handshake with itself has gone through, so that a key of another
certificate, or a certificate that has expired, is found when it is read and not by the first client.
"""

import ssl
import time
from collections.abc import Sequence
from pathlib import Path

from tierline import logs
from tierline.bearer import file_stamp
from tierline.errors import ConfigurationError, TierlineError

log = logs.get(__name__)


class Certificate:
    """The certificate in force.

    Parameters
    ----------
    certificate
        PEM file with the server's certificate and those between it and its authority.
    key
        PEM file with its key, without a passphrase.
    client_authorities
        PEM file with the authorities whose certificates clients must show; ``None`` asks clients for none.

    Raises
    ------
    UsageError
        A file cannot be read, or they do not belong together.
    """

    def __init__(self, certificate: Path, key: Path, client_authorities: Path | None = None) -> None:
        self.failed_reloads = 0
        """How often changed files could not be used."""
        self.asks_clients = client_authorities is not None
        """Clients must show a certificate."""
        self._files = (certificate, key, client_authorities)
        self._stamp = self._stamps()
        self.context, self.expires = self._load()
        """What new connections are encrypted with, and until when it is valid, in seconds since 1970."""

    def reload(self, *, if_changed: bool = True) -> None:
        """Read the files again; where they cannot be used, what is in force stays so. Blocks for some milliseconds."""
        try:
            stamp = self._stamps()
            if if_changed and stamp == self._stamp:
                return
            self._stamp = stamp
            self.context, self.expires = self._load()
        except TierlineError as error:
            self.failed_reloads += 1
            log.error("the certificate cannot be used; the former one stays in force", error=str(error))
            return
        log.info("certificate loaded", valid_for_h=round((self.expires - time.time()) / 3600, 1))

    def _load(self) -> tuple[ssl.SSLContext, float]:
        certificate, key, authorities = self._files
        context = _server_context(certificate, key)
        expires = _try_out(context, certificate)
        if authorities is not None:
            try:
                context.load_verify_locations(authorities)
            except (OSError, ssl.SSLError) as error:
                raise ConfigurationError(
                    "tls_client_ca", str(authorities), f"a PEM file with certificates ({_reason(error)})"
                ) from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context, expires

    def _stamps(self) -> Sequence[tuple[int, int, int]]:
        """Return what changes when a file is replaced or written."""
        return [file_stamp(file, "tls_certificate, tls_key") for file in self._files if file is not None]


def _server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    def refuse_passphrase() -> str:  # without it, OpenSSL asks at the terminal
        raise ValueError("a key with a passphrase")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=refuse_passphrase)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigurationError(
            "tls_certificate, tls_key",
            f"{certificate}, {key}",
            f"PEM files of a certificate and its key, without a passphrase ({_reason(error)})",
        ) from None
    return context


def _try_out(context: ssl.SSLContext, certificate: Path) -> float:
    """Shake hands with a client that trusts this one certificate; returns until when it is valid."""
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False  # by which names clients know this server is not for us to say
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        client_context.load_verify_locations(certificate)
        server = context.wrap_bio(to_server, to_client, server_side=True)
        client = client_context.wrap_bio(to_client, to_server)
        for side in (client, server, client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
        shown = client.getpeercert()
    except OSError as error:  # ssl.SSLError is one; and the file may be gone by now
        raise ConfigurationError(
            "tls_certificate", str(certificate), f"a certificate that is valid now ({_reason(error)})"
        ) from None
    assert shown is not None
    return ssl.cert_time_to_seconds(str(shown["notAfter"]))


def _reason(error: Exception) -> str:
    """Return OpenSSL's words without its source code's line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
