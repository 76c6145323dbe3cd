"""Least recently used: the object goes whose last use, or commit, is longest ago."""

from collections.abc import Sequence

from tierline.store.eviction.base import EvictionPolicy, Key
from tierline.store.eviction.recency import RecencyQueue


class LeastRecentlyUsed(EvictionPolicy[Key]):
    """One queue; what was held out comes back at its recent end, used or not."""

    def __init__(self, capacity_pages: int) -> None:  # noqa: ARG002  (all policies are made alike)
        self._queue: RecencyQueue[Key] = RecencyQueue()
        self._held: dict[Key, int] = {}

    @property
    def evictable_pages(self) -> int:
        """Pages of all listed objects."""
        return self._queue.pages

    def insert(self, key: Key, pages: int) -> None:
        """List as most recent."""
        self._queue.append(key, pages)

    def hold_out(self, key: Key) -> None:
        """Take out of the queue."""
        pages = self._queue.discard(key)
        assert pages is not None
        self._held[key] = pages

    def hold_out_all(self, keys: Sequence[Key]) -> None:
        """Take out of the queue."""
        missing = self._queue.move_all(keys, self._held)
        assert not missing

    def use(self, key: Key) -> None:
        """Change nothing: what is held out will be the most recent anyway."""

    def use_all(self, keys: Sequence[Key]) -> None:
        """Change nothing."""

    def put_back(self, key: Key) -> None:
        """List as most recent."""
        self._queue.append(key, self._held.pop(key))

    def remove(self, key: Key) -> None:
        """Forget."""
        if self._queue.discard(key) is None:
            del self._held[key]

    def peek(self) -> Key | None:
        """Return the least recent."""
        return self._queue.oldest if self._queue else None

    def upcoming(self, most: int) -> Sequence[Key]:
        """Return the least recent ones."""
        return self._queue.oldest_few(most)

    def victim(self) -> Key | None:
        """Choose the least recent."""
        return self._queue.pop_oldest()[0] if self._queue else None
