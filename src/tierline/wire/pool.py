"""Messages between the nodes of a pool on their control connections: who is well, what is held where.

A frame is that of :mod:`tierline.wire.framing`. Each node connects to every other, and a connection has two sides: who
connected says a :data:`PeerRequest`, who was connected to answers with a :data:`PeerReply` of the same ``id``.
Both have proved who they are before the first frame (:mod:`tierline.pool.handshake`).

Objects are said by *digest*, 16 bytes of the text of their key. It is no proof of anything: who fetches an object says
its whole name, and a digest that two names shared would be a miss. Every list is bounded, and so is a frame. Nodes of
two versions may be in one pool: a field may only be appended, with a default, and one that is not known is skipped.
"""

from typing import Annotated

import msgspec

from tierline.wire.messages import Message, Name, RequestId, Traceparent

SLOTS = 4096
"""Of the directory: few enough that a node's share is a table, many enough that hundreds of shares are even."""
DIGEST_BYTES = 16
MAX_OBJECTS_PER_MESSAGE = 4096
MAX_ANNOUNCED_PER_MESSAGE = 1024
MAX_KEPT_PER_MESSAGE = 1024
MAX_HOLDERS_PER_OBJECT = 4
"""That an answer names; of more, which ones are left to chance, so that all of them are asked."""
_MAX_COPIES = MAX_HOLDERS_PER_OBJECT * MAX_OBJECTS_PER_MESSAGE

Slot = Annotated[int, msgspec.Meta(ge=0, lt=SLOTS)]
Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
Digests = Annotated[list[Digest], msgspec.Meta(max_length=MAX_OBJECTS_PER_MESSAGE)]
Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
ObjectBytes = Annotated[int, msgspec.Meta(ge=1, lt=2**40)]
Xxh3 = Annotated[int, msgspec.Meta(ge=0)]


class ObjectHeld(msgspec.Struct, frozen=True, array_like=True):
    """An object that a node has now, and the slot of the prefix that it is of."""

    slot: Slot
    digest: Digest
    size: ObjectBytes
    checksum: Xxh3


class ObjectGone(msgspec.Struct, frozen=True, array_like=True):
    """An object that a node has no more."""

    slot: Slot
    digest: Digest


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Objects of one prefix in their order: what is held of them is of use up to the first that is missing."""

    slot: Slot
    digests: Digests


class ObjectToKeep(msgspec.Struct, frozen=True, array_like=True):
    """An object that another is asked to hold too."""

    bucket: Name
    name: Name
    slot: Slot
    size: ObjectBytes
    checksum: Xxh3


# What a node says on the connections that it made -----------------------------------------------------------------


class Ping(Message, frozen=True):
    """Are you well? Said each second; who hears nothing for three seconds takes the other for dead."""

    id: Number


class Announce(Message, frozen=True):
    """What has changed with the asker's objects in slots that are at home with the one who is asked."""

    id: Number
    held: Annotated[list[ObjectHeld], msgspec.Meta(max_length=MAX_ANNOUNCED_PER_MESSAGE)]
    gone: Annotated[list[ObjectGone], msgspec.Meta(max_length=MAX_ANNOUNCED_PER_MESSAGE)]


class Complete(Message, frozen=True):
    """All is announced again on this connection: what was announced on earlier ones is void."""


class Lookup(Message, frozen=True):
    """Who holds the objects of these runs?"""

    id: Number
    runs: Annotated[list[Run], msgspec.Meta(max_length=MAX_OBJECTS_PER_MESSAGE)]


class Keep(Message, frozen=True):
    """Please fetch these objects from me, and keep them as if they were yours."""

    id: Number
    objects: Annotated[list[ObjectToKeep], msgspec.Meta(max_length=MAX_KEPT_PER_MESSAGE)]
    request_id: RequestId = ""
    traceparent: Traceparent = ""


PeerRequest = Ping | Announce | Complete | Lookup | Keep


# What is answered -------------------------------------------------------------------------------------------------


class Well(Message, frozen=True):
    """Answer to :class:`Ping`, and how the node is: what others need to choose between holders, and people to see.

    Parameters
    ----------
    sending
        Transfers that it is sending now.
    """

    id: Number
    sending: Number = 0
    objects: Number = 0
    used_bytes: Number = 0
    capacity_bytes: Number = 0
    directory_entries: Number = 0


class Announced(Message, frozen=True):
    """Answer to :class:`Announce`.

    Parameters
    ----------
    copies
        Places in ``held`` of the objects that another has announced before: the asker's are copies.
    """

    id: Number
    copies: Annotated[list[Number], msgspec.Meta(max_length=MAX_ANNOUNCED_PER_MESSAGE)]


class Entrusted(Message, frozen=True):
    """Said without being asked: who announced these objects first has them no more; the asker's are no copies now."""

    digests: Digests


class Holder(msgspec.Struct, frozen=True, array_like=True):
    """A node as it was when it announced an object."""

    name: Name
    epoch: Number


class RunFound(msgspec.Struct, frozen=True, array_like=True):
    """The leading objects of a run that somebody holds, in columns, for there may be thousands.

    Parameters
    ----------
    copies
        How many copies of each object are named.
    holders, sizes, checksums
        Of all copies, the first object's first; ``holders`` are places in :attr:`Located.holders`.
    """

    copies: Annotated[
        list[Annotated[int, msgspec.Meta(ge=1, le=MAX_HOLDERS_PER_OBJECT)]],
        msgspec.Meta(max_length=MAX_OBJECTS_PER_MESSAGE),
    ]
    holders: Annotated[list[Number], msgspec.Meta(max_length=_MAX_COPIES)]
    sizes: Annotated[list[ObjectBytes], msgspec.Meta(max_length=_MAX_COPIES)]
    checksums: Annotated[list[Xxh3], msgspec.Meta(max_length=_MAX_COPIES)]


class Located(Message, frozen=True):
    """Answer to :class:`Lookup`: what was found of each run."""

    id: Number
    holders: Annotated[list[Holder], msgspec.Meta(max_length=_MAX_COPIES)]
    runs: Annotated[list[RunFound], msgspec.Meta(max_length=MAX_OBJECTS_PER_MESSAGE)]


class Keeping(Message, frozen=True):
    """Answer to :class:`Keep`: which of them the node holds now."""

    id: Number
    kept: Annotated[list[bool], msgspec.Meta(max_length=MAX_KEPT_PER_MESSAGE)]


PeerReply = Well | Announced | Entrusted | Located | Keeping
