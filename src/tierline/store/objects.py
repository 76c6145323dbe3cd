"""What goes in and out of the store, as plain immutable values; whoever holds one holds no right to the pages it names.

An object is a run of bytes under a key, written once. Its bytes lie in one or more *extents* of the segment, in order.
"""

from dataclasses import dataclass
from typing import NamedTuple


class ObjectKey(NamedTuple):
    """Full name of an object: a bucket separates users that must not meet, the name is unique inside it."""

    bucket: str
    name: str


class Extent(NamedTuple):
    """A contiguous run of bytes in the segment; never empty."""

    offset: int
    length: int


class Owner(NamedTuple):
    """Who may write into a slot: one connection.

    Parameters
    ----------
    client
        Name under which a client said hello, for clients that write into the segment themselves. Empty where the node
        writes on behalf of an HTTP connection: such a slot is void as soon as the node is dead.
    connection
        Number of the connection, unique in this process of the node.
    pid
        Process of the client as the kernel tells it; 0 where unknown. Where it tells the user only (of a process in
        another PID namespace), :data:`NO_PID` and the user's number.
    """

    client: str
    connection: int
    pid: int = 0


class Slot(NamedTuple):
    """Pages that an owner may write; the object's bytes go into the extents in order."""

    id: int
    size: int
    extents: tuple[Extent, ...]


class Leased(NamedTuple):
    """An object whose bytes stay where they are for as long as the lease lives.

    Parameters
    ----------
    checksum
        XXH3-64 of the bytes, as its writer gave it.
    is_verified
        False for an object adopted from a former process until somebody compared bytes and checksum, see
        :meth:`Store.mark_verified` and :meth:`Store.drop_corrupt`.
    """

    key: ObjectKey
    size: int
    checksum: int
    extents: tuple[Extent, ...]
    is_verified: bool


class Entry(NamedTuple):
    """What other nodes are told of an object.

    Parameters
    ----------
    checksum
        As in :class:`Leased`.
    anchor
        Directory slot of the prefix that it is of (``tierline.pool.slots``); ``None`` where its writer named none.
    is_transit
        It goes as soon as nobody reads it.
    """

    size: int
    checksum: int
    anchor: int | None
    is_transit: bool


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """What operators see of one object.

    Parameters
    ----------
    age_s
        Since its commit, through restarts; since its adoption where the journal does not know.
    idle_s
        Since its last use, its commit or its adoption.
    hits
        Uses in this process; those within a second count once.
    pinned_s
        How long it stays pinned; 0 where it is not.
    expires_s
        How long its bucket's time to live lasts; ``None`` without one.
    """

    key: ObjectKey
    size: int
    checksum: int
    fragments: int
    leases: int
    is_verified: bool
    age_s: float
    idle_s: float
    hits: int
    pinned_s: float
    expires_s: float | None


class Listing(NamedTuple):
    """One page of objects in no order; ``cursor`` goes into the next call and is empty at the end.

    A page may be empty, or short, before the end: a call does bounded work.
    """

    objects: list[ObjectStat]
    cursor: str


class LeaseStat(NamedTuple):
    """One live lease: ``objects`` of ``bytes`` together that its holder has not given back."""

    id: str
    holder: str
    objects: int
    bytes: int
    age_s: float
    expires_in_s: float


class LeaseListing(NamedTuple):
    """One page of leases, oldest first; ``cursor`` as in :class:`Listing`."""

    leases: list[LeaseStat]
    cursor: str


class Namespace(NamedTuple):
    """Whose an object is: its bucket, and in it the tenant's salt, empty for objects that name none."""

    bucket: str
    salt: str


@dataclass(frozen=True, slots=True)
class Quota:
    """Bounds of what is stored under one name; ``None`` is no bound.

    Bytes are those of whole pages, and what is being written counts. Over a *soft* bound objects of this name go first
    when anybody needs room; the *hard* one is never passed: objects of this name make room, or the write is refused.
    """

    soft_bytes: int | None = None
    hard_bytes: int | None = None
    soft_objects: int | None = None
    hard_objects: int | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is any bound."""
        return self != _NO_QUOTA


_NO_QUOTA = Quota()


@dataclass(frozen=True, slots=True)
class BucketRules:
    """What holds in one bucket.

    Parameters
    ----------
    quota
        Of the bucket as a whole.
    tenant_quota
        Of each salt in it.
    ttl_s
        Time after which an object goes, whether it is used or not; ``None`` for never.
    """

    quota: Quota = _NO_QUOTA
    tenant_quota: Quota = _NO_QUOTA
    ttl_s: float | None = None


class NamespaceStats(NamedTuple):
    """What one namespace has, and what has happened to it since it was last empty and forgotten.

    A salt ``@all`` stands for a bucket with a quota as a whole, ``@others`` for what is not counted by itself.
    ``refusals`` are those for its quota.
    """

    namespace: Namespace
    objects: int
    bytes: int
    quota: Quota
    hits: int
    misses: int
    evictions: int
    refusals: int


class Explanation(NamedTuple):
    """Why a key is, or is not, in the store: one word, when that came to be, and a sentence for people.

    ``kind`` is one of ``stored``, ``being_written``, ``never_stored``, ``evicted``, ``quota``, ``no_space``,
    ``expired``, ``deleted``, ``flushed``, ``corrupt``, ``lost_at_restart``, ``other_tenant``, ``other_layout``.
    """

    kind: str
    ago_s: float | None
    detail: str


NO_PID = 1 << 31
"""Above every process' number; see :class:`Owner`."""


class Orphan(NamedTuple):
    """A client of a former process that may still be writing into ``size_bytes`` of the segment.

    One for each process (or user, see :class:`Owner`) that had slots under the client's name.
    """

    client: str
    pid: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Times, in seconds, that decide when pages may be used again, and bounds of what one client can take.

    Parameters
    ----------
    max_ttl_s
        Longest time a lease may ask for; longer wishes are cut to it. After a restart, pages of adopted objects are not
        reused for as long, since leases of the former process may still be read.
    grace_s
        An object stays readable for this long after its lease was released: LMCache looks up with one lease and reads
        with the next.
    quarantine_s
        Pages under a lease that expired unreleased are not reused for this long: LMCache's in-process client copies
        without looking at the clock.
    touch_window_s
        Touches of one object within this time count once.
    max_pin_s
        Longest time a pin may ask for; longer wishes are cut to it.
    max_leases, max_leases_per_holder
        Live leases, in all and of one holder.
    max_quarantined_fraction
        Share of all pages that may be in quarantine. Beyond it nothing more is put under lease that is not already,
        so that clients who never release cannot take the whole cache out of use.
    high_watermark, low_watermark
        Where more than the first share of all pages is not free, reclaiming is due, down to the second.
    max_namespaces
        Namespaces that are counted one by one; what comes beyond them is counted together.
    ghost_log_bytes
        Memory for what is remembered of objects that are gone, 25 bytes each.
    """

    max_ttl_s: float = 60.0
    grace_s: float = 2.0
    quarantine_s: float = 5.0
    touch_window_s: float = 1.0
    max_pin_s: float = 86_400.0
    max_leases: int = 65_536
    max_leases_per_holder: int = 16_384
    max_quarantined_fraction: float = 0.5
    high_watermark: float = 0.95
    low_watermark: float = 0.92
    max_namespaces: int = 4_096
    ghost_log_bytes: int = 4 * 1024 * 1024
