"""The lookup thread: which answers it believes, when it asks for what is below the node, and what it gives back."""

import pytest

pytest.importorskip("vllm")

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from tierline.breaker import Breaker, Warnings
from tierline.client import AsyncNodeClient
from tierline.connectors.vllm.introduction import Introduction
from tierline.connectors.vllm.lookup import Lookup, LookupThread
from tierline.connectors.vllm.metrics import Counters
from tierline.errors import NodeUnavailable
from tierline.loading import PrefillCost
from tierline.prefix import Shard
from tierline.wire.messages import Extent, Leased, LeasedObject

SHARDS = [Shard(kv_dtype="float32", layout="test-1", tensor_rank=rank, tensor_size=2) for rank in range(2)]
OBJECT = LeasedObject(8, 0, [Extent(0, 8)])
CHAIN = bytes(32)


class Node:
    """Stands in for the node store's end of a connection: ``leases`` answers, with how long it may wait."""

    def __init__(self, lease: Callable[[float], Awaitable[Leased]], *, has_tiers: bool = False) -> None:
        self.epoch, self.node, self.has_tiers, self.is_connected = 1, "node-1", has_tiers, True
        self.asked: list[dict[str, Any]] = []
        self.released: list[str] = []
        self._lease = lease

    async def prefix_lease(self, bucket: str, names: list[str], ttl_s: float, ranks: int, **options: Any) -> Leased:
        self.asked.append(options)
        return await self._lease(options["wait_s"])

    def let_go(self, lease: str) -> None:
        self.released.append(lease)

    async def introduce(self, said: object) -> None:
        pass

    async def close(self) -> None:
        pass


class Asking:
    """A lookup thread whose node store is ``node``."""

    def __init__(
        self,
        node: Any,
        wait_s: float = 0.0,
        connect: Callable[[], Awaitable[AsyncNodeClient]] | None = None,
        load_factor: float = 1.0,
    ) -> None:
        async def connect_to_it() -> AsyncNodeClient:
            return node  # type: ignore[no-any-return]

        self.breaker = Breaker(time.monotonic)
        self.thread = LookupThread(
            connect or connect_to_it,
            SHARDS,
            "b",
            30.0,
            1.0,
            wait_s,
            Introduction("b", ["m"], "f", SHARDS),
            self.breaker,
            Warnings(logging.getLogger("test"), time.monotonic),
            Counters(),
            load_factor=load_factor,
        )

    def start(self, chunks: int = 2, cost: PrefillCost | None = None) -> Lookup:
        keys = SimpleNamespace(tenant="", leading=lambda chunks: [CHAIN] * chunks)
        lookup = self.thread.start(keys, chunks, cost)  # type: ignore[arg-type]
        assert lookup is not None
        return lookup

    def answered(self, chunks: int = 2, cost: PrefillCost | None = None) -> Lookup:
        lookup = self.start(chunks, cost)
        wait_for(lambda: lookup.is_answered)
        return lookup


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def leases(*objects: int) -> Callable[[float], Awaitable[Leased]]:
    """Answer with so many objects, one answer after the other."""
    answers = [Leased(1, f"lease-{index}", [OBJECT] * count, 30.0) for index, count in enumerate(objects)]

    async def lease(_: float) -> Leased:
        return answers.pop(0)

    return lease


@pytest.mark.parametrize(("objects", "believed"), [(0, 0), (2, 1), (3, None), (6, None)])
def test_an_answer_with_too_many_or_half_chunks_is_a_miss(objects: int, believed: int | None) -> None:
    asking = Asking(Node(leases(objects)))
    answer = asking.answered().answer
    assert (None if answer is None else len(answer.objects)) == believed
    asking.thread.close()


def test_an_engine_that_cannot_be_introduced_has_its_lookups_answered() -> None:
    node = Node(leases(2))
    node.introduce = lambda _: "\ud800".encode()  # type: ignore[assignment, return-value]  # an adapter's name is anything
    asking = Asking(node)
    assert asking.answered().answer is not None
    asking.thread.close()


def test_what_is_missing_is_waited_for_where_there_are_tiers_below() -> None:
    node = Node(leases(2, 4), has_tiers=True)
    asking = Asking(node, wait_s=5.0)
    lookup = asking.answered()
    assert lookup.answer is not None
    assert len(lookup.answer.objects) == 2
    assert [asked["wait_s"] for asked in node.asked] == [0.0, 5.0]
    assert [asked["anchor"] for asked in node.asked] == [CHAIN.hex()] * 2
    asking.thread.drop(lookup)
    wait_for(lambda: node.released == ["lease-0", "lease-1"])
    asking.thread.close()


