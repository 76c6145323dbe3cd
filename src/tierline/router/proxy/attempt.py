"""One sending of a request to one endpoint: a place there, a connection, the request on it, and the answer as it comes.

Rule: an attempt ends once. Its owner hears of that end (:meth:`Owner.attempt_failed` or :meth:`Owner.response_ended`)
unless it ended the attempt itself, and the endpoint's count is right by then.
"""

import asyncio
from typing import TYPE_CHECKING, Protocol

from tierline import logs
from tierline.router.endpoints import OWN_SHORTAGES
from tierline.router.http.bodies import ChunkedBody, LengthBody, UntilCloseBody
from tierline.router.http.heads import ResponseHead
from tierline.router.http.retryafter import retry_after_s
from tierline.router.strategies.base import Decision
from tierline.router.tracing.records import CANCELED, AttemptRecord, RequestRecord

if TYPE_CHECKING:
    from tierline.router.http.splicing import Piece
    from tierline.router.proxy.services import Services
    from tierline.router.proxy.upstream import UpstreamConnection

log = logs.get(__name__)

RETRIED_STATUSES = frozenset({408, 429, 502, 503, 504})
"""Answers that another endpoint may better: this one was too slow, too busy, or is not well."""
ILL_STATUSES = frozenset({502, 503, 504})
BUSY_STATUSES = frozenset({429, 503})
"""Answers that may say when to come again."""


class Owner(Protocol):
    """Whose attempt it is."""

    trace: RequestRecord | None
    """Of the request, where it is traced."""

    @property
    def logged_id(self) -> str:
        """The request's id, as log events have it."""

    def request_of(self, attempt: "Attempt") -> "tuple[bytes, bytes, tuple[Piece, ...]]":
        """Return method, head and body, in pieces, of what is to be sent."""

    def attempt_sent(self, attempt: "Attempt") -> None:
        """The request is on its way."""

    def attempt_failed(self, attempt: "Attempt", reason: str) -> None:
        """The attempt broke, and is closed.

        Parameters
        ----------
        attempt
            Which.
        reason
            As the metrics call it; ``overloaded`` where no connection can be had from here to anybody, which says
            nothing of the endpoint.
        """

    def relays_chunks(self, status: int) -> bool:
        """Whether a chunked body of an answer with this status is wanted in its chunks."""

    def response_began(self, attempt: "Attempt", response: ResponseHead) -> None:
        """The head of the answer is there; its first data, or its end, follows."""

    def response_data(self, attempt: "Attempt", data: bytes) -> None:
        """Some of the answer's body."""

    def response_ended(self, attempt: "Attempt") -> None:
        """The answer is whole; the attempt is still to be closed."""


