"""Simulated engines for the router benchmark, and the least a proxy in Python can do: raw protocols on uvloop.

They answer at once and always the same, so that all time a client sees is the router's. The splice copies bytes
between a client and one engine without reading them; no router in Python can cost less.

Run as ``python -m tierline.bench.responders engines PORT…``, ``… splice PORT ENGINE_PORT…`` and ``… events PORT…``,
which publishes KV events as engines at work do.
"""

import asyncio
import itertools
import socket
import sys
import time
from collections.abc import Iterator
from functools import cache
from typing import cast

import httptools
import uvloop

from tierline.router.prompt import BYTES_PER_TOKEN
from tierline.stack.simulated_engine.kv_events import BlockRemoved, BlockStored, EventBatch, ZmqPublisher

MODEL = "simulated"
STREAM_MARK = b'"stream":true'
SSE_CHUNKS = 18
SSE_INTERVAL_SECONDS = 0.001
EVENT_INTERVAL_SECONDS = 0.05
EVENT_BLOCKS = 32
"""Blocks of 16 tokens that an engine stores in each interval, and evicts as many: a prefill of 10,000 tokens/s."""

_MODELS = b'{"object":"list","data":[{"id":"simulated","object":"model","created":0,"owned_by":"tierline"}]}'
_COMPLETION = (
    b'{"id":"cmpl-0","object":"chat.completion","created":0,"model":"simulated","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"The answer of a simulated engine, always the same."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":512,"completion_tokens":11,"total_tokens":523}}'
)
_EVENT = (
    b'data: {"id":"cmpl-0","object":"chat.completion.chunk","created":0,"model":"simulated",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
)


def whole(content_type: bytes, body: bytes) -> bytes:
    """Return a response that is good."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (content_type, len(body))
    return head + body


def chunk(body: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(body), body)


ANSWERS = {
    b"/v1/models": whole(b"application/json", _MODELS),
    b"/health": whole(b"application/json", b"{}"),
    b"/get_server_info": whole(b"application/json", b"{}"),
    b"/get_model_info": whole(b"application/json", b"{}"),
    b"/metrics": whole(b"text/plain; version=0.0.4", b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"),
}
"""By path: what a router may ask for besides answers."""
_JSON_ANSWER = whole(b"application/json", _COMPLETION)
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_SSE_ANSWER = (
    SSE_HEAD,
    *(chunk(_EVENT) for _ in range(SSE_CHUNKS)),
    chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n",
)


@cache
def _tokens(count: int) -> bytes:
    return whole(
        b"application/json", b'{"count":%d,"tokens":[%b]}' % (count, b",".join(b"%d" % n for n in range(count)))
    )


class EngineConnection(asyncio.Protocol):
    """A router's connection to a simulated engine; what becomes of a request is the subclass's."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:  # a router that tries whether an engine speaks gRPC
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        """Called by httptools."""
        self._path = url


class _Engine(EngineConnection):
    """One connection of an engine that answers at once."""

    def __init__(self) -> None:
        super().__init__()
        self._wants_stream = False
        self._seam = b""
        self._body_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        # Routers may write the body anew, so the mark can stand anywhere, also across two pieces.
        if not self._wants_stream:
            self._wants_stream = STREAM_MARK in self._seam + body
            self._seam = body[-len(STREAM_MARK) :]

    def on_message_complete(self) -> None:
        if answer := ANSWERS.get(self._path):
            self._transport.write(answer)
        elif self._path == b"/tokenize":
            self._transport.write(_tokens(self._body_bytes // BYTES_PER_TOKEN))
        elif self._wants_stream:
            self._write_events(iter(_SSE_ANSWER))
        else:
            self._transport.write(_JSON_ANSWER)
        self._wants_stream = False
        self._seam = b""
        self._body_bytes = 0

    def _write_events(self, pieces: Iterator[bytes]) -> None:
        """Write the pieces :data:`SSE_INTERVAL_SECONDS` apart, as an engine's come: a router cannot join them."""
        piece = next(pieces, None)
        if piece is not None and not self._transport.is_closing():
            self._transport.write(piece)
            asyncio.get_running_loop().call_later(SSE_INTERVAL_SECONDS, self._write_events, pieces)


class _SpliceEnd(asyncio.Protocol):
    """One side of a splice: what it receives goes to the other side as it is."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _SpliceEnd | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self._early.append(data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, _error: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def join(self, other: "_SpliceEnd") -> None:
        """Connect both sides and hand on what arrived before."""
        self.other, other.other = other, self
        assert other.transport is not None
        for data in self._early:
            other.transport.write(data)
        self._early.clear()


async def serve_engines(ports: list[int]) -> None:
    """Serve one simulated engine on each port until cancelled."""
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(_Engine, "127.0.0.1", port)
    await asyncio.Event().wait()


async def serve_splice(port: int, engine_ports: list[int]) -> None:
    """Join each connection to ``port`` to one of the engines, in turn, until cancelled."""
    loop = asyncio.get_running_loop()
    next_port = itertools.cycle(engine_ports)
    joining: set[asyncio.Task[None]] = set()

    async def join(client: _SpliceEnd) -> None:
        _, engine = await loop.create_connection(_SpliceEnd, "127.0.0.1", next(next_port))
        client.join(engine)

    def accept() -> _SpliceEnd:
        client = _SpliceEnd()
        task = loop.create_task(join(client))
        joining.add(task)
        task.add_done_callback(joining.discard)
        return client

    await loop.create_server(accept, "127.0.0.1", port)
    await asyncio.Event().wait()


def publish_events(ports: list[int]) -> None:
    """Publish events of one engine on each port for ever; each batch goes on with the blocks of the one before."""
    publishers = [ZmqPublisher(f"tcp://*:{port}") for port in ports]
    tokens = list(range(16 * EVENT_BLOCKS))
    for first in itertools.count(1, EVENT_BLOCKS):
        names = list(range(first, first + EVENT_BLOCKS))
        gone = [
            BlockRemoved([name - 100 * EVENT_BLOCKS], "GPU", group_idx=0)
            for name in names
            if first > 100 * EVENT_BLOCKS
        ]
        tokens[0] = first
        stored = BlockStored(names, None, tokens, 16, None, "GPU", None, [None] * EVENT_BLOCKS, group_idx=0)
        for publisher in publishers:
            publisher.publish(EventBatch(time.time(), [*gone, stored]))
        time.sleep(EVENT_INTERVAL_SECONDS)


if __name__ == "__main__":
    role, *ports = sys.argv[1:]
    numbers = [int(port) for port in ports]
    if role == "events":
        publish_events(numbers)
    uvloop.run(serve_engines(numbers) if role == "engines" else serve_splice(numbers[0], numbers[1:]))
