"""A server's certificate: loaded, tried out, and replaced without a restart.

Rule: a context is handed out only after a handshake with itself has gone through, so that a key of another
certificate, or a certificate that has expired, is found when it is read and not by the first client.
"""

import ipaddress
import ssl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    option
        What the names of the options that give the files begin with, for messages.

    Raises
    ------
    UsageError
        A file cannot be read, or they do not belong together.
    """

    _authorities_option = "client_ca"

    def __init__(
        self, certificate: Path, key: Path, client_authorities: Path | None = None, *, option: str = "tls"
    ) -> None:
        self.failed_reloads = 0
        """How often changed files could not be used."""
        self.asks_clients = client_authorities is not None
        """Clients must show a certificate."""
        self._files = (certificate, key, client_authorities)
        self._option = option
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
        certificate, _, authorities = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load_chain(context)
        expires = _try_out(context, certificate, f"{self._option}_certificate")
        if authorities is not None:
            self._load_authorities(context, authorities)
            context.verify_mode = ssl.CERT_REQUIRED
        return context, expires

    def _load_chain(self, context: ssl.SSLContext) -> None:
        """Let a context show the certificate, and nobody speak an old version of TLS with it."""
        certificate, key, _ = self._files
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(certificate, key, password=_refuse_passphrase)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ConfigurationError(
                f"{self._option}_certificate, {self._option}_key",
                f"{certificate}, {key}",
                f"PEM files of a certificate and its key, without a passphrase ({_reason(error)})",
            ) from None

    def _load_authorities(self, context: ssl.SSLContext, authorities: Path) -> None:
        try:
            context.load_verify_locations(authorities)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"{self._option}_{self._authorities_option}",
                str(authorities),
                f"a PEM file with certificates ({_reason(error)})",
            ) from None

    def _stamps(self) -> Sequence[tuple[int, int, int]]:
        """Return what changes when a file is replaced or written."""
        options = f"{self._option}_certificate, {self._option}_key"
        return [file_stamp(file, options) for file in self._files if file is not None]


class MutualCertificate(Certificate):
    """The certificate of a program among equals, which it serves with and also shows to those that it connects to.

    Each side must show one of ``authorities``, and its name is checked: by OpenSSL where we connect, and by who accepts
    with :func:`is_named`.

    Parameters
    ----------
    certificate, key, authorities, option
        As of :class:`Certificate`; all three files are needed.
    """

    client_context: ssl.SSLContext
    """What connections to others are encrypted with."""
    _authorities_option = "ca"

    def __init__(self, certificate: Path, key: Path, authorities: Path, *, option: str = "tls") -> None:
        super().__init__(certificate, key, authorities, option=option)

    def _load(self) -> tuple[ssl.SSLContext, float]:
        context, expires = super()._load()
        context.num_tickets = 0  # nobody resumes, and a ticket would be bytes behind the handshake that nobody awaits
        client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._load_chain(client_context)
        *_, authorities = self._files
        assert authorities is not None
        self._load_authorities(client_context, authorities)
        self.client_context = client_context
        return context, expires


def is_named(certificate: Mapping[str, Any], name: str) -> bool:
    """Whether a certificate, as ``getpeercert`` returns it, was issued for a host's name or address.

    As OpenSSL has it: ``*`` stands for a whole first label, and two labels or more come behind it (RFC 6125, 6.4.3).
    """
    names = {
        str(ipaddress.ip_address(value)) if kind == "IP Address" else value.lower()
        for kind, value in certificate.get("subjectAltName", ())
        if kind in ("DNS", "IP Address")
    }
    _, _, rest = name.lower().partition(".")
    return name.lower() in names or ("." in rest and f"*.{rest}" in names)


def _refuse_passphrase() -> str:  # without it, OpenSSL asks at the terminal
    raise ValueError("a key with a passphrase")


def _try_out(context: ssl.SSLContext, certificate: Path, option: str) -> float:
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
            option, str(certificate), f"a certificate that is valid now ({_reason(error)})"
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
