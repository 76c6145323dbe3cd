"""Objects for tests of tiers: bytes that tell them apart, in pages that are not contiguous."""

import random
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

import xxhash

from tierline.pool.tier import Found, Kept, Tier, Wanted
from tierline.store import ObjectKey


class Memory:
    """Memory that is handed out in pieces, as a segment's is."""

    def __init__(self, size: int = 96 * 1024 * 1024) -> None:
        self.buffer = memoryview(bytearray(size))
        self._next = 0

    def pages(self, size: int, pieces: int = 1) -> list[memoryview]:
        """Return views of ``size`` bytes in all, with gaps between them."""
        views = []
        for number in range(pieces):
            length = size * (number + 1) // pieces - size * number // pieces
            views.append(self.buffer[self._next : self._next + length])
            self._next += length + 64
        return views


@dataclass
class Thing:
    key: ObjectKey
    content: bytes

    @property
    def checksum(self) -> int:
        return xxhash.xxh3_64_intdigest(self.content)

    def kept(self, memory: Memory, pieces: int = 1) -> Kept:
        views = memory.pages(len(self.content), pieces)
        position = 0
        for view in views:
            view[:] = self.content[position : position + len(view)]
            position += len(view)
        return Kept(self.key, 7, len(self.content), self.checksum, views)


def things(count: int, size: int, seed: int = 0, bucket: str = "bucket") -> list[Thing]:
    source = random.Random(seed)
    return [Thing(ObjectKey(bucket, f"m@{seed}/{number:04}"), source.randbytes(size)) for number in range(count)]


async def store(tier: Tier, memory: Memory, stored: Sequence[Thing], pieces: int = 1) -> Sequence[bool]:
    return await tier.store_from([thing.kept(memory, pieces) for thing in stored])


async def look(tier: Tier, wanted: Sequence[Thing], within_s: float = 60.0, group_size: int = 1) -> Sequence[Found]:
    return await tier.exists([thing.key for thing in wanted], 7, within_s, group_size)


async def fetch(
    tier: Tier, memory: Memory, wanted: Sequence[Thing], found: Sequence[Found], pieces: int = 1
) -> list[bytes | None]:
    """Return the bytes that came of each, ``None`` where it did not."""
    each = [
        Wanted(thing.key, place, memory.pages(place.size, pieces)) for thing, place in zip(wanted, found, strict=True)
    ]
    came: list[bytes | None] = [None] * len(each)
    heard = []
    async with aclosing(tier.fetch_into(each)) as arrivals:
        async for arrival in arrivals:
            heard.append(arrival.index)
            if arrival.checksum is not None:
                came[arrival.index] = content = b"".join(bytes(view) for view in each[arrival.index].views)
                assert xxhash.xxh3_64_intdigest(content) == arrival.checksum
    assert sorted(heard) == list(range(len(each)))
    return came
