"""Messages of a bulk connection between two nodes, on which one fetches objects from the other; pure, no sockets.

Who fetches sends frames (:mod:`tierline.wire.framing`) of :class:`Fetch` and, when what it asked for has come,
:class:`Received`; it may ask for the next before that. Who holds answers each ``Fetch`` with one head for each of its
objects, in their order, and behind a head that says :attr:`Outcome.SENT` the object's bytes. Between ``Fetch`` and
``Received`` the objects are leased; a holder takes no more than :data:`MAX_OPEN_FETCHES` that are not received.
"""

import struct
from enum import IntEnum
from typing import Annotated, NamedTuple

import msgspec

from tierline.errors import WireError
from tierline.wire.messages import Message, Name, RequestId, Traceparent

MAX_OBJECTS_PER_FETCH = 64
MAX_OPEN_FETCHES = 4
_HEAD = struct.Struct("<QIIQQ")
HEAD_BYTES = _HEAD.size

Number = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """An object, and what it has to be: of another size or checksum it is another one, and not there."""

    bucket: Name
    name: Name
    size: Annotated[int, msgspec.Meta(ge=1, lt=2**48)]
    checksum: Annotated[int, msgspec.Meta(ge=0)]


class Fetch(Message, frozen=True):
    """Send me these objects. ``number`` counts from 0 on each connection."""

    number: Number
    objects: Annotated[list[Asked], msgspec.Meta(min_length=1, max_length=MAX_OBJECTS_PER_FETCH)]
    request_id: RequestId = ""
    traceparent: Traceparent = ""


class Received(Message, frozen=True):
    """All of a ``Fetch`` has come, and may go.

    Parameters
    ----------
    number
        Of the oldest ``Fetch`` that is not received yet.
    wrong
        Places in it of the objects whose bytes did not match their checksum.
    """

    number: Number
    wrong: Annotated[list[Number], msgspec.Meta(max_length=MAX_OBJECTS_PER_FETCH)]


BulkRequest = Fetch | Received


class Outcome(IntEnum):
    """What becomes of an object that was asked for."""

    SENT = 0
    MISSING = 1
    BUSY = 2
    """It is there, and cannot be leased now."""


class ObjectHead(NamedTuple):
    """What comes before an object's bytes, or in their place.

    Parameters
    ----------
    number, place
        Of the ``Fetch``, and the object's place in it.
    size, checksum
        Of the object; 0 where it is not sent.
    """

    number: int
    place: int
    outcome: Outcome
    size: int = 0
    checksum: int = 0

    def pack(self) -> bytes:
        """Return its bytes."""
        return _HEAD.pack(*self)


def unpack_head(data: bytes) -> ObjectHead:
    """Return the head that ``HEAD_BYTES`` bytes are; raises ``WireError`` where they are none."""
    number, place, outcome, size, checksum = _HEAD.unpack(data)
    if outcome not in (Outcome.SENT, Outcome.MISSING, Outcome.BUSY):
        raise WireError(f"an outcome {outcome} of a transfer; allowed: 0 to 2")
    return ObjectHead(number, place, Outcome(outcome), size, checksum)
