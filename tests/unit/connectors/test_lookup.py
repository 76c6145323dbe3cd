"""The lookup thread believes no answer that does not fit its question."""

import pytest

pytest.importorskip("vllm")

import logging
import time
from types import SimpleNamespace

from tierline.connectors.breaker import Breaker, Warnings
from tierline.connectors.vllm.introduction import Introduction
from tierline.connectors.vllm.lookup import Lookup, LookupThread
from tierline.connectors.vllm.metrics import Counters
from tierline.prefix import Shard
from tierline.wire.messages import Extent, Leased, LeasedObject


@pytest.mark.parametrize(("objects", "believed"), [(0, 0), (2, 1), (3, 0), (6, 0)])
def test_an_answer_with_too_many_or_half_chunks_is_a_miss(objects: int, believed: int) -> None:
    item = LeasedObject(8, 0, [Extent(0, 8)])
    client = SimpleNamespace(
        epoch=1,
        is_connected=True,
        introduce=lambda _: None,
        prefix_lease=lambda *_, **__: Leased(1, "lease", [item] * objects, 30.0),
        close=lambda: None,
    )
    assert len(answer_of(client).objects) == believed


def test_an_engine_that_cannot_be_introduced_has_its_lookups_answered() -> None:
    client = SimpleNamespace(
        epoch=1,
        is_connected=True,
        introduce=lambda _: "\ud800".encode(),  # the name of an adapter may be anything
        prefix_lease=lambda *_, **__: Leased(1, "lease", [LeasedObject(8, 0, [Extent(0, 8)])] * 2, 30.0),
        close=lambda: None,
    )
    assert len(answer_of(client).objects) == 1


def answer_of(client: SimpleNamespace) -> Lookup:
    """Ask for two chunks of two shards each; the node store is ``client``."""
    shards = [Shard(kv_dtype="float32", layout="test-1", tensor_rank=rank, tensor_size=2) for rank in range(2)]
    lookups = LookupThread(
        lambda: client,  # type: ignore[arg-type, return-value]
        shards,
        "b",
        30.0,
        1.0,
        Introduction("b", ["m"], "f", shards),
        Breaker(time.monotonic),
        Warnings(logging.getLogger("test"), time.monotonic),
        Counters(),
    )
    keys = SimpleNamespace(tenant="", leading=lambda chunks: [bytes(32)] * chunks)
    lookup = lookups.start(keys, 2)  # type: ignore[arg-type]
    assert lookup is not None
    deadline = time.monotonic() + 5
    while not lookup.is_answered:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    lookups.close()
    return lookup
