"""Prompts computed by one endpoint for another that only decodes, over real sockets, and every way that can fail."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.integration.router.backend import (
    DONE,
    EVENT,
    STREAM_HEAD,
    Answer,
    Backend,
    Behaviour,
    Client,
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

from tierline.router.endpoints import FAILURES_BEFORE_EJECTION
from tierline.router.server import RouterServer
from tierline.router.specs import EndpointSpec

PROMPT = "once upon a time " * 2000
"""34,000 bytes: 8,500 tokens, as they are estimated."""
SICK: dict[str, Any] = {"health_interval_s": 1000}
RESETTING = answering_then_closing(b"")


@pytest.fixture
def long_ejections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is passed over stays so to the end of the test."""
    monkeypatch.setattr("tierline.router.endpoints.EJECTION_SECONDS", (1000.0,))


def prefilling(**more: object) -> Behaviour:
    """An endpoint's behaviour that computes prompts, and says so as vLLM's NixlConnector does."""
    number = 0

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        number += 1
        handed = {"do_remote_prefill": True, "do_remote_decode": False, "remote_request_id": str(number)} | more
        writer.write(whole(body=json.dumps({"choices": [], "kv_transfer_params": handed}).encode()))

    return behave


@contextlib.asynccontextmanager
async def pairs(
    folder: Path, prefill: Sequence[Backend], decode: Sequence[Backend], both: Sequence[Backend] = (), **settings: Any
) -> AsyncIterator[tuple[RouterServer, Client]]:
    file = folder / "endpoints.json"
    roles = [(prefill, ["prefill"]), (decode, ["decode"]), (both, ["prefill", "decode"])]
    file.write_text(json.dumps([{"url": backend.url, "roles": role} for some, role in roles for backend in some]))
    async with router(endpoints_file=file, **settings) as server, client(server) as peer:
        await until_models_are_known(server)
        yield server, peer
        await until(lambda: not any(e.inflight or e.queued_tokens for e in server.services.endpoints.all))


def counted(server: RouterServer, name: str) -> float:
    lines = server.services.metrics.exposition()[0].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"tierline_router_{name}"))


def body_of(received: Received) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(received.body)
    return body


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/endpoints/e/invocations"])
async def test_a_long_prompt_is_computed_by_one_and_decoded_by_the_other(
    tmp_path: Path, path: str, is_stream: bool
) -> None:
    answer = whole() if not is_stream else STREAM_HEAD + chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n"
    asked: dict[str, Any] = {"model": "m", "stream": is_stream, "max_tokens": 9, "min_tokens": 2, "x": {"stream": 1}}
    asked |= {"prompt": PROMPT} if path == "/v1/completions" else {"messages": [{"role": "user", "content": PROMPT}]}
    if "chat" in path:
        asked |= {"max_completion_tokens": 9, "stream_options": {"include_usage": True}}
    async with (
        backends(prefilling(remote_port=5600), answering(answer)) as (p, d),
        pairs(tmp_path, [p], [d]) as (server, peer),
    ):
        told = await peer.ask(json.dumps(asked).encode(), path=path)
        assert counted(server, 'pairings_total{outcome="paired"}') == 1
        (decision,) = server.services.decisions.latest(5)
    assert told.status == 200
    assert (told.fields["x-tierline-endpoint"], told.fields["x-tierline-prefill-endpoint"]) == (d.url, p.url)
    (first,), (second,) = p.requests, d.requests
    assert first.first_line == second.first_line
    assert first.fields[b"x-request-id"] == second.fields[b"x-request-id"]
    expected = asked | {"max_tokens": 1, "stream": False}
    expected |= {"max_completion_tokens": 1} if "chat" in path else {}
    expected = {name: value for name, value in expected.items() if name not in ("stream_options", "min_tokens")}
    handshake = dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port"))
    handshake |= {"do_remote_decode": True, "do_remote_prefill": False}
    assert body_of(first) == expected | {"kv_transfer_params": handshake}
    handed = {"do_remote_prefill": True, "do_remote_decode": False, "remote_request_id": "1", "remote_port": 5600}
    assert body_of(second) == asked | {"kv_transfer_params": handed}
    assert decision.pairing == "paired"
    assert decision.prefill is not None
    assert decision.prefill.endpoint == p.url


