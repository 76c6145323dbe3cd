"""The proxy between real sockets: what passes, who waits, who is turned away, and what is counted."""

import asyncio
import contextlib
import json

import pytest
from tests.integration.proxy.proxies import Page, metrics, post, proxy
from tests.integration.router.backend import (
    DONE,
    EVENT,
    STREAM_HEAD,
    Received,
    answering,
    answering_then_closing,
    backends,
    chat,
    chunk,
    client,
    request_bytes,
    until,
    whole,
)
from tests.integration.router.test_admission import Gate
from tests.ports import free_port

from tierline.proxy.server import METRICS_CONNECTIONS, ProxyServer

FIELDS = {
    "cluster_name": "c",
    "cluster_id": "i",
    "resource_name": "demo",
    "resource_type": "jumpstart",
    "namespace": "ns",
    "model_name": "m",
    "model_version": "1",
    "container_type": "vllm",
    "pod_name": "demo-1",
    "node_name": "n1",
    "instance_type": "ml.g5.24xlarge",
}


async def ask(server: ProxyServer, body: bytes | None = None) -> int:
    async with client(server) as peer:
        return (await peer.ask(body or chat())).status


def waiting(server: ProxyServer) -> int:
    assert server.services.admission is not None
    return server.services.admission.waiting


# What passes ----------------------------------------------------------------------------------------------------------


async def test_a_request_and_its_answer_pass_unchanged() -> None:
    said = b"HTTP/1.1 201 Made\r\nX-Odd: \xe4\r\nServer: uvicorn\r\ncontent-length: 3\r\nX-Odd: two\r\n\r\nabc"
    async with backends(answering(said)) as (model,), proxy(model) as server, client(server) as peer:
        body = b'{"model": "m",  "prompt":"\xc3\xa9"}'
        await peer.send(request_bytes(body, path="/v1/completions?a=%20b", fields="X-Mine: 1\r\nAuthorization: k\r\n"))
        head = await peer.reader.readuntil(b"\r\n\r\n")
        assert await peer.reader.readexactly(3) == b"abc"
    assert head == (b"HTTP/1.1 201 Made\r\nX-Odd: \xe4\r\nServer: uvicorn\r\nX-Odd: two\r\ncontent-length: 3\r\n\r\n")
    (request,) = model.requests
    assert request.first_line == b"POST /v1/completions?a=%20b HTTP/1.1"
    assert request.body == body
    assert request.head.split(b"\r\n")[1:] == [
        b"host: %b" % model.url.removeprefix("http://").encode(),
        b"X-Mine: 1",
        b"Authorization: k",
        b"content-length: %d" % len(body),
    ]


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/ping", "/version"])
async def test_what_is_no_invocation_passes_too_and_is_counted_apart(path: str) -> None:
    async with backends(answering(whole(body=b"here"))) as (model,), proxy(model) as server, client(server) as peer:
        assert (await peer.ask(method="GET", path=path)).status == 200
        counted = await metrics(server)
    assert counted["model_invocations_total"] == 0
    assert counted["tierline_proxy_requests_total kind=other status=200"] == 1


async def test_events_of_a_stream_pass_one_by_one_in_the_chunks_that_they_came_in() -> None:
    gate = asyncio.Event()

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(EVENT))
        await gate.wait()
        writer.write(chunk(EVENT + DONE) + b"0\r\n\r\n")

    async with backends(behave) as (model,), proxy(model) as server, client(server) as peer:
        await peer.send(post())
        assert (await peer.head()).fields["transfer-encoding"] == "chunked"
        assert await peer.reader.readexactly(len(chunk(EVENT))) == chunk(EVENT)
        counted = await metrics(server)
        assert counted["model_concurrent_requests"] == 1
        gate.set()
        rest = chunk(EVENT + DONE) + b"0\r\n\r\n"
        assert await peer.reader.readexactly(len(rest)) == rest
        await until(lambda: server.services.metrics.concurrent == 0)
        counted = await metrics(server)
    assert counted["model_invocations_total"] == counted["model_ttfb_milliseconds_count"] == 1
    assert counted["model_ttfb_milliseconds_sum"] <= counted["model_latency_milliseconds_sum"]
    assert counted["model_errors_total"] == 0


