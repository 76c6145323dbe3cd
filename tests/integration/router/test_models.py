"""Several models and ways to choose, over real sockets: who chooses, what is counted, bypassed and turned off."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from tests.integration.router.backend import (
    DONE,
    STREAM_HEAD,
    Client,
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

from tierline.prefix import UNSHARED_SALT
from tierline.router.prompt import read_fields
from tierline.router.strategies import RoutingRequest
from tierline.router.strategies.prefixaware import PrefixAware

USAGE = b'{"usage":{"prompt_tokens":700,"prompt_tokens_details":{"cached_tokens":%d}}}'
LONG = "a document that everybody asks about, sentence by sentence. " * 40


@dataclass
class Scraped:
    """What ``/metrics`` said."""

    samples: list[Sample]

    def __call__(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels."""
        found = [
            sample.value
            for sample in self.samples
            if sample.name == f"tierline_router_{name}" and labels.items() <= sample.labels.items()
        ]
        assert found, (name, labels)
        return sum(found)


async def metrics(peer: Client) -> Scraped:
    page = (await peer.ask(method="GET", path="/metrics")).body.decode()
    return Scraped([sample for family in text_string_to_metric_families(page) for sample in family.samples])


async def admin(peer: Client, path: str, method: str = "GET", body: bytes = b"") -> tuple[int, Any]:
    sent = request_bytes(body, method=method, path=path).replace(b"host: router", b"host: localhost:1")
    await peer.send(sent)
    answer = await peer.answer()
    return answer.status, json.loads(answer.body)


# Models ---------------------------------------------------------------------------------------------------------------


async def test_each_model_has_its_strategy_and_its_figures() -> None:
    async with (
        backends(answering(whole(body=USAGE % 256)), models=("m",)) as (one,),
        backends(answering(whole(body=USAGE % 0)), models=("n",)) as (other,),
        router(one, other, models=["n=session"]) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        for model, strategy in (("m", "prefixaware"), ("n", "session")):
            answer = await peer.ask(chat(LONG, model=model))
            assert (answer.fields["x-tierline-strategy"], answer.fields["x-tierline-arm"]) == (strategy, "main")
            _, explained = await admin(peer, "/admin/explain", "POST", chat(LONG, model=model))
            assert (explained["strategy"], explained["arm"]) == (strategy, "main")
        _, listed = await admin(peer, "/admin/decisions")
        assert [(entry["model"], entry["strategy"]) for entry in listed["decisions"]] == [
            ("n", "session"),
            ("m", "prefixaware"),
        ]
        found = await metrics(peer)
    assert found("arm_requests_total", arm="main", model="", strategy="prefixaware", status="200") == 1
    assert found("arm_tokens_total", model="", kind="cached") == 256
    assert found("arm_tokens_total", model="n", strategy="session", kind="prompt") == 700
    assert found("arm_retries_total", model="n") == 0
    assert found("requests_total", route="chat", status="200") == 2


async def test_what_clients_write_makes_no_series() -> None:
    async with (
        backends(answering(whole()), models=("m", "a", "b")) as (one,),
        router(one, models=["a=session"]) as server,
    ):
        await until_models_are_known(server)
        async with client(server) as peer:
            for model in ("m", "b", "a", "none"):
                await peer.ask(chat(model=model))
            found = await metrics(peer)
    assert {sample.labels["model"] for sample in found.samples if "model" in sample.labels} == {"", "a"}


async def test_an_alias_is_the_model_everywhere_and_only_its_name_changes_in_the_body() -> None:
    body = b'{"model":"gpt", "messages":[{"role":"user","content":"model: gpt \\u00e9"}],"n": 1 ,"x":"model"}'
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, model_aliases=["gpt=m", "ghost=missing"], models=["m=session"]) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        answer = await peer.ask(body)
        assert (answer.status, answer.fields["x-tierline-strategy"]) == (200, "session")
        listed = json.loads((await peer.ask(method="GET", path="/v1/models")).body)["data"]
        assert {card["id"] for card in listed} == {"m", "gpt"}
        assert json.loads((await peer.ask(method="GET", path="/v1/models/gpt")).body)["id"] == "gpt"
        assert (await peer.ask(chat(model="ghost"))).status == 404
        _, explained = await admin(peer, "/admin/explain", "POST", body)
        assert (explained["model"], explained["choice"]["endpoint"]) == ("m", backend.url)
        _, decisions = await admin(peer, "/admin/decisions")
        assert [entry["model"] for entry in decisions["decisions"]] == ["missing", "m"]
    (received,) = backend.requests
    assert json.loads(received.body) == {**json.loads(body), "model": "m"}
    assert b'[{"role":"user","content":"model: gpt \\u00e9"}]' in received.body


