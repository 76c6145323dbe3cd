"""A node as the pool that it is in sees it: its objects, in all segments, told of as they come and go.

Rule: what is in transit is not told of, for it would be gone before anybody came for it; it is, once it stays.
"""

import asyncio
import contextlib
import heapq
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from tierline.node.segments import Segments, ServedSegment
from tierline.node.tier_figures import TierUse
from tierline.node.tier_writes import BATCH_OBJECTS, hold, write
from tierline.node.tiering import Tiering
from tierline.pool.announcing import Announcer
from tierline.pool.local import LocalObject, LocalState, Offered
from tierline.pool.slots import slot_of_name
from tierline.store import ObjectKey, Store, key_of

ROWS_PER_SLICE = 256
"""Of a store's records, in one slice of all objects: under a millisecond."""
MOST_HANDED_OVER = 65_536
"""Objects that a node hands to its peers when it stops, at the most."""


class _Warm(NamedTuple):
    """An object, by how much and how lately it was used."""

    hits: int
    touched: float
    key: ObjectKey


class PooledSegments:
    """What :class:`~tierline.pool.local.Local` asks for.

    Parameters
    ----------
    segments
        All of the node's.
    tiering_of
        Returns what lies below a segment, by its name.
    suspect
        Has an object compared with its checksum.
    """

    def __init__(
        self,
        segments: Segments,
        tiering_of: Callable[[str], Tiering | None],
        suspect: Callable[[ServedSegment, ObjectKey], None],
    ) -> None:
        self._segments = segments
        self._tiering_of = tiering_of
        self._suspect = suspect
        self._listeners: list[tuple[Store, Callable[[str, bool], None]]] = []
        self.use: TierUse | None = None
        """How this node uses the others' memory; ``None``: it only gives."""

    # What Local asks for ----------------------------------------------------------------------------------------------

    def objects(self, cursor: str) -> tuple[Sequence[LocalObject], str]:
        """Return a slice of all objects; a cursor is the segment's place, a dot, and its store's own."""
        place, _, inner = cursor.partition(".")
        served = list(self._segments)
        index = int(place or 0)
        store = served[index].service.store
        texts, inner = store.keys(inner, ROWS_PER_SLICE)
        found = [_local(store, text) for text in texts]
        if not inner:
            index += 1
        return [each for each in found if each is not None], f"{index}.{inner}" if index < len(served) else ""

    def mark_copied(self, key: ObjectKey, is_copied: bool) -> None:
        """Take note of whether others hold an object too."""
        self._of(key).service.store.mark_copied(key, is_copied)

    async def keep(self, offered: Sequence[Offered]) -> Sequence[bool]:
        """Fetch what a peer asks this node to hold; returns which of it is here at the end."""
        held = dict.fromkeys((each.key for each in offered), False)
        by_segment: dict[str, list[Offered]] = {}
        for each in offered:
            by_segment.setdefault(self._of(each.key).name, []).append(each)
        for name, part in by_segment.items():
            tiering = self._tiering_of(name)
            if tiering is not None and self.use is not None:
                are_held = await tiering.hold(self.use, part)
                held.update(zip((each.key for each in part), are_held, strict=True))
        return [held[each.key] for each in offered]

    def store_of(self, bucket: str) -> Store:
        """Return the store that a bucket is in."""
        return self._segments.of_bucket(bucket).service.store

    def suspect(self, key: ObjectKey) -> None:
        """Compare an object with its checksum, for it came to another with other bytes."""
        self._suspect(self._of(key), key)

    def state(self) -> LocalState:
        """Return how much is held."""
        stats = [segment.service.store.stats() for segment in self._segments]
        return LocalState(
            sum(each.objects for each in stats),
            sum(each.used_bytes for each in stats),
            sum(each.capacity_bytes for each in stats),
        )

    # What the node does -----------------------------------------------------------------------------------------------

    def tell(self, announcer: Announcer) -> None:
        """Tell of every change from now on."""
        for segment in self._segments:
            store = segment.service.store
            listener = _listener(store, announcer)
            store.listen(listener)
            self._listeners.append((store, listener))

    def stop_telling(self) -> None:
        """Tell of nothing any more."""
        while self._listeners:
            store, listener = self._listeners.pop()
            store.unlisten(listener)

    async def hand_over(self, within_s: float) -> int:
        """Have peers take copies of what nobody else has, the most used first; returns how many they have then."""
        use = self.use
        if use is None:
            return 0
        handed = 0
        with contextlib.suppress(TimeoutError):  # the rest is computed anew
            async with asyncio.timeout(within_s):
                for segment in self._segments:
                    async for batch in _warmest(segment.service.store):
                        taken = await self._hand_over(segment.service.store, use, batch, within_s)
                        if not taken:
                            break  # nobody is there, or has room
                        handed += taken
        return handed

    async def _hand_over(self, store: Store, use: TierUse, keys: Sequence[ObjectKey], within_s: float) -> int:
        batch = hold(store, keys)
        try:
            return (await write(store, use, batch, within_s)).objects
        finally:
            for held in batch:
                store.release(held.lease)

    def _of(self, key: ObjectKey) -> ServedSegment:
        return self._segments.of_bucket(key.bucket)


def _local(store: Store, text: str) -> LocalObject | None:
    """Describe an object that stays; ``None`` where it does not, or is not stored."""
    entry = store.entry(text)
    if entry is None or entry.is_transit:
        return None
    key = key_of(text)
    return LocalObject(key, slot_of_name(*key) if entry.anchor is None else entry.anchor, entry.size, entry.checksum)


def _listener(store: Store, announcer: Announcer) -> Callable[[str, bool], None]:
    def changed(text: str, is_stored: bool) -> None:
        held = _local(store, text)
        if held is not None and is_stored:
            announcer.added(held)
        elif held is not None:
            announcer.removed(held.key, held.slot)

    return changed


async def _warmest(store: Store) -> AsyncIterator[Sequence[ObjectKey]]:
    """Yield objects that nobody else has, the most used first, a batch at a time."""
    warmest: list[_Warm] = []
    cursor, is_first = "", True
    while cursor or is_first:
        texts, cursor = store.keys(cursor, ROWS_PER_SLICE)
        is_first = False
        for text in texts:
            key = key_of(text)
            stat = None if store.is_copied(key) else store.stat(key)
            if stat is None:
                continue
            warm = _Warm(stat.hits, -stat.idle_s, key)
            if len(warmest) < MOST_HANDED_OVER:
                heapq.heappush(warmest, warm)
            else:
                heapq.heappushpop(warmest, warm)
        await asyncio.sleep(0)  # others have their turn
    warmest.sort(reverse=True)
    for start in range(0, len(warmest), BATCH_OBJECTS):
        yield [warm.key for warm in warmest[start : start + BATCH_OBJECTS]]
