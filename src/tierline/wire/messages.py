"""Messages of the node's UNIX socket, the protocol of our own clients; a struct here is its whole definition.

A frame is a 4-byte little-endian length and one msgpack-encoded message. The client opens with :class:`Hello`; the
node answers :class:`Welcome` with the segment's file descriptor attached (``SCM_RIGHTS``): read-only, or writable
where ``Hello.writer`` is set. From then on each request carries an ``id`` of the client's choosing and is answered by
exactly one reply with the same ``id``; requests may be pipelined. Slots and leases belong to the connection: when it
ends, whatever way, its slots are aborted and its leases released. Structs travel as arrays, so a field may
only ever be appended, with a default.
"""

from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec

from tierline.wire.kv_events import MOST_ENTRIES, Share

PROTOCOL_VERSION = 1
FRAME_HEADER_BYTES = 4
MAX_FRAME_BYTES = 8 * 1024 * 1024
MAX_NAMES_PER_REQUEST = 65_536
MAX_NAME_BYTES = 1024
MAX_TOKEN_CHARACTERS = 2048


Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_BYTES)]
Anchor = Annotated[str, msgspec.Meta(max_length=MAX_NAME_BYTES)]
"""Hash of the first block of a prefix, as text: where a pool of nodes looks for all of its blocks. Empty: none."""
Names = Annotated[list[Name], msgspec.Meta(max_length=MAX_NAMES_PER_REQUEST)]
Size = Annotated[int, msgspec.Meta(ge=1)]
Index = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Wait = Annotated[float, msgspec.Meta(ge=0)]
RequestId = Annotated[str, msgspec.Meta(max_length=256)]
"""``x-request-id`` of the request that this is done for; empty where there is none. It is for logs and spans alone."""
Traceparent = Annotated[str, msgspec.Meta(max_length=256)]
"""As the header of that name (W3C Trace Context); empty outside of any trace, and what is none counts as empty."""
Checksum = Annotated[int, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_NAMES_PER_REQUEST)]


class Extent(NamedTuple):
    """A contiguous run of bytes in the segment."""

    offset: int
    length: int


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of every message; the tag is the class's name."""


# What the client sends --------------------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """First message of a connection.

    Parameters
    ----------
    version
        The client's ``PROTOCOL_VERSION``; the node refuses what it does not speak.
    client
        Who this is, for operators: shown with leases and reservations. Unique to one client. A client that
        reconnects under the same name thereby declares that it no longer writes into slots of its earlier
        connections, also to a node that was restarted in between.
    writer
        Asks for a writable descriptor and for the right to reserve and commit.
    token
        Where the node asks for tokens: the client's.
    segment
        Name of the segment whose descriptor is wanted; empty for the one that ``bucket`` is in.
    bucket
        Bucket that this client will use; empty, where no segment is named either, for the node's first segment.
    """

    version: int
    client: Name
    writer: bool = False
    token: Annotated[str, msgspec.Meta(max_length=MAX_TOKEN_CHARACTERS)] = ""
    segment: Annotated[str, msgspec.Meta(max_length=MAX_NAME_BYTES)] = ""
    bucket: Annotated[str, msgspec.Meta(max_length=MAX_NAME_BYTES)] = ""

    def __repr__(self) -> str:  # goes into logs and messages, where a token must not
        return f"Hello(version={self.version}, client={self.client!r}, writer={self.writer})"


class PrefixLease(Message, frozen=True):
    """Lease the longest leading run of committed objects.

    ``names`` come in groups of ``group_size`` (the ranks' shards of one block); the run ends before the first group
    that is not complete. One lease, one TTL for the whole run. With ``across_gaps`` it goes on behind such a group, for
    callers whose names are no prefix; ``Leased.places`` then says what was there. Where the run ends at objects that
    are being written, their commits are waited for, ``wait_s`` in all (not across gaps): 0 takes what is there.

    Where the run ends at objects that the node has not, it asks the tiers below it, if it has any, and waits for what
    comes from there as it waits for a writer. ``prefill_s`` is how long the client would take to compute what the first
    group holds, 0 where it does not know, and ``prefill_growth_s`` how much longer each further one takes than the one
    before it: what would take longer to fetch is not fetched.
    """

    id: int
    bucket: Name
    names: Names
    ttl_s: Seconds
    group_size: Count = 1
    across_gaps: bool = False
    wait_s: Wait = 0.0
    anchor: Anchor = ""
    prefill_s: Wait = 0.0
    prefill_growth_s: Wait = 0.0
    request_id: RequestId = ""
    traceparent: Traceparent = ""


class Renew(Message, frozen=True):
    """Set a lease's remaining time to ``ttl_s`` again."""

    id: int
    lease: str
    ttl_s: Seconds


class Release(Message, frozen=True):
    """Give back objects ``start`` to ``stop`` (exclusive; ``None``: to the end) of a lease; idempotent."""

    id: int
    lease: str
    start: Index = 0
    stop: Index | None = None


class Reserve(Message, frozen=True):
    """Allocate a slot for each name and hold the names, so that nobody else writes them meanwhile.

    Where others are writing all the names that are free, the client stands in line for them, for up to ``wait_s`` and
    in the order of arrival: when a writer commits, the outcome is ``EXISTS``; when it gives up, the next in line gets a
    slot. Nobody waits while holding slots of the same request: the reply comes with the first slots, or when all is
    known.
    """

    id: int
    bucket: Name
    names: Names
    sizes: Annotated[list[Size], msgspec.Meta(max_length=MAX_NAMES_PER_REQUEST)]
    wait_s: Wait = 0.0


class Grant(Message, frozen=True):
    """Allocate up to ``count`` slots of ``size`` bytes ahead of need; they get their names on commit."""

    id: int
    size: Size
    count: Count


class CommitEntry(msgspec.Struct, frozen=True, array_like=True):
    """A slot whose bytes are whole: ``size`` may be smaller than a granted slot; ``checksum`` is XXH3-64.

    ``anchor`` is that of the prefix that the object is of: one commit may hold blocks of several.
    """

    slot: int
    name: Name
    size: Size
    checksum: Checksum
    anchor: Anchor = ""


class Commit(Message, frozen=True):
    """Publish written slots under their names. Entries succeed or fail one by one."""

    id: int
    bucket: Name
    entries: Annotated[list[CommitEntry], msgspec.Meta(max_length=MAX_NAMES_PER_REQUEST)]
    request_id: RequestId = ""
    traceparent: Traceparent = ""


class Abort(Message, frozen=True):
    """Give slots back. The client promises that nothing writes into them any more."""

    id: int
    slots: Annotated[list[int], msgspec.Meta(max_length=MAX_NAMES_PER_REQUEST)]


class Suspect(Message, frozen=True):
    """A reader found bytes that do not match the checksum; the node verifies for itself and drops the object."""

    id: int
    bucket: Name
    name: Name


class Delete(Message, frozen=True):
    """Remove committed objects; leased ones disappear from lookups now, their pages come back after the lease."""

    id: int
    bucket: Name
    names: Names


class Describe(Message, frozen=True):
    """Ask for the node's statistics."""

    id: int


class Introduce(Message, frozen=True):
    """Say which objects this client, an engine, reads for a prompt; it holds until it is said anew, or the client ends.

    Whoever routes prompts to engines computes from it, and a prompt's tokens, the names of the prompt's objects. The
    fields are those of :class:`~tierline.wire.kv_events.EngineJoined`, in which the node publishes them.
    """

    id: int
    bucket: Name
    models: Annotated[list[Name], msgspec.Meta(max_length=MOST_ENTRIES)]
    fingerprint: Name
    epoch: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    chunk_tokens: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    shards: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=MOST_ENTRIES)]
    adapters: Annotated[dict[Name, Name], msgspec.Meta(max_length=MOST_ENTRIES)] = {}
    saves: Annotated[dict[Name, Share], msgspec.Meta(max_length=MOST_ENTRIES)] = {}


