"""Ghosts: what is remembered of objects that went, so that a policy learns from those that come again."""

from collections.abc import Hashable

from tierline.store.eviction.recency import RecencyQueue


class Ghosts:
    """Objects that went, up to so many pages of them; the oldest are forgotten first.

    A ghost is the hash of a key, so that the key's memory is free; two keys of one hash cost a poor guess.
    """

    def __init__(self, most_pages: float) -> None:
        self._most_pages = most_pages
        self._hashes: RecencyQueue[int] = RecencyQueue()

    @property
    def pages(self) -> int:
        """Pages that they had."""
        return self._hashes.pages

    def add(self, key: Hashable, pages: int) -> None:
        """Remember an object that goes."""
        ghost = hash(key)
        self._hashes.discard(ghost)
        self._hashes.append(ghost, pages)
        while self._hashes.pages > self._most_pages:
            self._hashes.pop_oldest()

    def take(self, key: Hashable) -> bool:
        """Forget an object that comes again; False if it was not remembered."""
        return self._hashes.discard(hash(key)) is not None
