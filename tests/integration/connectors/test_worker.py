"""Both halves' threads against a real node store, with KV tensors but without an engine."""

import pytest

pytest.importorskip("vllm")

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tests.e2e.node_stores import NodeStore, wait_until
from vllm import SamplingParams
from vllm.v1.request import Request

from tierline.breaker import Breaker, Warnings
from tierline.client import AsyncNodeClient, NodeClient
from tierline.connectors.vllm.copy import HostCopier, page_words
from tierline.connectors.vllm.introduction import Introduction
from tierline.connectors.vllm.keys import RequestKeys
from tierline.connectors.vllm.lookup import Lookup, LookupThread
from tierline.connectors.vllm.metrics import Counters
from tierline.connectors.vllm.plan import ChunkLoad, ChunkStore, RequestLoad, StepPlan
from tierline.connectors.vllm.worker import WorkerHalf
from tierline.connectors.vllm.writer import NodeWriter
from tierline.prefix import CHUNK_TOKENS, PrefixIdentity, Shard
from tierline.tracing.context import NOWHERE, SAMPLED, Origin, TraceContext
from tierline.tracing.reading import Trace, TraceTree, read_traces
from tierline.tracing.tracer import Tracer, open_tracer

NUM_BLOCKS, BLOCKS_PER_CHUNK, LAYERS = 32, 2, 3
SHARD = Shard(kv_dtype="float32", layout="test")
BUDGET_S = 5.0
SETTINGS = {"scrub_rate": "0"}
"""Without the scrub, whose leases are not those that tests count."""


class Joined:
    """A worker half and a lookup thread on one node store, as one engine has them."""

    def __init__(
        self, node: NodeStore, seed: int, *, loads_between_steps: bool = False, tracer: Tracer | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.kv = [torch.randn(NUM_BLOCKS, 4, 16, 8, generator=generator) for _ in range(LAYERS)]
        self.counters = Counters()
        self.breaker = Breaker(time.monotonic)
        warnings = Warnings(logging.getLogger("test"), time.monotonic)
        copier = HostCopier([page_words(tensor, NUM_BLOCKS, "layer") for tensor in self.kv], BLOCKS_PER_CHUNK)
        self.writer = NodeWriter(
            lambda: NodeClient(node.socket, writer=True, timeout_s=BUDGET_S),
            copier,
            SHARD,
            "test",
            None,
            Breaker(time.monotonic),
            warnings,
            self.counters,
            tracer,
        )
        self.worker = WorkerHalf(copier, 0, loads_between_steps, self.writer, warnings, self.counters, tracer)
        self.lookups = LookupThread(
            lambda: AsyncNodeClient.connect(node.socket, timeout_s=BUDGET_S),
            [SHARD],
            "test",
            30.0,
            BUDGET_S,
            0.0,
            Introduction("test", ["m"], "f", [SHARD]),
            self.breaker,
            warnings,
            self.counters,
            tracer,
        )

    def store(self, keys: RequestKeys, blocks: list[list[int]], origin: Origin = NOWHERE) -> None:
        chains = keys.leading(len(blocks))
        pairs = zip(chains, blocks, strict=True)
        stores = [ChunkStore(chain, tuple(ids), keys.tenant, origin=origin) for chain, ids in pairs]
        self.worker.store(StepPlan(stores=stores))

    def ask(self, keys: RequestKeys, chunks: int, origin: Origin = NOWHERE) -> Lookup:
        lookup = self.lookups.start(keys, chunks, None, origin)
        assert lookup is not None
        wait_until(lambda: lookup.is_answered, "the lookup is answered")
        return lookup

    def has_stored(self, keys: RequestKeys, chunks: int) -> bool:
        lookup = self.lookups.start(keys, chunks)
        if lookup is None:
            return False
        wait_until(lambda: lookup.is_answered, "the lookup is answered")
        self.lookups.drop(lookup)
        return lookup.answer is not None and len(lookup.answer.objects) == chunks

    def load(self, lookup: Lookup, blocks: list[list[int]]) -> None:
        assert lookup.answer is not None
        chunks = [
            ChunkLoad(chain, objects, tuple(ids), lookup.keys.tenant)
            for chain, objects, ids in zip(lookup.chains[: len(blocks)], lookup.answer.objects, blocks, strict=True)
        ]
        self.worker.load(
            StepPlan(loads=[RequestLoad("request", lookup.answer.node_epoch, tuple(chunks), lookup.origin)])
        )

    def close(self) -> None:
        self.worker.close()
        self.lookups.close()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeStore]:
    node = NodeStore(tmp_path_factory.mktemp("node"), "joined", "16MiB")
    node.start(**SETTINGS)
    yield node
    node.remove()


