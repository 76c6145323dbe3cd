"""The rule of load or recompute, and the speeds that it goes by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.loading import BELIEVED_S, CUTS, Decision, PrefillCost, PrefillRate, Speed, decide

BLOCKS = st.integers(1, 300)
SECONDS = st.floats(1e-6, 10.0)
GROWTHS = st.floats(0.0, 0.1)
FACTORS = st.floats(0.1, 4.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _uniform(latency_s: float, block_s: float, count: int) -> float:
    return latency_s + block_s * count


# The decision -----------------------------------------------------------------------------------------------------


@given(BLOCKS, SECONDS, SECONDS, SECONDS, GROWTHS, st.integers(0, 100), FACTORS)
def test_a_run_from_one_place_is_loaded_whole_or_not_at_all_as_the_inequality_says(
    blocks: int, latency_s: float, block_s: float, first_s: float, growth_s: float, start: int, factor: float
) -> None:
    prefill = PrefillCost(first_s, growth_s)
    decision = decide(blocks, lambda count: _uniform(latency_s, block_s, count), prefill, start=start, factor=factor)
    prefill_s = prefill.seconds(start, start + blocks)
    is_faster = _uniform(latency_s, block_s, blocks) < factor * prefill_s
    assert decision.blocks == (blocks if is_faster else 0)
    assert decision.label == ("load" if is_faster else "recompute")
    assert decision.prefill_s == prefill_s


@given(st.lists(SECONDS, min_size=1, max_size=CUTS), SECONDS, FACTORS)
def test_no_end_of_what_is_loaded_would_have_been_computed_faster(
    each_s: list[float], first_s: float, factor: float
) -> None:
    prefill = PrefillCost(first_s)
    chosen = decide(len(each_s), lambda count: sum(each_s[:count]), prefill, factor=factor).blocks
    for count in range(chosen):
        assert sum(each_s[count:chosen]) <= factor * prefill.seconds(count, chosen) * (1 + 1e-9)
    for count in range(chosen + 1, len(each_s) + 1):
        assert sum(each_s[chosen:count]) >= factor * prefill.seconds(chosen, count) * (1 - 1e-9)


@given(st.lists(SECONDS, min_size=1, max_size=64), SECONDS, FACTORS, st.floats(1.0, 10.0))
def test_a_faster_tier_never_loads_less(each_s: list[float], first_s: float, factor: float, times: float) -> None:
    prefill = PrefillCost(first_s)
    slow = decide(len(each_s), lambda count: sum(each_s[:count]), prefill, factor=factor).blocks
    fast = decide(len(each_s), lambda count: sum(each_s[:count]), prefill, factor=factor * times).blocks
    assert fast >= slow


def test_a_run_is_cut_where_a_slow_holder_begins() -> None:
    each_s = [0.01] * 8 + [1.0] * 8
    decision = decide(16, lambda count: sum(each_s[:count]), PrefillCost(0.1))
    assert (decision.blocks, decision.label) == (8, "load")
    assert (decision.load_s, decision.prefill_s) == pytest.approx((8.08, 1.6))


def test_what_is_not_known_is_tried() -> None:
    assert decide(5, lambda _: None, PrefillCost(1.0)) == Decision(5, None, 5.0)
    assert decide(5, lambda _: 1.0, None) == Decision(5, 1.0, None)
    assert decide(5, lambda _: 1.0, None).label == "unknown"


def test_blocks_deep_in_a_prompt_are_worth_a_slower_load() -> None:
    prefill = PrefillCost(0.1, 0.01)
    assert decide(10, lambda count: count * 0.2, prefill).label == "recompute"
    assert decide(10, lambda count: count * 0.2, prefill, start=100).label == "load"


def test_nothing_found_is_nothing_to_load() -> None:
    assert decide(0, lambda _: None, None).blocks == 0


@given(SECONDS, GROWTHS, st.integers(1, 512), st.integers(0, 40), st.integers(0, 40))
def test_a_prompts_cost_is_the_same_in_tokens_and_in_blocks(
    first_s: float, growth_s: float, size: int, start: int, count: int
) -> None:
    tokens = PrefillCost(first_s, growth_s)
    in_blocks = tokens.of_blocks(size).seconds(start, start + count)
    assert in_blocks == pytest.approx(tokens.seconds(start * size, (start + count) * size))


# What is observed -------------------------------------------------------------------------------------------------


def test_nothing_is_known_of_a_place_that_nobody_fetched_from() -> None:
    speed = Speed(Clock())
    assert speed.seconds(1) is None
    assert speed.bytes_per_s is None


@given(st.floats(1e-5, 0.1), st.floats(1e6, 1e11), st.lists(st.integers(1, 2**26), min_size=2, max_size=40))
def test_latency_and_bandwidth_are_told_apart_by_fetches_of_several_sizes(
    latency_s: float, bytes_per_s: float, sizes: list[int]
) -> None:
    speed = Speed(Clock())
    for size in [*sizes, 2**10, 2**20, 2**26]:
        speed.observe(size, latency_s + size / bytes_per_s)
    for size in (2**12, 2**24):
        assert speed.seconds(size) == pytest.approx(latency_s + size / bytes_per_s, rel=0.01)


@given(st.lists(st.tuples(st.integers(1, 2**32), st.floats(1e-6, 100.0)), min_size=1, max_size=60))
def test_whatever_was_observed_more_bytes_never_take_less_time(fetches: list[tuple[int, float]]) -> None:
    speed = Speed(Clock())
    for size, seconds in fetches:
        speed.observe(size, seconds)
    assert speed.bytes_per_s is not None
    assert speed.bytes_per_s > 0
    taken = [speed.seconds(size) for size in (1, 2**20, 2**30)]
    assert all(seconds is not None and seconds >= 0 for seconds in taken)
    assert taken == sorted(taken, key=lambda seconds: seconds or 0.0)


def test_fetches_of_one_size_are_predicted_by_themselves() -> None:
    speed = Speed(Clock())
    for _ in range(5):
        speed.observe(1_000_000, 0.5)
    assert speed.seconds(1_000_000) == pytest.approx(0.5)
    assert speed.bytes_per_s == pytest.approx(2e6)


def test_a_link_that_became_slow_is_believed_after_some_ten_fetches() -> None:
    speed = Speed(Clock())
    for _ in range(100):
        speed.observe(1_000_000, 0.001)
    for _ in range(10):
        speed.observe(1_000_000, 0.1)
    assert (speed.seconds(1_000_000) or 0) > 0.06


def test_a_tier_that_was_too_slow_is_tried_again_after_a_while_and_believed_at_once() -> None:
    clock = Clock()
    speed = Speed(clock)
    speed.observe(1_000_000, 10.0)
    clock.now += BELIEVED_S + 1
    assert speed.seconds(1_000_000) is None
    speed.observe(1_000_000, 0.001)
    assert speed.seconds(1_000_000) == pytest.approx(0.001)


def test_what_took_no_time_or_brought_nothing_says_nothing() -> None:
    speed = Speed(Clock())
    speed.observe(0, 1.0)
    speed.observe(1, 0.0)
    assert speed.seconds(1) is None


@given(st.floats(1e-6, 1e-3), st.floats(1e-12, 1e-7), st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_a_prefill_rate_learns_what_a_token_takes_and_what_those_before_it_add(
    first_s: float, growth_s: float, chunks: list[int]
) -> None:
    rate = PrefillRate()
    truth = PrefillCost(first_s, growth_s)
    for chunk in [*chunks, 0, 4, 30]:
        start, stop = chunk * 512, (chunk + 1) * 512
        rate.observe(512, sum(range(start, stop)), truth.seconds(start, stop))
    cost = rate.cost()
    assert cost is not None
    assert cost.seconds(0, 4096) == pytest.approx(truth.seconds(0, 4096), rel=0.05)


def test_a_prefill_rate_is_not_known_before_a_prompt_was_computed() -> None:
    rate = PrefillRate()
    rate.observe(0, 0, 1.0)
    assert rate.cost() is None
