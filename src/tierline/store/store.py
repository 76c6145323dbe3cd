"""The store: keys to objects to pages, and who may read, write or reuse a page at a moment.

The rule inside: **a page has one state at a time**, and every change of state goes through this file.

    free ──write/grant──▶ reserved ──commit──▶ used ──evict───────────────▶ free
                             │                  │ ▲
                             └──abort──▶ free   │ └─ leased, then resting (grace, quarantine): not evictable
                                                └──delete──▶ retired ──last reader gone──▶ free

The journal is told before a page becomes free and after an object is whole, so that a process that dies between any two
lines leaves nothing that the next one could misread. Time moves only in :meth:`Store.expire` and through the clock. Who
goes first is the subject of ``room.py``, who pays of ``namespaces.py``, what is remembered of ``history.py``.
"""

import builtins
import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Self

from tierline.errors import (
    AlreadyStored,
    BeingWritten,
    NoSpace,
    ObjectTooLarge,
    QuotaExceeded,
    TooManyLeases,
    UnknownSlot,
)
from tierline.store.adoption import Adoption, adopt
from tierline.store.catalog import SCANNED_ROWS, Catalog
from tierline.store.eviction import POLICIES, EvictionPolicy, PolicyName
from tierline.store.extents import PAGE_BYTES, PageAllocator, Run, extents_of, pages_for, split_runs
from tierline.store.history import Fate, History
from tierline.store.journal import Journal, Record
from tierline.store.leases import Lease, LeaseTable
from tierline.store.namespaces import Account, Namespaces
from tierline.store.objects import (
    BucketRules,
    Entry,
    Explanation,
    Extent,
    Leased,
    LeaseListing,
    LeaseStat,
    Listing,
    NamespaceStats,
    ObjectKey,
    ObjectStat,
    Orphan,
    Owner,
    Quota,
    Slot,
    StoreLimits,
)
from tierline.store.partition import Partition
from tierline.store.placement import SegmentOptions
from tierline.store.readers import Readers
from tierline.store.room import Room
from tierline.store.rows import Rows
from tierline.store.segment import DEFAULTS, Segment
from tierline.store.slots import OpenSlot, SlotTable
from tierline.store.stats import Counters, MissReason, StoreStats
from tierline.store.wheel import DueWheel

MOST_EVICTIONS = 4096
"""Of one write: about 40 ms. A large object among very many small ones may need several tries; each of them gets on."""

