"""The node's garbage: collected while it is young, and nothing leans on the collector later."""

import asyncio
import gc
from collections.abc import Callable, Iterator

import pytest

from tierline.node import garbage
from tierline.node.garbage import only_young_garbage


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110  (the collector's state)
            await asyncio.sleep(0.01)


async def test_what_stays_is_out_of_the_collectors_sight_until_the_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "INTERVAL_S", 0.01)
    thresholds = gc.get_threshold()
    async with only_young_garbage():
        kept = [[number] for number in range(1000)]
        frozen = gc.get_freeze_count()
        await until(lambda: gc.get_freeze_count() >= frozen + len(kept))
        assert not any(kept is known for known in gc.get_objects())
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == thresholds


async def test_young_cycles_are_freed_before_what_stays_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "INTERVAL_S", 0.01)

    class Node:
        instances = 0

        def __init__(self) -> None:
            Node.instances += 1
            self.itself = self

        def __del__(self) -> None:
            Node.instances -= 1

    async with only_young_garbage():
        for _ in range(100):
            Node()
        await until(lambda: Node.instances == 0)
