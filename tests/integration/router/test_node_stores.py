"""A router beside a real node store: the endpoint whose node holds a prefix is chosen, and it is said from where."""

import asyncio
import contextlib
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.integration.node.processes import NodeProcess, store
from tests.integration.router.test_kvaware import MODEL, engine

from tierline.metrics.router import ROUTER
from tierline.prefix import CHUNK_TOKENS, PrefixIdentity, Shard, block_chain, object_name
from tierline.router.config import RouterConfig
from tierline.router.server import RouterServer, running
from tierline.router.specs import EndpointSpec
from tierline.router.strategies.kvaware import KvAware
from tierline.wire.messages import Introduce

SHARD = Shard(kv_dtype="bfloat16", layout="test-1")
PROMPT = list(range(1000, 1000 + 3 * CHUNK_TOKENS + 5))
NAMES = [object_name(chain, SHARD) for chain in block_chain(PrefixIdentity(model="f").root(), PROMPT)]
INTRODUCTION = Introduce(0, "b", [MODEL], "f", 0, CHUNK_TOKENS, [SHARD.suffix()])


@dataclass
class World:
    """Two endpoints, of which the second has a node store."""

    server: RouterServer
    node: NodeProcess
    address: str
    http: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://{self.server.host}:{self.server.port}"

    @property
    def strategy(self) -> KvAware:
        strategy = self.server.services.choosing.default.strategies[0]
        assert isinstance(strategy, KvAware)
        return strategy

    @property
    def endpoints(self) -> list[str]:
        return [endpoint.url for endpoint in self.server.services.endpoints.all]

    async def ask(self) -> tuple[str, str | None]:
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 1}
        async with self.http.post(f"{self.url}/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()
            return response.headers["x-tierline-endpoint"], response.headers.get("x-tierline-predicted-by-tier")

    async def explain(self) -> dict[str, Any]:
        """Return what would be chosen; nothing changes by asking."""
        async with self.http.post(f"{self.url}/admin/explain", json={"model": MODEL, "prompt": PROMPT}) as response:
            choice: dict[str, Any] = (await response.json())["choice"]
            return choice

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not is_so():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def objects(self) -> int:
        [source] = set(self.strategy.stores.values())
        return len(source.blocks) if source.is_exact and source.blocks.engines else 0


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    address = f"ipc://{tmp_path}/events"
    async with contextlib.AsyncExitStack() as stack:
        node = stack.enter_context(contextlib.closing(NodeProcess(tmp_path, capacity="2MiB", kv_events=address)))
        engines = [await stack.enter_async_context(engine(f"ipc://{tmp_path}/engine-{number}")) for number in (0, 1)]
        config = RouterConfig(
            port=0,
            endpoints=tuple(engines),
            strategy="kvaware",
            node_events=(f"{engines[1]}={address}?replay={address}.replay",),
            tier_weights=("host=0.7",),
            health_interval_s=0.1,
            shutdown_timeout_s=0.2,
        )
        server = await stack.enter_async_context(running(config))
        world = World(server, node, address, await stack.enter_async_context(aiohttp.ClientSession()))
        await world.until(lambda: all(endpoint.is_up for endpoint in server.services.endpoints.all))
        yield world


async def test_a_prefix_that_only_a_store_holds_is_found_predicted_and_explained(world: World) -> None:
    with world.node.connect(writer=True) as client:
        client.introduce(INTRODUCTION)
        for name in NAMES:
            store(client, name, b"x")
        await world.until(lambda: world.objects() == 3)
        choice = await world.explain()
        assert (choice["endpoint"], choice["predicted_by_tier"]) == (world.endpoints[1], {"host": 768})
        assert choice["confidence"] == "bound"
        assert choice["uncached_tokens"] == len(PROMPT) - int(768 * 0.7)
        assert await world.ask() == (world.endpoints[1], "host=768")

    decisions = await world.http.get(f"{world.url}/admin/decisions")
    assert (await decisions.json())["decisions"][0]["choice"]["predicted_by_tier"] == {"host": 768}
    said = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tierline", "router", "explain", "--url", world.url, "--model", MODEL, "some prompt"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert world.endpoints[0] in said.stdout

    async with world.http.get(f"{world.url}/metrics") as response:
        page = await response.text()
    assert 'tierline_router_kv_predicted_tokens_total{tier="host"} 768.0' in page
    assert f'tierline_router_kv_store_state{{state="exact",store="{world.address}' in page
    exported = set(re.findall(r"^(tierline_router_kv_store_\w+)", page, re.MULTILINE))
    assert exported == {each.name for each in ROUTER if each.name.startswith("tierline_router_kv_store_")}


async def test_a_store_that_dies_counts_no_more_and_again_when_it_is_back(world: World) -> None:
    with world.node.connect(writer=True) as client:
        client.introduce(INTRODUCTION)
        for name in NAMES:
            store(client, name, b"x")
        await world.until(lambda: world.objects() == 3)
    world.node.kill()
    await world.until(lambda: world.objects() == 0)
    assert (await world.explain())["predicted_by_tier"] == {}
    await asyncio.to_thread(world.node.start)
    with world.node.connect() as client:
        client.introduce(INTRODUCTION)
        await world.until(lambda: world.objects() == 3)
        assert (await world.ask())[1] == "host=768"


async def test_endpoints_of_one_node_share_a_subscription_until_the_last_one_goes(world: World) -> None:
    membership, endpoints = world.server.membership, world.server.services.endpoints
    address = f"{world.address}?replay={world.address}.replay"
    first, second = endpoints.all
    membership.follow(
        "flags", [EndpointSpec(url=endpoint.url, node_events=address) for endpoint in endpoints.all], from_start=False
    )
    assert world.strategy.stores[first.url] is world.strategy.stores[second.url]
    membership.remove(second)
    assert list(world.strategy.stores) == [first.url]
    await asyncio.sleep(0.1)
    assert len(world.strategy.stored._slots) == 1
    membership.remove(first)
    await world.until(lambda: world.strategy.stored._slots == [None])
