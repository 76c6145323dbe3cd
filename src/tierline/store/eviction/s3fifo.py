"""S3-FIFO: a small queue lets go early of what is used once; a main queue keeps, by turns, what was used since.

J. Yang, Y. Zhang, Z. Qiu, Y. Yue and R. Vinayak, "FIFO queues are all you need for cache eviction", SOSP 2023,
Algorithm 1. The paper's names are in brackets. Departures, because objects have sizes and are read under leases:

- Queues are measured in pages; ghosts are bounded by the pages of the main queue's share.
- One object is chosen at a time. Where the paper's EVICTS takes one from the full main queue and goes on to take one
  from the small queue too, ours ends with the first, and goes on when the next is asked for.
- An object under lease keeps its place, and no turn comes to it. If one should have, it comes next once it is free.
"""

from collections.abc import Sequence

from tierline.store.eviction.arrival import ArrivalQueue
from tierline.store.eviction.base import EvictionPolicy, Key
from tierline.store.eviction.ghosts import Ghosts

SMALL_SHARE = 0.1
"""Of the cache, for objects that have to prove themselves; the paper's choice for all its traces."""

MOST_USES = 3
"""That are counted: two bits."""


class SmallMainGhost(EvictionPolicy[Key]):
    """Objects that are new [S], that were used often or missed soon [M], and ghosts [G]: those that went from S.

    Invariant: an object is in one queue, and no ghost; ghosts have no more pages than the main queue's share.
    """

    def __init__(self, capacity_pages: int) -> None:
        self._small_share = capacity_pages * SMALL_SHARE
        self._small: ArrivalQueue[Key] = ArrivalQueue()
        self._main: ArrivalQueue[Key] = ArrivalQueue()
        self._ghosts = Ghosts(capacity_pages - self._small_share)
        self._uses: dict[Key, int] = {}  # [freq] where there are any

    @property
    def evictable_pages(self) -> int:
        """Pages of all listed objects."""
        return self._small.pages + self._main.pages

    @property
    def ghost_pages(self) -> int:
        """Pages that the remembered ghosts had."""
        return self._ghosts.pages

    def insert(self, key: Key, pages: int) -> None:
        """List as last of the small queue; of the main queue if it is a ghost [INSERT]."""
        (self._main if self._ghosts.take(key) else self._small).append(key, pages)

    def hold_out(self, key: Key) -> None:
        """Let its turn not come."""
        self._queue_of(key).hold_out(key)

    def use(self, key: Key) -> None:
        """Count a use [READ]."""
        self._uses[key] = min(self._uses.get(key, 0) + 1, MOST_USES)

    def put_back(self, key: Key) -> None:
        """List at its place."""
        self._queue_of(key).put_back(key)

    def remove(self, key: Key) -> None:
        """Forget, without a ghost."""
        self._queue_of(key).remove(key)
        self._uses.pop(key, None)

    def peek(self) -> Key | None:
        """Return the first that is not worth another turn; those before it take theirs now instead of with it."""
        queue = self._advance()
        return queue.first() if queue is not None else None

    def upcoming(self, most: int) -> Sequence[Key]:
        """Return the first ones of the queue whose turn it is; those before them take theirs, as in :meth:`peek`."""
        queue = self._advance()
        return queue.first_few(most) if queue is not None else ()

    def victim(self) -> Key | None:
        """Choose the first that is not worth another turn [EVICT]; one of the small queue leaves a ghost."""
        queue = self._advance()
        if queue is None:
            return None
        key, pages = queue.pop_first()
        self._uses.pop(key, None)
        if queue is self._small:
            self._ghosts.add(key, pages)
        return key

    def _advance(self) -> ArrivalQueue[Key] | None:
        """Let objects that were used pass, until a queue's first is to go [EVICTS, EVICTM]; return that queue."""
        while self.evictable_pages:
            if self._small.pages and (self._small.pages >= self._small_share or not self._main.pages):
                if self._uses.get(self._small.first(), 0) <= 1:
                    return self._small
                key, pages = self._small.pop_first()
                del self._uses[key]
            else:
                if self._main.first() not in self._uses:
                    return self._main
                key, pages = self._main.pop_first()
                self._uses[key] -= 1
                if not self._uses[key]:
                    del self._uses[key]
            self._main.append(key, pages)
        return None

    def _queue_of(self, key: Key) -> ArrivalQueue[Key]:
        return self._small if key in self._small else self._main
