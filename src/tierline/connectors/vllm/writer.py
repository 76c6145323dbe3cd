"""The worker's own line to the node store: a thread that connects, stores chunks and reports corrupt ones.

Stores are a service to others and never hold the engine up: what cannot be stored at once is dropped and counted.
Chunks are written into slots granted ahead, so a store costs no round trip but its commit. A block that is about to
be overwritten is taken away from the stores by :meth:`NodeWriter.fence`.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass

import torch

from tierline.breaker import Breaker, Warnings
from tierline.client import NodeClient
from tierline.connectors.vllm.copy import ChunkCopier
from tierline.connectors.vllm.metrics import Counters
from tierline.connectors.vllm.plan import ChunkStore
from tierline.connectors.vllm.segment import PinnedRun, SegmentWords, pin
from tierline.errors import TierlineError, WireError
from tierline.prefix import Shard, object_name
from tierline.tracing.context import NOWHERE, Origin, working_for
from tierline.tracing.spans import Attributes, bucket_digest
from tierline.tracing.tracer import OpenSpan, Tracer
from tierline.wire.messages import CommitEntry, Refusal, Slot

MOST_WAITING_STORES = 256
MOST_GRANTED_SLOTS = 8
GRANTED_SEGMENT_SHARE = 1 / 32
"""Slots held ahead are room that nobody else has, so a small segment gives few of them."""
COMMIT_BATCH = 8
IDLE_S = 5.0
"""After this long without a store the granted slots are given back."""
RECENT_STORES = 8192
RECENT_S = 30.0
"""A chunk that was stored less than this long ago is not offered again: requests of one burst share prefixes."""
NO_ROOM_PAUSE_S = 1.0


@dataclass(slots=True, eq=False)
class _Store:
    chunk: ChunkStore
    after: object


@dataclass(frozen=True, slots=True)
class Attachment:
    """The segment as one start of the node store handed it over."""

    node_epoch: int
    words: SegmentWords


class NodeWriter:
    """Stores chunks in the background; its public methods may be called from any thread.

    Parameters
    ----------
    connect
        Opens a writer's connection; raises a ``TierlineError`` when it cannot.
    copier
        Copies blocks into the segment.
    shard
        This rank's shard.
    bucket
        The store's bucket.
    pinned_for
        The CUDA device whose driver the segment is registered with; ``None`` without one.
    breaker, warnings, counters
        Where trouble is judged, told and counted.
    tracer
        Who is told of what is stored for traced requests; ``None``: nobody.
    """

    def __init__(
        self,
        connect: Callable[[], NodeClient],
        copier: ChunkCopier,
        shard: Shard,
        bucket: str,
        pinned_for: torch.device | None,
        breaker: Breaker,
        warnings: Warnings,
        counters: Counters,
        tracer: Tracer | None = None,
    ) -> None:
        self._connect = connect
        self._copier = copier
        self._shard = shard
        self._bucket = bucket
        self._pinned_for = pinned_for
        self._breaker = breaker
        self._warnings = warnings
        self._counters = counters
        self._tracer = tracer
        self._changed = threading.Condition()
        # Guarded by _changed.
        self._waiting: deque[_Store] = deque()
        self._suspects: deque[str] = deque()
        self._copying: frozenset[int] = frozenset()
        self._attachment: Attachment | None = None
        self._wants_new_connection = True
        self._is_closing = False
        # The thread's own.
        self._client: NodeClient | None = None
        self._pinned: PinnedRun | None = None
        self._slots: list[Slot] = []
        self._written: list[tuple[CommitEntry, Slot]] = []
        self._written_for = NOWHERE
        self._saving: OpenSpan | None = None
        self._recent: OrderedDict[bytes, float] = OrderedDict()
        self._no_room_until = 0.0
        self._thread = threading.Thread(target=self._run, name="tierline-writer", daemon=True)
        self._thread.start()

    def store(self, chunks: Iterable[ChunkStore], after: object) -> None:
        """Store chunks whose computation is submitted; ``after`` is the copier's mark of that point."""
        with self._changed:
            for chunk in chunks:
                if len(self._waiting) < MOST_WAITING_STORES:
                    self._waiting.append(_Store(chunk, after))
                else:
                    self._counters.add("stores_dropped")
            self._changed.notify_all()

    def fence(self, block_ids: Set[int]) -> None:
        """Return once no store reads these blocks any more: waiting ones are dropped, the one being copied ends."""
        if not block_ids:
            return
        with self._changed:
            kept = [store for store in self._waiting if block_ids.isdisjoint(store.chunk.block_ids)]
            if len(kept) < len(self._waiting):
                self._counters.add("stores_dropped", len(self._waiting) - len(kept))
                self._waiting = deque(kept)
            self._changed.wait_for(lambda: block_ids.isdisjoint(self._copying))

    def suspect(self, chain: bytes, tenant: str) -> None:
        """Tell the node store that a tenant's chunk does not match its checksum."""
        with self._changed:
            self._suspects.append(object_name(chain, self._shard, tenant))
            self._changed.notify_all()

    def attachment(self, node_epoch: int, wait_s: float) -> Attachment | None:
        """Return the segment of a start of the node store, connecting anew where that is another than the last.

        Returns ``None`` when it cannot be had within ``wait_s``.
        """
        with self._changed:
            if not self._is_attached_to(node_epoch):
                self._wants_new_connection = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._is_attached_to(node_epoch), wait_s)
            return self._attachment if self._is_attached_to(node_epoch) else None

    def close(self) -> None:
        """End the thread and the connection; what waits is not stored."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout=5)

    def _is_attached_to(self, node_epoch: int) -> bool:
        return self._attachment is not None and self._attachment.node_epoch == node_epoch

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._has_work():
                    self._changed.wait(IDLE_S)
                if self._is_closing:
                    break
                has_work = self._has_work()
            try:
                self._work() if has_work else self._give_slots_back()
            except TierlineError as error:
                self._breaker.failed()
                self._warnings.warn("chunks are not stored", error)
                self._disconnect()
        self._disconnect()

    def _has_work(self) -> bool:
        return bool(self._waiting or self._suspects or self._wants_new_connection or self._is_closing)

    def _work(self) -> None:
        with self._changed:
            reconnects, self._wants_new_connection = self._wants_new_connection, False
            suspects, self._suspects = list(self._suspects), deque()
        if self._client is None or reconnects:
            if not self._breaker.allows():
                self._drop_waiting()
                return
            self._attach()
        assert self._client is not None
        for name in suspects:
            self._client.suspect(self._bucket, name)
        while self._waiting:
            # Round trips are made while no block is marked as being copied: a step of the engine may wait for those.
            self._refill_slots()
            if (store := self._next()) is not None:
                self._store(store)
            if store is None or len(self._written) >= COMMIT_BATCH:
                self._commit()
        self._commit()

    def _attach(self) -> None:
        self._disconnect()
        self._client = self._connect()
        words = SegmentWords(self._client.mapping, self._client.segment_bytes)
        with self._changed:
            self._attachment = Attachment(self._client.epoch, words)
            self._changed.notify_all()
        self._breaker.succeeded()
        # First touches cost fifty times a copy, so they are made here and not in a load.
        self._client.mapping.prefault()
        if self._pinned_for is not None:
            self._pinned = pin(words, self._pinned_for)

    def _disconnect(self) -> None:
        """Forget the connection, and with it every slot: the node store takes them back."""
        self._slots.clear()
        self._recent.clear()  # what was written and not committed is gone; another node may have none of it
        self._written.clear()
        with self._changed:
            self._attachment = None
            self._copying = frozenset()  # nothing is copied without a connection, and nobody may wait for it
            self._changed.notify_all()
        if self._pinned is not None:
            # While the memory is still mapped. A load under way goes on, as from unpinned memory.
            self._pinned.close()
            self._pinned = None
        if self._client is not None:
            self._client.close()
            self._client = None

    def _next(self) -> _Store | None:
        """Take the next store and mark its blocks as being copied, which :meth:`_store` ends whatever happens.

        Returns ``None`` where none waits, and where the next is not for the commit of what is written.
        """
        with self._changed:
            if not self._waiting or self._is_for_another_commit(self._waiting[0].chunk.origin):
                return None
            store = self._waiting.popleft()
            self._copying = frozenset(store.chunk.block_ids)
            return store

    def _is_for_another_commit(self, origin: Origin) -> bool:
        """Whether a commit of what is written and of that would be in nobody's trace, and one of them is traced."""
        if self._tracer is None or not self._written or origin == self._written_for:
            return False
        return self._saving is not None or (origin.trace is not None and origin.trace.is_sampled)

    def _copied(self) -> None:
        with self._changed:
            self._copying = frozenset()
            self._changed.notify_all()

    def _drop_waiting(self) -> None:
        with self._changed:
            self._counters.add("stores_dropped", len(self._waiting))
            self._waiting.clear()

    def _store(self, store: _Store) -> None:
        try:
            started = time.monotonic()
            chain = store.chunk.chain
            if started - self._recent.get(chain, -RECENT_S) < RECENT_S:
                return
            if not self._slots:
                self._counters.add("stores_dropped")
                return
            slot = self._slots.pop()
            self._note_origin(store.chunk.origin)
            assert self._attachment is not None
            words = self._attachment.words
            size = self._copier.chunk_bytes
            self._copier.store(store.chunk.block_ids, words.extents(slot.extents, size), store.after)
        finally:
            self._copied()
        checksum = words.checksum(slot.extents)
        name = object_name(chain, self._shard, store.chunk.tenant)
        self._written.append((CommitEntry(slot.slot, name, size, checksum, store.chunk.anchor.hex()), slot))
        self._recent[chain] = started
        if len(self._recent) > RECENT_STORES:
            self._recent.popitem(last=False)
        self._counters.add("store_seconds", time.monotonic() - started)

    def _refill_slots(self) -> None:
        now = time.monotonic()
        if not self._slots and now >= self._no_room_until:
            assert self._client is not None
            size = self._copier.chunk_bytes
            share = int(self._client.segment_bytes * GRANTED_SEGMENT_SHARE) // size
            self._slots = list(self._client.grant(size, max(1, min(MOST_GRANTED_SLOTS, share))))
            if not self._slots:
                self._no_room_until = now + NO_ROOM_PAUSE_S
                self._warnings.warn("chunks are not stored", "the node store has no room")

    def _commit(self) -> None:
        if not self._written:
            return
        assert self._client is not None
        written, self._written = self._written, []
        origin, span = self._written_for, self._saving
        outcomes: Sequence[Refusal | None] = ()
        try:
            with working_for(origin if span is None else Origin(origin.request_id, span.context)):
                outcomes = self._client.commit(self._bucket, [entry for entry, _ in written])
        finally:
            if span is not None:
                span.end(_saved(self._bucket, written, outcomes), is_error=not outcomes)
        if len(outcomes) != len(written):
            raise WireError(f"the node store answered {len(written)} commits with {len(outcomes)} outcomes")
        for (entry, slot), refusal in zip(written, outcomes, strict=True):
            if refusal is None:
                self._counters.add("stored_chunks")
                self._counters.add("stored_bytes", entry.size)
                continue
            if refusal is not Refusal.UNKNOWN_SLOT:
                self._slots.append(slot)  # it is still ours
            if refusal not in (Refusal.EXISTS, Refusal.BEING_WRITTEN):
                self._warnings.warn("a chunk was not stored", refusal)

    def _note_origin(self, origin: Origin) -> None:
        """A chunk is written for a request, and is in the next commit."""
        if not self._written:
            self._written_for = origin
            self._saving = None if self._tracer is None else self._tracer.open("save", "client", origin.trace)
        elif origin != self._written_for:
            self._written_for = NOWHERE  # a batch of several requests is nobody's

    def _give_slots_back(self) -> None:
        if self._slots and self._client is not None:
            slots, self._slots = self._slots, []
            self._client.abort([slot.slot for slot in slots])


def _saved(bucket: str, written: Sequence[tuple[CommitEntry, Slot]], outcomes: Sequence[Refusal | None]) -> Attributes:
    """Return what a span says of a commit."""
    stored = [entry for (entry, _), refusal in zip(written, outcomes, strict=False) if refusal is None]
    return {
        "tierline.bucket_digest": bucket_digest(bucket),
        "tierline.blocks": len(stored),
        "tierline.bytes": sum(entry.size for entry in stored),
    }
