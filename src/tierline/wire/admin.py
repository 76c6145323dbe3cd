"""JSON bodies of the node's HTTP for operators; a struct here is the whole definition, of server and client alike.

Sizes are in bytes, times in seconds. A reader ignores fields that it does not know, and a field that a node may leave
out has a default, so that a command line and a node of different versions understand each other; a field never
changes its meaning.
"""

from enum import StrEnum

import msgspec

MAX_LISTED = 1000
"""Most entries of one page of a listing; ``cursor`` continues it and is empty on the last."""


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every body."""


# The node ---------------------------------------------------------------------------------------------------------


class SegmentFigures(Body, frozen=True, kw_only=True):
    """The shared memory: where it is, and how often its name had been removed and was put back."""

    path: str
    bytes: int
    page_bytes: int
    relinks: int = 0


class StoreFigures(Body, frozen=True, kw_only=True):
    """What the store holds and has done since its start; the names and their meaning are the store's own."""

    capacity_bytes: int
    free_bytes: int
    used_bytes: int
    leased_bytes: int
    resting_bytes: int
    quarantined_bytes: int = 0
    pinned_bytes: int = 0
    reserved_bytes: int
    orphaned_bytes: int
    retired_bytes: int
    objects: int
    fragments: int
    slots: int
    leases: int
    unverified: int
    hits: int
    misses: int
    hit_bytes: int = 0
    commits: int
    commit_bytes: int = 0
    aborts: int
    refusals: int
    misses_by_reason: dict[str, int] = {}
    leases_given: int = 0
    leases_refused: int = 0
    leases_expired: int
    leases_abandoned: int
    evictions: dict[str, int]
    adopted: int
    dropped: int
    namespaces: int = 0
    ghost_entries: int = 0


class ServedSegment(Body, frozen=True, kw_only=True):
    """One of a node's segments: the patterns of the buckets in it, and what its store holds and has done."""

    name: str
    epoch: int = 0
    buckets: list[str]
    bytes: int
    store: StoreFigures


class HttpFigures(Body, frozen=True, kw_only=True):
    """The HTTP port."""

    connections: int


class ClientFigures(Body, frozen=True, kw_only=True):
    """One connection of the UNIX socket."""

    client: str
    pid: int
    writer: bool
    slots: int
    reserved_bytes: int


class SocketFigures(Body, frozen=True, kw_only=True):
    """The UNIX socket."""

    path: str
    connections: list[ClientFigures]


class NodeStats(Body, frozen=True, kw_only=True):
    """``GET /v1/stats``, as far as readers use it.

    Parameters
    ----------
    epoch
        Differs after every start of the node.
    store
        Of the first segment.
    segments
        Every segment, the first among them.
    verifications
        Objects whose bytes were compared with their checksum, by result.
    """

    node: str
    epoch: int
    uptime_s: float
    accepts_writes: bool
    segment: SegmentFigures
    segments: list[ServedSegment] = []
    eviction: str
    store: StoreFigures
    verifications: dict[str, int]
    http: HttpFigures
    socket: SocketFigures


# Objects ----------------------------------------------------------------------------------------------------------


class StoredObject(Body, frozen=True, kw_only=True):
    """One committed object; ``GET /v1/kv/{bucket}/{key}/stat``.

    Parameters
    ----------
    bucket, name, salt
        Its key; ``salt`` is the tenant's part of the name, empty without one.
    size
        Bytes of the object.
    checksum
        XXH3-64 of its bytes, 16 hexadecimal digits: the ETag of ``GET``.
    fragments
        Extents that it lies in.
    leases
        Live leases on it.
    is_verified
        False while nobody has compared its bytes with its checksum since a restart.
    age_s, idle_s
        Since it was committed, and since somebody asked for it last.
    hits
        How often it was asked for.
    pinned_s
        How long it is still pinned; 0 where it is not.
    expires_s
        What is left of the bucket's time to live; None where it has none.
    """

    bucket: str
    name: str
    salt: str = ""
    size: int
    checksum: str
    fragments: int
    leases: int
    is_verified: bool
    age_s: float
    idle_s: float
    hits: int
    pinned_s: float = 0.0
    expires_s: float | None = None


