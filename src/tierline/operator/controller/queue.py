"""What is to be looked at again, by key. Rule: a key is with one worker at a time, and none is forgotten meanwhile."""

import asyncio
import heapq
from collections.abc import Callable, Hashable
from random import uniform
from typing import Generic, TypeVar

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 120.0
Key = TypeVar("Key", bound=Hashable)


class Queue(Generic[Key]):
    """Keys that are due, now or later; one that is added twice is looked at once.

    Parameters
    ----------
    clock
        Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.retries = 0
        """Keys that failed and were put back."""
        self._clock = clock
        self._due: dict[Key, float] = {}
        self._order: list[tuple[float, int, Key]] = []
        """A heap; what it says of a key counts only where ``_due`` says the same."""
        self._added = 0
        self._at_work: dict[Key, float] = {}
        """When its worker took the last step."""
        self._taken_at = clock()
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    @property
    def at_work(self) -> int:
        """Keys that workers have."""
        return len(self._at_work)

    @property
    def still_s(self) -> float:
        """Seconds for which the worker that has been still for longest has taken no step with its key."""
        return max((self._clock() - since for since in self._at_work.values()), default=0.0)

    @property
    def unattended_s(self) -> float:
        """Seconds for which a key has been due that no worker has, and no key was taken or given back."""
        due = min((at for key, at in self._due.items() if key not in self._at_work), default=float("inf"))
        return max(0.0, self._clock() - max(due, self._taken_at))

    def stirred(self, key: Key) -> None:
        """Note that a worker has taken a step with its key."""
        if key in self._at_work:
            self._at_work[key] = self._clock()

    def add(self, key: Key, after_s: float = 0.0) -> None:
        """Have a key looked at, at the latest after so long."""
        at = self._clock() + after_s
        if at < self._due.get(key, float("inf")):
            self._due[key] = at
            self._added += 1
            heapq.heappush(self._order, (at, self._added, key))
            self._changed.set()

    async def take(self) -> Key:
        """Return the key that is due first, once it is due; the worker says :meth:`done` or :meth:`failed`."""
        while True:
            self._changed.clear()
            wait_s = None
            held_back = []
            found: Key | None = None
            while self._order:
                at, order, key = self._order[0]
                if self._due.get(key) != at:
                    heapq.heappop(self._order)
                elif at > self._clock():
                    wait_s = at - self._clock()
                    break
                else:
                    heapq.heappop(self._order)
                    if key not in self._at_work:
                        found = key
                        break
                    held_back.append((at, order, key))
            for each in held_back:
                heapq.heappush(self._order, each)
            if found is not None:
                del self._due[found]
                self._at_work[found] = self._taken_at = self._clock()
                return found
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: Key, again_after_s: float | None = None) -> None:
        """Give a key back that all is well with."""
        self._failures.pop(key, None)
        self._give_back(key)
        if again_after_s is not None:
            self.add(key, again_after_s)

    def failed(self, key: Key, at_least_s: float = 0.0) -> float:
        """Give a key back that is to be tried again, later each time; return in how many seconds."""
        self.retries += 1
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        # Of many keys that fail for one reason, not all come back at once.
        wait_s = min(FIRST_RETRY_SECONDS * 2.0 ** (failures - 1), LAST_RETRY_SECONDS) * uniform(0.75, 1.25)
        wait_s = max(wait_s, min(at_least_s, LAST_RETRY_SECONDS) * uniform(1.0, 1.25))
        self._give_back(key)
        self.add(key, wait_s)
        return wait_s

    def _give_back(self, key: Key) -> None:
        self._at_work.pop(key, None)
        self._taken_at = self._clock()
        self._changed.set()
