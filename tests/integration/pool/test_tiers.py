"""What every tier does, whatever its engine is: real servers, real files."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, aclosing

import pytest
from tests.integration.pool import mooncake_servers, redis_servers, s3_servers
from tests.integration.pool.objects import Memory, Thing, fetch, look, store, things

from tierline.pool.engines import Engine, EngineOptions, tier_from_url
from tierline.pool.tier import Kept, Wanted
from tierline.store import ObjectKey

KIB, MIB = 1024, 1024 * 1024


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    redis_servers.be_patient(monkeypatch)


@pytest.fixture
def memory() -> Memory:
    return Memory()


ENGINES = [
    pytest.param("redis", marks=redis_servers.needs_redis),
    pytest.param("redis+cluster", marks=redis_servers.needs_redis),
    "file",
    pytest.param("mooncake", marks=mooncake_servers.needs_mooncake),
    pytest.param("s3", marks=s3_servers.needs_s3),
]
_numbers = itertools.count()


@pytest.fixture(scope="module", params=ENGINES)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Return what gives the URL of an empty tier; its servers serve all tests."""
    folder = tmp_path_factory.mktemp("tier")
    with ExitStack() as stack:
        match request.param:
            case "redis":
                base = f"redis://127.0.0.1:{stack.enter_context(redis_servers.one(folder))}"
            case "redis+cluster":
                ports = stack.enter_context(redis_servers.cluster(folder))
                base = f"redis+cluster://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}"
            case "mooncake":
                base = f"mooncake://127.0.0.1:{stack.enter_context(mooncake_servers.one(folder))}"
            case "file":
                base = f"file://{folder}"
            case _:
                stack.enter_context(s3_servers.credentials())
                base = stack.enter_context(s3_servers.one(folder))
        match request.param:
            case "file":
                yield lambda: f"{base}/{next(_numbers)}?uses=1&budget=1GiB"
            case "s3":
                yield lambda: s3_servers.url(base, f"test{next(_numbers)}", "uses=1")
            case "mooncake":
                yield lambda: f"{base}?prefix=test{next(_numbers)}"
            case _:
                yield lambda: f"{base}?part=1MiB&prefix=test{next(_numbers)}"


@pytest.fixture
async def tier(url: Callable[[], str], memory: Memory) -> AsyncIterator[Engine]:
    tier = tier_from_url(url(), EngineOptions(segments=[memory.buffer]))
    await tier.start()
    yield tier
    await tier.stop()


async def test_what_is_stored_comes_back_into_other_pages(tier: Engine, memory: Memory) -> None:
    stored = [*things(3, 300 * KIB + 7), *things(2, 1, seed=1), *things(1, 3 * MIB + 5, seed=2)]
    assert await store(tier, memory, stored, pieces=3) == [True] * 6
    found = await look(tier, stored)
    assert [each.size for each in found] == [len(thing.content) for thing in stored]
    assert await fetch(tier, memory, stored, found, pieces=2) == [thing.content for thing in stored]
    assert not tier.failures.counts


async def test_the_leading_run_is_found_in_whole_groups(tier: Engine, memory: Memory) -> None:
    wanted = things(6, KIB)
    await store(tier, memory, [*wanted[:3], *wanted[4:]])
    assert len(await look(tier, wanted)) == 3
    assert len(await look(tier, wanted, group_size=2)) == 2
    assert await look(tier, things(2, KIB, seed=9)) == []


async def test_what_is_removed_is_missing_and_may_be_removed_again(tier: Engine, memory: Memory) -> None:
    stored = things(2, 2 * MIB)
    await store(tier, memory, stored)
    for _ in range(2):
        await tier.delete([stored[0].key])
    assert await look(tier, stored) == []
    assert len(await look(tier, stored[1:])) == 1


async def test_what_was_found_and_is_gone_when_it_is_fetched_does_not_come(tier: Engine, memory: Memory) -> None:
    stored = things(3, 2 * MIB)
    await store(tier, memory, stored)
    found = await look(tier, stored)
    await tier.delete([stored[1].key])
    came = await fetch(tier, memory, stored, found)
    assert came == [stored[0].content, None, stored[2].content]