async def test_what_the_decode_endpoint_has_cached_is_not_computed_elsewhere(tmp_path: Path) -> None:
    async with backends(prefilling(), answering(whole())) as (p, d), pairs(tmp_path, [p], [d]) as (server, peer):
        for prompt in (PROMPT, PROMPT + "and then", "short", PROMPT + "and then " * 2000):
            assert (await peer.ask(chat(prompt))).status == 200
        assert counted(server, 'pairings_total{outcome="short"}') == 2
    assert [len(body_of(received)["messages"][0]["content"]) for received in p.requests] == [
        len(PROMPT),
        len(PROMPT) + 9 * 2000,
    ]
    assert len(d.requests) == 4


@pytest.mark.parametrize("strategy", ["roundrobin", "leastload", "session"])
async def test_strategies_that_look_at_no_prompt_count_all_of_it(tmp_path: Path, strategy: str) -> None:
    async with (
        backends(prefilling(), answering(whole())) as (p, d),
        pairs(tmp_path, [p], [d], strategy=strategy) as (_, peer),
    ):
        for prompt in (PROMPT, "short"):
            answer = await peer.ask(chat(prompt), fields="x-session-id: ann\r\n")
            assert answer.fields["x-tierline-endpoint"] == d.url
    assert (len(p.requests), len(d.requests)) == (1, 2)


async def test_with_a_threshold_of_0_every_prompt_is_computed_elsewhere(tmp_path: Path) -> None:
    async with (
        backends(prefilling(), answering(whole())) as (p, d),
        pairs(tmp_path, [p], [d], prefill_threshold=0) as (_, peer),
    ):
        for _ in range(2):
            assert (await peer.ask(chat("hello"))).status == 200
    assert (len(p.requests), len(d.requests)) == (2, 2)


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"best_of": 3},
        {"use_beam_search": True},
        {"echo": True},
        {"prompt_logprobs": 1},
        {"prompt_logprobs": 0},
        {"kv_transfer_params": {"do_remote_decode": True}},
        {"prompt": [PROMPT, PROMPT]},
        {"prompt": [[1] * 9000, [2] * 9000]},
    ],
    ids=str,
)
async def test_what_one_endpoint_must_serve_alone_it_does(tmp_path: Path, more: dict[str, object]) -> None:
    asked = {"model": "m", "prompt": PROMPT} | more
    async with backends(prefilling(), answering(whole())) as (p, d), pairs(tmp_path, [p], [d]) as (server, peer):
        assert (await peer.ask(json.dumps(asked).encode(), path="/v1/completions")).status == 200
        (decision,) = server.services.decisions.latest(1)
    assert not p.requests
    assert body_of(d.requests[0]) == asked
    assert decision.pairing == f"unsuited: {next(iter(more))}"


@pytest.mark.parametrize(
    "more",
    [
        {"n": 1, "best_of": None, "echo": False, "logprobs": 3, "kv_transfer_params": None},
        {"prompt": [PROMPT]},
        {"prompt": [7] * 9000},
        {"tools": [{"type": "function"}], "tool_choice": "required"},
    ],
    ids=lambda more: next(iter(more)),
)
async def test_what_two_endpoints_can_serve_they_do(tmp_path: Path, more: dict[str, object]) -> None:
    asked = {"model": "m", "prompt": PROMPT} | more
    async with backends(prefilling(), answering(whole())) as (p, d), pairs(tmp_path, [p], [d]) as (_, peer):
        assert (await peer.ask(json.dumps(asked).encode(), path="/v1/completions")).status == 200
    assert len(p.requests) == len(d.requests) == 1
    assert body_of(d.requests[0]).keys() == asked.keys() | {"kv_transfer_params"}


async def test_a_body_with_a_name_that_is_no_text_is_the_decode_endpoints_to_judge(tmp_path: Path) -> None:
    body = chat(PROMPT)[:-1] + b',"\xff":1}'
    async with (
        backends(prefilling(), answering(whole())) as (p, d),
        pairs(tmp_path, [p], [d]) as (server, peer),
    ):
        assert (await peer.ask(body)).status == 200
        assert counted(server, 'pairings_total{outcome="unsuited"}') == 1
    assert (p.requests, [received.body for received in d.requests]) == ([], [body])