# Without affinity, or without a cache ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "header", "status", "code"),
    [
        ([], "affinity", 403, "bypass_not_allowed"),
        ([], "cache", 403, "bypass_not_allowed"),
        (["affinity"], "affinity, cache", 403, "bypass_not_allowed"),
        (["affinity", "cache"], "everything", 400, "invalid_bypass"),
        (["affinity", "cache"], "", 400, "invalid_bypass"),
    ],
)
async def test_what_is_not_allowed_to_be_bypassed_is_refused(
    allowed: list[str], header: str, status: int, code: str
) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, allow_bypass=allowed) as server,
        client(server) as peer,
    ):
        answer = await peer.ask(chat(), fields=f"X-Tierline-Bypass: {header}\r\n")
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)
    assert backend.requests == []


async def test_without_affinity_the_load_chooses_and_nothing_is_learnt() -> None:
    async with (
        backends(answering(whole()), answering(whole())) as both,
        router(*both, allow_bypass=["affinity"], strategy="prefixaware") as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        asked = [await peer.ask(chat(LONG), fields="x-tierline-bypass: Affinity\r\n") for _ in range(4)]
        assert {answer.fields["x-tierline-arm"] for answer in asked} == {"bypass"}
        assert len({answer.fields["x-tierline-endpoint"] for answer in asked}) == 2
        assert server.services.choosing.index_placements == 0
        assert (await peer.ask(chat(LONG))).fields["x-tierline-reason"] == "cold"
        found = await metrics(peer)
    assert found("bypasses_total", kind="affinity") == 4
    assert not any(b"bypass" in received.head.lower() for backend in both for received in backend.requests)


async def test_without_the_cache_a_request_has_a_salt_that_no_other_has() -> None:
    fields = "x-tierline-bypass: cache\r\n"
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, allow_bypass=["cache"]) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        answers = [await peer.ask(chat(LONG), fields=given) for given in ("", fields, fields, "")]
        assert [answer.fields["x-tierline-reason"] for answer in answers] == ["cold", "cold", "cold", "prefix"]
        refused = await peer.ask(chat(cache_salt="mine"), fields=fields)
        assert (refused.status, json.loads(refused.body)["error"]["code"]) == (400, "cache_salt_not_allowed")
        assert (await peer.ask(b"no json", path="/v1/responses", fields=fields)).status == 400
    bodies = [json.loads(received.body) for received in backend.requests]
    salts = [body.pop("cache_salt", None) for body in bodies]
    assert all(body == json.loads(chat(LONG)) for body in bodies)
    assert (salts[0], salts[3]) == (None, None)
    assert salts[1] != salts[2]
    assert all(salt.startswith(UNSHARED_SALT) and len(salt) <= 128 for salt in salts[1:3])


@pytest.mark.parametrize(
    "fields",
    [
        "x-tierline-bypass: affinity\r\nX-Tierline-Bypass: cache\r\n",
        "connection: x-tierline-bypass\r\nx-tierline-bypass: affinity,cache\r\n",
    ],
)
async def test_a_bypass_may_be_in_several_fields_or_for_this_hop_only(fields: str) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, allow_bypass=["affinity", "cache"]) as server,
        client(server) as peer,
    ):
        answer = await peer.ask(chat(), fields=fields)
        assert answer.fields["x-tierline-arm"] == "bypass"
    (received,) = backend.requests
    assert b"bypass" not in received.head.lower()
    assert json.loads(received.body)["cache_salt"].startswith(UNSHARED_SALT)


async def test_a_key_must_allow_a_bypass_too_and_is_charged_for_it(tmp_path: Path) -> None:
    entries = [
        {"name": "ann", "token": "sk-ann-0123456789", "bypass": ["cache", "affinity"], "requests_per_s": 0.001},
        {"name": "bob", "token": "sk-bob-0123456789"},
        {"name": "eve", "token": "sk-eve-0123456789", "bypass": ["cache"], "trusted": True},
    ]
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"keys": entries}))

    def as_(name: str, bypass: str) -> str:
        return f"x-api-key: sk-{name}-0123456789\r\nx-tierline-bypass: {bypass}\r\n"

    async with (
        backends(answering(whole())) as (backend,),
        router(backend, api_keys_file=file, allow_bypass=["cache"]) as server,
        client(server) as peer,
    ):
        asked = [
            (await peer.ask(body, fields=as_(name, what))).status
            for name, what, body in (
                ("bob", "cache", chat()),
                ("ann", "affinity", chat()),
                ("ann", "cache", chat(cache_salt="mine")),
                ("eve", "cache", chat(cache_salt=None)),
                ("ann", "cache", chat()),
                ("ann", "cache", chat()),
            )
        ]
    assert asked == [403, 403, 400, 400, 200, 429]
    (received,) = backend.requests
    assert json.loads(received.body)["cache_salt"].startswith(UNSHARED_SALT)


# Two strategies -------------------------------------------------------------------------------------------------------


