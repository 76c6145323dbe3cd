"""The collector between real sockets: targets that answer, fail, lie and hang, and what is sent on."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from tests.integration.proxy.proxies import proxy
from tests.integration.router.backend import Backend, answering, backends, chat, client, request_bytes, until, whole
from tests.ports import free_port

from tierline.collector.config import CollectorConfig
from tierline.collector.server import CollectorServer, running

LABELS = {"pod_name": "demo-1", "resource_name": "demo", "cluster_name": "c"}


@contextlib.asynccontextmanager
async def collector(*targets: str, **settings: object) -> AsyncIterator[CollectorServer]:
    """Run one that reads again in a moment, and gives its targets much longer to answer."""
    given = {"port": 0, "targets": targets, "interval_s": 60, "timeout_s": 60} | LABELS | settings
    async with running(CollectorConfig.model_validate(given), pause=lambda _: asyncio.sleep(0.05)) as server:
        yield server


async def page(server: CollectorServer) -> str:
    async with client(server) as peer:
        await peer.send(request_bytes(method="GET", path="/metrics"))
        return (await peer.answer()).body.decode()


async def line(server: CollectorServer, name: str, **labels: str) -> str:
    """Return the line of a sample, once it is there."""
    parts = [f'{label}="{value}"' for label, value in labels.items()]
    async with asyncio.timeout(60):
        while True:
            for each in (await page(server)).splitlines():
                if each.startswith(f"{name}{{") and all(part in each for part in parts):
                    return each
            await asyncio.sleep(0.02)


async def is_up(server: CollectorServer, target: str, value: float) -> None:
    async with asyncio.timeout(60):
        while True:
            if (await line(server, "tierline_collector_target_up", metric_source=target)).endswith(f" {value}"):
                return
            await asyncio.sleep(0.02)


def target(backend: Backend, name: str = "model-container") -> str:
    return f"{name}={backend.url}/metrics"


async def test_metrics_of_a_proxy_and_of_its_model_are_on_one_page_with_their_labels() -> None:
    async with backends(answering(whole())) as (model,), proxy(model, **LABELS) as server:
        model.metrics = b'# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{model_name="m"} 7.0\n'
        async with client(server) as peer:
            await peer.ask(chat())
        targets = (target(model), f"reverse-proxy=http://127.0.0.1:{server.metrics_port}/metrics")
        async with collector(*targets, model_name="llama") as collecting:
            running_line = await line(collecting, "vllm:num_requests_running")
            invocations = await line(collecting, "model_invocations_total")
    for label in ('pod_name="demo-1"', 'metric_source="model-container"', 'model_name="m"', 'task_type="inference"'):
        assert label in running_line
    assert running_line.endswith(" 7.0")
    assert 'metric_source="reverse-proxy"' in invocations
    assert invocations.endswith(" 1.0")


async def test_a_target_that_is_gone_has_no_samples_and_comes_back() -> None:
    async with backends(answering(whole()), answering(whole())) as (one, two):
        one.metrics, two.metrics = b"depth 1\n", b"width 2\n"
        async with collector(target(one), target(two, "sidecar")) as server:
            await line(server, "depth")
            await one.kill()
            await is_up(server, "model-container", 0.0)
            text = await page(server)
            assert "depth" not in text
            assert "width" in text
            await one.start()
            await is_up(server, "model-container", 1.0)
            await line(server, "depth")


async def test_one_that_was_never_there_does_not_hide_the_other() -> None:
    async with backends(answering(whole())) as (model,):
        model.metrics = b"depth 1\n"
        async with collector(target(model), f"sidecar=http://127.0.0.1:{free_port()}/metrics") as server:
            await line(server, "depth")
            await is_up(server, "sidecar", 0.0)
            async with client(server) as peer:
                await peer.send(request_bytes(method="GET", path="/healthz"))
                assert (await peer.answer()).status == 200


async def test_pages_that_are_none_and_those_that_are_too_large_or_elsewhere_are_refused() -> None:
    moved = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    async with backends(*(answering(whole()) for _ in range(2)), answering(moved), answering(whole(500))) as models:
        models[0].metrics = b"<html>no</html>"
        models[1].metrics = b"depth 1\n" * 1000
        targets = [target(model, f"t{place}") for place, model in enumerate(models[:2])]
        targets += [f"t{place}={models[place].url}/other" for place in (2, 3)]
        async with collector(*targets, page_bytes=2000) as server:
            await until(lambda: all(each.failures > 1 for each in server.targets))
            assert not any(each.is_up for each in server.targets)
            assert "depth" not in await page(server)


async def test_a_target_that_hangs_delays_no_other() -> None:
    async with backends(answering(whole()), answering(whole())) as (model, silent):
        silent.behave = silent.hanging
        model.metrics = b"depth 1\n"
        async with collector(target(model), f"silent={silent.url}/hang", timeout_s=0.2) as server:
            await until(lambda: server.targets[1].failures > 1)
            await line(server, "depth")


@contextlib.asynccontextmanager
async def receiver(statuses: list[int]) -> AsyncIterator[tuple[str, list[Any]]]:
    """Take what is sent by OTLP; answers the given statuses first, then 200."""
    received: list[Any] = []

    async def take(request: web.Request) -> web.Response:
        assert request.headers["content-type"] == "application/json"
        received.append(json.loads(await request.read()))
        return web.Response(status=statuses.pop(0) if statuses else 200)

    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/metrics", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", received
    finally:
        await runner.cleanup()


async def test_what_was_read_is_sent_on_by_otlp_also_after_the_receiver_failed() -> None:
    async with backends(answering(whole())) as (model,), receiver([503, 500]) as (endpoint, received):
        model.metrics = b'# TYPE calls_total counter\ncalls_total{a="b"} 3\n'
        async with collector(target(model), otlp_endpoint=f"{endpoint}/") as server:
            await until(lambda: server.exports["sent"] > 0)
            assert server.exports["failed"] == 2
    (scope,) = received[-1]["resourceMetrics"][0]["scopeMetrics"]
    calls = next(metric for metric in scope["metrics"] if metric["name"] == "calls_total")
    (point,) = calls["sum"]["dataPoints"]
    labels = {each["key"]: each["value"]["stringValue"] for each in point["attributes"]}
    assert point["asDouble"] == 3
    assert labels.items() >= {"a": "b", "pod_name": "demo-1", "metric_source": "model-container"}.items()


async def test_a_receiver_that_is_not_there_costs_nothing_but_what_is_not_sent() -> None:
    async with backends(answering(whole())) as (model,):
        model.metrics = b"depth 1\n"
        async with collector(target(model), otlp_endpoint=f"http://127.0.0.1:{free_port()}") as server:
            await until(lambda: server.exports["failed"] > 1)
            await line(server, "depth")
