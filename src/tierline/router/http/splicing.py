"""JSON objects with some members replaced: sent in pieces, and most of these are parts of what came.

Rule: the value of a member that is not replaced goes on byte for byte, and is not copied.
"""

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

Piece: TypeAlias = bytes | memoryview
Members: TypeAlias = Mapping[str, msgspec.Raw | bytes]
"""Values of an object's members, as JSON."""
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Raised by decoding: it is no JSON, or no text where text is wanted, or nested deeper than can be read, which depends
on how deep the reader itself was called."""


def members_of(body: bytes) -> dict[str, msgspec.Raw]:
    """Return the members of a JSON object as they are written; of those with one name the last, as parsers do.

    Raises
    ------
    UNREADABLE
        When it is none, or the name of a member is no text.
    """
    return _decode(body)


def object_of(members: Members) -> tuple[Piece, ...]:
    """Return the JSON object with these members.

    >>> b"".join(object_of({"a": b"1", "b": b"[]"}))
    b'{"a":1,"b":[]}'
    """
    pieces: list[Piece] = []
    for name, value in members.items():
        pieces += (b"," if pieces else b"{", msgspec.json.encode(name), b":", memoryview(value))
    return (*pieces, b"}") if pieces else (b"{}",)


_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
