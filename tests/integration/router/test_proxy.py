"""What the router promises of one request and its answer, over real sockets."""

import asyncio
import json
import re
import tracemalloc

import pytest
from tests.integration.router.backend import (
    DONE,
    EVENT,
    STREAM_HEAD,
    Backend,
    Received,
    answering,
    answering_then_closing,
    backends,
    chat,
    chunk,
    client,
    pass_time,
    request_bytes,
    router,
    until,
    until_models_are_known,
    whole,
)

from tierline.errors import EnvironmentTooSmall
from tierline.router.server import start

# Carrying -------------------------------------------------------------------------------------------------------------


async def test_the_body_and_end_to_end_fields_reach_the_endpoint_as_they_were_sent() -> None:
    body = b'{ "model":"m",\n"messages":[{"role":"user","content":"\\u00e9"}] , "unknown": [1] }'
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        answer = await peer.ask(body, fields="X-Custom: One Two\r\nAuthorization: Bearer t\r\n")
    assert answer.status == 200
    assert answer.body == b'{"ok":true}'
    assert backend.requests[0].body == body
    assert b"X-Custom: One Two" in backend.requests[0].head
    assert b"Authorization: Bearer t" in backend.requests[0].head


async def test_hop_by_hop_fields_end_at_the_router_in_both_directions() -> None:
    response = whole(fields=b"connection: keep-alive, x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\nx-end: 1\r\n")
    async with backends(answering(response)) as (backend,), router(backend) as server, client(server) as peer:
        answer = await peer.ask(
            chat(), fields="Connection: keep-alive, X-Secret\r\nX-Secret: 1\r\nTE: trailers\r\nKeep-Alive: 5\r\n"
        )
    sent = backend.requests[0].fields
    assert sent.keys() & {b"connection", b"x-secret", b"te", b"keep-alive"} == set()
    assert sent[b"host"] == backend.url.removeprefix("http://").encode()
    assert answer.fields.keys() & {"connection", "x-hop", "keep-alive"} == set()
    assert answer.fields["x-end"] == "1"


async def test_a_request_id_is_kept_or_made_and_returned() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        named = await peer.ask(chat(), fields="X-Request-ID: mine\r\n")
        unnamed = await peer.ask(chat())
    assert named.fields["x-request-id"] == "mine"
    assert backend.requests[0].fields[b"x-request-id"] == b"mine"
    assert unnamed.fields["x-request-id"].encode() == backend.requests[1].fields[b"x-request-id"]
    assert len(unnamed.fields["x-request-id"]) == 32


async def test_a_trace_is_passed_on_and_begun_where_that_is_configured() -> None:
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    async with backends(answering(whole())) as (backend,):
        async with router(backend) as server, client(server) as peer:
            await peer.ask(chat())
        async with router(backend, trace_share=1) as server, client(server) as peer:
            await peer.ask(chat(), fields=f"traceparent: {given}\r\ntracestate: a=b\r\n")
            await peer.ask(chat())
    none, kept, begun = (request.fields for request in backend.requests)
    assert b"traceparent" not in none
    assert (kept[b"traceparent"], kept[b"tracestate"]) == (given.encode(), b"a=b")
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-01", begun[b"traceparent"])


async def test_the_answer_says_which_endpoint_why_and_how_many_blocks_matched() -> None:
    prompt = "p" * 2100
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        first = await peer.ask(chat(prompt))
        again = await peer.ask(chat(prompt))
    assert first.fields["x-tierline-endpoint"] == backend.url
    assert first.fields["x-tierline-reason"] == "cold"
    assert [first.fields[f"x-tierline-{kind}-blocks"] for kind in ("matched", "prompt")] == ["0", "8"]
    assert again.fields["x-tierline-reason"] == "prefix"
    assert [again.fields[f"x-tierline-{kind}-blocks"] for kind in ("matched", "prompt")] == ["8", "8"]


