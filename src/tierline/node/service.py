"""The store as the node's protocols use it: who waits for a commit, what is verified, which number a connection has.

Everything runs on the event loop but the checksums, which a thread computes under a lease of the node's own. Slots are
committed, aborted and ended through this class and not on the store, so that those who wait for the key hear of it.
"""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

import xxhash

from tierline import logs
from tierline.errors import NoSpace, TooManyLeases
from tierline.node.waiting import KeyWaiters
from tierline.pool.slots import slot_of
from tierline.store import Leased, ObjectKey, Owner, Slot, Store

if TYPE_CHECKING:  # it is made of a service
    from tierline.node.tiering import Tiering
    from tierline.tracing.tracer import Tracer

log = logs.get(__name__)

VERIFIER = "node:verify"
"""Holder of the leases under which the node compares bytes with their checksum."""

_MAX_BACKGROUND_VERIFICATIONS = 64


Occasion = Literal["adoption", "suspect", "request", "scrub"]
"""Why an object is verified: adopted and asked for, reported by a reader, asked about by an operator, or in turn."""

RECLAIMED_PER_SLICE = 64
"""Objects evicted ahead of need before others have their turn: under a millisecond."""

SCRUB_PAUSE_S = 1.0
"""Between two looks of the scrub at a store that has nothing for it."""


class Verdict(StrEnum):
    """What comparing an object's bytes with its checksum found."""

    MATCH = "match"
    MISMATCH = "mismatch"
    MISSING = "missing"


