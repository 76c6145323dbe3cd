"""A queue of keys in the order of their arrival, in which what is held out keeps its place."""

from collections import OrderedDict
from itertools import chain, islice
from typing import Generic

from tierline.store.eviction.base import Key


class ArrivalQueue(Generic[Key]):
    """Keys from first to last arrived, listed or held out; ``pages`` is the sum over those listed.

    What is held out when its turn comes leaves the line, so that no later turn meets it again, and is overdue when it
    is put back: it goes before all that is in line. Every operation is O(1), amortised: a key is passed once in its
    time in line.
    """

    __slots__ = ("_held", "_line", "_overdue", "pages")

    def __init__(self) -> None:
        self.pages = 0
        self._line: OrderedDict[Key, int] = OrderedDict()
        self._overdue: OrderedDict[Key, int] = OrderedDict()
        self._held: dict[Key, int] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._line or key in self._overdue or key in self._held

    def append(self, key: Key, pages: int) -> None:
        """Add a key, which is not here yet, as last arrived."""
        self._line[key] = pages
        self.pages += pages

    def hold_out(self, key: Key) -> None:
        """Let no turn come to a listed key; its place stays."""
        pages = self._overdue.pop(key, None)
        if pages is None:
            pages = self._line[key]
        self._held[key] = pages
        self.pages -= pages

    def put_back(self, key: Key) -> None:
        """List a key again that was held out: at its place, or before all in line if its turn has passed."""
        pages = self._held.pop(key)
        if key not in self._line:
            self._overdue[key] = pages
        self.pages += pages

    def remove(self, key: Key) -> None:
        """Take a key out, listed or held out."""
        in_line = self._line.pop(key, None)
        if self._held.pop(key, None) is None:
            self.pages -= self._overdue.pop(key) if in_line is None else in_line

    def first(self) -> Key:
        """Return the listed key whose turn it is; there must be one."""
        if self._overdue:
            return next(iter(self._overdue))
        while (key := next(iter(self._line))) in self._held:
            del self._line[key]
        return key

    def first_few(self, most: int) -> list[Key]:
        """Return the listed keys among the next so many in turn."""
        self.first()
        turns = islice(chain(self._overdue, self._line), most)
        return [key for key in turns if key not in self._held]

    def pop_first(self) -> tuple[Key, int]:
        """Take out the listed key whose turn it is, with its pages; there must be one."""
        key = self.first()
        pages = self._overdue.pop(key, None)
        if pages is None:
            pages = self._line.pop(key)
        self.pages -= pages
        return key, pages
