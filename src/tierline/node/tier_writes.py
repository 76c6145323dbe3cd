"""What is stored in one segment goes on to the tiers below it: in the background, by each tier's write policy.

Rules: whoever stores an object waits for no tier. What waits to be written, and what is being written, is held by a
lease of the node's own for as long as that takes, so the room that it takes is bounded: what comes beyond the bound is
not written there, and counted.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from tierline.duties import Duties
from tierline.errors import UnknownLease
from tierline.node.service import NodeService
from tierline.node.tier_figures import TierUse
from tierline.pool.slots import slot_of_name
from tierline.pool.tier import Kept
from tierline.store import Leased, ObjectKey, Store, key_of
from tierline.store.index import text_of
from tierline.tracing.context import NOWHERE, Origin, current, working_for
from tierline.tracing.spans import Attributes, bucket_digest

WRITER = "node:tiers"
"""Holder of the leases under which the node writes objects to tiers."""

MOST_WAITING_SHARE = 1 / 8
"""Of the segment, for what waits to be written to one tier."""
MOST_WAITING = 4096
"""Objects that wait to be written to one tier."""
BATCH_OBJECTS = 64
BATCH_BYTES = 64 * 1024**2
"""Of what one tier is handed at a time."""
WRITERS = 2
"""Batches that one tier is handed at once."""
LONGEST_WRITE_S = 30.0
"""Of one batch; the leases on it live longer."""
STOP_S = 5.0
"""How long writes under way may take to let go of their pages when the node stops."""
RENEWED_PER_SLICE = 256
"""Leases renewed before others have their turn: under a millisecond."""
MOST_OFFERED = 65_536
"""Objects of which it is remembered that a tier has them, or was offered them."""


class TierWrites:
    """Writes one segment's objects to its tiers.

    Parameters
    ----------
    service
        The segment's store.
    uses
        The tiers.
    has_second_copy
        Whether a bucket's objects shall have a copy at another node.
    duties
        Guards ``tiers`` against what a tier should not do.
    """

    def __init__(
        self, service: NodeService, uses: Sequence[TierUse], has_second_copy: Callable[[str], bool], duties: Duties
    ) -> None:
        self._store = service.store
        self._has_second_copy = has_second_copy
        self._lines = [_Line(service, use, duties) for use in uses if use.policy != "read-only"]
        self._fresh: list[tuple[str, Origin]] = []
        self._keeping: asyncio.Task[None] | None = None
        self._is_quiet = False
        self.hears_of_uses = any(line.use.policy == "write-through-on-second-use" for line in self._lines)
        """Whether anybody wants to know what is used."""

    def start(self) -> None:
        """Listen to the store, and write."""
        if self._lines:
            self._store.listen(self._changed)
            self._keeping = asyncio.create_task(self._keep())
        for line in self._lines:
            line.start()

    async def stop(self) -> bool:
        """Write no more; False where a write does not let go of its pages. The store is open still."""
        if self._keeping is None:  # there is nothing to write to, or it never began
            return True
        self._store.unlisten(self._changed)
        self._keeping.cancel()
        self._keeping = None
        return all(await asyncio.gather(*(line.stop() for line in self._lines)))

    @property
    def waiting(self) -> int:
        """How many objects wait to be written to some tier."""
        return sum(map(len, self._lines))

    def has(self, source: TierUse, key: ObjectKey) -> None:
        """Take note that a tier has an object."""
        for line in self._lines:
            if line.use is source:
                line.note(key)

    def withdraw(self, use: TierUse, keys: Sequence[ObjectKey]) -> Sequence[asyncio.Event]:
        """Let objects that somebody removes go to a tier no more; returns the ends of the writes that they are in."""
        return [ended for line in self._lines if line.use is use for ended in line.withdraw(keys)]

    @contextlib.contextmanager
    def quietly(self) -> Iterator[None]:
        """Let what is published inside the block go to no tier: it comes from one, or has gone already."""
        self._is_quiet = True
        try:
            yield
        finally:
            self._is_quiet = False

    def used(self, leased: Sequence[Leased]) -> None:
        """Take note that objects that were here were asked for: the second use, the first was their computation."""
        for line in self._lines:
            if line.use.policy == "write-through-on-second-use":
                for each in leased:
                    if each.is_verified and self._is_wanted(line.use, each.key, is_transit=False):
                        line.offer(each.key, each.size, current())

    def _changed(self, text: str, is_stored: bool) -> None:
        """Remember what was stored until the store is done with it."""
        if is_stored and not self._is_quiet:
            if not self._fresh:
                asyncio.get_running_loop().call_soon(self._take_up)
            self._fresh.append((text, current()))

    def _take_up(self) -> None:
        fresh, self._fresh = self._fresh, []
        # A prefix is committed last block first, and what there is no room for is its end.
        for text, origin in reversed(fresh):
            entry = self._store.entry(text)
            if entry is None:
                continue
            key = key_of(text)
            for line in self._lines:
                # Where it does not stay it has no second use. And it was computed, so what the tier had is of no use.
                is_now = entry.is_transit or line.use.policy == "write-all"
                if is_now and self._is_wanted(line.use, key, is_transit=entry.is_transit):
                    line.forget(key)
                    line.offer(key, entry.size, origin)

    def _is_wanted(self, use: TierUse, key: ObjectKey, *, is_transit: bool) -> bool:
        """Whether a tier shall have an object: other nodes' memory only what stays not here or is wanted twice."""
        return not use.is_pool or is_transit or self._has_second_copy(key.bucket)

    async def _keep(self) -> None:
        """Renew the leases in time, for what waits for a slow tier may wait longer than a lease lives; endless."""
        ttl_s = self._store.limits.max_ttl_s
        while True:
            await asyncio.sleep(ttl_s / 3)
            leases = [lease for line in self._lines for lease in line.leases()]
            for number, lease in enumerate(leases, start=1):
                with contextlib.suppress(UnknownLease):  # its write has ended meanwhile
                    self._store.renew(lease, ttl_s)
                if number % RENEWED_PER_SLICE == 0:
                    await asyncio.sleep(0)  # others have their turn