async def test_an_old_client_gets_a_stream_without_chunks() -> None:
    stream = STREAM_HEAD + chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n"
    async with backends(answering(stream)) as (model,), proxy(model) as server, client(server) as peer:
        await peer.send(request_bytes(b"{}", version="1.0"))
        answer = await peer.rest()
    assert answer.endswith(b"\r\n\r\n" + EVENT + DONE)
    assert b"chunked" not in answer


async def test_requests_follow_each_other_on_one_connection_to_the_model() -> None:
    async with backends(answering(whole())) as (model,), proxy(model) as server, client(server) as peer:
        for _ in range(5):
            assert (await peer.ask(chat())).status == 200
        assert model.connections == 1


async def test_a_chunked_request_and_one_of_several_mebibytes_arrive_whole() -> None:
    body = bytes(range(256)) * 8192
    async with backends(answering(whole())) as (model,), proxy(model) as server, client(server) as peer:
        await peer.send(request_bytes(fields="transfer-encoding: chunked\r\n") + chunk(body) + b"0\r\n\r\n")
        assert (await peer.answer()).status == 200
        assert (await peer.ask(body)).status == 200
    assert [request.body for request in model.requests] == [body, body]


# Who waits, who is turned away ----------------------------------------------------------------------------------------


async def test_no_more_run_than_may_the_next_wait_in_their_order_and_the_rest_are_turned_away() -> None:
    gate = Gate()
    async with (
        backends(gate) as (model,),
        proxy(model, max_concurrent_requests=2, max_queue_size=3, overflow_status=529) as server,
    ):
        asking = []
        for number in range(5):
            asking.append(asyncio.create_task(ask(server, chat(str(number)))))
            await until(lambda number=number: len(gate.waiting) + waiting(server) == number + 1)  # type: ignore[misc]
        async with client(server) as peer:
            refused = await peer.ask(chat(), fields="x-request-id: r7\r\n")
        assert refused.status == 529
        assert json.loads(refused.body)["error"]["code"] == "queue_full"
        assert refused.fields["x-request-id"] == "r7"
        assert "retry-after" not in refused.fields
        counted = await metrics(server)
        assert counted["tierline_proxy_queued_requests"] == 3
        assert counted["model_concurrent_requests"] == 2
        for left in range(5, 0, -1):
            await until(lambda left=left: len(gate.waiting) == min(left, 2))  # type: ignore[misc]
            gate.open()
        assert await asyncio.gather(*asking) == [200] * 5
        assert gate.prompts == ["0", "1", "2", "3", "4"]
        assert gate.most_at_once == 2
        counted = await metrics(server)
    assert counted["model_invocations_total"] == 6
    assert counted["model_errors_total"] == 1
    assert counted["model_latency_milliseconds_count"] == 5
    assert counted["tierline_proxy_limits_reached_total reason=queue_full"] == 1
    assert counted["tierline_proxy_queue_seconds_count"] == 3


async def test_who_waits_too_long_is_turned_away() -> None:
    gate = Gate()
    limits = {"max_concurrent_requests": 1, "max_queue_size": 9, "queue_timeout_s": 0.3}
    async with backends(gate) as (model,), proxy(model, **limits) as server:
        first = asyncio.create_task(ask(server))
        await until(lambda: len(gate.waiting) == 1)
        async with client(server) as peer:
            answer = await peer.ask(chat())
        assert answer.status == 429
        assert json.loads(answer.body)["error"]["code"] == "queue_timeout"
        assert waiting(server) == 0
        gate.open()
        assert await first == 200


async def test_health_checks_and_what_computes_nothing_pass_while_invocations_wait() -> None:
    gate = Gate()
    async with backends(gate) as (model,), proxy(model, max_concurrent_requests=1, max_queue_size=1) as server:
        asking = [asyncio.create_task(ask(server)) for _ in range(2)]
        await until(lambda: len(gate.waiting) == 1 and waiting(server) == 1)
        async with client(server) as peer:
            assert (await peer.ask(method="GET", path="/health")).status == 200
            model.behave = answering(whole())
            assert (await peer.ask(b"{}", path="/tokenize")).status == 200
        gate.open()
        assert await asyncio.gather(*asking) == [200, 200]


