"""The header that goes before an object's bytes in an engine that is not ours: what they are, and of which key.

Rule: a value whose header does not say exactly what is expected, of this key, size and part, is no object of ours: a
miss, never an error. The header makes a foreign or torn value harmless before its bytes are read; that the bytes
themselves are right, only their checksum says.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import xxhash

from tierline.store import ObjectKey
from tierline.wire.pool import SLOTS

_FORMAT = struct.Struct("<4sHHIxxxxQQQQ")
_MAGIC = b"TLKV"
_VERSION = 1

HEADER_BYTES = _FORMAT.size
MOST_PARTS = 16_384
"""Of an object: what says more would cost its reader more than it is worth."""


class Header(NamedTuple):
    """What is known of a value.

    Parameters
    ----------
    key_digest
        XXH3-64 of bucket and name, so that a value under another key is none of that key.
    size, checksum
        Of the whole object.
    part_bytes, part
        The object lies in parts of so many bytes, the last may be shorter; and which one this is.
    slot
        Directory slot of the prefix that it is of.
    """

    key_digest: int
    size: int
    checksum: int
    part_bytes: int
    part: int
    slot: int

    @classmethod
    def of(cls, key: ObjectKey, size: int, checksum: int, *, slot: int, part_bytes: int | None = None) -> "Header":
        """Return the header of an object's first part; without ``part_bytes``, of its only one."""
        return cls(digest_of(key), size, checksum, part_bytes or size, 0, slot)

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> Self | None:
        """Return what a value begins with; ``None`` where that is no header of ours."""
        if len(data) < HEADER_BYTES:
            return None
        magic, version, slot, part, part_bytes, size, checksum, digest = _FORMAT.unpack_from(data)
        if (
            magic != _MAGIC
            or version != _VERSION
            or size == 0
            or part_bytes == 0
            or part * part_bytes >= size
            or size > part_bytes * MOST_PARTS
            or slot >= SLOTS
        ):
            return None
        return cls(digest, size, checksum, part_bytes, part, slot)

    def pack(self) -> bytes:
        """Return its bytes."""
        return _FORMAT.pack(
            _MAGIC, _VERSION, self.slot, self.part, self.part_bytes, self.size, self.checksum, self.key_digest
        )

    def is_of(self, key: ObjectKey) -> bool:
        """Whether it belongs to a key."""
        return self.key_digest == digest_of(key)

    def is_same_object(self, other: "Header") -> bool:
        """Whether both are of the same key, bytes and division; who stored them may have said different slots."""
        return self._replace(part=0, slot=0) == other._replace(part=0, slot=0)

    def is_same_part(self, other: "Header") -> bool:
        """Whether both are of the same part of the same object."""
        return self.part == other.part and self.is_same_object(other)

    def parts(self) -> int:
        """Return in how many parts the object lies."""
        return -(-self.size // self.part_bytes)

    def length(self) -> int:
        """Return the bytes of the object that are in this part."""
        return min(self.part_bytes, self.size - self.part * self.part_bytes)

    def numbered(self, part: int) -> "Header":
        """Return the header of another part of the same object."""
        return self._replace(part=part)


def digest_of(key: ObjectKey) -> int:
    """Return the digest by which a header knows its key."""
    return xxhash.xxh3_64_intdigest(f"{key.bucket}\0{key.name}".encode())


def cut(views: Sequence[memoryview], part_bytes: int) -> Iterator[list[memoryview]]:
    """Yield an object's pages in parts of ``part_bytes``; the last may be shorter."""
    part: list[memoryview] = []
    room = part_bytes
    for view in views:
        while view.nbytes:
            piece, view = view[:room], view[room:]
            part.append(piece)
            room -= piece.nbytes
            if not room:
                yield part
                part, room = [], part_bytes
    if part:
        yield part
