"""Who waits for a key that somebody is writing: readers for its commit, writers in line for their turn.

The rule inside: **a key has waiters only while a slot holds it**. Whoever ends that slot says so through
:meth:`KeyWaiters.wake`, and before anybody else can take the key, the writer who has waited longest may.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from tierline.store import ObjectKey

WAIT_MARGIN_S = 0.1
"""A wait over HTTP ends so long before the client's own limit, or at 80 % of it."""

Kind = Literal["reader", "writer"]


class KeyWaiters:
    """All who wait, by key.

    Parameters
    ----------
    is_being_written
        Whether a slot holds a key.
    """

    def __init__(self, is_being_written: Callable[[ObjectKey], bool]) -> None:
        self.ended: Counter[tuple[Kind, str]] = Counter()
        """Waits that are over, by kind and by how they ended: ``settled`` or ``timeout``."""
        self.waiting: Counter[Kind] = Counter()
        """Waits under way."""
        self._is_being_written = is_being_written
        self._readers: dict[ObjectKey, set[asyncio.Future[None]]] = {}
        self._writers: dict[ObjectKey, dict[Callable[[], None], None]] = {}

    async def wait_for_commit(self, key: ObjectKey, wait_s: float) -> bool:
        """Wait until nobody writes ``key`` any more; False if that takes longer than ``wait_s``."""
        if not self._is_being_written(key):
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        readers = self._readers.setdefault(key, set())
        readers.add(future)
        try:
            return await self._wait("reader", future, wait_s)
        finally:
            readers.discard(future)
            if not readers and self._readers.get(key) is readers:
                del self._readers[key]

    async def wait_in_line(
        self, turns: Sequence[tuple[ObjectKey, Callable[[], None]]], settled: asyncio.Future[None], wait_s: float
    ) -> bool:
        """Stand in line for several keys until ``settled`` is done; False if that takes longer than ``wait_s``.

        Parameters
        ----------
        turns
            Keys, and for each what is called once, when nobody writes it (any more): it may take the key.
        """
        for key, turn in turns:
            if self._is_being_written(key):
                self._writers.setdefault(key, {})[turn] = None
            else:
                turn()
        try:
            return await self._wait("writer", settled, wait_s)
        finally:
            for key, turn in turns:
                line = self._writers.get(key, {})
                line.pop(turn, None)
                if not line:
                    self._writers.pop(key, None)

    def wake(self, key: ObjectKey) -> None:
        """A slot that held ``key`` has ended: the next in line may take it; where nobody does, readers hear of it."""
        line = self._writers.get(key)
        while line and not self._is_being_written(key):
            turn = next(iter(line))
            del line[turn]
            turn()
        if self._is_being_written(key):
            return
        self._writers.pop(key, None)
        for future in self._readers.pop(key, ()):
            if not future.done():
                future.set_result(None)

    def wake_settled(self) -> None:
        """Slots of several keys, nobody says which, have ended."""
        for key in [*self._writers, *self._readers]:
            if not self._is_being_written(key):
                self.wake(key)

    async def _wait(self, kind: Kind, future: asyncio.Future[None], wait_s: float) -> bool:
        self.waiting[kind] += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await future
        finally:
            self.waiting[kind] -= 1
        is_settled = not future.cancelled()  # also at the very end of the wait, as where the node stood still meanwhile
        self.ended[kind, "settled" if is_settled else "timeout"] += 1
        return is_settled


def within(limit_s: float) -> float:
    """Return how long to wait for a client that gives up after ``limit_s``: the answer has a way to go."""
    return limit_s - min(WAIT_MARGIN_S, 0.2 * limit_s)
