"""An endpoint that does what a test tells it to, byte for byte, and a client that sends any bytes."""

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.ports import free_port

from tierline.router.config import RouterConfig
from tierline.router.server import RouterServer, running

EVENT = b'data: {"choices":[{"delta":{"content":"hello"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@dataclass
class Received:
    """A request as it came over the wire."""

    head: bytes
    body: bytes

    @property
    def first_line(self) -> bytes:
        return self.head.partition(b"\r\n")[0]

    @property
    def fields(self) -> dict[bytes, bytes]:
        lines = self.head.split(b"\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}


_CHECKS = (b"GET /health HTTP/1.1", b"GET /v1/models HTTP/1.1", b"GET /metrics HTTP/1.1")
Behaviour = Callable[[Received, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def whole(status: int = 200, body: bytes = b'{"ok":true}', fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d Said\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
        status,
        fields,
        len(body),
        body,
    )


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def answering(data: bytes) -> Behaviour:
    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return behave


def answering_then_closing(data: bytes) -> Behaviour:
    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.transport.abort() if not data else writer.close()

    return behave


@dataclass
class Backend:
    """A scripted endpoint. Health, models and metrics are answered; every other request goes to ``behave``."""

    models: tuple[str, ...] = ("m",)
    metrics: bytes = b""
    behave: Behaviour = field(default_factory=lambda: answering(whole()))
    requests: list[Received] = field(default_factory=list)
    checks: list[Received] = field(default_factory=list)
    """The last 50 requests for health, models and metrics."""
    connections: int = 0
    """Opened for requests other than health checks, models and metrics."""
    port: int = 0
    tls: ssl.SSLContext | None = None
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a peer closed a connection on which a request was waiting in :func:`hanging`."""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.port = self.port or free_port()  # which is free again after kill(), too
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)

    async def kill(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def hanging(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
        self.left.set()
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        is_counted = False
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
                request = Received(head, b"")
                request.body = await reader.readexactly(int(request.fields.get(b"content-length", b"0")))
                if request.first_line in _CHECKS:
                    self.checks = [*self.checks[-49:], request]
                if request.first_line == b"GET /health HTTP/1.1":
                    writer.write(whole())
                elif request.first_line == b"GET /v1/models HTTP/1.1":
                    cards = [{"id": name, "object": "model"} for name in self.models]
                    writer.write(whole(body=json.dumps({"object": "list", "data": cards}).encode()))
                elif request.first_line == b"GET /metrics HTTP/1.1":
                    writer.write(whole(body=self.metrics))
                else:
                    self.connections += not is_counted
                    is_counted = True
                    self.requests.append(request)
                    await self.behave(request, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the peer is done
        finally:
            self._writers.discard(writer)
            writer.close()


@contextlib.asynccontextmanager
async def backends(*behaviours: Behaviour, models: tuple[str, ...] = ("m",)) -> AsyncIterator[list[Backend]]:
    started = [Backend(behave=behaviour, models=models) for behaviour in behaviours]
    for backend in started:
        await backend.start()
    try:
        yield started
    finally:
        for backend in started:
            await backend.kill()


def router(*endpoints: Backend | str, **settings: object) -> AbstractAsyncContextManager[RouterServer]:
    return router_by(time.monotonic, *endpoints, **settings)


@contextlib.asynccontextmanager
async def router_by(
    clock: Callable[[], float], /, *endpoints: Backend | str, **settings: object
) -> AsyncIterator[RouterServer]:
    """Run a router by a clock of the test's: while that stands still, nothing expires or comes back in good time."""
    urls = tuple(endpoint if isinstance(endpoint, str) else endpoint.url for endpoint in endpoints)
    patient = {"health_timeout_s": 60, "connect_timeout_s": 60}  # a machine that stood still for seconds is no failure
    config = RouterConfig.model_validate(
        {"port": 0, "endpoints": urls, "shutdown_timeout_s": 0, "health_interval_s": 0.1} | patient | settings
    )
    async with running(config, clock=clock) as server:
        yield server
        assert server.services.held_bytes == 0 or server.services.clients
        assert all(endpoint.queued_tokens >= 0 for endpoint in server.services.endpoints.all)


def replace(file: Path, content: str) -> None:
    """Have another content in a file, all at once: who writes in place may be read in the middle."""
    written = file.with_name(f"{file.name}.new")
    written.write_text(content)
    written.replace(file)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  (what is awaited is another program's state)
            await asyncio.sleep(0.005)


def pass_time(server: RouterServer, seconds: float) -> None:
    """Let the clock that a router's requests and connections live by go on by so much at once."""
    clock = server.services.clock
    server.services.clock = lambda: clock() + seconds


async def until_models_are_known(server: RouterServer) -> None:
    await until(lambda: all(endpoint.is_up is not None for endpoint in server.services.endpoints.all))


@dataclass
class Answer:
    status: int
    fields: dict[str, str]
    body: bytes


class Listens(Protocol):
    """A router, here or in processes of its own."""

    port: int


class Client:
    """One connection to the router."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, *args: object, **kwargs: object) -> Answer:
        await self.send(request_bytes(*args, **kwargs))  # type: ignore[arg-type]
        return await self.answer()

    async def head(self) -> Answer:
        async with asyncio.timeout(60):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw[:-4].decode().split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Answer(int(first.split()[1]), fields, b"")

    async def answer(self) -> Answer:
        return await self.with_body(await self.head())

    async def with_body(self, answer: Answer) -> Answer:
        """Return the answer of that head with what follows it."""
        async with asyncio.timeout(60):
            if answer.fields.get("transfer-encoding") == "chunked":
                while size := int(await self.reader.readline(), 16):
                    answer.body += (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readline()
            elif "content-length" in answer.fields:
                answer.body = await self.reader.readexactly(int(answer.fields["content-length"]))
            else:
                answer.body = await self.reader.read()
        return answer

    async def rest(self) -> bytes:
        async with asyncio.timeout(60):
            return await self.reader.read()


@contextlib.asynccontextmanager
async def client(server: Listens, tls: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=2**24, ssl=tls)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


def chat(prompt: str = "hello", *, model: str | None = "m", **more: object) -> bytes:
    body: dict[str, object] = {"messages": [{"role": "user", "content": prompt}], **more}
    return json.dumps(body if model is None else {"model": model, **body}).encode()


def request_bytes(
    body: bytes = b"",
    *,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    fields: str = "",
    version: str = "1.1",
) -> bytes:
    length = f"content-length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/{version}\r\nhost: router\r\n{length}{fields}\r\n".encode() + body
