"""Connections to an endpoint, one request at a time each, and the pool that keeps the idle ones.

Rule: after anything odd (bytes nobody asked for, a head that does not parse, broken framing, bytes behind a body, an
answer before the request was out) a connection is closed and never used again: nobody can say whose bytes come next.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from tierline.router.endpoints import Endpoint
from tierline.router.http.bodies import ChunkedBody, LengthBody, UntilCloseBody, body_of_response
from tierline.router.http.heads import HEAD_END, BadMessage, ResponseHead
from tierline.router.tls import EndpointTls

if TYPE_CHECKING:
    from tierline.router.http.splicing import Piece

IDLE_SECONDS = 4.0
"""uvicorn, and with it vLLM, closes connections that idle for 5 s; what we close first cannot be closed under us."""
IDLE_MAX = 512
"""Idle connections kept of one endpoint."""
JOINED_BYTES = 64 * 1024
"""A body up to this size is cheaper copied behind its head than written as a second buffer."""


class Asker(Protocol):
    """Who sent a request and hears of its answer: an :class:`~tierline.router.proxy.attempt.Attempt`, or alike."""

    def relays_chunks(self, status: int) -> bool:
        """Whether a chunked body of an answer with this status is wanted in its chunks."""

    def response_began(self, head: ResponseHead, body: LengthBody | ChunkedBody | UntilCloseBody) -> None:
        """The head of the answer is there; its first data, or its end, follows."""

    def response_data(self, data: bytes) -> None:
        """Some of the answer's body."""

    def response_ended(self) -> None:
        """The answer is whole, and the connection it came on is no longer the asker's."""

    def broke(self, reason: str, *, is_stale: bool) -> None:
        """The connection is lost, and the answer is not whole.

        Parameters
        ----------
        reason
            ``reset`` or ``malformed``.
        is_stale
            The connection was reused and closed without a byte of answer.
        """


class UpstreamConnection(asyncio.Protocol):
    """One connection to an endpoint.

    Invariants: it belongs to one attempt (``_attempt``), or lies idle in its pool, or is closed. ``_head`` is set
    from the end of an answer's head to the end of its body, and ``body`` with it.
    """

    __slots__ = ("_attempt", "_head", "_method", "_pool", "_unread", "body", "idle_since", "is_reused", "transport")

    def __init__(self, pool: "UpstreamPool") -> None:
        self._pool = pool
        self._attempt: Asker | None = None
        self._head: ResponseHead | None = None
        self._method = b""
        self._unread = b""
        self.body: LengthBody | ChunkedBody | UntilCloseBody = LengthBody(0)
        self.is_reused = False
        self.idle_since = 0.0

    # What an attempt asks for ----------------------------------------------------------------------------------------

    def send(self, attempt: Asker, method: bytes, head: bytes, body: "tuple[Piece, ...]") -> None:
        """Send a request and hand its answer to ``attempt``."""
        self._attempt = attempt
        self._method = method
        if len(body) == 1 and len(body[0]) <= JOINED_BYTES:
            self.transport.write(head + body[0])
        elif sum(map(len, body)) <= JOINED_BYTES:
            self.transport.write(b"".join((head, *body)))
        else:
            self.transport.writelines((head, *body))

    def abandon(self) -> None:
        """The answer is no longer wanted. HTTP/1.1 has one way to say so."""
        self._attempt = None
        self.transport.abort()

    def pause(self) -> None:
        """Read no more for now: the client cannot keep up."""
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if not self.transport.is_closing():
            self.transport.resume_reading()

    # What the event loop reports --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        attempt = self._attempt
        if attempt is None:
            self._pool.lost(self)
            self.transport.abort()
            return
        try:
            if self._head is None:
                rest = self._read_head(data, attempt)
                if rest is None or self._attempt is not attempt:  # the rest is to come, or a retry was chosen
                    return
                data = rest
            self._relay(data, attempt)
        except BadMessage:
            self._fail(attempt, "malformed")

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self._pool.lost(self)
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return
        if self._head is not None and exc is None and self.body.end():
            attempt.response_ended()
        else:
            attempt.broke("reset", is_stale=self.is_reused and self._head is None and not self._unread)

    def _read_head(self, data: bytes, attempt: Asker) -> bytes | None:
        """Return what follows the final head, or ``None`` until it is there."""
        data = self._unread + data if self._unread else data
        while True:
            end = data.find(HEAD_END) + len(HEAD_END)
            if end < len(HEAD_END):
                if len(data) > self._pool.head_bytes:
                    raise BadMessage(502, "endless head")
                self._unread = data
                return None
            head = ResponseHead(data[:end])
            data = data[end:]
            if not head.is_interim:
                break
            if head.status == 101:
                raise BadMessage(502, "upgrade that nobody offered")
        self._unread = b""
        self._head = head
        self.body = body_of_response(head, self._method)
        if isinstance(self.body, ChunkedBody) and not attempt.relays_chunks(head.status):
            self.body.keep_payload()
        attempt.response_began(head, self.body)
        return data

    def _relay(self, data: bytes, attempt: Asker) -> None:
        body = self.body
        taken = body.feed(data)
        is_odd = taken < len(data)
        if is_odd:
            data = data[:taken]
        if isinstance(body, ChunkedBody) and body.keeps_payload:
            data = body.take_payload()
        if not body.is_complete:
            if data:
                attempt.response_data(data)
            return
        head, self._head, self._attempt = self._head, None, None
        assert head is not None
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # close() would wait for an endpoint that may never read the rest of its request
        elif is_odd or not head.keep_alive:
            self.transport.close()
        else:
            self._pool.give_back(self)
        if data:
            attempt.response_data(data)
        attempt.response_ended()

    def _fail(self, attempt: Asker, reason: str) -> None:
        self._attempt = None
        self.transport.abort()
        attempt.broke(reason, is_stale=False)