class _Held(NamedTuple):
    """An object that waits, under a lease, and whose work it is to write it."""

    lease: str
    leased: Leased
    origin: Origin


class _Batch(NamedTuple):
    """What a writer has in hand, and what says that it has not any more."""

    held: Sequence[_Held]
    ended: asyncio.Event


class Written(NamedTuple):
    """What a tier has taken."""

    objects: int
    size_bytes: int


class _Line:
    """What waits to be written to one tier, in order.

    Invariant: what waits is under a lease, and is ``_waiting_bytes`` together.
    """

    def __init__(self, service: NodeService, use: TierUse, duties: Duties) -> None:
        self.use = use
        self._service = service
        self._store = store = service.store
        self._duties = duties
        self._most_bytes = MOST_WAITING_SHARE * store.segment.size
        self._waiting: OrderedDict[ObjectKey, _Held] = OrderedDict()
        self._waiting_bytes = 0
        self._in_hand: list[_Batch] = []
        self._filled = asyncio.Event()
        self._offered: dict[ObjectKey, None] = {}
        self._writers: list[asyncio.Task[None]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        self._writers = [asyncio.create_task(self._write_on()) for _ in range(WRITERS)]

    async def stop(self) -> bool:
        for writer in self._writers:
            writer.cancel()
        _, hanging = await asyncio.wait(self._writers, timeout=STOP_S)
        while self._waiting:
            self._drop(next(iter(self._waiting)))
        return not hanging

    def leases(self) -> Iterable[str]:
        """Yield those on what waits, and on what is being written."""
        for held in [*self._waiting.values(), *(held for batch in self._in_hand for held in batch.held)]:
            yield held.lease

    def withdraw(self, keys: Sequence[ObjectKey]) -> Sequence[asyncio.Event]:
        """Drop what waits, and let all of it be offered again; returns the ends of the writes that the rest is in."""
        for key in keys:
            self.forget(key)
            if key in self._waiting:
                self.use.figures.stores["gone"] += 1
                self._drop(key)
        wanted = set(keys)
        return [batch.ended for batch in self._in_hand if any(held.leased.key in wanted for held in batch.held)]

    def forget(self, key: ObjectKey) -> None:
        """Let an object be offered again."""
        self._offered.pop(key, None)

    def note(self, key: ObjectKey) -> bool:
        """Take note that the tier has an object, or is offered it; returns whether that is new."""
        if key in self._offered:
            return False
        if len(self._offered) >= MOST_OFFERED:
            del self._offered[next(iter(self._offered))]
        self._offered[key] = None
        return True

    def offer(self, key: ObjectKey, size: int, origin: Origin) -> None:
        """Let an object be written for somebody, unless it was offered before or too much waits."""
        if not self.note(key):
            return
        is_too_much = self._waiting_bytes + size > self._most_bytes and bool(self._waiting)
        if is_too_much or len(self._waiting) >= MOST_WAITING:
            self.use.figures.stores["dropped"] += 1
            self.forget(key)
            return
        found = self._store.lease(key, WRITER, self._store.limits.max_ttl_s, is_use=False)
        if found is None:
            self.use.figures.stores["gone"] += 1
            self.forget(key)
            return
        if key in self._waiting:  # as it was before it went and came again
            self._drop(key)
        self._waiting[key] = _Held(*found, origin)
        self._waiting_bytes += size
        self._filled.set()

    async def _write_on(self) -> None:
        """Write what waits, batch by batch; endless."""
        while True:
            await self._filled.wait()
            batch = _Batch(self._take(), asyncio.Event())
            self._in_hand.append(batch)
            try:
                with self._duties.guarded("tiers"):
                    await self._write(batch.held)
            finally:
                self._in_hand.remove(batch)
                batch.ended.set()
                for held in batch.held:
                    self._store.release(held.lease)

    async def _write(self, batch: Sequence[_Held]) -> None:
        """Write a batch, and tell whose work it was: a commit's, or that of a lease that was an object's second use."""
        origins = list(dict.fromkeys(held.origin for held in batch if held.origin.is_traced))
        causes = [origin.trace for origin in origins if origin.trace is not None]
        tracer = self._service.tracer
        span = None if tracer is None else tracer.open_for_all(f"write {self.use.tier.name}", "client", causes)
        origin = origins[0] if len(origins) == 1 else NOWHERE
        if span is not None:
            origin = Origin(origin.request_id, span.context)
        written = Written(0, 0)
        try:
            with working_for(origin):
                written = await write(self._store, self.use, batch, refused=self.forget)
        finally:
            if span is not None:
                span.end(_told(batch, written), is_error=not written.objects)

    def _take(self) -> list[_Held]:
        batch: list[_Held] = []
        size = 0
        while self._waiting and len(batch) < BATCH_OBJECTS and size < BATCH_BYTES:
            _, held = self._waiting.popitem(last=False)
            batch.append(held)
            size += held.leased.size
        self._waiting_bytes -= size
        self._note_empty()
        return batch

    def _drop(self, key: ObjectKey) -> None:
        """Let an object that waits go unwritten."""
        held = self._waiting.pop(key)
        self._waiting_bytes -= held.leased.size
        self._store.release(held.lease)
        self._note_empty()

    def _note_empty(self) -> None:
        if not self._waiting:
            self._filled.clear()


async def write(
    store: Store,
    use: TierUse,
    batch: Sequence[_Held],
    within_s: float = LONGEST_WRITE_S,
    refused: Callable[[ObjectKey], None] = lambda _: None,
) -> Written:
    """Write leased objects to a tier; returns what it has then, and tells ``refused`` of those that it has not."""
    within_s = min(within_s, store.limits.max_ttl_s / 2)
    kept: list[Kept] = []
    for lease, leased, _ in batch:
        try:
            store.renew(lease, store.limits.max_ttl_s)
        except UnknownLease:  # the whole node stood still for too long
            use.figures.stores["gone"] += 1
            continue
        entry = store.entry(text_of(leased.key))
        if entry is None:  # somebody removed it
            use.figures.stores["gone"] += 1
            continue
        place = entry.anchor
        place = slot_of_name(*leased.key) if place is None else place
        kept.append(Kept(leased.key, place, leased.size, leased.checksum, store.views(leased.extents)))
    if not kept:
        return Written(0, 0)
    stored: Sequence[bool] = ()
    try:
        async with asyncio.timeout(within_s):
            stored = await use.tier.store_from(kept)
    except TimeoutError:
        use.figures.failures["stalled"] += 1
    taken = [each for each, is_stored in zip(kept, stored, strict=False) if is_stored]
    use.figures.stores["stored"] += len(taken)
    use.figures.stores["refused"] += len(kept) - len(taken)
    size = sum(each.size for each in taken)
    use.figures.stored_bytes += size
    for each in taken:
        store.mark_copied(each.key)
    for each in kept:
        if each not in taken:
            refused(each.key)
    return Written(len(taken), size)


def _told(batch: Sequence[_Held], written: Written) -> Attributes:
    """Return what a span says of a batch."""
    attributes: Attributes = {
        "tierline.asked_objects": len(batch),
        "tierline.objects": written.objects,
        "tierline.bytes": written.size_bytes,
    }
    buckets = {held.leased.key.bucket for held in batch}
    if len(buckets) == 1:
        attributes["tierline.bucket_digest"] = bucket_digest(buckets.pop())
    return attributes


def hold(store: Store, keys: Sequence[ObjectKey]) -> list[_Held]:
    """Lease objects that are stored, to write them to a tier."""
    found = [store.lease(key, WRITER, store.limits.max_ttl_s, is_use=False) for key in keys]
    return [_Held(*each, NOWHERE) for each in found if each is not None]
