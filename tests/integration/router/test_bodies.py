"""How bodies go through the router: not copied more often than said, trailers and chunks right, in both directions."""

import asyncio
import contextlib
import json
import socket
import tracemalloc
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.integration.router.backend import (
    answering,
    backends,
    chat,
    chunk,
    client,
    request_bytes,
    router,
    until,
    until_models_are_known,
    whole,
)

from tierline.router.http.replies import LAST_CHUNK
from tierline.router.proxy.client import ClientConnection
from tierline.router.proxy.dispatch import dispatch
from tierline.router.proxy.upstream import UpstreamConnection
from tierline.router.server import RouterServer

READ_BYTES = 64 * 1024
PROMPT = "".join(f"{number:07} " for number in range(2**17))
"""A mebibyte."""
KEY = "secret-of-ann-0123456789"


class Sink(asyncio.Transport):
    """A connection that takes everything, and keeps it as it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(data)

    def writelines(self, pieces: Iterable[Any]) -> None:
        self.written += pieces

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


def copied_by(server: RouterServer, request: bytes) -> tuple[float, bytes]:
    """Return how many times its own length a request takes on its way to an endpoint, and what the endpoint gets.

    What it came in does not count, and everything happens before this returns: nothing is left to the event loop.
    """
    upstreams = []
    for pool in server.services.pools.values():
        upstream = UpstreamConnection(pool)
        upstream.connection_made(Sink())
        pool._idle.append(upstream)
        upstreams.append(upstream)
    peer = ClientConnection(server.services, partial(dispatch, server.services))
    peer.connection_made(Sink())
    reads = [request[start : start + READ_BYTES] for start in range(0, len(request), READ_BYTES)]
    tracemalloc.start()
    try:
        for data in reads:
            peer.data_received(data)
        copies = tracemalloc.get_traced_memory()[1] / len(request)
    finally:
        tracemalloc.stop()
    written = [piece for upstream in upstreams for piece in upstream.transport.written]  # type: ignore[attr-defined]
    peer.connection_lost(None)
    return copies, b"".join(written)


def framed(body: bytes, *, is_chunked: bool, fields: str = "") -> bytes:
    if not is_chunked:
        return request_bytes(body, fields=fields)
    parts = [body[start : start + 50_000] for start in range(0, len(body), 50_000)]
    return request_bytes(fields=fields + "transfer-encoding: chunked\r\n") + b"".join(map(chunk, parts)) + LAST_CHUNK


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("strategy", ["roundrobin", "leastload", "session"])
async def test_a_prompt_of_a_mebibyte_is_copied_once(strategy: str, is_chunked: bool) -> None:
    body = chat(PROMPT)
    async with backends(answering(whole())) as (backend,), router(backend, strategy=strategy) as server:
        await until_models_are_known(server)
        copies, sent = copied_by(server, framed(body, is_chunked=is_chunked))
    assert sent.endswith(b"\r\n\r\n" + body)
    assert copies < 1.2


async def test_a_tenants_salt_costs_no_copy(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"keys: [{{name: ann, token: {KEY}}}]\n")
    body = chat(PROMPT)
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, strategy="roundrobin", api_keys_file=keys) as server,
    ):
        await until_models_are_known(server)
        copies, sent = copied_by(server, framed(body, is_chunked=False, fields=f"x-api-key: {KEY}\r\n"))
    assert b',"cache_salt":"' in sent[-100:]
    assert copies < 1.2


async def test_a_prompt_for_two_endpoints_is_copied_for_neither(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.json"
    body = chat(PROMPT)
    async with backends(answering(whole()), answering(whole())) as (p, d):
        file.write_text(json.dumps([{"url": p.url, "roles": ["prefill"]}, {"url": d.url, "roles": ["decode"]}]))
        hashed = []
        for threshold in (0, 10_000_000):  # two endpoints, one endpoint: the prompt is hashed for both decisions
            async with router(endpoints_file=file, prefill_threshold=threshold) as server:
                await until_models_are_known(server)
                copies, sent = copied_by(server, framed(body, is_chunked=False))
                assert (b"do_remote_decode" in sent) == (threshold == 0)
                hashed.append(copies)
    assert abs(hashed[0] - hashed[1]) < 0.1


async def test_chunks_and_trailers_of_an_answer_reach_the_client_as_they_are() -> None:
    """Extensions and trailers among them; and the connection to the endpoint is used again."""
    answer = (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n"
        b"5;name=value\r\nhello\r\n1\r\n \r\n0\r\nx-sum: 1\r\n\r\n"
    )
    async with backends(answering(answer)) as (backend,), router(backend) as server, client(server) as peer:
        for _ in range(2):
            await peer.send(request_bytes(chat()))
            assert (await peer.head()).fields["transfer-encoding"] == "chunked"
            async with asyncio.timeout(60):
                rest = await peer.reader.readuntil(b"x-sum: 1\r\n\r\n")
            assert rest == answer.partition(b"\r\n\r\n")[2]
        assert backend.connections == 1


async def test_a_client_that_knows_no_chunks_gets_neither_extensions_nor_trailers() -> None:
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;n=v\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n"
    async with backends(answering(answer)) as (backend,), router(backend) as server, client(server) as peer:
        await peer.send(request_bytes(chat(), version="1.0"))
        await peer.head()
        assert await peer.rest() == b"hello"


async def test_trailers_of_a_request_end_at_the_router() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        for trailers in (b"", b"x-sum: 1\r\ncontent-length: 9\r\nhost: other\r\n"):
            body = chat("c" * 9000)
            await peer.send(request_bytes(fields="transfer-encoding: chunked\r\ntrailer: x-sum\r\n"))
            await peer.send(chunk(body[:1]) + chunk(body[1:8000]) + chunk(body[8000:]) + b"0\r\n" + trailers + b"\r\n")
            assert (await peer.answer()).status == 200
    for received in backend.requests:
        assert received.body == body
        assert not received.fields.keys() & {b"x-sum", b"trailer", b"transfer-encoding"}
        assert received.fields[b"host"] == backend.url.removeprefix("http://").encode()


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("size", [10, 2**24], ids=["small", "still being sent"])
async def test_a_client_that_leaves_is_told_to_the_endpoint_whatever_was_asked(is_stream: bool, size: int) -> None:
    """Also while the endpoint has not read all of the request."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"POST"):
            writer.write(whole(body=b'{"data":[]}'))
            writer.close()
            return
        await arrived.put(None)
        await left.wait()
        try:
            while await reader.read(2**16):
                pass
        except ConnectionError:
            pass
        gone.set()
        writer.close()

    arrived: asyncio.Queue[None] = asyncio.Queue()
    left = asyncio.Event()
    endpoint = await asyncio.start_server(serve, "127.0.0.1", 0, limit=4096)
    url = f"http://127.0.0.1:{endpoint.sockets[0].getsockname()[1]}"
    async with router(url, health_interval_s=1000) as server:
        async with client(server) as peer:
            await peer.send(request_bytes(chat("x" * size, stream=is_stream)))
            await asyncio.wait_for(arrived.get(), 60)
        await until(lambda: not server.services.clients)
        assert server.services.endpoints.all[0].inflight == 0
        left.set()
        await asyncio.wait_for(gone.wait(), 60)
        assert server.services.held_bytes == 0
    endpoint.close()


