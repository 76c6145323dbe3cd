"""KV events in the encoding of vLLM 0.32 (``vllm/distributed/kv_events.py``): batches are arrays, events are maps.

A message has three frames: topic, sequence number (8 bytes, big-endian, from 0), msgpack payload. There is one batch
for a step that changed the cache, and none otherwise. The replay socket is not modelled.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from tierline.errors import UsageError


class Event(msgspec.Struct, omit_defaults=True, tag=True, frozen=True):
    """Base of the events; the tag is the class's name, under ``type``."""


class BlockStored(Event, frozen=True):
    """A run of blocks of one request is now in the cache."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[str, ...] | None]
    group_idx: int | None = None


class BlockRemoved(Event, frozen=True):
    """A block was evicted."""

    block_hashes: list[int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(Event, frozen=True):
    """The whole cache was emptied."""


class EventBatch(msgspec.Struct, array_like=True, omit_defaults=True, frozen=True):
    """What one step changed, in order; ``ts`` is the wall clock in seconds."""

    ts: float
    events: Sequence[Event]
    data_parallel_rank: int | None = None


class Publisher(Protocol):
    """Where batches go."""

    def publish(self, batch: EventBatch) -> None:
        """Send ``batch``; never blocks."""

    def close(self) -> None:
        """Stop sending."""


class ZmqPublisher:
    """A PUB socket that binds where vLLM's would (``*``, ``ipc://``) and connects elsewhere.

    Raises
    ------
    UsageError
        When pyzmq is not installed or the endpoint cannot be used.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            import zmq
        except ImportError:
            raise UsageError("--kv-events-endpoint needs pyzmq: pip install 'tierline[simulate]'") from None
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._sequence = 0
        binds = "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://"))
        try:
            (self._socket.bind if binds else self._socket.connect)(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise UsageError(f"--kv-events-endpoint: cannot use {endpoint!r}: {error}") from None

    def publish(self, batch: EventBatch) -> None:
        """Send ``batch`` to whoever listens; a PUB socket drops what a slow subscriber does not take."""
        self._socket.send_multipart([b"", self._sequence.to_bytes(8, "big"), msgspec.msgpack.encode(batch)])
        self._sequence += 1

    def close(self) -> None:
        """Close the socket; what was not sent is dropped."""
        self._socket.close()
        self._context.term()