async def test_a_chunked_request_is_sent_on_with_its_length() -> None:
    body = chat("chunked")
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        await peer.send(request_bytes(fields="transfer-encoding: chunked\r\n"))
        for part in (body[:7], body[7:]):
            await peer.send(b"%x;ext=1\r\n" % len(part) + part + b"\r\n")
        await peer.send(b"0\r\ntrailer: 1\r\n\r\n")
        answer = await peer.answer()
    assert answer.status == 200
    assert backend.requests[0].body == body
    assert b"transfer-encoding" not in backend.requests[0].fields


async def test_a_client_that_waits_for_100_continue_gets_it() -> None:
    body = chat("wait")
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        await peer.send(request_bytes(fields=f"expect: 100-continue\r\ncontent-length: {len(body)}\r\n"))
        assert (await peer.head()).status == 100
        await peer.send(body)
        assert (await peer.answer()).status == 200
    assert b"expect" not in backend.requests[0].fields


async def test_events_are_written_through_one_by_one() -> None:
    step = asyncio.Event()

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(EVENT))
        await step.wait()
        writer.write(chunk(DONE) + b"0\r\n\r\n")

    async with backends(behave) as (backend,), router(backend) as server, client(server) as peer:
        await peer.send(request_bytes(chat(stream=True)))
        assert (await peer.head()).status == 200
        assert await peer.reader.readexactly(len(chunk(EVENT))) == chunk(EVENT)
        step.set()
        assert await peer.reader.readexactly(len(chunk(DONE)) + 5) == chunk(DONE) + b"0\r\n\r\n"
        assert (await peer.ask(method="GET", path="/v1/models")).status == 200


async def test_a_body_is_not_kept_while_its_answer_streams() -> None:
    step = asyncio.Event()

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request.body = b""
        writer.write(STREAM_HEAD + chunk(EVENT))
        await step.wait()
        writer.write(chunk(DONE) + b"0\r\n\r\n")

    async with backends(behave) as (backend,), router(backend) as server, client(server) as peer:
        tracemalloc.start()
        try:
            await peer.send(request_bytes(chat("x" * 2**23, stream=True)))
            await peer.reader.readuntil(EVENT)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        step.set()
        await peer.reader.readuntil(DONE)
    assert held < 2**22


async def test_a_body_that_ends_with_its_connection_ends_with_the_clients_connection_too() -> None:
    response = b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nuntil the end"
    async with (
        backends(answering_then_closing(response)) as (backend,),
        router(backend) as server,
        client(server) as peer,
    ):
        answer = await peer.ask(chat())
    assert answer.body == b"until the end"
    assert answer.fields["connection"] == "close"


async def test_an_http_1_0_client_gets_a_chunked_answer_without_chunks() -> None:
    response = STREAM_HEAD + chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n"
    async with backends(answering(response)) as (backend,), router(backend) as server, client(server) as peer:
        answer = await peer.ask(chat(), version="1.0")
    assert answer.body == EVENT + DONE
    assert "transfer-encoding" not in answer.fields


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    async def echo(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(body=request.body))

    bodies = [chat(f"number {i}") for i in range(20)]
    async with backends(echo, echo) as (one, two), router(one, two) as server, client(server) as peer:
        await peer.send(b"".join(map(request_bytes, bodies)))
        assert [(await peer.answer()).body for _ in bodies] == bodies


async def test_a_megabyte_goes_both_ways_unchanged() -> None:
    async def echo(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(body=request.body))
        await writer.drain()

    body = chat("x" * 2**20)
    async with backends(echo) as (backend,), router(backend) as server, client(server) as peer:
        assert (await peer.ask(body)).body == body


async def test_a_head_response_has_no_body_and_leaves_the_connection_usable() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n"
    async with backends(answering(head)) as (backend,), router(backend) as server, client(server) as peer:
        for _ in range(2):
            await peer.send(request_bytes(method="HEAD", path="/v1/files"))
            answer = await peer.head()
            assert answer.fields["content-length"] == "500"


async def test_connections_to_an_endpoint_are_used_again() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server:
        for _ in range(5):
            async with client(server) as peer:
                assert (await peer.ask(chat())).status == 200
        assert backend.connections == 1


