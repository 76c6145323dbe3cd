"""One request and its answer through the proxy: perhaps a wait, then the request to the model, and back what it says.

Rules: an answer's head waits for the first byte of its body, so that a model that breaks before it is an error, and
whoever asked may ask another pod. What breaks later ends as it broke: short of its framing, for the router in front
says more of it than a proxy could. Nothing is asked of the model twice, but what went on a connection that it had
closed already.
"""

import asyncio

from tierline import logs
from tierline.proxy.capture import Record
from tierline.proxy.services import REQUEST_ID, ProxyServices
from tierline.router.admission import Ticket, Verdict
from tierline.router.endpoints import OWN_SHORTAGES
from tierline.router.http.bodies import ChunkedBody, LengthBody, UntilCloseBody
from tierline.router.http.heads import RequestHead, ResponseHead
from tierline.router.http.relaying import connection_field, ends_by_closing, framing
from tierline.router.http.replies import status_line
from tierline.router.keys import ApiKey
from tierline.router.pairs import NOT_ITS_WEIGHTS, X_TIERLINE_WEIGHTS
from tierline.router.proxy.client import ClientConnection
from tierline.router.proxy.upstream import UpstreamConnection
from tierline.tracing.context import Origin

log = logs.get(__name__)

_NOT_INVOCATIONS = frozenset({
    b"/tokenize", b"/detokenize", b"/v1/load_lora_adapter", b"/v1/unload_lora_adapter", b"/sleep", b"/wake_up",
    b"/reset_prefix_cache", b"/reset_mm_cache", b"/start_profile", b"/stop_profile", b"/collective_rpc",
})  # fmt: skip
"""What is posted and computes no answer of the model: it must not wait behind what does."""
_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})  # RFC 9110, 9.2.2
_FAILURES = {
    "connect": (503, "The model's server cannot be reached."),
    "overloaded": (503, "The proxy can make no further connection at the moment."),
    "timeout": (504, "The model did not answer in time."),
    "reset": (502, "The model's server broke off before it answered."),
    "malformed": (502, "The model's server answered with something that is not HTTP."),
}


def relay(
    services: ProxyServices,
    client: ClientConnection,
    head: RequestHead,
    body: bytes,
    held_bytes: int,
    key: ApiKey | None,  # noqa: ARG001  (no proxy asks for one)
) -> "Relay":
    """Return what passes a request on; see :data:`~tierline.router.proxy.serving.Dispatch`."""
    return Relay(services, client, head, body, held_bytes)


