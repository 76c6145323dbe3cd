"""Endpoints that are down, die, hang, lie or talk nonsense: no request fails that another could have served."""

import asyncio
import contextlib
import json
import os
import resource
import string
from collections.abc import Iterator

import openai
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

from tierline.router.budget import Budget
from tierline.router.endpoints import FAILURES_BEFORE_EJECTION, REST_MAX_SECONDS
from tierline.router.prompt import read_fields
from tierline.router.proxy.services import RETRIES_EARNED, RETRIES_RESERVE
from tierline.router.strategies import RoutingRequest

RESETTING = answering_then_closing(b"")
SICK = {"health_interval_s": 1000}  # the router learns of the fault from the request itself


@pytest.mark.parametrize(
    "fault",
    [
        RESETTING,
        answering_then_closing(b"HTTP/1.1 20"),
        answering_then_closing(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
        answering(b"nonsense\r\n\r\n"),
        answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"),
        answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n"),
        answering(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n"),
        answering(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
        answering(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000),
        *[answering(whole(status)) for status in (408, 429, 502, 503, 504)],
    ],
)
async def test_what_fails_before_its_first_byte_is_served_by_another_endpoint(fault: Behaviour) -> None:
    async with (
        backends(fault, answering(whole())) as (bad, good),
        router(bad, good, strategy="roundrobin", **SICK) as server,
        client(server) as peer,
    ):
        answers = [await peer.ask(chat()) for _ in range(4)]
    assert [answer.status for answer in answers] == [200] * 4
    assert {answer.fields["x-tierline-endpoint"] for answer in answers} == {good.url}
    assert bad.requests, "the bad endpoint was tried"


@pytest.mark.parametrize("fault", [RESETTING, answering(whole(503))], ids=["reset", "503"])
async def test_an_endpoint_that_says_it_is_healthy_and_fails_is_passed_over(fault: Behaviour) -> None:
    async with (
        backends(fault, answering(whole())) as (sick, good),
        router_by(ManualClock(), sick, good, strategy="roundrobin", health_interval_s=0.01) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        ill = server.services.endpoints.all[0]
        for _ in range(2 * FAILURES_BEFORE_EJECTION):
            assert (await peer.ask(chat())).status == 200
            await until_found_healthy(sick)
        assert ill.is_up
        assert ill.ejections == 1
        assert len(sick.requests) == FAILURES_BEFORE_EJECTION


async def until_found_healthy(backend: Backend) -> None:
    """Wait until a health check is over that began after this was called: the second one from now."""
    backend.checks.clear()
    await until(lambda: [check.first_line for check in backend.checks].count(b"GET /health HTTP/1.1") >= 3)


async def test_a_prefix_follows_the_endpoint_that_served_it() -> None:
    async with (
        backends(answering(whole(429)), answering(whole())) as (busy, good),
        router(busy, good) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        topics = string.ascii_lowercase  # as many that none would go to the busy one first once in 67 million times
        first = [await peer.ask(chat(topic * 4096)) for topic in topics]
        tried = len(busy.requests)
        again = [await peer.ask(chat(topic * 4096)) for topic in topics]
        assert tried, "some prompts were placed on the busy endpoint first"
        assert len(busy.requests) == tried
    assert {answer.fields["x-tierline-endpoint"] for answer in first + again} == {good.url}
    assert {answer.fields["x-tierline-reason"] for answer in again} == {"prefix"}


async def test_an_endpoint_that_is_down_costs_no_request() -> None:
    async with (
        backends(answering(whole()), answering(whole())) as (down, up),
        router_by(ManualClock(), down, up, strategy="roundrobin", **SICK) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        await down.kill()
        answers = [await peer.ask(chat()) for _ in range(6)]
        text = server.services.metrics.exposition()[0].decode()
    assert [answer.status for answer in answers] == [200] * 6
    assert 'tierline_router_retries_total{reason="connect"} 1.0' in text, "the endpoint was passed over after that"


async def test_requests_in_flight_on_an_endpoint_that_dies_are_served_by_another() -> None:
    async with backends(answering(whole()), answering(whole())) as (dying, good):
        dying.behave = dying.hanging
        async with router(dying, good, strategy="roundrobin", **SICK) as server:
            await until_models_are_known(server)

            async def ask() -> int:
                async with client(server) as peer:
                    return (await peer.ask(chat())).status

            asking = [asyncio.create_task(ask()) for _ in range(40)]
            await until(lambda: len(dying.requests) == 20)
            await dying.kill()
            assert await asyncio.gather(*asking) == [200] * 40
            assert [endpoint.inflight for endpoint in server.services.endpoints.all] == [0, 0]


async def test_an_endpoint_that_is_believed_to_be_down_is_better_than_none() -> None:
    async with (
        backends(RESETTING, answering(whole())) as (dying, returned),
        router(dying, returned, **SICK) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        server.services.endpoints.all[1].checked(is_up=False)
        answer = await peer.ask(chat())
    assert (answer.status, answer.fields["x-tierline-endpoint"]) == (200, returned.url)


async def test_a_connection_that_idled_too_long_is_replaced_on_the_same_endpoint() -> None:
    async with (
        backends(answering_then_closing(whole())) as (backend,),
        router(backend, **SICK) as server,
        client(server) as peer,
    ):
        answers = [await peer.ask(chat()) for _ in range(20)]
    assert [answer.status for answer in answers] == [200] * 20
    assert backend.connections == 20


async def test_a_request_that_kills_whoever_takes_it_is_not_given_to_everybody() -> None:
    async with backends(*[answering(whole())] * 6) as endpoints:

        async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if b"poison" not in request.body:
                writer.write(whole())
                return
            hosts = {backend.url.removeprefix("http://").encode(): backend for backend in endpoints}
            await hosts[request.fields[b"host"]].kill()

        for backend in endpoints:
            backend.behave = behave
        async with router(*endpoints, strategy="roundrobin", retries=2, **SICK) as server, client(server) as peer:
            await until_models_are_known(server)
            assert [(await peer.ask(chat())).status for _ in endpoints] == [200] * 6, "each has an idle connection now"
            answer = await peer.ask(chat("poison"))
            text = server.services.metrics.exposition()[0].decode()
    killed = [backend for backend in endpoints if any(b"poison" in request.body for request in backend.requests)]
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (502, "endpoint_reset")
    assert len(killed) == 3
    assert 'tierline_router_retries_total{reason="reset"} 2.0' in text
    assert 'retries_total{reason="connect"}' not in text


@pytest.mark.parametrize(("method", "requests"), [("POST", 1), ("GET", 2)])
async def test_what_may_not_happen_twice_is_sent_once(method: str, requests: int) -> None:
    async with (
        backends(RESETTING, RESETTING) as endpoints,
        router(*endpoints, **SICK) as server,
        client(server) as peer,
    ):
        assert (await peer.ask(method=method, path="/v1/files")).status == 502
    assert sum(len(backend.requests) for backend in endpoints) == requests


async def test_when_no_endpoint_is_left_the_client_is_told_what_happened() -> None:
    async with backends(RESETTING, answering(whole(429, b"{}"))) as (resetting, busy):
        async with router(resetting, **SICK) as server, client(server) as peer:
            reset = await peer.ask(chat())
        async with router(busy, **SICK) as server, client(server) as peer:
            passed_on = await peer.ask(chat())
        async with router("http://127.0.0.1:9", **SICK) as server, client(server) as peer:
            refused = await peer.ask(chat())
    assert (reset.status, json.loads(reset.body)["error"]["code"]) == (502, "endpoint_reset")
    assert (passed_on.status, passed_on.body) == (429, b"{}")
    assert (refused.status, refused.fields["retry-after"]) == (503, "1")


@pytest.mark.parametrize("status", [408, 429, 503])
async def test_an_answer_is_passed_on_when_all_others_are_believed_to_be_down(status: int) -> None:
    async with (
        backends(answering(whole(status, b"{}")), answering(whole())) as (busy, down),
        router(busy, down, **SICK) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        await down.kill()
        server.services.endpoints.all[1].checked(is_up=False)
        answer = await peer.ask(chat())
    assert (answer.status, answer.body) == (status, b"{}")


async def test_a_status_is_told_even_if_the_next_endpoint_cannot_be_reached() -> None:
    async with (
        backends(answering(whole(429)), answering(whole())) as (busy, down),
        router(busy, down, strategy="roundrobin", **SICK) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        await down.kill()
        answer = await peer.ask(chat())
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (429, "endpoint_429")


async def test_waiting_for_an_endpoint_that_breaks_is_no_overhead_of_the_router() -> None:
    clock = ManualClock()

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clock.advance(0.5)
        writer.transport.abort()

    async with (
        backends(behave, answering(whole())) as endpoints,
        router_by(clock, *endpoints, strategy="roundrobin", **SICK) as server,
        client(server) as peer,
    ):
        assert (await peer.ask(chat())).status == 200
        overhead = server.services.metrics._overhead
        assert len(endpoints[0].requests) == 1
        assert (sum(overhead.counts), overhead.total) == (1, 0.0)


async def test_a_second_retry_comes_after_a_pause_and_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def paused_for(least: float, most: float) -> float:
        pauses.append(most)
        return least * 0.01

    monkeypatch.setattr("tierline.router.proxy.exchange.uniform", paused_for)
    faults = [answering(whole(503)), RESETTING, answering(whole(429)), answering(whole(502))]
    async with (
        backends(*faults, answering(whole())) as endpoints,
        router(*endpoints, strategy="roundrobin", retries=4, **SICK) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        assert (await peer.ask(chat())).status == 200
    assert [len(backend.requests) for backend in endpoints] == [1] * 5
    assert len(pauses) == 3, "the first retry comes at once"


async def test_a_client_that_leaves_between_two_attempts_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierline.router.proxy.exchange.RETRY_PAUSE_MAX_S", 3600)
    monkeypatch.setattr("tierline.router.proxy.exchange.RETRY_PAUSE_S", 3600)
    async with (
        backends(RESETTING, RESETTING, RESETTING) as endpoints,
        router(*endpoints, strategy="roundrobin", **SICK) as server,
    ):
        await until_models_are_known(server)
        async with client(server) as leaving:
            await leaving.send(request_bytes(chat()))
            await until(lambda: sum(endpoint.answers_failed for endpoint in server.services.endpoints.all) == 2)
        await until(lambda: 'aborts_total{side="client"} 1.0' in server.services.metrics.exposition()[0].decode())
        assert server.services.held_bytes == 0
        assert [endpoint.inflight for endpoint in server.services.endpoints.all] == [0, 0, 0]
    assert sum(len(backend.requests) for backend in endpoints) == 2


async def test_between_two_attempts_the_time_for_an_answer_may_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierline.router.proxy.exchange.RETRY_PAUSE_MAX_S", 3600)
    monkeypatch.setattr("tierline.router.proxy.exchange.RETRY_PAUSE_S", 3600)
    async with (
        backends(RESETTING, RESETTING, RESETTING) as endpoints,
        router(*endpoints, strategy="roundrobin", response_timeout_s=0.2, **SICK) as server,
        client(server) as peer,
    ):
        assert (await peer.ask(chat())).status == 504


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_request_has_its_time_and_no_more_however_well_it_goes(is_stream: bool) -> None:
    clock = ManualClock()
    head = STREAM_HEAD if is_stream else b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"

    async def drip(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while not reader.at_eof():
            writer.write(chunk(EVENT) if is_stream else b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with (
        backends(drip) as (backend,),
        router_by(clock, backend, total_timeout_s=1.0) as server,
        client(server) as peer,
    ):
        await peer.send(request_bytes(chat(stream=is_stream)))
        answer = await peer.head()
        clock.advance(2)
        if is_stream:
            last = (await peer.with_body(answer)).body.strip().split(b"\n\n")[-1]
            assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "endpoint_timeout"
            assert b"[DONE]" not in answer.body
        else:
            assert answer.fields["content-length"] == "1000000"
            assert len(await peer.rest()) < 1000000
        await until(lambda: server.services.endpoints.all[0].inflight == 0)
        assert server.services.endpoints.all[0].answers_failed == 0


async def test_a_request_that_nobody_answers_has_its_time_and_no_more() -> None:
    clock = ManualClock()
    async with backends(answering(b"")) as (hanging,):
        hanging.behave = hanging.hanging
        async with router_by(clock, hanging, total_timeout_s=0.5) as server, client(server) as peer:
            await peer.send(request_bytes(chat()))
            await until(lambda: bool(hanging.requests))
            clock.advance(1)
            assert (await peer.answer()).status == 504
            await asyncio.wait_for(hanging.left.wait(), 60)


async def test_an_endpoint_that_hangs_costs_a_timeout() -> None:
    clock = ManualClock()
    async with backends(answering(b"")) as (hanging,):
        hanging.behave = hanging.hanging
        async with router_by(clock, hanging, response_timeout_s=0.5) as server, client(server) as peer:
            await peer.send(request_bytes(chat()))
            await until(lambda: bool(hanging.requests))
            clock.advance(1)
            answer = await peer.answer()
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (504, "endpoint_timeout")
            await asyncio.wait_for(hanging.left.wait(), 60)
            assert (await peer.ask(method="GET", path="/health")).status in (200, 503), "the connection lasts"


@pytest.mark.parametrize("last_words", [b"", chunk(b"data: {half an")], ids=["between events", "within an event"])
async def test_a_stream_that_breaks_ends_with_an_error_event_and_without_done(last_words: bytes) -> None:
    broken = answering_then_closing(STREAM_HEAD + chunk(EVENT) + last_words)
    async with backends(broken) as (backend,), router(backend) as server, client(server) as peer:
        answer = await peer.ask(chat(stream=True))
        assert await peer.rest() == b""
    last = answer.body.strip().split(b"\n\n")[-1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "upstream_error"
    assert b"[DONE]" not in answer.body


async def test_openais_client_raises_when_a_stream_breaks() -> None:
    broken = answering_then_closing(STREAM_HEAD + chunk(EVENT))
    async with (
        backends(broken) as (backend,),
        router(backend) as server,
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as ai,
    ):
        stream = await ai.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True)
        with pytest.raises(openai.APIError, match="broke off"):
            async for _ in stream:
                pass


@pytest.mark.parametrize(
    "half",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        STREAM_HEAD + b"ff\r\ndata: ",
    ],
    ids=["length", "chunked", "within a chunk"],
)
async def test_a_body_that_breaks_never_looks_whole(half: bytes) -> None:
    async with (
        backends(answering_then_closing(half)) as (backend,),
        router(backend) as server,
        client(server) as peer,
    ):
        await peer.send(request_bytes(chat()))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError, ValueError)):
            await peer.answer()


async def test_half_an_answer_to_an_old_client_ends_with_a_reset_connection() -> None:
    half = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
    async with backends(answering_then_closing(half)) as (backend,), router(backend) as server, client(server) as peer:
        await peer.send(request_bytes(chat(), version="1.0"))
        with pytest.raises(ConnectionResetError):
            await peer.rest()


@pytest.mark.parametrize(
    "lie",
    [whole() + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison", whole() + b"\r\n"],
    ids=["a second response", "a blank line"],
)
async def test_bytes_behind_an_answer_never_reach_another_client(lie: bytes) -> None:
    async with backends(answering(lie)) as (backend,), router(backend) as server:
        for _ in range(3):
            async with client(server) as peer:
                answer = await peer.ask(chat())
                assert answer.body == b'{"ok":true}'
        assert backend.connections == 3, "no connection was used again"


async def test_bytes_on_an_idle_connection_end_it() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        assert (await peer.ask(chat())).status == 200
        for writer in list(backend._writers):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")
        await until(lambda: not len(server.services.pools[0]))
        assert (await peer.ask(chat())).body == b'{"ok":true}'


async def test_an_answer_before_the_request_was_out_ends_the_connection() -> None:
    """A backend that refuses a large body early: the rest of that body must not become the next request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(whole(413))
        await writer.drain()
        await is_seen.wait()
        writer.close()

    is_seen = asyncio.Event()
    early = await asyncio.start_server(serve, "127.0.0.1", 0, limit=4096)
    url = f"http://127.0.0.1:{early.sockets[0].getsockname()[1]}"
    async with router(url, **SICK) as server, client(server) as peer:
        answer = await peer.ask(chat("x" * 2**24))
        assert answer.status == 413
        assert len(server.services.pools[0]) == 0
        is_seen.set()
    early.close()


async def test_what_an_endpoint_never_reads_is_not_kept_for_it() -> None:
    received: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    answered = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(whole(413))
        if not head.startswith(b"PUT"):
            writer.close()
            return
        await answered.wait()
        size = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(2**16):
                size += len(data)
        received.set_result(size)
        writer.close()

    early = await asyncio.start_server(serve, "127.0.0.1", 0, limit=4096)
    url = f"http://127.0.0.1:{early.sockets[0].getsockname()[1]}"
    async with router(url, **SICK) as server, client(server) as peer:
        assert (await peer.ask(method="PUT", path="/v1/files", body=b"x" * 2**24)).status == 413
        await asyncio.sleep(0.1)
        answered.set()
        assert await received < 2**24
    early.close()


async def test_an_endpoint_that_comes_back_is_used_again() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        await until_models_are_known(server)
        await backend.kill()
        await until(lambda: not server.services.endpoints.is_serving)
        assert (await peer.ask(chat())).status == 503
        await backend.start()
        await until(lambda: server.services.endpoints.is_serving)
        assert (await peer.ask(chat())).status == 200


async def test_an_endpoint_that_went_down_is_believed_to_hold_nothing() -> None:
    prompt = "p" * 4096
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        await until_models_are_known(server)
        await peer.ask(chat(prompt))
        assert (await peer.ask(chat(prompt))).fields["x-tierline-reason"] == "prefix"
        await backend.kill()
        # A check that was on its way broke off, which says less than a refusal.
        await until(lambda: server.services.endpoints.all[0].is_gone)
        await backend.start()
        await until(lambda: server.services.endpoints.is_serving)
        assert (await peer.ask(chat(prompt))).fields["x-tierline-reason"] == "cold"


async def test_a_router_without_descriptors_blames_no_endpoint() -> None:
    prompt = "p" * 4096
    # A check that ends just then would leave its descriptor to the request: they come when the test says so.
    async with backends(answering_then_closing(whole())) as (backend,), router(backend, **SICK) as server:
        endpoint = server.services.endpoints.all[0]
        async with client(server) as peer:
            await until_models_are_known(server)
            await peer.ask(chat(prompt))
            await until(lambda: not len(server.services.pools[0]))
            with no_more_files():
                answer = await peer.ask(chat(prompt))
                await server._health.check(endpoint)
            assert endpoint.is_up
            assert endpoint.ejections == 0
            again = await peer.ask(chat(prompt))
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "overloaded")
    assert (again.status, again.fields["x-tierline-reason"]) == (200, "prefix")


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    unused = os.dup(0)
    os.close(unused)
    resource.setrlimit(resource.RLIMIT_NOFILE, (unused, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_a_health_check_that_times_out_leaves_what_is_known_of_the_cache() -> None:
    prompt, is_hanging = "p" * 4096, False

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            first_line = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0]
            if first_line.startswith(b"GET /health") and is_hanging:
                await reader.read(1)
            writer.write(whole(200, b'{"data":[]}' if first_line.startswith(b"GET") else b"{}"))
            await writer.drain()
        writer.close()

    slow = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{slow.sockets[0].getsockname()[1]}"
    async with router(url, health_timeout_s=0.5) as server:
        await until_models_are_known(server)
        strategy, endpoints = server.services.choosing.default.main.strategy, server.services.endpoints.all
        request = RoutingRequest(read_fields(chat(prompt)))
        strategy.placed(request, strategy.choose(request, endpoints))
        is_hanging = True
        await until(lambda: not server.services.endpoints.is_serving)
        assert strategy.choose(request, endpoints).reason == "prefix"
    slow.close()


def test_retries_stop_when_a_fifth_of_the_traffic_is_retries() -> None:
    budget = Budget(earned=RETRIES_EARNED, reserve=RETRIES_RESERVE)
    assert sum(budget.spend() for _ in range(1000)) == RETRIES_RESERVE
    for _ in range(100):
        budget.earn()
    assert 19 <= sum(budget.spend() for _ in range(100)) <= 20


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_leaves_ends_the_request_at_the_endpoint(is_stream: bool) -> None:
    async with backends(answering(b"")) as (backend,):
        backend.behave = backend.hanging
        async with router(backend) as server:
            async with client(server) as peer:
                await peer.send(request_bytes(chat(stream=is_stream)))
                await until(lambda: len(backend.requests) == 1)
            async with asyncio.timeout(60):
                await backend.left.wait()
            await until(lambda: server.services.endpoints.all[0].inflight == 0)
            assert 'aborts_total{side="client"} 1.0' in server.services.metrics.exposition()[0].decode()


async def test_a_client_that_leaves_in_the_middle_of_a_stream_ends_it_at_the_endpoint() -> None:
    left = asyncio.Event()

    async def endless(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        try:
            while not reader.at_eof():
                writer.write(chunk(EVENT))
                await writer.drain()
                await asyncio.sleep(0.005)
        finally:
            left.set()

    async with backends(endless) as (backend,), router(backend) as server:
        async with client(server) as peer:
            await peer.send(request_bytes(chat(stream=True)))
            await peer.reader.readuntil(EVENT)
        async with asyncio.timeout(60):
            await left.wait()
        await until(lambda: server.services.endpoints.all[0].inflight == 0)


async def test_a_client_that_stops_reading_is_given_up() -> None:
    async def flood(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(chunk(b"x" * 65536))
            await writer.drain()

    async with backends(flood) as (backend,), router(backend, stream_timeout_s=0.3) as server, client(server) as peer:
        await peer.send(request_bytes(chat(stream=True)))
        await until(lambda: bool(backend.requests))
        await until(lambda: not server.services.clients)
        assert server.services.endpoints.all[0].inflight == 0


async def test_a_done_stream_is_whole_even_if_the_endpoint_dies_right_after() -> None:
    ending = answering_then_closing(STREAM_HEAD + chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n")
    async with backends(ending) as (backend,), router(backend) as server, client(server) as peer:
        assert (await peer.ask(chat(stream=True))).body == EVENT + DONE
        assert "aborts_total{" not in server.services.metrics.exposition()[0].decode()


@pytest.mark.parametrize("status", [429, 503])
async def test_an_endpoint_that_says_when_to_come_again_rests_for_as_long(status: int) -> None:
    clock = ManualClock()
    async with (
        backends(answering(whole(status, fields=b"retry-after: 20\r\n")), answering(whole())) as (busy, good),
        router_by(clock, busy, good, strategy="roundrobin", **SICK) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        answers = [await peer.ask(chat()) for _ in range(6)]
        assert len(busy.requests) == 1
        endpoint = server.services.endpoints.all[0]
        assert endpoint.rests_for_s(clock()) == 20
        assert endpoint.is_usable(clock() + 20), "and is not on probation then"
    assert [answer.status for answer in answers] == [200] * 6


async def test_several_that_say_when_to_come_again_cost_no_pause_and_the_last_one_s_answer_is_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tierline.router.proxy.exchange.RETRY_PAUSE_S", 1000.0)
    monkeypatch.setattr("tierline.router.proxy.exchange.RETRY_PAUSE_MAX_S", 1000.0)
    resting = answering(whole(429, fields=b"retry-after: 7200\r\n"))
    async with (
        backends(resting, resting, resting) as endpoints,
        router(*endpoints, strategy="roundrobin", retries=5, **SICK) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        answer = await peer.ask(chat())
        now = server.services.clock()
        assert all(endpoint.rests_for_s(now) <= REST_MAX_SECONDS for endpoint in server.services.endpoints.all)
    assert (answer.status, answer.fields["retry-after"]) == (429, "7200")
    assert [len(endpoint.requests) for endpoint in endpoints] == [1, 1, 1]
