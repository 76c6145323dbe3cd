"""Least recently used: the object goes whose last use, or commit, is longest ago."""

from tierline.store.eviction.base import EvictionPolicy, Standing
from tierline.store.eviction.recency import RecencyQueue
from tierline.store.objects import ObjectKey


class LeastRecentlyUsed(EvictionPolicy):
    """One queue; what was held out comes back at its recent end, whether the use counts or not."""

    def __init__(self, capacity_pages: int) -> None:  # noqa: ARG002  (all policies are made alike)
        self._queue = RecencyQueue()

    @property
    def evictable_pages(self) -> int:
        """Pages of all listed objects."""
        return self._queue.pages

    def insert(self, key: ObjectKey, pages: int) -> None:
        """List as most recent."""
        self._queue.append(key, pages)

    def hold_out(self, key: ObjectKey) -> Standing:
        """Take out of the queue."""
        self._queue.discard(key)
        return Standing(0)

    def put_back(self, key: ObjectKey, pages: int, standing: Standing, *, was_used: bool) -> None:  # noqa: ARG002
        """List as most recent."""
        self._queue.append(key, pages)

    def remove(self, key: ObjectKey) -> None:
        """Forget."""
        self._queue.discard(key)

    def victim(self) -> ObjectKey | None:
        """Choose the least recent."""
        return self._queue.pop_oldest()[0] if self._queue else None
