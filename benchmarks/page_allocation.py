"""Fragments and CPU time of the page allocator under churn, beside next fit over a map of bytes.

Run ``python benchmarks/page_allocation.py``. A store is filled and then kept full: each new object evicts the oldest,
and three times in ten another old one, as leases and frequency make a policy do.
"""
# ruff: noqa: T201

import itertools
import random
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from tierline.store.extents import MAX_FRAGMENTS, PageAllocator, Run

WORKLOADS: dict[str, Callable[[], int]] = {
    "513 pages (Llama-3.1-8B, LMCache)": lambda: 513,
    "45 or 91 pages (SmolLM2-135M, 128 or 256 tokens)": lambda: random.choice((45, 91)),
    "1 to 600 pages": lambda: random.randint(1, 600),
}


class Allocator(Protocol):
    """What is compared."""

    def allocate(self, pages: int) -> tuple[Run, ...] | None:
        """Take pages."""

    def free(self, runs: Iterable[Run]) -> None:
        """Give them back."""


class NextFit:
    """One byte a page; a request takes the next run that holds it, or else the next free runs whatever their length."""

    def __init__(self, pages: int) -> None:
        self._is_taken = bytearray(pages)
        self._cursor = 0

    def allocate(self, pages: int) -> tuple[Run, ...] | None:
        """Take pages from the cursor on."""
        wanted = bytes(pages)
        start = self._is_taken.find(wanted, self._cursor)
        if start < 0:
            start = self._is_taken.find(wanted)
        runs = [Run(start, pages)] if start >= 0 else self._gather(pages)
        if runs is None:
            return None
        for run in runs:
            self._is_taken[run.start : run.start + run.pages] = b"\1" * run.pages
        self._cursor = runs[-1].start + runs[-1].pages
        return tuple(runs)

    def free(self, runs: Iterable[Run]) -> None:
        """Give pages back."""
        for start, count in runs:
            self._is_taken[start : start + count] = bytes(count)

    def _gather(self, pages: int) -> list[Run] | None:
        runs: list[Run] = []
        for low, high in ((self._cursor, len(self._is_taken)), (0, self._cursor)):
            start = self._is_taken.find(0, low, high)
            while start >= 0 and len(runs) < MAX_FRAGMENTS:
                end = self._is_taken.find(1, start, high)
                count = min((high if end < 0 else end) - start, pages)
                runs.append(Run(start, count))
                pages -= count
                if pages == 0:
                    return runs
                start = self._is_taken.find(0, start + count, high)
        return None


def churn(allocator: Allocator, size: Callable[[], int], operations: int) -> str:
    """Return what was seen, in words."""
    random.seed(1)
    live: dict[int, tuple[Run, ...]] = {}
    fragments: list[int] = []
    begun = time.process_time()
    for number in range(operations):
        pages = size()
        while (runs := allocator.allocate(pages)) is None:
            oldest = list(itertools.islice(live, 64))
            allocator.free(live.pop(oldest[0] if random.random() < 0.7 else random.choice(oldest)))
        live[number] = runs
        fragments.append(len(runs))
    seconds = time.process_time() - begun
    late = sorted(fragments[operations // 2 :])
    return (
        f"{seconds / operations * 1e6:.0f} CPU-µs an object, {sum(late) / len(late):.1f} fragments on average, "
        f"{late[int(0.99 * len(late))]} at P99"
    )


if __name__ == "__main__":
    for pages, operations in ((8_192, 4_000), (1_000_000, 20_000)):
        for name, size in WORKLOADS.items():
            print(f"{pages} pages, objects of {name}")
            print("   best fit:", churn(PageAllocator([Run(0, pages)]), size, operations))
            print("   next fit:", churn(NextFit(pages), size, operations))
