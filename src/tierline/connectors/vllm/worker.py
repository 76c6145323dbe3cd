"""The half of the connector that lives in a worker: it copies chunks from the segment into KV blocks and back.

A load is believed only after the fact: the chunk is copied, then the *stored* bytes are verified. If they still match
their checksum once the copy is over, they matched while it ran, so neither a corrupt segment nor pages that were
given away under an ended lease can become a wrong token.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable

from tierline.breaker import Warnings
from tierline.connectors.vllm.copy import ChunkCopier
from tierline.connectors.vllm.metrics import Counters
from tierline.connectors.vllm.plan import ChunkLoad, RequestLoad, StepPlan, StepReport
from tierline.connectors.vllm.writer import Attachment, NodeWriter
from tierline.errors import ChecksumMismatch, NodeUnavailable, TierlineError
from tierline.tracing.spans import Attributes
from tierline.tracing.tracer import OpenSpan, Tracer

_log = logging.getLogger("vllm.tierline")  # under vLLM's logger, so that lines appear where and how vLLM's do
ATTACH_INSIDE_STEP_S = 0.1
"""How long a load that holds up a step waits for a connection to a node store that was restarted."""
ATTACH_BETWEEN_STEPS_S = 1.0


class WorkerHalf:
    """Carries out step plans.

    Parameters
    ----------
    copier
        Copies chunks.
    rank
        This worker's place among a chunk's shards.
    loads_between_steps
        Loads run on a thread of their own, while other requests are computed.
    writer
        The line to the node store.
    warnings, counters
        Where trouble is told and counted.
    tracer
        Who is told of loads of traced requests; ``None``: nobody.
    """

    def __init__(
        self,
        copier: ChunkCopier,
        rank: int,
        loads_between_steps: bool,
        writer: NodeWriter,
        warnings: Warnings,
        counters: Counters,
        tracer: Tracer | None = None,
    ) -> None:
        self._copier = copier
        self._rank = rank
        self._writer = writer
        self._warnings = warnings
        self._counters = counters
        self._tracer = tracer
        self._invalid_blocks: set[int] = set()
        self._report = StepReport()
        self._ended: queue.SimpleQueue[tuple[str, int, float]] = queue.SimpleQueue()
        self._loader: _LoadThread | None = None
        if loads_between_steps:
            self._loader = _LoadThread(self._load_between_steps)

    def before_overwrites(self, plan: StepPlan) -> None:
        """Take the blocks that the step overwrites away from stores that still wait for them."""
        self._writer.fence(plan.overwritten)

    def load(self, plan: StepPlan) -> None:
        """Carry the step's loads out, or hand them to the load thread."""
        for load in plan.loads:
            after = self._copier.mark()
            if self._loader is not None:
                self._loader.submit(load, after)
            else:
                self._load_inside_step(load, after)

    def store(self, plan: StepPlan) -> None:
        """Hand the chunks that the step completed to the writer."""
        if plan.measured:
            self._report.measured.add(plan.measured)
        if plan.stores:
            self._writer.store(plan.stores, self._copier.mark())

    def take_ended_loads(self) -> tuple[set[str], set[str]]:
        """Return the requests whose loads between steps ended since the last call, and those of them that failed."""
        ended, failed = set(), set()
        while not self._ended.empty():
            request_id, size, seconds = self._ended.get()
            ended.add(request_id)
            if size:
                self._report.loaded[request_id] = size, seconds
            else:
                failed.add(request_id)
        return ended, failed

    def take_invalid_blocks(self) -> set[int]:
        """Return the blocks that loads inside the step did not fill."""
        blocks, self._invalid_blocks = self._invalid_blocks, set()
        return blocks

    def take_report(self) -> StepReport | None:
        """Return what is to be said of the step; ``None`` for nothing."""
        report, self._report = self._report, StepReport()
        return None if report.is_empty else report

    def close(self) -> None:
        """End the threads."""
        if self._loader is not None:
            self._loader.close()
        self._writer.close()

    def _load_inside_step(self, load: RequestLoad, after: object) -> None:
        loaded, seconds = self._load_chunks(load, after, ATTACH_INSIDE_STEP_S)
        self._report.ended.add(load.request_id)
        if loaded == len(load.chunks):
            self._report.loaded[load.request_id] = loaded * self._copier.chunk_bytes, seconds
        else:
            self._report.failed.add(load.request_id)
            for chunk in load.chunks[loaded:]:
                self._invalid_blocks.update(chunk.block_ids)

    def _load_between_steps(self, load: RequestLoad, after: object) -> None:
        loaded, seconds = 0, 0.0
        try:
            loaded, seconds = self._load_chunks(load, after, ATTACH_BETWEEN_STEPS_S)
        except Exception as error:  # noqa: BLE001  (a load never reported keeps its request waiting for ever)
            self._counters.add("loads_failed")
            self._warnings.warn("a prefix is computed because its load broke down", repr(error))
        size = loaded * self._copier.chunk_bytes if loaded == len(load.chunks) else 0
        self._ended.put((load.request_id, size, seconds))

    def _load_chunks(self, load: RequestLoad, after: object, wait_s: float) -> tuple[int, float]:
        """Load chunks in order; returns how many before the first that could not be, and how long that took."""
        span = self._tracer.open("load", "internal", load.origin.trace) if self._tracer is not None else None
        copy: OpenSpan | None = None
        started = time.monotonic()
        loaded = 0
        try:
            attachment = self._writer.attachment(load.node_epoch, wait_s)
            if attachment is None:
                raise NodeUnavailable("the worker has no connection to the node store that gave the lease")
            started = time.monotonic()  # a connection is waited for once, and says nothing about the next load
            if self._tracer is not None and span is not None:
                copy = self._tracer.open("copy", "internal", span.context)
            for chunk in load.chunks:
                self._load_chunk(attachment, chunk, after)
                loaded += 1
        except TierlineError as error:
            self._counters.add("loads_failed")
            self._warnings.warn("a prefix is computed because it could not be loaded", _said_of(load, error))
        finally:
            attributes: Attributes = {"tierline.blocks": loaded, "tierline.bytes": loaded * self._copier.chunk_bytes}
            for each in (copy, span):
                if each is not None:
                    each.end(attributes, is_error=loaded < len(load.chunks))
        seconds = time.monotonic() - started
        self._counters.add("load_seconds", seconds)
        _log.debug(
            "Tierline: loaded request_id=%r blocks=%d of=%d seconds=%.6f",
            load.origin.request_id,
            loaded,
            len(load.chunks),
            seconds,
        )
        return loaded, seconds

    def _load_chunk(self, attachment: Attachment, chunk: ChunkLoad, after: object) -> None:
        stored = chunk.objects[self._rank]
        extents = attachment.words.extents(stored.extents, self._copier.chunk_bytes)
        self._copier.load(extents, chunk.block_ids, after)
        if attachment.words.checksum(stored.extents) != stored.checksum:
            self._counters.add("corrupt_chunks")
            self._writer.suspect(chunk.chain, chunk.tenant)
            raise ChecksumMismatch(f"the bytes of chunk {chunk.chain.hex()} are not what was stored")
        self._counters.add("loaded_chunks")
        self._counters.add("loaded_bytes", self._copier.chunk_bytes)


def _said_of(load: RequestLoad, error: TierlineError) -> str:
    """Return what is told of a load that failed: for which request, too, where that has an id."""
    request_id = load.origin.request_id
    return f"{error} (request_id={request_id!r})" if request_id else str(error)


class _LoadThread:
    """Runs loads one after the other, beside the engine."""

    def __init__(self, load: Callable[[RequestLoad, object], None]) -> None:
        self._load = load
        self._loads: queue.SimpleQueue[tuple[RequestLoad, object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tierline-load", daemon=True)
        self._thread.start()

    def submit(self, load: RequestLoad, after: object) -> None:
        self._loads.put((load, after))

    def close(self) -> None:
        self._loads.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while (job := self._loads.get()) is not None:
            self._load(*job)
