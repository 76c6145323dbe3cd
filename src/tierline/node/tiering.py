"""What lies below one segment: what the node misses is looked for there, fetched, and committed as it comes.

Rules: **whoever waits, waits on the store.** What is being fetched holds open slots, so that all who want it stand
behind one fetch as behind any writer, each inside its own time limit, while the fetch goes on. What a tier says is
checked against what it can know, and in doubt the answer is a miss. No hit comes by here.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

from tierline.duties import Duties
from tierline.errors import AlreadyStored, BeingWritten, StoreError, UnknownLease
from tierline.loading import PrefillCost, decide
from tierline.node.service import NodeService
from tierline.node.tier_figures import TierUse
from tierline.node.tier_writes import TierWrites
from tierline.pool.local import Offered
from tierline.pool.slots import slot_of, slot_of_name
from tierline.pool.tier import Arrival, Found, Wanted
from tierline.store import Leased, ObjectKey, Owner, Slot, Store
from tierline.tracing.context import Origin, current, working_for
from tierline.tracing.spans import Attributes, bucket_digest

FETCHES_AT_ONCE = 8
"""Of one segment; those behind them begin in the order in which they were asked for."""
MOST_FETCHING_SHARE = 0.5
"""Of a segment, for what is on its way: the rest stays for those who compute."""
STALL_S = 30.0
"""A fetch that brings no object for so long is given up."""
STOP_S = 5.0
"""How long fetches under way may take to let go of their pages when the node stops, and removals to be done."""
MOST_SOURCES = 65_536
"""Objects of which it is remembered who brought them."""
FETCHER = "node:fetch"
"""Holder of the leases under which what has come waits, where it does not stay, for what is before it in its run."""
SLOTS_PER_SLICE = 64
"""Opened before others have their turn: about a millisecond."""
_MOST_CHECKSUM = 2**64 - 1

Sought = Literal["coming", "missing", "unanswered"]
"""What a look-up came to: objects are on their way; no tier has them, or they are not worth fetching; the caller's time
was over before the tiers' was."""


class _Coming(NamedTuple):
    """An object on its way: what the tier said of it, the slot that its bytes go into, and what becomes of it then."""

    key: ObjectKey
    found: Found
    slot: Slot
    place: int
    is_transit: bool


