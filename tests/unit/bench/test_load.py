"""The router benchmark's own load and engines: what they count must be what was answered."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tierline.bench.load import Load, Prompt
from tierline.bench.programs import free_ports
from tierline.bench.responders import MODEL, serve_engines, serve_splice
from tierline.errors import TierlineError


async def until_listening(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.01)


@pytest.fixture
async def ports() -> AsyncIterator[tuple[int, int]]:
    engine, splice = free_ports(2)
    tasks = [asyncio.create_task(serve_engines([engine])), asyncio.create_task(serve_splice(splice, [engine]))]
    for port in (engine, splice):
        await until_listening(port)
    yield engine, splice
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def prompt(*, path: str = "/v1/chat/completions", stream: bool = False, padding: int = 0) -> Prompt:
    before = f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"{" " * padding}'.encode()
    after = f'"}}],"stream":{"true" if stream else "false"}}}'.encode()
    head = f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {len(before) + 12 + len(after)}\r\n\r\n"
    return Prompt(head.encode() + before, after)


@pytest.mark.parametrize("padding", [0, 300_000])
async def test_every_request_is_answered_once_also_through_the_splice(ports: tuple[int, int], padding: int) -> None:
    for port in ports:
        outcome = await Load([prompt(padding=padding)], b"application/json").run(port, connections=3, requests=20)
        assert outcome.answered == 20
        assert outcome.failures == {}


async def test_a_stream_is_recognised_wherever_the_body_says_so(ports: tuple[int, int]) -> None:
    for port in ports:
        outcome = await Load([prompt(stream=True)], b"text/event-stream").run(port, connections=2, requests=4)
        assert outcome.answered == 4


async def test_an_answer_of_another_type_is_a_failure_not_a_sample(ports: tuple[int, int]) -> None:
    outcome = await Load([prompt(stream=False)], b"text/event-stream").run(ports[0], connections=1, requests=3)
    assert outcome.answered == 0
    assert outcome.failures == {"200 application/json": 3}


async def test_a_server_that_closes_connections_ends_the_run() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        with pytest.raises(TierlineError, match="closed a connection"):
            await Load([prompt()], b"application/json").run(
                server.sockets[0].getsockname()[1], connections=1, requests=1
            )


async def test_a_run_begins_with_its_first_request_however_long_connecting_took(ports: tuple[int, int]) -> None:
    outcome = await Load([prompt()], b"application/json").run(ports[0], connections=1, seconds=1e-9)
    assert outcome.answered == 1
