"""The writer never holds the engine up, and keeps every slot that is its own."""

import pytest

pytest.importorskip("vllm")

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import torch

from tierline.breaker import Breaker, Warnings
from tierline.client import SegmentMapping
from tierline.connectors.vllm.copy import HostCopier
from tierline.connectors.vllm.metrics import Counters
from tierline.connectors.vllm.plan import ChunkStore
from tierline.connectors.vllm.writer import NodeWriter
from tierline.errors import NodeUnavailable
from tierline.prefix import Shard
from tierline.tracing.context import SAMPLED, Origin, TraceContext
from tierline.tracing.tracer import Tracer
from tierline.wire.messages import CommitEntry, Extent, Refusal, Slot

SEGMENT_BYTES = 1024 * 1024
WITHIN_S = 60.0


class Node:
    """Stands in for a client of a node store that grants one slot at a time."""

    def __init__(self) -> None:
        descriptor = os.memfd_create("segment")
        os.truncate(descriptor, SEGMENT_BYTES)
        self.mapping = SegmentMapping(descriptor, SEGMENT_BYTES, writable=True)
        os.close(descriptor)
        self.segment_bytes = SEGMENT_BYTES
        self.epoch = 1
        self.may_grant = threading.Event()
        self.is_asked = threading.Event()
        self.slot_bytes: int | None = None
        self.grants = 0
        self.outcomes: list[Refusal | None] = []
        self.committed: list[CommitEntry] = []
        self.commits: list[int] = []
        self.may_commit = threading.Event()
        self.may_commit.set()
        self.is_committing = threading.Event()
        self.is_gone = False

    def grant(self, size: int, count: int) -> list[Slot]:
        self.is_asked.set()
        assert self.may_grant.wait(WITHIN_S)
        self.grants += 1
        length = self.slot_bytes or size
        return [Slot(self.grants, length, [Extent(0, length)])]

    def commit(self, bucket: str, entries: Sequence[CommitEntry]) -> list[Refusal | None]:
        self.is_committing.set()
        assert self.may_commit.wait(WITHIN_S)
        if self.is_gone:
            raise NodeUnavailable("the node store is gone")
        self.commits.append(len(entries))
        self.committed += entries
        return [self.outcomes.pop(0) if self.outcomes else None for _ in entries]

    def abort(self, slots: Sequence[int]) -> int:
        return len(slots)

    def close(self) -> None:
        pass


@pytest.fixture(params=[None], ids=["not-traced"])
def setup(request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    node = Node()
    copier = HostCopier([torch.arange(64, dtype=torch.int64).reshape(4, 16)], 2)
    counters = Counters()
    writer = NodeWriter(
        lambda: node,  # type: ignore[arg-type, return-value]
        copier,
        Shard(kv_dtype="float32", layout="test-1"),
        "b",
        None,
        Breaker(time.monotonic),
        Warnings(logging.getLogger("test"), time.monotonic),
        counters,
        request.param,
    )
    yield SimpleNamespace(node=node, writer=writer)
    node.may_grant.set()
    node.may_commit.set()
    writer.close()


in_traces = pytest.mark.parametrize("setup", [Tracer([])], indirect=True, ids=["traced"])
"""The writer has a tracer."""


def chunk(number: int, *, sampled: bool) -> ChunkStore:
    """Return a chunk of a request of its own."""
    place = TraceContext(number, number, SAMPLED if sampled else 0)
    return ChunkStore(bytes([number]) * 32, (number % 2 * 2, number % 2 * 2 + 1), origin=Origin(f"r{number}", place))


def fence_within(writer: NodeWriter, block_ids: set[int], seconds: float) -> bool:
    """Return whether a step of the engine gets its blocks in time."""
    fencing = threading.Thread(target=writer.fence, args=(block_ids,), daemon=True)
    fencing.start()
    fencing.join(seconds)
    return not fencing.is_alive()


def wait_for_commits(node: Node, count: int) -> None:
    deadline = time.monotonic() + WITHIN_S
    while len(node.committed) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_blocks_are_free_at_once_while_the_node_store_is_slow_to_grant(setup: SimpleNamespace) -> None:
    setup.writer.store([ChunkStore(b"a" * 32, (0, 1))], None)
    assert setup.node.is_asked.wait(WITHIN_S)
    started = time.monotonic()
    setup.writer.fence({0, 1})
    assert time.monotonic() - started < WITHIN_S / 2, "it waited for the grant"
    setup.node.may_grant.set()
    setup.writer.store([ChunkStore(b"b" * 32, (2, 3))], None)
    wait_for_commits(setup.node, 1)
    assert [entry.name[:64] for entry in setup.node.committed] == [(b"b" * 32).hex()]


@pytest.mark.parametrize("refusal", [Refusal.NO_SPACE, Refusal.EXISTS, Refusal.TOO_LARGE])
def test_a_slot_whose_commit_was_refused_is_used_again(setup: SimpleNamespace, refusal: Refusal) -> None:
    setup.node.outcomes = [refusal]
    setup.node.may_grant.set()
    setup.writer.store([ChunkStore(b"a" * 32, (0, 1))], None)
    wait_for_commits(setup.node, 1)
    setup.writer.store([ChunkStore(b"b" * 32, (2, 3))], None)
    wait_for_commits(setup.node, 2)
    assert setup.node.committed[0].slot == setup.node.committed[1].slot


def test_a_slot_of_a_wrong_size_does_not_end_the_writer(setup: SimpleNamespace) -> None:
    setup.node.slot_bytes = 8
    setup.node.may_grant.set()
    setup.writer.store([ChunkStore(b"a" * 32, (0, 1))], None)
    assert setup.node.is_asked.wait(WITHIN_S)
    deadline = time.monotonic() + WITHIN_S
    while setup.node.grants < 1:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    setup.node.slot_bytes = None
    setup.writer.store([ChunkStore(b"b" * 32, (2, 3))], None)
    wait_for_commits(setup.node, 1)


@in_traces
@pytest.mark.parametrize("is_gone", [False, True], ids=["commits", "is-gone"])
def test_blocks_are_free_while_the_node_store_is_slow_to_commit_another_requests(
    setup: SimpleNamespace, *, is_gone: bool
) -> None:
    setup.node.may_grant.set()
    setup.node.may_commit.clear()
    setup.writer.store([chunk(1, sampled=True), chunk(2, sampled=True)], None)
    assert setup.node.is_committing.wait(WITHIN_S)
    assert fence_within(setup.writer, {0, 1, 2, 3}, WITHIN_S / 2), "it waited for the commit"
    setup.node.is_gone = is_gone
    setup.node.may_commit.set()
    assert fence_within(setup.writer, {0, 1, 2, 3}, WITHIN_S / 2)


@in_traces
@pytest.mark.parametrize(
    ("sampled", "commits"),
    [
        ([False, False, False], [3]),
        ([True, True, True], [1, 1, 1]),
        ([False, False, True, False], [2, 1, 1]),
    ],
)
def test_a_commit_is_of_one_request_only_where_that_is_traced(
    setup: SimpleNamespace, sampled: list[bool], commits: list[int]
) -> None:
    setup.writer.store([chunk(number, sampled=each) for number, each in enumerate(sampled, start=1)], None)
    setup.node.may_grant.set()
    wait_for_commits(setup.node, len(sampled))
    assert setup.node.commits == commits
