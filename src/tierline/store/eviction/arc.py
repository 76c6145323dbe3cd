"""Adaptive replacement: balance between recency and frequency, tuned by what was regretted lately.

N. Megiddo and D. S. Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003. The paper's names are in
brackets. Departures from it, because objects have sizes and writers take their time:

- Lists are measured in pages, and the target moves by the pages of the object that came back.
- Room is made when a write begins, the key is learned when it commits, so the target moves after the
  victims of this write were chosen, not before.
- Objects under lease are outside the lists, so these may hold less than the cache.
- Each list of ghosts is bounded by the cache's size by itself. In the paper a list and its ghosts are, together, and a
  prefix that comes again after minutes is forgotten where the cache is small (docs/decisions/eviction.md has figures).
- The target never falls below a tenth of the cache. At 0, where the paper starts, a new prefix in a cache full of
  prefixes that were used would evict its own first blocks while its last ones are written, and be worth nothing.
"""

from collections.abc import Sequence

from tierline.store.eviction.base import EvictionPolicy, Key
from tierline.store.eviction.ghosts import Ghosts
from tierline.store.eviction.recency import RecencyQueue

_LEAST_SHARE_SEEN_ONCE = 0.1


class AdaptiveReplacement(EvictionPolicy[Key]):
    """Objects seen once [T1] and more than once [T2] lately, and ghosts [B1, B2]: who went from each, and no more.

    Invariant: the ghosts of each list had at most one capacity of pages;
    ``_LEAST_SHARE_SEEN_ONCE * capacity <= target <= capacity``.
    """

    def __init__(self, capacity_pages: int) -> None:
        self._capacity = capacity_pages
        self._least_target = _LEAST_SHARE_SEEN_ONCE * capacity_pages
        self._target = self._least_target  # [p] pages that objects seen once may hold
        self._once: RecencyQueue[Key] = RecencyQueue()
        self._often: RecencyQueue[Key] = RecencyQueue()
        self._once_ghosts = Ghosts(capacity_pages)
        self._often_ghosts = Ghosts(capacity_pages)
        self._once_held: dict[Key, int] = {}  # pages of what is held out, by the list it came from
        self._often_held: dict[Key, int] = {}

    @property
    def evictable_pages(self) -> int:
        """Pages of all listed objects."""
        return self._once.pages + self._often.pages

    @property
    def ghost_pages(self) -> int:
        """Pages that the remembered ghosts had."""
        return self._once_ghosts.pages + self._often_ghosts.pages

    def insert(self, key: Key, pages: int) -> None:
        """List as seen once; as seen often if it is a ghost, which also moves the target towards its list."""
        if self._once_ghosts.take(key):
            self._aim(pages, self._often_ghosts.pages, self._once_ghosts.pages + pages)
            self._often.append(key, pages)
        elif self._often_ghosts.take(key):
            self._aim(-pages, self._once_ghosts.pages, self._often_ghosts.pages + pages)
            self._often.append(key, pages)
        else:
            self._once.append(key, pages)

    def hold_out(self, key: Key) -> None:
        """Take out of its list, which is remembered."""
        pages = self._once.discard(key)
        if pages is not None:
            self._once_held[key] = pages
            return
        pages = self._often.discard(key)
        assert pages is not None
        self._often_held[key] = pages

    def hold_out_all(self, keys: Sequence[Key]) -> None:
        """Take out of their lists, which are remembered."""
        missing = self._once.move_all(keys, self._once_held)
        if missing:
            missing = self._often.move_all(missing, self._often_held)
            assert not missing

    def use(self, key: Key) -> None:
        """Note as seen often."""
        pages = self._once_held.pop(key, None)
        if pages is not None:
            self._often_held[key] = pages

    def use_all(self, keys: Sequence[Key]) -> None:
        """Note as seen often."""
        take, often_held = self._once_held.pop, self._often_held
        for key in keys:
            pages = take(key, None)
            if pages is not None:
                often_held[key] = pages

    def put_back(self, key: Key) -> None:
        """List as the most recent of those seen once, or often."""
        pages = self._once_held.pop(key, None)
        if pages is not None:
            self._once.append(key, pages)
        else:
            self._often.append(key, self._often_held.pop(key))

    def remove(self, key: Key) -> None:
        """Forget, without a ghost."""
        if self._once.discard(key) is None and self._often.discard(key) is None:
            del (self._once_held if key in self._once_held else self._often_held)[key]

    def peek(self) -> Key | None:
        """Return the oldest of the list that exceeds its share."""
        if not self._once and not self._often:
            return None
        return (self._once if self._takes_from_once else self._often).oldest

    def upcoming(self, most: int) -> Sequence[Key]:
        """Return the oldest ones of the list that exceeds its share."""
        return (self._once if self._takes_from_once else self._often).oldest_few(most)

    def victim(self) -> Key | None:
        """Choose the oldest of the list that exceeds its share [REPLACE]; it leaves a ghost."""
        if not self._once and not self._often:
            return None
        chosen, ghosts = (self._once, self._once_ghosts) if self._takes_from_once else (self._often, self._often_ghosts)
        key, pages = chosen.pop_oldest()
        ghosts.add(key, pages)
        return key

    @property
    def _takes_from_once(self) -> bool:
        return bool(self._once) and (self._once.pages > self._target or not self._often)

    def _aim(self, pages: int, other_ghosts: int, own_ghosts: int) -> None:
        """Move the target by ``pages``, faster where the ghosts of the list that was regretted are the fewer."""
        step = pages * max(1.0, other_ghosts / own_ghosts)
        self._target = min(max(self._target + step, self._least_target), float(self._capacity))
