"""What is noted of a traced request on its way: who is who in the trace, and when each attempt began and ended.

Rule: on the way of a request nothing is built but these; spans are made of them when the request is over.
"""

from tierline.router.strategies.base import Decision
from tierline.tracing.context import TraceContext, random_id

CANCELED = "canceled"
"""Why an attempt ended whose answer was no longer wanted; no failure of the endpoint's."""


class AttemptRecord:
    """One attempt of a traced request.

    Parameters
    ----------
    span_id
        Its own.
    decision
        Where it went, and why.
    began_at
        By the router's clock.
    is_prefill
        It computes the prompt for another endpoint.
    """

    __slots__ = ("began_at", "decision", "ended_at", "failure", "is_prefill", "is_resent", "span_id", "status")

    def __init__(self, span_id: int, decision: Decision, began_at: float, *, is_prefill: bool) -> None:
        self.span_id = span_id
        self.is_prefill = is_prefill
        self.decision = decision
        self.began_at = began_at
        self.ended_at = 0.0
        self.status = 0
        """Of the answer; 0 before one."""
        self.failure = ""
        """What broke it, as the metrics call it."""
        self.is_resent = False


class RequestRecord:
    """A traced request.

    Parameters
    ----------
    context
        Its own place in the trace: its span's.
    parent
        The caller's; ``None`` where the trace begins here.
    state
        The caller's ``tracestate``.
    """

    __slots__ = ("_is_prefill", "attempts", "context", "parent", "state")

    def __init__(self, context: TraceContext, parent: TraceContext | None, state: bytes) -> None:
        self.context = context
        self.parent = parent
        self.state = state
        self.attempts: list[AttemptRecord] = []
        self._is_prefill = False

    def of_prefill(self) -> "RequestRecord":
        """Return the same record for the attempts to compute the prompt elsewhere."""
        record = RequestRecord(self.context, self.parent, self.state)
        record.attempts = self.attempts
        record._is_prefill = True
        return record

    def attempt(self, decision: Decision, now: float) -> AttemptRecord:
        """Note that an attempt begins."""
        record = AttemptRecord(random_id(64), decision, now, is_prefill=self._is_prefill)
        self.attempts.append(record)
        return record

    def field_for(self, attempt: AttemptRecord) -> bytes:
        """Return the ``traceparent`` that the attempt's endpoint gets."""
        return TraceContext(self.context.trace_id, attempt.span_id, self.context.flags).field()
