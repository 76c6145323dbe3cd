"""The node stores themselves as one tier: found by the directory, fetched from whoever holds them.

Rules
-----
- An object is where the home of its slot says, and only there with members that are alive and the same as when they
  said so. What is not known in time is missing.
- Among an object's holders the one is asked that would have sent it soonest, by what was observed of it and what it
  has to do already; where it fails, the next one.
- Storing is asking: a member that is told of an object fetches it itself. Nobody's objects are deleted but by its node.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from tierline.duties import Duties
from tierline.loading import Speed
from tierline.pool.announcing import digest_of
from tierline.pool.directory import Directory, Holding
from tierline.pool.homes import Homes
from tierline.pool.members import Member
from tierline.pool.peers import Peer, Peers
from tierline.pool.receiving import Expected
from tierline.pool.slots import slot_of_name
from tierline.pool.threads import wait_to_the_end
from tierline.pool.tier import Arrival, Found, Kept, Wanted
from tierline.store import ObjectKey
from tierline.wire.pool import MAX_KEPT_PER_MESSAGE, ObjectToKeep

NAME = "tieredstorage"
KEEP_WITHIN_S = 30.0
"""For a member to fetch what it is asked to keep."""
FETCH_WITHIN_S = 60.0
"""For all that is wanted of one member; a member that is silent is given up long before."""
LOOKUP_WITHIN_S = 0.5
"""Where nobody waits: before a copy is asked for."""
_OF_THE_TIME = 0.9
CANDIDATES = 2
"""Members that are asked to keep an object, one after the other."""


class Bulk(Protocol):
    """Fetches from one member: :class:`~tierline.pool.receiving.Transfers`."""

    def fetch(self, member: Member, expected: Sequence[Expected], within_s: float) -> AsyncGenerator[Arrival, None]:
        """As :meth:`~tierline.pool.tier.Tier.fetch_into`, from this member alone."""

    def seconds(self, member: Member, size_bytes: int) -> float | None:
        """Return how long fetching so much from a member would take."""

    def bytes_per_s(self, member: Member) -> float | None:
        """Return how fast a member's bytes came lately."""


@dataclass(slots=True)
class Traffic:
    """What came from one member since this node started, and what it took over."""

    fetched_objects: int = 0
    fetched_bytes: int = 0
    failed_objects: int = 0
    kept_objects: int = 0