class Attempt:
    """An attempt. It counts at its endpoint from its making to :meth:`close`.

    Invariants
    ----------
    - ``_connecting`` is set while it waits for a connection, and ``_connection`` from then to its end.
    - ``response`` is set from the head of the answer on, and ``body`` with it.
    - ``is_resent`` is set from when it repeats, on a new connection, what broke on a reused one.

    Parameters
    ----------
    services, owner
        Where it runs, and for whom.
    decision
        The endpoint, and why it.
    may_repeat
        Whether the request may be sent twice. What may not goes on a new connection, which cannot have been closed
        before the request came.
    may_be_stale
        Whether a reused connection that closes without a byte of answer is taken for one that the endpoint had closed
        before the request came; the same endpoint then gets the request again, on a new one. Believed once only: an
        endpoint that the request kills looks the same.
    """

    __slots__ = (
        "_connecting", "_connection", "_is_probe", "_may_be_stale", "_may_repeat", "_owner", "_services",
        "_span", "_tokens_before", "_unanswered_tokens", "body", "decision", "is_resent", "response", "sent_at",
        "waited_s",
    )  # fmt: skip

    def __init__(
        self, services: "Services", owner: Owner, decision: Decision, *, may_repeat: bool, may_be_stale: bool
    ) -> None:
        self._services = services
        self._owner = owner
        self.decision = decision
        self._may_repeat = may_repeat
        self._may_be_stale = may_be_stale and may_repeat
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self.is_resent = False
        self.response: ResponseHead | None = None
        self.body: LengthBody | ChunkedBody | UntilCloseBody | None = None
        self.sent_at = 0.0
        self.waited_s = 0.0
        """Spent on connecting."""
        self._is_probe = decision.endpoint.is_on_probation
        self._tokens_before = decision.endpoint.begin(decision.uncached_tokens, services.clock())
        self._unanswered_tokens = decision.uncached_tokens
        self._span: AttemptRecord | None = None
        if owner.trace is not None:
            self._span = owner.trace.attempt(decision, services.clock())

    # What its owner asks for ------------------------------------------------------------------------------------------

    def send(self) -> None:
        """Send the request, now or when there is a connection."""
        if self._span is not None:
            self._span.began_at = self._services.clock()
        connection = self._services.pools[self.decision.endpoint.position].take() if self._may_repeat else None
        if connection is None:
            self._connect_anew()
        else:
            self._send(connection)

    def expect(self, decision: Decision) -> None:
        """Let the endpoint expect something else of the same request, which is not sent yet."""
        endpoint = decision.endpoint
        endpoint.end(self._unanswered_tokens, is_probe=self._is_probe)
        self.decision = decision
        self._is_probe = endpoint.is_on_probation
        self._tokens_before = endpoint.begin(decision.uncached_tokens, self._services.clock())
        self._unanswered_tokens = decision.uncached_tokens

    def heed_retry_after(self) -> bool:
        """Leave the endpoint in peace for as long as its answer asks for; returns whether it does."""
        response = self.response
        if response is None or not response.retry_after or response.status not in BUSY_STATUSES:
            return False
        seconds = retry_after_s(response.retry_after)
        self.decision.endpoint.rest(self._services.clock(), seconds)
        return seconds > 0

    def answered(self, prefill_s: float | None) -> None:
        """The answer counts: its first byte is there, and no other is waited for.

        Parameters
        ----------
        prefill_s
            From the request to the first token, where the answer shows it.
        """
        assert self.response is not None
        endpoint = self.decision.endpoint
        endpoint.answered(self._unanswered_tokens, self._tokens_before, prefill_s, self._services.clock())
        self._unanswered_tokens = 0
        if self._is_probe and self.response.status not in ILL_STATUSES:
            endpoint.probe_answered()

    def pause(self) -> None:
        """Read no more for now."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume()

    def close(self, failure: str = "") -> None:
        """Count no more; the connection is nobody's, or another's. ``failure`` says why it broke, if it did."""
        self.decision.endpoint.end(self._unanswered_tokens, is_probe=self._is_probe)
        self._unanswered_tokens = 0
        self._connection = None
        if self._span is not None:
            self._span.decision, self._span.failure = self.decision, failure
            self._span.ended_at = self._services.clock()
            self._span.status = self.response.status if self.response is not None else 0
            self._span.is_resent = self.is_resent

    def drop(self, why: str = CANCELED) -> None:
        """End it: the answer is not wanted."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        connection = self._connection
        self.close(why)
        if connection is not None:
            connection.abandon()

    # Sending ----------------------------------------------------------------------------------------------------------

    def _connect_anew(self) -> None:
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        endpoint, clock = self.decision.endpoint, self._services.clock
        began = clock()
        try:
            connection = await self._services.pools[endpoint.position].connect()
        except (OSError, UnicodeError) as error:  # UnicodeError: a host that is no domain name
            self._connecting = None
            self.waited_s += clock() - began
            if isinstance(error, OSError) and error.errno in OWN_SHORTAGES:
                self.close("overloaded")
                log.warning(
                    "no connection to an endpoint can be made", request_id=self._owner.logged_id, why=str(error)
                )
                self._owner.attempt_failed(self, "overloaded")
                return
            # It took the request once and is gone now: perhaps that request is what it cannot bear.
            reason = "reset" if self.is_resent else "connect"
            self.close(reason)
            if endpoint.is_usable(clock()):  # else it has been said
                log.warning(
                    "endpoint cannot be reached",
                    request_id=self._owner.logged_id,
                    endpoint=endpoint.url,
                    why=str(error) or "timeout",
                )
            endpoint.connect_failed(clock())
            if isinstance(error, ConnectionRefusedError):  # nothing listens: what it held is gone
                endpoint.refused()
                self._services.choosing.forget(endpoint)
            self._owner.attempt_failed(self, reason)
            return
        self._connecting = None
        self.waited_s += clock() - began
        self._send(connection)

    def _send(self, connection: "UpstreamConnection") -> None:
        self._connection = connection
        method, head, body = self._owner.request_of(self)
        if self._span is not None and self._owner.trace is not None:
            head = b"%btraceparent: %b\r\n\r\n" % (head[:-2], self._owner.trace.field_for(self._span))
        connection.send(self, method, head, body)
        self.sent_at = self._services.clock()
        self._owner.attempt_sent(self)

    # What the connection reports --------------------------------------------------------------------------------------

    def broke(self, reason: str, *, is_stale: bool) -> None:
        """The connection is lost, and the answer is not whole.

        Parameters
        ----------
        reason
            As the metrics call it.
        is_stale
            The connection was reused and closed without a byte of answer.
        """
        self._connection = None
        if is_stale and self._may_be_stale:
            self._may_be_stale = False
            self.is_resent = True
            self._connect_anew()
            return
        self.close(reason)
        self._owner.attempt_failed(self, reason)

    def relays_chunks(self, status: int) -> bool:
        """See :meth:`Owner.relays_chunks`."""
        return self._owner.relays_chunks(status)

    def response_began(self, head: ResponseHead, body: LengthBody | ChunkedBody | UntilCloseBody) -> None:
        """The head of the answer is there."""
        self.response = head
        self.body = body
        self._owner.response_began(self, head)

    def response_data(self, data: bytes) -> None:
        """Some of the answer's body."""
        self._owner.response_data(self, data)

    def response_ended(self) -> None:
        """The answer is whole, and the connection it came on is no longer ours."""
        self._owner.response_ended(self)
