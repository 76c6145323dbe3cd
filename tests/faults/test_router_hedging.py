"""A second endpoint asked while the first is silent: one answer, no byte twice, the loser told, a budget kept."""

import asyncio
import contextlib
import json

import pytest
from tests.clocks import ManualClock
from tests.integration.router.backend import (
    DONE,
    EVENT,
    STREAM_HEAD,
    Backend,
    Behaviour,
    Received,
    answering,
    answering_then_closing,
    backends,
    chat,
    chunk,
    client,
    request_bytes,
    router,
    router_by,
    until,
    until_models_are_known,
    whole,
)

from tierline.router.hedging import KEPT, LEARNT, P95, RESERVE, Hedging
from tierline.router.proxy.exchange import Exchange
from tierline.router.server import RouterServer

STREAM = STREAM_HEAD + chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n"
HEDGED = {"strategy": "roundrobin", "health_interval_s": 1000, "hedge_after": "0.05"}
"""The first endpoint has the first turn."""
HEDGED_WHEN_TOLD = HEDGED | {"hedge_after": "500"}
"""By :func:`hedge`: a test that is late itself would else be too late for what must come first."""


def hedge(server: RouterServer) -> None:
    """Let the time be over after which a second endpoint is asked, for every request that runs."""
    hedging = server.services.hedging
    assert hedging is not None
    for connection in server.services.clients:
        if isinstance(connection._exchange, Exchange):
            connection._exchange._open_hedge(hedging)


def counted(server: RouterServer, name: str) -> float:
    lines = server.services.metrics.exposition()[0].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"tierline_router_{name}"))


def is_idle(server: RouterServer) -> bool:
    return not any(endpoint.inflight or endpoint.queued_tokens for endpoint in server.services.endpoints.all)


def silent_after(data: bytes) -> Behaviour:
    """Say this much, and then nothing until the peer has left."""

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await reader.read(1)
        writer.close()

    return behave


def after(event: asyncio.Event, data: bytes) -> Behaviour:
    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await event.wait()
        writer.write(data)

    return behave


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("said", [b"", STREAM_HEAD], ids=["nothing", "a head"])
async def test_a_second_endpoint_answers_for_a_silent_one_which_is_told(said: bytes, is_stream: bool) -> None:
    answer = STREAM if is_stream else whole()
    async with backends(silent_after(said), answering(answer)) as (slow, quick):
        if not said:
            slow.behave = slow.hanging
        async with router(slow, quick, **HEDGED) as server, client(server) as peer:
            await until_models_are_known(server)
            told = await peer.ask(chat(stream=is_stream))
            await until(lambda: not slow._writers or slow.left.is_set())
            assert is_idle(server)
            assert counted(server, 'hedges_total{outcome="won"}') == 1
            assert counted(server, 'retries_total{reason="hedge"}') == 1
            assert server.services.endpoints.all[0].ejections == 0
            (decision,) = server.services.decisions.latest(1)
    assert told.status == 200
    assert told.body == (EVENT + DONE if is_stream else b'{"ok":true}')
    assert told.fields["x-tierline-endpoint"] == quick.url
    assert decision.choice is not None
    assert decision.choice.endpoint == quick.url
    assert decision.retries == ["hedge"]


async def test_the_first_endpoint_answers_after_all_and_the_second_is_told() -> None:
    go_on = asyncio.Event()
    async with backends(after(go_on, whole()), answering(b"")) as (first, second):
        second.behave = second.hanging
        async with router(first, second, **HEDGED) as server, client(server) as peer:
            await until_models_are_known(server)
            asking = asyncio.create_task(peer.ask(chat()))
            await until(lambda: bool(second.requests))
            go_on.set()
            answer = await asking
            await asyncio.wait_for(second.left.wait(), 60)
            assert counted(server, 'hedges_total{outcome="lost"}') == 1
            assert is_idle(server)
    assert answer.fields["x-tierline-endpoint"] == first.url
    assert answer.body == b'{"ok":true}'


