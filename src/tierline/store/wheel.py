"""Things that fall due at a time, a quarter of a second coarse; never early, and as cheap for a million as for one."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

TICK_SECONDS = 0.25

Item = TypeVar("Item", bound=Hashable)


class DueWheel(Generic[Item]):
    """Items filed under the tick at which they fall due: putting, discarding and taking one are O(1) each.

    Items of one tick come in the order they were put. (Varghese and Lauck, "Hashed and hierarchical timing wheels",
    1987; the spokes are a dictionary here, since ticks that hold nothing then cost nothing.)
    """

    def __init__(self) -> None:
        self._spokes: dict[int, OrderedDict[Item, None]] = {}

    def put(self, item: Item, due: float) -> None:
        """File an item, which is not in the wheel yet, under a time."""
        tick = _tick(due)
        spoke = self._spokes.get(tick)
        if spoke is None:
            spoke = self._spokes[tick] = OrderedDict()
        spoke[item] = None

    def discard(self, item: Item, due: float) -> None:
        """Take out an item that was put with this time, if it is still there."""
        spoke = self._spokes.get(_tick(due))
        if spoke is not None:
            spoke.pop(item, None)

    def take_due(self, now: float) -> Iterator[Item]:
        """Take out items whose time has come, earliest tick first. Items may be put while this is iterated."""
        for tick in sorted(tick for tick in self._spokes if tick * TICK_SECONDS <= now):
            spoke = self._spokes[tick]
            while spoke:
                yield spoke.popitem(last=False)[0]
            del self._spokes[tick]


def _tick(due: float) -> int:
    """Return the first tick at or after a time."""
    return -int(-due // TICK_SECONDS)
