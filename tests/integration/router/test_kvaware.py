"""``kvaware`` before simulated engines that publish KV events over ZeroMQ: what it predicts is what they report."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests import ports
from tests.integration.router.backend import until_models_are_known

from tierline.metrics.router import ROUTER
from tierline.router.config import RouterConfig
from tierline.router.events.source import EventSource
from tierline.router.server import RouterServer, running
from tierline.router.specs import EndpointSpec
from tierline.router.strategies.kvaware import KvAware
from tierline.stack.simulated_engine import SimulatedEngineConfig, make_app
from tierline.stack.simulated_engine.kv_events import ZmqPublisher

MODEL, ADAPTER = "simulated-model", "poet"
IDS = list(range(1000, 1200))
TEXT = "a document that everybody asks about, sentence by sentence. " * 20


@dataclass
class World:
    """A router, its engines, and a client.

    Parameters
    ----------
    server, engines, http
        These.
    sources
        Who listens to the engines, by their URLs: the router itself, or a controller that it asks.
    """

    server: RouterServer
    engines: list[str]
    http: aiohttp.ClientSession
    sources: Mapping[str, Sequence[EventSource]]

    @property
    def strategy(self) -> KvAware:
        strategy = self.server.services.choosing.default.main.strategy
        assert isinstance(strategy, KvAware)
        return strategy

    async def ask(self, path: str = "/v1/completions", **asked: Any) -> "Answer":
        """Ask the router, or an engine itself; then wait until all is known that engines told of it."""
        answer = await self.answer(path, **asked)
        async with asyncio.timeout(60):
            while not self._is_told():  # noqa: ASYNC110  (events are under way)
                await asyncio.sleep(0.005)
        return answer

    async def answer(
        self, path: str = "/v1/completions", url: str | None = None, *, without: str | None = None, **body: Any
    ) -> "Answer":
        """Ask, and wait for nothing but the answer."""
        body = {"model": MODEL, "max_tokens": 1, **body}
        url = url or f"http://{self.server.host}:{self.server.port}"
        fields = {} if without is None else {"x-tierline-bypass": without}
        async with self.http.post(url + path, json=body, headers=fields) as response:
            assert response.status == 200, await response.text()
            usage = (await response.json())["usage"]
            headers = response.headers
        return Answer(
            headers.get("x-tierline-endpoint", url),
            headers.get("x-tierline-reason", ""),
            int(headers.get("x-tierline-predicted-cached-tokens", "0")),
            usage["prompt_tokens_details"]["cached_tokens"],
        )

    def _is_told(self) -> bool:
        """Whether all that engines have published was applied. What they publish is sent before their answers."""
        return all(
            source._next == _publishers[url]._sequence for url in self.engines for source in self.sources.get(url, ())
        )


@dataclass
class Answer:
    endpoint: str
    reason: str
    predicted: int
    cached: int


_publishers: dict[str, ZmqPublisher] = {}
"""Of the engines that run and publish, by their URLs."""


@contextlib.asynccontextmanager
async def engine(events: str | None, model: str = MODEL) -> AsyncIterator[str]:
    """Run a simulated engine; what is yielded is its URL."""
    config = SimulatedEngineConfig(
        port=ports.free_port(),
        model=model,
        adapters=(ADAPTER,),
        prefill_rate=1e6,
        decode_rate=1000,
        cache_blocks=200,
        kv_events_endpoint=events,
    )
    url = f"http://{config.host}:{config.port}"

    def publishing(endpoint: str) -> ZmqPublisher:
        publisher = _publishers[url] = ZmqPublisher(endpoint)
        return publisher

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tierline.stack.simulated_engine.server.ZmqPublisher", publishing)
        runner = web.AppRunner(make_app(config), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, config.host, config.port).start()
    try:
        yield url
    finally:
        await runner.cleanup()
        _publishers.pop(url, None)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr("tierline.router.tokens.ANSWER_SECONDS", 60.0)
    async with contextlib.AsyncExitStack() as stack:
        events = [f"ipc://{tmp_path}/events-{number}" for number in range(2)]
        engines = [await stack.enter_async_context(engine(address)) for address in events]
        config = RouterConfig(
            port=0,
            endpoints=tuple(engines),
            strategy="kv-aware",
            allow_bypass=("affinity", "cache"),
            kv_events=tuple(f"{url}={address}" for url, address in zip(engines, events, strict=True)),
            health_interval_s=0.1,
            health_timeout_s=60,
            shutdown_timeout_s=0.2,
        )
        server = await stack.enter_async_context(running(config))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        strategy = server.services.choosing.kvaware
        assert strategy is not None
        world = World(server, engines, http, strategy.sources)
        ladder = server.services.tokens
        assert ladder is not None
        ladder._budget_s = 60.0
        await until_heard(world)
        yield world


async def until_heard(world: World) -> None:
    """Until health checks have said what is served, and all that each engine holds was told."""
    endpoints = world.server.services.endpoints.all
    sources = [source for sources in world.strategy.sources.values() for source in sources]
    while not all(source.is_exact for source in sources) or not all(endpoint.is_up for endpoint in endpoints):
        for url in world.engines:  # what was published before anybody listened is gone with this
            async with world.http.post(f"{url}/reset_prefix_cache") as response:
                assert response.status == 200
            await world.answer(url=url, prompt=[1] * 17)
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("prompt", [IDS, TEXT])
async def test_without_the_cache_nothing_is_read_that_others_computed_nor_by_them(world: World, prompt: object) -> None:
    for _ in range(2):
        unshared = await world.ask(prompt=prompt, without="cache")
        assert (unshared.reason, unshared.predicted, unshared.cached) == ("cold", 0, 0)
    assert (await world.ask(prompt=prompt)).cached == 0
    shared = await world.ask(prompt=prompt)
    assert shared.predicted == shared.cached > 0


async def test_without_affinity_tokens_are_not_looked_for(world: World) -> None:
    ladder = world.server.services.tokens
    assert ladder is not None
    asked = ladder.rungs.total()
    assert (await world.ask(prompt=IDS, without="affinity")).reason == "least-load"
    assert ladder.rungs.total() == asked


async def test_an_adapter_shares_no_block_with_its_model(world: World) -> None:
    assert (await world.ask(prompt=IDS)).cached == 0
    of_model = await world.ask(prompt=IDS)
    assert of_model.predicted == of_model.cached > 0
    cold = await world.ask(prompt=IDS, model=ADAPTER)
    assert (cold.predicted, cold.cached) == (0, 0)
    warm = await world.ask(prompt=IDS, model=ADAPTER)
    assert (warm.reason, warm.predicted) == ("prefix", warm.cached)
    assert warm.cached == of_model.cached


async def test_one_model_is_followed_and_the_other_is_guessed(tmp_path: Path) -> None:
    events, followed, guessed = f"ipc://{tmp_path}/events", "simulated-followed", "simulated-guessed"
    async with engine(events, followed) as one, engine(None, guessed) as other, aiohttp.ClientSession() as http:
        config = RouterConfig.model_validate(
            {
                "port": 0,
                "endpoints": (one, other),
                "models": [f"{followed}=kvaware"],
                "kv_events": (f"{one}={events}",),
                "health_interval_s": 0.1,
                "shutdown_timeout_s": 0.2,
            }
        )
        async with running(config) as server:
            strategy, ladder = server.services.choosing.kvaware, server.services.tokens
            assert strategy is not None
            assert ladder is not None
            url = f"http://{server.host}:{server.port}/v1/completions"

            async def ask(model: str, ids: list[int]) -> tuple[str, int, int]:
                async with http.post(url, json={"model": model, "max_tokens": 1, "prompt": ids}) as response:
                    usage = (await response.json())["usage"]
                    predicted = int(response.headers["x-tierline-predicted-cached-tokens"])
                    cached = usage["prompt_tokens_details"]["cached_tokens"]
                    return response.headers["x-tierline-strategy"], predicted, cached

            (source,) = strategy.sources[one]
            await until_models_are_known(server)
            while not source.is_exact:
                async with http.post(f"{one}/reset_prefix_cache"):
                    await ask(followed, [1] * 17)
                await asyncio.sleep(0.05)
            asked = ladder.rungs.total()
            await ask(followed, IDS)
            async with asyncio.timeout(60):
                while len(source.blocks) < len(IDS) // 16:  # noqa: ASYNC110  (events are under way)
                    await asyncio.sleep(0.01)
            name, predicted, cached = await ask(followed, IDS)
            assert (name, predicted) == ("kvaware", cached)
            assert cached > 0
            assert ladder.rungs.total() == asked + 2
            for _ in range(2):
                assert (await ask(guessed, IDS))[0] == "prefixaware"
            assert ladder.rungs.total() == asked + 2, "tokens are looked for where they are of use"
            assert list(strategy.sources) == [one]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"prompt": IDS}, id="ids"),
        pytest.param({"prompt": TEXT}, id="text"),
        pytest.param({"prompt": IDS, "cache_salt": "tenant"}, id="salt"),
    ],
)
async def test_what_is_predicted_is_what_the_engine_reports(world: World, body: dict[str, Any]) -> None:
    cold = await world.ask(**body)
    assert (cold.predicted, cold.cached) == (0, 0)
    warm = await world.ask(**body)
    assert warm.endpoint == cold.endpoint
    assert warm.predicted == warm.cached > 150


async def test_a_chat_is_predicted_too_and_its_next_turn(world: World) -> None:
    messages = [{"role": "user", "content": TEXT}]
    cold = await world.ask("/v1/chat/completions", messages=messages)
    warm = await world.ask("/v1/chat/completions", messages=messages)
    assert (cold.predicted, warm.predicted) == (0, warm.cached)
    messages += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "and now?"}]
    turn = await world.ask("/v1/chat/completions", messages=messages)
    assert turn.endpoint == cold.endpoint
    assert turn.predicted == turn.cached > 150


async def test_what_an_engine_holds_counts_whoever_sent_it_there(world: World) -> None:
    for number, url in enumerate(world.engines):
        prompt = [number, *IDS]
        await world.ask(url=url, prompt=prompt)
        answer = await world.ask(prompt=prompt)
        assert (answer.endpoint, answer.reason) == (url, "prefix")
        assert answer.predicted == answer.cached == 192


async def test_another_salt_and_the_same_tokens_are_another_prompt(world: World) -> None:
    await world.ask(prompt=IDS, cache_salt="one")
    other = await world.ask(prompt=IDS, cache_salt="another")
    assert (other.predicted, other.cached) == (0, 0)


async def test_what_an_engine_evicted_or_cleared_is_not_expected(world: World) -> None:
    first = await world.ask(prompt=IDS)
    others = (world.ask(url=first.endpoint, prompt=[number, *range(5000, 5300)]) for number in range(40))
    await asyncio.gather(*others)
    evicted = await world.ask(prompt=IDS)
    assert evicted.predicted == (0 if evicted.endpoint == first.endpoint else evicted.cached) == 0
    warm = await world.ask(prompt=IDS)
    assert warm.predicted == warm.cached == 192
    for url in world.engines:
        async with world.http.post(f"{url}/reset_prefix_cache") as response:
            assert (await response.json())["success"]
        await world.ask(url=url, prompt=[1] * 17)  # an engine tells with its next step
    cleared = await world.ask(prompt=IDS)
    assert (cleared.predicted, cleared.cached) == (0, 0)


async def test_what_has_no_tokens_is_guessed(world: World) -> None:
    for _ in range(2):
        answer = await world.ask(prompt=TEXT, truncate_prompt_tokens=500)
    assert answer.reason == "prefix"
    ladder = world.server.services.tokens
    assert ladder is not None
    assert ladder.given_up == {"truncated": 2}


async def test_the_metrics_tell_states_and_counts(world: World) -> None:
    await world.ask(prompt=IDS)
    async with world.http.get(f"http://{world.server.host}:{world.server.port}/metrics") as response:
        page = await response.text()
    labels = f'endpoint="{world.engines[0]}",rank="0"'
    assert f'tierline_router_kv_source_state{{{labels},state="exact"}} 1.0' in page
    assert 'tierline_router_kv_prompts_total{rung="ids"} 1.0' in page
    assert 'tierline_router_kv_lookups_total{known="exact"} 2.0' in page
    assert "tierline_router_tokens_seconds_count 0.0" in page, "its tokens were at hand"
    await world.ask(prompt=IDS, truncate_prompt_tokens=5)
    await world.ask(prompt="a text whose tokens somebody has to say")
    async with world.http.get(f"http://{world.server.host}:{world.server.port}/metrics") as response:
        page = await response.text()
    exported = set(re.findall(r"^(tierline_router_kv_\w+){", page, re.MULTILINE))
    assert "tierline_router_tokens_seconds_count 1.0" in page
    ours = {each.name for each in ROUTER if re.match(r"tierline_router_kv_(?!controller|store)", each.name)}
    assert ours == exported | {"tierline_router_kv_index_bytes"}


async def test_an_endpoint_that_is_removed_is_listened_to_no_more(world: World) -> None:
    membership, endpoints = world.server.membership, world.server.services.endpoints
    membership.remove(endpoints.all[0])
    assert list(world.strategy.sources) == world.engines[1:]
    async with asyncio.timeout(60):
        while len(list(world.strategy.blocks.sources)) > 1:  # noqa: ASYNC110  (its sockets are being closed)
            await asyncio.sleep(0.01)


async def test_an_explanation_knows_the_prompt_s_tokens_as_a_request_would(world: World) -> None:
    body = {"model": MODEL, "prompt": "the same words again and again " * 30}
    answer = await world.ask(**body)
    url = f"http://{world.server.host}:{world.server.port}/admin/explain"
    for prompt in (body["prompt"], body["prompt"] + " and something new " * 20):  # known by now, and still to be asked
        async with world.http.post(url, json={**body, "prompt": prompt}) as response:
            assert response.status == 200, await response.text()
            choice = (await response.json())["choice"]
        assert choice["endpoint"] == answer.endpoint
        assert [weighed["known"] for weighed in choice["weighed"]] == ["exact", "exact"]
        told = await world.ask(**{**body, "prompt": prompt})
        assert choice["predicted_cached_tokens"] == told.predicted == told.cached > 0
        assert choice["confidence"] == "exact"


async def test_an_explanation_says_of_whom_it_only_guesses(world: World) -> None:
    await world.ask(prompt=IDS)
    for source in world.strategy.sources[world.engines[1]]:
        source.disconnected()
    url = f"http://{world.server.host}:{world.server.port}/admin/explain"
    for body, known in ((IDS, ["exact", "approximate"]), (["two", "prompts"], ["approximate", "approximate"])):
        async with world.http.post(url, json={"model": MODEL, "prompt": body}) as response:
            weighed = (await response.json())["choice"]["weighed"]
        assert [entry["known"] for entry in weighed] == known


async def test_a_client_that_leaves_while_an_explanation_waits_leaves_nothing_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = world.server.services
    waiting = asyncio.Event()

    async def wait(*_: object) -> None:
        waiting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(services.tokens, "climb", wait)
    url = f"http://{world.server.host}:{world.server.port}/admin/explain"
    asking = asyncio.create_task(world.http.post(url, json={"model": MODEL, "prompt": "never heard of"}))
    await asyncio.wait_for(waiting.wait(), 60)
    assert services.held_bytes > 0
    asking.cancel()
    async with asyncio.timeout(60):
        while services.held_bytes:  # noqa: ASYNC110  (the router's own state)
            await asyncio.sleep(0.01)


async def test_an_endpoint_whose_events_move_is_listened_to_at_the_new_place(world: World, tmp_path: Path) -> None:
    moved = f"ipc://{tmp_path}/moved"
    async with engine(moved) as url:
        membership = world.server.membership
        membership.follow("file", [EndpointSpec(url=url, kv_events=f"ipc://{tmp_path}/nobody")])
        before = world.strategy.sources[url]
        membership.follow("file", [EndpointSpec(url=url, kv_events=moved, weight=2)])
        assert world.strategy.sources[url] is not before
        with_it = World(world.server, [*world.engines, url], world.http, world.sources)
        await until_heard(with_it)
        await with_it.ask(url=url, prompt=IDS)
        assert len(world.strategy.sources[url][0].blocks) >= len(IDS) // 16
