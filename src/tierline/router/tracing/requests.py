"""Which requests have spans, and who is told of that: the caller's place in a trace in, that of each attempt out."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tierline.metrics import families
from tierline.router.http.heads import RequestHead
from tierline.router.tracing.records import RequestRecord
from tierline.router.tracing.spans import spans_of
from tierline.tracing.context import (
    SAMPLED,
    TRACEPARENT,
    TRACESTATE,
    TraceContext,
    random_id,
    read_context,
    read_id,
)
from tierline.tracing.tracer import Tracer

if TYPE_CHECKING:
    from tierline.router.proxy.exchange import Exchange

SERVICE_NAME = "tierline-router"
_ID_LINE = b"x-request-id: "


class RequestTracing(Collector):
    """Takes requests from their beginning to their spans.

    Parameters
    ----------
    tracer
        Who gets the spans.
    clock
        The router's.
    """

    def __init__(self, tracer: Tracer, clock: Callable[[], float]) -> None:
        self.tracer = tracer
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        yield families.counters("tierline_router_spans_total", self.tracer.outcomes())

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
        is_sampled = self.tracer.samples(parent, trace_id, head.path.decode("latin-1"))
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
        for span in spans_of(record, exchange, self._clock):
            self.tracer.put(span)


def names_another_place(head: RequestHead, record: RequestRecord | None) -> bool:
    """Whether an ``x-request-id`` says a place in a trace in which this request is not.

    A connector takes such an id for the router's own, and has spans there whoever sampled.
    """
    # Blanks behind a value are no part of it (RFC 9112, 5.1), and whoever reads it next may take them off.
    told = (line[len(_ID_LINE) :].rstrip() for line in head.lines if line[: len(_ID_LINE)].lower() == _ID_LINE)
    places = [read_id(request_id.decode("latin-1"))[1] for request_id in told]
    trace_id = record.context.trace_id if record is not None else None
    return any(place is not None and place.trace_id != trace_id for place in places)
