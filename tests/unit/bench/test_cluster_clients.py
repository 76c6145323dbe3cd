"""Clients of the benchmark of pools: what a pool has not heard of yet is waited for, and is no failure."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tierline.bench import cluster_clients
from tierline.errors import TierlineError
from tierline.wire.messages import Extent, Leased, LeasedObject

NAMES = ["one", "two"]


class SimulatedNode:
    """Gives a lease on as many of the leading objects as it is told to, one number a question."""

    def __init__(self, has: Sequence[int]) -> None:
        self._has = iter(has)
        self.given: list[str] = []
        self.taken_back: list[str] = []
        self.mapping = SimpleNamespace(prefault=lambda: None)

    def prefix_lease(self, *_: Any, **__: Any) -> Leased:
        count = next(self._has)
        if count:
            self.given.append(f"lease {len(self.given)}")
        objects = [LeasedObject(8, 0, [Extent(0, 8)])] * count
        return Leased(1, self.given[-1] if count else "", objects, 60.0)

    def let_go(self, lease: str) -> None:
        self.taken_back.append(lease)


def test_objects_that_the_pool_has_not_heard_of_yet_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    node = SimulatedNode([0, 1, 2])
    monkeypatch.setattr(cluster_clients, "NodeClient", lambda *_, **__: node)

    cluster_clients._NodeClient("socket", 0).lease(NAMES, memoryview(b""), "")

    assert node.given == node.taken_back == ["lease 0", "lease 1"]


def test_objects_that_never_come_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_clients, "NodeClient", lambda *_, **__: SimulatedNode([1]))
    monkeypatch.setattr(cluster_clients, "_WAIT_S", -1.0)

    with pytest.raises(TierlineError, match="leased 1 of 2 objects"):
        cluster_clients._NodeClient("socket", 0).lease(NAMES, memoryview(b""), "")
