"""What a router's processes, and routers, tell each other: frames, and the documents in them.

A frame is its payload's length (4 bytes, little-endian), its kind (1 byte) and the payload, MessagePack by position.
What does not decode, or is longer than its kind may be, ends the connection it came on.

Endpoints are named by :func:`~tierline.router.workers.board.endpoint_key`, strategies by a hash of their names, prompts
by the chained hashes of their blocks (:mod:`tierline.router.prompt`): no text of a request is in any message.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Annotated

import msgspec
import xxhash
from msgspec import Meta

from tierline.errors import WireError
from tierline.router.specs import MAX_ENDPOINTS

_HEAD = struct.Struct("<IB")
HEAD_BYTES = _HEAD.size
MAX_PAYLOAD_BYTES = 64 * 1024**2
"""Of what a router's own processes tell each other; metrics and lists of decisions are the largest."""
MAX_BLOCKS = 8192
"""Of one prompt, leading ones: 2 MiB of text."""
MAX_ENTRIES = 4096
MAX_LOADS = 4 * MAX_ENDPOINTS
MAX_KNOWLEDGE_BYTES = 1024**2
"""Payload of one :class:`Knowledge`."""

_Key = Annotated[int, Meta(gt=0, le=2**63 - 1)]
_Count = Annotated[int, Meta(ge=0, le=2**40)]


class Kind(IntEnum):
    """What a frame is."""

    BEGIN = 1
    """Supervisor to worker, first: a :class:`Begin`."""
    READY = 2
    """Worker to supervisor: it could serve."""
    SERVE = 3
    """Supervisor to worker: all can, so do."""
    ACCEPT = 4
    """Supervisor to worker: an :class:`Accept`."""
    ASK = 5
    """A :class:`Question`, either way."""
    TELL = 6
    """An :class:`Answer`, the other way."""
    KNOWLEDGE = 7
    """A :class:`Knowledge`, to be passed on."""
    SPENT = 8
    """A :class:`Spendings`, to be passed on to the other workers."""
    SETTLED = 9
    """Worker to supervisor: URL of an endpoint about which a file has changed its mind since an operator did."""
    LOADS = 10
    """Router to router: a :class:`Loads`."""
    CAUGHT_UP = 11
    """Router to router: all that was known before you asked has been told."""
    LEAVING = 12
    """Worker to supervisor: it takes nothing new, and ends when its running requests have."""


class Begin(msgspec.Struct, frozen=True, array_like=True):
    """What a worker needs to begin."""

    config: bytes
    """As JSON."""
    session_key: bytes
    """For digests of sessions' names, which all workers show alike."""


class Accept(msgspec.Struct, frozen=True, array_like=True):
    """Whose clients a worker accepts beside its own: those of workers that are being started again."""

    workers: list[int]


class Question(msgspec.Struct, frozen=True, array_like=True):
    """Something that has an answer."""

    id: int
    about: str
    """``endpoints``, ``affinity``, ``decisions``, ``metrics``, or ``change``."""
    content: bytes
    """What the asker itself would answer; the change."""


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """An answer to the question with that id."""

    id: int
    content: bytes


class Change(msgspec.Struct, frozen=True, array_like=True):
    """What an operator wants."""

    verb: str
    """``add``, ``drain`` or ``remove`` an endpoint, forget what it had (``reset``); turn affinity ``off`` or ``on``."""
    about: str
    """The endpoint's URL; the model's name."""
    spec: bytes = b""
    """JSON, of one that is added."""


class Placed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A prompt went to an endpoint, or came back from it."""

    endpoint: _Key
    blocks: Annotated[bytes, Meta(max_length=8 * MAX_BLOCKS)]
    """Hashes of 8 bytes, little-endian."""
    is_withdrawn: bool = False
    """These, the end of a prompt, were not served there after all."""


class Spilled(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A session is at an endpoint that is not its home, or (0) at home again."""

    session: Annotated[int, Meta(ge=0)]
    endpoint: Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Knowledge(msgspec.Struct, frozen=True, array_like=True):
    """What one strategy's choices were, the oldest first."""

    strategy: _Key
    placed: Annotated[list[Placed], Meta(max_length=MAX_ENTRIES)]
    spilled: Annotated[list[Spilled], Meta(max_length=MAX_ENTRIES)]


class Spendings(msgspec.Struct, frozen=True, array_like=True):
    """What holders of API keys have spent."""

    entries: list[tuple[bytes, int, int]]
    """SHA-256 of a key, requests, tokens."""


class LoadEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a router has at one endpoint."""

    endpoint: _Key
    inflight: _Count
    queued_tokens: _Count


class Loads(msgspec.Struct, frozen=True, array_like=True):
    """All that a router has at endpoints now; it replaces what was said before."""

    entries: Annotated[list[LoadEntry], Meta(max_length=MAX_LOADS)]


encode = msgspec.msgpack.Encoder().encode
decode_begin = msgspec.msgpack.Decoder(Begin).decode
decode_accept = msgspec.msgpack.Decoder(Accept).decode
decode_question = msgspec.msgpack.Decoder(Question).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
decode_change = msgspec.msgpack.Decoder(Change).decode
decode_spendings = msgspec.msgpack.Decoder(Spendings).decode
_decode_knowledge = msgspec.msgpack.Decoder(Knowledge).decode
_decode_loads = msgspec.msgpack.Decoder(Loads).decode


def strategy_key(model: str, place: int, name: str) -> int:
    """Return a strategy's name in messages: of a model (empty: all without a rule), its first or the one on trial."""
    return xxhash.xxh3_64_intdigest(f"{model}\0{place}\0{name}".encode()) >> 1 or 1


def decode_knowledge(payload: bytes) -> Knowledge:
    """Return what a payload says.

    Raises
    ------
    WireError
        It says nothing, or what cannot be.
    """
    try:
        knowledge = _decode_knowledge(payload)
    except msgspec.DecodeError as error:
        raise WireError(f"placements: {error}") from error
    if any(len(placed.blocks) % 8 for placed in knowledge.placed):
        raise WireError("placements: a hash that is cut off")
    return knowledge


def decode_loads(payload: bytes) -> Loads:
    """Return what a payload says; raises as :func:`decode_knowledge`."""
    try:
        loads = _decode_loads(payload)
    except msgspec.DecodeError as error:
        raise WireError(f"loads: {error}") from error
    if len({entry.endpoint for entry in loads.entries}) < len(loads.entries):
        raise WireError("loads: an endpoint twice")
    return loads


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return _HEAD.pack(len(payload), kind) + payload


class FrameReader:
    """Takes a stream of frames apart, in whatever pieces it comes.

    Parameters
    ----------
    max_bytes
        Largest payload.
    """

    def __init__(self, max_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Yield the frames that are whole now.

        Raises
        ------
        WireError
            A frame is longer than it may be, or of no kind.
        """
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= HEAD_BYTES:
                length, kind = _HEAD.unpack_from(buffer, at)
                if length > self._max_bytes:
                    raise WireError(f"a frame of {length} bytes; allowed: {self._max_bytes}")
                end = at + HEAD_BYTES + length
                if len(buffer) < end:
                    break
                try:
                    known = Kind(kind)
                except ValueError:
                    raise WireError(f"a frame of kind {kind}, which there is not") from None
                payload = bytes(memoryview(buffer)[at + HEAD_BYTES : end])
                at = end
                yield known, payload
        finally:
            del buffer[:at]
