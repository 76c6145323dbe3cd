"""One request and its response: choose an endpoint, send, relay; another endpoint while the client has seen nothing.

The rule that everything here keeps: **before the first byte to the client, any endpoint may still answer; after it,
only this one can.** So an answer's head waits for the first byte of its body, and what fails before that is tried
elsewhere, while what fails later is told to the client as a broken answer, never as a whole one.
"""

import asyncio
from collections.abc import Sequence
from random import getrandbits, uniform
from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw

from tierline import logs
from tierline.router import pairs
from tierline.router.admission import Ticket, Verdict
from tierline.router.endpoints import Endpoint
from tierline.router.hedging import Hedging
from tierline.router.http.bodies import ChunkedBody, LengthBody
from tierline.router.http.heads import RequestHead, ResponseHead
from tierline.router.http.relaying import connection_field, ends_by_closing, framing
from tierline.router.http.replies import LAST_CHUNK, chunk, error_event, status_line
from tierline.router.http.splicing import Piece
from tierline.router.keys import AUTHORIZATION
from tierline.router.pairs import Pairing, PrefillAnswer
from tierline.router.prompt import BYTES_PER_TOKEN
from tierline.router.proxy import sagemaker
from tierline.router.proxy.attempt import ILL_STATUSES, RETRIED_STATUSES, Attempt
from tierline.router.proxy.prefill import Prefill
from tierline.router.proxy.sagemaker import Facade
from tierline.router.proxy.services import REQUEST_ID, Lane, Services
from tierline.router.salt import with_cache_salt
from tierline.router.specs import ROLES
from tierline.router.strategies.base import Decision, RoutingRequest
from tierline.router.tokens import TOKENIZED, Question, TokenLadder
from tierline.router.tracing.records import CANCELED, RequestRecord
from tierline.router.usage import SMALL_BYTES, TAIL_BYTES, cached_tokens, prompt_tokens
from tierline.tracing.context import TRACEPARENT, TraceContext, read_id

if TYPE_CHECKING:
    from tierline.router.proxy.client import ClientConnection

log = logs.get(__name__)

_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})  # RFC 9110, 9.2.2
_NOTHING = RoutingRequest()
_ID_LINE = b"x-request-id: "
RETRY_PAUSE_S, RETRY_PAUSE_MAX_S = 0.05, 1.0
"""Before the second retry of a request at most, then twice as long each time; by chance down to half of it, so that
requests that failed together do not come back together."""
_FAILURE_STATUSES = {"connect": 503, "overloaded": 503, "timeout": 504}  # every other failure is 502


