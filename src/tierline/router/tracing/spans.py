"""From what was noted of a request to its spans: one of the server's kind, and under it one for each attempt.

Attributes are those of OpenTelemetry's stable conventions for HTTP, ``gen_ai.operation.name`` and
``gen_ai.request.model``, and for what only a router knows ours. Prompts, answers, keys and queries are in none.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tierline.router.decisions import NAME_CHARS
from tierline.router.tracing.records import CANCELED, AttemptRecord, RequestRecord
from tierline.tracing.spans import Attributes, Span

if TYPE_CHECKING:
    from tierline.router.proxy.exchange import Exchange

OPERATIONS = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}
"""Routes that the conventions have a name for."""


def spans_of(record: RequestRecord, exchange: "Exchange", clock: Callable[[], float]) -> Iterator[Span]:
    """Yield the spans of a request that is over; ``clock`` is the one that the noted times are by."""
    origin_ns = time.time_ns() - round(clock() * 1e9)  # of the clock, in time since 1970

    def since_1970(at: float) -> int:
        return origin_ns + round(at * 1e9)

    state = record.state.decode("latin-1")
    method = exchange.head.method.decode("latin-1")
    route = "" if exchange.route == "other" else exchange.head.path.decode("latin-1")
    yield Span(
        f"{method} {route}".rstrip(),
        "server",
        record.context,
        record.parent,
        since_1970(exchange.started_at),
        since_1970(exchange.ended_at),
        _of_request(exchange, method, route),
        is_remote=True,
        is_error=exchange.status >= 500 or exchange.aborted_by == "upstream",
        events=(("first byte", since_1970(exchange.answered_at)),) if exchange.answered_at else (),
        state=state,
    )
    sent: Counter[bool] = Counter()
    for attempt in record.attempts:
        attributes = _of_attempt(attempt, method, sent[attempt.is_prefill])
        sent[attempt.is_prefill] += 1
        yield Span(
            method,
            "client",
            record.context._replace(span_id=attempt.span_id),
            record.context,
            since_1970(attempt.began_at),
            since_1970(attempt.ended_at),
            attributes,
            is_error="error.type" in attributes,
            state=state,
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
