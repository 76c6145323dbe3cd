"""A queue of keys in the order of their last use, which knows how many pages they have; policies are made of these."""

from collections import OrderedDict

from tierline.store.objects import ObjectKey


class RecencyQueue:
    """Keys from least to most recently used; ``pages`` is the sum over all of them."""

    __slots__ = ("_pages_of", "pages")

    def __init__(self) -> None:
        self.pages = 0
        self._pages_of: OrderedDict[ObjectKey, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages_of)

    def append(self, key: ObjectKey, pages: int) -> None:
        """Add a key, which is not here yet, as most recent."""
        self._pages_of[key] = pages
        self.pages += pages

    def discard(self, key: ObjectKey) -> int | None:
        """Take a key out and return its pages, or ``None`` if it is not here."""
        pages = self._pages_of.pop(key, None)
        if pages is not None:
            self.pages -= pages
        return pages

    def pop_oldest(self) -> tuple[ObjectKey, int]:
        """Take out the least recent key, with its pages."""
        key, pages = self._pages_of.popitem(last=False)
        self.pages -= pages
        return key, pages
