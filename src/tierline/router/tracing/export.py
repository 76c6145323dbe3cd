"""OpenTelemetry's part: which requests are sampled, and how spans reach a collector, as the ``OTEL_*`` variables say.

Rule: nothing here waits for a collector. Spans go into a bounded queue that a thread empties; when it is full they are
dropped, and whatever is not delivered is counted.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import SpanKind
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tierline import __version__, logs
from tierline.errors import UsageError
from tierline.metrics import families
from tierline.router.http.heads import RequestHead
from tierline.router.tracing.records import (
    SAMPLED,
    TRACEPARENT,
    TRACESTATE,
    RequestRecord,
    TraceContext,
    random_id,
    read_context,
)
from tierline.router.tracing.spans import SpanBuilder

if TYPE_CHECKING:
    from tierline.router.proxy.exchange import Exchange

log = logs.get(__name__)

SERVICE_NAME = "tierline-router"
QUEUE_SPANS = 2048
"""``OTEL_BSP_MAX_QUEUE_SIZE`` where that is not set."""
LAST_EXPORT_SECONDS = 5.0
"""What the router's end waits for the last spans to be delivered."""
_LOGGED_EVERY_S = 60.0
_PROTOCOL = "http/protobuf"


class SpanExport(Collector):
    """Takes requests from their beginning to their spans' delivery.

    Parameters
    ----------
    clock
        The router's.

    Raises
    ------
    UsageError
        A variable of the environment says what is not possible here.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        # It would log, at every request, what a client wrote as tracestate and nobody can read.
        logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)
        self.dropped = 0
        """Spans that found the queue full."""
        self._handed = 0
        for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
            if os.environ.get(variable, _PROTOCOL) != _PROTOCOL:
                raise UsageError(f"{variable}={os.environ[variable]}: the router speaks {_PROTOCOL}")
        if os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
            raise UsageError("OTEL_TRACES_EXPORTER: the router has otlp, and none")
        name = {} if _names_service() else {"service.name": SERVICE_NAME}
        try:
            provider = TracerProvider(
                resource=Resource.create({**name, "service.version": __version__}), shutdown_on_exit=False
            )
            self._queue_spans = int(os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE") or QUEUE_SPANS)
            self._exporter = _CountedExporter(OTLPSpanExporter())
            self._processor = BatchSpanProcessor(self._exporter, max_queue_size=self._queue_spans)
        except ValueError as error:
            raise UsageError(f"the OTEL_ variables of the environment: {error}") from None
        self._sampler = provider.sampler
        self._builder = SpanBuilder(provider.resource, clock)

    def collect(self) -> Iterator[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        outcomes = {"exported": self.exported, "failed": self.failed, "dropped": self.dropped}
        yield families.counters("tierline_router_spans_total", outcomes)

    @property
    def exported(self) -> int:
        """Spans that a collector has taken."""
        return self._exporter.exported

    @property
    def failed(self) -> int:
        """Spans that no collector took."""
        return self._exporter.failed

    @property
    def waiting(self) -> int:
        """Spans that are on their way to a collector."""
        return self._handed - self.exported - self.failed

    def begin(self, head: RequestHead) -> RequestRecord | None:
        """Give a request its place in a trace, and those it is sent to theirs; ``None`` where it is not sampled.

        Parameters
        ----------
        head
            Its ``traceparent`` is read, and what is sent on is written anew; ``tracestate`` stays as long as it means
            something.
        """
        parent = read_context(head.fields.get(TRACEPARENT))
        trace_id = parent.trace_id if parent else random_id(128)
        sampled = self._sampler.should_sample(
            _as_parent(parent), trace_id, head.path.decode("latin-1"), SpanKind.SERVER
        )
        is_sampled = sampled.decision is Decision.RECORD_AND_SAMPLE
        context = TraceContext(trace_id, random_id(64), SAMPLED if is_sampled else 0)
        head.drop(TRACEPARENT, *([] if parent else [TRACESTATE]))
        state = head.fields.get(TRACESTATE, b"") if parent else b""
        if is_sampled:
            head.fields[TRACEPARENT] = context.field()
            return RequestRecord(context, parent, state)
        # Told on: else an engine would begin a trace of its own.
        head.fields[TRACEPARENT] = (TraceContext(trace_id, parent.span_id, 0) if parent else context).field()
        head.lines.append(b"traceparent: %b\r\n" % head.fields[TRACEPARENT])
        return None

    def ended(self, record: RequestRecord, exchange: "Exchange") -> None:
        """The request is over: have its spans delivered."""
        for span in self._builder.spans(record, exchange):
            if self.waiting >= self._queue_spans:
                self.dropped += 1
            else:
                self._handed += 1
                self._processor.on_end(span)

    async def close(self) -> None:
        """Deliver what is left, or give it up."""
        # A daemon: where a collector hangs, the router ends all the same.
        threading.Thread(target=self._processor.shutdown, daemon=True, name="last spans").start()
        until = time.monotonic() + LAST_EXPORT_SECONDS
        while self.waiting and time.monotonic() < until:  # noqa: ASYNC110  (once, at the end)
            await asyncio.sleep(0.01)
        if self.waiting:
            log.warning("spans were not delivered in time", spans=self.waiting)


class _CountedExporter(SpanExporter):
    """Counts what another exporter does; the thread that exports is the only one to write the counts."""

    def __init__(self, inner: SpanExporter) -> None:
        self.exported = self.failed = 0
        self._inner = inner
        self._log_again_at = 0.0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self.exported += len(spans)
            else:
                self.failed += len(spans)
                self._warn()
        return result

    def _warn(self) -> None:
        now = time.monotonic()
        if now >= self._log_again_at:
            self._log_again_at = now + _LOGGED_EVERY_S
            log.warning("spans cannot be delivered", failed=self.failed)

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._inner.force_flush(timeout_millis)


def _names_service() -> bool:
    return bool(os.environ.get("OTEL_SERVICE_NAME")) or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )


def _as_parent(parent: TraceContext | None) -> "Context | None":
    if parent is None:
        return None
    remote = trace.SpanContext(
        parent.trace_id, parent.span_id, is_remote=True, trace_flags=trace.TraceFlags(parent.flags)
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(remote))
