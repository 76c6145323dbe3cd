"""``GET /drain``: answered once no invocation runs."""

import asyncio

import pytest
from tests.integration.proxy.proxies import Page, post, proxy
from tests.integration.proxy.test_proxy import ask, waiting
from tests.integration.router.backend import Received, answering, backends, chunk, client, until, whole
from tests.integration.router.test_admission import Gate

from tierline.proxy import departing
from tierline.proxy.server import ProxyServer


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departing, "QUIET_SECONDS", 0.3)


async def drained(server: ProxyServer) -> int:
    async with client(Page(server)) as peer:
        return (await peer.ask(method="GET", path="/drain")).status


async def test_who_asks_is_answered_when_what_runs_and_what_waits_is_over() -> None:
    gate = Gate()
    async with backends(gate) as (model,), proxy(model, max_concurrent_requests=1, max_queue_size=1) as server:
        asking = [asyncio.create_task(ask(server)) for _ in range(2)]
        await until(lambda: len(gate.waiting) == 1 and waiting(server) == 1)
        leaving = asyncio.create_task(drained(server))
        for _ in range(2):
            await asyncio.sleep(1)  # more than what is quiet enough, and than the time between two looks
            assert not leaving.done()
            await until(lambda: len(gate.waiting) == 1)
            gate.open()
        assert await asyncio.gather(*asking) == [200, 200]
        assert await leaving == 200


async def test_nothing_is_turned_away_meanwhile() -> None:
    gate = Gate()
    async with backends(gate) as (model,), proxy(model) as server:
        first = asyncio.create_task(ask(server))
        await until(lambda: len(gate.waiting) == 1)
        leaving = asyncio.create_task(drained(server))
        await until(lambda: len(server._page.departures) == 1)
        model.behave = answering(whole())
        assert await ask(server) == 200
        gate.open()
        assert await first == 200
        assert await leaving == 200


async def test_who_gives_up_asking_is_forgotten() -> None:
    gate = Gate()
    async with backends(gate) as (model,), proxy(model) as server:
        first = asyncio.create_task(ask(server))
        await until(lambda: len(gate.waiting) == 1)
        leaving = asyncio.create_task(drained(server))
        await until(lambda: len(server._page.departures) == 1)
        leaving.cancel()
        await until(lambda: not server._page.departures)
        gate.open()
        assert await first == 200
        assert await drained(server) == 200


async def test_an_answer_without_an_end_keeps_nobody_waiting_for_ever() -> None:
    over = asyncio.Event()

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(b"data: {}\n\n"))
        await over.wait()

    async with (
        backends(behave) as (model,),
        proxy(model, response_timeout_s=0.5) as server,
        client(server) as peer,
    ):
        await peer.send(post())
        await peer.head()
        assert await drained(server) == 503
        over.set()
