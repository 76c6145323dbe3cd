"""Framing that could be read in two ways: what reaches an endpoint is what another reader reads too, or nothing.

The other reader is h11, which shares no line with ours. Messages are put together from what smuggling is made of, with
hypothesis looking for the combination that gets through.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from math import inf

import h11
import pytest
import uvloop
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.integration.router.backend import (
    Backend,
    Received,
    answering,
    backends,
    chunk,
    client,
    request_bytes,
    router,
    until,
    whole,
)

from tierline.router.proxy.client import ClientConnection
from tierline.router.server import RouterServer

POISON = b"GET /v1/smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
BODY = b'{"model":"m","prompt":"p"}'
EXAMPLES = 120

LINES = st.sampled_from([
    *[
        b"content-length" + rest
        for rest in (
            b": 26", b":26", b": 026", b": 26, 26", b": 0", b": 5", b": +26", b": 2 6", b":", b" : 26", b"\t: 26",
            b": 26\x0b", b": 0x1a", b": -1", b"\x00: 5",
        )
    ],
    *[
        b"transfer-encoding" + rest
        for rest in (
            b": chunked", b": Chunked", b" : chunked", b":chunked", b": xchunked", b": chunked, identity",
            b": identity",
            b": gzip, chunked", b": chunked\x0b", b":\tchunked", b": \x00chunked", b': "chunked"', b": chunked;q=1",
        )
    ],
    b"Content-Length: 26", b"Transfer-Encoding: chunked", b"content_length: 5", b" content-length: 5",
    b"\ttransfer-encoding: chunked", b"x: y\r\n transfer-encoding: chunked", b"x: y\ncontent-length: 5",
    b"x: y\rcontent-length: 5", b"x: y", b"x:", b": y", b"x y", b"host: second", b"connection: close", b"te: trailers",
    b"connection: content-length", b"connection: transfer-encoding", b"expect: 100-continue", b"upgrade: h2c",
])  # fmt: skip
ENDS = st.sampled_from([*[b"\r\n"] * 4, b"\n", b"\r", b"\r\r\n", b"\r\n\r\n"])
SIZES = st.sampled_from([
    b"1a", b"1A", b"001a", b"1a;x=y", b'1a;x="y"', b"1a ;x", b"1a;x=\n", b"1a;\rx", b"1a ", b" 1a", b"+1a", b"0x1a",
    b"1a\x00", b"-1a", b"1_a", b"5", b"ff", b"", b"g", b"fffffffffffffffff", b"0",
])  # fmt: skip
LASTS = st.sampled_from([
    b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"0\n\n", b"0\r\nx\r\n\r\n", b"00\r\n\r\n", b"0;x\r\n\r\n", b"",
])  # fmt: skip


@st.composite
def chunked_bodies(draw: st.DrawFn) -> bytes:
    return draw(SIZES) + draw(ENDS) + BODY + draw(ENDS) + draw(LASTS)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    version = draw(st.sampled_from([b"1.1"] * 6 + [b"1.0", b"1.2", b"2.0", b"0.9"]))
    head = b"POST /v1/completions HTTP/%b" % version + draw(ENDS) + b"host: x" + draw(ENDS)
    for line in draw(st.lists(LINES, max_size=4)):
        head += line + draw(ENDS)
    return head + b"\r\n" + draw(st.one_of(st.just(BODY), chunked_bodies())) + POISON


def read_by_h11(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the method and body of each request in ``data``, as far as h11 reads it.

    It is spared the blank before a chunk's extension, which it refuses and RFC 9112, 7.1.1, has everybody read.
    """
    connection, found = h11.Connection(h11.SERVER), list[tuple[bytes, bytes]]()
    connection.receive_data(data.replace(b"\r\n1a ;", b"\r\n1a;"))
    body, method = b"", b""
    try:
        while True:
            match connection.next_event():
                case h11.Request() as request:
                    method, body = request.method, b""
                case h11.Data() as part:
                    body += part.data
                case h11.EndOfMessage():
                    found.append((method, body))
                    connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                    connection.send(h11.EndOfMessage())
                    connection.start_next_cycle()
                case _:
                    return found
    except h11.ProtocolError:
        return found


class CountingConnection(ClientConnection):
    """Knows how much it has read."""

    __slots__ = ("read_bytes",)
    read_bytes: int

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.read_bytes = 0
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.read_bytes += len(data)
        super().data_received(data)