class Relay:
    """One request and its answer.

    Invariants
    ----------
    - ``_ticket`` is set for an invocation under a limit, from :meth:`start` to the end; nothing is sent while it waits.
    - ``_connecting`` is set while a connection is made, then ``_connection``, until the answer is whole or given up.
    - ``_is_at_model`` from the request's being let through to the end; the metric counts an invocation meanwhile.
    - ``_has_answered`` turns true with the first byte that the client gets.
    - :meth:`_finish` runs exactly once.

    Parameters
    ----------
    services, client
        Where it runs, and for whom.
    head, body
        The request.
    held_bytes
        What the body counts for in ``services.held_bytes``.
    """

    __slots__ = (
        "_body", "_client", "_connecting", "_connection", "_first_byte_at", "_has_answered", "_head", "_held_bytes",
        "_is_at_model", "_is_broken", "_is_invocation", "_is_paused", "_is_resent", "_keep_alive", "_queued_at",
        "_record", "_response", "_response_body", "_sent_at", "_services", "_started_at", "_status", "_ticket",
    )  # fmt: skip

    def __init__(
        self, services: ProxyServices, client: ClientConnection, head: RequestHead, body: bytes, held_bytes: int
    ) -> None:
        self._services = services
        self._client: ClientConnection | None = client
        self._head = head
        self._body = body
        self._held_bytes = held_bytes
        self._started_at = services.clock()
        self._is_invocation = head.method == b"POST" and head.path not in _NOT_INVOCATIONS
        self._ticket: Ticket | None = None
        self._queued_at: float | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._connection: UpstreamConnection | None = None
        self._is_at_model = False
        self._is_resent = False
        self._response: ResponseHead | None = None
        self._response_body: LengthBody | ChunkedBody | UntilCloseBody | None = None
        self._has_answered = False
        self._is_broken = False
        self._is_paused = False
        self._keep_alive = head.keep_alive
        self._status = 0
        self._sent_at = 0.0
        self._first_byte_at: float | None = None
        self._record: Record | None = None

    # Waiting ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Send the request to the model, now or when its turn has come."""
        services = self._services
        weights = self._head.fields.get(X_TIERLINE_WEIGHTS)
        if weights is not None and services.config.weights not in (None, weights.decode("latin-1")):
            self._answer_error(NOT_ITS_WEIGHTS, "The model here has other weights than the KV of this.", "weights")
            return
        if self._is_invocation and services.capture is not None:
            self._record = services.capture.begin(self._head, self._body)
        admission = services.admission
        if admission is None or not self._is_invocation:
            self._send()
            return
        self._ticket = Ticket("", None, 0, 1, self._turn_came, self._displaced)
        match admission.enter(self._ticket):
            case Verdict.RUNS:
                self._send()
            case Verdict.REFUSED:
                self._ticket = None
                self._overflow("queue_full")
            case Verdict.WAITS:
                assert self._client is not None
                self._queued_at = services.clock()
                self._client.deadline = self._queued_at + services.config.queue_timeout_s

    def _turn_came(self) -> None:
        assert self._client is not None
        self._waited()
        self._client.deadline = self._services.clock() + self._services.config.response_timeout_s
        self._send()

    def _displaced(self) -> None:
        raise AssertionError("all have one priority and one tenant: nobody's place is needed more")

    def _waited(self) -> None:
        assert self._queued_at is not None
        self._services.metrics.waited(self._services.clock() - self._queued_at)
        self._queued_at = None

    def _stops_waiting(self) -> bool:
        """Leave the queue; returns whether this waited there."""
        ticket = self._ticket
        if ticket is None or not ticket.is_waiting:
            return False
        assert self._services.admission is not None
        self._services.admission.withdraw(ticket)
        self._ticket = None
        self._waited()
        return True

    def _overflow(self, code: str) -> None:
        """Turn the request away.

        Without ``Retry-After``, which counts in whole seconds: a place comes free with the next answer, and the router
        would leave the whole pod in peace for as long.
        """
        self._services.metrics.limits_reached[code] += 1
        self._answer_error(
            self._services.config.overflow_status, "The model has as many requests as it may; try again later.", code
        )

    # To the model -----------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        services = self._services
        self._is_at_model = True
        services.metrics.concurrent += self._is_invocation
        self._sent_at = services.clock()
        may_repeat = self._is_invocation or self._head.method in _IDEMPOTENT
        # What may not be repeated goes on a new connection: that cannot have been closed before the request came.
        connection = services.pool.take() if may_repeat else None
        if connection is None:
            self._connect()
        else:
            self._send_on(connection)

    def _connect(self) -> None:
        self._connecting = asyncio.get_running_loop().create_task(self._make_connection())

    async def _make_connection(self) -> None:
        try:
            connection = await self._services.pool.connect()
        except (OSError, UnicodeError) as error:  # UnicodeError: a host that is no domain name
            self._connecting = None
            is_own = isinstance(error, OSError) and error.errno in OWN_SHORTAGES
            self._fail("overloaded" if is_own else "connect")
            return
        self._connecting = None
        self._send_on(connection)

    def _send_on(self, connection: UpstreamConnection) -> None:
        head, body = self._head, self._body
        has_body = body or head.length is not None or head.is_chunked
        self._connection = connection
        sent = b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%b\r\n" % (
            head.method,
            head.target,
            self._services.model.authority,
            b"".join(head.lines),
            b"content-length: %d\r\n" % len(body) if has_body else b"",
        )
        connection.send(self, head.method, sent, (body,))

    # What the connection reports: see tierline.router.proxy.upstream.Asker --------------------------------------------

    def relays_chunks(self, status: int) -> bool:  # noqa: ARG002
        """Whether the client understands chunked bodies."""
        return self._head.version != "1.0"

    def response_began(self, head: ResponseHead, body: LengthBody | ChunkedBody | UntilCloseBody) -> None:
        """The head of the answer is there."""
        self._response, self._response_body = head, body
        if self._record is not None:
            self._record.answer_began(head, body)

    def response_data(self, data: bytes) -> None:
        """Some of the answer's body; written through at once."""
        assert self._client is not None
        if self._record is not None:
            self._record.answer_data(data)
        self._client.write(data if self._has_answered else self._begin_answer() + data)

    def response_ended(self) -> None:
        """The answer is whole."""
        assert self._client is not None
        if not self._has_answered:
            self._client.write(self._begin_answer())
        connection, self._connection = self._connection, None
        if self._is_paused and connection is not None:
            connection.resume()  # it is the pool's now, and who idles there is read from
        self._finish()

    def broke(self, reason: str, *, is_stale: bool) -> None:
        """The connection is lost, and the answer is not whole."""
        self._connection = None
        if is_stale and not self._is_resent:  # believed once: a server that the request kills looks the same
            self._is_resent = True
            self._connect()
        else:
            self._fail(reason)

    # To the client ----------------------------------------------------------------------------------------------------

    def _begin_answer(self) -> bytes:
        """Return the head for the client."""
        response, services = self._response, self._services
        assert response is not None
        self._has_answered = True
        self._status = response.status
        self._first_byte_at = services.clock()
        self._release_body()
        takes_chunks = self._head.version != "1.0"
        field, lasts = framing(response, self._response_body, takes_chunks=takes_chunks)
        self._keep_alive = self._keep_alive and lasts and not services.is_draining
        return b"%b%b%b%b\r\n" % (
            status_line(response.status, response.reason),
            b"".join(response.lines),
            field,
            connection_field(keep_alive=self._keep_alive, takes_chunks=takes_chunks),
        )

    def _fail(self, reason: str) -> None:
        """The model gives no answer, or no whole one."""
        if not self._has_answered:
            status, message = _FAILURES[reason]
            log.warning(
                "no answer of the model", why=reason, model=self._services.model.url, request_id=self._request_id()
            )
            self._answer_error(status, message, f"model_{reason}")
            return
        assert self._client is not None
        self._is_broken = True
        self._services.metrics.aborts["upstream"] += 1
        self._keep_alive = False
        if ends_by_closing(self._response_body):
            self._client.abort()
        self._finish()

    def _answer_error(self, status: int, message: str, code: str) -> None:
        """Answer with an error of the proxy's own."""
        assert self._client is not None
        self._has_answered = True
        self._status = status
        request_id = self._head.fields.get(REQUEST_ID)
        self._client.write_error(
            status,
            message,
            code,
            keep_alive=self._keep_alive,
            extra=(b"x-request-id: %b\r\n" % request_id,) if request_id else (),
            without_body=self._head.method == b"HEAD",
        )
        self._finish()

    # What happens to the client: see tierline.router.proxy.serving.Cycle ----------------------------------------------

    def client_gone(self) -> None:
        """The client closed its connection: so does the model's, which makes it stop computing."""
        self._client = None
        self._keep_alive = False
        self._services.metrics.aborts["client"] += 1
        if not self._stops_waiting():
            self._drop()
        self._finish()

    def client_paused(self) -> None:
        """The client does not read as fast as the model writes."""
        self._is_paused = True
        if self._connection is not None:
            self._connection.pause()

    def client_resumed(self) -> None:
        """The client caught up."""
        self._is_paused = False
        if self._connection is not None:
            self._connection.resume()

    def expired(self) -> None:
        """The model had its time, or no place came free in time."""
        if self._stops_waiting():
            self._overflow("queue_timeout")
            return
        self._drop()
        self._fail("timeout")

    def end_if_begun_before(self, time: float) -> None:
        """A proxy bounds no request as a whole: the router does."""

    def _drop(self) -> None:
        """End what is under way at the model."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()

    # The end ----------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        services, now = self._services, self._services.clock()
        self._release_body()
        client, self._client = self._client, None
        is_over = client is not None and not self._is_broken
        services.metrics.request_ended("invocation" if self._is_invocation else "other", self._status)
        if self._is_invocation:
            services.metrics.concurrent -= self._is_at_model
            is_answered = self._first_byte_at is not None
            services.metrics.invocation_ended(
                is_error=self._status >= 400 or self._is_broken,
                ttfb_s=None if self._first_byte_at is None else self._first_byte_at - self._sent_at,
                latency_s=now - self._sent_at if is_answered and is_over else None,
            )
        if self._record is not None and services.capture is not None:
            services.capture.ended(self._record, self._status, is_whole=is_over)
            self._record = None
        if self._ticket is not None:
            self._ticket = None
            assert services.admission is not None
            services.admission.leave(now)
        if services.config.log_level == "debug":
            log.debug(
                "request",
                request_id=self._request_id(),
                path=self._head.path.decode("latin-1"),
                status=self._status,
                is_whole=is_over,
                seconds=round(now - self._started_at, 6),
            )
        if client is not None:
            client.exchange_ended(keep_alive=self._keep_alive)

    def _request_id(self) -> str | None:
        """Return the request's id for the log; ``None`` where it has none."""
        return Origin.read(self._head.fields.get(REQUEST_ID, b"").decode("latin-1"), b"").request_id or None

    def _release_body(self) -> None:
        self._services.held_bytes -= self._held_bytes
        self._held_bytes = 0
        self._body = b""
