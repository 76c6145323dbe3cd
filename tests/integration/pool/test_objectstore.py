"""S3 as a tier, before a real server: away and back, shared by several nodes, a budget, and no secrets told."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from tests.integration.pool import s3_servers
from tests.integration.pool.objects import Memory, fetch, look, store, things
from tests.ports import free_port

from tierline.errors import ConfigurationError
from tierline.pool.cold import ColdTier
from tierline.pool.engines import EngineOptions, tier_from_url
from tierline.store import ObjectKey

pytestmark = s3_servers.needs_s3
KIB, MIB = 1024, 1024 * 1024


@pytest.fixture(autouse=True)
def _credentials() -> Iterator[None]:
    with s3_servers.credentials():
        yield


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_servers.credentials(), s3_servers.one(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture
def memory() -> Memory:
    return Memory()


@asynccontextmanager
async def opened(endpoint: str, prefix: str, options: str = "uses=1") -> AsyncIterator[ColdTier]:
    tier = tier_from_url(s3_servers.url(endpoint, prefix, options), EngineOptions())
    assert isinstance(tier, ColdTier)
    await tier.start()
    try:
        yield tier
    finally:
        await tier.stop()


def names(endpoint: str, prefix: str) -> list[str]:
    listed: dict[str, Any] = s3_servers.client(endpoint).list_objects_v2(Bucket=s3_servers.BUCKET, Prefix=f"{prefix}/")
    return [each["Key"] for each in listed.get("Contents", ())]


async def test_a_node_that_starts_anew_has_what_was_written_and_leaves_strangers_alone(
    endpoint: str, memory: Memory
) -> None:
    client = s3_servers.client(endpoint)
    for name in ("again/readme", "again/fff/x", "again/zzz/b/n", "again/1000/b/n", "again/001/=2/n"):
        client.put_object(Bucket=s3_servers.BUCKET, Key=name, Body=bytes(1000))
    stored = things(3, 70 * KIB)
    stored[0].key = ObjectKey("bücket/..", "a=b.c")
    async with opened(endpoint, "again") as tier:
        assert await store(tier, memory, stored) == [True] * 3
    assert len(names(endpoint, "again")) == 8
    async with opened(endpoint, "again") as tier:
        offered = await tier.warmest(1 << 30)
        assert {each.key for each in offered} == {thing.key for thing in stored}
        assert {each.slot for each in offered} == {7}
        assert await fetch(tier, memory, stored, await look(tier, stored)) == [thing.content for thing in stored]


async def test_nodes_that_share_a_prefix_learn_what_others_wrote_and_removed(endpoint: str, memory: Memory) -> None:
    stored = things(2, 70 * KIB)
    async with opened(endpoint, "shared") as writer, opened(endpoint, "shared", "list-every=0.1") as reader:
        await reader.warmest(0)
        await store(writer, memory, stored)
        await _until(reader, stored, 2)
        found = await look(reader, stored)
        await writer.delete([stored[0].key])
        assert await fetch(reader, memory, stored, found) == [None, stored[1].content]
        await writer.delete([stored[1].key])
        await _until(reader, stored[1:], 0)


async def test_the_prefix_stays_within_its_budget_also_where_it_was_larger(endpoint: str, memory: Memory) -> None:
    async with opened(endpoint, "budget") as tier:
        await store(tier, memory, things(8, 300 * KIB))
    async with opened(endpoint, "budget", "uses=1&budget=1MiB") as tier:
        await tier.warmest(0)
        assert len(names(endpoint, "budget")) == 3
        await store(tier, memory, things(2, 300 * KIB, seed=1))
        assert len(names(endpoint, "budget")) == 3
        assert len(await look(tier, things(2, 300 * KIB, seed=1))) == 2


async def test_an_object_that_was_overwritten_by_a_stranger_is_missing_and_removed(
    endpoint: str, memory: Memory
) -> None:
    stored = things(3, 70 * KIB)
    async with opened(endpoint, "foreign") as tier:
        await store(tier, memory, stored)
        found = await look(tier, stored)
        client = s3_servers.client(endpoint)
        first, second, _ = sorted(names(endpoint, "foreign"))
        client.put_object(Bucket=s3_servers.BUCKET, Key=first, Body=bytes(48 + 70 * KIB))
        client.put_object(Bucket=s3_servers.BUCKET, Key=second, Body=b"short")
        assert await fetch(tier, memory, stored, found) == [None, None, stored[2].content]
        assert len(names(endpoint, "foreign")) == 1


async def test_a_server_that_is_away_is_a_miss_and_its_objects_are_there_when_it_is_back(
    tmp_path: Path, memory: Memory
) -> None:
    port = free_port()
    stored = things(2, 70 * KIB)
    with structlog.testing.capture_logs() as events:
        async with opened(f"http://127.0.0.1:{port}", "away", "uses=1&timeout=5") as tier:
            assert await look(tier, stored) == []
            for _ in range(3):
                assert await store(tier, memory, stored) == [False, False]
            failed = tier.failures.counts["fault"]
            assert failed >= 3
            assert await store(tier, memory, stored) == [False, False]  # nobody was asked
            with s3_servers.server(tmp_path, port):
                s3_servers.client(f"http://127.0.0.1:{port}").create_bucket(Bucket=s3_servers.BUCKET)
                for _ in range(600):
                    if all(await store(tier, memory, stored)):
                        break
                    await asyncio.sleep(0.1)
                found = await look(tier, stored)
                assert await fetch(tier, memory, stored, found) == [thing.content for thing in stored]
            assert await fetch(tier, memory, stored, found) == [None, None]
    assert "secret-of-a-test" not in str(events)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("s3:///prefix", "s3://BUCKET/PREFIX"),
        ("s3://key:secret@bucket", "credentials come from the environment"),
        ("s3://bucket?endpoint=minio:9000", "endpoint=http://HOST:PORT"),
        ("s3://bucket?budget=1GB", "budget=a size such as"),
    ],
)
def test_what_a_url_may_not_say_is_named(url: str, allowed: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        tier_from_url(url, EngineOptions())
    assert allowed in str(refused.value)
    assert "secret" not in str(refused.value).replace("credentials", "")


async def _until(tier: ColdTier, stored: list[Any], count: int) -> None:
    for _ in range(1200):
        if len(await look(tier, stored)) == count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"never were {count} there")