@dataclass
class World:
    """A router and its endpoint, which outlive the examples."""

    runner: asyncio.Runner
    server: RouterServer
    backend: Backend
    seen: list[Received] = field(default_factory=list)

    def send(self, data: bytes, until_s: float = inf) -> None:
        """Send this, and leave when the router has answered all of it that is a request, or after ``until_s``."""

        async def send() -> None:
            loop = asyncio.get_running_loop()
            leaves_at = loop.time() + until_s
            async with client(self.server) as peer:
                address = peer.writer.get_extra_info("sockname")
                rest = asyncio.create_task(peer.rest())
                with contextlib.suppress(ConnectionError):
                    await peer.send(data)
                    await until(lambda: rest.done() or self._is_done(address, len(data)) or loop.time() > leaves_at)
                rest.cancel()
                await asyncio.gather(rest, return_exceptions=True)

        self.runner.run(send())

    def _is_done(self, address: tuple[str, int], sent: int) -> bool:
        """Whether the router has read all that came from there, and works on nothing of it."""
        return any(
            connection._transport.get_extra_info("peername") == address
            and connection.read_bytes == sent
            and connection._exchange is None
            for connection in self.server.services.clients
            if isinstance(connection, CountingConnection)
        )


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    stack = contextlib.AsyncExitStack()

    @contextlib.asynccontextmanager
    async def started(runner: asyncio.Runner) -> AsyncIterator[World]:
        async with backends(answering(whole())) as (backend,), router(backend) as server:
            yield World(runner, server, backend, backend.requests)

    with pytest.MonkeyPatch.context() as patched, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        patched.setattr("tierline.router.server.ClientConnection", CountingConnection)
        yield runner.run(stack.enter_async_context(started(runner)))
        runner.run(stack.aclose())


def head(fields: bytes) -> bytes:
    return b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n" + fields + b"\r\n"


def forwarded(world: World, data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the method and body of each request that reached the endpoint for ``data``."""
    world.seen.clear()
    world.send(data)
    return [(request.head.partition(b" ")[0], request.body) for request in world.seen]


@pytest.mark.parametrize(
    "data",
    [
        head(b"content-length: 26\r\n") + BODY,
        head(b"transfer-encoding: chunked\r\n") + chunk(BODY) + b"0\r\n\r\n",
        head(b"transfer-encoding: chunked\r\n") + b"1a;x=y\r\n" + BODY + b"\r\n0\r\nx: y\r\n\r\n",
    ],
)
def test_what_is_framed_well_is_passed_on(world: World, data: bytes) -> None:
    assert forwarded(world, data + POISON) == [(b"POST", BODY), (b"GET", b"")]


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(requests())
@example(head(b"content-length: 5\r\ntransfer-encoding: chunked\r\n") + b"0\r\n\r\n" + POISON)
@example(head(b"transfer-encoding: chunked\r\n") + b"1a;x=\n\r\n" + BODY + b"\r\n0\r\n\r\n" + POISON)
@example(head(b"transfer-encoding: chunked\r\n") + b"1a ;x\r\n" + BODY + b"\r\n0\r\n\r\n" + POISON)
@example(head(b"content-length: 26\r\n content-length: 0\r\n") + BODY + POISON)
def test_what_an_endpoint_gets_is_what_another_reader_reads(world: World, data: bytes) -> None:
    got = forwarded(world, data)
    assert got == [(method, body) for method, body in read_by_h11(data) if body == BODY or method == b"GET"][: len(got)]


STATUS_LINES = st.sampled_from([
    *[b"HTTP/1.1 200 OK\r\n"] * 3, b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 200\r\n", b"HTTP/1.1 204 No\r\n",
    b"HTTP/1.1 304 No\r\n",
    b"HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\n", b"HTTP/2 200 OK\r\n", b"ICY 200 OK\r\n",
])  # fmt: skip
TAILS = st.sampled_from([b"", b"", whole(body=b"poison"), b"\r\n", b"0\r\n\r\n", b"poison"])


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    said = draw(STATUS_LINES)
    for line in draw(st.lists(LINES, max_size=3)):
        said += line + draw(ENDS)
    body = st.one_of(st.just(BODY), chunked_bodies(), st.just(chunk(BODY) + b"0\r\n\r\n"))
    return said + b"\r\n" + draw(body) + draw(TAILS)


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(responses())
@example(whole() + whole(body=b"poison"))
@example(b"HTTP/1.1 204 No\r\ncontent-length: 6\r\n\r\npoison")
@example(b"HTTP/1.1 304 No\r\ntransfer-encoding: chunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n")
def test_whatever_an_endpoint_answers_the_next_client_gets_an_answer_of_its_own(world: World, data: bytes) -> None:
    async def odd(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    world.backend.behave = odd
    world.send(request_bytes(BODY, path="/v1/completions"), until_s=0.03)  # what is announced may never come
    world.backend.behave = answering(whole(body=b'{"mine":1}'))
    for endpoint in world.server.services.endpoints.all:
        endpoint.answer_succeeded()
        endpoint._answers_after = 0.0

    async def ask() -> bytes:
        async with client(world.server) as peer:
            return (await peer.ask(BODY, path="/v1/completions")).body

    assert world.runner.run(ask()) == b'{"mine":1}'