async def test_other_routes_and_endpoints_with_both_roles_know_no_pairs(tmp_path: Path) -> None:
    async with backends(*[answering(whole())] * 3) as (p, d, b):
        async with pairs(tmp_path, [p], [d], prefill_threshold=0) as (server, peer):
            for path in ("/v1/embeddings", "/tokenize", "/v1/responses"):
                assert (await peer.ask(chat(PROMPT), path=path)).status == 200
            assert counted(server, "pairings_total") == 0
        async with pairs(tmp_path, [p], [], [b], prefill_threshold=0) as (server, peer):
            assert (await peer.ask(chat(PROMPT))).fields["x-tierline-endpoint"] == b.url
            assert counted(server, "pairings_total") == 0
    assert not p.requests


async def test_an_endpoint_that_only_prefills_answers_nobody(tmp_path: Path) -> None:
    async with backends(answering(whole())) as (p,), pairs(tmp_path, [p], []) as (_, peer):
        assert (await peer.ask(chat("short"))).status == 503
        assert (await peer.ask(method="GET", path="/health")).status == 503
    assert not p.requests


async def test_prompts_with_one_beginning_are_computed_by_one_endpoint(tmp_path: Path) -> None:
    async with (
        backends(*[prefilling()] * 3, *[answering(whole())] * 3) as started,
        pairs(tmp_path, started[:3], started[3:], prefill_threshold=0) as (_, peer),
    ):
        for turn in range(6):
            assert (await peer.ask(chat(PROMPT + str(turn)))).status == 200
    assert sorted(len(backend.requests) for backend in started[:3]) == [0, 0, 6]