class Tiering:
    """The tiers below one segment, from :meth:`start` to :meth:`stop`.

    Parameters
    ----------
    service
        The segment's store.
    uses
        The tiers, in the order in which they are asked.
    keeps_own
        Whether what is stored here stays (L1 is on); else it goes with its last reader, and with its writes below.
    is_at_home
        Whether a directory slot is this node's: what is in it stays in any case, for the pool.
    has_second_copy
        Whether a bucket's objects shall have a copy at another node.
    lookup_cap_s
        Longest look-up, of all tiers together.
    load_factor
        What a second of computing is worth in seconds of loading.
    duties
        Guards ``tiers`` against what a tier should not do.
    """

    def __init__(
        self,
        service: NodeService,
        uses: Sequence[TierUse],
        *,
        keeps_own: bool = True,
        is_at_home: Callable[[int], bool] = lambda _: False,
        has_second_copy: Callable[[str], bool] = lambda _: False,
        lookup_cap_s: float = 0.02,
        load_factor: float = 1.0,
        duties: Duties,
    ) -> None:
        self.uses = tuple(uses)
        self.writes = TierWrites(service, self.uses, has_second_copy, duties)
        self._service = service
        self._store = service.store
        self._keeps_own = keeps_own
        self._is_at_home = is_at_home
        self._lookup_cap_s = lookup_cap_s
        self._load_factor = load_factor
        self._duties = duties
        self._most_fetching_bytes = MOST_FETCHING_SHARE * self._store.segment.size
        self._fetching_bytes = 0
        self._turns = asyncio.Semaphore(FETCHES_AT_ONCE)
        self._questions: dict[tuple[ObjectKey, ObjectKey, int], asyncio.Task[Sought]] = {}
        self._fetches: set[asyncio.Task[None]] = set()
        self._removals: set[asyncio.Task[None]] = set()
        self._leaving: Counter[tuple[str, ObjectKey]] = Counter()
        self._sources: dict[ObjectKey, tuple[str, float]] = {}
        self._is_open = False

    def start(self) -> None:
        """Serve the segment."""
        self._is_open = True
        self._service.below = self
        self.writes.start()

    async def stop(self) -> bool:
        """Begin nothing any more, and let what is under way let go of its pages; the store is open still.

        Returns
        -------
        bool
            False where a call of a tier goes on that may read or write pages: nobody else may have the segment.
        """
        self._is_open = False
        self._service.below = None
        under_way = [*self._questions.values(), *self._fetches]
        for task in under_way:
            task.cancel()
        stopping_writes = asyncio.create_task(self.writes.stop())
        if under_way:
            await asyncio.wait(under_way, timeout=STOP_S)
        lets_go = await stopping_writes and all(fetch.done() for fetch in self._fetches)
        if self._removals:
            await asyncio.wait(self._removals, timeout=STOP_S)
        for removal in self._removals:
            removal.cancel()
        return lets_go

    # What is missing --------------------------------------------------------------------------------------------------

    async def seek(
        self,
        keys: Sequence[ObjectKey],
        anchor: str = "",
        *,
        group_size: int = 1,
        within_s: float,
        prefill: PrefillCost | None = None,
        start: int = 0,
    ) -> Sought:
        """Look for a run of objects, of which the first group is not here, and begin to fetch what is worth it.

        Parameters
        ----------
        keys
            Of one bucket, in whole groups of ``group_size``.
        anchor
            As in :data:`tierline.wire.messages.Anchor`.
        within_s
            The caller's time; the look-up, and the fetch, go on behind it.
        prefill
            What computing groups takes; ``None``: not known.
        start
            Groups before these.
        """
        if not (keys and self.uses and self._is_open):
            return "missing"
        task = self._question(keys, anchor, group_size, prefill, start)
        done, _ = await asyncio.wait([task], timeout=max(within_s, 0.0))
        return task.result() if done and not task.cancelled() else "unanswered"

    def seek_ahead(
        self,
        keys: Sequence[ObjectKey],
        anchor: str = "",
        *,
        group_size: int = 1,
        prefill: PrefillCost | None = None,
        start: int = 0,
    ) -> None:
        """Do the same for who does not wait: the next one finds what has come."""
        if keys and self.uses and self._is_open:
            self._question(keys, anchor, group_size, prefill, start)

    def _question(
        self, keys: Sequence[ObjectKey], anchor: str, group_size: int, prefill: PrefillCost | None, start: int
    ) -> asyncio.Task[Sought]:
        """Ask what nobody else is asking just now."""
        question = (keys[0], keys[-1], len(keys))  # prompts begin alike, and the last key of a prefix says all of it
        task = self._questions.get(question)
        if task is None:
            task = asyncio.create_task(self._look_up(keys, anchor, group_size, prefill, start))
            self._questions[question] = task
            task.add_done_callback(lambda _: self._questions.pop(question))
        return task

    async def _look_up(
        self, keys: Sequence[ObjectKey], anchor: str, group_size: int, prefill: PrefillCost | None, start: int
    ) -> Sought:
        place = slot_of(keys[0].bucket, anchor) if anchor else None
        loop = asyncio.get_running_loop()
        end = loop.time() + self._lookup_cap_s
        is_coming = False
        for use in self.uses:
            with self._duties.guarded("tiers"):
                found = await self._find(use, keys, place, group_size, end - loop.time())
                taken = self._decide(use, found, group_size, prefill, start)
                is_coming |= await self._begin(use, keys[:taken], found, place, group_size)
                keys = keys[taken:]
                start += taken // group_size
                if not keys or taken < len(found) or loop.time() >= end:
                    break  # what lies behind is of no use without what is not taken
        return "coming" if is_coming else "missing"

    async def _find(
        self, use: TierUse, keys: Sequence[ObjectKey], place: int | None, group_size: int, within_s: float
    ) -> Sequence[Found]:
        """Ask one tier; what it says that cannot be ends the run."""
        found: Sequence[Found] = ()
        try:
            async with asyncio.timeout(within_s):
                found = await use.tier.exists(keys, place, within_s, group_size)
        except TimeoutError:
            use.figures.failures["unanswered"] += 1
        count = min(len(found), len(keys))
        for index in range(count):
            if (use.tier.name, keys[index]) in self._leaving:  # somebody removes it, and shall not find it again
                count = index
                break
            if not 0 < found[index].size <= self._store.segment.size:
                use.figures.failures["claim"] += 1
                count = index
                break
        count -= count % group_size
        use.figures.misses += len(keys) - count
        return found[:count]

    def _decide(
        self, use: TierUse, found: Sequence[Found], group_size: int, prefill: PrefillCost | None, start: int
    ) -> int:
        """Return how many leading objects are worth fetching."""
        if not found:
            return 0
        decision = decide(
            len(found) // group_size,
            lambda groups: use.tier.seconds(found[: groups * group_size]),
            prefill,
            start=start,
            factor=self._load_factor,
        )
        use.figures.decisions[decision.label] += 1
        use.figures.latest = decision
        return decision.blocks * group_size

    # What comes -------------------------------------------------------------------------------------------------------

    async def hold(self, use: TierUse, offered: Sequence[Offered]) -> Sequence[bool]:
        """Fetch objects of this segment that a peer asks this node to hold; returns which of them are here then."""
        if not self._is_open:
            return [False] * len(offered)
        owner = self._service.new_owner()
        coming: list[_Coming] = []
        try:
            for number, each in enumerate(offered, start=1):
                with contextlib.suppress(StoreError):  # for want of room
                    coming += self._open(owner, [each.key], [each.found], each.slot)
                if number % SLOTS_PER_SLICE == 0:
                    await asyncio.sleep(0)  # others have their turn
        except BaseException:  # also of a name that the journal cannot hold
            self._give_up(owner, coming)
            raise
        if coming:
            await asyncio.wait([self._fetch_in_background(use, owner, coming)])
        with self.writes.quietly():
            return [self._store.keep(each.key) for each in offered]

    async def _begin(
        self, use: TierUse, keys: Sequence[ObjectKey], found: Sequence[Found], place: int | None, group_size: int
    ) -> bool:
        """Open slots for what is not here and begin to fetch it; False where nothing is on its way."""
        owner = self._service.new_owner()
        coming: list[_Coming] = []
        is_written = False
        try:
            for start in range(0, len(keys), group_size):
                end = start + group_size
                is_written |= any(map(self._store.is_being_written, keys[start:end]))
                coming += self._open(owner, keys[start:end], found[start:end], place, promotes=use.promotes)
                if end % SLOTS_PER_SLICE < group_size:
                    await asyncio.sleep(0)  # others have their turn
        except StoreError:  # there is no room for the rest
            use.figures.failures["no_room"] += 1
        except BaseException:  # also of a name that the journal cannot hold
            self._give_up(owner, coming)
            raise
        if coming:
            self._fetch_in_background(use, owner, coming)
        return is_written or bool(coming)

    def _open(
        self,
        owner: Owner,
        keys: Sequence[ObjectKey],
        found: Sequence[Found],
        place: int | None,
        *,
        promotes: bool | None = None,
    ) -> list[_Coming]:
        """Open slots for those of a group that are not here, or for none; raises ``StoreError`` where one has no room.

        ``promotes`` says whether what comes stays, where this node keeps anything; ``None``: it stays in any case.
        """
        coming: list[_Coming] = []
        try:
            for key, each in zip(keys, found, strict=True):
                if self._fetching_bytes + each.size > self._most_fetching_bytes:
                    raise StoreError("as much is on its way as may be")
                home = slot_of_name(*key) if place is None else place
                is_transit = promotes is not None and not (promotes and self._keeps_own) and not self._is_at_home(home)
                with contextlib.suppress(AlreadyStored, BeingWritten):
                    slot = self._service.write(key, each.size, owner)
                    coming.append(_Coming(key, each, slot, home, is_transit))
                    self._fetching_bytes += each.size
        except BaseException:
            self._give_up(owner, coming)
            raise
        return coming

    def _give_up(self, owner: Owner, coming: Sequence[_Coming]) -> None:
        """Give slots back, into which nobody writes."""
        for each in coming:
            self._service.abort(each.slot.id, owner)
            self._fetching_bytes -= each.slot.size

    def _fetch_in_background(self, use: TierUse, owner: Owner, coming: Sequence[_Coming]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._fetch(use, owner, coming))
        self._fetches.add(task)
        task.add_done_callback(self._fetches.discard)
        return task

    async def _fetch(self, use: TierUse, owner: Owner, coming: Sequence[_Coming]) -> None:
        """Commit objects as they come; what does not come is a miss for those who wait for it."""
        missing = dict(enumerate(coming))
        held = _Held(self._store)
        received = 0
        brought: Counter[str] = Counter()
        tracer, origin = self._service.tracer, current()
        span = tracer.open(f"fetch {use.tier.name}", "client", origin.trace) if tracer is not None else None
        told = origin if span is None else Origin(origin.request_id, span.context)
        loop = asyncio.get_running_loop()
        since = loop.time()
        try:
            async with self._turns:
                since = loop.time()
                wanted = [Wanted(each.key, each.found, self._store.views(each.slot.extents)) for each in coming]
                with self._duties.guarded("tiers", lets_through=TimeoutError), working_for(told):
                    async with _closing(use.tier.fetch_into(wanted)) as arrivals:
                        while missing:
                            async with asyncio.timeout(STALL_S):
                                arrival = await anext(arrivals, None)
                            if arrival is None:
                                break
                            if (each := missing.pop(arrival.index, None)) is None:
                                use.figures.failures["claim"] += 1  # said twice, or never asked for
                                continue
                            taken = self._take(use, owner, each, arrival)
                            received += taken
                            brought[use.label(arrival.source)] += taken > 0
                            if each.is_transit:
                                self._fetching_bytes += held.add(each, loop.time())
        except TimeoutError:
            use.figures.failures["stalled"] += 1
        finally:
            use.figures.failures["not_brought"] += len(missing)
            self._give_up(owner, list(missing.values()))
            self._fetching_bytes -= held.release()
            use.figures.fetched(received, loop.time() - since)
            if span is not None:
                span.end(_fetched(coming, brought, received), is_error=bool(missing))

    def _take(self, use: TierUse, owner: Owner, each: _Coming, arrival: Arrival) -> int:
        """Commit an object whose bytes are in its slot, or give the slot up; returns how many bytes came."""
        key, found, slot, place, is_transit = each
        self._fetching_bytes -= slot.size
        checksum = arrival.checksum
        if checksum is None or not 0 <= checksum <= _MOST_CHECKSUM:
            use.figures.failures["not_brought"] += 1
            self._service.abort(slot.id, owner)
            return 0
        self._note_source(key, use.label(arrival.source))
        try:
            self.writes.has(use, key)
            with self.writes.quietly():
                self._service.publish(slot.id, owner, checksum, key, found.size, place, is_transit=is_transit)
        except StoreError:  # no room in the journal
            use.figures.failures["no_room"] += 1
            self._service.abort(slot.id, owner)
            return 0
        self._store.mark_copied(key)
        use.figures.hits[arrival.source] += 1
        use.figures.fetched_bytes += found.size
        return found.size

    # Whose it was -----------------------------------------------------------------------------------------------------

    def sources(self, leased: Sequence[Leased], since: float) -> dict[str, int]:
        """Count objects by who brought them here since a time of the loop's clock; others are not counted."""
        counts: dict[str, int] = {}
        for each in leased:
            label, when = self._sources.get(each.key, ("", 0.0))
            if label and when > since:
                counts[label] = counts.get(label, 0) + 1
        return counts

    def _note_source(self, key: ObjectKey, label: str) -> None:
        self._sources.pop(key, None)
        if len(self._sources) >= MOST_SOURCES:
            del self._sources[next(iter(self._sources))]
        self._sources[key] = label, asyncio.get_running_loop().time()

    # What is stored here ----------------------------------------------------------------------------------------------

    def stays(self, key: ObjectKey, place: int | None) -> bool:
        """Whether an object that a client stores here stays, or goes with its last reader."""
        return self._keeps_own or self._is_at_home(slot_of_name(*key) if place is None else place)

    def forget(self, keys: Sequence[ObjectKey]) -> None:
        """Remove objects below, for somebody removes them here; other nodes keep what they have."""
        for use in self.uses:
            if not use.is_pool and use.policy != "read-only":
                task = asyncio.create_task(self._remove(use, keys, self.writes.withdraw(use, keys)))
                self._removals.add(task)
                leaving = [(use.tier.name, key) for key in keys]
                self._leaving.update(leaving)
                task.add_done_callback(partial(self._end_removal, leaving))

    async def _remove(self, use: TierUse, keys: Sequence[ObjectKey], writes: Sequence[asyncio.Event]) -> None:
        """Remove objects from a tier, and once more behind writes of them that were under way already."""
        await self._remove_once(use, keys)
        if writes:
            for ended in writes:
                await ended.wait()
            await self._remove_once(use, keys)

    async def _remove_once(self, use: TierUse, keys: Sequence[ObjectKey]) -> None:
        with self._duties.guarded("tiers"):
            try:
                async with asyncio.timeout(STALL_S):
                    await use.tier.delete(keys)
            except TimeoutError:
                use.figures.failures["stalled"] += 1

    def _end_removal(self, leaving: Sequence[tuple[str, ObjectKey]], task: asyncio.Task[None]) -> None:
        self._removals.discard(task)
        for each in leaving:
            self._leaving[each] -= 1
            if not self._leaving[each]:
                del self._leaving[each]

    def used(self, leased: Sequence[Leased]) -> None:
        """Take note that objects that were here were asked for."""
        self.writes.used(leased)


