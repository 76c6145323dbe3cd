"""Pages of a segment, handed out as few contiguous runs; every page is either free here or somebody's, never both.

A segment is cut into pages of 64 KiB. Free pages are kept as *runs*, each as long as it can be: a run given back is
joined with its free neighbours. A request takes the shortest run that holds it whole (best fit; of equal ones the one
given back last, whose memory is warm). If there is none, it is pieced together from the longest runs, at most 32 of
them. If that fails too, the caller evicts something and asks again; nothing is ever moved.

Runs are found by their length: there are at most ``sqrt(2 * pages)`` different lengths, 5,800 for a terabyte, so a
sorted list of lengths and a pile of runs for each make every step a bisection or a dictionary access, whatever
the number of pages (docs/decisions/pages-and-extents.md).
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tierline.store.objects import Extent

PAGE_BYTES = 64 * 1024
"""Unit of allocation: 0.2 % of an object of 32 MiB + 28 bytes is waste; copies are at 80 % of memcpy's speed."""

MAX_FRAGMENTS = 32
"""Most extents of one object: keeps a lease's answer short and the copy of a large object at full speed."""


class Run(NamedTuple):
    """``pages`` pages from page ``start`` on."""

    start: int
    pages: int


class PageAllocator:
    """Free pages of a fixed range.

    Invariant: free runs are disjoint, never adjacent, and never empty; ``free_pages`` is the sum of their lengths.

    Parameters
    ----------
    free_runs
        What is free at the beginning: disjoint runs, none touching another.
    max_fragments
        Most runs an allocation may be pieced together from.
    """

    def __init__(self, free_runs: Iterable[Run], max_fragments: int = MAX_FRAGMENTS) -> None:
        self.free_pages = 0
        self._max_fragments = max_fragments
        self._count_at_start: dict[int, int] = {}
        self._start_at_end: dict[int, int] = {}
        self._lengths: list[int] = []
        self._piles: dict[int, dict[int, None]] = {}  # length -> starts, an ordered set
        for start, count in free_runs:
            self._put(start, count)

    @property
    def largest_run(self) -> int:
        """Pages of the longest contiguous free run."""
        return self._lengths[-1] if self._lengths else 0

    def free_runs(self) -> list[Run]:
        """List the free runs by place."""
        return [Run(start, count) for start, count in sorted(self._count_at_start.items())]

    def allocate(self, pages: int) -> tuple[Run, ...] | None:
        """Take ``pages`` pages, or return ``None`` and take nothing."""
        if pages > self.free_pages or not self._can_piece_together(pages):
            return None
        taken: list[Run] = []
        while pages:
            fitting = bisect_left(self._lengths, pages)
            length = self._lengths[min(fitting, len(self._lengths) - 1)]
            start = self._take_latest(length)
            count = min(length, pages)
            if count < length:
                self._put(start + count, length - count)
            taken.append(Run(start, count))
            pages -= count
        return tuple(taken)

    def free(self, runs: Iterable[Run]) -> None:
        """Give runs back, whole or in part; they join with the free runs on either side."""
        for start, count in runs:
            end = start + count
            assert start not in self._count_at_start, f"page {start} is free already"
            following = self._count_at_start.get(end)
            if following is not None:
                self._take(end, following)
                end += following
            preceding = self._start_at_end.get(start)
            if preceding is not None:
                self._take(preceding, start - preceding)
                start = preceding
            self._put(start, end - start)

    def _can_piece_together(self, pages: int) -> bool:
        """Whether the longest runs, as many as allowed, hold so many pages."""
        fragments = self._max_fragments
        for length in reversed(self._lengths):
            used = min(fragments, len(self._piles[length]))
            pages -= used * length
            fragments -= used
            if pages <= 0:
                return True
            if fragments == 0:
                return False
        return False

    def _put(self, start: int, count: int) -> None:
        self.free_pages += count
        self._count_at_start[start] = count
        self._start_at_end[start + count] = start
        pile = self._piles.get(count)
        if pile is None:
            self._piles[count] = {start: None}
            insort(self._lengths, count)
        else:
            pile[start] = None

    def _take(self, start: int, count: int) -> None:
        del self._piles[count][start]
        self._forget(start, count)

    def _take_latest(self, count: int) -> int:
        start, _ = self._piles[count].popitem()
        self._forget(start, count)
        return start

    def _forget(self, start: int, count: int) -> None:
        self.free_pages -= count
        del self._count_at_start[start]
        del self._start_at_end[start + count]
        if not self._piles[count]:
            del self._piles[count]
            del self._lengths[bisect_left(self._lengths, count)]


def free_between(used: Iterable[Run], start: int, end: int) -> Iterator[Run]:
    """Yield what disjoint runs leave free of the pages from ``start`` to ``end``, by place."""
    for used_start, count in sorted(used):
        if used_start > start:
            yield Run(start, used_start - start)
        start = used_start + count
    if start < end:
        yield Run(start, end - start)


def pages_for(size_bytes: int) -> int:
    """Pages that hold so many bytes."""
    return -(-size_bytes // PAGE_BYTES)


def extents_of(runs: Iterable[Run], size_bytes: int) -> tuple[Extent, ...]:
    """Return the extents that ``size_bytes`` bytes take in these runs: the last one ends where the bytes do."""
    extents = []
    for start, count in runs:
        if size_bytes <= 0:
            break
        length = min(count * PAGE_BYTES, size_bytes)
        extents.append(Extent(start * PAGE_BYTES, length))
        size_bytes -= length
    return tuple(extents)


def runs_of(extents: Sequence[Extent]) -> tuple[Run, ...]:
    """Return the pages that extents lie in; the inverse of :func:`extents_of` for an object that fills its runs."""
    return tuple(Run(offset // PAGE_BYTES, pages_for(length)) for offset, length in extents)


def split_runs(runs: Sequence[Run], pages: int) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """Split runs into their first ``pages`` pages and the rest."""
    head: list[Run] = []
    tail: list[Run] = []
    for start, count in runs:
        kept = min(count, pages)
        pages -= kept
        if kept:
            head.append(Run(start, kept))
        if kept < count:
            tail.append(Run(start + kept, count - kept))
    return tuple(head), tuple(tail)
