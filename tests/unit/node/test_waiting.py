"""Who waits for a key: the line keeps its order, readers hear of every end, nobody stays behind."""

import asyncio
import time
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from tierline.node.waiting import KeyWaiters
from tierline.store import ObjectKey

KEY = ObjectKey("b", "k")


class Key:
    """A key that is held by at most one writer, as the store sees to."""

    def __init__(self) -> None:
        self.writers: list[int] = [-1]
        self.is_held = True
        self.is_stored = False
        self.waiters = KeyWaiters(lambda _: self.is_held)

    def take(self, number: int, settled: "asyncio.Future[None]") -> None:
        assert not self.is_held
        if not self.is_stored:
            self.writers.append(number)
            self.is_held = True
        settled.set_result(None)

    def end(self, *, is_stored: bool) -> None:
        self.is_held = False
        self.is_stored = is_stored
        self.waiters.wake(KEY)


async def stand_in_line(key: Key, number: int, wait_s: float = 60.0) -> bool:
    settled = asyncio.get_running_loop().create_future()
    return await key.waiters.wait_in_line([(KEY, partial(key.take, number, settled))], settled, wait_s)


@settings(max_examples=60)
@given(
    waiters=st.lists(st.sampled_from(["reader", "writer", "leaver"]), max_size=8),
    aborts=st.integers(0, 8),
)
def test_writers_come_in_the_order_of_arrival_and_readers_hear_of_the_end(waiters: list[str], aborts: int) -> None:
    async def scenario() -> None:
        key = Key()
        tasks = []
        for number, kind in enumerate(waiters):
            wait = key.waiters.wait_for_commit(KEY, 60.0) if kind == "reader" else stand_in_line(key, number)
            tasks.append(asyncio.create_task(wait))
        await asyncio.sleep(0)
        for task, kind in zip(tasks, waiters, strict=True):
            if kind == "leaver":
                task.cancel()
        await asyncio.sleep(0)
        for _ in range(aborts):
            if key.is_held:
                key.end(is_stored=False)
        key.end(is_stored=True)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        stayed = [number for number, kind in enumerate(waiters) if kind == "writer"]
        assert key.writers == [-1, *stayed[:aborts]]
        assert all(result is True for result, kind in zip(results, waiters, strict=True) if kind != "leaver")
        assert not key.waiters.waiting.total()
        assert sum(key.waiters.ended.values()) == len(waiters) - waiters.count("leaver")

    asyncio.run(scenario())


async def test_who_waits_in_vain_is_told_so_and_stands_in_line_no_more() -> None:
    key = Key()
    assert not await stand_in_line(key, 1, wait_s=0.01)
    assert not await key.waiters.wait_for_commit(KEY, 0.01)
    key.end(is_stored=False)
    assert key.writers == [-1]
    assert key.waiters.ended == {("writer", "timeout"): 1, ("reader", "timeout"): 1}


async def test_who_hears_of_the_end_as_late_as_he_gives_up_has_heard_of_it() -> None:
    """The node stood still for longer than the wait; what it finds then is the commit, and after it the time."""
    key = Key()
    waiting = asyncio.create_task(key.waiters.wait_for_commit(KEY, 0.02))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.01, partial(key.end, is_stored=True))
    time.sleep(0.05)  # noqa: ASYNC251  (so that both are due)
    assert await waiting
    assert key.waiters.ended == {("reader", "settled"): 1}


async def test_nobody_waits_for_a_key_that_nobody_writes() -> None:
    key = Key()
    key.end(is_stored=False)
    assert await key.waiters.wait_for_commit(KEY, 0.0)
    assert await stand_in_line(key, 7, wait_s=0.0)
    assert key.writers == [-1, 7]
