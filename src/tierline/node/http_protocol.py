"""One HTTP connection of the node: bytes into requests, PUT bodies straight into the segment, replies out.

Rules: a connection has one request at a time, in the order they came, and the next when the reply before it was taken.
A head is parsed when its empty line is there, from this connection's own buffer; the bytes of a PUT after it are
received by the kernel into the object's extents and summed where they lie. Whatever ends the connection, the slot it
writes ends with it. Every phase but a pause between requests has a deadline that
:meth:`HttpConnection.enforce_deadline` watches over.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol, cast

from tierline import logs
from tierline.errors import (
    AlreadyStored,
    BeingWritten,
    NoSpace,
    ObjectTooLarge,
    QuotaExceeded,
    TooManyLeases,
    UnknownLease,
)
from tierline.node.access import Access, Grant
from tierline.node.admin import Asker, too_many_leases
from tierline.node.segments import Segments
from tierline.node.service import Verdict
from tierline.node.turns import ReceivingTurns
from tierline.node.upload import RECEIVE_BYTES, Upload
from tierline.node.waiting import within
from tierline.store import Leased, ObjectKey, Owner
from tierline.tracing.context import NOWHERE, Origin, current, working_for
from tierline.tracing.spans import Attributes
from tierline.tracing.tracer import OpenSpan
from tierline.wire import http, routes
from tierline.wire.http import HttpRefusal, RequestHead

log = logs.get(__name__)
_logger = logging.getLogger(__name__)

READS_ALONE = 4
"""Filled reads in a row while nobody else has anything for the loop; else a connection's turn ends after one."""
ALONE_S = 0.0001
"""The loop had nothing else to do if it comes back so soon."""
TURN_S = 0.001
"""A request that took longer ends the connection's turn, as does one that has another behind it."""
MOST_EMPTY_LINES = 4
"""Before a request; one is common behind a body, many are no client's."""
SEND_BYTES = 256 * 1024
MAX_IGNORED_BODY_BYTES = 64 * 1024
"""A body that a request needs not have, as some clients send with POST."""
MAX_DOCUMENT_BYTES = 1024 * 1024
"""A body that is read as JSON: decoding it takes the loop a millisecond or two."""
MAX_DOCUMENT_S = 600.0
"""An answer to an operator may take so long: a flush of millions of objects does not keep the others waiting."""
UNHEARD_S = 1.0
"""A body that seems to have stopped gets so long, once the connection hears of every byte."""
LINGER_S = 2.0
"""Before a connection is closed on a client that is still sending, so that it can read the reply."""


class HttpObserver(Protocol):
    """Hears of every request once it has been answered."""

    def http_request(self, route: str, status: HTTPStatus, seconds: float, received: int, sent: int) -> None:
        """Take note.

        Parameters
        ----------
        route
            Class name of the route; empty where none was recognised.
        received, sent
            Bytes of bodies.
        """

    def limit_reached(self, limit: str) -> None:
        """Take note that a bound of :class:`HttpLimits`, by its name, cost a client its request or its connection."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of one connection; see :class:`~tierline.node.config.NodeConfig`."""

    max_head_bytes: int
    max_object_bytes: int
    max_discarded_bytes: int
    slowest_bytes_per_s: int
    keep_alive_s: float
    head_timeout_s: float
    body_timeout_s: float


_Bodiless = (
    routes.GetObject
    | routes.DeleteObject
    | routes.AcquireLease
    | routes.ReleaseLease
    | routes.Stats
    | routes.Cluster
    | routes.Health
    | routes.Readiness
    | routes.Metrics
    | routes.AdminRoute
)


_TRACED = routes.GetObject | routes.PutObject | routes.AcquireLease
"""Routes that have a span; a prefix lease has one of its own, as it has over the UNIX socket."""


class Pages(Protocol):
    """The documents that operators read."""

    def stats(self, grant: Grant) -> bytes:
        """Return JSON, as far as somebody with these rights may see it."""

    def cluster(self) -> bytes:
        """Return JSON of the pool and the tiers."""

    def metrics(self, grant: Grant) -> tuple[bytes, str]:
        """Return the exposition, as far as somebody with these rights may see it, and its content type."""


class _Phase(Enum):
    HEAD = auto()  # between requests, or inside a head
    BODY = auto()  # an upload receives into the segment
    DOCUMENT = auto()  # a body that is read as JSON
    DISCARD = auto()  # a body nobody wants
    REPLY = auto()  # a reply is being made or sent; what is received meanwhile stays in the buffer
    LINGER = auto()  # answered for good; reads until the client has closed
    CLOSED = auto()


