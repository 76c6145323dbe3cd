"""Blocking transfers in threads; what arrives is told on the event loop, and what was stopped writes no more.

Rules: a thread touches pages only inside a batch, and whoever ends a batch waits for its threads, also when it is
cancelled while it waits. A batch that is stopped interrupts what its threads are blocked in. Threads are what bounds
the bytes in flight: each carries one piece of work at a time, and what waits for a thread holds no memory.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from typing import Generic, TypeVar

import xxhash

from tierline.errors import TierlineError
from tierline.loading import Speed
from tierline.pool.tier import Arrival, Found, Wanted

T = TypeVar("T")


class Stopped(TierlineError):  # noqa: N818
    """The batch was stopped; its work ends as soon as it can."""


class Batch(Generic[T]):
    """Work of one call, seen by the threads that carry it.

    Once stopped, no new blocking call begins, and those that have begun are interrupted.

    Parameters
    ----------
    tell
        Takes what is done, from any thread.
    """

    def __init__(self, tell: Callable[[T], None]) -> None:
        self.tell = tell
        self._lock = threading.Lock()
        self._is_stopped = False
        self._interrupts: list[Callable[[], None]] = []

    def go_on(self) -> None:
        """Raise :class:`Stopped` where the batch was stopped."""
        if self._is_stopped:
            raise Stopped("stopped")

    @contextmanager
    def interruptible(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Have ``interrupt`` called, from another thread, if the batch is stopped while the block runs."""
        with self._lock:
            self.go_on()
            self._interrupts.append(interrupt)
        try:
            yield
        finally:
            with self._lock:
                self._interrupts.remove(interrupt)

    def stop(self) -> None:
        """Interrupt what is under way."""
        with self._lock:
            self._is_stopped = True
            for interrupt in self._interrupts:
                interrupt()


class Transfers:
    """A fixed number of threads that carry batches, first come, first served."""

    def __init__(self, name: str, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"tierline-{name}")

    async def carry(self, jobs: Sequence[Callable[[Batch[T]], None]]) -> AsyncGenerator[T, None]:
        """Have jobs carried, begun in their order, and yield what they tell; a job ends quietly when it is stopped.

        Once the generator is closed no thread is in any of the jobs. Use it inside :func:`contextlib.aclosing`.
        """
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[tuple[T] | None] = asyncio.Queue()

        def tell(done: T) -> None:
            loop.call_soon_threadsafe(told.put_nowait, (done,))

        batch = Batch(tell)
        futures = [self._executor.submit(_until_stopped, job, batch) for job in jobs]
        ended = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        ended.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (done := await told.get()) is not None:
                yield done[0]
        finally:
            batch.stop()
            for future in futures:
                future.cancel()  # those that have not begun
            await _ended(ended)
        for outcome in ended.result():
            if isinstance(outcome, Exception):
                raise outcome

    async def within(self, work: Callable[[], T], within_s: float) -> T | None:
        """Have ``work`` done; ``None`` where it is not done in time, and its result is then nobody's."""
        future: Future[T] = self._executor.submit(work)
        wrapped = asyncio.wrap_future(future)
        try:
            await asyncio.wait([wrapped], timeout=within_s)
            return wrapped.result() if wrapped.done() else None
        finally:
            wrapped.cancel()  # also where we are cancelled: behind threads that hang, nothing piles up

    async def run(self, work: Callable[[], T]) -> T:
        """Have ``work`` done; a caller that is cancelled leaves it behind."""
        return await asyncio.wrap_future(self._executor.submit(work))

    async def stop(self) -> None:
        """End the threads once what they do is done."""
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)


async def timed(
    arrivals: AsyncGenerator[Arrival, None], wanted: Sequence[Wanted], speed: Speed
) -> AsyncGenerator[Arrival, None]:
    """Hand on arrivals and note in ``speed`` how fast they came; closes what it reads from."""
    started = latest = time.monotonic()
    size = 0
    async with aclosing(arrivals):
        try:
            async for arrival in arrivals:
                if arrival.checksum is not None:
                    latest = time.monotonic()
                    size += wanted[arrival.index].found.size
                yield arrival
        finally:
            speed.observe(size, latest - started)


def seconds_for(found: Sequence[Found], speed: Speed) -> float | None:
    """Return how long fetching these would take."""
    return speed.seconds(sum(each.size for each in found))


def leading(found: Sequence[Found | None], group_size: int) -> list[Found]:
    """Return the longest leading run without a gap, in whole groups."""
    run = []
    for each in found:
        if each is None:
            break
        run.append(each)
    return run[: len(run) - len(run) % group_size]


def checksum_of(views: Sequence[memoryview]) -> int:
    """Return the XXH3-64 of the bytes of ``views``, in order."""
    hasher = xxhash.xxh3_64()
    for view in views:
        hasher.update(view)
    return hasher.intdigest()


def _until_stopped(job: Callable[[Batch[T]], None], batch: Batch[T]) -> None:
    try:
        batch.go_on()
        job(batch)
    except Stopped:
        return


async def _ended(future: asyncio.Future[T]) -> None:
    """Wait until ``future`` is done, whatever happens to the waiting task."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
