"""The store: keys to objects to pages, and who may read, write or reuse a page at a moment.

The rule inside: **a page has one state at a time**, and every change of state goes through this file.

    free ──write/grant──▶ reserved ──commit──▶ used ──evict───────────────▶ free
                             │                  │ ▲
                             └──abort──▶ free   │ └─ leased, then resting (grace, quarantine): not evictable
                                                └──delete──▶ retired ──last reader gone──▶ free

The journal is told before a page becomes free and after an object is whole, so that a process that dies between any two
lines leaves nothing that the next one could misread. Time moves only in :meth:`Store.expire` and through the clock.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Self

from tierline.errors import AlreadyStored, BeingWritten, NoSpace, ObjectTooLarge, UnknownSlot
from tierline.store.adoption import Adoption, adopt
from tierline.store.eviction import POLICIES, EvictionPolicy, PolicyName
from tierline.store.extents import PAGE_BYTES, PageAllocator, Run, extents_of, pages_for, runs_of, split_runs
from tierline.store.journal import Journal, Record
from tierline.store.leases import LeaseTable
from tierline.store.objects import Extent, Leased, ObjectKey, ObjectStat, Orphan, Owner, Slot, StoreLimits
from tierline.store.placement import SegmentOptions
from tierline.store.segment import DEFAULTS, Segment
from tierline.store.stats import Counters, EvictionReason, StoreStats
from tierline.store.wheel import DueWheel

MOST_EVICTIONS = 4096
"""Of one write: about 40 ms. A large object among very many small ones may need several tries; each of them gets on."""


class _Object:
    """A committed object, or a deleted one whose pages somebody may still read (``is_retired``).

    The policy lists it exactly while it is neither leased, nor resting, nor retired.
    """

    __slots__ = (
        "born",
        "is_resting",
        "is_retired",
        "leased",
        "leases",
        "pages",
        "record",
        "rests_until",
        "touched",
    )

    def __init__(self, leased: Leased, record: int, now: float, rests_until: float) -> None:
        self.leased = leased
        self.record = record
        self.pages = pages_for(leased.size)
        self.leases = 0
        self.born = now
        self.touched = now
        self.rests_until = rests_until
        self.is_resting = False  # filed in the wheel of rests
        self.is_retired = False


class _OpenSlot:
    """Pages that an owner may write, and the key they are for, if it is known."""

    __slots__ = ("key", "owner", "record", "runs", "slot")

    def __init__(self, slot: Slot, owner: Owner, key: ObjectKey | None, runs: tuple[Run, ...], record: int) -> None:
        self.slot = slot
        self.owner = owner
        self.key = key
        self.runs = runs
        self.record = record


class Store:
    """Committed objects in one segment, the slots being written, and the leases on them.

    Not thread-safe: one thread, the node's event loop, calls it. Every operation is bounded by what it is given
    (keys, slots, objects of a lease), never by what is stored, except a ``write`` that has to evict.

    Parameters
    ----------
    segment
        An open segment, with its lock held.
    journal
        The segment's journal; what it holds is adopted here, before anything is served.
    eviction
        Name of the eviction policy.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        segment: Segment,
        journal: Journal,
        *,
        eviction: PolicyName = "arc",
        clock: Callable[[], float],
        limits: StoreLimits | None = None,
    ) -> None:
        self._segment = segment
        self._journal = journal
        self._clock = clock
        self._limits = limits or StoreLimits()
        self._pages = segment.size // PAGE_BYTES - 1  # the first one is the segment's header
        self._policy: EvictionPolicy[ObjectKey] = POLICIES[eviction](self._pages)
        self._objects: dict[ObjectKey, _Object] = {}
        self._leases: LeaseTable[_Object] = LeaseTable(f"{journal.epoch:016x}-")
        self._rests: DueWheel[_Object] = DueWheel()
        self._slots: dict[int, _OpenSlot] = {}
        self._slots_of: dict[Owner, set[int]] = {}
        self._writing: dict[ObjectKey, int] = {}
        self._last_slot = journal.starts << 32  # so that a slot of a former process never names one of this
        self._orphans: dict[str, list[Record]] = {}
        self._used_pages = 0
        self._leased_pages = 0
        self._retired_pages = 0
        self._reserved_pages = 0
        self._fragments = 0
        self._unverified = 0
        self._counters = Counters()
        self._adopt()

    @classmethod
    def open(
        cls,
        directory: Path,
        name: str,
        capacity_bytes: int,
        *,
        eviction: PolicyName = "arc",
        clock: Callable[[], float],
        limits: StoreLimits | None = None,
        options: SegmentOptions = DEFAULTS,
    ) -> Self:
        """Open or create segment ``directory/name`` with its journal beside it, and adopt what is there.

        Blocks while the segment is pre-faulted (about 0.4 s a GiB, without the GIL).

        Raises
        ------
        ConfigurationError
            The name or the capacity is not usable.
        EnvironmentTooSmall
            The filesystem has no room for ``capacity_bytes``.
        SegmentError
            The segment or its journal is in use by another node, or is not what was asked for.
        """
        limits = limits or StoreLimits()
        segment = Segment.open(directory, name, capacity_bytes, options)
        try:
            journal = Journal.open(segment, limits.max_ttl_s)
            return cls(segment, journal, eviction=eviction, clock=clock, limits=limits)
        except BaseException:
            segment.close()
            raise

    # Writing ------------------------------------------------------------------------------------------------------

    def write(self, key: ObjectKey, size: int, owner: Owner) -> Slot:
        """Allocate pages for an object and hold its key until commit, abort or the end of its owner.

        Raises
        ------
        AlreadyStored, BeingWritten
            The key is taken; nothing was allocated.
        NoSpace
            Too little can be evicted now: the rest is leased, resting or being written.
        ObjectTooLarge
            Larger than the segment, or empty.
        """
        self._refuse_taken(key)
        return self._open_slot(size, owner, key)

    def grant(self, size: int, owner: Owner) -> Slot:
        """Allocate pages ahead of need; the key is given on commit. Raises ``NoSpace`` and ``ObjectTooLarge``."""
        return self._open_slot(size, owner, None)

    def commit(
        self, slot_id: int, owner: Owner, checksum: int, *, key: ObjectKey | None = None, size: int | None = None
    ) -> None:
        """Publish a slot whose bytes are whole.

        Parameters
        ----------
        checksum
            XXH3-64 of the object's bytes, 0 to 2**64 - 1; stored and handed out, not checked here.
        key
            Needed for a granted slot; for a written one it may be left out, or be the same.
        size
            Bytes of the object where it is smaller than the slot; pages left over become free.

        Raises
        ------
        UnknownSlot
            Committed or aborted before, another owner's, or reserved for another key.
        AlreadyStored, BeingWritten
            Somebody else has taken the key meanwhile; the slot stays with its owner.
        ObjectTooLarge
            ``size`` does not fit the slot; it stays with its owner.
        """
        opened = self._opened(slot_id, owner)
        size = opened.slot.size if size is None else size
        if not 0 < size <= opened.slot.size:
            raise ObjectTooLarge(f"slot {slot_id} takes 1 to {opened.slot.size} bytes; got {size}")
        if opened.key is None:
            if key is None:
                raise UnknownSlot(f"slot {slot_id} was granted without a key; commit it with one")
            self._refuse_taken(key)
        elif key is None:
            key = opened.key
        elif key != opened.key:
            raise UnknownSlot(f"slot {slot_id} was reserved for {opened.key}, not for {key}")
        while not self._journal.has_room:
            self._evict_one(0)
        runs, rest = split_runs(opened.runs, pages_for(size))
        try:
            self._journal.commit(opened.record, key, size, checksum, runs)
        except NoSpace:
            self._counters.refusals += 1
            raise
        self._close_slot(opened)
        self._allocator.free(rest)
        now = self._clock()
        leased = Leased(key, size, checksum, extents_of(runs, size), is_verified=True)
        self._publish(_Object(leased, opened.record, now, rests_until=now))
        self._counters.commits += 1
        self._counters.commit_bytes += size

    def abort(self, slot_id: int, owner: Owner) -> None:
        """Take a slot back; its owner promises that nothing writes into it any more. Raises ``UnknownSlot``."""
        opened = self._opened(slot_id, owner)
        self._journal.erase(opened.record)
        self._close_slot(opened)
        self._allocator.free(opened.runs)
        self._counters.aborts += 1

    def end_owner(self, owner: Owner) -> int:
        """Abort every slot of a connection that has ended; returns how many."""
        slot_ids = list(self._slots_of.get(owner, ()))
        for slot_id in slot_ids:
            self.abort(slot_id, owner)
        return len(slot_ids)

    def slot(self, slot_id: int, owner: Owner) -> Slot:
        """Return an open slot of this owner. Raises ``UnknownSlot``."""
        return self._opened(slot_id, owner).slot

    # Reading ------------------------------------------------------------------------------------------------------

    def lease(self, key: ObjectKey, holder: str, ttl_s: float) -> tuple[str, Leased] | None:
        """Lease one object: the lease's id and the object, or ``None`` where it is not stored."""
        found = self._objects.get(key)
        if found is None:
            self._counters.misses += 1
            return None
        self._counters.hits += 1
        self._counters.hit_bytes += found.leased.size
        now = self._clock()
        lease = self._leases.open(holder, now + self._cut(ttl_s))
        self._leases.add(lease, [found])
        self._hold(found, now)
        return lease.id, found.leased

    def open_lease(self, holder: str, ttl_s: float) -> str:
        """Start an empty lease and return its id (letters, digits and ``-``); see :meth:`extend_lease`."""
        return self._leases.open(holder, self._clock() + self._cut(ttl_s)).id

    def extend_lease(self, lease_id: str, keys: Sequence[ObjectKey], group_size: int = 1) -> list[Leased]:
        """Add the longest leading run of stored objects of ``keys`` to a lease.

        A caller with many keys passes them in slices, so that it is never held for long, and stops at the first
        slice that comes back shorter than it was. Objects are numbered through all slices.

        Parameters
        ----------
        group_size
            The run ends before the first group of so many keys that is not complete; slices are multiples of it.

        Raises
        ------
        UnknownLease
            The lease has expired meanwhile.
        """
        lease = self._leases.get(lease_id)
        run: list[_Object] = []
        for key in keys:
            found = self._objects.get(key)
            if found is None:
                break
            run.append(found)
        del run[len(run) - len(run) % group_size :]
        now = self._clock()
        for found in run:
            self._hold(found, now)
        self._leases.add(lease, run)
        self._counters.hits += len(run)
        self._counters.hit_bytes += sum(found.leased.size for found in run)
        self._counters.misses += len(keys) - len(run)
        return [found.leased for found in run]

    def renew(self, lease_id: str, ttl_s: float) -> None:
        """Let a lease live ``ttl_s`` from now. Raises ``UnknownLease``."""
        self._leases.renew(lease_id, self._clock() + self._cut(ttl_s))

    def release(self, lease_id: str, start: int = 0, stop: int | None = None) -> int:
        """Give back objects ``start`` to ``stop`` of a lease; returns how many.

        Idempotent: 0 for a lease or an object that was given back before, has expired, or never was.
        The lease itself ends with its last object. An object stays readable for the grace time.
        """
        released = self._leases.release(lease_id, start, stop)
        self._let_go(released, self._clock() + self._limits.grace_s)
        return len(released)

    def release_holder(self, holder: str) -> int:
        """End all leases of a holder whose connection has ended; returns how many.

        It may still be copying, so its objects rest as those of an expired lease do.
        """
        ended = 0
        for items in self._leases.end_holder(holder):
            self._let_go(items, self._clock() + self._limits.quarantine_s)
            ended += 1
        self._counters.leases_abandoned += ended
        return ended

    def is_stored(self, key: ObjectKey) -> bool:
        """Whether the key holds a committed object. Not a touch."""
        return key in self._objects

    def is_being_written(self, key: ObjectKey) -> bool:
        """Whether a slot that is not committed yet holds the key."""
        return key in self._writing

    def stat(self, key: ObjectKey) -> ObjectStat | None:
        """Describe a committed object, without touching it."""
        found = self._objects.get(key)
        if found is None:
            return None
        return ObjectStat(
            key=key,
            size=found.leased.size,
            checksum=found.leased.checksum,
            fragments=len(found.leased.extents),
            leases=found.leases,
            is_verified=found.leased.is_verified,
            age_s=self._clock() - found.born,
        )

    def views(self, extents: Sequence[Extent]) -> list[memoryview]:
        """Return the writable memory of extents, in order; the caller holds a slot or a lease on them."""
        return self._segment.views(extents)

    # Removing -----------------------------------------------------------------------------------------------------

    def delete(self, key: ObjectKey) -> bool:
        """Remove an object: hidden at once, its pages come back when nobody can be reading them. False: not there."""
        found = self._objects.get(key)
        if found is None:
            return False
        self._withdraw(found, "deleted")
        return True

    def mark_verified(self, leased: Leased) -> None:
        """Note that bytes and checksum were compared and agree. Nothing happens if the object is gone meanwhile."""
        found = self._objects.get(leased.key)
        if found is not None and found.leased is leased and not leased.is_verified:
            found.leased = leased._replace(is_verified=True)
            self._unverified -= 1

    def drop_corrupt(self, leased: Leased) -> bool:
        """Remove an object whose bytes were found not to match. False if just this object is gone already."""
        found = self._objects.get(leased.key)
        if found is None or found.leased.extents != leased.extents:
            return False
        self._withdraw(found, "corrupt")
        return True

    def expire(self, limit: int = 2_048) -> bool:
        """Do what the clock says: end leases that ran out, return pages that have rested.

        To be called every quarter of a second or so. Handles about ``limit`` objects and returns whether more may be
        due (call again after serving others).
        """
        now = self._clock()
        for items in self._leases.end_due(now):
            self._let_go(items, now + self._limits.quarantine_s)
            self._counters.leases_expired += 1
            limit -= 1 + len(items)
            if limit <= 0:
                return True
        for rested in self._rests.take_due(now):
            self._end_rest(rested, now)
            limit -= 1
            if limit <= 0:
                return True
        return False

    # After a restart, and for operators ---------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Number of 63 bits that differs after every start; slots and leases of another epoch mean nothing."""
        return self._journal.epoch

    @property
    def limits(self) -> StoreLimits:
        """The times in force."""
        return self._limits

    @property
    def segment(self) -> Segment:
        """The segment, for its descriptor and its link; its bytes are reached by :meth:`views`."""
        return self._segment

    def orphaned_owners(self) -> list[Orphan]:
        """List clients of a former process whose slots were open when it died: they may still be writing.

        The caller releases a client that says hello again under its name, or whose process is gone.
        """
        return [
            Orphan(client, records[-1].pid, sum(pages_for(record.size) for record in records) * PAGE_BYTES)
            for client, records in self._orphans.items()
        ]

    def release_orphans(self, client: str) -> int:
        """Free the slots that a client held in a former process; returns how many."""
        records = self._orphans.pop(client, [])
        for record in records:
            self._journal.erase(record.number)
            self._allocator.free(record.runs)
        return len(records)

    def stats(self) -> StoreStats:
        """Count what is there now."""
        orphans = [record for records in self._orphans.values() for record in records]
        return StoreStats(
            capacity_bytes=self._pages * PAGE_BYTES,
            free_bytes=self._allocator.free_pages * PAGE_BYTES,
            used_bytes=self._used_pages * PAGE_BYTES,
            leased_bytes=self._leased_pages * PAGE_BYTES,
            resting_bytes=self._resting_pages * PAGE_BYTES,
            reserved_bytes=self._reserved_pages * PAGE_BYTES,
            orphaned_bytes=sum(pages_for(record.size) for record in orphans) * PAGE_BYTES,
            retired_bytes=self._retired_pages * PAGE_BYTES,
            largest_free_bytes=self._allocator.largest_run * PAGE_BYTES,
            objects=len(self._objects),
            fragments=self._fragments,
            slots=len(self._slots),
            orphaned_slots=len(orphans),
            leases=len(self._leases),
            unverified=self._unverified,
            **asdict(self._counters),
        )

    def close(self) -> None:
        """Let go of segment and journal; both stay on disk for the next process to adopt."""
        self._journal.close()
        self._segment.close()

    # Slots --------------------------------------------------------------------------------------------------------

    def _refuse_taken(self, key: ObjectKey) -> None:
        if key in self._objects:
            raise AlreadyStored(f"{key.bucket}/{key.name} is stored already; delete it first to write it anew")
        if key in self._writing:
            raise BeingWritten(f"{key.bucket}/{key.name} is being written by another; wait for it or skip")

    def _open_slot(self, size: int, owner: Owner, key: ObjectKey | None) -> Slot:
        if not 0 < size <= self._pages * PAGE_BYTES:
            raise ObjectTooLarge(f"an object has 1 to {self._pages * PAGE_BYTES} bytes here; got {size}")
        runs = self._allocate(pages_for(size))
        try:
            record = self._journal.reserve(owner, key, size, runs)
        except BaseException as error:
            self._allocator.free(runs)
            self._counters.refusals += isinstance(error, NoSpace)
            raise
        self._last_slot += 1
        slot = Slot(self._last_slot, size, extents_of(runs, size))
        self._slots[slot.id] = _OpenSlot(slot, owner, key, runs, record)
        self._slots_of.setdefault(owner, set()).add(slot.id)
        self._reserved_pages += pages_for(size)
        if key is not None:
            self._writing[key] = slot.id
        return slot

    def _opened(self, slot_id: int, owner: Owner) -> _OpenSlot:
        opened = self._slots.get(slot_id)
        if opened is None or opened.owner != owner:
            raise UnknownSlot(f"no slot {slot_id}: committed or aborted before, or another connection's")
        return opened

    def _close_slot(self, opened: _OpenSlot) -> None:
        del self._slots[opened.slot.id]
        of_owner = self._slots_of[opened.owner]
        of_owner.remove(opened.slot.id)
        if not of_owner:
            del self._slots_of[opened.owner]
        if opened.key is not None:
            del self._writing[opened.key]
        self._reserved_pages -= pages_for(opened.slot.size)

    # Room ---------------------------------------------------------------------------------------------------------

    def _allocate(self, pages: int) -> tuple[Run, ...]:
        """Take pages, evicting as little as it takes; evicts nothing where that could not be enough."""
        if pages > self._allocator.free_pages + self._policy.evictable_pages:
            raise self._no_space(pages)
        for _ in range(MOST_EVICTIONS):
            if self._journal.has_room:
                runs = self._allocator.allocate(pages)
                if runs is not None:
                    return runs
            self._evict_one(pages)
        raise self._no_space(pages)

    def _evict_one(self, pages: int) -> None:
        """Evict the policy's choice, for a request of so many pages. Raises ``NoSpace``."""
        if self._clock() < self._evicts_from:
            raise self._no_space(pages)
        key = self._policy.victim()
        if key is None:
            raise self._no_space(pages)
        victim = self._objects[key]
        self._unlist(victim, "space")
        self._journal.erase(victim.record)
        self._allocator.free(runs_of(victim.leased.extents))

    def _no_space(self, pages: int) -> NoSpace:
        self._counters.refusals += 1
        wait = self._evicts_from - self._clock()
        return NoSpace(
            f"no room for {pages} pages of {PAGE_BYTES} bytes: of {self._pages}, {self._allocator.free_pages} are "
            f"free, {self._policy.evictable_pages} evictable"
            + (f" in {wait:.0f} s (leases given before the restart may still be read)" if wait > 0 else "")
            + f", {self._leased_pages} leased, {self._resting_pages} resting after a lease, "
            f"{self._reserved_pages} being written, {self._retired_pages} deleted but read; try again later"
        )

    @property
    def _resting_pages(self) -> int:
        return self._used_pages - self._leased_pages - self._policy.evictable_pages

    # Objects ------------------------------------------------------------------------------------------------------

    def _publish(self, new: _Object) -> None:
        self._objects[new.leased.key] = new
        self._policy.insert(new.leased.key, new.pages)
        self._used_pages += new.pages
        self._fragments += len(new.leased.extents)
        self._unverified += not new.leased.is_verified

    def _unlist(self, gone: _Object, reason: EvictionReason) -> None:
        """Hide an object from lookups and count it as gone; its pages and its record are the caller's."""
        del self._objects[gone.leased.key]
        self._used_pages -= gone.pages
        self._fragments -= len(gone.leased.extents)
        self._unverified -= not gone.leased.is_verified
        self._counters.evictions[reason] += 1

    def _withdraw(self, gone: _Object, reason: EvictionReason) -> None:
        """Remove an object that may be read: its pages rest until they cannot be."""
        self._policy.remove(gone.leased.key)
        self._unlist(gone, reason)
        if gone.leases:
            self._leased_pages -= gone.pages
        self._journal.retire(gone.record)
        gone.is_retired = True
        self._retired_pages += gone.pages
        if not gone.leases and not gone.is_resting:
            self._end_rest(gone, self._clock())

    def _hold(self, found: _Object, now: float) -> None:
        """Note one more lease on an object, and a use of it."""
        if not found.leases:
            self._leased_pages += found.pages
            if not found.is_resting:
                self._policy.hold_out(found.leased.key)
        found.leases += 1
        if now - found.touched >= self._limits.touch_window_s:
            found.touched = now
            self._policy.use(found.leased.key)

    def _let_go(self, items: Sequence[_Object], rests_until: float) -> None:
        """Note one lease less on each object; the last one leaves it to rest."""
        for item in items:
            item.leases -= 1
            if item.is_resting:  # filed anew, behind what was given back before it: heads of prefixes come last
                item.is_resting = False
                self._rests.discard(item, item.rests_until)
            item.rests_until = max(item.rests_until, rests_until)
            if item.leases:
                continue
            if not item.is_retired:
                self._leased_pages -= item.pages
            item.is_resting = True
            self._rests.put(item, item.rests_until)

    def _end_rest(self, rested: _Object, now: float) -> None:
        """Make an object evictable again, or free its pages if it is retired; unless it is leased or must rest on."""
        rested.is_resting = False
        if rested.leases:
            return
        if rested.rests_until > now:
            rested.is_resting = True
            self._rests.put(rested, rested.rests_until)
        elif rested.is_retired:
            self._retired_pages -= rested.pages
            self._journal.erase(rested.record)
            self._allocator.free(runs_of(rested.leased.extents))
        else:
            self._policy.put_back(rested.leased.key)

    def _cut(self, ttl_s: float) -> float:
        return min(ttl_s, self._limits.max_ttl_s) if ttl_s > 0 else 0.0  # and for what is not a number

    # Adoption -----------------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Take over what the former process left; its leases are unknown, so nothing of it is reused for their time."""
        with _no_garbage_collection():
            self._take_over(adopt(self._journal.adopt(), self._pages + 1))

    def _take_over(self, adoption: Adoption) -> None:
        self._allocator = PageAllocator(adoption.free)
        now = self._clock()
        self._evicts_from = now
        if adoption.committed or adoption.retired:
            self._evicts_from += self._journal.former_max_ttl_s + self._limits.quarantine_s
        for record in adoption.void:
            self._journal.erase(record.number)
        for record in adoption.committed:
            self._publish(_adopted(record, now, self._evicts_from))
        for record in adoption.retired:
            retired = _adopted(record, now, self._evicts_from)
            retired.is_retired = retired.is_resting = True
            self._retired_pages += retired.pages
            self._rests.put(retired, self._evicts_from)
        for record in adoption.orphaned:
            self._orphans.setdefault(record.client, []).append(record)
        self._counters.adopted = len(adoption.committed)
        self._counters.dropped = self._journal.dropped + adoption.contradictory


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Spare the collector what is made to stay: it would go through all of it again and again (a third of the time)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _adopted(record: Record, now: float, rests_until: float) -> _Object:
    leased = Leased(record.key, record.size, record.checksum, extents_of(record.runs, record.size), is_verified=False)
    return _Object(leased, record.number, now, rests_until)