class UpstreamPool:
    """The connections to one endpoint that are idle, the latest used taken first.

    Invariant: every connection in ``_idle`` is open, answers no attempt, and has its reading on. After :meth:`close`
    there is none.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        connect_timeout_s: float,
        head_bytes: int,
        tls: EndpointTls,
        clock: Callable[[], float],
    ) -> None:
        self.endpoint = endpoint
        self._clock = clock
        self.head_bytes = head_bytes
        self._connect_timeout_s = connect_timeout_s
        self._tls = tls
        self._idle: list[UpstreamConnection] = []
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._idle)

    def take(self) -> UpstreamConnection | None:
        """Return an idle connection, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                connection.is_reused = True
                return connection
        return None

    async def connect(self) -> UpstreamConnection:
        """Return a new connection.

        Raises
        ------
        OSError
            When none can be had; a :class:`TimeoutError` is one.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._connect_timeout_s):
            _, connection = await loop.create_connection(
                lambda: UpstreamConnection(self),
                self.endpoint.host,
                self.endpoint.port,
                ssl=self._tls.context if self.endpoint.is_encrypted else None,
            )
        return connection

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep a connection whose answer ended as it should."""
        if self._is_closed or len(self._idle) >= IDLE_MAX or connection.transport.is_closing():
            connection.transport.close()
            return
        connection.idle_since = self._clock()
        self._idle.append(connection)

    def lost(self, connection: UpstreamConnection) -> None:
        """Forget a connection that closed, if it was idle."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close_idle(self, idle_s: float = IDLE_SECONDS) -> None:
        """Close the connections that idle for longer than ``idle_s``."""
        oldest_allowed = self._clock() - idle_s
        for connection in [idle for idle in self._idle if idle.idle_since <= oldest_allowed]:
            self._idle.remove(connection)
            connection.transport.close()

    def close(self) -> None:
        """Close what idles, and keep no connection from now on."""
        self._is_closed = True
        self.close_idle(0.0)
