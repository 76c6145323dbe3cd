"""A folder as a tier: torn files, a full disk, a restart, the filter, the budget, and warming a node from it."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.integration.pool.objects import Memory, Thing, fetch, look, store, things

from tierline.errors import ConfigurationError
from tierline.pool.cold import ColdTier
from tierline.pool.engines import EngineOptions, tier_from_url
from tierline.pool.local import Offered
from tierline.pool.warming import warm

KIB, MIB = 1024, 1024 * 1024


@pytest.fixture
def memory() -> Memory:
    return Memory()


@asynccontextmanager
async def opened(folder: Path, options: str = "uses=1&budget=1GiB") -> AsyncIterator[ColdTier]:
    tier = tier_from_url(f"file://{folder}?{options}", EngineOptions())
    assert isinstance(tier, ColdTier)
    await tier.start()
    await tier.warmest(0)  # all is listed
    try:
        yield tier
    finally:
        await tier.stop()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


async def test_objects_are_written_on_their_second_use(tmp_path: Path, memory: Memory) -> None:
    async with opened(tmp_path, "budget=1GiB") as tier:
        stored = things(3, 100 * KIB)
        assert await store(tier, memory, stored) == [False] * 3
        assert files(tmp_path) == []
        assert await store(tier, memory, stored[:1]) == [True]
        assert await look(tier, stored) != []


async def test_the_folder_stays_within_its_budget(tmp_path: Path, memory: Memory) -> None:
    async with opened(tmp_path, "uses=1&budget=1MiB") as tier:
        for seed in range(10):
            await store(tier, memory, things(2, 100 * KIB, seed=seed))
            assert sum(path.stat().st_size for path in files(tmp_path)) <= 1.01 * MIB
        latest = things(2, 100 * KIB, seed=9)
        assert len(await look(tier, latest)) == 2


async def test_what_was_written_is_there_after_a_restart_and_torn_files_are_not(tmp_path: Path, memory: Memory) -> None:
    stored = things(6, 100 * KIB)
    async with opened(tmp_path) as tier:
        await store(tier, memory, stored)
    torn = files(tmp_path)[:4]
    os.truncate(torn[0], 50_000)
    os.truncate(torn[1], 10)
    torn[2].write_bytes(bytes(100_000))
    torn[3].write_bytes(torn[3].read_bytes()[:-1] + b"\0")  # whole, by its length
    (torn[0].parent / "stray").write_bytes(b"somebody else's")
    async with opened(tmp_path) as tier:
        there = [thing for thing in stored if await look(tier, [thing])]
        assert len(there) == 3
        found = [(await look(tier, [thing]))[0] for thing in there]
        came = await fetch(tier, memory, there, found)
        assert sum(content is None for content in came) == 1
        assert all(content in (None, thing.content) for content, thing in zip(came, there, strict=True))
        assert tier.failures.counts["gone"] == 1
    assert len(files(tmp_path)) == 2


async def test_what_is_no_file_or_cannot_be_read_costs_itself_alone(
    tmp_path: Path, memory: Memory, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = things(6, 10 * KIB)
    async with opened(tmp_path) as tier:
        await store(tier, memory, stored)
    for number, path in enumerate(files(tmp_path)[:2]):
        path.unlink()
        path.mkdir() if number else path.symlink_to(path)
    (tmp_path / "new" / "folder").mkdir()
    os.utime(tmp_path / "new" / "folder", (0, 0))
    async with opened(tmp_path) as tier:
        assert sum([bool(await look(tier, [thing])) for thing in stored]) == 4
        assert tier.failures.counts == {"passed over": 3}
    assert capsys.readouterr().out.count("passed over") == 1


async def test_a_file_that_stands_for_another_key_is_missing(tmp_path: Path, memory: Memory) -> None:
    stored = things(2, 10 * KIB)
    async with opened(tmp_path) as tier:
        await store(tier, memory, stored)
        found = await look(tier, stored)
        one, other = files(tmp_path)
        other.write_bytes(one.read_bytes())
        assert sorted(content is None for content in await fetch(tier, memory, stored, found)) == [False, True]


async def test_a_full_disk_is_not_written_to_for_a_while(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, views: Sequence[memoryview]) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    stored = things(2, 10 * KIB)
    async with opened(tmp_path) as tier:
        with monkeypatch.context() as patched:
            patched.setattr(os, "writev", refuse)
            assert await store(tier, memory, stored) == [False, False]
        assert tier.failures.counts["full"] == 2
        assert files(tmp_path) == []
        assert await store(tier, memory, stored) == [False, False]


async def test_unfinished_files_of_a_former_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    abandoned = tmp_path / "new" / "1-1"
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    async with opened(tmp_path):
        assert files(tmp_path) == []


async def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="can write to"):
        tier_from_url(f"file://{tmp_path}/file?budget=1GiB", EngineOptions())


async def test_a_node_that_starts_empty_is_warmed_best_first_and_no_faster_than_allowed(
    tmp_path: Path, memory: Memory
) -> None:
    stored = things(8, MIB)
    async with opened(tmp_path) as tier:
        await store(tier, memory, stored)
        await fetch(tier, memory, stored[5:7], await look(tier, stored[5:7]))
    for path in files(tmp_path):  # as if it were long ago
        os.utime(path, (0, 0))
    async with opened(tmp_path) as tier:
        await fetch(tier, memory, stored[2:3], await look(tier, stored[2:3]))
        await fetch(tier, memory, stored[2:4], await look(tier, stored[2:4]))
        here: list[Offered] = []

        async def hold(offered: Sequence[Offered]) -> Sequence[bool]:
            wanted = [next(thing for thing in stored if thing.key == each.key) for each in offered]
            came = await fetch(tier, memory, wanted, [each.found for each in offered])
            here.extend(offered)
            return [content == thing.content for content, thing in zip(came, wanted, strict=True)]

        began = asyncio.get_running_loop().time()
        assert await warm(tier, hold, 6 * MIB, 20 * MIB) == 6
        assert asyncio.get_running_loop().time() - began >= 0.29
        assert [each.key for each in here[:2]] == [stored[2].key, stored[3].key]
        assert all(each.slot == 7 for each in here)


async def test_what_somebody_removed_is_missing_and_then_forgotten(tmp_path: Path, memory: Memory) -> None:
    stored: list[Thing] = things(2, 10 * KIB)
    async with opened(tmp_path) as tier:
        await store(tier, memory, stored)
        found = await look(tier, stored)
        for path in files(tmp_path):
            path.unlink()
        assert await fetch(tier, memory, stored, found) == [None, None]
        assert await look(tier, stored) == []
        assert await store(tier, memory, stored) == [True, True]
