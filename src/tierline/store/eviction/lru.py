"""Least recently used: the object goes whose last use, or commit, is longest ago."""

from tierline.store.eviction.base import EvictionPolicy
from tierline.store.eviction.recency import RecencyQueue
from tierline.store.objects import ObjectKey


class LeastRecentlyUsed(EvictionPolicy):
    """One queue; what is held out comes back at its recent end."""

    def __init__(self, capacity_pages: int) -> None:  # noqa: ARG002  (all policies are made alike)
        self._listed = RecencyQueue()
        self._held_out: dict[ObjectKey, int] = {}

    @property
    def evictable_pages(self) -> int:
        """Pages of all listed objects."""
        return self._listed.pages

    def insert(self, key: ObjectKey, pages: int) -> None:
        """List as most recent."""
        self._listed.append(key, pages)

    def touch(self, key: ObjectKey) -> None:
        """Make most recent; what is held out becomes so when it is put back."""
        if key in self._listed:
            self._listed.renew(key)

    def hold_out(self, key: ObjectKey) -> None:
        """Take out of the queue."""
        pages = self._listed.discard(key)
        assert pages is not None, f"{key} is not listed"
        self._held_out[key] = pages

    def put_back(self, key: ObjectKey) -> None:
        """List as most recent."""
        self._listed.append(key, self._held_out.pop(key))

    def remove(self, key: ObjectKey) -> None:
        """Forget."""
        if self._held_out.pop(key, None) is None:
            self._listed.discard(key)

    def victim(self) -> ObjectKey | None:
        """Choose the least recent."""
        return self._listed.pop_oldest()[0] if self._listed else None