LISTED_OBJECTS = 20_000
"""Of all leases on one page of a listing of leases, about."""


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
    rules, default_rules
        Quotas and time to live, by bucket and of buckets not named.
    wall_clock
        Unix time, which alone tells the next process how old an object is.
    """

    def __init__(
        self,
        segment: Segment,
        journal: Journal,
        *,
        eviction: PolicyName = "arc",
        clock: Callable[[], float],
        limits: StoreLimits | None = None,
        rules: Mapping[str, BucketRules] | None = None,
        default_rules: BucketRules | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._segment = segment
        self._journal = journal
        self._eviction = eviction
        self._clock = clock
        self._wall_clock = wall_clock
        self._limits = limits or StoreLimits()
        self._pages = segment.size // PAGE_BYTES - 1  # the first one is the segment's header
        self._namespaces = Namespaces(
            rules or {},
            default_rules or BucketRules(),
            Partition(POLICIES[eviction](self._pages)),
            self._policy_for,
            self._limits.max_namespaces,
        )
        self._rows = Rows(self._namespaces.nobody)
        self._catalog = Catalog(self._rows)
        self._index = self._catalog.index
        self._room = Room(self._rows, self._index, self._namespaces)
        self._history = History(self._limits.ghost_log_bytes, clock())
        self._leases: LeaseTable[int] = LeaseTable(
            f"{journal.epoch:016x}-", self._limits.max_leases, self._limits.max_leases_per_holder
        )
        self._readers = Readers(self._rows, self._room, self._limits, self._pages)
        self._ends: DueWheel[int] = DueWheel()  # of times to live
        self._passing: DueWheel[int] = DueWheel()  # in transit, and not leased yet
        self._slots = SlotTable(journal.starts << 32)  # so that a slot of a former process never names one of this
        self._orphans: dict[str, list[Record]] = {}
        self._waits_for_former_leases = True
        self._counters = Counters()
        self._listeners: builtins.list[Callable[[str, bool], None]] = []
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
        rules: Mapping[str, BucketRules] | None = None,
        default_rules: BucketRules | None = None,
        wall_clock: Callable[[], float] = time.time,
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
        with ExitStack() as opened:
            segment = Segment.open(directory, name, capacity_bytes, options)
            opened.callback(segment.close)
            journal = Journal.open(segment, limits.max_ttl_s, wall_clock())
            opened.callback(journal.close)
            store = cls(
                segment,
                journal,
                eviction=eviction,
                clock=clock,
                limits=limits,
                rules=rules,
                default_rules=default_rules,
                wall_clock=wall_clock,
            )
            opened.pop_all()  # which are the store's to close
            return store

    # Writing ------------------------------------------------------------------------------------------------------

    def write(self, key: ObjectKey, size: int, owner: Owner) -> Slot:
        """Allocate pages for an object and hold its key until commit, abort or the end of its owner.

        Raises
        ------
        AlreadyStored, BeingWritten
            The key is taken; nothing was allocated.
        NoSpace
            Too little can be evicted now: the rest is leased, resting or being written.
        QuotaExceeded
            The key's bucket or tenant would pass its hard quota, and too little of its own can be evicted now.
        ObjectTooLarge
            Larger than the segment, or empty.
        """
        self._refuse_taken(key)
        try:
            return self._open_slot(size, owner, key)
        except NoSpace as error:
            self._remember_refusal(key, error)
            raise

    def grant(self, size: int, owner: Owner) -> Slot:
        """Allocate pages ahead of need; the key is given on commit, and whose they are is known only then.

        Raises ``NoSpace`` and ``ObjectTooLarge``.
        """
        return self._open_slot(size, owner, None)

    def commit(
        self,
        slot_id: int,
        owner: Owner,
        checksum: int,
        *,
        key: ObjectKey | None = None,
        size: int | None = None,
        anchor: int | None = None,
        is_transit: bool = False,
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
        anchor
            Directory slot of the prefix that the object is of, 0 to 65534; ``None``: of none.
        is_transit
            The object goes as soon as nobody reads it: after the grace time, or with the rest of its last lease.

        Raises
        ------
        UnknownSlot
            Committed or aborted before, another owner's, or reserved for another key.
        AlreadyStored, BeingWritten
            Somebody else has taken the key meanwhile; the slot stays with its owner.
        ObjectTooLarge
            ``size`` does not fit the slot; it stays with its owner.
        QuotaExceeded
            As in :meth:`write`, for a granted slot; it stays with its owner.
        """
        opened = self._slots.get(slot_id, owner)
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
        account = opened.account
        if account is None:
            account = self._namespaces.of(key)
            try:
                self._keep_quota(account, pages_for(size))
            except QuotaExceeded as error:
                self._remember_refusal(key, error)
                raise
        while not self._journal.has_room:
            self._evict_one(0, account)
        runs, rest = split_runs(opened.runs, pages_for(size))
        try:
            self._journal.commit(
                opened.record, key, size, checksum, runs, self._wall_clock(), anchor, is_transit=is_transit
            )
        except NoSpace:
            self._counters.refusals += 1
            raise
        self._close_slot(opened)
        self._allocator.free(rest)
        now = self._clock()
        row = opened.record
        self._rows.fill(
            row, size, checksum, runs, account, now=now, born=now, rests_until=now, is_verified=True, anchor=anchor
        )
        if is_transit:
            self._begin_transit(row)
        self._publish(key, row, account)
        self._counters.commits += 1
        self._counters.commit_bytes += size

    def abort(self, slot_id: int, owner: Owner) -> None:
        """Take a slot back; its owner promises that nothing writes into it any more. Raises ``UnknownSlot``."""
        opened = self._slots.get(slot_id, owner)
        self._journal.erase(opened.record)
        self._close_slot(opened)
        self._allocator.free(opened.runs)
        self._counters.aborts += 1

    def end_owner(self, owner: Owner) -> int:
        """Abort every slot of a connection that has ended; returns how many."""
        slot_ids = self._slots.of_owner(owner)
        for slot_id in slot_ids:
            self.abort(slot_id, owner)
        return len(slot_ids)

    def slot(self, slot_id: int, owner: Owner) -> Slot:
        """Return an open slot of this owner. Raises ``UnknownSlot``."""
        return self._slots.get(slot_id, owner).slot

    # Reading ------------------------------------------------------------------------------------------------------

    def lease(
        self, key: ObjectKey, holder: str, ttl_s: float, *, payer: str = "", is_use: bool = True
    ) -> tuple[str, Leased] | None:
        """Lease one object: the lease's id and the object, or ``None`` where it is not to be had.

        Parameters
        ----------
        payer
            Whose share of all leases it takes; empty: the holder's.
        is_use
            False for a reader who looks after the store itself, and is neither a hit nor a touch; its leases are no
            client's, and not counted with theirs.

        Raises
        ------
        TooManyLeases
            The payer, or all together, have as many as they may.
        """
        row = self._index.get(key)
        if row is None or (self._readers.is_quarantine_full and not self._rows.readers[row]):
            if is_use:
                self._count_misses(key, 1, row)
            return None
        lease = self._open_lease(holder, ttl_s, (payer or holder) if is_use else None)
        self._leases.add(lease, [row])
        self._readers.hold(row, lease.given, is_use=is_use)
        leased = self._rows.leased(key, row)
        if is_use:
            self._counters.hits += 1
            self._counters.hit_bytes += leased.size
            self._rows.accounts[row].hits += 1
        return lease.id, leased

    def open_lease(self, holder: str, ttl_s: float, *, payer: str = "") -> str:
        """Start an empty lease and return its id (letters, digits and ``-``); see :meth:`extend_lease`.

        It counts as part of ``payer``'s share of all leases; empty: the holder's. Raises ``TooManyLeases``.
        """
        return self._open_lease(holder, ttl_s, payer or holder).id

    def extend_lease(self, lease_id: str, keys: Sequence[ObjectKey], group_size: int = 1) -> builtins.list[Leased]:
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
        run = self._index.run(keys)
        if self._readers.is_quarantine_full:
            run = builtins.list(takewhile(self._rows.readers.__getitem__, run))
        if len(run) < len(keys):
            missing = keys[len(run)]
            self._count_misses(missing, len(keys) - len(run), self._index.get(missing))
        excess = len(run) % group_size
        if excess:  # of a group that is not complete
            del run[-excess:]
            self._count_behind(keys[0], excess)
        self._readers.hold_all(run, self._clock())
        leased = self._rows.leased_all(keys, run)
        if run:
            self._counters.hits += len(run)
            self._counters.hit_bytes += sum([held.size for held in leased])
            self._rows.accounts[run[0]].hits += len(run)
        self._leases.add(lease, run)
        return leased

    def renew(self, lease_id: str, ttl_s: float) -> None:
        """Let a lease live ``ttl_s`` from now. Raises ``UnknownLease``."""
        self._leases.renew(lease_id, self._clock() + self._cut(ttl_s))

    def release(self, lease_id: str, start: int = 0, stop: int | None = None) -> int:
        """Give back objects ``start`` to ``stop`` of a lease; returns how many.

        Idempotent: 0 for a lease or an object that was given back before, has expired, or never was.
        The lease itself ends with its last object. An object stays readable for the grace time.
        """
        released = self._leases.release(lease_id, start, stop)
        self._readers.let_go(released, self._clock())
        return len(released)

    def release_holder(self, holder: str) -> int:
        """End all leases of a holder whose connection has ended; returns how many.

        It may still be copying, so its objects rest as those of an expired lease do.
        """
        ended = 0
        for items in self._leases.end_holder(holder):
            self._readers.quarantine(items, self._clock())
            ended += 1
        self._counters.leases_abandoned += ended
        return ended

    def is_stored(self, key: ObjectKey) -> bool:
        """Whether the key holds a committed object. Not a touch."""
        return self._index.get(key) is not None

    def is_being_written(self, key: ObjectKey) -> bool:
        """Whether a slot that is not committed yet holds the key."""
        return self._slots.is_writing(key)

    def entry(self, text: str) -> Entry | None:
        """Return what others are told of an object, by its text (``index.text_of``); ``None`` where it is not stored.

        A listener that hears of an object's end finds it here for the last time.
        """
        row = self._index.find(text)
        return None if row is None else self._rows.entry(row)

    def stat(self, key: ObjectKey) -> ObjectStat | None:
        """Describe a committed object, without touching it."""
        row = self._index.get(key)
        return None if row is None else self._catalog.stat(row, self._clock())

    def views(self, extents: Sequence[Extent]) -> builtins.list[memoryview]:
        """Return the writable memory of extents, in order; the caller holds a slot or a lease on them."""
        return self._segment.views(extents)

    # Removing -----------------------------------------------------------------------------------------------------

    def delete(self, key: ObjectKey) -> bool:
        """Remove an object: hidden at once, its pages come back when nobody can be reading them. False: not there."""
        row = self._index.get(key)
        if row is None:
            return False
        self._withdraw(row, Fate.DELETED)
        return True

    def mark_verified(self, leased: Leased) -> None:
        """Note that bytes and checksum were compared and agree. Nothing happens if the object is gone meanwhile."""
        self._catalog.mark_verified(leased)

    def drop_corrupt(self, leased: Leased) -> bool:
        """Remove an object whose bytes were found not to match. False if just this object is gone already."""
        row = self._catalog.find(leased)
        if row is None:
            return False
        self._withdraw(row, Fate.CORRUPT)
        return True

    def flush(
        self, bucket: str | None = None, salt: str | None = None, *, cursor: str = "", limit: int = 256
    ) -> tuple[int, str]:
        """Remove what a bucket, or a tenant, has: as :meth:`delete` does, all that is stored when the flush begins.

        A call removes about ``limit`` objects and looks at a bounded number.

        Returns
        -------
        tuple
            How many objects were removed, and the cursor to go on from, which is empty at the end.
        """
        removed = 0
        for position, row in self._catalog.scan(cursor):
            if not self._catalog.is_of(row, bucket, salt):
                continue
            if removed >= limit:
                return removed, position
            self._withdraw(row, Fate.FLUSHED)
            removed += 1
        return removed, self._catalog.cursor_behind(cursor)

    def pin(self, keys: Iterable[ObjectKey], ttl_s: float) -> int:
        """Keep stored objects for a time: they go only when nothing else is evictable. Returns how many are stored.

        A pin ends by itself; another one replaces it.
        """
        until = self._clock() + min(ttl_s, self._limits.max_pin_s) if ttl_s > 0 else 0.0
        pinned = 0
        for key in keys:
            row = self._index.get(key)
            if row is not None and until:
                self._room.pin(row, until)
                pinned += 1
        return pinned

    def unpin(self, keys: Iterable[ObjectKey]) -> int:
        """End the pins of objects; returns how many were pinned."""
        unpinned = 0
        for key in keys:
            row = self._index.get(key)
            if row is not None and row in self._rows.pinned_until:
                self._room.unpin(row)
                unpinned += 1
        return unpinned

    def mark_copied(self, key: ObjectKey, is_copied: bool = True) -> None:
        """Note whether others hold an object too: such goes before what nobody else has, where both are near their end.

        Nothing happens if it is not stored.
        """
        row = self._index.get(key)
        if row is not None:
            copies = self._rows.accounts[row].partition.copies
            (copies.add if is_copied else copies.discard)(self._rows.keys[row])

    def is_copied(self, key: ObjectKey) -> bool:
        """Whether others hold an object too, as far as the store was told."""
        row = self._index.get(key)
        return row is not None and self._rows.keys[row] in self._rows.accounts[row].partition.copies

    def keep(self, key: ObjectKey) -> bool:
        """Let an object stay that was in transit; returns whether it is stored."""
        row = self._index.get(key)
        if row is not None and row in self._rows.transit:
            self._journal.keep(row)
            self._end_transit(row)
            for listener in self._listeners:
                listener(self._rows.keys[row], True)
        return row is not None

    @property
    def needs_reclaim(self) -> bool:
        """Whether less is free than the high watermark leaves, and something unpinned could go."""
        return self._lacks_free(self._limits.high_watermark)

    def reclaim(self, limit: int) -> bool:
        """Evict up to ``limit`` objects, until the low watermark is reached; returns whether to call again.

        To be called after :meth:`expire` when :attr:`needs_reclaim`, so that a write finds room and evicts nothing.
        """
        for _ in range(limit):
            if not self._lacks_free(self._limits.low_watermark):
                return False
            victim = self._room.victim(takes_pinned=False)
            if victim is None:
                return False
            self._evict(victim, Fate.EVICTED)
        return self._lacks_free(self._limits.low_watermark)

    def expire(self, limit: int = 256) -> bool:
        """Do what the clock says: end leases, pins and objects whose time is over, return pages that have rested.

        To be called every quarter of a second or so. Handles about ``limit`` objects and returns whether more may be
        due (call again after serving others).
        """
        now = self._clock()
        if self._waits_for_former_leases and now >= self._evicts_from:
            self._waits_for_former_leases = False
            self._journal.outlive_former_leases()
        for items in self._leases.end_due(now):
            self._readers.quarantine(items, now)
            self._counters.leases_expired += 1
            limit -= 1 + len(items)
            if limit <= 0:
                return True
        for ended in self._ends.take_due(now):
            self._withdraw(ended, Fate.EXPIRED)
            limit -= 1
            if limit <= 0:
                return True
        for passing in self._passing.take_due(now):
            if not self._rows.readers[passing]:  # else it goes with the rest of its last lease
                self._withdraw(passing, Fate.TRANSIT)
            limit -= 1
            if limit <= 0:
                return True
        for unpinned in self._room.pins_due(now):
            self._room.unpin(unpinned)
            limit -= 1
            if limit <= 0:
                return True
        for unread in self._readers.end_rests(now):
            if unread is not None and self._rows.keys[unread]:
                self._withdraw(unread, Fate.TRANSIT)
            elif unread is not None:
                self._free(unread)
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

    def listen(self, listener: Callable[[str, bool], None]) -> None:
        """Tell of every object that is published, or gone: its text (``index.text_of``), and whether it is there.

        Of what was in transit and shall stay (:meth:`keep`) again, as of what is published.
        """
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[str, bool], None]) -> None:
        """Tell this one no more."""
        self._listeners.remove(listener)

    def orphaned_owners(self) -> builtins.list[Orphan]:
        """List clients of a former process whose slots were open when it died: they may still be writing.

        The caller releases a client that says hello again under its name, or whose process is gone.
        """
        pages: dict[tuple[str, int], int] = {}
        for client, records in self._orphans.items():
            for record in records:
                pages[client, record.pid] = pages.get((client, record.pid), 0) + pages_for(record.size)
        return [Orphan(client, pid, count * PAGE_BYTES) for (client, pid), count in pages.items()]

    def release_orphans(self, client: str, pid: int | None = None) -> int:
        """Free the slots that a client held in a former process; returns how many.

        Parameters
        ----------
        pid
            Only those of this process (or user, see :class:`Owner`); ``None``: all that go by the client's name.
        """
        found = self._orphans.pop(client, [])
        if kept := [record for record in found if pid is not None and record.pid != pid]:
            self._orphans[client] = kept
        records = [record for record in found if pid is None or record.pid == pid]
        for record in records:
            self._journal.erase(record.number)
            self._allocator.free(record.runs)
        return len(records)

    def keys(self, cursor: str = "", rows: int = SCANNED_ROWS) -> tuple[builtins.list[str], str]:
        """Return the texts (``index.text_of``) of one step of a walk over all objects, and where the next one begins.

        A step looks at so many records.

        The cursor is empty at the end. What is stored all the while is met exactly once.
        """
        texts = [self._rows.keys[row] for _, row in self._catalog.scan(cursor, rows)]
        return texts, self._catalog.cursor_behind(cursor, rows)

    def list(
        self,
        bucket: str | None = None,
        *,
        prefix: str = "",
        salt: str | None = None,
        cursor: str = "",
        limit: int = 1_000,
    ) -> Listing:
        """Describe objects, a page at a time and in no order.

        What is stored from the first call to the last is on exactly one page; what comes or goes meanwhile may be
        on one. A call looks at a bounded number of objects, so a page may be short, or empty, before the end.

        Parameters
        ----------
        bucket, prefix, salt
            Only objects of this bucket, with names that begin so, of this tenant; ``None`` for any.
        cursor
            Where the page before ended; a number of this process's own.

        Raises
        ------
        ValueError
            The cursor is not one.
        """
        return self._catalog.page(bucket, prefix, salt, cursor, limit, self._clock())

    def leases(self, *, cursor: str = "", limit: int = 1_000) -> LeaseListing:
        """Describe live leases, oldest first, a page at a time. Raises ``ValueError`` for what is no cursor."""
        now = self._clock()
        page: list[LeaseStat] = []
        listed = 0
        last = int(cursor or 0)
        for lease in self._leases.after(last):
            if len(page) >= limit or listed >= LISTED_OBJECTS:
                return LeaseListing(page, str(last))
            size = sum(self._rows.sizes[item] for item in lease.items if item is not None)
            page.append(LeaseStat(lease.id, lease.holder, lease.live, size, now - lease.given, lease.deadline - now))
            listed += len(lease.items)
            last = lease.number
        return LeaseListing(page, "")

    def namespaces(self) -> Sequence[NamespaceStats]:
        """Describe each namespace that is counted by itself, and the others together."""
        return [account.stats() for account in self._namespaces]

    def explain(self, key: ObjectKey) -> Explanation:
        """Say why a key is, or is not, in the store."""
        now = self._clock()
        row = self._index.get(key)
        if row is not None:
            size, leases, idle_s = self._rows.sizes[row], self._rows.leases(row), now - self._rows.touched[row]
            return Explanation(
                "stored", now - self._rows.born[row], f"{size} bytes, {leases} leases, idle for {idle_s:.0f} s"
            )
        if self._slots.is_writing(key):
            return Explanation("being_written", None, "a writer holds the key and has not committed yet")
        return self._history.explain(key, now, self._eviction, self._index)

    def scrub_next(self) -> ObjectKey | None:
        """Return the next object in turn to compare with its checksum; ``None`` if none was met."""
        return self._catalog.next_in_turn()

    def stats(self) -> StoreStats:
        """Count what is there now."""
        orphans = [record for records in self._orphans.values() for record in records]
        return StoreStats(
            capacity_bytes=self._pages * PAGE_BYTES,
            free_bytes=self._allocator.free_pages * PAGE_BYTES,
            used_bytes=self._catalog.pages * PAGE_BYTES,
            leased_bytes=self._readers.leased_pages * PAGE_BYTES,
            resting_bytes=self._resting_pages * PAGE_BYTES,
            quarantined_bytes=self._readers.quarantined_pages * PAGE_BYTES,
            pinned_bytes=self._room.pinned_pages * PAGE_BYTES,
            reserved_bytes=self._slots.pages * PAGE_BYTES,
            orphaned_bytes=sum(pages_for(record.size) for record in orphans) * PAGE_BYTES,
            retired_bytes=self._readers.retired_pages * PAGE_BYTES,
            largest_free_bytes=self._allocator.largest_run * PAGE_BYTES,
            objects=len(self._index),
            fragments=self._catalog.fragments,
            slots=len(self._slots),
            orphaned_slots=len(orphans),
            leases=len(self._leases),
            unverified=self._catalog.unverified,
            namespaces=len(self._namespaces),
            ghost_entries=len(self._history),
            **asdict(self._counters),
        )

    def close(self) -> None:
        """Let go of segment and journal; both stay on disk for the next process to adopt."""
        self._journal.close()
        self._segment.close()

    # Slots --------------------------------------------------------------------------------------------------------

    def _remember_refusal(self, key: ObjectKey, error: NoSpace) -> None:
        fate = Fate.QUOTA_REFUSED if isinstance(error, QuotaExceeded) else Fate.NO_SPACE
        self._history.note(key, fate, self._clock())

    def _refuse_taken(self, key: ObjectKey) -> None:
        if key in self._index:
            raise AlreadyStored(f"{key.bucket}/{key.name} is stored already; delete it first to write it anew")
        if self._slots.is_writing(key):
            raise BeingWritten(f"{key.bucket}/{key.name} is being written by another; wait for it or skip")

    def _open_slot(self, size: int, owner: Owner, key: ObjectKey | None) -> Slot:
        if not 0 < size <= self._pages * PAGE_BYTES:
            raise ObjectTooLarge(f"an object has 1 to {self._pages * PAGE_BYTES} bytes here; got {size}")
        account = None if key is None else self._namespaces.of(key)
        if account is not None:
            self._keep_quota(account, pages_for(size))
        runs = self._allocate(pages_for(size), account)
        try:
            record = self._journal.reserve(owner, key, size, runs)
        except BaseException as error:
            self._allocator.free(runs)
            self._counters.refusals += isinstance(error, NoSpace)
            raise
        slot = Slot(self._slots.next_id(), size, extents_of(runs, size))
        self._slots.open(OpenSlot(slot, owner, key, account, runs, record))
        if account is not None:
            self._namespaces.reserve(account, pages_for(size))
        return slot

    def _close_slot(self, opened: OpenSlot) -> None:
        self._slots.close(opened)
        if opened.account is not None:
            self._namespaces.unreserve(opened.account, pages_for(opened.slot.size))

    # Room ---------------------------------------------------------------------------------------------------------

    def _policy_for(self, quota: Quota) -> EvictionPolicy[str]:
        """Make the policy of a partition, which never has more pages than its hard quota."""
        pages = self._pages
        if quota.hard_bytes is not None:
            pages = max(min(pages, quota.hard_bytes // PAGE_BYTES), 1)
        return POLICIES[self._eviction](pages)

    def _allocate(self, pages: int, account: Account | None) -> tuple[Run, ...]:
        """Take pages, evicting as little as it takes; evicts nothing where that could not be enough."""
        if pages > self._allocator.free_pages + self._room.evictable_pages:
            raise self._no_space(pages)
        for _ in range(MOST_EVICTIONS):
            if self._journal.has_room:
                runs = self._allocator.allocate(pages)
                if runs is not None:
                    return runs
            self._evict_one(pages, account)
        raise self._no_space(pages)

    def _keep_quota(self, account: Account, pages: int) -> None:
        """Evict what an account has until one more object is within its hard quotas. Raises ``QuotaExceeded``."""
        level: Account | None = account
        while level is not None:
            if level.is_limited:
                self._keep_quota_of(level, account, pages)
            level = level.bucket

    def _keep_quota_of(self, level: Account, account: Account, pages: int) -> None:
        for _ in range(MOST_EVICTIONS):
            if not level.lacks_room(pages):
                return
            if self._clock() < self._evicts_from or not level.could_have_room(pages):
                break
            victim = self._room.victim_of(level, account)
            if victim is None:
                break
            self._evict(victim, Fate.QUOTA_EVICTED)
        account.refusals += 1
        self._counters.refusals += 1
        name = "tenant" if level.bucket else "bucket"
        raise QuotaExceeded(
            f"{name} {level.namespace} would pass its hard quota with {pages} pages of {PAGE_BYTES} bytes more: it has "
            f"{level.objects} objects in {level.pages} pages and writes {level.reserved_objects} in "
            f"{level.reserved_pages}; too few of them can go now, try again later"
        )

    def _evict_one(self, pages: int, account: Account | None) -> None:
        """Evict the object whose turn it is, for a request of so many pages. Raises ``NoSpace``."""
        if self._clock() < self._evicts_from:
            raise self._no_space(pages)
        victim = self._room.victim(account)
        if victim is None:
            raise self._no_space(pages)
        self._evict(victim, Fate.EVICTED)

    def _evict(self, victim: int, fate: Fate) -> None:
        """Remove an object that :class:`Room` chose; nobody reads it, so its pages are free at once."""
        self._unlist(victim, fate)
        self._free(victim)

    def _lacks_free(self, watermark: float) -> bool:
        """Whether more than a share of all pages is not free, and an unpinned object could go now.

        Not where an object is larger, on average, than the room to be kept: half of a cache of few objects would go.
        """
        kept = (1 - self._limits.low_watermark) * self._pages
        return (
            self._pages - self._allocator.free_pages > watermark * self._pages
            and self._room.unpinned_pages > 0
            and self._catalog.pages <= kept * len(self._catalog)
            and self._clock() >= self._evicts_from
        )

    def _no_space(self, pages: int) -> NoSpace:
        self._counters.refusals += 1
        wait = self._evicts_from - self._clock()
        return NoSpace(
            f"no room for {pages} pages of {PAGE_BYTES} bytes: of {self._pages}, {self._allocator.free_pages} are "
            f"free, {self._room.evictable_pages} evictable"
            + (f" in {wait:.0f} s (leases given before the restart may still be read)" if wait > 0 else "")
            + f", {self._readers.leased_pages} leased, {self._resting_pages} resting after a lease, "
            f"{self._slots.pages} being written, {self._readers.retired_pages} deleted but read; try again later"
        )

    @property
    def _resting_pages(self) -> int:
        return self._catalog.pages - self._readers.leased_pages - self._room.evictable_pages

    # Objects ------------------------------------------------------------------------------------------------------

    def _publish(self, key: ObjectKey, row: int, account: Account) -> None:
        """List an object whose row is filled."""
        self._catalog.add(key, row)
        for listener in self._listeners:
            listener(self._rows.keys[row], True)
        self._room.insert(row)
        self._namespaces.add(account, self._rows.pages[row])
        self._history.published(key)
        if (expires_at := self._rows.expires_at(row)) is not None:
            self._ends.put(row, expires_at)

    def _unlist(self, row: int, fate: Fate) -> None:
        """Hide an object from lookups and count it as gone; its pages and its record are the caller's."""
        now = self._clock()
        rows, account = self._rows, self._rows.accounts[row]
        self._history.note(self._catalog.key(row), fate, now, now - rows.born[row], now - rows.touched[row])
        for listener in self._listeners:
            listener(rows.keys[row], False)
        account.partition.copies.discard(rows.keys[row])
        self._end_transit(row)
        self._catalog.remove(row)
        self._namespaces.subtract(account, rows.pages[row])
        self._counters.evictions[fate.reason] += 1
        account.evictions += fate in (Fate.EVICTED, Fate.QUOTA_EVICTED)
        if (expires_at := self._rows.expires_at(row)) is not None:
            self._ends.discard(row, expires_at)

    def _begin_transit(self, row: int) -> None:
        self._rows.transit.add(row)
        self._passing.put(row, self._rows.born[row] + self._limits.grace_s)

    def _end_transit(self, row: int) -> None:
        if row in self._rows.transit:
            self._rows.transit.remove(row)
            self._passing.discard(row, self._rows.born[row] + self._limits.grace_s)

    def _withdraw(self, row: int, fate: Fate) -> None:
        """Remove an object that may be read: its pages rest until they cannot be."""
        self._room.remove(row)
        self._unlist(row, fate)
        if not self._rows.readers[row] and self._rows.rests_until[row] <= self._clock():
            self._free(row)
        else:
            self._journal.retire(row)
            self._readers.retire(row)

    def _free(self, row: int) -> None:
        """Free the pages of an object that is gone and that nobody can be reading."""
        self._journal.erase(row)
        self._allocator.free(self._rows.runs(row))
        self._rows.clear(row)

    # Leases -------------------------------------------------------------------------------------------------------

    def _open_lease(self, holder: str, ttl_s: float, payer: str | None) -> Lease[int]:
        now = self._clock()
        try:
            lease = self._leases.open(holder, now, now + self._cut(ttl_s), payer)
        except TooManyLeases:
            self._counters.leases_refused += 1
            raise
        self._counters.leases_given += 1
        return lease

    def _count_misses(self, key: ObjectKey, misses: int, row: int | None) -> None:
        """Count a key that was not to be had and those behind it; ``row`` if it is stored all the same."""
        reason: MissReason
        if row is not None:
            reason = "quarantine_full"
        elif self._slots.is_writing(key):
            reason = "being_written"
        else:
            reason = self._history.reason(key, self._index)
        self._counters.misses += 1
        self._counters.misses_by_reason[reason] += 1
        self._namespaces.of(key).misses += 1
        self._count_behind(key, misses - 1)

    def _count_behind(self, key: ObjectKey, misses: int) -> None:
        self._counters.misses += misses
        self._namespaces.of(key).misses += misses
        self._counters.misses_by_reason["behind_a_miss"] += misses

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
        wall = self._wall_clock()
        for record in adoption.void:
            self._journal.erase(record.number)
            self._history.note(record.key, Fate.LOST_AT_RESTART, now)
        for record in adoption.committed:
            born = now - max(wall - record.created, 0.0)  # a clock that was put back makes nothing younger
            account = self._fill(record, now, born)
            if record.is_transit:
                self._begin_transit(record.number)
            self._publish(record.key, record.number, account)
        for record in adoption.retired:
            self._fill(record, now, now)
            self._readers.retire(record.number)
        for record in adoption.orphaned:
            self._orphans.setdefault(record.client, []).append(record)
            self._history.note(record.key, Fate.LOST_AT_RESTART, now)
        self._counters.adopted = len(adoption.committed)
        self._counters.dropped = self._journal.dropped + adoption.contradictory

    def _fill(self, record: Record, now: float, born: float) -> Account:
        """Fill the row of an object that was adopted; returns who is charged for it."""
        account = self._namespaces.of(record.key)
        self._rows.fill(
            record.number,
            record.size,
            record.checksum,
            record.runs,
            account,
            now=now,
            born=born,
            rests_until=self._evicts_from,
            is_verified=False,
            anchor=record.anchor,
        )
        return account


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
