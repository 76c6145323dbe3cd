"""An endpoint that was ill comes back by one request, one that is ill now and then is found, over real sockets."""

import asyncio

import pytest
from tests.clocks import ManualClock
from tests.integration.router.backend import (
    Backend,
    Received,
    answering,
    answering_then_closing,
    backends,
    chat,
    client,
    router_by,
    until,
    whole,
)

from tierline.router.endpoints import EJECTION_SECONDS, FAILURES_BEFORE_EJECTION
from tierline.router.outliers import INTERVAL_SECONDS
from tierline.router.server import RouterServer

NO_CHECKS = {"health_interval_s": 1000, "strategy": "roundrobin"}


async def asked(server: RouterServer) -> int:
    async with client(server) as peer:
        return (await peer.ask(chat())).status


async def test_an_endpoint_that_was_passed_over_gets_one_request_until_that_is_answered() -> None:
    step, clock = asyncio.Event(), ManualClock()

    async def slow(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await step.wait()
        writer.write(whole())

    async with (
        backends(answering_then_closing(b""), answering(whole())) as (ill, well),
        router_by(clock, ill, well, **NO_CHECKS) as server,
    ):
        endpoint = server.services.endpoints.all[0]
        while not endpoint.ejections:
            assert await asked(server) == 200
        assert endpoint.answers_failed == FAILURES_BEFORE_EJECTION
        ill.behave = slow
        ill.requests.clear()
        assert {await asked(server) for _ in range(4)} == {200}
        assert not ill.requests
        clock.advance(EJECTION_SECONDS[0])
        probe = asyncio.gather(*[asked(server) for _ in range(20)])
        await until(lambda: len(ill.requests) == 1)
        assert await asked(server) == 200, "the others are served meanwhile"
        assert len(ill.requests) == 1
        step.set()
        assert set(await probe) == {200}
        await asyncio.gather(*[asked(server) for _ in range(10)])
        assert len(ill.requests) > 1
        assert not endpoint.is_on_probation


async def test_a_probe_that_fails_passes_the_endpoint_over_for_longer_and_its_client_is_served() -> None:
    clock = ManualClock()
    async with (
        backends(answering_then_closing(b""), answering(whole())) as (ill, well),
        router_by(clock, ill, well, **NO_CHECKS) as server,
    ):
        endpoint = server.services.endpoints.all[0]
        while not endpoint.ejections:
            assert await asked(server) == 200
        clock.advance(EJECTION_SECONDS[0])
        while endpoint.ejections < 2:
            assert await asked(server) == 200
        assert endpoint.answers_failed == FAILURES_BEFORE_EJECTION + 1
        assert endpoint.ejected_for_s(clock()) == EJECTION_SECONDS[1]


async def test_an_endpoint_that_fails_every_other_request_is_found_and_no_client_sees_it() -> None:
    async def now_and_then(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(503 if len(flaky.requests) % 2 else 200))

    flaky, clock = Backend(behave=now_and_then), ManualClock()
    await flaky.start()
    try:
        async with (
            backends(*[answering(whole())] * 2) as (first, second),
            router_by(clock, flaky, first, second, **NO_CHECKS) as server,
        ):
            assert {await asked(server) for _ in range(150)} == {200}
            endpoint = server.services.endpoints.all[0]
            assert endpoint.ejections == 0, "never often enough in a row"
            server.outliers.sweep(clock() + INTERVAL_SECONDS)
            assert endpoint.ejections == 1
            before = len(flaky.requests)
            assert {await asked(server) for _ in range(10)} == {200}
            assert len(flaky.requests) == before
    finally:
        await flaky.kill()


async def test_work_beside_serving_that_fails_is_counted_and_ends_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise ValueError("a bug")

    clock = ManualClock()
    async with backends(answering(whole())) as (backend,), router_by(clock, backend, idle_timeout_s=5) as server:
        monkeypatch.setattr(server.outliers, "sweep", failing)
        monkeypatch.setattr(server.services.endpoints.all[0].__class__, "checked", failing)
        failures = server.services.metrics.failed_duties
        await until(lambda: failures["endpoints"] > 1 and failures["health"] > 1)
        async with client(server) as peer:
            assert (await peer.ask(chat())).status == 200
            clock.advance(6)
            assert await peer.rest() == b"", "deadlines are still kept"
        page = server.services.metrics.exposition()[0].decode()
        assert 'tierline_router_failed_duties_total{duty="deadlines"} 0.0' in page