@pytest.fixture
def first(node: NodeStore) -> Iterator[Joined]:
    joined = Joined(node, seed=1)
    yield joined
    joined.close()


@pytest.fixture
def second(node: NodeStore) -> Iterator[Joined]:
    joined = Joined(node, seed=2)
    yield joined
    joined.close()


@pytest.fixture
def keys(request: pytest.FixtureRequest) -> RequestKeys:
    tokens = list(range(4 * CHUNK_TOKENS))
    prompt = Request("request", tokens, SamplingParams(max_tokens=1), None, cache_salt=request.node.name)
    return RequestKeys(PrefixIdentity(model="test", tenant=request.node.name).root(), prompt)


def drawn(tree: TraceTree) -> list[object]:
    return [f"{tree.span.service} {tree.span.name}", *map(drawn, tree.children)]


def test_what_is_done_for_a_traced_request_is_told_as_spans_of_the_connector_and_of_the_store(
    tmp_path: Path, keys: RequestKeys
) -> None:
    files = [tmp_path / "connector.jsonl", tmp_path / "node.jsonl"]
    node = NodeStore(tmp_path, "traced", "16MiB")
    node.start(traces_file=str(files[1]))
    tracer = open_tracer("tierline-connector", files[0], to_collector=False)
    assert tracer is not None
    joined = Joined(node, seed=3, tracer=tracer)
    traced = Origin("an id", TraceContext(0xABC, 0xDEF, SAMPLED))
    unsampled = Origin("another id", TraceContext(0xFED, 0xCBA, 0))
    joined.store(keys, [[1, 2], [3, 4]], traced)
    wait_until(lambda: joined.has_stored(keys, 2), "both chunks are stored")
    lookup, other = joined.ask(keys, 2, traced), joined.ask(keys, 2, unsampled)
    joined.load(lookup, [[9, 8], [7, 6]])
    for each in (lookup, other):
        joined.lookups.drop(each)
    joined.close()
    tracer.close_blocking()

    def spans() -> int:
        return sum(len(trace.spans) for trace in read_traces(files).traces)

    wait_until(lambda: spans() == 6, "all spans are written")
    node.remove()
    (trace,) = read_traces(files).traces
    assert {tree.span.parent_id for tree in trace.roots()} == {f"{0xDEF:016x}"}
    assert [drawn(tree) for tree in trace.roots()] == [
        ["tierline-connector save", ["tierline-node commit"]],
        ["tierline-connector lookup", ["tierline-node prefix lease"]],
        ["tierline-connector load", ["tierline-connector copy"]],
    ]
    told = attributes_of(trace, "tierline.bytes")
    assert told["save"] == told["commit"] == told["lookup"] == told["prefix lease"] == told["copy"] > 0


def attributes_of(trace: Trace, name: str) -> dict[str, int]:
    return {span.name: int(span.attributes[name]) for span in trace.spans}


def test_what_one_worker_stores_another_loads(first: Joined, second: Joined, keys: RequestKeys) -> None:
    first.store(keys, [[1, 2], [3, 4]])
    wait_until(lambda: second.has_stored(keys, 2), "both chunks are stored")
    lookup = second.ask(keys, 3)
    second.load(lookup, [[9, 8], [7, 6]])
    second.lookups.drop(lookup)
    report = second.worker.take_report()
    assert report is not None
    assert (report.ended, report.failed) == ({"request"}, set())
    for source, target in zip(first.kv, second.kv, strict=True):
        assert torch.equal(target[[9, 8, 7, 6]], source[[1, 2, 3, 4]])


