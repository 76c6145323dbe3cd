"""The router in front of pods' proxies: what a proxy turns away or breaks off, and what the client gets for it."""

import asyncio
import json
from pathlib import Path

import pytest
from tests.integration.proxy.proxies import metrics, proxy
from tests.integration.router.backend import (
    EVENT,
    STREAM_HEAD,
    Behaviour,
    answering,
    answering_then_closing,
    backends,
    chat,
    chunk,
    client,
    router,
    until,
    until_models_are_known,
    whole,
)
from tests.integration.router.test_admission import Gate

from tierline.proxy.server import ProxyServer


def url(server: ProxyServer) -> str:
    return f"http://127.0.0.1:{server.port}"


async def test_what_one_pod_has_no_place_for_another_one_serves() -> None:
    gate = Gate()
    async with (
        backends(gate, answering(whole())) as (full, free),
        proxy(full, max_concurrent_requests=1) as one,
        proxy(free, max_concurrent_requests=1) as two,
        router(url(one), url(two), strategy="roundrobin") as server,
        client(one) as holder,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        holding = asyncio.create_task(holder.ask(chat()))
        await until(lambda: len(gate.waiting) == 1)
        for _ in range(6):
            assert (await peer.ask(chat())).status == 200
        assert len(free.requests) == 6
        assert (await metrics(one))["tierline_proxy_limits_reached_total reason=queue_full"] >= 1
        gate.open()
        assert (await holding).status == 200


@pytest.mark.parametrize(("of_prefill", "of_decode"), [("a", "a"), ("a", "b"), ("b", "a")])
async def test_a_pod_that_is_another_than_the_router_believes_is_handed_no_kv_and_hands_none(
    tmp_path: Path, of_prefill: str, of_decode: str
) -> None:
    computed = json.dumps({"choices": [], "kv_transfer_params": {"of": of_prefill}}).encode()
    async with (
        backends(answering(whole(body=computed)), answering(whole())) as (p, d),
        proxy(p, weights=of_prefill) as prefill,
        proxy(d, weights=of_decode) as decode,
    ):
        listed = [
            {"url": url(server), "roles": [role], "weights": "a"}
            for server, role in ((prefill, "prefill"), (decode, "decode"))
        ]
        file = tmp_path / "endpoints.json"
        file.write_text(json.dumps(listed))
        async with router(endpoints_file=file, prefill_threshold=0) as server, client(server) as peer:
            await until_models_are_known(server)
            answer = await peer.ask(chat(), fields="x-tierline-weights: of the client\r\n")
    handed = [json.loads(received.body).get("kv_transfer_params") for received in d.requests]
    assert answer.status == 200
    assert handed == [{"of": "a"} if (of_prefill, of_decode) == ("a", "a") else None]
    assert len(p.requests) == (of_prefill == "a")


@pytest.mark.parametrize(
    "broken", [answering_then_closing(b""), answering_then_closing(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")]
)
async def test_what_breaks_at_one_pod_before_its_first_byte_another_one_serves(broken: Behaviour) -> None:
    async with (
        backends(broken, answering(whole())) as (ill, well),
        proxy(ill) as one,
        proxy(well) as two,
        router(url(one), url(two), strategy="roundrobin") as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        for _ in range(4):
            assert (await peer.ask(chat())).status == 200
        assert ill.requests
        assert len(well.requests) == 4


async def test_a_pod_that_is_full_is_not_left_in_peace_for_a_second() -> None:
    gate = Gate()
    async with (
        backends(gate) as (model,),
        proxy(model, max_concurrent_requests=1) as one,
        router(url(one), strategy="roundrobin") as server,
        client(one) as holder,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        holding = asyncio.create_task(holder.ask(chat()))
        await until(lambda: len(gate.waiting) == 1)
        assert (await peer.ask(chat())).status == 429
        gate.open()
        assert (await holding).status == 200
        model.behave = answering(whole())
        assert (await peer.ask(chat())).status == 200
        (endpoint,) = server.services.endpoints.all
        assert endpoint.is_usable(server.services.clock())


async def test_a_stream_that_breaks_at_the_model_ends_with_an_error_event_of_the_router() -> None:
    half = STREAM_HEAD + chunk(EVENT)
    async with (
        backends(answering_then_closing(half)) as (model,),
        proxy(model) as one,
        router(url(one)) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        answer = await peer.ask(chat(stream=True))
    assert answer.body.startswith(EVENT)
    assert b'"code":"endpoint_reset"' in answer.body
    assert b"[DONE]" not in answer.body


async def test_a_client_that_leaves_the_router_makes_the_model_stop() -> None:
    async with (
        backends(answering(whole())) as (model,),
        proxy(model, max_concurrent_requests=1) as one,
        router(url(one)) as server,
    ):
        await until_models_are_known(server)
        model.behave = model.hanging
        async with client(server) as peer:
            await peer.send(b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n{}")
            await until(lambda: one.services.metrics.concurrent == 1)
        async with asyncio.timeout(60):
            await model.left.wait()
        await until(lambda: one.services.metrics.concurrent == 0)
