"""A queue of keys in the order of their last use, which knows how many pages they have; policies are made of these."""

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import Generic

from tierline.store.eviction.base import Key


class RecencyQueue(Generic[Key]):
    """Keys from least to most recently used; ``pages`` is the sum over all of them."""

    __slots__ = ("_pages_of", "pages")

    def __init__(self) -> None:
        self.pages = 0
        self._pages_of: OrderedDict[Key, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages_of)

    def append(self, key: Key, pages: int) -> None:
        """Add a key, which is not here yet, as most recent."""
        self._pages_of[key] = pages
        self.pages += pages

    def discard(self, key: Key) -> int | None:
        """Take a key out and return its pages, or ``None`` if it is not here."""
        pages = self._pages_of.pop(key, None)
        if pages is not None:
            self.pages -= pages
        return pages

    def move_all(self, keys: Iterable[Key], held: dict[Key, int]) -> list[Key]:
        """Take keys out, with their pages, into ``held``; returns those that are not here."""
        take = self._pages_of.pop
        missing: list[Key] = []
        taken = 0
        for key in keys:
            pages = take(key, None)
            if pages is None:
                missing.append(key)
            else:
                held[key] = pages
                taken += pages
        self.pages -= taken
        return missing

    @property
    def oldest(self) -> Key:
        """The least recent key."""
        return next(iter(self._pages_of))

    def oldest_few(self, most: int) -> list[Key]:
        """Return the least recent keys, at most so many."""
        return list(islice(self._pages_of, most))

    def pop_oldest(self) -> tuple[Key, int]:
        """Take out the least recent key, with its pages."""
        key, pages = self._pages_of.popitem(last=False)
        self.pages -= pages
        return key, pages
