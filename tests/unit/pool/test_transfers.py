"""Batches in threads: what they tell, and that whoever ends one waits for its threads."""

import asyncio
import functools
import threading
from collections.abc import Callable
from contextlib import aclosing

import pytest

from tierline.pool.tier import Found
from tierline.pool.transfers import Batch, Transfers, leading


@pytest.fixture
def transfers() -> Transfers:
    return Transfers("test", 2)


def tell(number: int, batch: Batch[int]) -> None:
    batch.tell(number)


async def test_all_that_jobs_tell_is_heard(transfers: Transfers) -> None:
    async with aclosing(transfers.carry([functools.partial(tell, number) for number in range(50)])) as told:
        assert sorted([number async for number in told]) == list(range(50))
    await transfers.stop()


async def test_a_batch_of_no_jobs_ends_at_once(transfers: Transfers) -> None:
    jobs: list[Callable[[Batch[int]], None]] = []
    async with aclosing(transfers.carry(jobs)) as told:
        assert [number async for number in told] == []
    await transfers.stop()


async def test_a_job_that_breaks_is_an_error_once_the_others_have_ended(transfers: Transfers) -> None:
    def break_down(batch: Batch[int]) -> None:
        raise ZeroDivisionError

    jobs: list[Callable[[Batch[int]], None]] = [break_down, functools.partial(tell, 1)]
    told = transfers.carry(jobs)
    assert await anext(told) == 1
    with pytest.raises(ZeroDivisionError):
        await anext(told)
    await transfers.stop()


@pytest.mark.parametrize("is_closed", [True, False])
async def test_who_ends_a_batch_interrupts_its_threads_and_waits_for_them(
    transfers: Transfers, is_closed: bool
) -> None:
    interrupted, is_out = threading.Event(), threading.Event()
    begun: list[int] = []

    def block(batch: Batch[int]) -> None:
        with batch.interruptible(interrupted.set):
            batch.tell(1)
            interrupted.wait(30)
        is_out.set()
        batch.go_on()
        batch.tell(2)  # never

    jobs: list[Callable[[Batch[int]], None]] = [block, block, *[functools.partial(_begin, begun)] * 10]

    async def read() -> None:
        async with aclosing(transfers.carry(jobs)) as told:
            async for number in told:
                assert number == 1
                heard.set()
                if is_closed:
                    return

    heard = asyncio.Event()
    reading = asyncio.create_task(read())
    await heard.wait()
    if not is_closed:
        reading.cancel()
    await asyncio.wait([reading])
    assert is_out.is_set()
    assert begun == []
    await transfers.stop()


async def test_work_that_takes_longer_than_it_may_is_nobodys(transfers: Transfers) -> None:
    gate = threading.Event()
    assert await transfers.within(lambda: 1, 5.0) == 1
    assert await transfers.within(gate.wait, 0.01) is None
    gate.set()
    await transfers.stop()


async def test_of_those_who_give_up_while_all_threads_hang_nothing_stays_behind(transfers: Transfers) -> None:
    gate = threading.Event()
    begun: list[int] = []
    hanging = [asyncio.create_task(transfers.within(gate.wait, 30.0)) for _ in range(2)]
    await asyncio.sleep(0)
    for _ in range(10):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):  # as a node does, whose own time is over first
                await transfers.within(lambda: begun.append(1), 30.0)
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait(hanging)
    assert await transfers.within(lambda: 1, 30.0) == 1
    assert begun == []
    await transfers.stop()


def test_a_run_ends_at_its_first_gap_in_whole_groups() -> None:
    there = Found(1, None)
    assert leading([there, there, there, None, there], 1) == [there] * 3
    assert leading([there, there, there, None, there], 2) == [there] * 2
    assert leading([None, there], 1) == []


def _begin(begun: list[int], batch: Batch[int]) -> None:
    begun.append(1)