class HttpConnection(asyncio.BufferedProtocol):
    """Serves one connection.

    Parameters
    ----------
    segments
        The stores and their waiters; the request under way is about one of them.
    limits
        Bounds of this connection.
    observer
        Hears of each request.
    access
        Who may do what.
    pages
        Documents for operators.
    scratch
        Memory that refused bodies are received into; connections may share it, for nobody reads it.
    turns
        Who receives next, of all connections.
    connections
        The open connections of the server; this one adds and removes itself.
    turned_away
        Why this one is answered 503 and closed; empty: it is served.
    gone
        Called when it has ended.
    """

    def __init__(
        self,
        segments: Segments,
        limits: HttpLimits,
        observer: HttpObserver,
        access: Access,
        pages: Pages,
        scratch: memoryview,
        turns: ReceivingTurns,
        connections: set["HttpConnection"],
        turned_away: str,
        gone: Callable[[], None],
    ) -> None:
        self._segments = segments
        self._service = segments.first.service
        self._limits = limits
        self._observer = observer
        self._access = access
        self._pages = pages
        self._scratch = scratch
        self._turns = turns
        self._connections = connections
        self._turned_away = turned_away
        self._gone = gone

        self._transport: asyncio.Transport | None = None
        self._owner: Owner = self._service.new_owner()
        self._peer = "http"
        self._client = self._payer = self._peer  # of the request under way: whose leases it makes, who pays for them
        self._phase = _Phase.HEAD
        self._buffer = bytearray(limits.max_head_bytes)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._deadline = time.monotonic() + limits.keep_alive_s
        self._give_up = self._deadline

        self._head: RequestHead | None = None
        self._route_name = ""
        self._started = 0.0
        self._received_bytes = 0
        self._origin = NOWHERE  # of the request under way: whose work it is
        self._span: OpenSpan | None = None
        self._upload: Upload | None = None
        self._document = bytearray()
        self._after_document: Callable[[], None] | None = None
        self._reads_left = 1
        self._turn_ended = 0.0
        self._wakes_at = 1
        self._is_encrypted = False
        self._discard_left = 0
        self._after_discard: Callable[[], None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._ungranted = ""  # a lease that no reply has handed out yet
        self._is_advancing = False
        self._is_turn_over = False  # others are served before the next request is looked at
        self._empty_lines = 0
        self._is_unread = False  # the last reply has not been taken yet
        self._drained = asyncio.Event()
        self._drained.set()

    # What asyncio calls -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self._transport = cast("asyncio.Transport", transport)
        # "Drained" then means that the kernel has every byte, or TLS a copy of it; uvloop's TLS never resumes with 0.
        self._is_encrypted = transport.get_extra_info("sslcontext") is not None
        self._transport.set_write_buffer_limits(high=1 if self._is_encrypted else 0, low=0)
        if address := transport.get_extra_info("peername"):
            self._peer = f"http:{address[0]}"
        self._connections.add(self)
        if self._turned_away:
            self._started = time.monotonic()
            self._refuse(
                HttpRefusal(HTTPStatus.SERVICE_UNAVAILABLE, self._turned_away, {"Retry-After": "1"}), close=True
            )

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  (asyncio's hint knows nothing of ours)
        """Say where the next bytes go."""
        if self._phase is _Phase.HEAD:
            return self._view[self._filled :]
        if self._phase is _Phase.BODY:
            assert self._upload is not None
            return self._upload.room()
        if self._phase is _Phase.DOCUMENT:
            return memoryview(self._document)[self._received_bytes :]
        if self._phase in (_Phase.DISCARD, _Phase.LINGER, _Phase.CLOSED):
            return self._scratch[: self._discard_left] if self._phase is _Phase.DISCARD else self._scratch
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes lie where :meth:`get_buffer` said."""
        if self._phase is _Phase.HEAD:
            if not self._filled:
                self._deadline = time.monotonic() + self._limits.head_timeout_s
            self._filled += nbytes
        elif self._phase is _Phase.BODY:
            assert self._upload is not None
            self._upload.advance(nbytes)
            self._received_bytes += nbytes
            missing = self._upload.missing
            if self._wakes_at > 1 and self._wakes_at > missing:
                self._wake_at(1)
            if missing:
                self._extend_deadline()
                if nbytes == RECEIVE_BYTES:
                    self._end_turn()
                return
            self._finish_upload()
        elif self._phase is _Phase.DOCUMENT:
            self._received_bytes += nbytes
            self._document_received()
        elif self._phase is _Phase.DISCARD:
            self._discarded(nbytes)
        elif self._phase is _Phase.REPLY:
            self._filled += nbytes
            if self._filled == len(self._buffer):
                self._require_transport().pause_reading()
        self._advance()

    def eof_received(self) -> bool:
        """The client sends no more; returns whether it is still served."""
        # One that is being sent an object may have closed its half only; one that waits for a commit has given up.
        return self._phase is _Phase.REPLY and self._route_name == routes.GetObject.__name__

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio gives it)
        """The connection is gone, whoever ended it."""
        self._phase = _Phase.CLOSED
        self._connections.discard(self)
        self._gone()
        self._upload = None
        self._service.end_owner(self._owner)
        if self._task is not None:
            self._task.cancel()
        self._release_ungranted()  # here and not in the task, which may not have taken its first step
        self._drained.set()

    def pause_writing(self) -> None:
        """The client does not take the replies as fast as they come."""
        self._drained.clear()

    def resume_writing(self) -> None:
        """The client has taken what was sent."""
        self._extend_deadline()
        self._drained.set()
        if self._is_unread:
            self._is_unread = False
            self._next_request()

    # What the server calls ----------------------------------------------------------------------------------------

    def enforce_deadline(self, now: float) -> None:
        """Give up a phase that has lasted too long."""
        if now < self._deadline or self._phase is _Phase.CLOSED:
            return
        if self._phase is _Phase.HEAD and self._filled:
            self._observer.limit_reached("head_timeout_s")
            self._started = now
            self._refuse(
                HttpRefusal(HTTPStatus.REQUEST_TIMEOUT, f"no whole head within {self._limits.head_timeout_s} s"),
                close=True,
            )
        elif self._wakes_at > 1:  # what has come may be too little to hear of: it counts
            self._wake_at(1)
            self._deadline = now + UNHEARD_S
        elif self._phase in (_Phase.BODY, _Phase.DOCUMENT):
            self._observer.limit_reached("body_timeout_s")
            self._upload = None
            self._service.end_owner(self._owner)
            self._refuse(
                HttpRefusal(HTTPStatus.REQUEST_TIMEOUT, f"no bytes for {self._limits.body_timeout_s} s, or too few"),
                close=True,
            )
        else:
            if self._phase in (_Phase.REPLY, _Phase.DISCARD):
                self._observer.limit_reached("body_timeout_s")
            self.close()

    @property
    def is_writing(self) -> bool:
        """A PUT is under way."""
        return self._upload is not None

    def close(self) -> None:
        """End the connection at once; a PUT under way is undone."""
        if self._transport is not None:
            self._transport.abort()

    # Requests -----------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Start the next request if its head is whole; those behind it wait until others had their turn.

        A buffer holds hundreds of heads, and uvloop would fill it 32 times before it turns to the next connection.
        """
        if self._is_advancing or self._is_turn_over or self._phase is not _Phase.HEAD or not self._filled:
            return
        self._is_advancing = True
        try:
            is_started = self._start_request()
        finally:
            self._is_advancing = False
        if is_started and (self._filled or time.monotonic() - self._started > TURN_S):
            self._is_turn_over = True
            if not self._require_transport().is_closing():
                self._require_transport().pause_reading()
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """Others had their turn."""
        self._is_turn_over = False
        self._advance()
        self._read_on()

    def _read_on(self) -> None:
        """Read again, unless that has to wait for the connection's turn, its client or room in its buffer."""
        transport = self._require_transport()
        is_full = self._phase is _Phase.REPLY and self._filled == len(self._buffer)
        if not (self._is_turn_over or self._is_unread or is_full or transport.is_reading() or transport.is_closing()):
            transport.resume_reading()

    def _start_request(self) -> bool:
        """Take one head off the buffer and act on it; False if it is not whole yet."""
        empty = 0
        while 2 * empty + 2 <= self._filled and self._buffer.startswith(b"\r\n", 2 * empty):
            empty += 1
        if empty:  # RFC 9112, 2.2: those before a request are ignored
            self._consume(2 * empty)
            self._empty_lines += empty
        end = self._buffer.find(http.HEAD_END, 0, self._filled)
        self._started = time.monotonic()
        self._received_bytes = 0
        self._route_name = ""
        self._head = None
        self._origin = NOWHERE
        if self._empty_lines > MOST_EMPTY_LINES:
            self._refuse(HttpRefusal(HTTPStatus.BAD_REQUEST, "empty lines where a request was expected"), close=True)
            return True
        if end < 0:
            if self._filled == len(self._buffer):
                self._observer.limit_reached("max_head")
                self._refuse(
                    HttpRefusal(
                        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                        f"a head of more than {self._limits.max_head_bytes} bytes",
                    ),
                    close=True,
                )
            return False
        end += len(http.HEAD_END)
        self._empty_lines = 0
        try:
            head = self._head = http.parse_head(self._view[:end])
            self._consume(end)
            self._origin = Origin.read(head.request_id, head.traceparent)
            if self._origin is not current():  # also where a task that answers the request before goes on to this one
                with working_for(self._origin):
                    self._dispatch(head)
            else:
                self._dispatch(head)
        except HttpRefusal as refusal:
            self._refuse(refusal, close=self._head is None)
        return True

    def _dispatch(self, head: RequestHead) -> None:
        if head.is_chunked:
            raise HttpRefusal(HTTPStatus.NOT_IMPLEMENTED, "transfer codings are not taken; send a Content-Length")
        route = routes.route(head.method, head.target)
        self._route_name = type(route).__name__
        grant = self._access.admit(route, head.authorization)
        self._service = self._segments.of(route).service
        # Anybody can say any name; not so a token's, or an address.
        self._client = f"http:{head.client}" if head.client else self._peer
        self._payer = f"token:{grant.name}" if grant.is_known else self._peer
        if self._service.tracer is not None and isinstance(route, _TRACED):
            self._span = self._service.tracer.open(f"{head.method} {self._route_name}", "server", self._origin.trace)
        if self._span is None:
            self._begin(route, head, grant)
            return
        self._origin = Origin(self._origin.request_id, self._span.context)
        with working_for(self._origin):
            self._begin(route, head, grant)

    def _begin(self, route: routes.Route, head: RequestHead, grant: Grant) -> None:
        if isinstance(route, routes.PutObject):
            self._start_upload(ObjectKey(route.bucket, route.name), head, route.anchor)
        elif isinstance(route, routes.LeasePrefix):
            self._with_document(head, partial(self._administer, route))
        elif head.content_length:
            self._ignore_body(head, head.content_length, partial(self._act, route, grant))
        else:
            self._act(route, grant)

    def _act(self, route: _Bodiless, grant: Grant) -> None:
        """Do what a request asks for whose body, if it had any, is out of the way."""
        match route:
            case routes.AcquireLease(bucket, name, wait_s, ttl_s, anchor):
                self._lease(ObjectKey(bucket, name), wait_s, ttl_s, anchor)
            case routes.ReleaseLease(lease):
                self._release(lease)
            case routes.GetObject(bucket, name, head_only, anchor):
                self._get(ObjectKey(bucket, name), anchor, head_only=head_only)
            case routes.DeleteObject(bucket, name):
                self._delete(ObjectKey(bucket, name))
            case routes.Stats():
                self._reply(HTTPStatus.OK, self._pages.stats(grant), http.JSON)
            case routes.Cluster():
                self._reply(HTTPStatus.OK, self._pages.cluster(), http.JSON)
            case routes.Metrics():
                self._reply(HTTPStatus.OK, *self._pages.metrics(grant))
            case routes.Health():
                self._reply(HTTPStatus.OK, b"ok\n", http.TEXT)
            case routes.Readiness():
                self._readiness()
            case _:
                self._administer(route)

    def _ignore_body(self, head: RequestHead, length: int, act: Callable[[], None]) -> None:
        """Act, once a body that nobody asked for is out of the way."""
        if length > MAX_IGNORED_BODY_BYTES:
            raise HttpRefusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{head.method} needs no body, and this one has {length} bytes"
            )
        self._discard(length, act)

    def _with_document(self, head: RequestHead, act: Callable[[], None]) -> None:
        """Receive a small body, then act."""
        length = head.content_length
        if length is None:
            raise HttpRefusal(HTTPStatus.LENGTH_REQUIRED, f"a {head.method} here needs a Content-Length")
        if length > MAX_DOCUMENT_BYTES:
            raise HttpRefusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of {length} bytes; allowed: {MAX_DOCUMENT_BYTES}"
            )
        if head.expects_continue:
            self._require_transport().write(http.CONTINUE)
        early = min(self._filled, length)
        self._document = bytearray(length)
        self._document[:early] = self._view[:early]
        self._consume(early)
        self._received_bytes = early
        self._phase = _Phase.DOCUMENT
        self._after_document = act
        self._set_transfer_deadline(length)
        self._document_received()

    def _document_received(self) -> None:
        if self._received_bytes < len(self._document):
            self._extend_deadline()
        elif self._after_document is not None:
            act, self._after_document = self._after_document, None
            self._phase = _Phase.HEAD
            self._act_behind_body(act)

    def _act_behind_body(self, act: Callable[[], None]) -> None:
        try:
            if self._origin is NOWHERE:
                act()
            else:
                with working_for(self._origin):
                    act()
        except HttpRefusal as refusal:
            self._refuse(refusal)

    def _administer(self, route: routes.AdminRoute) -> None:
        body, self._document = self._document, bytearray()

        async def answer() -> None:
            document = await self._segments.answer(route, body, Asker(self._client, self._payer))
            self._reply(HTTPStatus.OK, document, http.JSON)

        self._start_task(answer)
        self._give_up = self._deadline = time.monotonic() + MAX_DOCUMENT_S

    # PUT ----------------------------------------------------------------------------------------------------------

    def _start_upload(self, key: ObjectKey, head: RequestHead, anchor: str) -> None:
        length = head.content_length
        if length is None:
            raise HttpRefusal(HTTPStatus.LENGTH_REQUIRED, "a PUT needs a Content-Length")
        if length == 0:
            raise HttpRefusal(HTTPStatus.BAD_REQUEST, "an empty object; allowed: 1 byte or more")
        if length > self._limits.max_object_bytes:
            self._observer.limit_reached("max_object")
            raise HttpRefusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"an object of {length} bytes; allowed: {self._limits.max_object_bytes}",
            )
        if not self._service.accepts_writes:
            raise HttpRefusal(HTTPStatus.SERVICE_UNAVAILABLE, "the node is stopping", {"Retry-After": "5"})
        try:
            slot = self._service.write(key, length, self._owner)
        except (AlreadyStored, BeingWritten) as error:
            raise HttpRefusal(HTTPStatus.CONFLICT, str(error)) from error
        except ObjectTooLarge as error:
            raise HttpRefusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from error
        except NoSpace as error:
            raise _no_space(error) from error
        upload = self._upload = Upload(key, slot, self._service.store.views(slot.extents), anchor)
        self._phase = _Phase.BODY
        if head.expects_continue:
            self._require_transport().write(http.CONTINUE)
        early = min(self._filled, length)
        upload.put(self._view[:early])
        self._received_bytes = early
        self._consume(early)
        if upload.missing:
            self._set_transfer_deadline(length)
            if upload.missing >= RECEIVE_BYTES and not self._is_encrypted:
                self._wake_at(RECEIVE_BYTES)
        else:
            self._finish_upload()

    def _wake_at(self, length: int) -> None:
        """Hear of bytes once there are so many (or the sender's window is full, or it has ended).

        A sender that keeps pace with the node would wake it for every piece that it writes; a read of a quarter of the
        size costs nearly as much.
        """
        self._wakes_at = length
        with contextlib.suppress(OSError):  # it makes the node cheaper, and nothing else
            self._require_transport().get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, length)

    def _finish_upload(self) -> None:
        upload, self._upload = self._upload, None
        assert upload is not None
        try:
            with working_for(self._origin) if self._origin.is_traced else contextlib.nullcontext():
                self._service.commit(
                    upload.slot.id, self._owner, upload.checksum, upload.key, upload.slot.size, upload.anchor
                )
        except NoSpace as error:  # of the journal
            self._service.abort(upload.slot.id, self._owner)
            self._refuse(_no_space(error))
        else:
            self._reply(HTTPStatus.OK)

    # Leases -------------------------------------------------------------------------------------------------------

    def _lease(self, key: ObjectKey, wait_s: float, ttl_s: float, anchor: str) -> None:
        found = self._take_lease(key, ttl_s)
        if found is not None and found[1].is_verified:
            self._grant(*found)
        elif found is None and self._service.below is None and not self._service.store.is_being_written(key):
            self._miss(key)
        else:
            self._ungranted = found[0] if found is not None else ""
            self._start_task(lambda: self._lease_later(key, found, wait_s, ttl_s, anchor))

    async def _lease_later(
        self, key: ObjectKey, found: tuple[str, Leased] | None, wait_s: float, ttl_s: float, anchor: str
    ) -> None:
        """Lease an object that is being written, may be below, or whose bytes nobody has verified since adoption."""
        loop = asyncio.get_running_loop()
        end = loop.time() + (within(wait_s) if wait_s else routes.MAX_WAIT_MS / 1000)
        if found is None and await self._has_settled(key, anchor, within(wait_s)):
            found = self._take_lease(key, ttl_s)
        if found is not None and not found[1].is_verified:
            self._ungranted = found[0]
            verdict = await self._service.verify_within(found[1], end - loop.time())
            if verdict is Verdict.MATCH and self._renew(found[0], ttl_s):  # else it lived no longer for having waited
                self._ungranted = ""
            else:
                self._release_ungranted()
                found = self._take_lease(key, ttl_s) if verdict is Verdict.MATCH else None
            if verdict is None:
                raise HttpRefusal(HTTPStatus.GATEWAY_TIMEOUT, f"{key.name} is still being compared with its checksum")
        if found is None:
            self._miss(key)
        else:
            self._grant(*found)

    async def _has_settled(self, key: ObjectKey, anchor: str, wait_s: float) -> bool:
        """Wait until nobody writes a key any more, and no tier brings it; False where nobody has it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_s
        below = self._service.below
        if below is not None and not self._service.store.is_being_written(key):
            if not wait_s:
                below.seek_ahead([key], anchor)
                return False
            sought = await below.seek([key], anchor, within_s=wait_s)
            if sought == "missing":
                return False
            if sought == "unanswered":
                raise HttpRefusal(HTTPStatus.GATEWAY_TIMEOUT, f"{key.name} is still being looked for")
        if not await self._service.committed(key, end - loop.time()):
            raise HttpRefusal(HTTPStatus.GATEWAY_TIMEOUT, f"{key.name} is still being written")
        return True

    def _take_lease(self, key: ObjectKey, ttl_s: float) -> tuple[str, Leased] | None:
        try:
            found = self._service.store.lease(key, self._client, ttl_s, payer=self._payer)
        except TooManyLeases as error:
            raise too_many_leases(error) from error
        if found is not None and self._service.below is not None:
            self._service.below.used([found[1]])
        return found

    def _renew(self, lease: str, ttl_s: float) -> bool:
        """Let a lease live so long from now; False where it has ended."""
        try:
            self._service.store.renew(lease, ttl_s)
        except UnknownLease:
            return False
        return True

    def _release_ungranted(self) -> None:
        if self._ungranted:
            self._service.store.release(self._ungranted)
            self._ungranted = ""

    def _grant(self, lease: str, leased: Leased) -> None:
        self._reply(HTTPStatus.OK, http.lease_body(lease, leased.extents), http.JSON)

    def _miss(self, key: ObjectKey) -> None:
        self._refuse(HttpRefusal(HTTPStatus.NOT_FOUND, f"{key.name} is not stored"))

    def _release(self, lease: str) -> None:
        self._service.store.release(lease)
        self._reply(HTTPStatus.OK)

    # Objects ------------------------------------------------------------------------------------------------------

    def _get(self, key: ObjectKey, anchor: str, *, head_only: bool) -> None:
        if self._service.below is not None and not self._service.store.is_stored(key):
            self._start_task(lambda: self._get_from_below(key, anchor, head_only=head_only))
        elif head_only:
            self._describe(key)
        else:
            self._start_task(lambda: self._send_object(key))

    async def _get_from_below(self, key: ObjectKey, anchor: str, *, head_only: bool) -> None:
        if not await self._has_settled(key, anchor, within(routes.DEFAULT_WAIT_MS / 1000)):
            self._miss(key)
        elif head_only:
            self._describe(key)
        else:
            await self._send_object(key)

    def _describe(self, key: ObjectKey) -> None:
        stat = self._service.store.stat(key)
        if stat is None:
            self._miss(key)
        else:
            self._send_head(HTTPStatus.OK, stat.size, http.BYTES, {"ETag": _entity_tag(stat.checksum)})
            self._end_reply(HTTPStatus.OK, 0)

    async def _send_object(self, key: ObjectKey) -> None:
        """Send the bytes under a lease that outlives them: a reply takes no longer than its TTL."""
        store = self._service.store  # behind the reply, the next request may be for another segment
        found = self._take_lease(key, store.limits.max_ttl_s)
        if found is None:
            self._miss(key)
            return
        lease, leased = found
        try:
            if not leased.is_verified:
                verdict = await self._service.verify(leased, "adoption")
                if verdict is not Verdict.MATCH or not self._renew(lease, store.limits.max_ttl_s):
                    self._miss(key)
                    return
            self._set_transfer_deadline(leased.size, at_most_s=store.limits.max_ttl_s)
            self._send_head(HTTPStatus.OK, leased.size, http.BYTES, {"ETag": _entity_tag(leased.checksum)})
            transport = self._require_transport()
            for view in store.views(leased.extents):
                for start in range(0, view.nbytes, SEND_BYTES):
                    transport.write(view[start : start + SEND_BYTES])
                    await self._drained.wait()
                    await asyncio.sleep(0)  # a fast reader would otherwise keep the loop to itself
            self._end_reply(HTTPStatus.OK, leased.size)
        finally:
            store.release(lease)

    def _delete(self, key: ObjectKey) -> None:
        if self._service.below is not None:
            self._service.below.forget([key])
        if self._service.store.delete(key):
            self._reply(HTTPStatus.OK)
        else:
            self._miss(key)

    def _readiness(self) -> None:
        if self._service.accepts_writes:
            self._reply(HTTPStatus.OK, b"ready\n", http.TEXT)
        else:
            self._reply(HTTPStatus.SERVICE_UNAVAILABLE, b"stopping\n", http.TEXT)

    # Replies ------------------------------------------------------------------------------------------------------

    def _reply(self, status: HTTPStatus, body: bytes = b"", content_type: str | None = None) -> None:
        """Send a whole reply and go on to the next request."""
        assert self._head is not None
        head = http.reply_head(status, len(body), content_type, keep_alive=self._head.keep_alive)
        self._require_transport().write(head + body)
        self._end_reply(status, len(body))

    def _refuse(self, refusal: HttpRefusal, *, close: bool = False) -> None:
        """Answer with an error; what is left of the request's body is thrown away, or the connection closed."""
        body = http.error_body(str(refusal), refusal.reason)
        left = 0
        if self._head is not None and self._upload is None:
            left = max((self._head.content_length or 0) - self._received_bytes, 0)
            # With 100-continue refused a client may send its body or not: nobody knows where the next request starts.
            close = (
                close or self._head.is_chunked or left > self._limits.max_discarded_bytes or self._head.expects_continue
            )
        keep_alive = not close and self._head is not None and self._head.keep_alive
        is_head = self._head is not None and self._head.method == "HEAD"
        reply = http.reply_head(refusal.status, len(body), http.JSON, keep_alive=keep_alive, headers=refusal.headers)
        self._require_transport().write(reply if is_head else reply + body)
        self._observe(refusal.status, len(body))
        if keep_alive:
            self._discard(left, self._next_request)
        else:
            self._linger()

    def _send_head(self, status: HTTPStatus, length: int, content_type: str, headers: dict[str, str]) -> None:
        assert self._head is not None
        self._require_transport().write(
            http.reply_head(status, length, content_type, keep_alive=self._head.keep_alive, headers=headers)
        )

    def _end_reply(self, status: HTTPStatus, sent: int) -> None:
        self._observe(status, sent)
        if self._head is not None and self._head.keep_alive:
            self._next_request()
        else:
            self._linger()

    def _observe(self, status: HTTPStatus, sent: int) -> None:
        self._observer.http_request(
            self._route_name, status, time.monotonic() - self._started, self._received_bytes, sent
        )
        if self._origin is not NOWHERE:
            self._tell(status, sent)

    def _tell(self, status: HTTPStatus, sent: int) -> None:
        """Say for which request this was, where anybody listens."""
        if self._span is not None:
            attributes: Attributes = {
                "http.response.status_code": int(status),
                "tierline.bytes": self._received_bytes or sent,
            }
            self._span.end(attributes, is_error=status >= HTTPStatus.INTERNAL_SERVER_ERROR)
            self._span = None
        if self._origin.request_id and _logger.isEnabledFor(logging.DEBUG):
            log.debug(
                "request",
                request_id=self._origin.request_id,
                route=self._route_name,
                status=int(status),
                received=self._received_bytes,
                sent=sent,
            )

    def _next_request(self) -> None:
        transport = self._require_transport()
        if self._phase is _Phase.CLOSED or transport.is_closing():
            return
        if not self._drained.is_set():  # who does not take this reply is owed no other
            self._phase = _Phase.REPLY
            self._is_unread = True
            transport.pause_reading()
            self._set_transfer_deadline(transport.get_write_buffer_size())
            self._deadline = self._give_up  # nothing is heard of it before all of it has been taken
            return
        self._phase = _Phase.HEAD
        self._deadline = time.monotonic() + (self._limits.head_timeout_s if self._filled else self._limits.keep_alive_s)
        self._read_on()
        if self._filled:
            self._advance()

    def _start_task(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Let a reply that has to wait be made by a task; the connection takes no further request meanwhile."""
        self._phase = _Phase.REPLY
        self._give_up = self._deadline = time.monotonic() + routes.MAX_WAIT_MS / 1000 + self._limits.body_timeout_s

        async def run() -> None:
            try:
                await work()
            except HttpRefusal as refusal:
                self._refuse(refusal)

        self._task = asyncio.get_running_loop().create_task(run())
        self._task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if self._task is task:
            self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a request failed", route=self._route_name, exc_info=error)
            self.close()

    # Bytes --------------------------------------------------------------------------------------------------------

    def _consume(self, length: int) -> None:
        """Take ``length`` bytes off the start of the buffer."""
        left = self._filled - length
        if left:
            self._buffer[:left] = self._buffer[length : self._filled]
        self._filled = left

    def _discard(self, length: int, then: Callable[[], None]) -> None:
        """Throw away the next ``length`` bytes, then act."""
        early = min(self._filled, length)
        self._consume(early)
        self._received_bytes += early
        self._discard_left = length - early
        if not self._discard_left:
            then()
            return
        self._phase = _Phase.DISCARD
        self._after_discard = then
        self._set_transfer_deadline(self._discard_left)

    def _end_turn(self) -> None:
        """Let others receive after a filled read, or after some where nobody else did.

        uvloop would read on, up to 32 times before it turns to the next connection, while the sender fills up: sixteen
        senders held the loop for 80 ms at a time.
        """
        self._reads_left -= 1
        if self._reads_left <= 0:
            self._require_transport().pause_reading()
            self._turn_ended = time.monotonic()
            self._turns.wait(self._begin_turn)

    def _begin_turn(self) -> None:
        self._reads_left = READS_ALONE if time.monotonic() - self._turn_ended < ALONE_S else 1
        transport = self._require_transport()
        if self._phase is _Phase.BODY and not transport.is_reading() and not transport.is_closing():
            transport.resume_reading()

    def _discarded(self, length: int) -> None:
        self._discard_left -= length
        self._received_bytes += length
        self._extend_deadline()
        if not self._discard_left and self._after_discard is not None:
            then, self._after_discard = self._after_discard, None
            self._phase = _Phase.HEAD
            self._act_behind_body(then)

    def _linger(self) -> None:
        """Close, but not before the client had time to read the reply: closing on unread bytes would reset it."""
        self._phase = _Phase.LINGER
        self._filled = 0
        self._deadline = time.monotonic() + LINGER_S
        transport = self._require_transport()
        if not transport.is_closing():
            if not transport.is_reading():
                transport.resume_reading()
            if transport.can_write_eof():  # TLS cannot; its client closes, for the reply says so
                with contextlib.suppress(OSError):
                    transport.write_eof()

    def _set_transfer_deadline(self, length: int, at_most_s: float = float("inf")) -> None:
        """Bound a transfer: each pause in it by ``body_timeout_s``, and all of it by the slowest rate."""
        allowed_s = self._limits.body_timeout_s + length / self._limits.slowest_bytes_per_s
        self._give_up = time.monotonic() + min(allowed_s, at_most_s)
        self._extend_deadline()

    def _extend_deadline(self) -> None:
        """Bytes have moved."""
        self._deadline = min(time.monotonic() + self._limits.body_timeout_s, self._give_up)

    def _require_transport(self) -> asyncio.Transport:
        assert self._transport is not None, "asyncio calls connection_made first"
        return self._transport


def _entity_tag(checksum: int) -> str:
    return f'"{checksum:016x}"'


def _no_space(error: NoSpace) -> HttpRefusal:
    reason = "quota" if isinstance(error, QuotaExceeded) else "no_space"
    return HttpRefusal(HTTPStatus.INSUFFICIENT_STORAGE, str(error), {"Retry-After": "1"}, reason=reason)
