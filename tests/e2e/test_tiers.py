"""Two real vLLM engines on two node stores: every combination of L1 and L2, on or off.

What the first engine computes at its node, the second finds at its own exactly where there is a tier below both, and
the first finds again where anything keeps it at all. Both engines live through all combinations: their node stores are
exchanged behind them.
"""

import pytest

pytest.importorskip("vllm")

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.e2e.node_stores import LOADS_ALWAYS, NodeStore, wait_until
from tests.e2e.replicas import Replica
from tests.integration.pool.redis_servers import BINARY, one
from tests.ports import free_ports
from transformers import AutoTokenizer

from tierline.prefix import CHUNK_TOKENS
from tierline.stack.model import prepare_default_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

CHUNKS = 2
STORED_WITHIN_S = 60.0
ROOT = Path(__file__).parents[2]


class World:
    """Two node stores and the engines at them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes = [NodeStore(folder, name, "256MiB") for name in ("one", "two")]
        self.record = folder / "record.jsonl"
        self.token = folder / "pool.token"
        self.token.write_text("a-token-of-nodes-0123456789")
        model = prepare_default_model(print)
        text = AutoTokenizer.from_pretrained(model)((ROOT / "LICENSE").read_text())["input_ids"]
        self.prompt = text[: CHUNKS * CHUNK_TOKENS + 8]
        self.restart({}, ())
        self.engines = [Replica(model, node.socket, self.record, is_async=False, hash_seed=None) for node in self.nodes]

    def restart(self, peers: dict[str, str], arguments: tuple[str, ...]) -> None:
        """Start both node stores anew, with nothing in them; ``peers`` are transfer addresses by name, if any."""
        for node in self.nodes:
            node.remove()
        for node in self.nodes:
            # A machine that runs tests may be too busy for the usual 20 ms.
            settings = {"lookup_cap_ms": "1000", "load_factor": str(LOADS_ALWAYS)}
            if peers:
                others = [f"{name}={address}" for name, address in peers.items() if name != node.name]
                settings |= {"transfer_address": peers[node.name], "peers": ",".join(others)}
                settings |= {"pool_token_file": str(self.token)}
            node.start(*arguments, **settings)
        for node in self.nodes if peers else ():
            wait_until(lambda node=node: len(node.members("alive")) == len(peers) - 1, "the nodes know each other")  # type: ignore[misc]

    def rejoin(self, *, is_pool: bool) -> None:
        """Let the engines find out that their node stores are others, and a pool of what is stored by then."""
        for engine, node in zip(self.engines, self.nodes, strict=True):
            for _ in range(10):
                salt = f"{node.name} {time.monotonic_ns()}"
                engine.answer([self.prompt[: CHUNK_TOKENS + 1]], 1, cache_salt=salt)
                if self.has_committed(node, 1):
                    break
            else:
                pytest.fail(f"the engine at node store {node.name} stores nothing")
        if is_pool:
            wait_until(lambda: self.told() >= len(self.nodes), "the directory knows of it", STORED_WITHIN_S)

    def has_committed(self, node: NodeStore, count: int) -> bool:
        try:
            wait_until(lambda: node.stats()["store"]["commits"] >= count, "objects are committed", 3.0)
        except AssertionError:
            return False
        return True

    def told(self) -> int:
        """Return how many objects the pool's directory knows of."""
        return sum(member["entries"] for node in self.nodes for member in node.members("self"))

    def recorded(self, event: str) -> dict[str, str]:
        """Return the digest of the engine's blocks by chunk, of all chunks that were recorded whole."""
        lines = [json.loads(line) for line in self.record.read_text().splitlines()]
        return {line["chain"]: line["kv"] for line in lines if line["event"] == event and line["blocks"] == 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("tiers"))
    yield world
    for engine in world.engines:
        engine.close()
    for node in world.nodes:
        node.remove()


@pytest.mark.parametrize("below", ["nothing", "tieredstorage", "redis"])
@pytest.mark.parametrize("has_l1", [True, False], ids=["L1", "no L1"])
def test_a_prefix_is_found_where_a_tier_keeps_it(world: World, has_l1: bool, below: str, tmp_path: Path) -> None:
    if below == "redis" and BINARY is None:
        pytest.skip("redis-server is not installed")
    with ExitStack() as stack:
        arguments: tuple[str, ...] = () if has_l1 else ("--no-l1",)
        peers: dict[str, str] = {}
        if below == "redis":
            port = stack.enter_context(one(tmp_path))
            arguments += ("--tiers", f"redis://127.0.0.1:{port}")
        elif below == "tieredstorage":
            ports = free_ports(2)
            peers = {node.name: f"127.0.0.1:{port}" for node, port in zip(world.nodes, ports, strict=True)}
        world.restart(peers, arguments)
        world.rejoin(is_pool=bool(peers))
        first, second = world.engines
        salt = f"{below} {has_l1}"
        before = world.nodes[0].stats()["store"]["commits"]
        told = world.told()

        (cold,) = first.answer([world.prompt], 8, cache_salt=salt)
        assert cold.cached_tokens == 0
        wait_until(
            lambda: world.nodes[0].stats()["store"]["commits"] >= before + CHUNKS, "it is stored", STORED_WITHIN_S
        )
        if below == "redis":
            node = world.nodes[0]
            wait_until(
                lambda: node.bytes_written_below() >= node.stats()["store"]["commit_bytes"],
                "it is in redis, too",
                STORED_WITHIN_S,
            )
        if below == "tieredstorage":
            wait_until(lambda: world.told() >= told + CHUNKS, "the directory knows of it", STORED_WITHIN_S)

        (warm,) = second.answer([world.prompt], 8, cache_salt=salt)
        assert warm.cached_tokens == (0 if below == "nothing" else CHUNKS * CHUNK_TOKENS)
        assert warm.tokens == cold.tokens
        assert warm.logprobs == pytest.approx(cold.logprobs, abs=1e-3)
        if below == "redis" or (below == "tieredstorage" and has_l1):  # else the second node may be the prefix's home
            source = "redis" if below == "redis" else "tieredstorage:one"
            assert second.loaded_tokens(source) >= CHUNKS * CHUNK_TOKENS

        if not has_l1 and below == "nothing":
            # What passes through a node may be read for a while, by another engine of the node.
            wait_until(lambda: world.nodes[0].stats()["store"]["objects"] == 0, "nothing is kept", STORED_WITHIN_S)
        first.forget()
        (again,) = first.answer([world.prompt], 1, cache_salt=salt)
        assert again.cached_tokens == (CHUNKS * CHUNK_TOKENS if has_l1 or below != "nothing" else 0)
    stored, loaded = world.recorded("stored"), world.recorded("loaded")
    assert {chain: stored[chain] for chain in loaded} == loaded
