"""The operators' API over real sockets: who may, what it says and changes, and that nothing of a prompt is in it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.integration.router.backend import (
    DONE,
    EVENT,
    STREAM_HEAD,
    Backend,
    Client,
    Received,
    answering,
    answering_then_closing,
    backends,
    chat,
    chunk,
    client,
    request_bytes,
    router,
    until,
    until_models_are_known,
    whole,
)

from tierline.errors import UsageError
from tierline.router.config import RouterConfig
from tierline.router.server import start

TOKEN = "a-token-of-some-length"
BLOCK_KINDS = ("total", "best", "matched", "actual")
USAGE = b'{"prompt_tokens":700,"prompt_tokens_details":{"cached_tokens":%d}}'


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    return file


async def ask(peer: Client, path: str, method: str = "GET", body: bytes = b"", fields: str = "") -> tuple[int, Any]:
    sent = request_bytes(body, method=method, path=path, fields=fields).replace(b"host: router", b"host: localhost:1")
    await peer.send(sent)
    answer = await peer.answer()
    return answer.status, json.loads(answer.body)


# Access ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (f"Authorization: Bearer {TOKEN}\r\n", 200),
        (f"Authorization: Bearer {TOKEN}\r\nOrigin: http://page\r\n", 200),
        ("", 401),
        ("Authorization: Bearer another-token-of-some-length\r\n", 401),
        (f"X-Tierline-Admin-Token: {TOKEN}\r\n", 200),
        (f"Authorization: Bearer of-somebody-else\r\nX-Tierline-Admin-Token: {TOKEN}\r\n", 200),
        ("X-Tierline-Admin-Token: another-token-of-some-length\r\n", 401),
        (f"Authorization: Basic {TOKEN}\r\n", 401),
        ("Authorization: Bearer\r\n", 401),
    ],
)
async def test_with_a_token_file_its_token_is_asked_for(fields: str, status: int, token_file: Path) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, admin_token_file=token_file) as server,
        client(server) as peer,
    ):
        assert (await ask(peer, "/admin/endpoints", fields=fields))[0] == status
        assert (await peer.ask(chat())).status == 200, "requests need no token"


async def test_a_token_that_is_replaced_is_asked_for_from_then_on(token_file: Path) -> None:
    write = token_file.write_text
    old, new = f"Authorization: Bearer {TOKEN}\r\n", "Authorization: Bearer a-newer-token-of-some-length\r\n"
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, admin_token_file=token_file) as server,
        client(server) as peer,
    ):
        write("a-newer-token-of-some-length")
        assert [(await ask(peer, "/admin/endpoints", fields=fields))[0] for fields in (old, new)] == [401, 200]
        write("short")
        assert [(await ask(peer, "/admin/endpoints", fields=fields))[0] for fields in (old, new)] == [401, 200]


@pytest.mark.parametrize(
    ("host", "fields", "status"),
    [
        ("127.0.0.1:8000", "", 200),
        ("[::1]:8000", "", 200),
        ("LOCALHOST", "", 200),
        ("evil.example", "", 403),
        ("127.0.0.1.evil.example:8000", "", 403),
        ("localhost", "Origin: http://localhost:8000\r\n", 403),
    ],
)
async def test_without_a_token_programs_on_this_machine_may_and_web_pages_may_not(
    host: str, fields: str, status: int
) -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        sent = request_bytes(method="GET", path="/admin/endpoints", fields=fields)
        await peer.send(sent.replace(b"host: router", b"host: " + host.encode()))
        assert (await peer.answer()).status == status


async def test_beyond_loopback_nothing_is_open_without_a_token() -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, host="0.0.0.0") as server,
        client(server) as peer,
    ):
        for path, method in (("/admin/endpoints", "GET"), ("/admin/explain", "POST"), ("/admin/other", "GET")):
            status, said = await ask(peer, path, method, b"{}")
            assert status == 403
            assert "admin_token_file" in said["error"]["message"]


@pytest.mark.parametrize("content", [None, "", "short", "two tokens-of-some-length", "sixteen-or-more-é"])
async def test_a_router_does_not_start_on_a_token_file_that_cannot_be_used(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match="--admin-token-file") as caught:
        await start(RouterConfig(port=0, endpoints=("http://127.0.0.1:1",), admin_token_file=file))
    assert not content or content not in str(caught.value)


# Endpoints ------------------------------------------------------------------------------------------------------------


async def test_endpoints_are_listed_with_what_is_known_of_them() -> None:
    backend = Backend(metrics=b'vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1\n')
    await backend.start()
    try:
        async with router(backend, "http://127.0.0.1:1") as server, client(server) as peer:
            await until_models_are_known(server)
            status, said = await ask(peer, "/admin/endpoints")
    finally:
        await backend.kill()
    assert status == 200
    first, second = said["endpoints"]
    assert first | {"idle_connections": 0} == {
        "url": backend.url,
        "state": "serving",
        "source": "flags",
        "weight": 1.0,
        "roles": ["decode", "prefill"],
        "models": ["m"],
        "kv_events": None,
        "node_events": None,
        "weights": None,
        "joined_s": None,
        "ejections": 0,
        "ejected_for_s": 0.0,
        "rests_for_s": 0.0,
        "capacity_blocks": 100,
        "block_tokens": 16,
        "inflight": 0,
        "inflight_elsewhere": 0,
        "queued_tokens": 0,
        "prefill_tokens_per_second": None,
        "idle_connections": 0,
    }
    assert (second["state"], second["models"]) == ("down", None)


async def test_endpoints_are_added_drained_and_removed() -> None:
    async with (
        backends(*[answering(whole())] * 2) as (first, second),
        router(first) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        spec = json.dumps({"url": second.url, "weight": 2, "models": ["n"]}).encode()
        status, added = await ask(peer, "/admin/endpoints", "POST", spec)
        assert (status, added["url"], added["source"], added["models"]) == (201, second.url, "admin", ["n"])
        assert added["joined_s"] >= 0
        assert (await peer.ask(chat(model="n"))).fields["x-tierline-endpoint"] == second.url
        assert (await ask(peer, "/admin/endpoints", "POST", spec))[0] == 409
        status, drained = await ask(peer, f"/admin/endpoints/drain?url={second.url}", "POST")
        assert (status, drained["state"]) == (200, "draining")
        await until(lambda: len(server.services.endpoints.all) == 1)
        assert (await ask(peer, f"/admin/endpoints/drain?url={second.url}", "POST"))[0] == 404
        assert (await ask(peer, f"/admin/endpoints?url={first.url}/", "DELETE"))[0] == 200
        assert (await ask(peer, "/admin/endpoints")) == (200, {"endpoints": [], "aliases": []})


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/admin/endpoints", b"{", 400, "request body"),
        ("POST", "/admin/endpoints", b"[]", 400, "endpoint: got []"),
        ("POST", "/admin/endpoints", b'{"url": "http://a:1", "weight": -1}', 400, "endpoint.weight: got -1"),
        ("DELETE", "/admin/endpoints", b"", 400, "url: got None"),
        ("DELETE", "/admin/endpoints?url=a", b"", 400, "url: got 'a'"),
        ("DELETE", "/admin/endpoints?url=http://a:1", b"", 404, "no such endpoint"),
        ("GET", "/admin/endpoints/drain", b"", 405, "takes POST"),
        ("PUT", "/admin/endpoints", b"", 405, "takes GET, POST, DELETE"),
        ("GET", "/admin/other", b"", 404, "/admin/other"),
        ("GET", "/admin/decisions?limit=0", b"", 400, "limit: got '0'"),
        ("GET", "/admin/decisions?limit=many", b"", 400, "limit: got 'many'"),
        ("POST", "/admin/explain", b"nonsense", 400, "request body"),
    ],
)
async def test_what_is_wrong_is_said(method: str, path: str, body: bytes, status: int, message: str) -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        found, said = await ask(peer, path, method, body)
        assert found == status
        assert message in said["error"]["message"]
        assert (await peer.ask(chat())).status == 200, "the connection lasts"


async def test_endpoints_are_emptied_each_says_whether_it_was_and_what_was_known_of_it_is_forgotten() -> None:
    others = answering(whole(404)), answering(whole(body=b'{"success":false}'))
    async with (
        backends(answering(whole())) as (first,),
        backends(*others, models=("another",)) as (second, third),
        router(first, second, third, strategy="prefixaware") as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        prompt = chat("word " * 2000)
        assert (await peer.ask(prompt)).status == 200
        assert (await ask(peer, "/admin/explain", "POST", prompt))[1]["choice"]["reason"] == "prefix"

        status, said = await ask(peer, "/admin/endpoints/reset", "POST")

        assert status == 200
        assert said["endpoints"][0] == {"url": first.url, "is_empty": True, "why": ""}
        assert [each["is_empty"] for each in said["endpoints"][1:]] == [False, False]
        assert "404; vLLM has that route with VLLM_SERVER_DEV_MODE=1" in said["endpoints"][1]["why"]
        assert "try again" in said["endpoints"][2]["why"]
        asked = [backend.requests[-1].first_line for backend in (first, second, third)]
        assert asked == [b"POST /reset_prefix_cache?reset_external=true HTTP/1.1"] * 3
        assert (await ask(peer, "/admin/explain", "POST", prompt))[1]["choice"]["reason"] == "cold"


async def test_one_endpoint_is_emptied_and_one_that_cannot_be_asked_is_not_empty() -> None:
    async with (
        backends(answering(whole()), answering(whole())) as (kept, asked),
        router(kept, asked, health_interval_s=60) as server,
        client(server) as peer,
    ):
        path = f"/admin/endpoints/reset?url={asked.url}"
        assert (await ask(peer, path, "POST"))[1] == {"endpoints": [{"url": asked.url, "is_empty": True, "why": ""}]}
        assert not kept.requests
        await asked.kill()
        (found,) = (await ask(peer, path, "POST"))[1]["endpoints"]
        assert not found["is_empty"]
        assert found["why"].startswith("it cannot be asked: ")
        assert (await ask(peer, "/admin/endpoints/reset?url=http://another:1", "POST"))[0] == 404


# Decisions ------------------------------------------------------------------------------------------------------------


async def test_a_decision_says_what_was_chosen_of_what_and_how_it_went() -> None:
    body = b'{"choices":[{"text":"words"}],"usage":' + USAGE % 512 + b"}"
    async with (
        backends(*[answering(whole(body=body))] * 2) as (first, second),
        router(first, second) as server,
        client(server) as peer,
    ):
        prompt = "secret words " * 200
        fields = "x-session-id: ann\r\nx-request-id: "
        chosen = {
            (await peer.ask(chat(prompt), fields=f"{fields}{turn}\r\n")).fields["x-tierline-endpoint"]
            for turn in ("one", "two")
        }
        status, said = await ask(peer, "/admin/decisions?limit=2")
    assert status == 200
    latest, before = said["decisions"]
    assert [latest["request_id"], before["request_id"]] == ["two", "one"]
    assert (latest["route"], latest["model"], latest["strategy"]) == ("chat", "m", "prefixaware")
    assert (latest["status"], latest["retries"], latest["aborted_by"]) == (200, [], "")
    assert latest["seconds"] >= latest["ttft_s"] > 0
    choice = latest["choice"]
    assert {choice["endpoint"]} == chosen
    assert choice["reason"] == "prefix"
    assert choice["matched_blocks"] == choice["total_blocks"] == choice["best_blocks"] > 0
    assert {weighed["endpoint"] for weighed in choice["weighed"]} == {first.url, second.url}
    assert min(choice["weighed"], key=lambda weighed: weighed["uncached_tokens"])["endpoint"] == choice["endpoint"]
    assert [weighed["waiting_tokens"] for weighed in choice["weighed"]] == [0, 0]
    assert (choice["predicted_cached_tokens"], latest["actual_cached_tokens"]) == (choice["matched_blocks"] * 64, 512)
    assert latest["session"] == before["session"] != ""
    assert "ann" not in json.dumps(said)
    assert "secret" not in json.dumps(said)
    assert "words" not in json.dumps(said)


async def test_retries_and_a_request_that_nobody_could_serve_are_among_the_decisions() -> None:
    async with (
        backends(answering_then_closing(b""), answering(whole(503))) as endpoints,
        router(*endpoints, strategy="roundrobin", retries=1) as server,
        client(server) as peer,
    ):
        await peer.ask(chat())
        for endpoint in server.services.endpoints.all:
            server.membership.remove(endpoint)
        await peer.ask(chat())
        _, said = await ask(peer, "/admin/decisions")
    nobody, retried = said["decisions"]
    assert (nobody["choice"], nobody["status"]) == (None, 503)
    assert (retried["retries"], retried["status"]) == (["reset"], 503)
    assert retried["choice"]["weighed"] == []


async def test_no_more_decisions_are_kept_than_the_last_ones() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        log = server.services.decisions
        for number in range(log.KEPT + 5):
            await peer.ask(chat(), fields=f"x-request-id: {number}\r\n")
        _, said = await ask(peer, f"/admin/decisions?limit={log.KEPT}")
    assert [entry["request_id"] for entry in said["decisions"]] == [str(n) for n in range(log.KEPT + 4, 4, -1)]


async def test_of_names_that_clients_choose_no_more_is_kept_than_their_beginning() -> None:
    model, fields = "m" * 10_000, f"x-request-id: {'i' * 10_000}\r\n"
    async with (
        backends(answering(whole()), models=(model,)) as (backend,),
        router(backend) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        assert (await peer.ask(chat(model=model), fields=fields)).status == 200
        (entry,) = server.services.decisions.latest(1)
    assert (entry.model, entry.request_id) == (model[:256], "i" * 256)


async def test_predicted_and_actual_cached_tokens_are_counted_of_streams_that_tell() -> None:
    usage = b'data: {"choices":[],"usage":' + USAGE % 640 + b"}\n\n"
    body = chunk(EVENT) + chunk(EVENT) + chunk(usage) + chunk(DONE) + chunk(b"")
    async with (
        backends(answering(STREAM_HEAD + body)) as (backend,),
        router(backend) as server,
        client(server) as peer,
    ):
        for _ in range(2):
            await peer.ask(chat("p" * 2560, stream=True))
        page = server.services.metrics.exposition()[0].decode()
    lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    url = backend.url
    assert float(lines[f'tierline_router_cached_tokens_total{{endpoint="{url}",kind="predicted"}}']) == 640
    assert float(lines[f'tierline_router_cached_tokens_total{{endpoint="{url}",kind="actual"}}']) == 1280
    blocks = {kind: lines[f'tierline_router_prompt_blocks_total{{kind="{kind}",told="yes"}}'] for kind in BLOCK_KINDS}
    assert blocks == {"total": "20.0", "best": "10.0", "matched": "10.0", "actual": "18.0"}, "640 of 700 tokens, twice"
    assert float(lines["tierline_router_itl_seconds_count"]) == 2
    assert float(lines["tierline_router_choosing_seconds_count"]) == 2


@pytest.mark.parametrize("end", [chunk(b""), b""], ids=["chunks", "until it closes"])
async def test_what_was_cached_is_found_though_the_end_of_the_stream_comes_in_small_pieces(end: bytes) -> None:
    def wire(data: bytes) -> bytes:
        return chunk(data) if end else data

    usage = b'data: {"choices":[],"usage":' + USAGE % 640 + b"}\n\n"
    head = STREAM_HEAD if end else STREAM_HEAD.replace(b"transfer-encoding: chunked", b"connection: close")
    pieces = [head, wire(EVENT), wire(usage), *(wire(DONE)[at : at + 7] for at in range(0, len(wire(DONE)), 7)), end]

    async def piece_by_piece(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)
        if not end:
            writer.close()

    async with backends(piece_by_piece) as (backend,), router(backend) as server, client(server) as peer:
        assert (await peer.ask(chat("p" * 2560, stream=True))).status == 200
        assert server.services.endpoints.all[0].actual_cached_tokens == 640


async def test_an_answer_that_does_not_tell_what_was_cached_counts_for_neither() -> None:
    body = b'{"choices":[{"text":"\\"cached_tokens\\": 7"}],"usage":{"prompt_tokens_details":null}}'
    async with backends(answering(whole(body=body))) as (backend,), router(backend) as server, client(server) as peer:
        for _ in range(2):
            await peer.ask(chat("p" * 2560))
        endpoint = server.services.endpoints.all[0]
        assert (endpoint.predicted_cached_tokens, endpoint.actual_cached_tokens) == (0, 0)


# Explaining -----------------------------------------------------------------------------------------------------------


async def test_an_explanation_is_what_a_request_then_finds_and_changes_nothing() -> None:
    async with (
        backends(*[answering(whole())] * 3) as (first, second, third),
        router(first, second, third) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        server.services.endpoints.all[2].is_draining = True
        server.services.endpoints.all[2].inflight = 1
        body = chat("a long prompt " * 100)
        explained = [(await ask(peer, "/admin/explain", "POST", body))[1] for _ in range(2)]
        assert explained[0] == explained[1]
        assert explained[0]["choice"]["reason"] == "cold"
        assert explained[0]["passed_over"] == [{"endpoint": third.url, "why": "draining"}]
        assert explained[0]["prompt_tokens"] > 300
        answer = await peer.ask(body)
        assert answer.fields["x-tierline-endpoint"] == explained[0]["choice"]["endpoint"]
        assert (await ask(peer, "/admin/explain", "POST", body))[1]["choice"]["reason"] == "prefix"
        _, other = await ask(peer, "/admin/explain", "POST", chat(model="unknown"))
        assert other["choice"] is None
        assert [entry["why"] for entry in other["passed_over"]] == ["does not serve the model"] * 3
        server.services.endpoints.all[2].inflight = 0
    assert sum(len(backend.requests) for backend in (first, second, third)) == 1


async def test_an_explanation_follows_the_request_s_session() -> None:
    async with (
        backends(*[answering(whole())] * 4) as endpoints,
        router(*endpoints, strategy="session") as server,
        client(server) as peer,
    ):
        for name in ("ann", "bob", "cleo"):
            field = f"x-session-id: {name}\r\n"
            _, explained = await ask(peer, "/admin/explain", "POST", chat(), fields=field)
            answer = await peer.ask(chat(), fields=field)
            assert explained["choice"]["endpoint"] == answer.fields["x-tierline-endpoint"]
            assert explained["session"] not in ("", name)


async def test_a_model_that_nobody_serves_is_among_the_decisions() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        await until_models_are_known(server)
        await peer.send(request_bytes(chat(model="ghost"), fields="x-request-id: lost\r\n"))
        assert (await peer.answer()).status == 404
        _, said = await ask(peer, "/admin/decisions")
    (decision,) = said["decisions"]
    assert (decision["request_id"], decision["model"], decision["route"]) == ("lost", "ghost", "chat")
    assert (decision["status"], decision["choice"]) == (404, None)


async def test_an_alias_of_a_model_that_nobody_serves_is_warned_of_once_and_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, model_aliases=["gpt=m", "ghost=missing"]) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        await until(lambda: bool(server.services.alias_watch._told))
        for _ in range(3):
            server.services.alias_watch.sweep()
        _, said = await ask(peer, "/admin/endpoints")
        backend.models = ("m", "missing")
        await until(lambda: server.services.endpoints.may_serve("missing"))
        _, after = await ask(peer, "/admin/endpoints")
    assert [(alias["alias"], alias["is_served"]) for alias in said["aliases"]] == [("gpt", True), ("ghost", False)]
    assert all(alias["is_served"] for alias in after["aliases"])
    assert "".join(capsys.readouterr()).count("alias stands for") == 1