async def test_the_same_name_in_another_bucket_is_another_object(tier: Engine, memory: Memory) -> None:
    (here,) = things(1, KIB)
    (there,) = things(1, KIB, seed=1)
    there.key = ObjectKey("other bucket", here.key.name)
    await store(tier, memory, [here, there])
    assert await fetch(tier, memory, [here, there], await look(tier, [here, there])) == [here.content, there.content]


async def test_names_of_any_characters_are_kept_apart(tier: Engine, memory: Memory) -> None:
    names = ["a/b", "a%2Fb", "a b", "ä@€", "a{b}c", "..", "x" * 700]
    stored = [Thing(ObjectKey("b", name), name.encode() * 9) for name in names]
    assert all(await store(tier, memory, stored))
    assert await fetch(tier, memory, stored, await look(tier, stored)) == [thing.content for thing in stored]


async def test_many_callers_at_once_each_get_their_own(tier: Engine, memory: Memory) -> None:
    groups = [things(4, 200 * KIB, seed=seed) for seed in range(6)]

    async def one(group: list[Thing]) -> bool:
        await store(tier, memory, group)
        return await fetch(tier, memory, group, await look(tier, group)) == [thing.content for thing in group]

    assert all(await asyncio.gather(*(one(group) for group in groups)))


async def test_an_object_is_stored_again_without_harm(tier: Engine, memory: Memory) -> None:
    stored = things(2, 2 * MIB)
    for _ in range(2):
        assert await store(tier, memory, stored) == [True, True]
    assert await fetch(tier, memory, stored, await look(tier, stored)) == [thing.content for thing in stored]


async def test_nothing_is_written_into_pages_after_a_fetch_was_closed(tier: Engine, memory: Memory) -> None:
    stored = things(6, 4 * MIB)
    await store(tier, memory, stored)
    found = await look(tier, stored)
    wanted = [Wanted(thing.key, place, memory.pages(place.size)) for thing, place in zip(stored, found, strict=True)]
    async with aclosing(tier.fetch_into(wanted)) as arrivals:
        first = await anext(arrivals)
    assert first.checksum is not None
    for each in wanted:
        each.views[0][:] = bytes(each.found.size)
    await asyncio.sleep(0.1)
    assert all(bytes(each.views[0]) == bytes(each.found.size) for each in wanted)
    assert await fetch(tier, Memory(), stored, found) == [thing.content for thing in stored]


async def test_a_store_that_is_cancelled_has_let_go_of_the_pages(tier: Engine, memory: Memory) -> None:
    stored = things(4, 4 * MIB)
    storing = asyncio.create_task(store(tier, memory, stored))
    await asyncio.sleep(0.01)
    storing.cancel()
    with contextlib.suppress(asyncio.CancelledError):  # a quick tier is done by then
        await storing
    memory.buffer[:] = bytes(len(memory.buffer))  # whoever read on would store this
    await asyncio.sleep(0.1)
    for thing in stored:
        found = await look(tier, [thing])
        if found:
            assert await fetch(tier, Memory(), [thing], found) in ([thing.content], [None])


async def test_fetching_takes_as_long_as_it_did_before(tier: Engine, memory: Memory) -> None:
    stored = things(4, MIB)
    await store(tier, memory, stored)
    found = await look(tier, stored)
    assert tier.seconds(found) is None
    await fetch(tier, memory, stored, found)
    seconds = tier.seconds(found)
    assert seconds is not None
    assert seconds > 0


async def test_an_answer_that_is_not_there_in_time_is_none(tier: Engine, memory: Memory) -> None:
    stored = things(2, KIB)
    await store(tier, memory, stored)
    assert len(await look(tier, stored, within_s=0.0)) in (0, 2)


async def test_bytes_that_are_not_what_their_writer_said_do_not_come(tier: Engine, memory: Memory) -> None:
    (thing,) = things(1, MIB)
    kept = thing.kept(memory)
    await tier.store_from([Kept(kept.key, kept.slot, kept.size, kept.checksum ^ 1, kept.views)])
    found = await look(tier, [thing])
    assert await fetch(tier, memory, [thing] * len(found), found) == [None] * len(found)
    assert await look(tier, [thing]) == []