class ObjectPage(Body, frozen=True, kw_only=True):
    """``GET /v1/kv/{bucket}?list&prefix=&salt=&cursor=&limit=``, and ``GET /v1/kv?list`` for every bucket."""

    objects: list[StoredObject]
    cursor: str = ""


class Removed(Body, frozen=True, kw_only=True):
    """``DELETE /v1/kv/{bucket}?flush`` and ``DELETE /v1/kv?flush``: how many objects went."""

    removed: int


class NotStored(Body, frozen=True, kw_only=True):
    """Body of a 404 for an object: ``reason`` is the ``kind`` that :class:`Explanation` would give."""

    error: str
    reason: str = ""


class Explanation(Body, frozen=True, kw_only=True):
    """``GET /v1/kv/{bucket}/{key}/explain``: why a key is there, or is not.

    Parameters
    ----------
    kind
        One word: ``stored``, ``being_written``, ``never_stored``, ``evicted``, ``expired``, ``deleted``, ``flushed``,
        ``corrupt``, ``quota``, ``transit``, ``lost_at_restart``, ``other_tenant`` or ``other_layout``. A word and not a
        closed list, for a newer node may know more of them.
    detail
        A sentence for people.
    ago_s
        How long ago that happened; None where it did not happen at a time.
    """

    kind: str
    detail: str
    ago_s: float | None = None


class VerifyResult(StrEnum):
    """What comparing an object's bytes with its checksum found; a mismatch drops the object."""

    MATCH = "match"
    MISMATCH = "mismatch"
    MISSING = "missing"


class Verified(Body, frozen=True, kw_only=True):
    """``POST /v1/kv/{bucket}/{key}/verify``."""

    result: VerifyResult


class Pinned(Body, frozen=True, kw_only=True):
    """``POST /v1/kv/{bucket}/{key}/pin?ttl_s=``, ``DELETE …/pin``: how long it is still pinned; 0: not at all."""

    pinned_s: float


# Leases -----------------------------------------------------------------------------------------------------------


class LeaseEntry(Body, frozen=True, kw_only=True):
    """One live lease: ``holder`` is who has it, ``objects`` and ``bytes`` what it keeps from being evicted."""

    id: str
    holder: str
    objects: int
    bytes: int
    age_s: float
    expires_in_s: float


class LeasePage(Body, frozen=True, kw_only=True):
    """``GET /v1/leases?cursor=&limit=``."""

    leases: list[LeaseEntry]
    cursor: str = ""


# Orphans ----------------------------------------------------------------------------------------------------------


class OrphanEntry(Body, frozen=True, kw_only=True):
    """A client of a former process of the node that may be writing still; process 0: nobody knows which."""

    client: str
    pid: int
    size_bytes: int


class OrphanList(Body, frozen=True, kw_only=True):
    """``GET /v1/orphans``."""

    orphans: list[OrphanEntry]


# Namespaces -------------------------------------------------------------------------------------------------------


class QuotaFigures(Body, frozen=True, kw_only=True):
    """Bounds of a namespace; above a soft one its own objects go first, a hard one is never passed."""

    soft_bytes: int | None = None
    hard_bytes: int | None = None
    soft_objects: int | None = None
    hard_objects: int | None = None


class NamespaceFigures(Body, frozen=True, kw_only=True):
    """What one tenant of one bucket has, and what has happened to it since the node started."""

    bucket: str
    salt: str = ""
    objects: int
    bytes: int
    quota: QuotaFigures = QuotaFigures()
    hits: int
    misses: int
    evictions: int
    refusals: int


class NamespaceList(Body, frozen=True, kw_only=True):
    """``GET /v1/buckets``."""

    namespaces: list[NamespaceFigures]
