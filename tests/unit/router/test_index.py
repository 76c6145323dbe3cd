"""The prefix index: closed under prefixes, bounded in memory."""

import random
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tierline.router.index import PLACEMENT_BYTES, PrefixIndex

ENDPOINTS, CAPACITY = 3, 8


def chain(text: str) -> list[int]:
    return [hash(text[: end + 1]) for end in range(len(text))]


def depth(index: PrefixIndex, text: str, position: int) -> int:
    return index.match(chain(text)).get(position, 0)


class IndexIsALeastRecentlyUsedSetOfPrefixes(RuleBasedStateMachine):
    """The model keeps, for each endpoint, prefixes in order of use, ancestors after their descendants."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(ENDPOINTS, ENDPOINTS * CAPACITY * PLACEMENT_BYTES)
        self.model: list[list[str]] = [[] for _ in range(ENDPOINTS)]

    @rule(position=st.integers(0, ENDPOINTS - 1), text=st.text("ab", max_size=12))
    def place(self, position: int, text: str) -> None:
        self.index.place(position, chain(text))
        prefixes = [text[:end] for end in range(min(len(text), CAPACITY), 0, -1)]
        kept = [prefix for prefix in self.model[position] if prefix not in prefixes]
        self.model[position] = (kept + prefixes)[-CAPACITY:]

    @rule(position=st.integers(0, ENDPOINTS - 1))
    def forget(self, position: int) -> None:
        self.index.forget(position)
        self.model[position] = []

    @rule(text=st.text("ab", max_size=12))
    def match(self, text: str) -> None:
        for position in range(ENDPOINTS):
            held = [end for end in range(1, len(text) + 1) if text[:end] in self.model[position]]
            assert depth(self.index, text, position) == max(held, default=0)
            assert held == list(range(1, len(held) + 1)), "prefix-closed"

    @invariant()
    def it_holds_as_much_as_the_model(self) -> None:
        assert len(self.index) == sum(map(len, self.model))


TestIndex = IndexIsALeastRecentlyUsedSetOfPrefixes.TestCase
TestIndex.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@given(st.lists(st.tuples(st.integers(0, ENDPOINTS - 1), st.text("ab", max_size=12)), max_size=20), st.text("ab"))
def test_what_is_known_is_what_the_deepest_holds(placements: list[tuple[int, str]], text: str) -> None:
    index = PrefixIndex(ENDPOINTS, ENDPOINTS * CAPACITY * PLACEMENT_BYTES)
    for position, prompt in placements:
        index.place(position, chain(prompt))
    assert index.known(chain(text)) == max(index.match(chain(text)).values(), default=0)


def test_unique_prompts_without_end_stay_within_the_budget() -> None:
    """Weighed by the allocator, at its largest, over three times what fits."""
    budget, endpoints = 4 * 2**20, 4
    dice = random.Random(1)
    tracemalloc.start()
    try:
        index = PrefixIndex(endpoints, budget)
        for number in range(3 * budget // PLACEMENT_BYTES // 20):
            index.place(number % endpoints, [dice.getrandbits(64) for _ in range(20)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(index) == endpoints * index.capacity
    assert peak <= budget
    assert index.size_bytes <= budget


def test_blocks_that_all_endpoints_share_stay_within_the_budget_too() -> None:
    budget, endpoints = 2**20, 40  # masks beyond small integers
    dice = random.Random(1)
    tracemalloc.start()
    try:
        index = PrefixIndex(endpoints, budget)
        for _ in range(20):
            prompt = [dice.getrandbits(64) for _ in range(20)]
            for position in range(endpoints):
                index.place(position, list(prompt))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= budget


def test_endpoints_that_come_share_the_budget_and_give_their_part_back_when_they_go() -> None:
    budget = 2**20
    dice = random.Random(1)
    tracemalloc.start()
    try:
        index = PrefixIndex(1, budget)
        for position in (0, 1, 7, 100):
            for _ in range(2 * budget // PLACEMENT_BYTES // 20):
                index.place(position, [dice.getrandbits(64) for _ in range(20)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= budget
    assert len(index) == 4 * index.capacity
    for position in (0, 1, 7):
        index.forget(position)
    index.place(0, chain("a"))
    assert index.endpoints == 2
    assert index.capacity == budget // PLACEMENT_BYTES // 2


def test_a_prompt_longer_than_the_capacity_keeps_its_start() -> None:
    index = PrefixIndex(1, CAPACITY * PLACEMENT_BYTES)
    index.place(0, chain("a" * 20))
    assert depth(index, "a" * 20, 0) == CAPACITY


def test_a_hot_beginning_outlives_others_though_it_is_not_renewed_with_every_request() -> None:
    index = PrefixIndex(1, 2000 * PLACEMENT_BYTES)
    hot = list(range(100))
    for number in range(1, 200):
        index.place(0, [*hot, *range(1000 * number, 1000 * number + 50)])
        index.place(0, list(range(10**6 * number, 10**6 * number + 50)))
        assert index.match(hot)
    assert len(index) == 2000


def test_a_hot_beginning_is_renewed_though_what_its_endpoint_may_hold_changes() -> None:
    index = PrefixIndex(1, 20_000 * PLACEMENT_BYTES)
    hot = list(range(64))
    index.place(0, hot, 1_000)
    index.place(0, range(1_000, 1_900), 1_000)
    index.place(0, hot, 16_000)  # much waits there, which has displaced nothing yet
    index.place(0, range(2_000, 2_500), 1_000)
    assert index.match(hot) == {0: 64}


def test_what_was_withdrawn_of_a_hot_beginning_is_placed_again() -> None:
    index = PrefixIndex(1, 2000 * PLACEMENT_BYTES)
    hot = list(range(100))
    index.place(0, [*hot, 500])
    index.withdraw(0, hot[50:])
    index.place(0, [*hot, 500])
    index.withdraw(0, [500])
    assert len(index) == 100
