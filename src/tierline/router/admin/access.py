"""Who may use ``/admin`` and ``/dashboard``: who shows the token of a file; without one, programs on this machine.

A web page is no such program; the router's own may ask for what is under ``/dashboard``, and for nothing else.

The token is a bearer's (RFC 6750), or in a header of its own: what hands requests on, such as the Kubernetes API, may
take ``Authorization`` for itself.

The token is compared as its SHA-256, in constant time, and is in no message. A file that changes is read again; one
that cannot be used then leaves the former token in force.
"""

import hashlib
import hmac
import ipaddress
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from tierline import logs
from tierline.bearer import MIN_TOKEN_CHARACTERS, bearer_token, file_stamp
from tierline.errors import AccessDenied, UsageError
from tierline.router.http.heads import RequestHead

log = logs.get(__name__)

KEY = "--admin-token-file"
ADMIN_TOKEN_FIELD = "x-tierline-admin-token"  # noqa: S105  (a header's name)
_FIELD = ADMIN_TOKEN_FIELD.encode()
WANTED_FIELDS = frozenset({b"authorization", _FIELD, b"origin"})
"""Fields of a request's head that :meth:`AdminAccess.refusal` looks at."""


class Refusal(NamedTuple):
    """Why a request may not have what it asks for."""

    status: HTTPStatus
    message: str


class AdminAccess:
    """The rule in force.

    Parameters
    ----------
    file
        Holds the token and nothing else; ``None`` for no token.
    host
        The address that the router listens on.

    Raises
    ------
    UsageError
        The file cannot be used.
    """

    def __init__(self, file: Path | None, host: str) -> None:
        self._file = file
        self._is_local = is_loopback(host)
        self._stamp = file_stamp(file, KEY) if file else None
        self._digest = _read(file) if file else b""

    def refusal(
        self, head: RequestHead, what: str = "/admin", *, has_page: bool = False, is_open: bool = False
    ) -> Refusal | None:
        """Return why a request may not use ``what``, or ``None``.

        Parameters
        ----------
        head
            The request.
        what
            What messages call it.
        has_page
            A page that the router serves under the name by which it is asked may use it.
        is_open
            Where a token is asked for, this needs none: a browser shows none before it has a page that asks for it.
        """
        if self._file is None:
            return self._refusal_without_token(head, what, has_page=has_page)
        if is_open:
            return None
        self._reload(self._file)
        try:
            token = head.fields.get(_FIELD) or bearer_token(head.fields.get(b"authorization"))
        except AccessDenied as error:
            return Refusal(HTTPStatus.UNAUTHORIZED, f"{error}.")
        if not token:
            return Refusal(
                HTTPStatus.UNAUTHORIZED, f"{what} asks for a bearer token, or for one in {ADMIN_TOKEN_FIELD}."
            )
        if not hmac.compare_digest(hashlib.sha256(token).digest(), self._digest):
            return Refusal(HTTPStatus.UNAUTHORIZED, f"This token is not the one that {what} asks for.")
        return None

    def _refusal_without_token(self, head: RequestHead, what: str, *, has_page: bool) -> Refusal | None:
        if not self._is_local:
            return Refusal(HTTPStatus.FORBIDDEN, f"{what} is closed: this router has no admin_token_file.")
        # A web page can make a browser on this machine send requests here, under its own name or one it made up.
        origin = head.fields.get(b"origin")
        is_own = has_page and origin in (b"http://" + head.host, b"https://" + head.host)
        if (origin is not None and not is_own) or not is_loopback(_host_of(head.host)):
            return Refusal(HTTPStatus.FORBIDDEN, f"Without admin_token_file, {what} is for programs on this machine.")
        return None

    def _reload(self, file: Path) -> None:
        try:
            stamp = file_stamp(file, KEY)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._digest = _read(file)
        except UsageError as error:
            log.error("the token file of /admin cannot be used; the former token stays in force", why=str(error))
            return
        log.info("token of /admin read", file=str(file))


def _read(file: Path) -> bytes:
    """Return the SHA-256 of the token that is in ``file``."""
    try:
        token = file.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"{KEY}: cannot read {file}: {error.strerror}") from error
    if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or len(token.split()) > 1:
        raise UsageError(f"{KEY}: {file} must hold a token of {MIN_TOKEN_CHARACTERS} ASCII characters or more, alone")
    return hashlib.sha256(token).digest()


def is_loopback(host: str) -> bool:
    """Whether an address is one that only this machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of(field: bytes) -> str:
    """Return the host of a ``Host`` field, without its port."""
    text = field.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