async def test_a_second_endpoint_is_chosen_by_load_alone_when_affinity_was_turned_off_meanwhile() -> None:
    seen: list[Received] = []

    async def silent_at_first(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(request)
        await silent_after(b"" if len(seen) == 1 else whole())(request, reader, writer)

    async with (
        backends(silent_at_first, silent_at_first) as both,
        router(*both, **HEDGED_WHEN_TOLD | {"strategy": "session"}) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        await peer.send(request_bytes(chat(), fields="x-session-id: s\r\n"))
        await until(lambda: bool(seen))
        server.services.choosing.turn_off()
        hedge(server)
        assert (await peer.answer()).fields["x-tierline-reason"] == "least-load"


async def test_nothing_is_hedged_unless_configured_and_nothing_that_answers_in_time() -> None:
    for settings in ({"strategy": "roundrobin"}, HEDGED | {"hedge_after": "30"}):
        go_on = asyncio.Event()
        async with (
            backends(after(go_on, whole()), answering(whole())) as (first, second),
            router(first, second, **settings) as server,
            client(server) as peer,
        ):
            asking = asyncio.create_task(peer.ask(chat()))
            await until(lambda first=first: bool(first.requests))  # type: ignore[misc]
            await asyncio.sleep(0.2)
            go_on.set()
            assert (await asking).status == 200
            assert counted(server, "hedges_total") == 0
        assert not second.requests


async def test_once_a_byte_was_sent_no_other_endpoint_is_asked() -> None:
    async with (
        backends(silent_after(STREAM_HEAD + chunk(EVENT)), answering(STREAM)) as (slow, other),
        router(slow, other, **HEDGED_WHEN_TOLD) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        await peer.send(request_bytes(chat(stream=True)))
        assert (await peer.head()).status == 200
        hedge(server)
        assert [endpoint.inflight for endpoint in server.services.endpoints.all] == [1, 0]
    assert not other.requests


async def test_what_may_not_happen_twice_is_not_hedged() -> None:
    async with (
        backends(silent_after(b""), answering(whole())) as (slow, other),
        router(slow, other, **HEDGED, response_timeout_s=0.5) as server,
        client(server) as peer,
    ):
        assert (await peer.ask(b"{}", path="/v1/files")).status == 504
    assert not other.requests


FAULTS = {
    "reset": answering_then_closing(b""),
    "nonsense": answering(b"nonsense\r\n\r\n"),
    "short": answering_then_closing(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
    "429": answering(whole(429)),
    "500": answering(whole(500)),
    "503": answering(whole(503)),
}


@pytest.mark.parametrize("fault", list(FAULTS.values()), ids=list(FAULTS))
async def test_a_second_endpoint_that_fails_leaves_the_first_its_time(fault: Behaviour) -> None:
    go_on = asyncio.Event()
    async with (
        backends(after(go_on, whole()), fault, answering(whole())) as (slow, bad, third),
        router(slow, bad, third, **HEDGED) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        asking = asyncio.create_task(peer.ask(chat()))
        await until(lambda: bool(bad.requests) and server.services.endpoints.all[1].inflight == 0)
        go_on.set()
        answer = await asking
        assert is_idle(server)
        assert counted(server, 'hedges_total{outcome="lost"}') == 1
    assert (answer.status, answer.fields["x-tierline-endpoint"]) == (200, slow.url)
    assert not third.requests


@pytest.mark.parametrize("fault", [answering_then_closing(b""), answering(whole(503))], ids=["reset", "503"])
async def test_a_first_endpoint_that_fails_leaves_it_to_the_second(fault: Behaviour) -> None:
    fails, go_on = asyncio.Event(), asyncio.Event()

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await fails.wait()
        await fault(request, reader, writer)

    async with (
        backends(behave, after(go_on, whole()), answering(whole())) as (bad, slow, third),
        router(bad, slow, third, **HEDGED) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        asking = asyncio.create_task(peer.ask(chat()))
        await until(lambda: bool(slow.requests))
        fails.set()
        await until(lambda: server.services.endpoints.all[0].inflight == 0)
        go_on.set()
        answer = await asking
        assert counted(server, 'hedges_total{outcome="won"}') == 1
    assert (answer.status, answer.fields["x-tierline-endpoint"]) == (200, slow.url)
    assert not third.requests


async def test_when_both_fail_a_third_is_tried_as_ever() -> None:
    fails = asyncio.Event()

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await fails.wait()
        writer.transport.abort()

    async with (
        backends(behave, behave, answering(whole())) as (one, two, three),
        router(one, two, three, **HEDGED) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        asking = asyncio.create_task(peer.ask(chat()))
        await until(lambda: bool(two.requests))
        fails.set()
        answer = await asking
    assert (answer.status, answer.fields["x-tierline-endpoint"]) == (200, three.url)


@pytest.mark.parametrize("leaves", ["client", "time"])
async def test_both_endpoints_are_told_when_nobody_waits_any_more(leaves: str) -> None:
    clock = ManualClock()
    async with backends(answering(b""), answering(b"")) as endpoints:
        for backend in endpoints:
            backend.behave = backend.hanging
        async with router_by(clock, *endpoints, **HEDGED, response_timeout_s=1.0) as server:
            await until_models_are_known(server)
            async with client(server) as peer:
                await peer.send(request_bytes(chat()))
                await until(lambda: all(backend.requests for backend in endpoints))
                if leaves == "time":
                    clock.advance(2)
                    assert (await peer.answer()).status == 504
            for backend in endpoints:
                await asyncio.wait_for(backend.left.wait(), 60)
            await until(lambda: counted(server, 'hedges_total{outcome="unanswered"}') == 1)
            assert is_idle(server)


async def test_an_endpoint_without_room_is_not_asked_too() -> None:
    go_on = asyncio.Event()
    async with (
        backends(after(go_on, whole()), after(go_on, whole())) as endpoints,
        router(*endpoints, **HEDGED_WHEN_TOLD, max_inflight_per_endpoint=1, max_queued=9) as server,
        client(server) as peer,
        client(server) as other,
    ):
        asking = [asyncio.create_task(one.ask(chat())) for one in (peer, other)]
        await until(lambda: all(backend.requests for backend in endpoints))
        hedge(server)
        assert [endpoint.inflight for endpoint in server.services.endpoints.all] == [1, 1]
        go_on.set()
        assert [(await task).status for task in asking] == [200, 200]
        assert counted(server, "hedges_total") == 0


async def test_a_place_that_a_failed_second_attempt_leaves_is_given_to_who_waits() -> None:
    go_on = asyncio.Event()
    failed = asyncio.Event()

    async def fail_once(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if failed.is_set():
            writer.write(whole())
            return
        await until(waiting)
        failed.set()
        writer.write(whole(503))

    async with (
        backends(after(go_on, whole()), fail_once) as endpoints,
        router(*endpoints, **HEDGED, max_inflight_per_endpoint=1, max_queued=9) as server,
        client(server) as peer,
        client(server) as other,
    ):
        admission = server.services.admission
        assert admission is not None

        def waiting() -> bool:
            return bool(admission.waiting)

        await until_models_are_known(server)
        asking = asyncio.create_task(peer.ask(chat()))
        await until(lambda: bool(endpoints[1].requests))
        waited = asyncio.create_task(other.ask(chat()))
        assert (await waited).status == 200, "before the first is answered"
        go_on.set()
        assert (await asking).status == 200


async def test_hedges_are_within_their_share() -> None:
    go_on, requests = asyncio.Event(), 100
    async with (
        backends(after(go_on, whole()), after(go_on, whole())) as endpoints,
        router(*endpoints, **HEDGED | {"hedge_after": "0.001", "hedge_share": 0.5 / requests}) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        peers = [await stack.enter_async_context(client(server)) for _ in range(requests)]

        def received() -> int:
            return sum(len(backend.requests) for backend in endpoints)

        await until_models_are_known(server)
        asking = [asyncio.create_task(peer.ask(chat())) for peer in peers]
        await until(lambda: received() >= requests + RESERVE)
        hedge(server)  # whoever was not hedged yet is not now either
        go_on.set()
        assert [(await task).status for task in asking] == [200] * requests
        assert counted(server, "hedges_total") == RESERVE
        assert received() == requests + RESERVE


async def test_under_load_every_client_gets_its_own_answer_once() -> None:
    def echoing(delay_s: float) -> Behaviour:
        async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            content = json.loads(request.body)["messages"][0]["content"]
            await asyncio.sleep(delay_s * (hash(content) % 3))
            event = b"data: " + json.dumps({"echo": content}).encode() + b"\n\n"
            writer.write(STREAM_HEAD + chunk(event) + chunk(DONE) + b"0\r\n\r\n")

        return behave

    started: list[Backend]
    async with (
        backends(echoing(0.02), echoing(0.01), echoing(0.005)) as started,
        router(*started, **HEDGED | {"hedge_after": "0.01", "hedge_share": 1.0}) as server,
    ):

        async def ask(name: int) -> None:
            async with client(server) as peer:
                for number in range(20):
                    content = f"{name}/{number}"
                    answer = await peer.ask(chat(content, stream=True))
                    assert answer.body == b"data: " + json.dumps({"echo": content}).encode() + b"\n\n" + DONE

        await asyncio.gather(*map(ask, range(16)))
        assert counted(server, "hedges_total") > 0
        assert is_idle(server)


def test_the_95th_percentile_is_known_after_100_times_and_follows_them() -> None:
    hedging = Hedging(P95, 0.1)
    assert hedging.delay_s("chat") == float("inf")
    for number in range(LEARNT):
        hedging.answered("chat", number / 100)
    assert hedging.delay_s("chat") == 0.95
    assert hedging.delay_s("completions") == float("inf")
    for _ in range(KEPT):
        hedging.answered("chat", 5.0)
    assert hedging.delay_s("chat") == 5.0


async def test_with_p95_nothing_is_hedged_before_enough_is_known() -> None:
    go_on = asyncio.Event()
    go_on.set()
    async with (
        backends(answering(whole()), answering(whole())) as endpoints,
        router(*endpoints, **HEDGED | {"hedge_after": "p95"}) as server,
        client(server) as peer,
    ):
        for _ in range(LEARNT):
            assert (await peer.ask(chat())).status == 200
        assert counted(server, "hedges_total") == 0
        for backend in endpoints:
            backend.behave = after(go_on, whole())
        go_on.clear()
        asking = asyncio.create_task(peer.ask(chat()))
        before = sum(len(backend.requests) for backend in endpoints)
        await until(lambda: sum(len(backend.requests) for backend in endpoints) == before + 2)
        go_on.set()
        assert (await asking).status == 200
