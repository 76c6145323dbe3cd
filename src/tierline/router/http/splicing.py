"""JSON objects changed without being written anew: a body is sent in pieces, most of them parts of what came.

Rule: a member that is not named here goes on byte for byte, and no piece is a copy of a prompt.
"""

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

Piece: TypeAlias = bytes | bytearray | memoryview


def with_member(body: bytes | bytearray, name: str, value: bytes) -> tuple[Piece, ...]:
    """Return ``body``, a JSON object without a member ``name``, with it as the last one.

    Last, because where two readers disagree on whether a member has this name, the later of two wins in Python's parser
    and in ours.

    Parameters
    ----------
    body
        Read before, and found to be an object.
    name
        ASCII without quotes.
    value
        JSON.

    >>> b"".join(with_member(b'{"model": "m"} ', "n", b"1"))
    b'{"model": "m","n":1} '
    >>> b"".join(with_member(b"{ }", "n", b"1"))
    b'{ "n":1}'
    """
    end = body.rindex(b"}")  # nothing but blanks can follow
    comma = b"," if b'"' in body else b""  # a member has a name
    view = memoryview(body)
    return view[:end], b'%b"%b":%b' % (comma, name.encode(), value), view[end:]


def members_of(body: bytes | bytearray) -> dict[str, msgspec.Raw]:
    """Return the members of a JSON object, the last of each name, as they are written.

    Raises
    ------
    msgspec.DecodeError, UnicodeDecodeError
        When it is none.
    """
    return _decode(body)


def object_of(members: Mapping[str, msgspec.Raw | bytes]) -> tuple[Piece, ...]:
    """Return the JSON object with these members.

    >>> b"".join(object_of({"a": b"1", "b": b"[]"}))
    b'{"a":1,"b":[]}'
    """
    pieces: list[Piece] = []
    for name, value in members.items():
        pieces += (b"," if pieces else b"{", msgspec.json.encode(name), b":", memoryview(value))
    return (*pieces, b"}") if pieces else (b"{}",)


_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