async def test_a_client_that_leaves_before_its_endpoint_is_connected_leaves_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as waiting:
        for _ in range(2):  # who else connects waits
            held = waiting.enter_context(socket.socket())
            held.setblocking(False)
            held.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        async with router(url, health_interval_s=1000, connect_timeout_s=30) as server:
            async with client(server) as peer:
                await peer.send(request_bytes(chat()))
                await until(lambda: server.services.endpoints.all[0].inflight == 1)
            await until(lambda: not server.services.clients)
            assert server.services.endpoints.all[0].inflight == 0
            assert server.services.held_bytes == 0


@pytest.mark.parametrize("where", ["tools", "messages", "prompt", "x"])
async def test_what_is_nested_too_deep_is_answered_and_holds_no_memory(tmp_path: Path, where: str) -> None:
    settings = {"roles": ["decode"], "prefill_threshold": 0, "model_aliases": "alias=m"}
    file = tmp_path / "endpoints.json"
    async with backends(answering(whole())) as (backend,):
        file.write_text(json.dumps([{"url": backend.url, "roles": settings.pop("roles")}]))
        async with router(endpoints_file=file, **settings) as server:
            await until_models_are_known(server)
            statuses = []
            for depth in (*range(860, 1040), 5000):  # around the parser's limit, which depends on who calls it
                asked: dict[str, object] = {"model": "alias", "messages": [{"role": "user", "content": "hello"}]}
                nested = "[" * depth + "]" * depth
                body = json.dumps({**asked, where: "NESTED"}).replace('"NESTED"', nested).encode()
                for path in ("/v1/chat/completions", "/v1/responses"):
                    async with client(server) as peer:
                        statuses.append((await peer.ask(body, path=path)).status)
            assert server.services.held_bytes == 0
    assert set(statuses) <= {200, 400}
    assert (statuses[0], statuses[-2]) == (200, 400)
