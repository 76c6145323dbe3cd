"""From what was noted of a request to its spans: one of the server's kind, and under it one for each attempt.

Attributes are those of OpenTelemetry's stable conventions for HTTP, ``gen_ai.operation.name`` and
``gen_ai.request.model``, and for what only a router knows ours. Prompts, answers, keys and queries are in none.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from tierline import __version__
from tierline.router.decisions import NAME_CHARS
from tierline.router.tracing.records import CANCELED, AttemptRecord, RequestRecord, TraceContext

if TYPE_CHECKING:
    from tierline.router.proxy.exchange import Exchange

Attributes = dict[str, str | int | float | bool]

OPERATIONS = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}
"""Routes that the conventions have a name for."""
_ERROR, _UNSET = Status(StatusCode.ERROR), Status(StatusCode.UNSET)


class SpanBuilder:
    """Makes spans.

    Parameters
    ----------
    resource
        What every span says of this router.
    clock
        That the noted times are by.
    """

    def __init__(self, resource: Resource, clock: Callable[[], float]) -> None:
        self._resource = resource
        self._clock = clock
        self._scope = InstrumentationScope("tierline.router", __version__)

    def spans(self, record: RequestRecord, exchange: "Exchange") -> Iterator[ReadableSpan]:
        """Yield the spans of a request that is over."""
        origin_ns = time.time_ns() - round(self._clock() * 1e9)  # of the clock, in time since 1970

        def since_1970(at: float) -> int:
            return origin_ns + round(at * 1e9)

        state = TraceState.from_header([record.state.decode("latin-1")]) if record.state else None
        own = _span_context(record.context, state)
        method = exchange.head.method.decode("latin-1")
        route = "" if exchange.route == "other" else exchange.head.path.decode("latin-1")
        yield ReadableSpan(
            name=f"{method} {route}".rstrip(),
            context=own,
            parent=_span_context(record.parent, state, is_remote=True) if record.parent else None,
            resource=self._resource,
            attributes=_of_request(exchange, method, route),
            events=_events(exchange, since_1970),
            kind=SpanKind.SERVER,
            instrumentation_scope=self._scope,
            status=_ERROR if exchange.status >= 500 or exchange.aborted_by == "upstream" else _UNSET,
            start_time=since_1970(exchange.started_at),
            end_time=since_1970(exchange.ended_at),
        )
        sent: Counter[bool] = Counter()
        for attempt in record.attempts:
            attributes = _of_attempt(attempt, method, sent[attempt.is_prefill])
            sent[attempt.is_prefill] += 1
            yield ReadableSpan(
                name=method,
                context=_span_context(record.context._replace(span_id=attempt.span_id), state),
                parent=own,
                resource=self._resource,
                attributes=attributes,
                kind=SpanKind.CLIENT,
                instrumentation_scope=self._scope,
                status=_ERROR if "error.type" in attributes else _UNSET,
                start_time=since_1970(attempt.began_at),
                end_time=since_1970(attempt.ended_at),
            )


def _of_request(exchange: "Exchange", method: str, route: str) -> Attributes:
    head, decision = exchange.head, exchange.decision
    attributes: Attributes = {
        "http.request.method": method,
        "url.path": head.path[:NAME_CHARS].decode("latin-1"),
        "network.protocol.version": head.version,
        "tierline.request_id": exchange.request_id[:NAME_CHARS].decode("latin-1"),
        "tierline.strategy": exchange.arm.strategy.name,
        "tierline.arm": exchange.arm.name,
        "tierline.retries": len(exchange.retries),
        "tierline.queued_seconds": exchange.queued_s,
    }
    if route:
        attributes["http.route"] = route
    if exchange.route in OPERATIONS:
        attributes["gen_ai.operation.name"] = OPERATIONS[exchange.route]
    if exchange.model:
        attributes["gen_ai.request.model"] = exchange.model[:NAME_CHARS]
    if exchange.status:
        attributes["http.response.status_code"] = exchange.status
    if exchange.aborted_by:
        attributes["tierline.aborted_by"] = exchange.aborted_by
    if exchange.aborted_by == "upstream":
        attributes["error.type"] = "aborted"
    elif exchange.status >= 500:
        attributes["error.type"] = str(exchange.status)
    if exchange.choosing_s is not None:
        attributes["tierline.choosing_seconds"] = exchange.choosing_s
    if exchange.actual_cached_tokens is not None:
        attributes["tierline.actual_cached_tokens"] = exchange.actual_cached_tokens
    if decision is not None:
        attributes["tierline.endpoint"] = decision.endpoint.url
        attributes["tierline.reason"] = decision.reason
    return attributes


def _events(exchange: "Exchange", since_1970: Callable[[float], int]) -> list[Event]:
    return [Event("first byte", timestamp=since_1970(exchange.answered_at))] if exchange.answered_at else []


def _of_attempt(attempt: AttemptRecord, method: str, number: int) -> Attributes:
    decision = attempt.decision
    endpoint = decision.endpoint
    attributes: Attributes = {
        "http.request.method": method,
        "server.address": endpoint.host,
        "server.port": endpoint.port,
        "url.full": endpoint.url,
        "tierline.reason": decision.reason,
        "tierline.prompt_blocks": decision.total_blocks,
        "tierline.matched_blocks": decision.matched_blocks,
        "tierline.predicted_cached_tokens": decision.predicted_cached_tokens,
    }
    if number:
        attributes["http.request.resend_count"] = number
    if attempt.is_prefill:
        attributes["tierline.role"] = "prefill"
    if attempt.is_resent:
        attributes["tierline.resent"] = True
    if attempt.status:
        attributes["http.response.status_code"] = attempt.status
    if attempt.failure == CANCELED:
        attributes["tierline.canceled"] = True
    elif attempt.failure:
        attributes["error.type"] = attempt.failure
    if attempt.status >= 400:
        attributes["error.type"] = str(attempt.status)
    return attributes


def _span_context(context: TraceContext, state: TraceState | None, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(context.trace_id, context.span_id, is_remote, TraceFlags(context.flags), state)
