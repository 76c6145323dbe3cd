"""A proxy under load while its model and its clients fail at random: whatever happens, no place in it is lost."""

import asyncio
import contextlib
import random

import pytest
import uvloop
from tests.integration.proxy.proxies import metrics, proxy
from tests.integration.router.backend import (
    EVENT,
    STREAM_HEAD,
    Client,
    Received,
    answering,
    backends,
    chat,
    chunk,
    client,
    until,
    whole,
)

from tierline.proxy.server import ProxyServer

SEED = 6
REQUESTS = 400
LIMITS = {"max_concurrent_requests": 4, "max_queue_size": 8, "queue_timeout_s": 0.3, "response_timeout_s": 1}


def pytest_asyncio_loop_factories() -> dict[str, object]:
    return {"uvloop": uvloop.new_event_loop}


class Fickle:
    """A model that answers, streams, breaks off anywhere, or says nothing."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    async def __call__(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = STREAM_HEAD + chunk(EVENT) * 5 + b"0\r\n\r\n"
        await asyncio.sleep(self._chance.random() * 0.01)
        match self._chance.randrange(8):
            case 0 | 1:
                writer.write(whole())
            case 2 | 3:
                writer.write(stream)
            case 4:
                writer.write(stream[: self._chance.randrange(len(stream))])
                writer.transport.abort()
            case 5:
                writer.write(whole(500))
            case 6:
                writer.write(b"not HTTP\r\n\r\n")
            case 7:
                await reader.read(1)  # until the proxy gives it up
                writer.close()


async def one_client(server: ProxyServer, chance: random.Random, statuses: list[int]) -> None:
    for _ in range(REQUESTS // 20):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ValueError):
            async with client(server) as peer:
                if chance.random() < 0.3:
                    await leave_early(peer, chance)
                else:
                    statuses.append((await peer.ask(chat())).status)


async def leave_early(peer: Client, chance: random.Random) -> None:
    request = b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n{}"
    await peer.send(request[: chance.randrange(1, len(request) + 1)])
    await asyncio.sleep(chance.random() * 0.02)
    if chance.random() < 0.5:
        peer.writer.transport.abort()


@pytest.mark.timeout(120)
async def test_no_place_is_lost_whatever_fails() -> None:
    chance = random.Random(SEED)
    statuses: list[int] = []
    async with backends(Fickle(chance)) as (model,), proxy(model, **LIMITS) as server:
        await asyncio.gather(*(one_client(server, random.Random(number), statuses) for number in range(20)))
        services = server.services
        await until(lambda: not services.clients)
        assert services.admission is not None
        assert (services.admission.running, services.admission.waiting) == (0, 0)
        assert (services.held_bytes, services.metrics.concurrent) == (0, 0)
        counted = await metrics(server)
        model.behave = answering(whole())
        async with client(server) as peer:
            assert (await peer.ask(chat())).status == 200
    assert {200, 429, 502} <= set(statuses)
    ended = sum(count for name, count in counted.items() if "requests_total kind=invocation" in name)
    assert counted["model_invocations_total"] == ended


@pytest.mark.timeout(120)
async def test_requests_that_a_killed_model_had_are_errors_and_its_successor_serves() -> None:
    async with backends(answering(whole())) as (model,), proxy(model, max_concurrent_requests=8) as server:
        model.behave = model.hanging
        async with contextlib.AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(client(server)) for _ in range(8)]
            asking = [asyncio.create_task(peer.ask(chat())) for peer in peers]
            await until(lambda: len(model.requests) == 8)
            assert server.services.metrics.concurrent == 8
            await model.kill()
            assert {answer.status for answer in await asyncio.gather(*asking)} <= {502, 503}
            assert (await peers[0].ask(chat())).status == 503
            model.behave = answering(whole())
            await model.start()
            assert [(await peer.ask(chat())).status for peer in peers] == [200] * 8