@pytest.mark.parametrize(("has_tiers", "wait_s", "held"), [(False, 5.0, 2), (True, 0.0, 2), (True, 5.0, 4)])
def test_nobody_asks_twice_who_has_nothing_to_gain(has_tiers: bool, wait_s: float, held: int) -> None:
    node = Node(leases(held), has_tiers=has_tiers)
    asking = Asking(node, wait_s=wait_s)
    asking.answered()
    assert len(node.asked) == 1
    asking.thread.close()


@pytest.mark.parametrize("load_factor", [1.0, 3.0])
def test_nobody_waits_for_longer_than_computing_what_is_missing_is_worth(load_factor: float) -> None:
    node = Node(leases(2, 2), has_tiers=True)
    asking = Asking(node, wait_s=5.0, load_factor=load_factor)
    lookup = asking.answered(chunks=3, cost=PrefillCost(0.5, 0.1))
    assert node.asked[1]["wait_s"] == lookup.wait_s == pytest.approx(load_factor * (0.6 + 0.7))
    asking.thread.close()


def test_what_was_in_memory_is_there_while_the_rest_is_waited_for_and_after_that_failed() -> None:
    goes_on = threading.Event()

    async def lease(wait_s: float) -> Leased:
        if not wait_s:
            return Leased(1, "lease", [OBJECT] * 2, 30.0)
        await asyncio.to_thread(goes_on.wait, 10)
        raise NodeUnavailable("it did not answer in time")

    node = Node(lease, has_tiers=True)
    asking = Asking(node, wait_s=5.0)
    lookup = asking.start()
    wait_for(lambda: lookup.wait_s > 0)
    assert lookup.answer is not None
    assert not lookup.is_answered
    goes_on.set()
    wait_for(lambda: lookup.is_answered)
    assert len(lookup.answer.objects) == 1
    asking.thread.drop(lookup)
    wait_for(lambda: node.released == ["lease"])
    asking.thread.close()


def test_questions_do_not_wait_for_each_other() -> None:
    first_waits = threading.Event()

    async def lease(wait_s: float) -> Leased:
        if wait_s and not first_waits.is_set():
            first_waits.set()
            await asyncio.sleep(60)
        return Leased(1, "lease", [], 30.0)

    asking = Asking(Node(lease, has_tiers=True), wait_s=60.0)
    asking.start()
    assert first_waits.wait(60)
    assert asking.answered().answer is not None
    asking.thread.close()


@pytest.mark.parametrize("is_asking", [False, True])
def test_a_dropped_question_gives_back_what_it_got(is_asking: bool) -> None:
    async def lease(wait_s: float) -> Leased:
        if wait_s:
            await asyncio.sleep(60)
        return Leased(1, "lease", [OBJECT] * 2, 30.0)

    node = Node(lease, has_tiers=is_asking)
    asking = Asking(node, wait_s=60.0)
    lookup = asking.start()
    wait_for(lambda: bool(lookup.wait_s) if is_asking else lookup.is_answered)
    asking.thread.drop(lookup)
    wait_for(lambda: node.released == ["lease"])
    asking.thread.close()


def test_a_question_that_is_dropped_before_it_was_asked_asks_nothing() -> None:
    node = Node(leases())
    asking = Asking(node)
    wait_for(lambda: asking.thread._client is not None)
    together = threading.Event()
    asking.thread._loop.call_soon_threadsafe(together.wait, 10)  # both are told while the loop is busy
    lookup = asking.start()
    asking.thread.drop(lookup)
    together.set()
    wait_for(lambda: lookup.is_answered)
    assert node.asked == []
    asking.thread.close()


def test_nobody_listens_after_the_end() -> None:
    asking = Asking(Node(leases(2)))
    lookup = asking.answered()
    asking.thread.close()
    asking.thread.drop(lookup)


def test_who_is_idle_finds_out_that_the_connection_has_ended() -> None:
    nodes = [Node(leases(2)), Node(leases(4))]

    async def connect() -> AsyncNodeClient:
        return nodes[sum(not node.is_connected for node in nodes)]  # type: ignore[return-value]

    asking = Asking(nodes[0], connect=connect)
    lookup = asking.answered()
    nodes[0].is_connected = False
    wait_for(lambda: lookup.is_lost)
    answer = asking.answered().answer
    assert answer is not None
    assert len(answer.objects) == 2
    asking.thread.close()
