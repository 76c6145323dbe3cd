"""The first half of a request that two endpoints serve: its prompt, computed by one of those that prefill.

Rule: it ends with an answer or with a reason, told once; a reason costs the client nothing, for the decode endpoint can
do all of it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tierline.router import pairs
from tierline.router.endpoints import Endpoint
from tierline.router.http.heads import ResponseHead
from tierline.router.http.splicing import Piece
from tierline.router.pairs import PrefillAnswer
from tierline.router.proxy.attempt import ILL_STATUSES, RETRIED_STATUSES, Attempt
from tierline.router.strategies.base import Decision, RoutingRequest
from tierline.router.tracing.records import CANCELED

if TYPE_CHECKING:
    from tierline.router.proxy.exchange import Exchange
    from tierline.router.proxy.services import Services

Ended = Callable[[PrefillAnswer | None, str], None]


class Prefill:
    """Tries prefill endpoints until one has computed the prompt.

    Invariants
    ----------
    - From :meth:`start` to its end one attempt is open: ``_attempt``.
    - ``ended`` is called once, unless :meth:`drop` was.

    Parameters
    ----------
    services, exchange
        Where it runs, and for whom: the request's head is made there.
    routing
        What the strategy sees of the request.
    weights
        Of the endpoint that is to take over what is computed.
    body
        What is sent.
    ended
        Told the answer, or ``None`` and why there is none.
    """

    __slots__ = (
        "_answer", "_attempt", "_began", "_body", "_ended", "_exchange", "_failed_with", "_retries", "_routing",
        "_services", "_tried", "decision", "trace", "weights",
    )  # fmt: skip

    def __init__(
        self,
        services: "Services",
        exchange: "Exchange",
        routing: RoutingRequest,
        weights: str | None,
        body: tuple[Piece, ...],
        ended: Ended,
    ) -> None:
        self._services = services
        self._exchange = exchange
        self._routing = routing
        self.weights = weights
        self._body = body
        self._ended = ended
        self._attempt: Attempt | None = None
        self._tried: list[Endpoint] = []
        self._failed_with = "no_endpoint"
        self._retries = 0
        self._answer = bytearray()
        self._began = services.clock()
        self.decision: Decision | None = None
        self.trace = exchange.trace.of_prefill() if exchange.trace is not None else None

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return self._services.clock() - self._began

    @property
    def logged_id(self) -> str:
        """See :class:`~tierline.router.proxy.attempt.Owner`."""
        return self._exchange.logged_id

    def start(self) -> None:
        """Begin."""
        self._try()

    def expired(self) -> None:
        """It had its time: an endpoint that hangs is passed over for a while, or each long prompt would wait for it."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.drop("timeout")
            self._exchange.not_served(self._routing, attempt.decision, is_ill=True)
        self._failed_with = "timeout"
        self._end(None)
        self._exchange.left_endpoint()

    def drop(self, why: str = CANCELED) -> None:
        """End it, and tell nobody."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            self._exchange.arm.strategy.withdrawn(self._routing, attempt.decision)
            attempt.drop(why)

    # Attempts ---------------------------------------------------------------------------------------------------------

    def _untried(self) -> list[Endpoint]:
        """Return the endpoints to choose from."""
        return self._services.with_room(pairs.partners(self._usable(), self.weights))

    def _usable(self) -> list[Endpoint]:
        """Return those not tried, whatever their weights; of those believed to be down none: there is another way."""
        now = self._services.clock()
        endpoints = self._services.endpoints.candidates(self._routing.model or None, now, self._tried, role="prefill")
        return [endpoint for endpoint in endpoints if endpoint.is_usable(now)]

    def _try(self) -> None:
        endpoints = self._untried()
        if not endpoints:
            usable = self._usable()
            if not self._tried and usable and not pairs.partners(usable, self.weights):
                self._failed_with = pairs.OTHER_WEIGHTS
            self._end(None)
            return
        exchange = self._exchange
        exchange.arm = self._services.choosing.in_force(exchange.arm, self._routing.model)
        strategy = exchange.arm.strategy
        decision = strategy.choose(self._routing, endpoints)
        strategy.placed(self._routing, decision)
        self.decision = decision
        self._tried.append(decision.endpoint)
        self._answer.clear()
        self._attempt = Attempt(self._services, self, decision, may_repeat=True, may_be_stale=True)
        self._attempt.send()

    def _end(self, answer: PrefillAnswer | None) -> None:
        self._attempt = None
        self._ended(answer, "" if answer is not None else self._failed_with)

    def _next(self, reason: str) -> None:
        """Try another endpoint, if there is one and it may be tried."""
        self._failed_with = reason
        if reason != "connect":
            self._retries += 1
            untried = self._untried()
            if self._retries > self._services.config.retries or not untried or not self._services.budget.spend():
                self._end(None)
                return
        self._try()

    # What the attempt reports -----------------------------------------------------------------------------------------

    def request_of(self, attempt: Attempt) -> tuple[bytes, bytes, tuple[Piece, ...]]:
        """See :class:`~tierline.router.proxy.attempt.Owner`."""
        length = sum(map(len, self._body))
        return (
            self._exchange.head.method,
            self._exchange.head_to(attempt.decision.endpoint, length, self.weights),
            self._body,
        )

    def attempt_sent(self, attempt: Attempt) -> None:
        """See :class:`~tierline.router.proxy.attempt.Owner`."""
        self._exchange.attempt_sent(attempt)

    def attempt_failed(self, attempt: Attempt, reason: str) -> None:
        """See :class:`~tierline.router.proxy.attempt.Owner`."""
        self._attempt = None
        self._exchange.waited_s += attempt.waited_s
        if reason == "overloaded":
            self._exchange.arm.strategy.withdrawn(self._routing, attempt.decision)
            self._failed_with = reason
            self._end(None)
        else:
            self._exchange.not_served(self._routing, attempt.decision, is_ill=reason != "connect")
            self._next(reason)
        self._exchange.left_endpoint()

    def relays_chunks(self, status: int) -> bool:  # noqa: ARG002
        """See :class:`~tierline.router.proxy.attempt.Owner`."""
        return False

    def response_began(self, attempt: Attempt, response: ResponseHead) -> None:
        """See :class:`~tierline.router.proxy.attempt.Owner`."""

    def response_data(self, attempt: Attempt, data: bytes) -> None:
        """See :class:`~tierline.router.proxy.attempt.Owner`."""
        if attempt is not self._attempt:
            return
        self._answer += data
        if len(self._answer) > pairs.ANSWER_BYTES:
            self._failed_with = "malformed"
            self.drop("malformed")
            self._end(None)
            self._exchange.left_endpoint()

    def response_ended(self, attempt: Attempt) -> None:
        """See :class:`~tierline.router.proxy.attempt.Owner`."""
        if attempt is not self._attempt:
            return
        self._attempt = None
        assert attempt.response is not None
        endpoint, status = attempt.decision.endpoint, attempt.response.status
        attempt.answered(self._services.clock() - attempt.sent_at if status == 200 else None)
        attempt.close()
        self._judge(attempt, endpoint, status)
        self._exchange.left_endpoint()

    def _judge(self, attempt: Attempt, endpoint: Endpoint, status: int) -> None:
        """Take the answer, or try another endpoint."""
        attempt.heed_retry_after()
        if status in RETRIED_STATUSES:
            self._exchange.not_served(self._routing, attempt.decision, is_ill=status in ILL_STATUSES)
            self._next(str(status))
            return
        endpoint.answer_succeeded()
        answer = pairs.read_answer(bytes(self._answer)) if status == 200 else None
        if answer is None:
            self._exchange.arm.strategy.withdrawn(self._routing, attempt.decision)
            self._failed_with = "malformed" if status == 200 else str(status)
            if status == pairs.NOT_ITS_WEIGHTS:
                self._failed_with = pairs.OTHER_WEIGHTS
        elif not pairs.is_of(endpoint, self.weights):  # another pod has its address by now, and may have answered
            self._exchange.arm.strategy.withdrawn(self._routing, attempt.decision)
            self._failed_with, answer = pairs.OTHER_WEIGHTS, None
        elif attempt.decision.total_blocks and answer.cached_tokens is not None:
            endpoint.cache_told(attempt.decision.predicted_cached_tokens, answer.cached_tokens)
        self._end(answer)
