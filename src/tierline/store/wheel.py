"""Things that fall due at a time, a quarter of a second coarse; never early, and as cheap for a million as for one."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

TICK_SECONDS = 0.25
_FEW_TICKS = 64
"""As many ticks too much are not worth tidying up."""

Item = TypeVar("Item", bound=Hashable)


class DueWheel(Generic[Item]):
    """Items filed under the tick at which they fall due: putting and discarding one is O(1), amortised.

    Items of one tick come in the order they were put. (Varghese and Lauck, "Hashed and hierarchical timing wheels",
    1987; the spokes are a dictionary here, and a heap says which is next: most ticks of a day hold nothing.)

    Invariant: no spoke is empty, and each has its tick in the heap, at least once. The heap is at most twice as long as
    there are spokes, and some, so its size is that of what is filed, however far away that falls due.
    """

    def __init__(self) -> None:
        self._spokes: dict[int, OrderedDict[Item, None]] = {}
        self._ticks: list[int] = []

    def put(self, item: Item, due: float) -> None:
        """File an item, which is not in the wheel yet, under a time."""
        tick = _tick(due)
        spoke = self._spokes.get(tick)
        if spoke is None:
            spoke = self._make_spoke(tick)
        spoke[item] = None

    def put_all(self, items: Sequence[Item], due: float) -> None:
        """File items, in their order, under one time."""
        if not items:
            return
        tick = _tick(due)
        spoke = self._spokes.get(tick)
        if spoke is None:
            spoke = self._make_spoke(tick)
        for item in items:
            spoke[item] = None

    def discard(self, item: Item, due: float) -> None:
        """Take out an item that was put with this time, if it is still there."""
        tick = _tick(due)
        spoke = self._spokes.get(tick)
        if spoke is not None:
            spoke.pop(item, None)
            if not spoke:
                del self._spokes[tick]

    def take_due(self, now: float) -> Iterator[Item]:
        """Take out items whose time has come, earliest tick first. Items may be put while this is iterated."""
        while self._ticks and self._ticks[0] * TICK_SECONDS <= now:
            tick = self._ticks[0]
            spoke = self._spokes.get(tick)
            if spoke is None:
                heappop(self._ticks)
                continue
            item, _ = spoke.popitem(last=False)
            if not spoke:
                del self._spokes[tick]
            yield item

    def _make_spoke(self, tick: int) -> OrderedDict[Item, None]:
        spoke = self._spokes[tick] = OrderedDict()
        if len(self._ticks) > 2 * len(self._spokes) + _FEW_TICKS:
            self._ticks = list(self._spokes)
            heapify(self._ticks)
        else:
            heappush(self._ticks, tick)
        return spoke


def _tick(due: float) -> int:
    """Return the first tick at or after a time."""
    return -int(-due // TICK_SECONDS)
