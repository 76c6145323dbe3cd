"""Spans of requests as a collector gets them over OTLP, from a router in front of real sockets."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.clocks import ManualClock
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
    router,
    router_by,
    until,
    until_models_are_known,
    whole,
)
from tests.integration.router.collector import Collected, Span, collecting

from tierline.errors import UsageError
from tierline.router.config import RouterConfig
from tierline.router.server import RouterServer, start
from tierline.tracing.context import TraceContext
from tierline.tracing.tracer import open_tracer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = (f"traceparent: 00-{TRACE}-{PARENT}-{flags}\r\n" for flags in ("01", "00"))
STREAM = STREAM_HEAD + chunk(EVENT) + chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n"


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collected]:
    with collecting() as collected:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collected.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        yield collected


def spans_total(server: RouterServer, outcome: str) -> float:
    page = server.services.metrics.exposition()[0].decode()
    return next(
        float(line.split()[-1])
        for line in page.splitlines()
        if line.startswith(f'tierline_router_spans_total{{outcome="{outcome}"}}')
    )


async def received(collected: Collected, count: int) -> list[Span]:
    await until(lambda: len(collected.spans) >= count)
    return sorted(collected.spans, key=lambda span: (span.start_ns, span.kind))


async def test_a_request_has_a_span_and_under_it_one_for_its_attempt(collected: Collected) -> None:
    async with (
        backends(answering(STREAM)) as (backend,),
        router(backend, opentelemetry=True) as server,
        client(server) as peer,
    ):
        answer = await peer.ask(chat("secret words", stream=True), path="/v1/chat/completions?key=hidden")
        request, attempt = await received(collected, 2)
    assert (request.kind, request.name, request.parent_id) == (2, "POST /v1/chat/completions", "")
    assert (attempt.kind, attempt.name, attempt.parent_id) == (3, "POST", request.span_id)
    assert attempt.trace_id == request.trace_id
    assert request.start_ns <= attempt.start_ns < attempt.end_ns <= request.end_ns
    assert request.events == ["first byte"]
    assert not request.is_error
    assert not attempt.is_error
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "tierline.request_id": answer.fields["x-request-id"],
        "tierline.endpoint": backend.url,
        "tierline.retries": 0,
    }
    assert {name: request.attributes[name] for name in expected} == expected
    assert (attempt.attributes["server.address"], attempt.attributes["server.port"]) == ("127.0.0.1", backend.port)
    assert request.resource["service.name"] == "tierline-router"
    told = backend.requests[0].fields[b"traceparent"].decode()
    assert told == f"00-{request.trace_id}-{attempt.span_id}-01"
    assert "secret" not in repr(collected.spans)
    assert "hidden" not in repr(collected.spans)


async def test_of_names_that_clients_choose_spans_have_the_beginning(collected: Collected) -> None:
    path, model, name = "/v1/" + "p" * 5000, "m" * 5000, "i" * 5000
    async with (
        backends(answering(whole()), models=(model,)) as (backend,),
        router(backend, opentelemetry=True) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        assert (await peer.ask(chat(model=model), path=path, fields=f"x-request-id: {name}\r\n")).status == 200
        request, _ = await received(collected, 2)
    kept = [request.attributes[key] for key in ("url.path", "gen_ai.request.model", "tierline.request_id")]
    assert kept == [path[:256], model[:256], name[:256]]
    assert backend.requests[0].first_line == f"POST {path} HTTP/1.1".encode()


@pytest.mark.parametrize("fields", ["", UNSAMPLED, SAMPLED.replace(TRACE, "f" * 32)])
@pytest.mark.parametrize("further", ["", " \t", "\r\nx-request-id: another"])
async def test_an_id_of_a_place_in_a_trace_that_the_request_is_not_in_counts_as_none(
    collected: Collected, fields: str, further: str
) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, opentelemetry=True) as server,
        client(server) as peer,
    ):
        forged = await peer.ask(chat(), fields=f"X-Request-ID: {TRACE}-{PARENT}{further}\r\n{fields}")
        known = await peer.ask(chat(), fields=f"x-request-id: {TRACE}-{PARENT}\r\n{SAMPLED}")
    assert known.fields["x-request-id"] == f"{TRACE}-{PARENT}"
    assert not forged.fields["x-request-id"].startswith(("another", TRACE))
    assert [request.fields[b"x-request-id"].decode() for request in backend.requests] == [
        forged.fields["x-request-id"],
        known.fields["x-request-id"],
    ]
    assert backend.requests[0].head.lower().count(b"x-request-id") == 1


@pytest.mark.parametrize("echoed", ["", "X-Request-Id: %b\r\n", "x-request-id: of the endpoint's own\r\n"])
async def test_endpoints_are_sent_a_client_s_id_with_the_request_s_place_and_the_client_its_own(
    collected: Collected, echoed: str
) -> None:
    async def echo(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(fields=echoed.encode().replace(b"%b", request.fields[b"x-request-id"])))

    async with (
        backends(echo) as (backend,),
        router(backend, opentelemetry=True) as behind,
        router(f"http://127.0.0.1:{behind.port}", opentelemetry=True) as server,
        client(server) as peer,
    ):
        mine = await peer.ask(chat(), fields="X-Request-ID: mine\r\nX-Request-ID: mine\r\n")
        requests = [span for span in await received(collected, 4) if span.kind == 2]
        first, second = sorted(requests, key=lambda span: span.parent_id)  # the first began the trace
        await peer.ask(chat(), fields="x-request-id: unsampled\r\n" + UNSAMPLED)
    assert mine.fields["x-request-id"] == ("of the endpoint's own" if "own" in echoed else "mine")
    assert [request.attributes["tierline.request_id"] for request in (first, second)] == ["mine", "mine"]
    told, unsampled = (request.fields[b"x-request-id"].decode() for request in backend.requests)
    assert told == f"mine~{first.trace_id}-{second.span_id}"
    assert unsampled == "unsampled"
    assert backend.requests[0].head.lower().count(b"x-request-id") == 1


async def test_a_router_that_does_not_trace_goes_by_the_client_s_id_and_sends_on_what_came() -> None:
    told = f"mine~{TRACE}-{PARENT}"
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        answer = await peer.ask(chat(), fields=f"x-request-id: {told}\r\n{SAMPLED}")
    assert answer.fields["x-request-id"] == "mine"
    assert backend.requests[0].fields[b"x-request-id"].decode() == told


@pytest.mark.parametrize("settings", [{}, {"trace_share": 1}, {"opentelemetry": True}], ids=str)
async def test_what_clients_say_of_traces_counts_as_nothing_where_it_is_not_trusted(
    collected: Collected, settings: dict[str, object]
) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, trust_traceparent=False, **settings) as server,
        client(server) as peer,
    ):
        for fields in (SAMPLED, UNSAMPLED, SAMPLED + f"x-request-id: {TRACE}-{PARENT}\r\n"):
            answer = await peer.ask(chat(), fields=fields + "Tracestate: vendor=1\r\n")
            assert TRACE not in answer.fields["x-request-id"]
        if "opentelemetry" in settings:
            spans = await received(collected, 6)
            assert [span.parent_id for span in spans if span.kind == 2] == [""] * 3
            assert not any(span.state for span in spans)
    for request in backend.requests:
        assert TRACE not in request.head.decode()
        assert b"tracestate" not in request.head.lower()
        begun = request.fields.get(b"traceparent", b"")
        assert begun.endswith(b"-01") if settings else not begun


async def test_a_caller_s_trace_goes_on_and_its_state_with_it(collected: Collected) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, opentelemetry=True) as server,
        client(server) as peer,
    ):
        await peer.ask(chat(), fields=SAMPLED + "tracestate: vendor=1\r\n")
        request, attempt = await received(collected, 2)
    assert (request.trace_id, request.parent_id, request.state) == (TRACE, PARENT, "vendor=1")
    fields = backend.requests[0].fields
    assert fields[b"traceparent"].decode() == f"00-{TRACE}-{attempt.span_id}-01"
    assert fields[b"tracestate"] == b"vendor=1"
    assert backend.requests[0].head.lower().count(b"traceparent") == 1


async def test_a_state_that_cannot_be_read_is_dropped_and_not_quoted_in_the_log(
    collected: Collected, caplog: pytest.LogCaptureFixture
) -> None:
    async with backends(answering(whole())) as (backend,), router(backend, opentelemetry=True) as server:
        for state in ("a caller's words", "a=1,a=1", ",".join(f"k{number}=v" for number in range(40))):
            async with client(server) as peer:
                await peer.ask(chat(), fields=SAMPLED + f"tracestate: {state}\r\n")
        await received(collected, 6)
    assert {span.state for span in collected.spans} == {""}
    assert caplog.records == []


async def test_what_the_caller_does_not_sample_has_no_span_and_goes_on_unsampled(collected: Collected) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, opentelemetry=True) as server,
        client(server) as peer,
    ):
        await peer.ask(chat(), fields=UNSAMPLED + "tracestate: vendor=1\r\n")
        await peer.ask(chat(), fields=SAMPLED)
        await received(collected, 2)
    assert backend.requests[0].fields[b"traceparent"].decode() == f"00-{TRACE}-{PARENT}-00"
    assert backend.requests[0].fields[b"tracestate"] == b"vendor=1"
    assert len(collected.spans) == 2


@pytest.mark.parametrize(
    "field", ["00-xyz", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01-x"]
)
async def test_a_malformed_context_begins_a_new_trace(collected: Collected, field: str) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, opentelemetry=True) as server,
        client(server) as peer,
    ):
        await peer.ask(chat(), fields=f"traceparent: {field}\r\ntracestate: vendor=1\r\n")
        request, attempt = await received(collected, 2)
    assert request.trace_id not in (TRACE, "0" * 32)
    assert backend.requests[0].fields[b"traceparent"].decode() == f"00-{request.trace_id}-{attempt.span_id}-01"
    assert b"tracestate" not in backend.requests[0].fields


async def test_the_sampler_of_the_environment_decides_where_no_caller_has(
    collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, opentelemetry=True) as server,
        client(server) as peer,
    ):
        await peer.ask(chat())
        await peer.ask(chat(), fields=SAMPLED)
        await received(collected, 2)
    assert backend.requests[0].fields[b"traceparent"].endswith(b"-00")
    assert {span.trace_id for span in collected.spans} == {TRACE}


async def test_each_attempt_of_a_retried_request_has_its_span(collected: Collected) -> None:
    async with (
        backends(answering(whole(503)), answering_then_closing(b""), answering(whole())) as (ill, broken, well),
        router(ill, broken, well, opentelemetry=True, strategy="roundrobin") as server,
        client(server) as peer,
    ):
        assert (await peer.ask(chat())).status == 200
        request, first, second, third = await received(collected, 4)
    assert [span.parent_id for span in (first, second, third)] == [request.span_id] * 3
    assert [span.attributes.get("error.type") for span in (first, second, third)] == ["503", "reset", None]
    assert [span.attributes.get("http.request.resend_count") for span in (first, second, third)] == [None, 1, 2]
    assert [span.is_error for span in (request, first, second, third)] == [False, True, True, False]
    sent = [backend.requests[-1].fields[b"traceparent"].split(b"-")[2].decode() for backend in (ill, broken, well)]
    assert sent == [span.span_id for span in (first, second, third)]


async def test_a_prompt_computed_elsewhere_and_a_hedge_are_attempts_like_others(
    collected: Collected, tmp_path: Path
) -> None:
    handed = b'{"choices":[],"kv_transfer_params":{"do_remote_prefill":true}}'
    file = tmp_path / "endpoints.json"
    async with backends(answering(whole(body=handed)), answering(whole())) as (prefill, decode):
        roles = {prefill.url: ["prefill"], decode.url: ["decode"]}
        file.write_text(json.dumps([{"url": url, "roles": role} for url, role in roles.items()]))
        async with router(endpoints_file=file, opentelemetry=True) as server, client(server) as peer:
            await until_models_are_known(server)
            assert (await peer.ask(chat("word " * 10_000))).status == 200
            request, first, second = await received(collected, 3)
    assert (first.attributes["tierline.role"], "tierline.role" in second.attributes) == ("prefill", False)
    assert [span.attributes["server.port"] for span in (first, second)] == [prefill.port, decode.port]
    assert "http.request.resend_count" not in first.attributes | second.attributes
    assert (first.parent_id, second.parent_id) == (request.span_id, request.span_id)
    assert first.end_ns <= second.start_ns
    collected.spans.clear()
    async with backends(answering(b""), answering(whole())) as (slow, fast):
        slow.behave = slow.hanging
        async with (
            router(slow, fast, strategy="roundrobin", opentelemetry=True, hedge_after="0.05", hedge_share=1) as server,
            client(server) as peer,
        ):
            assert (await peer.ask(chat())).status == 200
            request, first, second = await received(collected, 3)
    assert (first.attributes["tierline.canceled"], first.is_error) == (True, False)
    assert (second.attributes["http.response.status_code"], second.parent_id) == (200, request.span_id)
    assert first.start_ns < second.start_ns < first.end_ns


async def test_an_endpoint_that_does_not_answer_in_time_a_client_that_leaves_and_a_broken_stream_are_told(
    collected: Collected,
) -> None:
    async def break_off(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(EVENT))
        await writer.drain()
        writer.transport.abort()

    clock = ManualClock()
    async with backends(answering(b"")) as (backend,):
        backend.behave = backend.hanging
        async with router_by(clock, backend, opentelemetry=True, response_timeout_s=1.0) as server:
            async with client(server) as peer:
                await peer.send(request_bytes(chat()))
                await until(lambda: len(backend.requests) == 1)
                clock.advance(2)
                assert (await peer.answer()).status == 504
            request, attempt = await received(collected, 2)
            assert (request.attributes["http.response.status_code"], request.is_error) == (504, True)
            assert attempt.attributes["error.type"] == "timeout"
            collected.spans.clear()
            async with client(server) as peer:
                await peer.send(request_bytes(b"{}"))
                await until(lambda: len(backend.requests) == 2)
            request, attempt = await received(collected, 2)
            assert (request.attributes["tierline.aborted_by"], request.is_error) == ("client", False)
            assert "http.response.status_code" not in request.attributes
            assert (attempt.attributes["tierline.canceled"], attempt.is_error) == (True, False)
            collected.spans.clear()
            backend.behave = break_off
            async with client(server) as peer:
                await peer.ask(chat(stream=True))
            request, attempt = await received(collected, 2)
            assert (request.attributes["error.type"], request.is_error) == ("aborted", True)
            assert (attempt.attributes["error.type"], attempt.attributes["http.response.status_code"]) == ("reset", 200)


async def test_spans_that_no_collector_takes_are_dropped_and_counted_and_no_request_waits(
    collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    collected.is_open.clear()
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, opentelemetry=True) as server,
        client(server) as peer,
    ):
        for _ in range(20):
            assert (await peer.ask(chat())).status == 200
        await until(lambda: spans_total(server, "dropped") == 30)
        assert (spans_total(server, "exported"), spans_total(server, "failed")) == (0, 0)
        collected.status = 400
        collected.is_open.set()
        await until(lambda: spans_total(server, "failed") == 10)
        collected.status = 200
        await peer.ask(chat())
        await until(lambda: spans_total(server, "exported") == 2)


async def test_what_is_left_is_delivered_at_the_end(collected: Collected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    async with backends(answering(whole())) as (backend,):
        async with router(backend, opentelemetry=True) as server, client(server) as peer:
            await peer.ask(chat())
            assert collected.spans == []
        assert len(collected.spans) == 2


async def test_the_standard_variables_say_where_how_and_as_whom(
    collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "edge")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=ours")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, opentelemetry=True) as server,
        client(server) as peer,
    ):
        await peer.ask(chat())
        request, _ = await received(collected, 2)
    assert request.resource["service.name"] == "edge"
    assert request.resource["deployment.environment.name"] == "test"
    assert collected.headers[0]["x-team"] == "ours"
    assert collected.headers[0]["content-encoding"] == "gzip"


async def test_a_collector_is_told_what_caused_the_work_of_a_batch(collected: Collected) -> None:
    tracer = open_tracer("tierline-node", None, to_collector=True)
    assert tracer is not None
    span = tracer.open_for_all("write redis", "client", [TraceContext(number, 7, 1) for number in (1, 2)])
    assert span is not None
    span.end({})
    (only,) = await received(collected, 1)
    await tracer.close()
    assert only.links == [(f"{number:032x}", f"{7:016x}") for number in (1, 2)]
    assert (only.parent_id, tracer.outcomes()["exported"]) == ("", 1)


@pytest.mark.parametrize(
    "variables", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}], ids=lambda given: next(iter(given))
)
async def test_the_standard_variables_switch_it_off(
    collected: Collected, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    async with backends(answering(whole())) as (backend,), router(backend, opentelemetry=True) as server:
        assert server.services.spans is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
    ],
)
async def test_what_the_router_cannot_do_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    config = RouterConfig.model_validate({"port": 0, "endpoints": ("http://127.0.0.1:9",), "opentelemetry": True})
    with pytest.raises(UsageError, match="OTEL_"):
        await start(config)


async def test_without_the_packages_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "tierline.tracing.collector", raising=False)
    config = RouterConfig.model_validate({"port": 0, "endpoints": ("http://127.0.0.1:9",), "opentelemetry": True})
    with pytest.raises(UsageError, match="pip install 'tierline\\[otel\\]'"):
        await start(config)


def test_without_the_option_nothing_of_opentelemetry_is_loaded() -> None:
    program = """
import asyncio, sys
from tierline.router.config import RouterConfig
from tierline.router.server import running
async def main():
    async with running(RouterConfig(port=0, endpoints=("http://127.0.0.1:9",), shutdown_timeout_s=0)):
        assert not [name for name in sys.modules if name.startswith("opentelemetry")]
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