async def test_a_tenants_salt_is_in_both_halves(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("keys: [{name: ann, token: secret-of-ann-0123456789}]\n")
    async with (
        backends(prefilling(), answering(whole())) as (p, d),
        pairs(tmp_path, [p], [d], api_keys_file=keys) as (_, peer),
    ):
        fields = "authorization: Bearer secret-of-ann-0123456789\r\ncontent-type: application/json\r\n"
        assert (await peer.ask(chat(PROMPT), fields=fields)).status == 200
    salts = {body_of(received)["cache_salt"] for received in (*p.requests, *d.requests)}
    assert len(salts) == 1
    assert all(b"authorization" not in received.fields for received in (*p.requests, *d.requests))


async def test_limits_count_the_place_of_a_request_whose_prompt_is_being_computed(tmp_path: Path) -> None:
    let_go = asyncio.Event()

    async def slow(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await let_go.wait()
        await prefilling()(request, reader, writer)

    async with (
        backends(slow, answering(whole())) as (p, d),
        pairs(tmp_path, [p], [d], max_inflight_per_endpoint=1, max_queued=5) as (server, peer),
    ):
        asking = asyncio.create_task(peer.ask(chat(PROMPT)))
        await until(lambda: bool(p.requests))
        assert [endpoint.inflight for endpoint in server.services.endpoints.all] == [1, 1]
        async with client(server) as other:
            waiting = asyncio.create_task(other.ask(chat("short")))
            await until(lambda: server.services.admission is not None and server.services.admission.waiting == 1)
            assert not d.requests
            let_go.set()
            assert [(await task).status for task in (asking, waiting)] == [200, 200]


async def test_explain_names_both_endpoints(tmp_path: Path) -> None:
    async with backends(prefilling(), answering(whole())) as (p, d), pairs(tmp_path, [p], [d]) as (_, peer):

        async def explain(body: bytes) -> dict[str, Any]:
            asked = request_bytes(body, path="/admin/explain").replace(b"host: router", b"host: localhost:1")
            await peer.send(asked)
            document: dict[str, Any] = json.loads((await peer.answer()).body)
            return document

        long, short, several = [await explain(body) for body in (chat(PROMPT), chat("short"), chat(PROMPT, n=2))]
    assert (long["choice"]["endpoint"], long["prefill"]["endpoint"], long["pairing"]) == (d.url, p.url, "paired")
    assert (short["prefill"], short["pairing"]) == (None, "short")
    assert several["pairing"] == "unsuited: n"
    assert {"endpoint": p.url, "why": "only prefills"} in short["passed_over"]
    assert not p.requests


# Weights --------------------------------------------------------------------------------------------------------------


def of(url: str, role: str, weights: str | None) -> EndpointSpec:
    return EndpointSpec.model_validate({"url": url, "roles": [role], "weights": weights})


async def test_explain_says_that_those_that_prefill_are_of_other_weights(tmp_path: Path) -> None:
    async with backends(prefilling(), answering(whole())) as (p, d), pairs(tmp_path, [p], [d]) as (server, peer):
        server.membership.follow("file", [of(p.url, "prefill", "a"), of(d.url, "decode", "b")])
        asked = request_bytes(chat(PROMPT), path="/admin/explain").replace(b"host: router", b"host: localhost:1")
        await peer.send(asked)
        document = json.loads((await peer.answer()).body)
    assert (document["prefill"], document["pairing"]) == (None, "fallback: weights")


@pytest.mark.usefixtures("long_ejections")
async def test_a_decode_endpoint_of_other_weights_has_the_prompt_computed_anew(tmp_path: Path) -> None:
    async with (
        backends(prefilling(of="a"), prefilling(of="b"), answering(whole()), answering(whole())) as (pa, pb, gone, d),
        pairs(tmp_path, [pa, pb], [gone, d], strategy="roundrobin", **SICK) as (server, peer),
    ):
        roles = [(pa, "prefill", "a"), (pb, "prefill", "b"), (gone, "decode", "a"), (d, "decode", "b")]
        server.membership.follow("file", [of(backend.url, role, weights) for backend, role, weights in roles])
        await gone.kill()
        answers = [await peer.ask(chat(PROMPT)) for _ in range(2)]
    assert [answer.fields["x-tierline-prefill-endpoint"] for answer in answers] == [pb.url] * 2
    assert len(pa.requests) == 1, "for the one that is gone"
    assert [body_of(received)["kv_transfer_params"]["of"] for received in d.requests] == ["b", "b"]


@dataclass
class Rollout:
    """What becomes of three endpoints of either role while requests run: weights by turns, ``None`` unsaid."""

    prefill: list[list[str | None]]
    decode: list[list[str | None]]
    gone: set[int]
    """Of those that decode, the ones where nothing listens."""
    is_told_late: bool
    """A prompt is computed by what is there already, and the router hears of that only meanwhile."""
    shares_a_store: bool

    @property
    def turns(self) -> int:
        return len(self.prefill[0])


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    turns = draw(st.integers(2, 5))
    weights = st.lists(st.sampled_from(["a", "b", None]), min_size=turns, max_size=turns)
    three = st.lists(weights, min_size=3, max_size=3)
    return Rollout(
        draw(three), draw(three), draw(st.sets(st.integers(0, 2), max_size=2)), draw(st.booleans()), draw(st.booleans())
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rollout=rollouts())
def test_no_kv_crosses_weights_whatever_becomes_of_endpoints_meanwhile(tmp_path: Path, rollout: Rollout) -> None:
    """With each prompt that is computed every endpoint may turn into another, at the same address."""
    asyncio.run(_rolled(tmp_path, rollout))


async def _rolled(folder: Path, rollout: Rollout) -> None:
    turn = 0
    crossed: list[tuple[str | None, str | None]] = []

    def roll() -> None:
        nonlocal turn
        turn = (turn + 1) % rollout.turns
        server.membership.follow("file", specs())

    def specs() -> list[EndpointSpec]:
        return [of(p.url, "prefill", w[turn]) for p, w in zip(prefill, rollout.prefill, strict=True)] + [
            of(d.url, "decode", w[turn]) for d, w in zip(decode, rollout.decode, strict=True)
        ]

    def computing(number: int) -> Behaviour:
        async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            before = rollout.prefill[number][turn]
            roll()
            computed = rollout.prefill[number][turn] if rollout.is_told_late else before
            handed = None if rollout.shares_a_store else {"of": computed}
            writer.write(whole(body=json.dumps({"choices": [], "kv_transfer_params": handed}).encode()))

        return behave

    def taking(number: int) -> Behaviour:
        async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not alone(request):
                crossed.append((body_of(request)["kv_transfer_params"]["of"], rollout.decode[number][turn]))
            writer.write(whole())

        return behave

    async with backends(*map(computing, range(3)), *map(taking, range(3))) as all_of_them:
        prefill, decode = all_of_them[:3], all_of_them[3:]
        async with pairs(folder, prefill, decode, strategy="roundrobin", retries=3, **SICK) as (server, peer):
            server.membership.follow("file", specs())
            for number in rollout.gone:
                await decode[number].kill()
            answers = [await peer.ask(chat(PROMPT)) for _ in range(6)]
    assert {answer.status for answer in answers} == {200}
    assert all(computed == taken for computed, taken in crossed), crossed


# Failures -------------------------------------------------------------------------------------------------------------


def alone(received: Received) -> bool:
    """Whether the endpoint was told of no KV elsewhere."""
    return "kv_transfer_params" not in body_of(received)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (RESETTING, "reset"),
        (answering(b"nonsense\r\n\r\n"), "malformed"),
        (answering(whole(body=b"no JSON")), "malformed"),
        (answering(whole(body=b'"' + b"x" * 5 * 1024**2 + b'"')), "malformed"),
        (answering_then_closing(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{"), "reset"),
        *[(answering(whole(status)), str(status)) for status in (400, 429, 500, 503)],
    ],
)
async def test_where_nobody_computes_the_prompt_the_decode_endpoint_does(
    tmp_path: Path, fault: Behaviour, why: str
) -> None:
    async with (
        backends(fault, answering(whole())) as (p, d),
        pairs(tmp_path, [p], [d], **SICK) as (server, peer),
    ):
        answer = await peer.ask(chat(PROMPT))
        assert counted(server, f'prefill_fallbacks_total{{reason="{why}"}}') == 1
        assert counted(server, 'pairings_total{outcome="fallback"}') == 1
        assert (await peer.ask(chat("short"))).status == 200, "the connection lasts"
    assert answer.status == 200
    assert "x-tierline-prefill-endpoint" not in answer.fields
    assert p.requests
    assert alone(d.requests[0])


async def test_a_prefill_endpoint_that_fails_is_replaced_by_another(tmp_path: Path) -> None:
    async with (
        backends(RESETTING, answering(whole(503)), prefilling(), answering(whole())) as (bad, busy, good, d),
        pairs(tmp_path, [bad, busy, good], [d], strategy="roundrobin", **SICK) as (server, peer),
    ):
        answers = [await peer.ask(chat(PROMPT)) for _ in range(3)]
        assert counted(server, 'pairings_total{outcome="paired"}') == 3
    assert {answer.fields["x-tierline-prefill-endpoint"] for answer in answers} == {good.url}
    assert bad.requests or busy.requests
    assert not any(alone(received) for received in d.requests)


@pytest.mark.usefixtures("long_ejections")
async def test_prefill_endpoints_that_are_gone_cost_one_refused_connection(tmp_path: Path) -> None:
    async with (
        backends(prefilling(), answering(whole())) as (p, d),
        pairs(tmp_path, [p], [d], **SICK) as (server, peer),
    ):
        await p.kill()
        answers = [await peer.ask(chat(f"{number}{PROMPT}")) for number in range(3)]
        assert counted(server, 'prefill_fallbacks_total{reason="connect"}') == 1
        assert counted(server, 'prefill_fallbacks_total{reason="no_endpoint"}') == 2
    assert [answer.status for answer in answers] == [200] * 3


async def test_a_prefill_that_takes_too_long_is_given_up_and_done_by_the_decode_endpoint(tmp_path: Path) -> None:
    async with backends(answering(b""), answering(whole())) as (p, d):
        p.behave = p.hanging
        async with pairs(tmp_path, [p], [d], prefill_timeout_s=30) as (server, peer):
            asking = asyncio.create_task(peer.ask(chat(PROMPT)))
            await until(lambda: bool(p.requests))
            pass_time(server, 31)
            answer = await asking
            await asyncio.wait_for(p.left.wait(), 60)
            assert counted(server, 'prefill_fallbacks_total{reason="timeout"}') == 1
    assert answer.status == 200
    assert alone(d.requests[0])


@pytest.mark.usefixtures("long_ejections")
async def test_a_prefill_endpoint_that_hangs_again_and_again_is_passed_over(tmp_path: Path) -> None:
    async with backends(answering(b""), answering(whole())) as (p, d):
        p.behave = p.hanging
        async with pairs(tmp_path, [p], [d], prefill_timeout_s=30) as (server, peer):
            answers = []
            for number in range(FAILURES_BEFORE_EJECTION):
                asking = asyncio.create_task(peer.ask(chat(f"{number}{PROMPT}")))
                await until(lambda number=number: len(p.requests) > number)  # type: ignore[misc]
                pass_time(server, 31)
                answers.append(await asking)
            answers.append(await peer.ask(chat(f"passed over{PROMPT}")))
            assert counted(server, 'prefill_fallbacks_total{reason="timeout"}') == FAILURES_BEFORE_EJECTION
            assert counted(server, 'prefill_fallbacks_total{reason="no_endpoint"}') == 1
    assert [answer.status for answer in answers] == [200] * (FAILURES_BEFORE_EJECTION + 1)


async def test_a_request_whose_time_is_over_ends_the_prefill_and_is_not_begun_anew(tmp_path: Path) -> None:
    async with backends(answering(b""), answering(whole())) as (p, d):
        p.behave = p.hanging
        async with pairs(tmp_path, [p], [d], total_timeout_s=30) as (server, peer):
            asking = asyncio.create_task(peer.ask(chat(PROMPT)))
            await until(lambda: bool(p.requests))
            pass_time(server, 31)
            answer = await asking
            await asyncio.wait_for(p.left.wait(), 60)
            assert [endpoint.inflight for endpoint in server.services.endpoints.all] == [0, 0]
    assert answer.status == 504
    assert not d.requests


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_client_that_leaves_ends_the_prefill(tmp_path: Path, is_stream: bool) -> None:
    async with backends(answering(b""), answering(whole())) as (p, d):
        p.behave = p.hanging
        async with pairs(tmp_path, [p], [d]) as (server, _):
            async with client(server) as leaving:
                await leaving.send(request_bytes(chat(PROMPT, stream=is_stream)))
                await until(lambda: bool(p.requests))
            await asyncio.wait_for(p.left.wait(), 60)
            await until(lambda: counted(server, 'aborts_total{side="client"}') == 1)
            assert [endpoint.inflight for endpoint in server.services.endpoints.all] == [0, 0]
    assert not d.requests


async def test_a_client_that_leaves_ends_the_decode(tmp_path: Path) -> None:
    async with backends(prefilling(), answering(b"")) as (p, d):
        d.behave = d.hanging
        async with pairs(tmp_path, [p], [d]) as (server, _):
            async with client(server) as leaving:
                await leaving.send(request_bytes(chat(PROMPT)))
                await until(lambda: bool(d.requests))
            await asyncio.wait_for(d.left.wait(), 60)


@pytest.mark.parametrize("fault", [RESETTING, answering(whole(429))], ids=["reset", "429"])
async def test_another_decode_endpoint_is_handed_kv_anew(tmp_path: Path, fault: Behaviour) -> None:
    async with (
        backends(prefilling(), fault, answering(whole())) as (p, bad, good),
        pairs(tmp_path, [p], [bad, good], strategy="roundrobin", **SICK) as (_, peer),
    ):
        answers = [await peer.ask(chat(PROMPT)) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert {answer.fields["x-tierline-endpoint"] for answer in answers} == {good.url}
    handed = [
        body_of(received)["kv_transfer_params"]["remote_request_id"] for received in (*bad.requests, *good.requests)
    ]
    assert bad.requests
    assert len(set(handed)) == len(handed) == len(p.requests)


@pytest.mark.usefixtures("long_ejections")
async def test_what_nobody_can_have_fetched_goes_to_the_next_decode_endpoint(tmp_path: Path) -> None:
    async with (
        backends(prefilling(), answering(whole()), answering(whole())) as (p, gone, good),
        pairs(tmp_path, [p], [gone, good], strategy="roundrobin", **SICK) as (server, peer),
    ):
        await gone.kill()
        answers = [await peer.ask(chat(PROMPT)) for _ in range(2)]
        assert counted(server, 'retries_total{reason="connect"}') == 1
    assert [answer.status for answer in answers] == [200, 200]
    assert [answer.fields["x-tierline-prefill-endpoint"] for answer in answers] == [p.url, p.url]
    assert len(p.requests) == len(good.requests) == 2
    assert not any(alone(received) for received in good.requests)


async def test_kv_in_a_shared_store_is_there_for_another_decode_endpoint_too(tmp_path: Path) -> None:
    async with (
        backends(answering(whole()), RESETTING, answering(whole())) as (p, bad, good),
        pairs(tmp_path, [p], [bad, good], strategy="roundrobin", **SICK) as (server, peer),
    ):
        answers = [await peer.ask(chat(PROMPT)) for _ in range(2)]
        assert counted(server, 'retries_total{reason="reset"}') >= 1
    assert [answer.status for answer in answers] == [200, 200]
    assert len(p.requests) == 2


async def test_a_decode_endpoint_that_stumbles_over_what_it_was_handed_is_asked_to_do_it_alone(tmp_path: Path) -> None:
    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(whole() if alone(request) else whole(500))

    async with (
        backends(prefilling(), behave) as (p, d),
        pairs(tmp_path, [p], [d], **SICK) as (server, peer),
    ):
        answer = await peer.ask(chat(PROMPT))
        assert counted(server, 'prefill_fallbacks_total{reason="500"}') == 1
    assert answer.status == 200
    assert (len(p.requests), [alone(received) for received in d.requests]) == (1, [False, True])


async def test_what_an_endpoint_stumbles_over_when_it_is_handed_kv_does_not_have_it_passed_over(tmp_path: Path) -> None:
    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(whole() if alone(request) else whole(503))

    async with (
        backends(prefilling(), behave) as (p, d),
        pairs(tmp_path, [p], [d], **SICK) as (server, peer),
    ):
        asked = 2 * FAILURES_BEFORE_EJECTION
        answers = [await peer.ask(chat(f"{number}{PROMPT}")) for number in range(asked)]
        assert counted(server, 'prefill_fallbacks_total{reason="503"}') == asked
        assert [endpoint.ejections for endpoint in server.services.endpoints.all] == [0, 0]
    assert {answer.status for answer in answers} == {200}


async def test_a_place_that_a_prefill_leaves_is_given_to_who_waits_for_it(tmp_path: Path) -> None:
    let_go, decode = asyncio.Event(), asyncio.Event()

    async def slow(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await let_go.wait()
        await prefilling()(request, reader, writer)

    async def slower(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await decode.wait()
        writer.write(whole())

    async with (
        backends(slow, slower) as (both, d),
        pairs(tmp_path, [], [d], [both], max_inflight_per_endpoint=1, max_queued=5, strategy="roundrobin", **SICK) as (
            server,
            peer,
        ),
    ):
        asking = asyncio.create_task(peer.ask(chat(PROMPT)))  # d decodes, the other computes the prompt
        await until(lambda: bool(both.requests))
        async with client(server) as other:
            waiting = asyncio.create_task(other.ask(chat("short")))
            await until(lambda: server.services.admission is not None and server.services.admission.waiting == 1)
            let_go.set()
            assert (await waiting).status == 200, "the first is still being decoded"
            decode.set()
            assert (await asking).status == 200


async def test_a_prefill_endpoint_tried_after_affinity_was_turned_off_is_chosen_without_it(tmp_path: Path) -> None:
    tried, let_go = asyncio.Event(), asyncio.Event()

    async def failing_at_first(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if tried.is_set():
            await prefilling()(request, reader, writer)
            return
        tried.set()
        await let_go.wait()
        writer.write(whole(503))

    async with (
        backends(failing_at_first, failing_at_first, answering(whole())) as (*p, d),
        pairs(tmp_path, p, [d], **SICK) as (server, peer),
    ):
        asking = asyncio.create_task(peer.ask(chat(PROMPT)))
        await tried.wait()
        server.services.choosing.turn_off()
        let_go.set()
        assert (await asking).status == 200
        (decision,) = server.services.decisions.latest(5)
    assert decision.prefill is not None
    assert decision.prefill.reason == "least-load"


@pytest.mark.usefixtures("long_ejections")
async def test_it_is_the_endpoint_that_stumbled_that_is_asked_to_do_it_alone(tmp_path: Path) -> None:
    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(whole() if alone(request) else whole(500))

    async with (
        backends(prefilling(), behave, behave) as (p, gone, d),
        pairs(tmp_path, [p], [gone, d], strategy="roundrobin", **SICK) as (server, peer),
    ):
        await gone.kill()
        answers = [await peer.ask(chat(PROMPT)) for _ in range(2)]  # one of them begins at the one that is gone
        assert counted(server, 'retries_total{reason="connect"}') == 1
    assert [answer.status for answer in answers] == [200, 200]
    assert [alone(received) for received in d.requests] == [False, True] * 2


async def test_a_request_that_is_the_trouble_itself_fails_once_more_and_no_oftener(tmp_path: Path) -> None:
    async with (
        backends(prefilling(), answering(whole(500))) as (p, d),
        pairs(tmp_path, [p], [d], **SICK) as (_, peer),
    ):
        assert (await peer.ask(chat(PROMPT))).status == 500
    assert (len(p.requests), len(d.requests)) == (1, 2)


async def test_a_prefill_endpoint_that_hands_over_nothing_shares_a_store_with_the_other(tmp_path: Path) -> None:
    async with (
        backends(answering(whole(body=b'{"choices":[],"kv_transfer_params":null}')), answering(whole())) as (p, d),
        pairs(tmp_path, [p], [d]) as (server, peer),
    ):
        answer = await peer.ask(chat(PROMPT))
        assert counted(server, 'pairings_total{outcome="paired"}') == 1
    assert answer.fields["x-tierline-prefill-endpoint"] == p.url
    assert d.requests[0].body == chat(PROMPT)


async def test_a_stream_that_breaks_after_its_first_event_is_told_and_not_begun_anew(tmp_path: Path) -> None:
    broken = answering_then_closing(STREAM_HEAD + chunk(EVENT))
    async with (
        backends(prefilling(), broken) as (p, d),
        pairs(tmp_path, [p], [d]) as (_, peer),
    ):
        answer: Answer = await peer.ask(chat(PROMPT, stream=True))
    assert b"endpoint_reset" in answer.body
    assert (len(p.requests), len(d.requests)) == (1, 1)


async def test_a_decode_endpoint_computes_little_and_a_prefill_endpoint_shows_its_speed(tmp_path: Path) -> None:
    async with backends(prefilling(), answering(whole())) as (p, d), pairs(tmp_path, [p], [d]) as (server, peer):
        assert (await peer.ask(chat(PROMPT))).status == 200
        first, second = server.services.endpoints.all
        assert first.prefill_rate is not None
        assert second.prefill_rate is None
        (decision,) = server.services.decisions.latest(1)
    assert decision.choice is not None
    assert decision.prefill is not None
    assert decision.choice.uncached_tokens == 0
    assert decision.prefill.uncached_tokens > 8000
    assert msgspec.json.encode(decision)


async def test_under_load_endpoints_of_either_role_may_die_and_every_client_gets_its_own_answer(tmp_path: Path) -> None:
    async def decoding(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.005)
        content = body_of(request)["messages"][0]["content"][:20]
        event = b"data: " + json.dumps({"echo": content}).encode() + b"\n\n"
        writer.write(STREAM_HEAD + chunk(event) + chunk(DONE) + b"0\r\n\r\n")

    async def slowly(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.005)
        await prefilling()(request, reader, writer)

    async with (
        backends(slowly, slowly, decoding, decoding) as (p1, p2, d1, d2),
        pairs(tmp_path, [p1, p2], [d1, d2], strategy="roundrobin", retries=3) as (server, _),
    ):

        async def ask(name: int) -> None:
            async with client(server) as peer:
                for number in range(12):
                    answer = await peer.ask(chat(f"{name:04}/{number:015}{PROMPT}", stream=True))
                    echo = json.dumps({"echo": f"{name:04}/{number:015}"}).encode()
                    assert (answer.status, answer.body) == (200, b"data: " + echo + b"\n\n" + DONE)

        asking = asyncio.gather(*map(ask, range(12)))
        await until(lambda: len(d1.requests) > 12)
        d1.behave = RESETTING  # streams that have begun are lost with whoever dies; those that have not are not
        p1.behave = RESETTING
        await until(lambda: len(d2.requests) > 30)
        await p1.kill()
        await d1.kill()
        await asking
        assert counted(server, 'requests_total{route="chat",status="200"}') == 144
        assert counted(server, 'pairings_total{outcome="paired"}') >= 130
