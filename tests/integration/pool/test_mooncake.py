"""Mooncake as a tier, before a real master and lender: not there yet, gone, full, and values of strangers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.integration.pool import mooncake_servers
from tests.integration.pool.objects import Memory, fetch, look, store, things
from tests.ports import free_ports

from tierline.errors import ConfigurationError
from tierline.pool.engines import Engine, EngineOptions, tier_from_url

pytestmark = mooncake_servers.needs_mooncake
KIB, MIB = 1024, 1024 * 1024


@asynccontextmanager
async def opened(port: int, memory: Memory) -> AsyncIterator[Engine]:
    tier = tier_from_url(f"mooncake://127.0.0.1:{port}", EngineOptions(segments=[memory.buffer]))
    await tier.start()
    try:
        yield tier
    finally:
        await tier.stop()


async def test_a_pool_that_is_not_there_yet_is_joined_when_it_is_and_missed_when_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierline.pool.mooncake._SET_UP_AGAIN_S", 0.2)
    memory = Memory()
    port, metrics = free_ports(2)
    stored = things(3, 200 * KIB)
    async with opened(port, memory) as tier:
        assert await look(tier, stored) == []
        assert await store(tier, memory, stored) == [False] * 3
        with mooncake_servers.master(tmp_path, port, metrics), mooncake_servers.lender(tmp_path, port):
            for _ in range(600):
                if all(await store(tier, memory, stored)):
                    break
                await asyncio.sleep(0.1)
            found = await look(tier, stored)
            assert await fetch(tier, memory, stored, found) == [thing.content for thing in stored]
        assert await look(tier, stored) == []
        assert tier.failures.counts["unreachable"] > 0


async def test_what_does_not_fit_is_not_stored_and_what_was_evicted_is_missing(tmp_path: Path) -> None:
    memory = Memory()
    with mooncake_servers.one(tmp_path, lent=32 * MIB) as port:
        async with opened(port, memory) as tier:
            assert await store(tier, memory, things(1, 48 * MIB)) == [False]
            assert tier.failures.counts.total() > 0


async def test_values_of_strangers_under_our_keys_are_missing_and_removed(tmp_path: Path) -> None:
    from mooncake.store import MooncakeDistributedStore

    memory = Memory()
    stranger = MooncakeDistributedStore()
    with mooncake_servers.one(tmp_path) as port:
        assert stranger.setup("127.0.0.1", "P2PHANDSHAKE", 0, 16 * MIB, "tcp", "", f"127.0.0.1:{port}") == 0
        (thing,) = things(1, 200 * KIB)
        stranger.put(f"tierline:{thing.key.bucket}/{thing.key.name}", bytes(100_000))
        async with opened(port, memory) as tier:
            found = await look(tier, [thing])
            assert [each.size for each in found] == [100_000 - 48]
            assert await fetch(tier, memory, [thing], found) == [None]
            assert tier.failures.counts["foreign"] == 1
            assert await look(tier, [thing]) == []
            assert await store(tier, memory, [thing]) == [True]
            assert await fetch(tier, memory, [thing], await look(tier, [thing])) == [thing.content]
        stranger.close()


def test_a_node_that_listens_everywhere_says_where_others_reach_it() -> None:
    options = EngineOptions(host="0.0.0.0")
    with pytest.raises(ConfigurationError, match="host=ADDRESS"):
        tier_from_url("mooncake://a", options)
    assert tier_from_url("mooncake://a?host=10.0.0.1", options).name == "mooncake"


async def test_bytes_go_from_and_to_pages_in_several_pieces_many_objects_a_call(tmp_path: Path) -> None:
    memory = Memory(64 * MIB)
    with mooncake_servers.one(tmp_path) as port:
        async with opened(port, memory) as tier:
            stored = things(40, 300 * KIB)
            assert all(await store(tier, memory, stored, pieces=3))
            assert await fetch(tier, memory, stored, await look(tier, stored), pieces=4) == [
                thing.content for thing in stored
            ]


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("mooncake://a,b", "of one master"),
        ("mooncake://a/path", "without a path"),
        ("mooncake://a?lend=1GB", "lend=a size such as"),
        ("mooncake://a?protocol=a/b", "protocol=letters"),
    ],
)
def test_what_a_url_may_not_say_is_named(url: str, allowed: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        tier_from_url(url, EngineOptions())
    assert allowed in str(refused.value)
