"""Clients that send anything at all: the router answers once in one reading, or refuses; nothing hangs or leaks."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator

import httptools
import pytest
from tests.integration.router.backend import (
    STREAM_HEAD,
    Received,
    answering,
    backends,
    chat,
    chunk,
    client,
    request_bytes,
    router,
    until,
    whole,
)

from tierline.router.server import RouterServer

SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    "attack",
    [
        HEAD + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
        HEAD + b"content-length: 4\r\ncontent-length: 5\r\n\r\n{}  ",
        HEAD + b"content-length: 4, 5\r\n\r\n{}  ",
        HEAD + b"content-length: +4\r\n\r\n{}  ",
        HEAD + b"content-length: 0x4\r\n\r\n{}  ",
        HEAD + b"content-length: 99999999999999999999\r\n\r\n",
        HEAD + b"content-length : 4\r\n\r\n{}  ",
        HEAD + b"x: y\r\n content-length: 4\r\n\r\n{}  ",
        HEAD + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n-1\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n2 \r\n{}\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}xx0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n10000000000000000\r\n{}\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\ntrailer\n\r\n",
        HEAD + b"x: a\nb: c\r\n\r\n",
        HEAD + b"x: a\rb: c\r\n\r\n",
        HEAD + b"x: a\x00b\r\n\r\n",
        HEAD + b"host: y\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/2.0\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST v1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
async def test_what_could_be_read_in_two_ways_is_refused_and_ends_the_connection(attack: bytes) -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        await peer.send(attack + SMUGGLED)
        answer = await peer.answer()
        assert answer.status in (400, 413, 501, 505)
        assert answer.fields["connection"] == "close"
        assert await peer.rest() == b""
    assert backend.requests == []


async def test_ten_thousand_mutated_requests_hang_and_leak_nothing() -> None:
    """What the endpoint gets is well-formed and never more requests than were sent; every connection ends."""
    seen: list[Received] = []

    async def record(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(request)
        writer.write(whole())

    dice = random.Random(2026)
    seeds = [
        request_bytes(chat("seed")),
        request_bytes(chat("seed", stream=True), fields="expect: 100-continue\r\nconnection: close\r\n"),
        HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n{}   \r\n0\r\nx: y\r\n\r\n",
        request_bytes(method="GET", path="/v1/models") + request_bytes(chat("pipelined")),
    ]
    requests = [mutated(dice, seeds) for _ in range(10_000)]
    async with backends(record, record) as endpoints, router(*endpoints) as server:
        await asyncio.gather(*(send_all(server, requests[start::64]) for start in range(64)))
        await until(lambda: not server.services.clients)
        assert server.services.held_bytes == 0
        assert [endpoint.inflight for endpoint in server.services.endpoints.all] == [0, 0]
        async with client(server) as peer:
            assert (await peer.ask(chat())).status == 200
    assert 0 < len(seen) <= 2 * len(requests)
    assert all(is_well_formed(request) for request in seen)


PIECES = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b"\r\n\r\n", b"content-length: 3\r\n", b"0\r\n\r\n",
    b"transfer-encoding: chunked\r\n", b"host: y\r\n", b"\xff", b"HTTP/1.0", b"99999999", b"connection: close\r\n",
)  # fmt: skip


def mutated(dice: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(dice.choice(seeds))
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(data) or 1)
        match dice.randrange(5):
            case 0:
                data[place : place + 1] = dice.randbytes(1)
            case 1:
                del data[place : place + dice.randint(1, 8)]
            case 2:
                data[place:place] = dice.choice(PIECES)
            case 3:
                data[place:place] = data[place : place + dice.randint(1, 40)]
            case _:
                data = data[: place + 1]
    return bytes(data)


async def send_all(server: RouterServer, requests: list[bytes]) -> None:
    for request in requests:
        async with client(server) as peer:
            with contextlib.suppress(ConnectionError):
                await peer.send(request)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await peer.rest()
                peer.writer.write_eof()
                await peer.rest()


def is_well_formed(request: Received) -> bool:
    class Receiver:
        is_complete = False

        def on_message_complete(self) -> None:
            self.is_complete = True

    receiver = Receiver()
    httptools.HttpRequestParser(receiver).feed_data(request.head + b"\r\n\r\n" + request.body)
    return receiver.is_complete


async def test_a_head_that_arrives_byte_by_byte_is_a_head() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        for byte in b"\r\n" + request_bytes(chat()):
            await peer.send(bytes([byte]))
        assert (await peer.answer()).status == 200


async def test_thousands_of_connections_that_come_and_go_leave_nothing() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server:
        for _ in range(20):
            writers = [(await asyncio.open_connection("127.0.0.1", server.port))[1] for _ in range(100)]
            for number, writer in enumerate(writers):
                writer.write(request_bytes(chat())[: 10 + number * 2])
                writer.transport.abort()
        services = server.services
        await until(lambda: not (services.clients or services.endpoints.all[0].inflight or services.held_bytes))


class Flood:
    """An endpoint's answer that ends as soon as the router holds some of it that its client does not take."""

    def __init__(self) -> None:
        self.sent = 0

    async def __call__(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while not any(peer._transport.get_write_buffer_size() for peer in self.server.services.clients):
            for _ in range(8):
                writer.write(chunk(b"x" * 4096))
                self.sent += 4096
            await writer.drain()
            await asyncio.sleep(0.002)
        writer.write(b"0\r\n\r\n")

    @contextlib.asynccontextmanager
    async def asked(self, server: RouterServer, sent: bytes) -> AsyncIterator[socket.socket]:
        self.server = server
        with socket.create_connection(("127.0.0.1", server.port)) as peer:
            peer.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(peer, sent)
            await until(lambda: self.sent > 0)
            await until(lambda: server.services.endpoints.all[0].inflight == 0)
            yield peer


@pytest.mark.parametrize(
    ("fields", "version"), [("connection: close\r\n", "1.1"), ("", "1.0")], ids=["connection: close", "HTTP/1.0"]
)
async def test_a_client_that_pauses_before_the_end_of_its_answer_gets_all_of_it(
    fields: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierline.router.proxy.client.LINGER_SECONDS", 0.1)
    flood, got = Flood(), b""
    async with (
        backends(flood) as (backend,),
        router(backend) as server,
        flood.asked(server, request_bytes(chat(), fields=fields, version=version)) as peer,
    ):
        await asyncio.sleep(1)
        async with asyncio.timeout(60):
            while data := await asyncio.get_running_loop().sock_recv(peer, 2**20):
                got += data
        await until(lambda: not server.services.clients)
    assert got.partition(b"\r\n\r\n")[2].count(b"x") == flood.sent


async def test_a_client_that_never_reads_the_end_of_its_answer_is_given_up() -> None:
    flood = Flood()
    async with (
        backends(flood) as (backend,),
        router(backend, stream_timeout_s=0.5) as server,
        flood.asked(server, request_bytes(chat(), fields="connection: close\r\n")),
    ):
        await until(lambda: not server.services.clients)