async def test_a_trial_has_its_share_and_figures_of_its_own() -> None:
    stream = STREAM_HEAD + chunk(b"data: " + USAGE % 512 + b"\n\n") + chunk(DONE) + chunk(b"")
    async with (
        backends(answering(stream), answering(stream)) as both,
        router(*both, ab_strategy="session", ab_share=0.3) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        arms: dict[str, str] = {}
        for number in range(60):
            name = f"s-{number % 20}"
            answer = await peer.ask(chat(f"{number}" + LONG), fields=f"x-session-id: {name}\r\n")
            arm = answer.fields["x-tierline-arm"]
            assert arms.setdefault(name, arm) == arm
            assert answer.fields["x-tierline-strategy"] == {"main": "prefixaware", "trial": "session"}[arm]
        found = await metrics(peer)
    trials = 3 * sum(arm == "trial" for arm in arms.values())
    assert 0 < trials < 60
    for arm, strategy, count in (("trial", "session", trials), ("main", "prefixaware", 60 - trials)):
        assert found("arm_requests_total", arm=arm, strategy=strategy, status="200") == count
        assert found("arm_ttft_seconds_count", arm=arm) == count
        assert found("arm_tokens_total", arm=arm, kind="prompt") == 700 * count
        assert found("arm_tokens_total", arm=arm, kind="cached") == 512 * count
    assert found("ttft_seconds_count") == 60


async def test_what_an_endpoint_did_not_serve_is_unlearnt_by_both_arms() -> None:
    async with (
        backends(answering_then_closing(b""), answering(whole())) as both,
        router(*both, strategy="session", ab_strategy="prefixaware", ab_share=0.5) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        for number in range(12):
            assert (await peer.ask(chat(f"{number}" + LONG), fields=f"x-session-id: {number}\r\n")).status == 200
        strategy = server.services.choosing.strategies[1]
        assert isinstance(strategy, PrefixAware)
        prompts = [RoutingRequest(read_fields(chat(f"{number}" + LONG))) for number in range(12)]
        at_bad, at_good = (
            [strategy.held(prompt, [endpoint])[0][0] for prompt in prompts]
            for endpoint in server.services.endpoints.all
        )
    assert (sum(at_bad), min(at_good)) == (0, len(prompts[0].blocks))


# Turned off -----------------------------------------------------------------------------------------------------------


async def test_affinity_is_turned_off_and_on_and_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    async with (
        backends(answering(whole()), answering(whole())) as both,
        router(*both) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        assert (await peer.ask(chat(LONG))).fields["x-tierline-arm"] == "main"
        status, state = await admin(peer, "/admin/affinity?to=off", "POST")
        assert (status, state["turned_off"]) == (200, [""])
        answers = [await peer.ask(chat(LONG)) for _ in range(4)]
        assert {answer.fields["x-tierline-strategy"] for answer in answers} == {"leastload"}
        assert {answer.fields["x-tierline-arm"] for answer in answers} == {"off"}
        assert len({answer.fields["x-tierline-endpoint"] for answer in answers}) == 2
        found = await metrics(peer)
        assert found("affinity", model="") == 0
        assert found("arm_requests_total", arm="off", strategy="leastload") == 4
        _, state = await admin(peer, "/admin/affinity?to=on", "POST")
        assert state["turned_off"] == []
        assert {(arm["arm"], arm["requests"]) for arm in state["arms"]} == {("main", 1), ("off", 4)}
        assert (await peer.ask(chat(LONG))).fields["x-tierline-reason"] == "cold"
        assert (await metrics(peer))("affinity", model="") == 1
    assert "affinity is turned off" in "".join(capsys.readouterr())


async def test_affinity_is_turned_off_for_one_model() -> None:
    async with (
        backends(answering(whole()), models=("m", "n")) as (one,),
        router(one, model_aliases=["alias=n"]) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        assert (await admin(peer, "/admin/affinity?to=off&model=alias", "POST"))[1]["turned_off"] == ["n"]
        arms = [(await peer.ask(chat(model=model))).fields["x-tierline-arm"] for model in ("m", "n")]
        assert arms == ["main", "off"]
        assert (await metrics(peer))("affinity", model="n") == 0
        assert (await admin(peer, "/admin/affinity?to=off&model=nobodys", "POST"))[0] == 404
        assert (await admin(peer, "/admin/affinity?to=sideways", "POST"))[0] == 400


async def test_a_request_that_waits_for_a_place_obeys_the_switch_too() -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, max_inflight=1, max_queued=10) as server,
        client(server) as first,
        client(server) as second,
        client(server) as operator,
    ):
        await until_models_are_known(server)
        backend.behave = backend.hanging
        await first.send(request_bytes(chat(LONG)))
        await until(lambda: len(backend.requests) == 1)
        await second.send(request_bytes(chat(LONG)))
        admission = server.services.admission
        assert admission is not None
        await until(lambda: admission.waiting == 1)
        await admin(operator, "/admin/affinity?to=off", "POST")
        backend.behave = answering(whole())
        first.writer.close()
        assert (await second.answer()).fields["x-tierline-arm"] == "off"
