"""OpenTelemetry's part: which requests are sampled, and how spans reach a collector, as the ``OTEL_*`` variables say.

Rule: nothing here waits for a collector. Spans go into a bounded queue that a thread empties; when it is full they are
dropped, and whatever is not delivered is counted.
"""

import logging
import os
import threading
import time
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from tierline import __version__, logs
from tierline.errors import UsageError
from tierline.tracing.context import TraceContext
from tierline.tracing.spans import Kind, Span

log = logs.get(__name__)

QUEUE_SPANS = 2048
"""``OTEL_BSP_MAX_QUEUE_SIZE`` where that is not set."""
_LOGGED_EVERY_S = 60.0
_PROTOCOL = "http/protobuf"
_ERROR, _UNSET = Status(StatusCode.ERROR), Status(StatusCode.UNSET)
_KINDS: dict[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
}


class CollectorExport:
    """Hands spans to OpenTelemetry's exporter.

    Parameters
    ----------
    service
        The program's name, unless the environment says another.

    Raises
    ------
    UsageError
        A variable of the environment says what is not possible here.
    """

    def __init__(self, service: str) -> None:
        # It would log, at every request, what a client wrote as tracestate and nobody can read.
        logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)
        self.dropped = 0
        """Spans that found the queue full."""
        self._handed = 0
        self._lock = threading.Lock()
        for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
            if os.environ.get(variable, _PROTOCOL) != _PROTOCOL:
                raise UsageError(f"{variable}={os.environ[variable]}: Tierline speaks {_PROTOCOL}")
        if os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
            raise UsageError("OTEL_TRACES_EXPORTER: Tierline has otlp, and none")
        name = {} if _names_service() else {"service.name": service}
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
        self._resource = provider.resource
        self._scope = InstrumentationScope("tierline", __version__)

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

    def samples(self, parent: TraceContext | None, trace_id: int, name: str) -> bool:
        """Ask ``OTEL_TRACES_SAMPLER``; by default the caller decides, where there is one, and else all are sampled."""
        sampled = self._sampler.should_sample(_as_parent(parent), trace_id, name, SpanKind.SERVER)
        return sampled.decision is Decision.RECORD_AND_SAMPLE

    def put(self, span: Span) -> None:
        """Have a span delivered, or drop it."""
        with self._lock:  # spans end in threads, too
            if self.waiting >= self._queue_spans:
                self.dropped += 1
                return
            self._handed += 1
        self._processor.on_end(self._readable(span))

    def close(self) -> None:
        """Deliver what is left; takes as long as the collector does."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    def _readable(self, span: Span) -> ReadableSpan:
        state = TraceState.from_header([span.state]) if span.state else None
        return ReadableSpan(
            name=span.name,
            context=_span_context(span.context, state),
            parent=_span_context(span.parent, state, is_remote=span.is_remote) if span.parent is not None else None,
            resource=self._resource,
            attributes=span.attributes,
            events=[Event(name, timestamp=at) for name, at in span.events],
            links=[Link(_span_context(linked, None, is_remote=True)) for linked in span.links],
            kind=_KINDS[span.kind],
            instrumentation_scope=self._scope,
            status=_ERROR if span.is_error else _UNSET,
            start_time=span.start_ns,
            end_time=span.end_ns,
        )


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


def _as_parent(parent: TraceContext | None) -> Context | None:
    if parent is None:
        return None
    return trace.set_span_in_context(trace.NonRecordingSpan(_span_context(parent, None, is_remote=True)))


def _span_context(context: TraceContext, state: TraceState | None, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(context.trace_id, context.span_id, is_remote, TraceFlags(context.flags), state)