async def test_an_endpoint_with_a_full_pipe_makes_the_router_stop_reading() -> None:
    """A client that does not read holds at most the sockets' and transports' buffers, not the whole answer."""
    sent = 0

    async def flood(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 268435456\r\n\r\n")
        for _ in range(4096):
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with backends(flood) as (backend,), router(backend) as server, client(server) as peer:
        await peer.send(request_bytes(chat()))
        assert (await peer.head()).status == 200
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 128 * 2**20
        async with asyncio.timeout(60):
            remaining = 2**28
            while remaining:
                remaining -= len(await peer.reader.read(2**20))
        assert (await peer.ask(method="GET", path="/v1/models")).status == 200


# Routes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize", "/v1/unheard/of"])
async def test_other_routes_reach_an_endpoint_too(path: str) -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        answer = await peer.ask(b'{"model":"m","prompt":"hi"}', path=path + "?a=1")
    assert answer.status == 200
    assert backend.requests[0].first_line == f"POST {path}?a=1 HTTP/1.1".encode()


@pytest.mark.parametrize(
    ("body", "path"),
    [(chat(), "/v1/chat/completions"), (b'{"prompt":"hi"}', "/v1/completions")],
    ids=["messages", "prompt"],
)
async def test_invocations_go_where_the_body_belongs(body: bytes, path: str) -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        assert (await peer.ask(body, path="/invocations")).status == 200
    assert backend.requests[0].first_line == f"POST {path} HTTP/1.1".encode()


async def test_models_are_merged_over_endpoints() -> None:
    async with (
        backends(answering(whole()), models=("m", "adapter")) as (one,),
        backends(answering(whole()), models=("m", "org/näme")) as (two,),
        router(one, two) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        merged = await peer.ask(method="GET", path="/v1/models")
        others = [
            await peer.ask(method="GET", path=f"/v1/models/{name}") for name in ("org%2Fn%C3%A4me", "org/n%c3%a4me")
        ]
        missing = await peer.ask(method="GET", path="/v1/models/missing")
    assert [card["id"] for card in json.loads(merged.body)["data"]] == ["m", "org/näme", "adapter"]
    assert [json.loads(other.body) for other in others] == [{"id": "org/näme", "object": "model"}] * 2
    assert missing.status == 404


async def test_a_request_goes_only_to_endpoints_that_serve_its_model() -> None:
    async with (
        backends(answering(whole()), models=("one",)) as (one,),
        backends(answering(whole()), models=("two",)) as (two,),
        router(one, two, strategy="roundrobin") as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        for _ in range(4):
            assert (await peer.ask(chat(model="two"))).fields["x-tierline-endpoint"] == two.url
        unknown = await peer.ask(chat(model="three"))
    assert len(one.requests) == 0
    assert unknown.status == 404
    error = json.loads(unknown.body)["error"]
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert "three" in error["message"]


async def test_health_follows_the_endpoints() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        await until_models_are_known(server)
        assert [(await peer.ask(method="GET", path=path)).status for path in ("/health", "/ping")] == [200, 200]
        await backend.kill()
        await until(lambda: not server.services.endpoints.is_serving)
        assert [(await peer.ask(method="GET", path=path)).status for path in ("/health", "/ping")] == [503, 503]


@pytest.mark.parametrize("path", ["/healthz", "/", "/lb/health"])
async def test_health_is_told_at_a_path_of_one_s_own_too(path: str) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, health_path=path) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        assert [(await peer.ask(method="GET", path=at)).status for at in (path, "/health", "/ping")] == [200] * 3
        await backend.kill()
        await until(lambda: not server.services.endpoints.is_serving)
        assert (await peer.ask(method="GET", path=path)).status == 503
        assert (await peer.ask(method="POST", path=path)).status == 405


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (request_bytes(method="GET", path="/nowhere"), 404, "not_found"),
        (request_bytes(method="POST", path="/v1/../metrics", body=b"{}"), 404, "not_found"),
        (request_bytes(method="POST", path="/v1/%2e%2E/metrics", body=b"{}"), 404, "not_found"),
        (request_bytes(method="GET"), 405, "method_not_allowed"),
        (request_bytes(b'{"model": 7}'), 400, "invalid_json"),
        (request_bytes(b'{"model": "m", '), 400, "invalid_json"),
        (request_bytes(b"[]"), 400, "invalid_json"),
        (request_bytes(b"{}", path="/invocations"), 400, "invalid_json"),
    ],
)
async def test_what_is_wrong_gets_an_error_in_openais_shape(request_: bytes, status: int, code: str) -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        await peer.send(request_)
        answer = await peer.answer()
        assert answer.status == status
        assert json.loads(answer.body)["error"]["code"] == code
        assert (await peer.ask(chat())).status == 200, "the connection lasts"
    assert len(backend.requests) == 1