async def test_who_leaves_the_queue_takes_the_request_with_it() -> None:
    gate = Gate()
    async with backends(gate) as (model,), proxy(model, max_concurrent_requests=1, max_queue_size=1) as server:
        first = asyncio.create_task(ask(server))
        await until(lambda: len(gate.waiting) == 1)
        async with client(server) as peer:
            await peer.send(post())
            await until(lambda: waiting(server) == 1)
        await until(lambda: waiting(server) == 0)
        gate.open()
        assert await first == 200
        assert len(model.requests) == 1
        counted = await metrics(server)
    assert counted["tierline_proxy_aborts_total side=client"] == 1
    assert counted["model_errors_total"] == 0


# Faults ---------------------------------------------------------------------------------------------------------------


async def test_a_model_that_is_not_there_is_said_so() -> None:
    async with proxy(f"http://127.0.0.1:{free_port()}", max_concurrent_requests=1) as server, client(server) as peer:
        for _ in range(3):
            answer = await peer.ask(chat())
            assert answer.status == 503
            assert json.loads(answer.body)["error"]["code"] == "model_connect"
        counted = await metrics(server)
    assert counted["model_errors_total"] == 3
    assert counted["model_concurrent_requests"] == 0


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        (b"", 502, "model_reset"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", 502, "model_reset"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", 502, "model_reset"),
        (b"not HTTP\r\n\r\n", 502, "model_malformed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0", 502, "model_malformed"),
    ],
)
async def test_an_answer_that_breaks_before_its_first_byte_is_an_error(said: bytes, status: int, code: str) -> None:
    async with backends(answering_then_closing(said)) as (model,), proxy(model) as server, client(server) as peer:
        answer = await peer.ask(chat())
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)
        counted = await metrics(server)
    assert counted["model_errors_total"] == 1


@pytest.mark.parametrize(
    "said",
    [
        STREAM_HEAD + chunk(EVENT),
        STREAM_HEAD + chunk(EVENT) + b"ff\r\nhalf",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc",
    ],
)
async def test_half_an_answer_passes_as_half_an_answer(said: bytes) -> None:
    async with backends(answering_then_closing(said)) as (model,), proxy(model) as server, client(server) as peer:
        await peer.send(post())
        await peer.head()
        assert await peer.rest() == said.partition(b"\r\n\r\n")[2]
        await until(lambda: not server.services.clients)
        counted = await metrics(server)
    assert counted["tierline_proxy_aborts_total side=upstream"] == 1
    assert counted["model_errors_total"] == counted["model_invocations_total"] == 1


async def test_half_an_answer_without_framing_is_cut_off_for_an_old_client() -> None:
    said = STREAM_HEAD + chunk(EVENT)
    async with backends(answering_then_closing(said)) as (model,), proxy(model) as server, client(server) as peer:
        await peer.send(request_bytes(b"{}", version="1.0"))
        with pytest.raises(ConnectionResetError):
            await peer.rest()


async def test_a_client_that_leaves_makes_the_model_stop() -> None:
    async with backends(answering(whole())) as (model,), proxy(model, max_concurrent_requests=1) as server:
        model.behave = model.hanging
        async with client(server) as peer:
            await peer.send(post())
            await until(lambda: len(model.requests) == 1)
        async with asyncio.timeout(60):
            await model.left.wait()
        model.behave = answering(whole())
        assert await ask(server) == 200
        counted = await metrics(server)
    assert counted["model_concurrent_requests"] == 0
    assert counted["tierline_proxy_requests_total kind=invocation status=0"] == 1


async def test_a_model_that_says_nothing_is_given_up() -> None:
    async with (
        backends(answering(whole())) as (model,),
        proxy(model, response_timeout_s=1.0) as server,
        client(server) as peer,
    ):
        model.behave = model.hanging
        answer = await peer.ask(chat())
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (504, "model_timeout")
        async with asyncio.timeout(60):
            await model.left.wait()


