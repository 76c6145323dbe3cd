"""What LMCache's workers tell their controller, read, and what they are answered. Pure; whatever arrives is untrusted.

A message is a msgpack map (JSON from other programs) with the name of its class under ``type``
(``lmcache/v1/cache_controller/message.py``). Workers push what changes, several messages in one multipart message, and
ask for what has an answer. Changes come in batches with numbers (:class:`BatchedKVOperationMsg`); in early versions
one by one and without (:class:`KVAdmitMsg`, :class:`KVEvictMsg`), and registrations and heartbeats are pushed,
too. A message of another type is counted and skipped.
"""

from enum import Enum
from typing import Annotated

import msgspec

from tierline.errors import WireError

Name = Annotated[str, msgspec.Meta(max_length=1024)]
Number = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
MAX_BATCHES = 65_536
"""Of one full sync; each has 2,000 chunks."""


class UnreadableMessage(WireError):  # noqa: N818  (the name states the condition)
    """A frame that is no message of a worker."""


class OpType(Enum):
    """What became of a chunk."""

    ADMIT = "admit"
    EVICT = "evict"


class _FromWorker(msgspec.Struct, frozen=True, tag=True):
    """Base: which worker of which instance speaks."""

    instance_id: Name
    worker_id: Number


class RegisterMsg(_FromWorker, frozen=True):
    """The worker has just begun, and holds nothing."""

    ip: Name = ""


class HeartbeatMsg(_FromWorker, frozen=True):
    """The worker lives."""

    ip: Name = ""


class DeRegisterMsg(_FromWorker, frozen=True):
    """The worker ends."""


class KVAdmitMsg(_FromWorker, frozen=True):
    """One chunk is now held."""

    key: int
    location: Name
    seq_num: Number | None = None


class KVEvictMsg(_FromWorker, frozen=True):
    """One chunk is no longer held."""

    key: int
    location: Name
    seq_num: Number | None = None


class KVOpEvent(msgspec.Struct, frozen=True, gc=False):
    """One change of a batch; numbers follow each other, for each worker and location, from 0."""

    op_type: OpType
    key: int
    seq_num: Number


class BatchedKVOperationMsg(_FromWorker, frozen=True):
    """Changes, in their order."""

    location: Name
    operations: list[KVOpEvent]


class FullSyncStartMsg(_FromWorker, frozen=True):
    """The worker will tell all that it holds at ``location``, in ``batch_count`` batches."""

    location: Name
    sync_id: Name
    total_keys: Number
    batch_count: Annotated[int, msgspec.Meta(ge=0, le=MAX_BATCHES)]


class FullSyncBatchMsg(_FromWorker, frozen=True):
    """A part of it."""

    location: Name
    sync_id: Name
    batch_id: Number
    keys: list[int]


class FullSyncEndMsg(_FromWorker, frozen=True):
    """That was all."""

    location: Name
    sync_id: Name


class FullSyncStatusMsg(_FromWorker, frozen=True):
    """Asks whether all of it came."""

    sync_id: Name


class BatchedP2PLookupMsg(_FromWorker, frozen=True):
    """Asks which other instance holds chunks, to fetch them from there."""


Pushed = (
    RegisterMsg
    | HeartbeatMsg
    | DeRegisterMsg
    | KVAdmitMsg
    | KVEvictMsg
    | BatchedKVOperationMsg
    | FullSyncBatchMsg
    | FullSyncEndMsg
)
FromWorker = Pushed | FullSyncStartMsg | FullSyncStatusMsg | BatchedP2PLookupMsg

_KINDS = frozenset(kind.__name__ for kind in FromWorker.__args__)


class _Typed(msgspec.Struct, gc=False):
    type: str = ""


_FORMS = {
    is_json: (codec.Decoder(_Typed).decode, codec.Decoder(FromWorker).decode)
    for is_json, codec in ((False, msgspec.msgpack), (True, msgspec.json))
}


def decode(frame: bytes) -> FromWorker | None:
    """Return the message in a frame; ``None`` when its type is unknown.

    Raises
    ------
    UnreadableMessage
        It is none, or one of a known type has a field of a wrong type.
    """
    decode_type, decode_message = _FORMS[frame.startswith(b"{")]
    try:
        if decode_type(frame).type not in _KINDS:
            return None
        return decode_message(frame)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableMessage(f"no message of an LMCache worker: {error}") from None


# Answers --------------------------------------------------------------------------------------------------------------


class RegisterRetMsg(msgspec.Struct, frozen=True, tag=True):
    """Where heartbeats go, ``host:port``, is under ``heartbeat_url``."""

    extra_config: dict[str, str]


class FullSyncCommand(msgspec.Struct, frozen=True, tag="full_sync", tag_field="command_type"):
    """Tell all that you hold."""

    reason: str


class HeartbeatRetMsg(msgspec.Struct, frozen=True, tag=True):
    """What the worker is to do."""

    commands: list[FullSyncCommand] = []


class FullSyncStartRetMsg(msgspec.Struct, frozen=True, tag=True):
    """Whether the worker may begin."""

    sync_id: str
    accepted: bool
    error_msg: str | None = None


class FullSyncStatusRetMsg(msgspec.Struct, frozen=True, tag=True):
    """What is missing. A worker stores nothing new until it is told ``can_exit_freeze``."""

    sync_id: str
    is_complete: bool
    global_progress: float
    can_exit_freeze: bool
    missing_batches: list[int]


class BatchedP2PLookupRetMsg(msgspec.Struct, frozen=True, tag=True):
    """Who holds the chunks, where, how many, and how he is reached."""

    layout_info: list[tuple[str, str, int, str]]


class ErrorMsg(msgspec.Struct, frozen=True, tag=True):
    """The question could not be answered."""

    error: str


Answer = (
    RegisterRetMsg | HeartbeatRetMsg | FullSyncStartRetMsg | FullSyncStatusRetMsg | BatchedP2PLookupRetMsg | ErrorMsg
)
encode = msgspec.msgpack.Encoder().encode