# Strategies -----------------------------------------------------------------------------------------------------------


async def test_a_prefix_stays_where_it_is_and_another_may_go_elsewhere() -> None:
    async with backends(*[answering(whole())] * 4) as endpoints, router(*endpoints) as server, client(server) as peer:
        chosen = {
            topic: {
                (await peer.ask(chat(f"{topic} " * 300 + str(turn)))).fields["x-tierline-endpoint"] for turn in range(3)
            }
            for topic in map("topic {}".format, range(20))  # of so few as six, one in a thousand draws is all one's
        }
    assert [len(places) for places in chosen.values()] == [1] * 20
    assert len(set.union(*chosen.values())) > 1


@pytest.mark.parametrize(
    ("fields", "more"),
    [("x-user-id: ann\r\n", {}), ("X-Session-ID: ann\r\n", {}), ("", {"user": "ann"})],
    ids=["x-user-id", "X-Session-ID", "body user"],
)
async def test_a_session_stays_on_its_endpoint(fields: str, more: dict[str, str]) -> None:
    async with (
        backends(*[answering(whole())] * 4) as endpoints,
        router(*endpoints, strategy="session") as server,
        client(server) as peer,
    ):
        answers = [await peer.ask(chat(f"turn {turn}", **more), fields=fields) for turn in range(6)]
    assert len({answer.fields["x-tierline-endpoint"] for answer in answers}) == 1
    assert {answer.fields["x-tierline-reason"] for answer in answers} == {"session"}


async def test_round_robin_is_even() -> None:
    async with (
        backends(*[answering(whole())] * 3) as endpoints,
        router(*endpoints, strategy="round-robin") as server,
        client(server) as peer,
    ):
        for _ in range(9):
            await peer.ask(chat())
    assert [len(backend.requests) for backend in endpoints] == [3, 3, 3]


# Limits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sent", "status"),
    [
        ({"body_bytes": 100}, request_bytes(b"x" * 101), 413),
        (
            {"body_bytes": 100, "head_bytes": 1024},
            request_bytes(fields="transfer-encoding: chunked\r\n") + chunk(b"x" * 1200),
            413,
        ),
        ({"head_bytes": 1024}, request_bytes(fields=f"x: {'y' * 2000}\r\n"), 431),
        ({"head_bytes": 1024}, b"GET /" + b"x" * 2000, 431),
        ({"buffered_bytes": 50}, request_bytes(b"x" * 80), 503),
        ({"request_timeout_s": 0.1}, b"POST /v1/chat/completions HTTP/1.1\r\n", 408),
        ({"request_timeout_s": 0.1}, request_bytes(fields="content-length: 10\r\n"), 408),
        ({}, request_bytes(chat(), fields="expect: a miracle\r\n"), 417),
    ],
)
async def test_a_request_beyond_a_limit_is_refused_and_its_connection_closed(
    settings: dict[str, object], sent: bytes, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierline.router.proxy.client.LINGER_SECONDS", 60.0)  # the client leaves first
    async with backends(answering(whole())) as (backend,), router(backend, **settings) as server:
        async with client(server) as peer:
            await peer.send(sent)
            answer = await peer.answer()
            assert answer.status == status
            assert answer.fields["connection"] == "close"
            assert await peer.rest() == b""
        await until(lambda: not server.services.clients)
        assert server.services.held_bytes == 0
    assert backend.requests == []


async def test_connections_above_the_limit_are_told_so() -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, connections=1) as server,
        client(server) as first,
        client(server) as second,
    ):
        assert (await first.ask(chat())).status == 200
        assert (await second.answer()).status == 503
        assert (await first.ask(chat())).status == 200


