"""What the store counts, for operators; counting changes nothing."""

from dataclasses import dataclass, field
from typing import Literal, get_args

EvictionReason = Literal["space", "quota", "deleted", "expired", "flushed", "corrupt", "transit"]
MissReason = Literal[
    "never_stored",
    "being_written",
    "evicted",
    "quota",
    "no_space",
    "expired",
    "deleted",
    "flushed",
    "corrupt",
    "transit",
    "lost_at_restart",
    "other_tenant",
    "other_layout",
    "quarantine_full",
    "behind_a_miss",
]


@dataclass(slots=True, kw_only=True)
class Counters:
    """What has happened since the start.

    Parameters
    ----------
    hits, misses
        Objects found, and not found, by those who asked for a lease.
    hit_bytes, commit_bytes
        Bytes of the objects found, and of those published: what was read and written, whichever way.
    commits, aborts
        Slots published, and given back.
    refusals
        Slots not given, or not published, for lack of pages or of room for their records.
    misses_by_reason
        The same misses by why the object was not to be had. Of a prefix only the first that is missing is looked
        into; those ``behind_a_miss`` could not have been used.
    leases_given, leases_refused
        Leases, and those not given since there are too many.
    leases_expired, leases_abandoned
        Leases that ran out, and leases whose connection ended.
    evictions
        Objects gone, by reason.
    adopted, dropped
        Objects taken over from the former process, and its journal records that were not whole.
    """

    hits: int = 0
    misses: int = 0
    hit_bytes: int = 0
    commits: int = 0
    commit_bytes: int = 0
    aborts: int = 0
    refusals: int = 0
    misses_by_reason: dict[MissReason, int] = field(default_factory=lambda: dict.fromkeys(get_args(MissReason), 0))
    leases_given: int = 0
    leases_refused: int = 0
    leases_expired: int = 0
    leases_abandoned: int = 0
    evictions: dict[EvictionReason, int] = field(default_factory=lambda: dict.fromkeys(get_args(EvictionReason), 0))
    adopted: int = 0
    dropped: int = 0


@dataclass(slots=True, kw_only=True)
class StoreStats(Counters):
    """What is there now, besides what has happened.

    Every page is counted once: ``capacity = free + used + reserved + orphaned + retired``.

    Parameters
    ----------
    capacity_bytes
        All pages that can hold objects; the segment's first page, its header, is not among them.
    free_bytes, used_bytes
        Free pages, and pages of committed objects.
    leased_bytes, resting_bytes
        Of ``used_bytes``: under a live lease, and kept for a while after one (grace, quarantine).
    quarantined_bytes
        Of used and retired ones: those that a lease covered which ran out or was abandoned, until nobody can be
        reading them.
    pinned_bytes
        Of ``used_bytes``: pinned.
    reserved_bytes, orphaned_bytes
        Pages of open slots, and pages into which clients of a former process may still be writing.
    retired_bytes
        Pages of deleted objects that somebody may still be reading.
    largest_free_bytes
        Longest contiguous free run.
    objects, fragments
        Committed objects and their extents.
    slots, orphaned_slots
        Open slots, here and of a former process.
    leases
        Live leases.
    unverified
        Adopted objects whose bytes nobody has compared with their checksum yet.
    namespaces
        Namespaces that are counted one by one.
    ghost_entries
        Objects that are gone and whose fate is remembered.
    """

    capacity_bytes: int
    free_bytes: int
    used_bytes: int
    leased_bytes: int
    resting_bytes: int
    quarantined_bytes: int
    pinned_bytes: int
    reserved_bytes: int
    orphaned_bytes: int
    retired_bytes: int
    largest_free_bytes: int
    objects: int
    fragments: int
    slots: int
    orphaned_slots: int
    leases: int
    unverified: int
    namespaces: int
    ghost_entries: int
