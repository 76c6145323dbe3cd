"""``GET /v1/cluster``: the pool as one of its nodes sees it. The rules of :mod:`tierline.wire.admin` hold here too.

What a node knows of a peer it has from that peer itself, over the connection between them: what was never said is
``None``, and what is said of a peer that is away is what it said last.
"""

import msgspec

from tierline.wire.admin import Body

SELF = "self"
ALIVE = "alive"
"""Words for :attr:`MemberFigures.state`; every other says that the member does not take part."""


class TrafficFigures(Body, frozen=True, kw_only=True):
    """What went between the node and one peer since the node started.

    Parameters
    ----------
    fetched_objects, fetched_bytes
        Brought from the peer, and stored here.
    sent_objects, sent_bytes
        That the peer took.
    failed_objects
        Asked of the peer, and not got from it.
    bytes_per_s
        At which fetches from the peer came of late; ``None`` before the first.
    """

    fetched_objects: int = 0
    fetched_bytes: int = 0
    sent_objects: int = 0
    sent_bytes: int = 0
    failed_objects: int = 0
    bytes_per_s: float | None = None


class MemberFigures(Body, frozen=True, kw_only=True):
    """One member of the pool, the node itself among them.

    Parameters
    ----------
    name, address
        As members call each other, and ``HOST:PORT`` of the port between nodes.
    state
        ``self``; ``alive``: connected and heard of; ``connecting``; ``silent``: connected, and not heard of for too
        long; ``refused``: it, or this node, did not accept the other's proof, pool or protocol; ``away``: not to be
        reached. A word and not a closed list, for a newer node may know more of them.
    why
        Where it is none of the first two: what stands in the way.
    epoch
        Tells its process from those before; 0: not known.
    slots
        Of the directory, that are at home with it, by this node's reckoning.
    entries
        Of the directory, that its share has: an object with two holders is two.
    capacity_bytes, used_bytes, objects
        Of its segments.
    heard_s
        Since something was heard of it.
    round_trip_s
        Of the last ping.
    """

    name: str
    address: str
    state: str
    why: str = ""
    epoch: int = 0
    slots: int = 0
    entries: int | None = None
    capacity_bytes: int | None = None
    used_bytes: int | None = None
    objects: int | None = None
    heard_s: float | None = None
    round_trip_s: float | None = None
    traffic: TrafficFigures = TrafficFigures()


class TierFigures(Body, frozen=True, kw_only=True):
    """One tier below the node's own memory, in the order in which they are asked.

    Parameters
    ----------
    name
        ``tieredstorage``, ``redis`` and so on: the value of the metrics' label ``tier``.
    hits, misses
        Objects that were asked for there.
    fetched_bytes, stored_bytes
        Read from it, and written to it, since the node started.
    failures
        Operations that failed.
    bytes_per_s
        At which fetches from it came of late; ``None`` before the first.
    """

    name: str
    hits: int = 0
    misses: int = 0
    fetched_bytes: int = 0
    stored_bytes: int = 0
    failures: int = 0
    bytes_per_s: float | None = None


class ClusterView(Body, frozen=True, kw_only=True):
    """``GET /v1/cluster``.

    Parameters
    ----------
    node
        Who answers.
    pool
        Name of the pool; empty: the node is in none, and has no members.
    source
        Where its members come from, for people: ``static``, ``kubernetes NAMESPACE/SERVICE``, ``etcd URL``.
    is_behind
        The source cannot be asked right now: what it said last stays in force.
    members
        The node itself first, then the others by name.
    tiers
        What a miss is asked of.
    """

    node: str
    pool: str = ""
    source: str = ""
    is_behind: bool = False
    members: list[MemberFigures] = msgspec.field(default_factory=list)
    tiers: list[TierFigures] = msgspec.field(default_factory=list)
