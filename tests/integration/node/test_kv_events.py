"""A node's KV events, from its process over ZeroMQ to a router's index: what the index says is what the store holds."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from tests.integration.node.processes import NodeProcess, store

from tierline.client import NodeClient
from tierline.prefix import PrefixIdentity, Shard, block_chain, object_name, tenant_field
from tierline.router.events.addresses import SourceAddress
from tierline.router.events.keys import PromptTokens
from tierline.router.events.source import SourceState
from tierline.router.events.stored import StoreBlocks, StoreIndex, StoreLookup
from tierline.router.events.subscriber import EventSubscriptions
from tierline.wire.kv_events import END_OF_REPLAY
from tierline.wire.messages import Introduce

CHUNK = 16
SHARD = Shard(kv_dtype="bfloat16", layout="test-1", chunk_tokens=CHUNK)
HALVES = [
    Shard(kv_dtype="bfloat16", layout="test-1", chunk_tokens=CHUNK, tensor_rank=rank, tensor_size=2) for rank in (0, 1)
]
PROMPT = list(range(5 * CHUNK + 3))


def introduction(
    model: str = "f", shards: Sequence[Shard] = (SHARD,), epoch: int = 0, adapters: dict[str, str] | None = None
) -> Introduce:
    suffixes = [shard.suffix() for shard in shards]
    return Introduce(0, "b", ["m"], model, epoch, CHUNK, suffixes, adapters or {})


def names(
    prompt: Sequence[int] = PROMPT, shard: Shard = SHARD, model: str = "f", salt: str = "", **identity: object
) -> list[str]:
    root = PrefixIdentity(model=model, tenant=salt, **identity).root()  # type: ignore[arg-type]
    return [object_name(chain, shard, tenant_field(salt)) for chain in block_chain(root, prompt, CHUNK)]


def store_all(client: NodeClient, objects: Sequence[str]) -> None:
    for name in objects:
        store(client, name, b"x" * 100)


class Listener:
    """A router's index of one store."""

    def __init__(self, address: str) -> None:
        self.index = StoreIndex(1024**2)
        self.subscriptions: EventSubscriptions[StoreBlocks] = EventSubscriptions(self.index, time.time)
        [self.source] = self.subscriptions.add("node", [SourceAddress(address, f"{address}.replay")])

    def held(self, prompt: Sequence[int] = PROMPT, salt: str = "", model: str = "m", adapter: str | None = None) -> int:
        lookup = StoreLookup(self.index, PromptTokens(prompt, salt))
        return lookup.held_tokens(self.source.blocks, frozenset({model}), adapter)[0]

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not (self.source.is_exact and is_so()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    folder = tmp_path_factory.mktemp("node")
    process = NodeProcess(folder, kv_events=f"ipc://{folder}/events", capacity="2MiB", grace_s=0, quarantine_s=0)
    yield process
    process.close()


@pytest.fixture
def node(shared_node: NodeProcess) -> Iterator[NodeProcess]:
    """A node that holds nothing."""
    yield shared_node
    with shared_node.http() as client:
        assert client.request("DELETE", "/v1/kv?flush")[0] == 200


@pytest.fixture
async def listener(shared_node: NodeProcess) -> AsyncIterator[Listener]:
    listening = Listener(f"ipc://{shared_node.socket.parent}/events")
    yield listening
    await listening.subscriptions.close()


async def test_what_is_committed_counts_and_what_is_deleted_does_not(node: NodeProcess, listener: Listener) -> None:
    with node.connect(writer=True, client="engine") as client:
        store_all(client, names()[:3])
        client.introduce(introduction())
        await listener.until(lambda: listener.held() == 3 * CHUNK)
        client.delete("b", [names()[1]])
        await listener.until(lambda: listener.held() == CHUNK)
        store_all(client, [names()[1], *names()[3:]])
        await listener.until(lambda: listener.held() == 5 * CHUNK)
    assert listener.source.state is SourceState.EXACT


async def test_the_last_token_is_computed_in_any_case(node: NodeProcess, listener: Listener) -> None:
    with node.connect(writer=True) as client:
        client.introduce(introduction())
        store_all(client, names())
        await listener.until(lambda: listener.held() == 5 * CHUNK)
        assert listener.held(PROMPT[: 5 * CHUNK]) == 4 * CHUNK


async def test_what_is_stored_counts_for_no_engine_that_has_left(node: NodeProcess, listener: Listener) -> None:
    with node.connect(writer=True) as client, node.connect() as engine:
        engine.introduce(introduction())
        store_all(client, names())
        await listener.until(lambda: listener.held() == 5 * CHUNK)
        engine.close()
        await listener.until(lambda: listener.held() == 0)
        assert len(listener.source.blocks) == 5


async def test_a_block_counts_when_all_ranks_shards_are_there(node: NodeProcess, listener: Listener) -> None:
    with node.connect(writer=True) as client:
        client.introduce(introduction(shards=HALVES))
        store_all(client, names(shard=HALVES[0]))
        store_all(client, names(shard=HALVES[1])[:2])
        await listener.until(lambda: len(listener.source.blocks) == 7)
        assert listener.held() == 2 * CHUNK
        client.delete("b", [names(shard=HALVES[0])[0]])
        await listener.until(lambda: listener.held() == 0)


async def test_models_layouts_tenants_adapters_and_epochs_are_never_taken_for_each_other(
    node: NodeProcess, listener: Listener
) -> None:
    other_layout = Shard(kv_dtype="fp8", layout="test-1", chunk_tokens=CHUNK)
    with node.connect(writer=True) as client:
        store_all(client, names()[:1])
        store_all(client, names(salt="alice")[:2])
        store_all(client, names(adapter="lora")[:3])
        store_all(client, names(epoch=7)[:4])
        store_all(client, names(shard=other_layout))
        store_all(client, names(model="other")[:4])
        client.introduce(introduction(adapters={"a": "lora"}))
        await listener.until(lambda: len(listener.source.blocks) == 19 and listener.held() == CHUNK)
        assert listener.held(salt="alice") == 2 * CHUNK
        assert listener.held(salt="bob") == 0
        assert listener.held(adapter="a") == 3 * CHUNK
        assert listener.held(adapter="unknown") == 0
        assert listener.held(model="elsewhere") == 0
        client.introduce(introduction(epoch=7))
        await listener.until(lambda: listener.held() == 4 * CHUNK)
        client.introduce(introduction(shards=[other_layout]))
        await listener.until(lambda: listener.held() == 5 * CHUNK)


async def test_of_two_engines_that_cannot_be_told_apart_the_least_counts(node: NodeProcess, listener: Listener) -> None:
    with node.connect(writer=True) as one, node.connect() as other:
        one.introduce(introduction())
        store_all(one, names())
        await listener.until(lambda: listener.held() == 5 * CHUNK)
        other.introduce(introduction(model="another"))
        await listener.until(lambda: listener.held() == 0)
        other.close()
        await listener.until(lambda: listener.held() == 5 * CHUNK)


async def test_a_node_that_is_killed_and_adopts_is_listed_anew(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/events"
    with contextlib.closing(NodeProcess(tmp_path, kv_events=address, capacity="2MiB")) as node:
        before = Listener(address)
        with node.connect(writer=True) as client:
            client.introduce(introduction())
            store_all(client, names())
            await before.until(lambda: before.held() == 5 * CHUNK)
        node.kill()
        async with asyncio.timeout(60):
            while before.source.state is not SourceState.LOST:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.to_thread(node.start)
        late = Listener(address)
        with node.connect() as client:
            client.introduce(introduction())
            for each in (before, late):
                await each.until(lambda each=each: each.held() == 5 * CHUNK)  # type: ignore[misc]
        for each in (before, late):
            await each.subscriptions.close()


async def test_whatever_the_store_evicts_the_index_says_what_it_holds(node: NodeProcess, listener: Listener) -> None:
    chosen = random.Random(1)
    with node.connect(writer=True) as client:
        client.introduce(introduction())
        for number in range(600):
            store(client, names([number] * CHUNK)[0], b"x" * chosen.randrange(1, 40_000))
        # Asked anew each time: behind the last write, the node may still be making room ahead of need.
        await listener.until(lambda: len(listener.source.blocks) == node.stats["store"]["objects"] < 400)
        held = [number for number in range(600) if listener.held([number] * (CHUNK + 1))]
        stored = [number for number in range(600) if client.prefix_lease("b", names([number] * CHUNK), 1).objects]
    assert held == stored


async def test_what_is_no_question_is_not_answered(node: NodeProcess) -> None:
    context = zmq.asyncio.Context()
    with contextlib.closing(context.socket(zmq.DEALER)) as asking:
        asking.setsockopt(zmq.LINGER, 0)
        asking.connect(f"ipc://{node.socket.parent}/events.replay")
        for frames in ([b""], [b"", b"short"], [b"", b"", b"", b""], [b"", bytes(8)], [b"", b"\xff" * 8]):
            await asking.send_multipart(frames)
        numbers: list[bytes] = []
        async with asyncio.timeout(60):
            while numbers.count(END_OF_REPLAY) < 2:
                numbers.append((await asking.recv_multipart())[-2])
    context.term()
    assert numbers[-2:] == [END_OF_REPLAY] * 2
    assert node.get("/readyz")[0] == 200
