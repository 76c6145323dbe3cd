"""The queue: each key with one worker at a time, none forgotten, those that fail later each time."""

import asyncio

from tierline.operator.controller.queue import LAST_RETRY_SECONDS, Queue


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_key_that_is_added_twice_is_taken_once() -> None:
    queue: Queue[str] = Queue(Clock())
    queue.add("a")
    queue.add("a")
    assert await queue.take() == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_a_key_that_is_added_while_it_is_worked_on_is_taken_again_afterwards() -> None:
    queue: Queue[str] = Queue(Clock())
    queue.add("a")
    assert await queue.take() == "a"
    queue.add("a")
    queue.add("b")
    assert await queue.take() == "b", "a is with another worker"
    waiting = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.done("a")
    assert await waiting == "a"


async def test_the_earlier_of_two_times_counts() -> None:
    clock = Clock()
    queue: Queue[str] = Queue(clock)
    queue.add("a", 10.0)
    queue.add("b", 5.0)
    queue.add("a", 1.0)
    queue.add("a", 20.0)
    clock.now = 30.0
    assert [await queue.take(), await queue.take()] == ["a", "b"]
    assert len(queue) == 0


async def test_what_fails_waits_longer_each_time_until_it_is_done() -> None:
    clock = Clock()
    queue: Queue[str] = Queue(clock)
    queue.add("a")
    waits = []
    for _ in range(12):
        await queue.take()
        waits.append(queue.failed("a"))
        clock.now += waits[-1]
    assert waits[:4] == sorted(waits[:4])
    assert max(waits) <= LAST_RETRY_SECONDS * 1.25
    await queue.take()
    queue.done("a")
    queue.add("a")
    await queue.take()
    assert queue.failed("a") < 1.0, "it begins anew"
    clock.now += 1.0
    await queue.take()
    assert queue.failed("a", 30.0) >= 30.0, "who was asked waits so long"


async def test_a_worker_that_does_not_come_back_is_known() -> None:
    clock = Clock()
    queue: Queue[str] = Queue(clock)
    queue.add("a")
    assert queue.still_s == 0.0
    await queue.take()
    clock.now = 1000.0
    assert queue.still_s == 1000.0
    queue.stirred("a")
    clock.now = 1001.0
    assert queue.still_s == 1.0
    queue.done("a")
    assert queue.still_s == 0.0


async def test_a_key_that_is_due_and_that_nobody_takes_is_known() -> None:
    clock = Clock()
    queue: Queue[str] = Queue(clock)
    queue.add("later", 100.0)
    clock.now = 90.0
    assert queue.unattended_s == 0.0, "it is not due"
    clock.now = 130.0
    assert queue.unattended_s == 30.0
    queue.add("now")
    assert await queue.take() == "later"
    clock.now = 140.0
    assert queue.unattended_s == 10.0, "one was taken meanwhile, and the other waits"
    assert await queue.take() == "now"
    clock.now = 200.0
    assert queue.unattended_s == 0.0, "all are with workers"
