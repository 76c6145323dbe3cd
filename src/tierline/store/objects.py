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
        Process of the client as the kernel tells it; 0 where unknown.
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


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """What operators see of one object; ``age_s`` counts from its commit or its adoption."""

    key: ObjectKey
    size: int
    checksum: int
    fragments: int
    leases: int
    is_verified: bool
    age_s: float


class Orphan(NamedTuple):
    """A client of a former process that may still be writing into ``size_bytes`` of the segment."""

    client: str
    pid: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Times, in seconds, that decide when pages may be used again.

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
    """

    max_ttl_s: float = 60.0
    grace_s: float = 2.0
    quarantine_s: float = 5.0
    touch_window_s: float = 1.0
