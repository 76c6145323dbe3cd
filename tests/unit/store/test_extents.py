import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tierline.store.extents import (
    MAX_FRAGMENTS,
    PAGE_BYTES,
    PageAllocator,
    Run,
    extents_of,
    free_between,
    pages_for,
    runs_of,
    split_runs,
)

PAGES = 200


class AllocatorMachine(RuleBasedStateMachine):
    """The model is a set of free pages: too slow to be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = PageAllocator([Run(0, PAGES)])
        self.free = set(range(PAGES))
        self.held: list[tuple[Run, ...]] = []

    @rule(pages=st.integers(1, PAGES))
    def allocate(self, pages: int) -> None:
        longest = sorted((run.pages for run in self.allocator.free_runs()), reverse=True)[:MAX_FRAGMENTS]
        runs = self.allocator.allocate(pages)
        assert (runs is None) == (sum(longest) < pages)
        if runs is not None:
            assert len(runs) <= MAX_FRAGMENTS
            taken = [page for start, count in runs for page in range(start, start + count)]
            assert len(taken) == len(set(taken)) == pages
            assert self.free.issuperset(taken)
            self.free.difference_update(taken)
            self.held.append(runs)

    @rule()
    def fill_with_single_pages(self) -> None:
        while runs := self.allocator.allocate(1):
            self.free.remove(runs[0].start)
            self.held.append(runs)

    @precondition(lambda self: self.held)
    @rule(choice=st.randoms(use_true_random=False), share=st.floats(0, 1))
    def give_back_some(self, choice: object, share: float) -> None:
        choice.shuffle(self.held)  # type: ignore[attr-defined]
        kept = int(share * len(self.held))
        for runs in self.held[kept:]:
            self.allocator.free(runs)
            self.free.update(page for start, count in runs for page in range(start, start + count))
        del self.held[kept:]

    @invariant()
    def free_runs_are_the_free_pages_and_as_long_as_can_be(self) -> None:
        runs = self.allocator.free_runs()
        assert {page for start, count in runs for page in range(start, start + count)} == self.free
        assert sum(count for _, count in runs) == self.allocator.free_pages == len(self.free)
        assert all(left.start + left.pages < right.start for left, right in itertools.pairwise(runs))
        assert self.allocator.largest_run == max((count for _, count in runs), default=0)


TestAllocator = AllocatorMachine.TestCase
TestAllocator.settings = settings(max_examples=60, stateful_step_count=30)


def test_a_request_takes_the_shortest_run_that_holds_it_whole() -> None:
    allocator = PageAllocator([Run(0, 9), Run(10, 4), Run(20, 3)])

    assert allocator.allocate(4) == (Run(10, 4),)
    assert allocator.allocate(5) == (Run(0, 5),)


def test_a_request_that_no_run_holds_is_pieced_together_from_the_longest() -> None:
    allocator = PageAllocator([Run(0, 2), Run(10, 4), Run(20, 3)])

    assert allocator.allocate(6) == (Run(10, 4), Run(0, 2))


def test_a_request_that_would_need_more_than_32_fragments_is_refused_and_takes_nothing() -> None:
    allocator = PageAllocator(Run(2 * index, 1) for index in range(40))

    assert allocator.allocate(33) is None
    assert allocator.free_pages == 40
    assert allocator.allocate(32) is not None


def test_giving_back_what_is_free_is_a_bug() -> None:
    allocator = PageAllocator([Run(0, 9)])

    with pytest.raises(AssertionError, match="free already"):
        allocator.free([Run(0, 1)])


@given(st.sets(st.integers(0, 99)))
def test_free_runs_and_used_runs_fill_the_range(used: set[int]) -> None:
    free = list(free_between((Run(page, 1) for page in used), 0, 100))

    assert {page for start, count in free for page in range(start, start + count)} == set(range(100)) - used
    assert all(left.start + left.pages < right.start for left, right in itertools.pairwise(free))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=MAX_FRAGMENTS), st.data())
def test_extents_hold_exactly_the_bytes_of_the_object(counts: list[int], data: st.DataObject) -> None:
    runs = tuple(Run(100 * index, count) for index, count in enumerate(counts))
    size = data.draw(st.integers((sum(counts) - 1) * PAGE_BYTES + 1, sum(counts) * PAGE_BYTES))

    extents = extents_of(runs, size)

    assert sum(extent.length for extent in extents) == size
    assert all(extent.length > 0 for extent in extents)
    assert runs_of(extents) == runs


@given(st.lists(st.integers(1, 50), min_size=1), st.data())
def test_split_runs_are_the_runs(counts: list[int], data: st.DataObject) -> None:
    runs = tuple(Run(100 * index, count) for index, count in enumerate(counts))
    pages = data.draw(st.integers(0, sum(counts)))

    head, tail = split_runs(runs, pages)

    assert sum(run.pages for run in head) == pages
    assert [page for start, count in head + tail for page in range(start, start + count)] == [
        page for start, count in runs for page in range(start, start + count)
    ]


@pytest.mark.parametrize(("size", "pages"), [(1, 1), (PAGE_BYTES, 1), (PAGE_BYTES + 1, 2), (32 * 2**20 + 28, 513)])
def test_pages_are_rounded_up(size: int, pages: int) -> None:
    assert pages_for(size) == pages
