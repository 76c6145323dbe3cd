"""Least frequently used: the object goes that was used least since it came; the least recent of those.

K. Shah, A. Mitra and D. Matani, "An O(1) algorithm for implementing the LFU cache eviction scheme", 2010: objects of
one frequency in a list of their own, these lists in a chain by frequency, so that a use is a step to the next list.
Added to it, and different:

- Among equally frequent objects the least recently used goes (the paper leaves it open).
- There is no ageing, as in the paper: an object of many uses stays long after the last of them.
- An object under lease is counted in its frequency's list, which stays in the chain as long, but not listed in it.
  Choosing passes over lists of nothing but leased objects; these are as few as there are frequencies among them.
"""

from collections.abc import Sequence
from typing import Generic

from tierline.store.eviction.base import EvictionPolicy, Key
from tierline.store.eviction.recency import RecencyQueue


class _Frequency(Generic[Key]):
    """The objects used so many times, listed and held out, between the next rarer and the next more frequent ones."""

    __slots__ = ("held", "listed", "more", "rarer", "uses")

    def __init__(self, uses: int) -> None:
        self.uses = uses
        self.listed: RecencyQueue[Key] = RecencyQueue()
        self.held: dict[Key, int] = {}
        self.rarer = self
        self.more = self


class LeastFrequentlyUsed(EvictionPolicy[Key]):
    """A ring of frequencies in rising order, closed by an empty one of no uses.

    Invariant: no other frequency is empty; an object is in one of them.
    """

    def __init__(self, capacity_pages: int) -> None:  # noqa: ARG002  (all policies are made alike)
        self._end: _Frequency[Key] = _Frequency(0)
        self._frequency_of: dict[Key, _Frequency[Key]] = {}
        self._pages = 0

    @property
    def evictable_pages(self) -> int:
        """Pages of all listed objects."""
        return self._pages

    def insert(self, key: Key, pages: int) -> None:
        """List with one use."""
        frequency = self._frequency_of[key] = self._next(self._end)
        frequency.listed.append(key, pages)
        self._pages += pages

    def hold_out(self, key: Key) -> None:
        """Take out of the list of its frequency."""
        frequency = self._frequency_of[key]
        pages = frequency.listed.discard(key)
        assert pages is not None
        frequency.held[key] = pages
        self._pages -= pages

    def use(self, key: Key) -> None:
        """Count it in the next frequency."""
        frequency = self._frequency_of[key]
        more = self._frequency_of[key] = self._next(frequency)
        more.held[key] = frequency.held.pop(key)
        self._drop_if_empty(frequency)

    def put_back(self, key: Key) -> None:
        """List as the most recent of its frequency."""
        frequency = self._frequency_of[key]
        pages = frequency.held.pop(key)
        frequency.listed.append(key, pages)
        self._pages += pages

    def remove(self, key: Key) -> None:
        """Forget."""
        frequency = self._frequency_of.pop(key)
        if frequency.held.pop(key, None) is None:
            pages = frequency.listed.discard(key)
            assert pages is not None
            self._pages -= pages
        self._drop_if_empty(frequency)

    def peek(self) -> Key | None:
        """Return the least recent of the least frequent."""
        return self._rarest().listed.oldest if self._pages else None

    def upcoming(self, most: int) -> Sequence[Key]:
        """Return the least recent ones of the least frequent."""
        return self._rarest().listed.oldest_few(most) if self._pages else ()

    def victim(self) -> Key | None:
        """Choose the least recent of the least frequent."""
        if not self._pages:
            return None
        rarest = self._rarest()
        key, pages = rarest.listed.pop_oldest()
        del self._frequency_of[key]
        self._pages -= pages
        self._drop_if_empty(rarest)
        return key

    def _rarest(self) -> _Frequency[Key]:
        """Return the lowest frequency that lists anything; there must be one."""
        frequency = self._end.more
        while not frequency.listed:
            frequency = frequency.more
        return frequency

    def _next(self, frequency: _Frequency[Key]) -> _Frequency[Key]:
        """Return the frequency of one use more, which is made where it is missing."""
        if frequency.more.uses == frequency.uses + 1:
            return frequency.more
        made: _Frequency[Key] = _Frequency(frequency.uses + 1)
        made.rarer, made.more = frequency, frequency.more
        made.rarer.more = made.more.rarer = made
        return made

    def _drop_if_empty(self, frequency: _Frequency[Key]) -> None:
        if not frequency.listed and not frequency.held:
            frequency.rarer.more = frequency.more
            frequency.more.rarer = frequency.rarer
