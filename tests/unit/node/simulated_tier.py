"""A tier in memory that answers, errs, delays, lies and breaks as it is told to."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import xxhash

from tierline.pool.tier import Arrival, Found, Kept, Wanted
from tierline.store import ObjectKey


class SimulatedFault(Exception):  # noqa: N818
    """Raised where the interface says that nothing is."""


def content_of(key: ObjectKey, size: int = 4000) -> bytes:
    """What everybody would compute for a key."""
    seed = xxhash.xxh3_64_digest(f"{key.bucket}/{key.name}".encode())
    return (seed * (size // 8 + 1))[:size]


@dataclass
class SimulatedTier:
    """Holds ``objects``; the rest says how it misbehaves.

    Parameters
    ----------
    exists_s, object_s, store_s
        How long an answer, each object and a store take.
    observed_s
        What it says that fetching one object takes.
    claims
        What it says of an object instead of the truth.
    lacks_at_fetch
        Objects that it has said it has, and does not bring.
    arrivals
        Said instead of the truth, once each, before it.
    raises
        ``exists``, ``seconds``, ``fetch_into`` or ``store_from``.
    hangs_after
        A fetch brings so many objects and then nothing, for ever.
    is_stubborn
        What hangs, or stores, does not end when it is told to: as a call that cannot be interrupted.
    """

    name: str = "redis"
    objects: dict[ObjectKey, bytes] = field(default_factory=dict)
    exists_s: float = 0.001
    object_s: float = 0.001
    store_s: float = 0.001
    observed_s: float | None = None
    claims: dict[ObjectKey, int] = field(default_factory=dict)
    extra_claims: int = 0
    lacks_at_fetch: set[ObjectKey] = field(default_factory=set)
    arrivals: list[Arrival] = field(default_factory=list)
    raises: set[str] = field(default_factory=set)
    refuses: set[ObjectKey] = field(default_factory=set)
    hangs_after: int | None = None
    is_stubborn: bool = False
    source: str = ""
    reverses: bool = False
    asked: Counter[str] = field(default_factory=Counter)
    anchors: list[int | None] = field(default_factory=list)
    fetching: int = 0
    touched_after_close: bool = False

    def has(self, *keys: ObjectKey) -> None:
        """Hold what everybody would compute."""
        for key in keys:
            self.objects[key] = content_of(key)

    async def exists(
        self, keys: Sequence[ObjectKey], anchor: int | None, within_s: float, group_size: int = 1
    ) -> Sequence[Found]:
        self.asked["exists"] += 1
        self.anchors.append(anchor)
        await asyncio.sleep(self.exists_s)
        if "exists" in self.raises:
            raise SimulatedFault
        found = []
        for key in keys:
            if key not in self.objects:
                break
            found.append(Found(self.claims.get(key, len(self.objects[key])), key))
        return found[: len(found) - len(found) % group_size] + [Found(4000, None)] * self.extra_claims

    def seconds(self, found: Sequence[Found]) -> float | None:
        if "seconds" in self.raises:
            raise SimulatedFault
        return None if self.observed_s is None else self.observed_s * len(found)

    async def fetch_into(self, wanted: Sequence[Wanted]) -> AsyncGenerator[Arrival, None]:
        self.asked["fetch_into"] += 1
        self.asked["objects"] += len(wanted)
        self.fetching += 1
        try:
            for arrival in self.arrivals:
                yield arrival
            order = list(enumerate(wanted))
            for count, (index, each) in enumerate(reversed(order) if self.reverses else order):
                if count == self.hangs_after:
                    await self._call(1e6)
                await asyncio.sleep(self.object_s)
                if "fetch_into" in self.raises:
                    raise SimulatedFault
                content = self.objects.get(each.key)
                room = sum(view.nbytes for view in each.views)
                if content is None or each.key in self.lacks_at_fetch or len(content) != room:
                    yield Arrival(index, None, self.source)
                    continue
                place = 0
                for view in each.views:
                    view[:] = content[place : place + view.nbytes]
                    place += view.nbytes
                yield Arrival(index, xxhash.xxh3_64_intdigest(content), self.source)
        finally:
            self.fetching -= 1

    async def store_from(self, kept: Sequence[Kept]) -> Sequence[bool]:
        self.asked["store_from"] += 1
        await self._call(self.store_s)
        if "store_from" in self.raises:
            raise SimulatedFault
        for each in kept:
            content = b"".join(each.views)
            if each.key not in self.refuses:
                assert xxhash.xxh3_64_intdigest(content) == each.checksum
                self.objects[each.key] = content
        return [each.key not in self.refuses for each in kept]

    async def delete(self, keys: Sequence[ObjectKey]) -> None:
        self.asked["delete"] += 1
        for key in keys:
            self.objects.pop(key, None)

    async def _call(self, seconds: float) -> None:
        calling = asyncio.ensure_future(asyncio.sleep(seconds))
        while not calling.done():
            try:
                await asyncio.shield(calling)
            except asyncio.CancelledError:
                if not self.is_stubborn:
                    calling.cancel()
                    raise

    async def start(self) -> None: ...

    async def stop(self) -> None: ...
