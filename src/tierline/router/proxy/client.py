"""A client's connection: cuts what arrives into requests, and runs one cycle at a time, such as an exchange.

Reading goes on while a cycle runs, since only a reader learns that the client has left. A client that closes its
sending side counts as gone.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from math import inf
from socket import SO_LINGER, SOL_SOCKET
from struct import Struct
from typing import cast

from tierline.router.http.bodies import ChunkedBody, LengthBody
from tierline.router.http.heads import HEAD_END, BadMessage, RequestHead
from tierline.router.http.replies import CONTINUE, JSON, error_body, reply
from tierline.router.keys import ApiKey
from tierline.router.proxy import sagemaker
from tierline.router.proxy.serving import Cycle, Dispatch, Serving

LINGER_SECONDS = 2.0
"""After a refusal the client may still be sending: closing at once would reset the connection and lose the refusal.
It counts from the moment that all is sent; a client that reads slowly has ``stream_timeout_s`` before that."""

_NO_LINGER = Struct("ii").pack(1, 0)
"""Of SO_LINGER: without it, a socket that is closed sends an orderly end, whatever its program meant."""


class ClientConnection(asyncio.Protocol):
    """One client's connection.

    Invariants
    ----------
    - It reads a head (``_head`` is ``None``), or that head's body (``_head`` is set), or runs an exchange
      (``_exchange`` is set). Meanwhile bytes of later requests wait in ``_unread``, about one head's size at most.
    - Once ``_is_closing``, nothing more is parsed.
    - ``deadline`` is when :meth:`expired` is due, whatever the connection waits for; ``_is_idle`` from the end of one
      request to the first bytes of the next, which must then be whole within ``request_timeout_s``.
    - ``_flush_by`` is set from the start of closing until nothing is left to send: when that must be so.
    - ``_held_bytes`` is what of ``services.held_bytes`` is ours; an exchange takes it over with the body.

    Parameters
    ----------
    services
        What it shares with the program's other connections.
    dispatch
        Says what becomes of a request.
    """

    __slots__ = (
        "_body", "_dispatch", "_exchange", "_flush_by", "_head", "_held_bytes", "_is_advancing", "_is_closing",
        "_is_facade", "_is_idle", "_is_reading_paused", "_is_write_paused", "_key", "_pieces", "_services",
        "_stream_timeout_s", "_transport", "_unread", "deadline",
    )  # fmt: skip

    def __init__(self, services: Serving, dispatch: Dispatch) -> None:
        self._services = services
        self._dispatch = dispatch
        self._stream_timeout_s = services.config.stream_timeout_s
        self._unread = b""
        self._head: RequestHead | None = None
        self._key: ApiKey | None = None
        """Of the head's request, where keys are asked for."""
        self._body: LengthBody | ChunkedBody = LengthBody(0)
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._exchange: Cycle | None = None
        self._is_advancing = False
        self._is_closing = False
        self._is_facade = False
        """The latest request is one of SageMaker's API."""
        self._is_idle = True
        self._is_reading_paused = False
        self._is_write_paused = False
        self._flush_by: float | None = None
        self.deadline = inf

    # What an exchange or a local answer asks for ----------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send a part of an answer."""
        self._transport.write(data)
        if not self._is_write_paused:
            self.deadline = self._services.clock() + self._stream_timeout_s

    def write_reply(
        self,
        status: int,
        body: bytes,
        *,
        keep_alive: bool,
        content_type: bytes = JSON,
        extra: Sequence[bytes] = (),
        without_body: bool = False,
    ) -> None:
        """Send a whole answer of the router's own."""
        keep_alive = keep_alive and not self._services.is_draining
        self._transport.write(
            reply(
                status,
                body,
                content_type=content_type,
                extra=extra,
                keep_alive=keep_alive,
                without_body=without_body,
            )
        )
        if not keep_alive:
            self._close()

    def write_error(
        self,
        status: int,
        message: str,
        code: str,
        *,
        keep_alive: bool,
        extra: Sequence[bytes] = (),
        without_body: bool = False,
        param: str | None = None,
    ) -> None:
        """Send an error in OpenAI's shape, or in SageMaker's on its routes."""
        if self._is_facade:
            status, body, fields = sagemaker.error(status, message)
            extra = (*extra, *fields)
        else:
            body = error_body(status, message, code, param)
        self.write_reply(status, body, keep_alive=keep_alive, extra=extra, without_body=without_body)

    def abort(self) -> None:
        """Close without an orderly end: the client sees that the connection was reset, not that it ended."""
        self._is_closing = True
        socket = self._transport.get_extra_info("socket")
        if socket is not None:
            with contextlib.suppress(OSError):  # it is closed already
                socket.setsockopt(SOL_SOCKET, SO_LINGER, _NO_LINGER)
        self._transport.abort()

    def exchange_ended(self, *, keep_alive: bool) -> None:
        """The exchange is over, and all of its answer is written."""
        self._exchange = None
        if not keep_alive or self._services.is_draining:
            self._close()
        elif not self._is_closing:
            self._await_request()
            if self._unread and not self._is_advancing:
                self._advance()

    def shut_down(self) -> None:
        """The router stops: close now if no request runs here or has begun to arrive, else after its answer."""
        if self._exchange is None and self._is_idle and not self._is_closing:
            self._is_closing = True
            self._begin_flush()
            self._transport.close()

    def end_if_begun_before(self, time: float) -> None:
        """End a request that came before ``time``: it has had as long as one may have."""
        if self._exchange is not None:
            self._exchange.end_if_begun_before(time)

    def expired(self) -> None:
        """The deadline passed."""
        if self._flush_by is not None:
            self._flush(self._flush_by)
        elif self._is_write_paused or self._is_closing:
            self._transport.abort()
        elif self._exchange is not None:
            self._exchange.expired()
        elif self._head is not None or self._unread:
            self._refuse(408, "The request did not arrive in time.")
        else:
            self._close()

    # What the event loop reports --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        services = self._services
        services.clients.add(self)
        if len(services.clients) > services.config.connections:
            services.metrics.connections_refused += 1
            self._refuse(503, "Too many connections.")
        else:
            self._await_request()

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        if self._is_closing:
            return
        self._unread = self._unread + data if self._unread else data
        if self._exchange is None:
            self._advance()
        elif len(self._unread) > self._services.config.head_bytes and not self._is_reading_paused:
            self._is_reading_paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """See :class:`asyncio.Protocol`."""
        self._services.clients.discard(self)
        self._is_closing = True
        self._drop_body()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()

    def pause_writing(self) -> None:
        """See :class:`asyncio.BaseProtocol`."""
        self._is_write_paused = True
        if self._flush_by is None:
            self.deadline = self._services.clock() + self._stream_timeout_s
        if self._exchange is not None:
            self._exchange.client_paused()

    def resume_writing(self) -> None:
        """See :class:`asyncio.BaseProtocol`."""
        self._is_write_paused = False
        if self._is_closing:
            return
        if self._exchange is not None:
            self.deadline = self._services.clock() + self._stream_timeout_s
            self._exchange.client_resumed()
            return
        if self._is_idle:
            self._await_request()
        self._advance()

    # Cutting requests -------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Go through what has arrived, as far as it goes."""
        self._is_advancing = True
        try:
            while self._exchange is None and not self._is_closing and not self._is_write_paused:
                if (self._head is None and not self._read_head()) or not self._read_body():
                    break
                self._begin()
        except BadMessage as error:
            self._refuse(error.status, str(error), error.code, error.extra)
        finally:
            self._is_advancing = False
        if self._is_idle and self._exchange is None and not self._is_closing and (self._unread or self._head):
            self._is_idle = False
            self.deadline = self._services.clock() + self._services.config.request_timeout_s

    def _read_head(self) -> bool:
        """Return whether a head is there."""
        services, data = self._services, self._unread
        config = services.config
        while data.startswith(b"\r\n"):  # RFC 9112, 2.2
            data = self._unread = data[2:]
        if not data:
            return False
        end = data.find(HEAD_END) + len(HEAD_END)
        if end > config.head_bytes or (end < len(HEAD_END) and len(data) > config.head_bytes):
            raise BadMessage(431, f"the request's head is larger than {config.head_bytes} bytes")
        if end < len(HEAD_END):
            return False
        head = RequestHead(data[:end], services.wanted_fields, services.withheld_fields)
        self._unread = data[end:]
        self._is_facade = head.path.startswith(sagemaker.PREFIX)
        if services.keys is not None:
            self._key = services.keys.admit(head.path, head.fields)
        if head.length is not None and head.length > config.body_bytes:
            raise BadMessage(413, f"the request's body is larger than {config.body_bytes} bytes")
        self._body = ChunkedBody(keeps_payload=True) if head.is_chunked else LengthBody(head.length or 0)
        if head.expects_continue and not self._body.is_complete and not self._unread:
            self._transport.write(CONTINUE)
        self._head = head
        return True

    def _read_body(self) -> bool:
        """Return whether the body is whole."""
        if self._body.is_complete:
            return True
        data = self._unread
        if not data:
            return False
        taken = self._body.feed(data)
        self._unread = data[taken:]
        services = self._services
        self._held_bytes += taken
        services.held_bytes += taken
        if self._held_bytes > services.config.body_bytes + services.config.head_bytes:
            raise BadMessage(413, f"the request's body is larger than {services.config.body_bytes} bytes")
        if services.held_bytes > services.config.buffered_bytes:
            raise BadMessage(503, "The router holds as many request bodies as it may.")
        if isinstance(self._body, LengthBody):
            self._pieces.append(data[:taken])
        self.deadline = services.clock() + services.config.request_timeout_s
        return self._body.is_complete

    def _begin(self) -> None:
        """Answer the request that is there, or start its exchange."""
        head, services = self._head, self._services
        assert head is not None
        if isinstance(self._body, ChunkedBody):
            body = self._body.take_payload()
        else:
            body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._head, self._pieces, self._body = None, [], LengthBody(0)
        exchange = self._dispatch(self, head, body, self._held_bytes, self._key)
        if exchange is None:
            services.held_bytes -= self._held_bytes
            self._held_bytes = 0
            if not self._is_closing:
                self._await_request()
            return
        self._exchange, self._held_bytes = exchange, 0
        self.deadline = services.clock() + services.config.response_timeout_s
        exchange.start()

    def _await_request(self) -> None:
        self._is_idle = True
        if self._is_write_paused:  # the client has yet to read its answer
            self.deadline = self._services.clock() + self._stream_timeout_s
        else:
            self.deadline = self._services.clock() + self._services.config.idle_timeout_s
        if self._is_reading_paused:
            self._is_reading_paused = False
            self._transport.resume_reading()

    # The end ----------------------------------------------------------------------------------------------------------

    def _refuse(self, status: int, message: str, code: str = "", extra: bytes = b"") -> None:
        """Answer a request that cannot be read, or whose sender is unknown, and read nothing more."""
        self._services.metrics.request_refused(status)
        code = code or ("bad_request" if status < 500 else "overloaded")
        self.write_error(status, message, code, keep_alive=False, extra=(extra,))

    def _close(self) -> None:
        """Send what is written, then the end of the stream; then wait a moment for the client's own end."""
        if self._is_closing:
            return
        self._is_closing = True
        self._drop_body()
        self._begin_flush()
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:  # TLS has no half of an end
            self._transport.close()

    def _begin_flush(self) -> None:
        now = self._services.clock()
        self._flush_by = now + self._stream_timeout_s
        self.deadline = now  # each sweep looks how far it is

    def _flush(self, until: float) -> None:
        """Wait for what is written to be sent, and then for the client's end."""
        now = self._services.clock()
        if not self._transport.get_write_buffer_size():
            self._flush_by = None
            self.deadline = now + LINGER_SECONDS
        elif now >= until:
            self._transport.abort()

    def _drop_body(self) -> None:
        self._services.held_bytes -= self._held_bytes
        self._held_bytes = 0
        self._head, self._pieces, self._body, self._unread = None, [], LengthBody(0), b""
