"""A router beside real node stores that are one pool: what one of them holds is told apart from what another does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from tests.integration.node.processes import NodeProcess, store
from tests.integration.router.test_kvaware import MODEL, engine
from tests.integration.router.test_node_stores import INTRODUCTION, NAMES, PROMPT
from tests.ports import free_ports

from tierline.prefix import CHUNK_TOKENS
from tierline.router.config import RouterConfig
from tierline.router.controller.config import ControllerConfig
from tierline.router.controller.server import running as controller_running
from tierline.router.server import RouterServer, running
from tierline.router.strategies.kvaware import KvAware
from tierline.wire.messages import Introduce

HELD, POOLED, APART = range(3)


@dataclass
class World:
    """Three endpoints: the first two have node stores that are one pool, the third has one by itself."""

    server: RouterServer
    nodes: list[NodeProcess]
    http: aiohttp.ClientSession

    @property
    def strategy(self) -> KvAware:
        strategy = self.server.services.choosing.default.strategies[0]
        assert isinstance(strategy, KvAware)
        return strategy

    @property
    def endpoints(self) -> list[str]:
        return [endpoint.url for endpoint in self.server.services.endpoints.all]

    async def explain(self) -> dict[str, Any]:
        """Return what would be chosen; nothing changes by asking."""
        url = f"http://{self.server.host}:{self.server.port}/admin/explain"
        async with self.http.post(url, json={"model": MODEL, "prompt": PROMPT}) as response:
            choice: dict[str, Any] = (await response.json())["choice"]
            return choice

    async def until_told(self, tiers: dict[str, int], place: int | None = None) -> dict[str, Any]:
        """Return the choice, once it is made with this prediction, and is this endpoint's."""
        async with asyncio.timeout(60):
            while True:
                choice = await self.explain()
                if choice["predicted_by_tier"] == tiers and (
                    place is None or choice["endpoint"] == self.endpoints[place]
                ):
                    return choice
                await asyncio.sleep(0.02)

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not is_so():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def burden(self, place: int, tokens: int) -> None:
        """Let so many tokens wait at an endpoint."""
        endpoint = self.server.services.endpoints.all[place]
        endpoint.begin(tokens, asyncio.get_running_loop().time())


@contextlib.asynccontextmanager
async def pooled_world(folder: Path, **settings: Any) -> AsyncIterator[World]:
    events = [f"ipc://{folder}/events-{number}" for number in range(3)]
    places = [f"127.0.0.1:{port}" for port in free_ports(3)]
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for number, (address, place) in enumerate(zip(events, places, strict=True)):
            pool = {} if number == APART else {"transfer_address": place, "peers": ",".join(places[:APART])}
            node = NodeProcess(folder, capacity="2MiB", kv_events=address, node_name=f"node-{number}", **pool)
            nodes.append(stack.enter_context(contextlib.closing(node)))
        engines = [await stack.enter_async_context(engine(f"ipc://{folder}/engine-{number}")) for number in range(3)]
        config = RouterConfig(
            port=0,
            endpoints=tuple(engines),
            strategy="kvaware",
            node_events=tuple(
                f"{url}={address}?replay={address}.replay" for url, address in zip(engines, events, strict=True)
            ),
            health_interval_s=0.1,
            shutdown_timeout_s=0.2,
            **settings,
        )
        server = await stack.enter_async_context(running(config))
        world = World(server, nodes, await stack.enter_async_context(aiohttp.ClientSession()))
        await world.until(lambda: all(endpoint.is_up for endpoint in server.services.endpoints.all))
        for node in nodes:
            client = stack.enter_context(node.connect(writer=True))
            client.introduce(INTRODUCTION)
            if node is nodes[HELD]:
                for name in NAMES:
                    store(client, name, b"x")
        yield world


async def chooses_by_the_way_to_the_blocks(world: World) -> None:
    choice = await world.until_told({"host": 768}, HELD)
    assert choice["uncached_tokens"] == len(PROMPT) - int(768 * 0.8)
    world.burden(HELD, 2000)  # more than the pool's way costs
    choice = await world.until_told({"shared": 768}, POOLED)
    assert choice["uncached_tokens"] == len(PROMPT) - int(768 * 0.6)
    world.burden(HELD, 20_000)
    world.burden(POOLED, 20_000)
    await world.until_told({}, APART)


async def test_the_node_that_holds_a_prefix_goes_before_its_pool_and_the_pool_before_an_idle_endpoint(
    tmp_path: Path,
) -> None:
    async with pooled_world(tmp_path) as world:
        await chooses_by_the_way_to_the_blocks(world)
        async with world.http.get(f"http://{world.server.host}:{world.server.port}/metrics") as response:
            page = await response.text()
        assert page.count('tierline_router_kv_store_pool{pool="tierline"') == 2
        assert page.count('tierline_router_kv_store_pool{pool=""') == 1


async def test_a_router_that_asks_a_controller_chooses_no_differently(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/controller"
    config = ControllerConfig(listen=(listen,), http="127.0.0.1:0", takes_endpoints=True)
    async with controller_running(config), pooled_world(tmp_path, controller=listen, controller_budget_s=1.0) as world:
        await chooses_by_the_way_to_the_blocks(world)


async def test_what_other_engines_would_not_find_or_is_gone_is_not_in_the_pool(tmp_path: Path) -> None:
    async with pooled_world(tmp_path) as world:
        world.burden(HELD, 2000)
        await world.until_told({"shared": 768}, POOLED)
        with world.nodes[POOLED].connect(writer=True) as other:  # it could be this one that serves the endpoint
            other.introduce(Introduce(0, "b", [MODEL], "other weights", 0, CHUNK_TOKENS, INTRODUCTION.shards))
            await world.until_told({"host": 768}, HELD)
        await world.until_told({"shared": 768}, POOLED)
        world.nodes[HELD].kill()
        await world.until_told({})
        left = world.strategy.stores[world.endpoints[POOLED]]  # a pool of one is none
        await world.until(lambda: left.blocks.pool == "")