def test_a_load_between_steps_ends_on_its_own_thread(node: NodeStore, first: Joined, keys: RequestKeys) -> None:
    first.store(keys, [[1, 2]])
    wait_until(lambda: first.has_stored(keys, 1), "the chunk is stored")
    other = Joined(node, seed=3, loads_between_steps=True)
    other.load(other.ask(keys, 1), [[5, 6]])
    wait_until(lambda: other.worker.take_ended_loads() == ({"request"}, set()), "the load has ended")
    assert torch.equal(other.kv[0][[5, 6]], first.kv[0][[1, 2]])
    other.close()


def test_a_load_between_steps_that_breaks_down_is_reported_as_failed(
    node: NodeStore, first: Joined, keys: RequestKeys
) -> None:
    first.store(keys, [[1, 2]])
    wait_until(lambda: first.has_stored(keys, 1), "the chunk is stored")
    other = Joined(node, seed=3, loads_between_steps=True)
    other.load(other.ask(keys, 1), [[NUM_BLOCKS + 5, NUM_BLOCKS + 6]])
    wait_until(lambda: other.worker.take_ended_loads() == ({"request"}, {"request"}), "the load is reported")
    other.load(other.ask(keys, 1), [[5, 6]])
    wait_until(lambda: other.worker.take_ended_loads() == ({"request"}, set()), "its thread goes on loading")
    assert torch.equal(other.kv[0][[5, 6]], first.kv[0][[1, 2]])
    other.close()


def test_corrupt_bytes_are_a_failed_load_and_leave_the_store(
    node: NodeStore, first: Joined, second: Joined, keys: RequestKeys
) -> None:
    first.store(keys, [[1, 2], [3, 4]])
    wait_until(lambda: second.has_stored(keys, 2), "both chunks are stored")
    lookup = second.ask(keys, 2)
    node.flip_bits()
    second.load(lookup, [[9, 8], [7, 6]])
    second.lookups.drop(lookup)
    report = second.worker.take_report()
    assert report is not None
    assert report.failed == {"request"}
    assert second.worker.take_invalid_blocks() == {9, 8, 7, 6}
    wait_until(lambda: not second.has_stored(keys, 1), "the node store has dropped the chunk")
    node.flip_bits()


def test_waiting_stores_lose_blocks_that_are_overwritten(first: Joined, keys: RequestKeys) -> None:
    chains = keys.leading(4)
    with first.writer._changed:  # Nothing is taken from the queue while its lock is held.
        first.writer.store([ChunkStore(chain, (10 + i, 20 + i), keys.tenant) for i, chain in enumerate(chains)], None)
        first.writer.fence({21, 23})
    wait_until(lambda: first.has_stored(keys, 1), "the chunks that were left are stored")
    assert not first.has_stored(keys, 2)


def test_leases_end_when_they_are_dropped(node: NodeStore, first: Joined, keys: RequestKeys) -> None:
    first.store(keys, [[1, 2]])
    wait_until(lambda: first.has_stored(keys, 1), "the chunk is stored")
    lookups = [first.ask(keys, 1) for _ in range(5)]
    wait_until(lambda: node.stats()["store"]["leases"] == 5, "no other lease is left")
    for lookup in lookups:
        first.lookups.drop(lookup)
    wait_until(lambda: node.stats()["store"]["leases"] == 0, "all leases are released")


def test_a_dead_node_store_answers_nothing_and_opens_the_breaker(
    node: NodeStore, first: Joined, second: Joined, keys: RequestKeys
) -> None:
    first.store(keys, [[1, 2]])
    wait_until(lambda: second.has_stored(keys, 1), "the chunk is stored")
    lookup = second.ask(keys, 1)
    node.kill()
    while second.breaker.allows():
        assert not second.has_stored(keys, 1)
    assert lookup.is_lost
    second.load(lookup, [[9, 8]])
    assert torch.equal(second.kv[0][[9, 8]], first.kv[0][[1, 2]])
    second.lookups.drop(lookup)
    node.start(**SETTINGS)
    wait_until(lambda: second.has_stored(keys, 1), "the node store is found again")
    lookup = second.ask(keys, 1)
    second.load(lookup, [[5, 6]])
    assert torch.equal(second.kv[0][[5, 6]], first.kv[0][[1, 2]])
    second.lookups.drop(lookup)
