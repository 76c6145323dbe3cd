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
from tierline.prefix import Shard
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

    def grant(self, size: int, count: int) -> list[Slot]:
        self.is_asked.set()
        assert self.may_grant.wait(WITHIN_S)
        self.grants += 1
        length = self.slot_bytes or size
        return [Slot(self.grants, length, [Extent(0, length)])]

    def commit(self, bucket: str, entries: Sequence[CommitEntry]) -> list[Refusal | None]:
        self.committed += entries
        return [self.outcomes.pop(0) if self.outcomes else None for _ in entries]

    def abort(self, slots: Sequence[int]) -> int:
        return len(slots)

    def close(self) -> None:
        pass


@pytest.fixture
def setup() -> Iterator[SimpleNamespace]:
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
    )
    yield SimpleNamespace(node=node, writer=writer)
    node.may_grant.set()
    writer.close()


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