def _fetched(coming: Sequence[_Coming], brought: Counter[str], received: int) -> Attributes:
    """Return what a span says of a fetch."""
    attributes: Attributes = {
        "tierline.bucket_digest": bucket_digest(coming[0].key.bucket),
        "tierline.asked_objects": len(coming),
        "tierline.objects": brought.total(),
        "tierline.bytes": received,
    }
    if brought:
        attributes["tierline.tier"] = ",".join(sorted(brought))
    return attributes


class _Held:
    """What a fetch has brought that does not stay: it is there until all has come, for objects come in any order."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._leases: list[str] = []
        self._size = 0
        self._renewed_at = 0.0

    def add(self, each: _Coming, now: float) -> int:
        """Hold an object, where it has come; returns how many bytes that are."""
        ttl_s = self._store.limits.max_ttl_s
        if not self._leases:
            self._renewed_at = now
        elif now - self._renewed_at > ttl_s / 3:
            self._renewed_at = now
            for lease in self._leases:
                with contextlib.suppress(UnknownLease):  # so long was the pause before
                    self._store.renew(lease, ttl_s)
        found = self._store.lease(each.key, FETCHER, ttl_s, is_use=False)
        if found is None:
            return 0
        self._leases.append(found[0])
        self._size += each.slot.size
        return each.slot.size

    def release(self) -> int:
        """Let all go; returns how many bytes that are."""
        for lease in self._leases:
            self._store.release(lease)
        return self._size


@contextlib.asynccontextmanager
async def _closing(arrivals: AsyncGenerator[Arrival, None]) -> AsyncIterator[AsyncGenerator[Arrival, None]]:
    """Close a fetch to its very end, whoever is impatient meanwhile: before that its pages are written to."""
    try:
        yield arrivals
    finally:
        closing = asyncio.ensure_future(arrivals.aclose())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait([closing])
            raise
