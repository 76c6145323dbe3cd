"""Adaptive replacement: balance between recency and frequency, tuned by what was regretted lately.

N. Megiddo and D. S. Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003. The paper's names are in
brackets. Departures from it, all because objects have sizes and writers take their time:

- Lists are measured in pages, and the target moves by the pages of the object that came back.
- Room is made when a write begins, the key is learned when it commits, so the target moves after the
  victims of this write were chosen, not before.
- Objects under lease are outside the lists, so these may hold less than the cache; ghosts are bounded by its size.
"""

from tierline.store.eviction.base import EvictionPolicy, Standing
from tierline.store.eviction.recency import RecencyQueue
from tierline.store.objects import ObjectKey

_ONCE, _OFTEN = Standing(1), Standing(2)


class AdaptiveReplacement(EvictionPolicy):
    """Objects seen once [T1] and more than once [T2] lately, and ghosts [B1, B2]: keys alone of what went from each.

    Invariant: once + its ghosts, and all four together, hold at most one and two capacities of pages (ghosts give way);
    ``0 <= target <= capacity``.
    """

    def __init__(self, capacity_pages: int) -> None:
        self._capacity = capacity_pages
        self._target = 0.0  # [p] pages that objects seen once may hold
        self._once = RecencyQueue()
        self._often = RecencyQueue()
        self._once_ghosts = RecencyQueue()
        self._often_ghosts = RecencyQueue()

    @property
    def evictable_pages(self) -> int:
        """Pages of all listed objects."""
        return self._once.pages + self._often.pages

    @property
    def ghost_pages(self) -> int:
        """Pages that the remembered keys of evicted objects had."""
        return self._once_ghosts.pages + self._often_ghosts.pages

    def insert(self, key: ObjectKey, pages: int) -> None:
        """List as seen once; as seen often if it is a ghost, which also moves the target towards its list."""
        if self._once_ghosts.discard(key) is not None:
            self._aim(pages, self._often_ghosts.pages, self._once_ghosts.pages + pages)
            self._often.append(key, pages)
        elif self._often_ghosts.discard(key) is not None:
            self._aim(-pages, self._once_ghosts.pages, self._often_ghosts.pages + pages)
            self._often.append(key, pages)
        else:
            self._once.append(key, pages)
        self._trim_ghosts()

    def hold_out(self, key: ObjectKey) -> Standing:
        """Take out of its list; returns which."""
        if self._once.discard(key) is not None:
            return _ONCE
        self._often.discard(key)
        return _OFTEN

    def put_back(self, key: ObjectKey, pages: int, standing: Standing, *, was_used: bool) -> None:
        """List as the most recent of those seen often if it was used, else of its list."""
        (self._often if was_used or standing == _OFTEN else self._once).append(key, pages)
        self._trim_ghosts()

    def remove(self, key: ObjectKey) -> None:
        """Forget, without a ghost."""
        self.hold_out(key)

    def victim(self) -> ObjectKey | None:
        """Choose the oldest of the list that exceeds its share [REPLACE]; it leaves a ghost."""
        if not self._once and not self._often:
            return None
        if self._once and (self._once.pages > self._target or not self._often):
            key, pages = self._once.pop_oldest()
            self._once_ghosts.append(key, pages)
        else:
            key, pages = self._often.pop_oldest()
            self._often_ghosts.append(key, pages)
        self._trim_ghosts()
        return key

    def _aim(self, pages: int, other_ghosts: int, own_ghosts: int) -> None:
        """Move the target by ``pages``, faster where the ghosts of the list that was regretted are the fewer."""
        step = pages * max(1.0, other_ghosts / own_ghosts)
        self._target = min(max(self._target + step, 0.0), float(self._capacity))

    def _trim_ghosts(self) -> None:
        while self._once_ghosts and self._once.pages + self._once_ghosts.pages > self._capacity:
            self._once_ghosts.pop_oldest()
        while self._often_ghosts and self.evictable_pages + self.ghost_pages > 2 * self._capacity:
            self._often_ghosts.pop_oldest()