class TieredStorage:
    """See :class:`~tierline.pool.tier.Tier`; the ``place`` of what it finds is a sequence of :class:`Holding`.

    Parameters
    ----------
    own
        This node's name.
    homes, directory, peers
        Who says where an object is, this node among them.
    bulk
        Fetches from one member.
    duties
        Guard fetches against what ``bulk`` should not do.
    clock
        Monotonic seconds.

    Attributes
    ----------
    traffic
        By member's name.
    """

    name = NAME

    def __init__(
        self,
        own: str,
        homes: Homes,
        directory: Directory,
        peers: Peers,
        bulk: Bulk,
        duties: Duties,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.traffic: dict[str, Traffic] = {}
        self._own = own
        self._homes = homes
        self._directory = directory
        self._peers = peers
        self._bulk = bulk
        self._duties = duties
        self._clock = clock
        self._speed = Speed(clock)
        """Of all members together: what is expected of one that nothing is known of."""

    async def start(self) -> None:
        """See :class:`~tierline.pool.tier.Tier`: the members are reached by :class:`~tierline.pool.pool.Pool`."""

    async def stop(self) -> None:
        """See :class:`~tierline.pool.tier.Tier`."""

    # Finding ----------------------------------------------------------------------------------------------------------

    async def exists(
        self, keys: Sequence[ObjectKey], anchor: int | None, within_s: float, group_size: int = 1
    ) -> Sequence[Found]:
        """See :class:`~tierline.pool.tier.Tier`."""
        within_s *= _OF_THE_TIME  # or what one home said would be lost to another's silence
        if anchor is not None:
            found = await self._located(anchor, keys, within_s)
        else:
            found = []
            runs = [(slot, list(run)) for slot, run in groupby(keys, key=lambda key: slot_of_name(*key))]
            asked = await asyncio.gather(*(self._located(slot, run, within_s) for slot, run in runs))
            for (_, run), part in zip(runs, asked, strict=True):
                found += part
                if len(part) < len(run):
                    break
        return found[: len(found) - len(found) % group_size]

    async def _located(self, slot: int, keys: Sequence[ObjectKey], within_s: float) -> list[Found]:
        """Return the leading objects of one slot that members hold who are alive."""
        digests = [digest_of(key) for key in keys]
        home = self._homes[slot]
        if home == self._own:
            located: Sequence[Sequence[Holding]] = self._directory.locate(slot, digests, self._own)
        elif (peer := self._peers.alive.get(home)) is not None:
            located = await peer.lookup(slot, digests, within_s)
        else:
            located = ()
        are_there: dict[tuple[str, int], bool] = {}  # few members, many objects
        found = []
        for holdings in located:
            there: list[Holding] = []
            for holding in holdings:
                who = holding[:2]
                if who not in are_there:
                    are_there[who] = self._holder(holding) is not None
                if are_there[who] and (not there or holding.size == there[0].size):
                    there.append(holding)
            if not there:
                break
            found.append(Found(there[0].size, tuple(there)))
        return found

    def _holder(self, holding: Holding) -> Peer | None:
        peer = self._peers.alive.get(holding.member)
        return peer if peer is not None and peer.epoch == holding.epoch else None

    # Fetching ---------------------------------------------------------------------------------------------------------

    def seconds(self, found: Sequence[Found]) -> float | None:
        """See :class:`~tierline.pool.tier.Tier`: as long as the holder takes that has most to send, of its share."""
        together: Counter[tuple[str, ...]] = Counter()  # by who holds it: asked for many times for one run
        for one in found:
            holdings = _holdings(one)
            together[(holdings[0].member,) if len(holdings) == 1 else tuple(each.member for each in holdings)] += (
                one.size
            )
        sizes: Counter[Member] = Counter()
        for names, size in together.items():
            peers = [peer for name in names if (peer := self._peers.alive.get(name)) is not None]
            rates = [1 / self._pace(peer) for peer in peers]
            for peer, rate in zip(peers, rates, strict=True):
                sizes[peer.member] += round(size * rate / sum(rates))
        longest = 0.0
        for member, size in sizes.items():
            taken_s = self._bulk.seconds(member, size)
            if taken_s is None:
                taken_s = self._speed.seconds(size)
            if taken_s is None:
                return None
            longest = max(longest, taken_s)
        return longest

    async def fetch_into(self, wanted: Sequence[Wanted]) -> AsyncGenerator[Arrival, None]:
        """See :class:`~tierline.pool.tier.Tier`."""
        fetching = _Fetching(self, wanted)
        try:
            async for arrival in fetching.arrivals():
                yield arrival
        finally:
            await fetching.stop()

    def _share_out(self, wanted: "Iterable[tuple[Found, Iterable[str]]]") -> list[Peer | None]:
        """Return for each object the member to fetch it from, ``None`` where nobody is left but those to leave out."""
        shares: Counter[str] = Counter()
        paces: dict[str, float] = {}
        chosen: list[Peer | None] = []
        previous: Peer | None = None
        for found, tried in wanted:
            best: Peer | None = None
            best_s = 0.0
            for holding in _holdings(found):
                peer = self._holder(holding)
                if peer is None or peer.name in tried:
                    continue
                if peer.name not in paces:
                    paces[peer.name] = self._pace(peer)
                done_s = (shares[peer.name] + found.size) * paces[peer.name]
                if best is None or done_s < best_s or (done_s == best_s and peer is previous):
                    best, best_s = peer, done_s
            if best is not None:
                shares[best.name] += found.size
            chosen.append(best)
            previous = best
        return chosen

    def _pace(self, peer: Peer) -> float:
        """Return what a byte from a member takes, in seconds, or in something like it while nobody is known."""
        rate = self._bulk.bytes_per_s(peer.member) or self._speed.bytes_per_s or 1.0
        sending = peer.well.sending if peer.well is not None else 0
        return (1 + sending) / rate

    def _traffic_of(self, name: str) -> Traffic:
        return self.traffic.setdefault(name, Traffic())

    # Storing ----------------------------------------------------------------------------------------------------------

    async def store_from(self, kept: Sequence[Kept]) -> Sequence[bool]:
        """See :class:`~tierline.pool.tier.Tier`: true where another member holds the object now, whoever it is."""
        held = await asyncio.gather(*(self._located(one.slot, [one.key], LOOKUP_WITHIN_S) for one in kept))
        is_held = [bool(found) for found in held]
        for rank in range(CANDIDATES):
            wishes: dict[str, list[int]] = {}
            for place, one in enumerate(kept):
                others = (
                    [name for name in self._homes.ranked(one.slot) if name != self._own] if not is_held[place] else []
                )
                if rank < len(others):
                    wishes.setdefault(others[rank], []).append(place)
            await asyncio.gather(*(self._ask_to_keep(name, places, kept, is_held) for name, places in wishes.items()))
        return is_held

    async def _ask_to_keep(self, name: str, places: Sequence[int], kept: Sequence[Kept], is_held: list[bool]) -> None:
        peer = self._peers.alive.get(name)
        for start in range(0, len(places), MAX_KEPT_PER_MESSAGE):
            part = places[start : start + MAX_KEPT_PER_MESSAGE]
            if peer is None:
                return
            wish = [
                ObjectToKeep(one.key.bucket, one.key.name, one.slot, one.size, one.checksum)
                for one in (kept[place] for place in part)
            ]
            for place, is_kept in zip(part, await peer.keep(wish, KEEP_WITHIN_S), strict=True):
                is_held[place] = is_kept
                self._traffic_of(name).kept_objects += is_kept

    async def delete(self, keys: Sequence[ObjectKey]) -> None:
        """See :class:`~tierline.pool.tier.Tier`: nothing, for what others hold is theirs to delete."""


class _Fetching:
    """One call of ``fetch_into``: a task for each member that sends, whose arrivals come together in one queue.

    Invariant: each object that has not arrived is with one task, or was given up.
    """

    def __init__(self, tier: TieredStorage, wanted: Sequence[Wanted]) -> None:
        self._tier = tier
        self._wanted = wanted
        self._tried: list[set[str]] = [set() for _ in wanted]
        self._queue: asyncio.Queue[Arrival] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    async def arrivals(self) -> AsyncGenerator[Arrival, None]:
        """Yield one arrival for each object."""
        self._begin(range(len(self._wanted)))
        for _ in self._wanted:
            yield await self._queue.get()

    async def stop(self) -> None:
        """End what is under way; nothing is written any more when this returns."""
        for task in self._tasks:
            task.cancel()
        await wait_to_the_end(list(self._tasks))

    def _begin(self, places: Sequence[int]) -> None:
        """Have objects fetched by members that have not failed them; give up those that nobody is left for."""
        peers = self._tier._share_out((self._wanted[place].found, self._tried[place]) for place in places)
        lanes: dict[str, tuple[Peer, list[int]]] = {}
        for place, peer in zip(places, peers, strict=True):
            if peer is None:
                self._queue.put_nowait(Arrival(place, None, ""))
            else:
                self._tried[place].add(peer.name)
                lanes.setdefault(peer.name, (peer, []))[1].append(place)
        for peer, share in lanes.values():
            task = asyncio.create_task(self._receive(peer, share))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _receive(self, peer: Peer, places: Sequence[int]) -> None:
        tier, traffic = self._tier, self._tier._traffic_of(peer.name)
        left = dict.fromkeys(places)
        began, received = tier._clock(), 0
        with tier._duties.guarded("pool"):
            arrivals = tier._bulk.fetch(peer.member, [self._expected(place, peer) for place in places], FETCH_WITHIN_S)
            try:
                async for index, checksum, _ in arrivals:
                    if checksum is None:
                        continue
                    place = places[index]
                    del left[place]
                    size = self._wanted[place].found.size
                    received += size
                    traffic.fetched_objects += 1
                    traffic.fetched_bytes += size
                    self._queue.put_nowait(Arrival(place, checksum, peer.name))
            finally:
                await arrivals.aclose()
        tier._speed.observe(received, tier._clock() - began)
        traffic.failed_objects += len(left)
        if left:
            self._begin(list(left))

    def _expected(self, place: int, peer: Peer) -> Expected:
        """Return what a member is said to hold."""
        key, found, views = self._wanted[place]
        [checksum] = [holding.checksum for holding in _holdings(found) if holding.member == peer.name]
        return Expected(key, found.size, checksum, views)


def _holdings(found: Found) -> Sequence[Holding]:
    """Return the holders of an object that was found here."""
    assert isinstance(found.place, tuple)
    return found.place
