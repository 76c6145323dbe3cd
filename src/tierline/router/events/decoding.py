"""KV event batches, vLLM's in every encoding that it ever had, and our node stores'. Pure; all of it is untrusted.

A batch is a msgpack array ``[ts, events, data_parallel_rank?]``. An event is an array that begins with its type up to
vLLM 0.23, and a map with its type under ``type`` from 0.24 on (``vllm/distributed/kv_events.py``). Fields came with
time: ``medium`` (0.11), ``lora_name`` and ``extra_keys`` (0.19), ``group_idx`` (0.20), the kind of the group (0.25),
``locality`` (0.29). Stores write maps, with a field and events of their own (:mod:`tierline.wire.kv_events`). A field
that is missing has its default, one that is unknown is skipped, and an event of an unknown type is counted and skipped:
only what an event of a known type says wrongly makes a batch unreadable.
"""

from typing import Annotated, Any, NamedTuple, get_args

import msgspec

from tierline.errors import WireError
from tierline.wire.kv_events import EngineJoined, EngineLeft, Frame, PoolJoined, PoolLeft

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
BlockTokens = Annotated[int, msgspec.Meta(ge=0, le=65_536)]
BlockHash = int | Annotated[bytes, msgspec.Meta(max_length=64)]
"""An engine's name of a block: 64 bits, or the whole digest, as the engine is set up. What an index may hold is counted
in names, so they have a greatest length."""


class UnreadableBatch(WireError):  # noqa: N818  (the name states the condition)
    """A payload that is no batch of KV events; what its sender's cache holds is no longer known."""


class BlockStored(msgspec.Struct, frozen=True, gc=False, tag="BlockStored"):
    """A run of blocks, each the parent of the next, is now held.

    Parameters
    ----------
    block_hashes, parent_block_hash
        Their names, and that of the block before the first; ``None`` at the start of a prompt.
    token_ids, block_size
        The tokens of the run, and of one block. Both are empty in a *placeholder*: what is in the block was said when
        it was stored elsewhere.
    medium
        ``GPU`` (an engine's own cache, on CPUs too), ``CPU``, ``STORAGE``; ``None`` is ``GPU``.
    lora_id, lora_name
        The adapter; engines before 0.19 tell its number only.
    extra_keys
        For each block what else its hash is made of: adapter, images, the salt, embeddings.
    group_idx, kv_cache_spec_kind
        The KV-cache group that holds them, and the attention it serves.
    locality
        ``REMOTE`` for what other engines can reach, too.
    frame
        Of a store's objects: bucket, and what stands around the hashes in their names.
    """

    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None = None
    token_ids: list[TokenId] = []
    block_size: BlockTokens = 0
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[Any] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    frame: Frame | None = None


class BlockRemoved(msgspec.Struct, frozen=True, gc=False, tag="BlockRemoved"):
    """Blocks are no longer held; parameters as in :class:`BlockStored`."""

    block_hashes: list[BlockHash]
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None
    frame: Frame | None = None


class AllBlocksCleared(msgspec.Struct, frozen=True, gc=False, tag="AllBlocksCleared"):
    """The engine's own cache was emptied; of a store: what was told of objects before holds no more."""


Event = BlockStored | BlockRemoved | AllBlocksCleared | EngineJoined | EngineLeft | PoolJoined | PoolLeft


class EventBatch(NamedTuple):
    """What one step of an engine changed."""

    timestamp: float
    """The engine's wall clock, in seconds."""
    events: list[Event]
    rank: int | None
    """Of the engine's data-parallel replica."""
    unknown: int
    """Events of types that nobody here knows."""


def decode_batch(payload: bytes) -> EventBatch:
    """Return the batch in the third frame of a message.

    Raises
    ------
    UnreadableBatch
        When it is none, or an event of a known type has a field of a wrong type or size.
    """
    try:
        try:
            batch = _decode_maps(payload)
            timestamp, events, rank, unknown = batch.ts, batch.events, batch.data_parallel_rank, 0
        except msgspec.ValidationError:  # arrays, or something that is neither
            raw = _decode_raw(payload)
            read = [_decode_event(event) for event in raw.events]
            timestamp, rank = raw.ts, raw.data_parallel_rank
            events = [event for event in read if event is not None]
            unknown = len(read) - len(events)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableBatch(f"no batch of KV events: {error}") from None
    return EventBatch(timestamp, events, rank, unknown)


class _Maps(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[Event]
    data_parallel_rank: int | None = None


class _Raw(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


class _Typed(msgspec.Struct, gc=False):
    type: str = ""


_decode_maps = msgspec.msgpack.Decoder(_Maps).decode
_decode_raw = msgspec.msgpack.Decoder(_Raw).decode
_decode_map = msgspec.msgpack.Decoder(Event).decode
_decode_type = msgspec.msgpack.Decoder(_Typed).decode
_decode_array = msgspec.msgpack.Decoder(list[Any]).decode
_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}


def _decode_event(raw: msgspec.Raw) -> Event | None:
    """Return one event; ``None`` when its type is unknown."""
    if _is_map(raw):
        if _decode_type(raw).type not in _KINDS:
            return None
        return _decode_map(raw)  # type: ignore[no-any-return]
    fields = _decode_array(raw)
    if not fields or not isinstance(fields[0], str):
        raise msgspec.ValidationError("an event without a type")
    kind = _KINDS.get(fields[0])
    if kind is None:
        return None
    names = [name for name in kind.__struct_fields__ if name != "frame"]  # stores write maps
    return msgspec.convert(dict(zip(names, fields[1:], strict=False)) | {"type": fields[0]}, kind)


def _is_map(raw: msgspec.Raw) -> bool:
    """Whether msgpack's first byte says so: fixmap, map 16, map 32."""
    first = memoryview(raw)[0]
    return 0x80 <= first <= 0x8F or first in (0xDE, 0xDF)
