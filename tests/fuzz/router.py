"""Fuzz targets of the router's own HTTP, without sockets: what clients send, and what endpoints answer.

The other reader is h11, which shares no line with ours: what goes on to an endpoint, or back to a client, is for h11 as
many messages as the router took it for, or none that it would take at all.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import h11
from tests.fuzz.world import Recorder

from tierline.router.admin.access import AdminAccess
from tierline.router.admin.api import AdminApi
from tierline.router.choosing import Choosing
from tierline.router.config import RouterConfig
from tierline.router.endpoints import Endpoints
from tierline.router.membership import Membership
from tierline.router.metrics import RouterMetrics
from tierline.router.proxy.client import ClientConnection
from tierline.router.proxy.dispatch import dispatch
from tierline.router.proxy.services import Services
from tierline.router.proxy.upstream import UpstreamConnection, UpstreamPool

URL = "http://engine:1"
CONFIG = RouterConfig(endpoints=(URL,), strategy="roundrobin", head_bytes=2048, body_bytes=4096, buffered_bytes=8192)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
REQUEST = b"POST /v1/completions HTTP/1.1\r\nhost: r\r\nx-request-id: a\r\ncontent-length: 2\r\n\r\n{}"


class Worldly(Protocol):
    """A program that passes requests on, its one client, and what went over each connection to who answers."""

    pool: Any
    transport: Recorder
    upstreams: list[tuple[UpstreamConnection, Recorder]]

    def receive(self, piece: bytes) -> None:
        """A client sends something."""

    def waiting(self) -> Iterator[UpstreamConnection]:
        """Yield the connections on which somebody is to answer."""

    def require_nothing_left(self) -> None:
        """Both sides are gone: nothing is held for anybody."""


class World:
    """One router with one endpoint, and what went over each connection to it."""

    def __init__(self) -> None:
        endpoints = Endpoints([URL])
        choosing = Choosing.of(CONFIG, endpoints)
        self.services = Services(CONFIG, endpoints, choosing, RouterMetrics(choosing, endpoints), lambda: 0.0)
        self.pool = _Pool(self)
        self.services.pools[0] = self.pool
        membership = Membership(endpoints, choosing, self.services.pools, lambda _: self.pool, self.services.clock)
        self.services.admin = AdminApi(AdminAccess(None, "127.0.0.1"), self.services, membership)
        self.upstreams: list[tuple[UpstreamConnection, Recorder]] = []
        self.client, self.transport = ClientConnection(self.services, partial(dispatch, self.services)), Recorder()
        self.client.connection_made(self.transport)

    def receive(self, piece: bytes) -> None:
        """A client sends something."""
        if not self.transport.is_closing():
            self.client.data_received(piece)

    def waiting(self) -> Iterator[UpstreamConnection]:
        """Yield the connections on which an endpoint is to answer."""
        return (upstream for upstream, _ in self.upstreams if upstream._attempt is not None)

    def require_nothing_left(self) -> None:
        """Both sides are gone: nothing is held for anybody."""
        services, (endpoint,) = self.services, self.services.endpoints.all
        self.client.connection_lost(None)
        for upstream, transport in self.upstreams:
            if not transport.is_closing():
                transport.close()
                upstream.connection_lost(None)
        assert (services.held_bytes, services.clients) == (0, set())
        assert (endpoint.inflight, endpoint.queued_tokens) == (0, 0)


class _Pool(UpstreamPool):
    """Connects to nobody."""

    def __init__(self, world: World) -> None:
        services = world.services
        super().__init__(
            services.endpoints.all[0],
            connect_timeout_s=1.0,
            head_bytes=CONFIG.head_bytes,
            tls=services.endpoint_tls,
            clock=services.clock,
        )
        self._world = world

    async def connect(self) -> UpstreamConnection:
        connection, transport = UpstreamConnection(self), Recorder()
        connection.connection_made(transport)
        self._world.upstreams.append((connection, transport))
        return connection


async def _settle() -> None:
    """Let every task come to its end; nothing here waits for anybody."""
    while asyncio.all_tasks() - {asyncio.current_task()}:  # noqa: ASYNC110  (it is what lets them go on)
        await asyncio.sleep(0)


# What clients send ----------------------------------------------------------------------------------------------------


def requests(data: bytes) -> None:
    """A client's bytes whole, in two pieces and one by one: the same goes on, and is read as the same by another."""
    runs = [asyncio.run(requests_run(pieces)) for pieces in cut(data)]
    assert all(run == runs[0] for run in runs), (data, runs)


def cut(data: bytes) -> list[list[bytes]]:
    """Return the same bytes in several sizes of pieces."""
    half = len(data) // 2
    singly = [data[at : at + 1] for at in range(min(len(data), 400))]
    return [[data], [data[:half], data[half:]], [*singly, data[400:]]]


