"""KV events as node stores publish them: vLLM's, and our own that say who reads what is stored, and who shares it.

A store knows names and no tokens. So of a block it says the hash in its object's name, and in ``frame`` what stands
around it: bucket, and the parts of the name before and behind. What an engine would read for a prompt follows from what
it told the store of itself (:class:`EngineJoined`), and nothing but the prompt's tokens is needed beside it.
The encoding is that of vLLM 0.32: a batch is an array, its events are maps with their type under ``type``.
"""

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import msgspec

MEDIUM = "CPU"
"""vLLM's word for the memory of the host."""
NUMBER_BYTES = 8
"""A message has three frames: topic, number (big-endian), payload. A replay has an empty one before them."""
END_OF_REPLAY = b"\xff" * NUMBER_BYTES

Frame: TypeAlias = tuple[str, str, str]
"""Bucket of an object, and what stands before and behind the hash in its name (``tierline.prefix.NameFrame``)."""
Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Text = Annotated[str, msgspec.Meta(max_length=1024)]
MOST_ENTRIES = 4096


class BlockStored(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Objects are committed; what vLLM says besides of a block, which a store does not know, is empty."""

    block_hashes: list[bytes]
    parent_block_hash: None = None
    token_ids: tuple[()] = ()
    block_size: int = 0
    lora_id: None = None
    medium: str = MEDIUM
    lora_name: None = None
    frame: Frame


class BlockRemoved(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Objects are gone."""

    block_hashes: list[bytes]
    medium: str = MEDIUM
    frame: Frame


class AllBlocksCleared(msgspec.Struct, frozen=True, tag=True):
    """What was told before of objects holds no more: what follows is all."""


class EngineJoined(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """An engine reads this store, or reads it in another way than it said before.

    Parameters
    ----------
    engine
        Its connection to the store.
    bucket
        Where its objects are.
    models
        Names that it serves its model under.
    fingerprint, epoch
        Of :class:`~tierline.prefix.PrefixIdentity`.
    chunk_tokens
        Tokens of one object.
    shards
        Suffixes of the objects of one block. It can be read only where all of them are.
    adapters
        Fingerprints of the adapters that it has used, by the names that they are served under.
    saves
        What a token saves the engine that it reads instead of computing it, by the tier that it is read from (``host``:
        the store's memory, ``shared``: what is below it), from 0 to 1; only what was measured.
    """

    engine: _Text
    bucket: _Text
    models: Annotated[list[_Text], msgspec.Meta(max_length=MOST_ENTRIES)]
    fingerprint: _Text
    epoch: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    chunk_tokens: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    shards: Annotated[list[_Text], msgspec.Meta(min_length=1, max_length=MOST_ENTRIES)]
    adapters: Annotated[dict[_Text, _Text], msgspec.Meta(max_length=MOST_ENTRIES)] = {}
    saves: Annotated[dict[_Text, Share], msgspec.Meta(max_length=MOST_ENTRIES)] = {}


class EngineLeft(msgspec.Struct, frozen=True, tag=True):
    """An engine's connection to the store has ended."""

    engine: _Text


class PoolJoined(msgspec.Struct, frozen=True, tag=True):
    """The store is in a pool: what it holds can be fetched by every other store that says the same name."""

    pool: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class PoolLeft(msgspec.Struct, frozen=True, tag=True):
    """The store is in no pool any more: what it holds is its own engines' only."""


StoreEvent = BlockStored | BlockRemoved | AllBlocksCleared | EngineJoined | EngineLeft | PoolJoined | PoolLeft


class EventBatch(msgspec.Struct, frozen=True, array_like=True):
    """What one message tells; ``ts`` is the wall clock in seconds."""

    ts: float
    events: Sequence[StoreEvent]