class Exchange:
    """One request-response cycle of a client's connection.

    Invariants
    ----------
    - With limits, ``_ticket`` is set from :meth:`start` to the end; while it waits, no attempt is open.
    - ``_attempts`` are the attempts that are open: none while it waits or makes a ``_pause``, else one; two while it is
      hedged, of which the one whose first byte comes ends the other before that byte is written.
    - ``_prefill`` is set while another endpoint computes the prompt for the open attempt, which is sent after that.
    - ``_is_prefilled`` is set while the prompt's KV is there for whoever decodes, from the end of ``_prefill``. Where
      that is what ``_handed`` tells, it is so until somebody may have fetched it. It is of ``_weights``, and an
      endpoint of others is sent nothing of it.
    - ``has_answered`` turns true with the first byte written to the client; from then on no attempt is opened.
    - :meth:`_finish` runs exactly once, whatever happens, and then nothing here refers to a connection or a body.

    Parameters
    ----------
    services, client
        Where it runs, and for whom.
    route
        The route's name in the metrics.
    head, target, body
        The request; ``target`` differs from the head's where a path is mapped.
    routing
        What the strategy sees of it.
    held_bytes
        What the body counts for in ``services.held_bytes``.
    facade
        Wraps the answer, where it does not go to the client as it comes.
    """

    __slots__ = (
        "_alone", "_asking", "_attempts", "_before_last", "_body", "_client", "_events", "_facade", "_failed_with",
        "_handed", "_hedge", "_hedge_timer", "_held_bytes", "_is_paused", "_is_prefilled", "_last", "_may_be_stale",
        "_may_pair", "_may_repeat", "_members", "_pause", "_prefill", "_routing", "_services", "_target", "_ticket",
        "_told_id", "_tried", "_weights", "aborted_by", "actual_cached_tokens", "answered_at", "arm", "choosing_s",
        "decision", "ended_at", "has_answered", "head", "hedge", "is_event_stream", "itl_s", "keep_alive", "model",
        "overhead_s", "pairing", "priority", "prompt_tokens", "queued_at", "queued_s", "request_id", "retries", "route",
        "salt", "session", "started_at", "status", "tenant", "tokens_s", "trace", "waited_s", "wants_stream",
    )  # fmt: skip

    def __init__(
        self,
        services: Services,
        client: "ClientConnection",
        route: str,
        head: RequestHead,
        target: bytes,
        body: bytes,
        routing: RoutingRequest,
        held_bytes: int,
        started_at: float,
        facade: Facade | None = None,
    ) -> None:
        self._services = services
        self._client: ClientConnection | None = client
        self._target = target
        self._body = body
        self._routing = routing
        self._held_bytes = held_bytes
        self._attempts: list[Attempt] = []
        self._prefill: Prefill | None = None
        self._alone: Decision | None = None
        """What was decided for an endpoint that serves the request alone, before another was asked to prefill."""
        self._members: dict[str, Raw] = {}
        self._handed = b""
        self._is_prefilled = False
        self._weights: str | None = None
        self._may_pair = True
        self._hedge: Attempt | None = None
        self._hedge_timer: asyncio.TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None
        """Between two attempts."""
        self.hedge = ""
        """Of a request that was sent to two endpoints: which answered, ``won`` where the second did, ``lost`` where the
        first did, or ``unanswered``."""
        self.wants_stream = False
        self.salt = ""
        """The ``cache_salt`` that the body is sent with, where it does not have it."""
        self._asking: asyncio.Task[None] | None = None
        self._tried: list[Endpoint] = []
        self._is_paused = False
        self._facade = facade
        self._ticket: Ticket | None = None
        self._may_be_stale = True
        self._may_repeat = route != "other" or head.method in _IDEMPOTENT
        self._failed_with = ""
        self._before_last = self._last = b""
        self._events = 0
        self.trace: RequestRecord | None = None
        self.route = route
        self.model = routing.model
        self.session = routing.session
        self.head = head
        self.tenant = ""
        self.priority = 0
        """The lowest goes first."""
        self._told_id = b""
        """The id that endpoints are sent, where it is another than ``request_id``."""
        self.request_id = _chosen(head.fields.get(REQUEST_ID, b"")) or b"%032x" % getrandbits(128)
        self.arm = services.choosing.arm_of(routing, self.request_id)
        """Whose strategy chooses."""
        self.decision: Decision | None = None
        self.pairing: Pairing | None = None
        """Whether another endpoint computed the prompt; ``None`` where that was no question."""
        self.retries: list[str] = []
        """Why each further attempt was made."""
        self.status = 0
        """What the client was answered; 0 when it left first."""
        self.aborted_by = ""
        """``client`` or ``upstream`` when the answer did not come to its end."""
        self.actual_cached_tokens: int | None = None
        """Tokens of the prompt that the engine had in a cache, where its answer says so."""
        self.prompt_tokens: int | None = None
        """Tokens of the prompt, where its arm is compared with others and the answer says so."""
        self.itl_s: float | None = None
        """From one event to the next, the mean of a stream that came to its end."""
        self.is_event_stream = False
        self.has_answered = False
        self.keep_alive = head.keep_alive
        self.started_at = started_at
        self.answered_at = 0.0
        self.ended_at = 0.0
        self.queued_at: float | None = None
        self.queued_s = 0.0
        """Spent waiting for a place; ``queued_at`` is set while that goes on."""
        self.waited_s = 0.0
        """Spent on connecting and on waiting for a place: not our doing."""
        self.tokens_s: float | None = None
        """Waiting for the prompt's tokens, and for what a controller says of them; ``None``: it did not have to."""
        self.choosing_s: float | None = None
        """Choosing for the first time, hashing included."""
        self.overhead_s: float | None = None
        """From the start to the first sending, without ``waited_s``."""

    @property
    def logged_id(self) -> str:
        """See :class:`~tierline.router.proxy.attempt.Owner`."""
        return self.request_id.decode("latin-1")

    @property
    def takes_chunks(self) -> bool:
        """Whether the client understands chunked bodies."""
        return self.head.version != "1.0"

    def relays_chunks(self, status: int) -> bool:
        """Whether a chunked body of an answer with this status goes to the client in its chunks."""
        return self.takes_chunks and not self._rewrites(status)

    def _rewrites(self, status: int) -> bool:
        return self._facade is not None and self._facade.rewrites(status)

    def tell_place(self, place: TraceContext) -> None:
        """Have the id that endpoints are sent say the request's place in its trace.

        Of all that is sent to it, vLLM's API server hands a connector this id alone. The client knows it not.
        """
        if REQUEST_ID not in self.head.fields:
            self.request_id = place.request_id().encode()
        elif read_id(self.logged_id)[1] is None:  # else a router before this one has told it
            self._told_id = place.request_id(self.logged_id).encode("latin-1")
            self.head.drop(REQUEST_ID)
            self.head.lines.append(_ID_LINE + self._told_id + b"\r\n")

    # Tokens -----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Send the request to an endpoint, now or when its tokens are known or its turn has come."""
        ladder = self._services.tokens
        if ladder is not None and self.arm.needs_tokens and self._routing.has_prompt and self.route in TOKENIZED:
            question = ladder.at_once(self._routing, self._body)
            if question is not None:
                self._asking = asyncio.get_running_loop().create_task(self._learn_tokens(ladder, question))
                return
        self._enter()

    async def _learn_tokens(self, ladder: TokenLadder, question: Question) -> None:
        await ladder.climb(self._routing, question)
        self.tokens_s = self._services.clock() - self.started_at
        self._asking = None
        self._enter()

    def _stops_asking(self) -> bool:
        """Ask for tokens no more; returns whether this did."""
        if self._asking is None:
            return False
        self._asking.cancel()
        self._asking = None
        return True

    # Admission --------------------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        """Send the request to an endpoint, now or when its turn has come."""
        if self._services.admission is None:
            self._attempt()
            return
        cost = 1 + len(self._body) // BYTES_PER_TOKEN
        lane = Lane(self._routing.model)
        self._ticket = Ticket(self.tenant, lane, self.priority, cost, self._turn_came, self._turned_away)
        self._ask(self._ticket, comes_back=False)

    def _ask(self, ticket: Ticket, *, comes_back: bool) -> None:
        admission = self._services.admission
        assert admission is not None
        match admission.enter(ticket, comes_back=comes_back):
            case Verdict.RUNS:
                self._attempt()
            case Verdict.REFUSED:
                self._ticket = None
                self._overflow("queue_full")
            case Verdict.WAITS:
                assert self._client is not None
                self.queued_at = self._services.clock()
                self._client.deadline = self.queued_at + self._services.config.queue_timeout_s

    def _turn_came(self) -> None:
        assert self._client is not None
        self._queue_left()
        self._client.deadline = self._services.clock() + self._services.config.response_timeout_s
        self._attempt()

    def _turned_away(self) -> None:
        """Somebody else needed the place in the queue more."""
        self._queue_left()
        self._ticket = None
        self._overflow("queue_full")

    def _queue_left(self) -> None:
        assert self.queued_at is not None
        waited_s = self._services.clock() - self.queued_at
        self.queued_at = None
        self.queued_s += waited_s
        self.waited_s += waited_s

    def _overflow(self, code: str) -> None:
        services = self._services
        assert services.admission is not None
        assert self._client is not None
        services.metrics.limits_reached[code] += 1
        self.status = services.config.overflow_status
        self.has_answered = True
        self.answered_at = services.clock()
        self._client.write_error(
            self.status,
            "The router has as many requests as it may; try again later.",
            code,
            keep_alive=self.keep_alive,
            extra=(
                b"x-request-id: %b\r\n" % self.request_id,
                b"retry-after: %d\r\n" % services.admission.retry_after_s(),
            ),
            without_body=self.head.method == b"HEAD",
        )
        self._finish()

    # Attempts ---------------------------------------------------------------------------------------------------------

    def _attempt(self) -> None:
        """Choose an endpoint and send the request there."""
        services = self._services
        services.budget.earn()
        endpoints = self._untried()
        if self._ticket is not None:
            # Another worker may have taken the place that was free a moment ago: then the limit is passed by this one.
            endpoints = services.with_room(endpoints) or endpoints
        if not endpoints:
            self._give_up()
            return
        began = services.clock()
        self.arm = services.choosing.in_force(self.arm, self.model)
        strategy = self.arm.strategy
        decision = strategy.choose(self._routing, endpoints)
        if self.choosing_s is None:
            self.choosing_s = services.clock() - began
        strategy.placed(self._routing, decision)
        self._tried.append(decision.endpoint)
        self._withhold_from(decision.endpoint)
        if self._is_prefilled:
            self._alone = decision
            self._open(decision._replace(uncached_tokens=0)).send()
        elif decision.endpoint.roles != ROLES and self._may_pair:
            self._attempt_in_two(decision)
        else:
            self._open(decision).send()

    def _open(self, decision: Decision) -> Attempt:
        attempt = Attempt(self._services, self, decision, may_repeat=self._may_repeat, may_be_stale=self._may_be_stale)
        self._attempts.append(attempt)
        self.decision = decision
        return attempt

    def request_of(self, attempt: Attempt) -> tuple[bytes, bytes, tuple[Piece, ...]]:
        """See :class:`~tierline.router.proxy.attempt.Owner`."""
        head = self.head
        self._withhold_from(attempt.decision.endpoint)
        body: tuple[Piece, ...] = (self._body,)
        if self._handed:
            body = pairs.decode_body(self._members, self._handed)
        elif self.salt:
            body = with_cache_salt(self._body, self.salt)
        length = len(body[0]) if len(body) == 1 else sum(map(len, body))
        has_body = length or head.length is not None or head.is_chunked
        weights = self._weights if self._handed else None
        return head.method, self.head_to(attempt.decision.endpoint, length if has_body else None, weights), body

    def head_to(self, endpoint: Endpoint, length: int | None, weights: str | None = None) -> bytes:
        """Return the head of the request for an endpoint.

        Parameters
        ----------
        endpoint
            Which.
        length
            Of the body; ``None``: there is none.
        weights
            What the KV is of that is computed for another endpoint, or handed over; ``None``: not known, or none is.
        """
        head = self.head
        authorization = self._services.endpoint_keys.authorization(endpoint)
        lines = b"".join(head.lines if authorization is None else head.lines_without(AUTHORIZATION))
        return b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%b%b%b%b" % (
            head.method, self._target, endpoint.authority,
            b"%b: %b\r\n" % (pairs.X_TIERLINE_WEIGHTS, weights.encode()) if weights is not None else b"",
            lines, b"authorization: %b\r\n" % authorization if authorization else b"",
            b"" if REQUEST_ID in head.fields else b"x-request-id: %b\r\n" % self.request_id,
            b"\r\n" if length is None else b"content-length: %d\r\n\r\n" % length,
        )  # fmt: skip

    # Prefill elsewhere ------------------------------------------------------------------------------------------------

    def _attempt_in_two(self, decision: Decision) -> None:
        """Send the request to an endpoint with one role: its prompt to another first, if that pays."""
        if self._target.partition(b"?")[0] in pairs.PATHS:
            threshold = self._services.config.prefill_threshold
            found = pairs.split(self._routing, decision, self._body, threshold)
            if isinstance(found, dict):
                self._members = found
                if self.salt:
                    self._members["cache_salt"] = Raw(msgspec.json.encode(self.salt))
                self._begin_prefill(decision)
                return
            self.pairing = found
        self._open(decision).send()

    def _begin_prefill(self, decision: Decision) -> None:
        """Have the prompt computed for an attempt at the endpoint of ``decision``, which counts there already.

        So nobody else takes its place while it waits, and requests that come meanwhile see it.
        """
        assert self._client is not None
        services = self._services
        self._alone = decision
        self._open(decision._replace(uncached_tokens=0))
        body = pairs.prefill_body(self._members)
        weights = decision.endpoint.weights
        self._prefill = Prefill(services, self, self._routing.for_prefill(), weights, body, self._prefilled)
        self._client.deadline = services.clock() + services.config.prefill_timeout_s
        self._prefill.start()

    def _prefilled(self, answer: PrefillAnswer | None, why: str) -> None:
        """The prompt is computed, or ``why`` not: then the decode endpoint does it all."""
        assert self._client is not None
        assert self._prefill is not None
        assert self._alone is not None
        services, (attempt,) = self._services, self._attempts
        prefill, self._prefill = self._prefill, None
        if answer is not None:
            self.pairing = Pairing("paired", "", prefill.decision, prefill.seconds)
            self._handed = answer.handed
            self._weights = prefill.weights
            self._is_prefilled = True
        else:
            self.pairing = Pairing("fallback", why, prefill.decision, prefill.seconds)
            self._may_pair = False
            self.decision = self._alone
            attempt.expect(self._alone)
        self._client.deadline = services.clock() + services.config.response_timeout_s
        attempt.send()

    def _try_alone(self, attempt: Attempt) -> None:
        """Ask the same endpoint again, as if nobody had computed the prompt: what it was handed may be the trouble."""
        assert self.pairing is not None
        assert self._alone is not None
        assert attempt.response is not None
        status = str(attempt.response.status)
        self._drop(attempt)
        self.retries.append(status)
        self.pairing = self.pairing._replace(outcome="fallback", why=status)
        self._may_pair = False
        self._may_be_fetched()
        self._open(self._alone).send()

    def _withhold_from(self, endpoint: Endpoint) -> None:
        """Before an endpoint is sent anything: of other weights than what was computed, it must know nothing of that.

        Another pod may have got its address while the prompt was being computed, or while a connection was made.
        """
        if self._is_prefilled and not pairs.is_of(endpoint, self._weights):
            assert self.pairing is not None
            self.pairing = self.pairing._replace(outcome="fallback", why=pairs.OTHER_WEIGHTS)
            self._handed = b""
            self._is_prefilled = False

    def _may_be_fetched(self) -> None:
        """What was handed over was sent to an endpoint, which may have fetched it: it is nobody else's."""
        if self._handed:
            self._handed = b""
            self._is_prefilled = False

    # Hedging ----------------------------------------------------------------------------------------------------------

    def _plan_hedge(self, hedging: Hedging) -> None:
        """Look again when the answer is late."""
        hedging.budget.earn()
        delay_s = hedging.delay_s(self._kind)
        if delay_s < self._services.config.response_timeout_s and self._may_repeat:
            self._hedge_timer = asyncio.get_running_loop().call_later(delay_s, self._open_hedge, hedging)

    @property
    def _kind(self) -> tuple[str, bool]:
        """With whose times to first byte those of this request compare."""
        return self.route, self.wants_stream

    def _open_hedge(self, hedging: Hedging) -> None:
        """The answer is late: ask a second endpoint, if one is free and the budget pays for it."""
        services = self._services
        if self.has_answered or len(self._attempts) != 1 or self._alone is not None:
            return
        now = services.clock()
        endpoints = services.with_room([endpoint for endpoint in self._untried() if endpoint.is_usable(now)])
        if not endpoints or not hedging.budget.spend():
            return
        strategy = services.choosing.in_force(self.arm, self.model).strategy
        decision = strategy.choose(self._routing, endpoints)
        strategy.placed(self._routing, decision)
        self._tried.append(decision.endpoint)
        self.retries.append("hedge")
        self.hedge = "unanswered"
        self._hedge = Attempt(services, self, decision, may_repeat=True, may_be_stale=self._may_be_stale)
        self._attempts.append(self._hedge)
        self._hedge.send()

    def _settle(self, attempt: Attempt) -> None:
        """Of two attempts, this one answers."""
        for other in [other for other in self._attempts if other is not attempt]:
            self.arm.strategy.withdrawn(self._routing, other.decision)
            self._drop(other)
        self.hedge = "won" if attempt is self._hedge else "lost"
        self.decision = attempt.decision
        self.left_endpoint()

    def left_endpoint(self) -> None:
        """An attempt is over and the request is not: who waits for that endpoint can have its place."""
        if self._services.admission is not None:
            self._services.admission.pump()

    # What becomes of an attempt ---------------------------------------------------------------------------------------

    def attempt_sent(self, attempt: Attempt) -> None:
        """See :class:`~tierline.router.proxy.attempt.Owner`."""
        if self.overhead_s is None:
            self.overhead_s = attempt.sent_at - self.started_at - self.waited_s - attempt.waited_s
            if self._services.hedging is not None:
                self._plan_hedge(self._services.hedging)

    def attempt_failed(self, attempt: Attempt, reason: str) -> None:
        """See :class:`~tierline.router.proxy.attempt.Owner`."""
        self._attempts.remove(attempt)
        self.waited_s += attempt.waited_s
        if self.has_answered:
            self._break_off(attempt, reason)
            return
        if reason == "overloaded":
            self.arm.strategy.withdrawn(self._routing, attempt.decision)
            if self._attempts:
                self.left_endpoint()
            else:
                self._failed_with = reason
                self._give_up()
            return
        self._may_be_stale = self._may_be_stale and not attempt.is_resent
        if reason != "connect":
            self._may_be_fetched()
        if reason != "connect" or not self._failed_with.isdigit():  # a refusal hides no endpoint's answer
            self._failed_with = reason
        self.not_served(self._routing, attempt.decision, is_ill=reason not in ("connect", "timeout"))
        if self._attempts:  # the other one may still answer
            self.left_endpoint()
        else:
            self._retry_or_give_up(reason)

    def not_served(self, routing: RoutingRequest, decision: Decision, *, is_ill: bool) -> None:
        """The endpoint gave no answer, or none that is one: the prompt's prefix follows whoever serves it instead."""
        services = self._services
        self.arm.strategy.withdrawn(routing, decision)
        if is_ill and decision.endpoint.answer_failed(services.clock()):
            log.warning(
                "endpoint fails to answer and is passed over for a while",
                request_id=self.logged_id,
                endpoint=decision.endpoint.url,
            )
            services.choosing.forget(decision.endpoint)

    def _retry_or_give_up(self, reason: str) -> None:
        if reason == "connect":  # it has loaded nobody
            self.retries.append(reason)
            self._try_another()
        elif reason != "timeout" and self._may_retry(self._untried()):
            self._retry(reason)
        else:
            self._give_up()

    def _retry(self, reason: str, *, at_once: bool = False) -> None:
        """Try another endpoint: first without delay, then after pauses: where two fail, all may have too much to do.

        Also ``at_once`` after one that said when it wants to be asked again: that says nothing of the others.
        """
        earlier = self._paid_retries
        self.retries.append(reason)
        if at_once or not earlier:
            self._try_another()
            return
        pause_s = min(RETRY_PAUSE_S * 2 ** (earlier - 1), RETRY_PAUSE_MAX_S) * uniform(0.5, 1.0)
        self._pause = asyncio.get_running_loop().call_later(pause_s, self._pause_over)

    def _pause_over(self) -> None:
        self._pause = None
        self._try_another()

    @property
    def _paid_retries(self) -> int:
        return sum(reason not in ("connect", "hedge") for reason in self.retries)

    def _try_another(self) -> None:
        """Open the next attempt, or wait until an endpoint that was not tried has room for it."""
        ticket, services = self._ticket, self._services
        untried = self._untried()
        if ticket is None or services.admission is None:
            self._attempt()
            return
        if not untried or services.with_room(untried):
            self._attempt()
            services.admission.pump()  # the endpoint that failed has room now
            return
        ticket.lane = Lane(self._routing.model, frozenset(self._tried))
        services.admission.leave(services.clock())
        self._ask(ticket, comes_back=True)

    def _untried(self) -> list[Endpoint]:
        services = self._services
        return services.endpoints.candidates(self._routing.model or None, services.clock(), self._tried)

    def _may_retry(self, endpoints: Sequence[Endpoint]) -> bool:
        """Whether one more attempt is allowed, there is an endpoint for it, and the budget pays for it."""
        services = self._services
        if not self._may_repeat:
            return False
        if self._paid_retries >= services.config.retries:
            return False
        return bool(endpoints) and services.budget.spend()

    def _give_up(self) -> None:
        """Answer with an error of our own: no endpoint is left to try."""
        failed_with = self._failed_with or "connect"
        self.status = int(failed_with) if failed_with.isdigit() else _FAILURE_STATUSES.get(failed_with, 502)
        message = {
            "connect": "No endpoint can be reached at the moment.",
            "overloaded": "The router can make no further connection at the moment.",
            "timeout": "The endpoint did not answer in time.",
        }.get(failed_with, "The endpoint broke off before it answered.")
        if failed_with.isdigit():
            message = f"An endpoint answered {failed_with}, and no other can be reached at the moment."
        assert self._client is not None
        self.has_answered = True
        self.answered_at = self._services.clock()
        extra = [b"x-request-id: %b\r\n" % self.request_id, *([b"retry-after: 1\r\n"] if self.status == 503 else [])]
        self._client.write_error(
            self.status,
            message,
            failed_with if failed_with == "overloaded" else f"endpoint_{failed_with}",
            keep_alive=self.keep_alive,
            extra=extra,
            without_body=self.head.method == b"HEAD",
        )
        self._finish()

    # The response, as the upstream connection reports it --------------------------------------------------------------

    def response_began(self, attempt: Attempt, response: ResponseHead) -> None:
        """See :class:`~tierline.router.proxy.attempt.Owner`."""
        status = response.status
        if self._facade is not None:
            self._facade.quote_anew()
        is_told_when = attempt.heed_retry_after()
        if len(self._attempts) > 1 and (status >= 500 or status in RETRIED_STATUSES):  # the other may do better
            self.not_served(self._routing, attempt.decision, is_ill=status in ILL_STATUSES)
            self._failed_with = str(status)
            self._drop(attempt)
            self.left_endpoint()
            return
        may_be_handed_over = status == 500 or (status in ILL_STATUSES and not is_told_when)
        is_of_others = status == pairs.NOT_ITS_WEIGHTS  # it has computed nothing
        if self._handed and (is_of_others or (may_be_handed_over and self._services.budget.spend())):
            self._try_alone(attempt)  # which counts as its failure if it fails again
            return
        if status not in RETRIED_STATUSES:
            return
        self.not_served(self._routing, attempt.decision, is_ill=status in ILL_STATUSES)
        now = self._services.clock()
        # An answer is worth more than an endpoint that is believed to be down.
        if self._may_retry([endpoint for endpoint in self._untried() if endpoint.is_usable(now)]):
            self._failed_with = str(status)
            self._drop(attempt)
            self._may_be_fetched()
            self._retry(str(status), at_once=is_told_when)

    def response_data(self, attempt: Attempt, data: bytes) -> None:
        """See :class:`~tierline.router.proxy.attempt.Owner`; written through at once."""
        assert self._client is not None
        if self._hedge is not None and not self.has_answered:
            self._settle(attempt)
        if self._facade is not None:
            assert attempt.response is not None
            if attempt.response.status >= 400:
                self._facade.quote(data)
                return
            if self._facade.streams:
                data = self._facade.part(data)
        self._client.write(data if self.has_answered else self._answer(attempt) + data)
        if len(data) < SMALL_BYTES and len(self._last) < TAIL_BYTES:
            self._last += data
        else:
            self._before_last, self._last = self._last, data
        if self.is_event_stream:
            self._events += data.count(b"data: ")

    def response_ended(self, attempt: Attempt) -> None:
        """See :class:`~tierline.router.proxy.attempt.Owner`."""
        response = attempt.response
        assert response is not None
        if self._hedge is not None and not self.has_answered:
            self._settle(attempt)
        if self._facade is not None and self._rewrites(response.status):
            self._end_rewritten(attempt, self._facade, response)
        elif not self.has_answered:
            assert self._client is not None
            self._client.write(self._answer(attempt))
        if self._is_paused:
            attempt.resume()
        if response.status not in ILL_STATUSES:
            attempt.decision.endpoint.answer_succeeded()
        if self.status == 200:
            self._measure(attempt.decision)
            if self._services.hedging is not None:
                self._services.hedging.answered(self._kind, self.answered_at - self.started_at - self.queued_s)
        self._attempts.remove(attempt)
        attempt.close()
        self._finish()

    def _measure(self, decision: Decision) -> None:
        """Learn what a good answer tells of the engine."""
        is_predicted = decision.total_blocks or self.arm.is_compared
        if is_predicted or self._services.dashboard is not None:
            self.actual_cached_tokens = cached_tokens(self._before_last, self._last)
            if self.actual_cached_tokens is not None and not self._is_paired:
                self.prompt_tokens = prompt_tokens(self._before_last, self._last)
                if is_predicted:
                    decision.endpoint.cache_told(decision.predicted_cached_tokens, self.actual_cached_tokens)
        if self._events > 1:
            self.itl_s = (self._services.clock() - self.answered_at) / (self._events - 1)

    def _end_rewritten(self, attempt: Attempt, facade: Facade, response: ResponseHead) -> None:
        assert self._client is not None
        if response.status < 400:
            self._client.write((b"" if self.has_answered else self._answer(attempt)) + facade.end())
            return
        self.has_answered = True
        self.answered_at = self._services.clock()
        self.status = sagemaker.MODEL_ERROR
        body, fields = facade.model_error(response.status)
        request_id = b"x-request-id: %b\r\n" % self.request_id
        self._client.write_reply(self.status, body, keep_alive=self.keep_alive, extra=(request_id, *fields))

    def _answer(self, attempt: Attempt) -> bytes:
        """Return the head for the client: the point of no return."""
        response, decision, now = attempt.response, attempt.decision, self._services.clock()
        assert response is not None
        self.has_answered = True
        self.answered_at = now
        self.status = response.status
        self.is_event_stream = response.is_event_stream
        attempt.answered(now - attempt.sent_at if response.is_event_stream else None)
        self._release_body()
        framed = self._framing(attempt, response)
        lines = response.lines if self._facade is None else self._facade.head_lines(response)
        if self._told_id and response.has_request_id:
            lines = [self._in_client_s_words(line) for line in lines]
        return (
            b"%b%b%b%b%b%bx-tierline-endpoint: %b\r\nx-tierline-reason: %b\r\n"
            b"x-tierline-matched-blocks: %d\r\nx-tierline-prompt-blocks: %d\r\n"
            b"x-tierline-predicted-cached-tokens: %d\r\n%b%b\r\n" % (
                status_line(response.status, response.reason), b"".join(lines), framed,
                b"" if response.has_request_id else b"x-request-id: %b\r\n" % self.request_id,
                self._prefill_line() if self.pairing is not None else b"",
                self.arm.fields, decision.endpoint.name, decision.reason.encode(),
                decision.matched_blocks, decision.total_blocks, decision.predicted_cached_tokens,
                _tier_field(decision) if decision.predicted_by_tier else b"",
                b"x-tierline-confidence: %b\r\n" % decision.confidence.encode() if decision.confidence else b"",
            )
        )  # fmt: skip

    def _in_client_s_words(self, line: bytes) -> bytes:
        """Return a line of an answer's head; where it is the id that the endpoint was sent, with the client's."""
        is_id = line[: len(_ID_LINE)].lower() == _ID_LINE
        return line.replace(self._told_id, self.request_id) if is_id else line

    @property
    def _is_paired(self) -> bool:
        return self.pairing is not None and self.pairing.outcome == "paired"

    def _prefill_line(self) -> bytes:
        assert self.pairing is not None
        if self.pairing.outcome != "paired" or self.pairing.prefill is None:
            return b""
        return b"x-tierline-prefill-endpoint: %b\r\n" % self.pairing.prefill.endpoint.name

    def _framing(self, attempt: Attempt, response: ResponseHead) -> bytes:
        """Return the hop-by-hop fields for the client, and settle whether its connection lasts."""
        if self._facade is not None and self._facade.streams:
            field, lasts = b"", self.takes_chunks
        else:
            field, lasts = framing(response, attempt.body, takes_chunks=self.takes_chunks)
        self.keep_alive = self.keep_alive and lasts and not self._services.is_draining
        return field + connection_field(keep_alive=self.keep_alive, takes_chunks=self.takes_chunks)

    def _break_off(self, attempt: Attempt, reason: str) -> None:
        """The answer broke in its middle: an event stream ends with an error, any other body short of its framing."""
        assert self._client is not None
        self.aborted_by = "upstream"
        self.keep_alive = False
        body = attempt.body
        message = (
            "The answer did not come to its end in time."
            if reason == "timeout"
            else "The endpoint broke off in the middle of its answer."
        )
        if self._facade is not None and self._facade.streams:
            self._client.write(self._facade.broken(message, reason))
        elif self.is_event_stream and not isinstance(body, LengthBody):
            event = error_event(message, f"endpoint_{reason}")
            if not isinstance(body, ChunkedBody) or body.keeps_payload:
                self._client.write(event)
            elif body.is_between_chunks:
                self._client.write(chunk(event) + LAST_CHUNK)
        elif ends_by_closing(body):
            self._client.abort()
        self._finish()

    # What happens to the client ---------------------------------------------------------------------------------------

    def client_gone(self) -> None:
        """The client closed its connection: so does the endpoint's, which makes the engine stop."""
        self.aborted_by = "client"
        self.keep_alive = False
        self._client = None
        if not self._stops_waiting() and not self._stops_asking():
            self._stops_prefill()
            self._drop_all()
        self._finish()

    def client_paused(self) -> None:
        """The client does not read as fast as the endpoint writes."""
        self._is_paused = True
        for attempt in self._attempts:
            attempt.pause()

    def client_resumed(self) -> None:
        """The client caught up."""
        self._is_paused = False
        for attempt in self._attempts:
            attempt.resume()

    def expired(self) -> None:
        """The endpoint had its time, or no place came free in time."""
        if self._stops_waiting():
            self._overflow("queue_timeout")
            return
        if self._stops_asking():
            self._failed_with = "timeout"
            self._give_up()
            return
        if self._prefill is not None:
            self._prefill.expired()
            return
        self._failed_with = "timeout"
        attempts = self._drop_all("timeout")
        if self.has_answered:
            self._break_off(attempts[0], "timeout")
        else:
            self._give_up()

    def end_if_begun_before(self, time: float) -> None:
        """End a request that had all the time that one may have, whatever it is doing."""
        if self.started_at < time:
            self._stops_prefill()
            self.expired()

    def _stops_waiting(self) -> bool:
        """Leave the queue; returns whether this waited there."""
        ticket = self._ticket
        if ticket is None or not ticket.is_waiting:
            return False
        assert self._services.admission is not None
        self._services.admission.withdraw(ticket)
        self._ticket = None
        self._queue_left()
        return True

    def _stops_prefill(self) -> None:
        """Have nothing computed for an attempt that will not be sent."""
        prefill, self._prefill = self._prefill, None
        if prefill is not None and self._alone is not None:
            prefill.drop()
            self.arm.strategy.withdrawn(self._routing, self._alone)

    def _drop(self, attempt: Attempt) -> None:
        """End an attempt whose answer is not wanted."""
        self._attempts.remove(attempt)
        self.waited_s += attempt.waited_s
        attempt.drop()

    def _drop_all(self, why: str = CANCELED) -> list[Attempt]:
        """End every attempt, and return them."""
        attempts, self._attempts = self._attempts, []
        for attempt in attempts:
            attempt.drop(why)
        return attempts

    # The end ----------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        self.ended_at = self._services.clock()
        if self._hedge_timer is not None:
            self._hedge_timer.cancel()
            self._hedge_timer = None
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._release_body()
        self._services.metrics.exchange_ended(self)
        self._services.decisions.exchange_ended(self)
        if self._services.dashboard is not None:
            self._services.dashboard.history.exchange_ended(self)
        if self.trace is not None and self._services.spans is not None:
            self._services.spans.ended(self.trace, self)
        if self._services.config.log_level == "debug":
            self._log()
        client, self._client = self._client, None
        self._before_last = self._last = b""
        if self._ticket is not None:
            self._ticket = None
            assert self._services.admission is not None
            self._services.admission.leave(self.ended_at)
        if client is not None:
            client.exchange_ended(keep_alive=self.keep_alive)

    def _release_body(self) -> None:
        self._services.held_bytes -= self._held_bytes
        self._held_bytes = 0
        self._body = b""
        self._members = {}
        self._routing = _NOTHING  # its fields are views of the body

    def _log(self) -> None:
        decision = self.decision
        log.debug(
            "request",
            request_id=self.logged_id,
            traceparent=self.head.fields.get(TRACEPARENT, b"").decode("latin-1") or None,
            route=self.route,
            status=self.status,
            endpoint=decision.endpoint.url if decision else None,
            reason=decision.reason if decision else None,
            strategy=self.arm.strategy.name,
            arm=self.arm.name,
            matched_blocks=decision.matched_blocks if decision else 0,
            total_blocks=decision.total_blocks if decision else 0,
            retries=self.retries,
            aborted_by=self.aborted_by or None,
            seconds=round(self.ended_at - self.started_at, 6),
        )


def _chosen(field: bytes) -> bytes:
    """Return the id that a client chose, also where a router before this one sent it with a place in a trace."""
    return read_id(field.decode("latin-1"))[0].encode("latin-1") if b"~" in field else field


def _tier_field(decision: Decision) -> bytes:
    read = ", ".join(f"{tier}={tokens}" for tier, tokens in decision.tiers.items())
    return b"x-tierline-predicted-by-tier: %b\r\n" % read.encode() if read else b""