async def test_what_went_on_a_connection_that_the_model_had_closed_goes_again_on_a_new_one() -> None:
    closing = answering_then_closing(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    async with backends(closing) as (model,), proxy(model) as server, client(server) as peer:
        for _ in range(20):
            assert (await peer.ask(chat())).status == 200
    assert len(model.requests) == 20


async def test_a_slow_reader_slows_the_model_down_and_gets_everything() -> None:
    piece, count = b"x" * 65536, 800  # more than the buffers of all sockets between them may grow to
    written = 0

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(piece) * count))
        for _ in range(count):
            writer.write(piece)
            await writer.drain()
            written += 1

    async with backends(behave) as (model,), proxy(model) as server, client(server) as peer:
        peer.reader._limit = 1024  # type: ignore[attr-defined]
        await peer.send(post())
        before = -1
        while before != written or not written:
            before = written
            await asyncio.sleep(0.2)
        assert written < count, "all of it is in somebody's memory"
        await peer.head()
        assert len(await peer.reader.readexactly(len(piece) * count)) == len(piece) * count
        assert (await peer.ask(method="GET", path="/health")).status == 200


async def test_requests_that_run_get_their_answer_when_the_proxy_stops() -> None:
    gate = Gate()
    async with backends(gate) as (model,):
        async with proxy(model, shutdown_timeout_s=10) as server:
            asking = asyncio.create_task(ask(server))
            await until(lambda: len(gate.waiting) == 1)
            asyncio.get_running_loop().call_later(0.2, gate.open)
        assert await asking == 200


# The page with the metrics --------------------------------------------------------------------------------------------


async def test_invocation_metrics_have_the_labels_of_hyperpod() -> None:
    async with backends(answering(whole())) as (model,), proxy(model, **FIELDS) as server:
        await ask(server)
        async with client(Page(server)) as peer:
            text = (await peer.ask(method="GET", path="/metrics")).body.decode()
            assert (await peer.ask(method="GET", path="/healthz")).body == b"ok\n"
            assert (await peer.ask(b"{}", path="/metrics")).status == 404
    labels = dict(FIELDS) | {"metric_source": "reverse-proxy", "task_type": "inference"}
    labels["model_container_type"] = labels.pop("container_type")
    (line,) = [line for line in text.splitlines() if line.startswith("model_invocations_total{")]
    for name, value in labels.items():
        assert f'{name}="{value}"' in line
    assert line.count("=") == len(labels)


async def test_metrics_answer_while_all_connections_are_taken() -> None:
    async with (
        backends(answering(whole())) as (model,),
        proxy(model, connections=1) as server,
        client(server) as peer,
        client(server) as other,
    ):
        assert (await other.answer()).status == 503
        assert (await peer.ask(chat())).status == 200
        counted = await metrics(server)
    assert counted["tierline_proxy_connections_refused_total"] == 1


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTTP/1.1\r\nhost", b"GET /drain HTTP/1.1\r\nhost: h\r\n\r\n"])
async def test_who_connects_and_asks_nothing_does_not_keep_others_from_the_page(said: bytes) -> None:
    gate = Gate()
    async with backends(gate) as (model,), proxy(model) as server, contextlib.AsyncExitStack() as stack:
        running = asyncio.create_task(ask(server))
        await until(lambda: len(gate.waiting) == 1)
        for _ in range(2 * METRICS_CONNECTIONS):
            peer = await stack.enter_async_context(client(Page(server)))
            await peer.send(said)
        await until(lambda: len(server._page.clients) == METRICS_CONNECTIONS)
        for _ in range(3):
            async with client(Page(server)) as kubelet:
                assert (await kubelet.ask(method="GET", path="/healthz")).status == 200
        assert (await metrics(server))["tierline_proxy_connections_refused_total"] >= METRICS_CONNECTIONS
        assert len(server._page.departures) <= METRICS_CONNECTIONS
        gate.open()
        assert await running == 200


async def test_room_is_made_by_the_address_that_has_the_most_connections() -> None:
    async with backends(answering(whole())) as (model,), proxy(model) as server, contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(client(Page(server)))
        assert (await first.ask(method="GET", path="/healthz")).status == 200
        for _ in range(2 * METRICS_CONNECTIONS):
            _, writer = await asyncio.open_connection("127.0.0.1", server.metrics_port, local_addr=("127.0.0.2", 0))
            stack.callback(writer.close)
        await until(lambda: len(server._page.clients) == METRICS_CONNECTIONS)
        assert (await first.ask(method="GET", path="/healthz")).status == 200
