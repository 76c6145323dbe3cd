"""Limits on what runs at once, and the queue before them, over real sockets."""

import asyncio
import json
from dataclasses import dataclass, field

import pytest
from tests.integration.router.backend import (
    Backend,
    Received,
    answering,
    backends,
    chat,
    client,
    request_bytes,
    router,
    until,
    until_models_are_known,
    whole,
)
from tests.ports import free_port

from tierline.router.server import RouterServer


@dataclass
class Gate:
    """An endpoint's behaviour that answers when it is let through, one request for each :meth:`open`."""

    waiting: list[asyncio.Event] = field(default_factory=list)
    most_at_once: int = 0
    prompts: list[str] = field(default_factory=list)

    async def __call__(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        event = asyncio.Event()
        self.waiting.append(event)
        self.most_at_once = max(self.most_at_once, len(self.waiting))
        self.prompts.append(json.loads(request.body)["messages"][0]["content"])
        await event.wait()
        writer.write(whole())

    def open(self) -> None:
        self.waiting.pop(0).set()


async def ask(server: RouterServer, prompt: str = "hello", fields: str = "", model: str = "m", **more: object) -> int:
    async with client(server) as peer:
        return (await peer.ask(chat(prompt, model=model, **more), fields=fields)).status


async def give_up(*asking: "asyncio.Task[int]") -> None:
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


def queued(server: RouterServer) -> int:
    assert server.services.admission is not None
    return server.services.admission.waiting


async def test_no_more_run_than_may_and_the_rest_wait_for_their_turn() -> None:
    gates = Gate(), Gate()
    async with (
        backends(*gates) as endpoints,
        router(*endpoints, strategy="roundrobin", max_inflight_per_endpoint=2, max_inflight=3, max_queued=9) as server,
    ):
        await until_models_are_known(server)
        asking = [asyncio.create_task(ask(server, str(number))) for number in range(12)]
        for left in range(9, 0, -1):
            await until(lambda left=left: queued(server) == left and sum(len(gate.waiting) for gate in gates) == 3)  # type: ignore[misc]
            next(gate for gate in gates if gate.waiting).open()
        for _ in range(3):
            await until(lambda: any(gate.waiting for gate in gates))
            next(gate for gate in gates if gate.waiting).open()
        assert await asyncio.gather(*asking) == [200] * 12
        assert max(gate.most_at_once for gate in gates) <= 2
        assert [endpoint.inflight for endpoint in server.services.endpoints.all] == [0, 0]
        text = server.services.metrics.exposition()[0].decode()
    assert "tierline_router_queue_seconds_count 9.0" in text
    assert "tierline_router_queued_requests 0.0" in text


async def test_what_finds_no_place_is_told_when_to_come_again() -> None:
    gate = Gate()
    async with backends(gate) as (backend,), router(backend, max_inflight=1) as server, client(server) as peer:
        await until_models_are_known(server)
        first = asyncio.create_task(ask(server))
        await until(lambda: len(gate.waiting) == 1)
        answer = await peer.ask(chat())
        assert (answer.status, answer.fields["retry-after"]) == (429, "1")
        error = json.loads(answer.body)["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert (await peer.ask(method="GET", path="/health")).status == 200, "the connection lasts"
        gate.open()
        assert await first == 200
        assert 'limits_reached_total{reason="queue_full"} 1.0' in server.services.metrics.exposition()[0].decode()


async def test_the_answer_to_too_much_can_be_another_status() -> None:
    async with backends(Gate()) as (backend,), router(backend, max_inflight=1, overflow_status=503) as server:
        first = asyncio.create_task(ask(server))
        await until(lambda: len(backend.requests) == 1)
        assert await ask(server) == 503
        await give_up(first)


async def test_who_waits_too_long_is_answered_and_never_sent() -> None:
    async with (
        backends(Gate()) as (backend,),
        router(backend, max_inflight=1, max_queued=5, queue_timeout_s=0.1) as server,
        client(server) as peer,
    ):
        first = asyncio.create_task(ask(server))
        await until(lambda: len(backend.requests) == 1)
        answer = await peer.ask(chat("late"))
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (429, "queue_timeout")
        assert queued(server) == 0
        await give_up(first)
    assert len(backend.requests) == 1


async def test_who_leaves_the_queue_is_never_sent() -> None:
    gate = Gate()
    async with backends(gate) as (backend,), router(backend, max_inflight=1, max_queued=5) as server:
        first = asyncio.create_task(ask(server))
        await until(lambda: len(gate.waiting) == 1)
        async with client(server) as peer:
            await peer.send(request_bytes(chat("impatient")))
            await until(lambda: queued(server) == 1)
        await until(lambda: queued(server) == 0)
        gate.open()
        assert await first == 200
        assert server.services.held_bytes == 0
    assert gate.prompts == ["hello"]


@pytest.mark.parametrize(
    ("settings", "of"),
    [
        ({}, lambda priority: {"priority": priority}),
        ({"priority_header": "X-Request-Priority"}, lambda priority: {"fields": f"x-request-priority: {priority}\r\n"}),
    ],
    ids=["body", "header"],
)
async def test_the_best_priority_goes_first(settings: dict[str, object], of: object) -> None:
    assert callable(of)
    gate = Gate()
    async with backends(gate) as (backend,), router(backend, max_inflight=1, max_queued=9, **settings) as server:
        asking = [asyncio.create_task(ask(server, "first"))]
        await until(lambda: len(gate.waiting) == 1)
        for count, (prompt, priority) in enumerate((("batch", 7), ("chat", -2), ("normal", 0)), start=1):
            asking.append(asyncio.create_task(ask(server, prompt, **of(priority))))
            await until(lambda count=count: queued(server) == count)  # type: ignore[misc]
        for served in range(1, 5):
            await until(lambda served=served: len(gate.prompts) == served)  # type: ignore[misc]
            gate.open()
        await asyncio.gather(*asking)
    assert gate.prompts == ["first", "chat", "normal", "batch"]


async def test_a_model_whose_endpoints_are_full_holds_up_no_other_model() -> None:
    async with (
        backends(Gate(), models=("slow",)) as (slow,),
        backends(answering(whole()), models=("fast",)) as (fast,),
        router(slow, fast, max_inflight_per_endpoint=1, max_queued=9) as server,
    ):
        await until_models_are_known(server)
        stuck = [asyncio.create_task(ask(server, model="slow")) for _ in range(3)]
        await until(lambda: queued(server) == 2)
        assert [await ask(server, model="fast") for _ in range(5)] == [200] * 5
        await give_up(*stuck)


async def test_a_request_that_failed_waits_for_room_where_it_was_not_tried() -> None:
    gate = Gate()

    async def breaks_off(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await until(lambda: bool(gate.waiting))  # else the other request might find this endpoint free, too
        writer.transport.abort()

    async with (
        backends(breaks_off, gate) as (sick, good),
        router(sick, good, strategy="roundrobin", max_inflight_per_endpoint=1, health_interval_s=1000) as server,
    ):
        await until_models_are_known(server)
        asking = [asyncio.create_task(ask(server, str(number))) for number in range(2)]
        await until(lambda: queued(server) == 1 and len(gate.waiting) == 1)
        gate.open()
        await until(lambda: len(gate.prompts) == 2)
        gate.open()
        assert await asyncio.gather(*asking) == [200, 200]
    assert len(sick.requests) == 1


async def test_an_endpoint_that_comes_back_is_given_what_waits() -> None:
    gate = Gate()
    late = Backend(port=free_port())
    async with backends(gate) as (up,), router(up, late, max_inflight_per_endpoint=1, max_queued=9) as server:
        await until_models_are_known(server)
        first = asyncio.create_task(ask(server))
        await until(lambda: len(gate.waiting) == 1)
        second = asyncio.create_task(ask(server))
        await until(lambda: queued(server) == 1)
        await late.start()
        assert await second == 200
        gate.open()
        assert await first == 200
    await late.kill()