class NodeService:
    """One open store and what waits on it.

    Parameters
    ----------
    store
        The open store; the service closes it.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.accepts_writes = True
        """False once the node is told to stop: writes are refused, reads go on."""
        self.verifications: Counter[tuple[Occasion, Verdict]] = Counter()
        """Objects whose bytes were compared with their checksum, by occasion and result."""
        self.below: Tiering | None = None
        """What lies below the segment; ``None``: nothing, and what is stored stays."""
        self.waiters = KeyWaiters(store.is_being_written)
        """Those who wait for a key that is being written."""
        self.granted_bytes = 0
        """Pages that clients of the UNIX socket hold in open slots."""
        self.scrubbed_bytes = 0
        """Bytes of the objects that the scrub has verified."""
        self.reclaims = 0
        """How often room was made ahead of need."""
        self.relinks = 0
        """How often the segment's public name had been removed and was put back."""
        self.is_named = True
        """False while the segment's names do not lead to it, so that nobody can open it by them."""
        self.lag_s = 0.0
        """How late the loop served a timer last, worst of the last second."""
        self.tracer: Tracer | None = None
        """Who is told of what is done for traced requests; ``None``: nobody."""
        self._connections = itertools.count(1)
        self._verifying: dict[tuple[ObjectKey, int], asyncio.Task[Verdict]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._background_turn = asyncio.Lock()
        self._lacks_room = asyncio.Event()
        self._checksums = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verify")
        self._is_open = True

    def new_owner(self, client: str = "", pid: int = 0) -> Owner:
        """Return the owner that stands for a new connection."""
        return Owner(client, next(self._connections), pid)

    # Writing ------------------------------------------------------------------------------------------------------

    def write(self, key: ObjectKey, size: int, owner: Owner) -> Slot:
        """Allocate pages for an object; raises as ``Store.write``."""
        self._require_writes()
        slot = self.store.write(key, size, owner)
        self._note_lack_of_room()
        return slot

    def grant(self, size: int, owner: Owner) -> Slot:
        """Allocate pages ahead of need; raises as ``Store.grant``."""
        self._require_writes()
        slot = self.store.grant(size, owner)
        self._note_lack_of_room()
        return slot

    def commit(self, slot_id: int, owner: Owner, checksum: int, key: ObjectKey, size: int, anchor: str = "") -> None:
        """Publish a slot; raises as ``Store.commit``. ``anchor`` as in :data:`tierline.wire.messages.Anchor`."""
        place = slot_of(key.bucket, anchor) if anchor else None
        is_transit = self.below is not None and not self.below.stays(key, place)
        self.publish(slot_id, owner, checksum, key, size, place, is_transit=is_transit)

    def publish(
        self,
        slot_id: int,
        owner: Owner,
        checksum: int,
        key: ObjectKey,
        size: int,
        place: int | None,
        *,
        is_transit: bool,
    ) -> None:
        """Publish a slot as one of a directory slot, and say whether it stays; raises as ``Store.commit``."""
        self.store.commit(slot_id, owner, checksum, key=key, size=size, anchor=place, is_transit=is_transit)
        self.waiters.wake(key)

    def abort(self, slot_id: int, owner: Owner) -> None:
        """Give a slot back; raises as ``Store.abort``."""
        self.store.abort(slot_id, owner)
        self.waiters.wake_settled()

    def end_owner(self, owner: Owner) -> None:
        """Abort the slots of a connection that has ended.

        Not after :meth:`close`: the clients outlive the node and may be writing still, so the next process must find
        their slots in the journal.
        """
        if self._is_open and self.store.end_owner(owner):
            self.waiters.wake_settled()

    def end_holder(self, holder: str) -> None:
        """End the leases of a connection that has ended."""
        if self._is_open:
            self.store.release_holder(holder)

    # Reading ------------------------------------------------------------------------------------------------------

    async def committed(self, key: ObjectKey, wait_s: float) -> bool:
        """Wait until nobody writes ``key`` any more; False if that takes longer than ``wait_s``."""
        return await self.waiters.wait_for_commit(key, wait_s)

    async def verify(self, leased: Leased, occasion: Occasion) -> Verdict:
        """Compare an object's bytes with its checksum, in a thread; what does not match is dropped.

        Returns
        -------
        Verdict
            ``MISSING`` if the object is gone meanwhile.
        """
        identity = (leased.key, leased.checksum)
        task = self._verifying.get(identity)
        if task is None:
            task = asyncio.create_task(self._verify(leased, occasion))
            self._verifying[identity] = task
            task.add_done_callback(lambda _: self._verifying.pop(identity, None))
        return await asyncio.shield(task)

    async def verify_within(self, leased: Leased, wait_s: float) -> Verdict | None:
        """Verify an adopted object for a reader who waits so long and no longer; ``None``: it goes on behind him."""
        try:
            return await asyncio.wait_for(self.verify(leased, "adoption"), max(wait_s, 0.001))  # begun in any case
        except TimeoutError:
            return None

    def verify_later(self, leased: Leased) -> None:
        """Verify an adopted object that nobody has verified, when there is time; for readers who verify anyway."""
        if len(self._background) < _MAX_BACKGROUND_VERIFICATIONS:
            task = asyncio.create_task(self._verify_in_turn(leased))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _verify_in_turn(self, leased: Leased) -> None:
        async with self._background_turn:  # so that those who wait have at most one of these before them
            await self.verify(leased, "adoption")

    async def verify_key(self, key: ObjectKey, occasion: Occasion) -> Verdict:
        """Verify the object now stored under ``key``. Raises ``TooManyLeases``."""
        found = self.store.lease(key, VERIFIER, self.store.limits.max_ttl_s, is_use=False)
        if found is None:
            return Verdict.MISSING
        lease, leased = found
        try:
            return await self.verify(leased, occasion)
        finally:
            self.store.release(lease)

    async def suspect(self, key: ObjectKey) -> Verdict:
        """Verify an object that a reader found changed. Raises ``TooManyLeases``."""
        async with self._background_turn:
            return await self.verify_key(key, "suspect")

    def verifications_by_result(self) -> dict[str, int]:
        """Return how many objects were compared with their checksum, by result."""
        results = (Verdict.MATCH, Verdict.MISMATCH)
        return {result: sum(n for (_, found), n in self.verifications.items() if found is result) for result in results}

    # Housekeeping -------------------------------------------------------------------------------------------------

    def expire(self) -> bool:
        """Let the store's clock move on; returns whether more may be due."""
        is_more_due = self.store.expire()
        if not is_more_due:
            self._note_lack_of_room()
        return is_more_due

    async def keep_room(self) -> None:
        """Evict ahead of need, so that a write finds room and waits for nothing; runs until it is cancelled."""
        while True:
            await self._lacks_room.wait()
            self._lacks_room.clear()
            self.reclaims += 1
            while self.store.reclaim(RECLAIMED_PER_SLICE):  # noqa: ASYNC110
                await asyncio.sleep(0)  # others have their turn

    async def scrub(self, bytes_per_s: float) -> None:
        """Verify what is stored, object after object, at a pace; runs until it is cancelled."""
        while True:
            key = self.store.scrub_next()
            stat = key and self.store.stat(key)
            if not key or not stat:
                await asyncio.sleep(SCRUB_PAUSE_S)
                continue
            await asyncio.sleep(stat.size / bytes_per_s)  # before it, so that no start costs more than its share
            with contextlib.suppress(TooManyLeases):  # then another time
                async with self._background_turn:
                    if await self.verify_key(key, "scrub") is not Verdict.MISSING:
                        self.scrubbed_bytes += stat.size

    def stop_verifying(self) -> None:
        """Wait for the checksum under way, in a thread, and start no other; needed before :meth:`close`."""
        self._checksums.shutdown(wait=True, cancel_futures=True)

    def close(self, *, keeps_segment: bool = False) -> None:
        """Close the store; segment and journal stay for the next process, open slots as orphans among them.

        Parameters
        ----------
        keeps_segment
            The segment stays mapped and locked until this process ends, for a call that does not end may write to it.
        """
        self._is_open = False
        for task in [*self._verifying.values(), *self._background]:
            task.cancel()
        if not keeps_segment:
            self.store.close()

    def _note_lack_of_room(self) -> None:
        if self.store.needs_reclaim:
            self._lacks_room.set()

    def _require_writes(self) -> None:
        if not self.accepts_writes:
            raise NoSpace("the node is stopping and takes no writes")

    async def _verify(self, leased: Leased, occasion: Occasion) -> Verdict:
        try:
            found = self.store.lease(leased.key, VERIFIER, self.store.limits.max_ttl_s, is_use=False)
        except TooManyLeases:
            found = None  # what cannot be held cannot be read
        if found is None:
            return Verdict.MISSING
        lease, current = found
        if current.extents != leased.extents or (current.is_verified and occasion == "adoption"):
            self.store.release(lease)
            return Verdict.MISSING if current.extents != leased.extents else Verdict.MATCH
        views = self.store.views(current.extents)
        try:
            loop = asyncio.get_running_loop()
            checksum = await loop.run_in_executor(self._checksums, _checksum, views)
        finally:
            for view in views:
                view.release()
            is_held = self._is_open and self.store.release(lease) > 0
        if not is_held:
            return Verdict.MISSING  # the queue was longer than a lease may live: these pages may have been anybody's
        verdict = Verdict.MATCH if checksum == current.checksum else Verdict.MISMATCH
        self.verifications[occasion, verdict] += 1
        if verdict is Verdict.MATCH:
            self.store.mark_verified(current)
        else:
            self.store.drop_corrupt(current)
            log.warning(
                "dropped an object whose bytes do not match its checksum",
                bucket=leased.key.bucket,
                name=leased.key.name,
                occasion=occasion,
            )
        return verdict


def _checksum(views: Sequence[memoryview]) -> int:
    hasher = xxhash.xxh3_64()
    for view in views:
        hasher.update(view)
    return hasher.intdigest()