async def test_an_idle_connection_is_closed() -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, idle_timeout_s=60) as server,
        client(server) as peer,
    ):
        assert (await peer.ask(chat())).status == 200
        pass_time(server, 61)
        assert await peer.rest() == b""


async def test_a_port_in_use_is_said_so() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server:
        with pytest.raises(EnvironmentTooSmall, match=f"127.0.0.1:{server.port}"):
            await start(server.services.config.model_copy(update={"port": server.port}))


async def test_a_router_that_stops_lets_a_running_request_end() -> None:
    step = asyncio.Event()

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await step.wait()
        writer.write(whole())

    async with backends(behave) as (backend,), router(backend) as server, client(server) as peer:
        await peer.send(request_bytes(chat()))
        await until(lambda: len(backend.requests) == 1)
        stopping = asyncio.create_task(server.stop(10))
        await asyncio.sleep(0)
        step.set()
        answer = await peer.answer()
        await stopping
    assert answer.status == 200
    assert answer.fields["connection"] == "close"


async def test_a_router_that_stops_lets_an_upload_end() -> None:
    sent = request_bytes(chat("x" * 2**16))
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        await peer.send(sent[: 2**15])
        await until(lambda: server.services.held_bytes > 0)
        stopping = asyncio.create_task(server.stop(10))
        await asyncio.sleep(0.05)
        await peer.send(sent[2**15 :])
        answer = await peer.answer()
        peer.writer.close()
        await stopping
    assert (answer.status, answer.fields["connection"]) == (200, "close")


@pytest.mark.parametrize("stream", ["true", 1])
async def test_what_only_the_engine_reads_is_the_engines_to_judge(stream: object) -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        assert (await peer.ask(chat(stream=stream))).status == 200


@pytest.mark.parametrize("said", [whole(500), whole(200, b"{}"), whole(200, b"nonsense")])
async def test_an_endpoint_that_cannot_list_its_models_serves_any(said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first_line = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0]
        writer.write(said if first_line.startswith(b"GET /v1/models") else whole())
        await writer.drain()
        writer.close()

    unable = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with router(f"http://127.0.0.1:{unable.sockets[0].getsockname()[1]}") as server, client(server) as peer:
        await until_models_are_known(server)
        assert server.services.endpoints.is_serving
        assert (await peer.ask(chat(model="anything"))).status == 200
    unable.close()


async def test_models_that_are_not_known_yet_are_asked_of_any_endpoint() -> None:
    backend = Backend(models=())
    await backend.start()
    try:
        async with router(backend, health_interval_s=1000) as server, client(server) as peer:
            server.services.endpoints.all[0].models = None
            assert (await peer.ask(chat(model="anything"))).status == 200
    finally:
        await backend.kill()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"instructions": "be brief " * 100, "input": "once upon a time " * 100}),
        ("/v1/messages", {"system": "be brief " * 100, "messages": [{"role": "user", "content": "once " * 400}]}),
    ],
)
async def test_prompts_of_other_apis_have_affinity_and_sessions(path: str, body: dict[str, object]) -> None:
    async with (
        backends(*[answering(whole())] * 4) as endpoints,
        router(*endpoints) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        asked = json.dumps({"model": "m", **body}).encode()
        answers = [await peer.ask(asked, path=path) for _ in range(3)]
        assert {answer.fields["x-tierline-endpoint"] for answer in answers} == {
            answers[0].fields["x-tierline-endpoint"]
        }
        assert [answer.fields["x-tierline-reason"] for answer in answers] == ["cold", "prefix", "prefix"]
        (*_, decision) = server.services.decisions.latest(3)
        assert decision.route == path.rpartition("/")[2]
        assert (await peer.ask(b"{", path=path)).status == 400