async def requests_run(
    pieces: Sequence[bytes], make_world: Callable[[], Worldly] = World
) -> tuple[list[int], list[tuple[bytes, bytes, bytes]]]:
    """Return the statuses of the answers that a client gets for these pieces, and the requests that went on."""
    world = make_world()
    answered = 0
    for piece in pieces:
        world.receive(piece)
        await _settle()
        while waiting := list(world.waiting()):
            (upstream,) = waiting  # a connection has one request at a time
            upstream.data_received(ANSWER)
            answered += 1
            await _settle()
    sent = [request for _, transport in world.upstreams for request in read_requests(bytes(transport.sent))]
    assert len(sent) <= answered, "more than was meant to be sent"
    statuses = read_statuses(bytes(world.transport.sent))
    assert statuses.count(200) >= answered
    world.require_nothing_left()
    return statuses, sent


def read_requests(sent: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Return method, target and body of the requests that h11 finds, up to what it refuses."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    connection.receive_data(sent)
    found: list[tuple[bytes, bytes, bytes]] = []
    with contextlib.suppress(h11.RemoteProtocolError):
        while (event := connection.next_event()) is not h11.NEED_DATA:
            assert isinstance(event, h11.Request), event
            method, target, body = bytes(event.method), bytes(event.target), b""
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                assert isinstance(event, h11.Data), "a request without its end"
                body += bytes(event.data)
            found.append((method, target, body))
            connection.send(h11.Response(status_code=204, headers=[]))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()
    return found


def read_statuses(sent: bytes) -> list[int]:
    """Return the statuses of the answers; every byte belongs to one."""
    statuses = []
    while sent:
        head, separator, sent = sent.partition(b"\r\n\r\n")
        assert separator, "an answer without end"
        assert head.startswith(b"HTTP/1.1 "), head[:40]
        status = int(head[9:12])
        if b"transfer-encoding: chunked" in head:
            _, separator, sent = sent.partition(b"\r\n0\r\n\r\n")
            assert separator, "a body without end"
            statuses.append(status)
            continue
        lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        assert len(lengths) <= 1
        length = int(lengths[0].partition(b":")[2]) if lengths else 0
        rest = sent[length:]
        if len(sent) >= length and (not rest or rest.startswith(b"HTTP/1.1 ")):
            sent = rest
        else:  # the answer to a HEAD has no body
            assert not sent or sent.startswith(b"HTTP/1.1 "), sent[:40]
        if status != 100:
            statuses.append(status)
    return statuses


# What endpoints answer ------------------------------------------------------------------------------------------------


def responses(data: bytes) -> None:
    """An endpoint's bytes, cut in several ways: the client has one answer, or it knows that it has none.

    Where an answer breaks, the cut says how much of it the client has seen; what comes whole, comes whole in any cut.
    """
    runs = [asyncio.run(responses_run(pieces)) for pieces in cut(data)]
    assert all(run == runs[0] for run in runs), (data, runs)


async def responses_run(
    pieces: Sequence[bytes],
    make_world: Callable[[], Worldly] = World,
    read: Callable[[bytes], tuple[int, bytes] | None] | None = None,
) -> tuple[int, bytes] | None:
    """Return the answer that a client gets for these pieces of an endpoint's, where it is the endpoint's and whole."""
    world = make_world()
    world.receive(REQUEST)
    await _settle()
    ((upstream, transport),) = world.upstreams
    for piece in pieces:
        if not transport.is_closing() and piece:
            upstream.data_received(piece)
            await _settle()
    is_kept = upstream in world.pool._idle
    assert is_kept <= (not transport.is_closing())
    if not transport.is_closing():
        transport.close()
        upstream.connection_lost(None)  # the endpoint has said all
        await _settle()
    assert is_kept or transport.is_closing(), "a connection of which nobody knows whose bytes come next"
    assert len(world.upstreams) == 1
    answer = (read or _read_relayed)(bytes(world.transport.sent))
    world.require_nothing_left()
    return answer


def _read_relayed(sent: bytes) -> tuple[int, bytes] | None:
    answer = read_answer(sent)
    return answer if answer and b"x-tierline-endpoint" in sent and b'"endpoint_' not in answer[1] else None


def read_answer(sent: bytes) -> tuple[int, bytes] | None:
    """Return the status and the body that h11 reads, where an endpoint's answer is whole; nothing may be behind it."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**20)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "r"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(sent)
    connection.receive_data(b"")
    status, body = 0, b""
    with contextlib.suppress(h11.RemoteProtocolError):
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                assert not status, "two answers to one request"
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert not connection.trailing_data[0], "bytes behind the answer"
                return status, body
            elif event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                break
    return None
