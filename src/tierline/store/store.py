"""The store: keys to objects to pages, and who may read, write or reuse a page at a moment.

The rule inside: **a page has one state at a time**, and every change of state goes through this file.

    free ──write/grant──▶ reserved ──commit──▶ used ──evict───────────────▶ free
                             │                  │ ▲
                             └──abort──▶ free   │ └─ leased, then resting (grace, quarantine): not evictable
                                                └──delete──▶ retired ──last reader gone──▶ free

The journal is told before a page becomes free and after an object is whole, so that a process that dies between any two
lines leaves nothing that the next one could misread. Time moves only in :meth:`Store.expire` and through the clock.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

from tierline.errors import AlreadyStored, BeingWritten, NoSpace, ObjectTooLarge, UnknownSlot
from tierline.store.adoption import adopt
from tierline.store.eviction import POLICIES
from tierline.store.extents import PAGE_BYTES, PageAllocator, extents_of, pages_for, pages_of, runs_of, shorten
from tierline.store.journal import Journal
from tierline.store.leases import LeaseTable
from tierline.store.objects import (
    Extent,
    Leased,
    ObjectKey,
    ObjectStat,
    Orphan,
    Owner,
    Slot,
    StoreLimits,
    StoreStats,
)
from tierline.store.segment import Segment
from tierline.store.wheel import DueWheel



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
        eviction: Literal["arc", "lru"] = "arc",
        clock: Callable[[], float],
        limits: StoreLimits | None = None,
    ) -> None:
        raise NotImplementedError

    @classmethod
    def open(
        cls,
        directory: Path,
        name: str,
        capacity_bytes: int,
        *,
        eviction: Literal["arc", "lru"] = "arc",
        clock: Callable[[], float],
        limits: StoreLimits | None = None,
        mode: int = 0o666,
    ) -> Self:
        """Open or create segment ``directory/name`` with its journal beside it, and adopt what is there.

        Blocks while the segment is pre-faulted (about 0.4 s a GiB, without the GIL).

        Raises
        ------
        EnvironmentTooSmall
            The filesystem has no room for ``capacity_bytes``.
        SegmentError
            The segment or its journal is in use by another node, or is not what was asked for.
        """
        raise NotImplementedError

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
            Larger than the segment.
        """
        raise NotImplementedError

    def grant(self, size: int, owner: Owner) -> Slot:
        """Allocate pages ahead of need; the key is given on commit. Raises ``NoSpace`` and ``ObjectTooLarge``."""
        raise NotImplementedError

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
        raise NotImplementedError

    def abort(self, slot_id: int, owner: Owner) -> None:
        """Take a slot back; its owner promises that nothing writes into it any more. Raises ``UnknownSlot``."""
        raise NotImplementedError

    def end_owner(self, owner: Owner) -> int:
        """Abort every slot of a connection that has ended; returns how many."""
        raise NotImplementedError

    def slot(self, slot_id: int, owner: Owner) -> Slot:
        """Return an open slot of this owner. Raises ``UnknownSlot``."""
        raise NotImplementedError

    # Reading ------------------------------------------------------------------------------------------------------

    def lease(self, key: ObjectKey, holder: str, ttl_s: float) -> tuple[str, Leased] | None:
        """Lease one object: the lease's id and the object, or ``None`` where it is not stored."""
        raise NotImplementedError

    def open_lease(self, holder: str, ttl_s: float) -> str:
        """Start an empty lease and return its id (letters, digits and ``-``); see :meth:`extend_lease`."""
        raise NotImplementedError

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
        raise NotImplementedError

    def renew(self, lease_id: str, ttl_s: float) -> None:
        """Let a lease live ``ttl_s`` from now. Raises ``UnknownLease``."""
        raise NotImplementedError

    def release(self, lease_id: str, start: int = 0, stop: int | None = None) -> int:
        """Give back objects ``start`` to ``stop`` of a lease; returns how many.

        Idempotent: 0 for a lease or an object that was given back before, has expired, or never was.
        The lease itself ends with its last object. An object stays readable for the grace time.
        """
        raise NotImplementedError

    def release_holder(self, holder: str) -> int:
        """End all leases of a holder whose connection has ended; returns how many.

        It may still be copying, so its objects rest as those of an expired lease do.
        """
        raise NotImplementedError

    def is_stored(self, key: ObjectKey) -> bool:
        """Whether the key holds a committed object. Not a touch."""
        raise NotImplementedError

    def is_being_written(self, key: ObjectKey) -> bool:
        """Whether a slot that is not committed yet holds the key."""
        raise NotImplementedError

    def stat(self, key: ObjectKey) -> ObjectStat | None:
        """Describe a committed object, without touching it."""
        raise NotImplementedError

    def views(self, extents: Sequence[Extent]) -> list[memoryview]:
        """Return the writable memory of extents, in order; the caller holds a slot or a lease on them."""
        raise NotImplementedError

    # Removing -----------------------------------------------------------------------------------------------------

    def delete(self, key: ObjectKey) -> bool:
        """Remove an object: hidden at once, its pages come back when nobody can be reading them. False: not there."""
        raise NotImplementedError

    def mark_verified(self, leased: Leased) -> None:
        """Note that bytes and checksum were compared and agree. Nothing happens if the object is gone meanwhile."""
        raise NotImplementedError

    def drop_corrupt(self, leased: Leased) -> bool:
        """Remove an object whose bytes were found not to match. False if just this object is gone already."""
        raise NotImplementedError

    def expire(self, limit: int = 2_048) -> bool:
        """Do what the clock says: end leases that ran out, return pages that have rested.

        To be called every quarter of a second or so. Handles about ``limit`` objects and returns whether more are due
        (call again after serving others).
        """
        raise NotImplementedError

    # After a restart, and for operators ---------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Number that differs after every start; slots and leases of another epoch mean nothing."""
        raise NotImplementedError

    @property
    def limits(self) -> StoreLimits:
        """The times in force."""
        raise NotImplementedError

    @property
    def segment(self) -> Segment:
        """The segment, for its descriptor and its link; its bytes are reached by :meth:`views`."""
        raise NotImplementedError

    def orphaned_owners(self) -> list[Orphan]:
        """List clients of a former process whose slots were open when it died: they may still be writing.

        The caller releases a client that says hello again under its name, or whose process is gone.
        """
        raise NotImplementedError

    def release_orphans(self, client: str) -> int:
        """Free the slots that a client held in a former process; returns how many."""
        raise NotImplementedError

    def stats(self) -> StoreStats:
        """Count what is there now."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of segment and journal; both stay on disk for the next process to adopt."""
        raise NotImplementedError
