"""What a cold tier holds and what it is worth: which objects may be written, which go for them, which warm a node.

Pure and synchronous. Rules: what has been asked for once is not written, for most of it never is again; and what would
have to push out what is wanted more often is not written either (TinyLFU: Einziger, Friedman and Manes, 2017).
"""

from collections import OrderedDict
from collections.abc import Container, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import xxhash

from tierline.store import ObjectKey

_ROWS = 4
_WIDTH = 65_536
_MOST = 15
_HALVED = bytes(count // 2 for count in range(256))
_CANDIDATES = 16


class Held(NamedTuple):
    """An object in a cold tier: its size, and the directory slot of its prefix."""

    size: int
    slot: int


class Sketch:
    """How often keys were used of late, in 256 KiB whatever their number: never too few, seldom too many, 15 at most.

    Counts are halved every so often, so that what was popular once is forgotten.

    Parameters
    ----------
    width
        Cells of each of its four rows, a power of two; counts are halved after eight times so many uses.
    """

    def __init__(self, width: int = _WIDTH) -> None:
        self._mask = width - 1
        self._left = self._period = 8 * width
        self._rows = [bytearray(width) for _ in range(_ROWS)]

    def add(self, key: ObjectKey) -> int:
        """Count a use and return how many there are."""
        cells = self._cells(key)
        least = min(row[cell] for row, cell in zip(self._rows, cells, strict=True))
        if least < _MOST:
            for row, cell in zip(self._rows, cells, strict=True):
                row[cell] = max(row[cell], least + 1)
        self._left -= 1
        if not self._left:
            self._left = self._period
            self._rows = [row.translate(_HALVED) for row in self._rows]
        return self.count(key)

    def count(self, key: ObjectKey) -> int:
        """Return how often a key was used."""
        return min(row[cell] for row, cell in zip(self._rows, self._cells(key), strict=True))

    def _cells(self, key: ObjectKey) -> Sequence[int]:
        digest = xxhash.xxh3_128_intdigest(f"{key.bucket}\0{key.name}".encode())
        return [digest >> 32 * row & self._mask for row in range(_ROWS)]


class ColdIndex:
    """The objects of a cold tier, coldest first.

    Invariant: what is held and what is being written are together no more than the budget, as far as this index knows.

    Parameters
    ----------
    budget
        Bytes; ``None`` for no bound.
    least_uses
        How often an object must have been offered to be written.
    """

    def __init__(self, budget: int | None, least_uses: int) -> None:
        self._budget = budget
        self._least_uses = least_uses
        self._held: OrderedDict[ObjectKey, Held] = OrderedDict()
        self._sketch = Sketch()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._held

    @property
    def bytes(self) -> int:
        """What is held, and what is being written."""
        return self._bytes

    def get(self, key: ObjectKey) -> Held | None:
        """Return what is known of an object."""
        return self._held.get(key)

    def use(self, keys: Sequence[ObjectKey]) -> None:
        """Count a use of each; of one prefix the last goes before the first, without which it is worth nothing."""
        for key in reversed(keys):
            if key in self._held:
                self._held.move_to_end(key)
                self._sketch.add(key)

    def admit(self, key: ObjectKey, size: int) -> Sequence[tuple[ObjectKey, Held]] | None:
        """Count an offer; return what has to go so that the object may be written, ``None`` where it may not.

        What has to go is forgotten with this, and the room is taken: :meth:`add` or :meth:`give_up` follows.
        """
        uses = self._sketch.add(key)
        if uses < self._least_uses or (self._budget is not None and size > self._budget):
            return None
        leaving: dict[ObjectKey, Held] = {}
        if self._budget is not None:
            missing = self._bytes + size - self._budget
            while missing > 0:
                coldest = self._coldest(leaving)
                if coldest is None or self._sketch.count(coldest) > uses:
                    return None
                leaving[coldest] = self._held[coldest]
                missing -= leaving[coldest].size
        for each in leaving:
            self.remove(each)
        self._bytes += size
        return list(leaving.items())

    def add(self, key: ObjectKey, held: Held) -> None:
        """Take note that an object that was admitted is written."""
        replaced = self._held.pop(key, None)
        self._held[key] = held
        if replaced is not None:
            self._bytes -= replaced.size

    def give_up(self, size: int) -> None:
        """Give back the room of an object that was admitted and is not written."""
        self._bytes -= size

    def found(self, key: ObjectKey, held: Held) -> None:
        """Take note of an object that was there before: colder than all that is known, if it is not known itself."""
        if key not in self._held:
            self._held[key] = held
            self._held.move_to_end(key, last=False)
            self._bytes += held.size

    def remove(self, key: ObjectKey) -> None:
        """Forget an object."""
        held = self._held.pop(key, None)
        if held is not None:
            self._bytes -= held.size

    def excess(self) -> Sequence[tuple[ObjectKey, Held]]:
        """Forget, and return, the coldest as far as there is more than the budget allows."""
        leaving: list[tuple[ObjectKey, Held]] = []
        while self._budget is not None and self._bytes > self._budget and self._held:
            key, held = next(iter(self._held.items()))
            leaving.append((key, held))
            self.remove(key)
        return leaving

    def known(self) -> set[ObjectKey]:
        """Return all that are held."""
        return set(self._held)

    def warmest(self, limit_bytes: int) -> Sequence[tuple[ObjectKey, Held]]:
        """Return what is worth having first, up to so many bytes: used most often, then most recently."""
        latest: Iterator[ObjectKey] = reversed(self._held)
        chosen = []
        for key in sorted(latest, key=lambda key: -self._sketch.count(key)):
            held = self._held[key]
            if held.size <= limit_bytes:
                limit_bytes -= held.size
                chosen.append((key, held))
        return chosen

    def _coldest(self, leaving: Container[ObjectKey]) -> ObjectKey | None:
        """Return, of the next few that were not used for longest, the one that was used least."""
        candidates = list(islice((key for key in self._held if key not in leaving), _CANDIDATES))
        return min(candidates, key=self._sketch.count, default=None)