# What the node answers --------------------------------------------------------------------------------------------


class Welcome(Message, frozen=True):
    """The node accepts the connection; the segment's descriptor travels with this message.

    ``epoch`` differs after every start of the node; slots and leases of another epoch mean nothing. ``has_tiers``: what
    the node has not may come from a tier below it, so a lease that waits may get more than one that does not.
    """

    version: int
    node: str
    epoch: int
    segment_bytes: int
    page_bytes: int
    max_ttl_s: float
    has_tiers: bool = False


class LeasedObject(msgspec.Struct, frozen=True, array_like=True):
    """One object under lease: its bytes are the extents in order; ``checksum`` is its writer's XXH3-64."""

    size: int
    checksum: int
    extents: list[Extent]


class Leased(Message, frozen=True):
    """Answer to :class:`PrefixLease`: ``lease`` is empty when nothing was there.

    ``places`` has the index in ``names`` of each object where the request went across gaps; else it is empty, for the
    objects are those of the leading names. ``sources`` counts those objects that came from below the node for this
    request, by who answered: a tier's name, or ``tieredstorage:`` and a node's; the others were in the node's memory.
    """

    id: int
    lease: str
    objects: list[LeasedObject]
    ttl_s: float
    places: list[int] = []
    sources: dict[str, int] = {}


class Slot(msgspec.Struct, frozen=True, array_like=True):
    """Pages that the client may write: the object's bytes go into the extents in order."""

    slot: int
    size: int
    extents: list[Extent]


class Refusal(StrEnum):
    """Why a name got no slot, or a slot was not published."""

    EXISTS = "exists"
    BEING_WRITTEN = "being_written"
    NO_SPACE = "no_space"
    TOO_LARGE = "too_large"
    UNKNOWN_SLOT = "unknown_slot"


class Reserved(Message, frozen=True):
    """Answer to :class:`Reserve`: for each name a slot or a reason."""

    id: int
    outcomes: list[Slot | Refusal]


class Granted(Message, frozen=True):
    """Answer to :class:`Grant`: as many slots as could be had, perhaps none."""

    id: int
    slots: list[Slot]


class Committed(Message, frozen=True):
    """Answer to :class:`Commit`: ``None`` where stored, else why not.

    A refused slot stays with the client, to be used again or aborted, whatever the reason; but for ``UNKNOWN_SLOT``,
    which names none of its slots.
    """

    id: int
    outcomes: list[Refusal | None]


class Done(Message, frozen=True):
    """The request was carried out; ``count`` says on how many objects, where that has a meaning."""

    id: int
    count: int = 0


class Description(Message, frozen=True):
    """Answer to :class:`Describe`: the document of ``GET /v1/stats``, JSON-encoded."""

    id: int
    stats: bytes


class Failed(Message, frozen=True):
    """The request was refused as a whole: ``code`` is the error class's name, ``message`` is for people."""

    id: int
    code: str
    message: str


Request = PrefixLease | Renew | Release | Reserve | Grant | Commit | Abort | Suspect | Delete | Describe | Introduce
"""What a client may send once it has been welcomed; every one carries an ``id`` and has exactly one reply."""

Reply = Welcome | Leased | Reserved | Granted | Committed | Done | Description | Failed
