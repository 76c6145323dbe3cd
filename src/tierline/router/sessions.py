"""Where a request may name its session: headers, cookies and fields of the body, in the configured order."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import cast

import msgspec

from tierline.router.prompt import RequestFields

COOKIE, BODY = "cookie:", "body:"
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_NEW = b"NEW_SESSION"  # with which SageMaker's clients ask for one that has no name yet
_FIELD = re.compile(r'[^"\\\x00-\x1f]+')  # what JSON writes as it is


def canonical_key(key: str) -> str:
    """Return a session key with a header's name in lower case; names of cookies and of fields keep theirs.

    Raises
    ------
    ValueError
        Saying what a key is.
    """
    if key.startswith(BODY) and _FIELD.fullmatch(key.removeprefix(BODY)):
        return key
    name = key.removeprefix(COOKIE)
    if not is_field_name(name):
        raise ValueError(f"names of request headers, {COOKIE}NAME, or {BODY}KEY for a field of the body")
    return key if key.startswith(COOKIE) else key.lower()


def is_field_name(name: str) -> bool:
    """Return whether a request header can be called so."""
    return _TOKEN.fullmatch(name) is not None


class SessionKeys:
    """Finds the name of a request's session.

    Parameters
    ----------
    keys
        As :func:`canonical_key` writes them; the first that a request has is taken.

    Attributes
    ----------
    headers
        Names of the fields of a head that :meth:`find` needs.
    decode
        Decodes a body to the fields that routing and :meth:`find` need.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = tuple(map(_parted, keys))
        self._encoded = {name: name.encode() for _, name in self._keys}
        self.headers: Collection[bytes] = frozenset(
            b"cookie" if kind == COOKIE else name.encode() for kind, name in self._keys if kind != BODY
        )
        self._attributes = {name: name for name in RequestFields.__struct_fields__}
        more: list[tuple[str, type, object]] = []
        for kind, name in self._keys:
            if kind == BODY and name not in self._attributes:
                attribute = self._attributes[name] = f"session_{len(more)}"
                more.append((attribute, msgspec.Raw, msgspec.field(name=name, default=msgspec.Raw())))
        fields = cast("type[RequestFields]", msgspec.defstruct("SessionFields", more, bases=(RequestFields,), gc=False))
        self.decode: Callable[[bytes | bytearray], RequestFields] = msgspec.json.Decoder(fields).decode

    def find(self, head: Mapping[bytes, bytes], fields: RequestFields) -> bytes:
        """Return the session's name; empty where the request gives none."""
        for kind, name in self._keys:
            if kind == BODY:
                session = _text(getattr(fields, self._attributes[name], None))
            elif kind == COOKIE:
                session = _cookie(head.get(b"cookie", b""), self._encoded[name])
            else:
                session = head.get(self._encoded[name], b"")
            if session and session != _NEW:
                return session
        return b""


def _parted(key: str) -> tuple[str, str]:
    for kind in (COOKIE, BODY):
        if key.startswith(kind):
            return kind, key.removeprefix(kind)
    return "", key


def _text(value: object) -> bytes:
    """Return a string's or a number's text; anything else names no session."""
    if isinstance(value, msgspec.Raw):
        if not value:  # most requests: to find out by decoding would cost an exception
            return b""
        try:
            value = msgspec.json.decode(value, type=str | int)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return b""
    return str(value).encode("utf-8", "surrogatepass") if isinstance(value, str | int) else b""


def _cookie(header: bytes, name: bytes) -> bytes:
    for pair in header.split(b";"):
        named, _, value = pair.strip(b" \t").partition(b"=")
        if named == name:
            return value
    return b""
