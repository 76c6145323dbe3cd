"""First in, first out: the object goes that was committed first, however much it is used."""

from collections.abc import Sequence

from tierline.store.eviction.arrival import ArrivalQueue
from tierline.store.eviction.base import EvictionPolicy, Key


class FirstInFirstOut(EvictionPolicy[Key]):
    """One queue. A lease moves nothing: what is put back has the place it had.

    One departure from the textbook: an object that was held out when its turn came goes next once it is free, before
    what else waits, and among such objects the one that was free first.
    """

    def __init__(self, capacity_pages: int) -> None:  # noqa: ARG002  (all policies are made alike)
        self._queue: ArrivalQueue[Key] = ArrivalQueue()

    @property
    def evictable_pages(self) -> int:
        """Pages of all listed objects."""
        return self._queue.pages

    def insert(self, key: Key, pages: int) -> None:
        """List as last."""
        self._queue.append(key, pages)

    def hold_out(self, key: Key) -> None:
        """Let its turn not come."""
        self._queue.hold_out(key)

    def use(self, key: Key) -> None:
        """Change nothing."""

    def put_back(self, key: Key) -> None:
        """List at its place."""
        self._queue.put_back(key)

    def remove(self, key: Key) -> None:
        """Forget."""
        self._queue.remove(key)

    def peek(self) -> Key | None:
        """Return the first."""
        return self._queue.first() if self._queue.pages else None

    def upcoming(self, most: int) -> Sequence[Key]:
        """Return the first ones."""
        return self._queue.first_few(most) if self._queue.pages else ()

    def victim(self) -> Key | None:
        """Choose the first."""
        return self._queue.pop_first()[0] if self._queue.pages else None
