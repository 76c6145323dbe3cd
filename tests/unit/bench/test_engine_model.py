"""The engine model: what it computes and keeps, and when it says so."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.bench.engine_model import BlockCache, Engine, EngineModel, Job
from tierline.bench.traces import BLOCK_TOKENS

MODEL = EngineModel(prefill_tokens_per_s=1024.0, step_s=0.0, sequence_s=0.01, step_tokens=512)


def job(at_s: float, *blocks: int, output_tokens: int = 1) -> Job:
    return Job(at_s, blocks, len(blocks) * BLOCK_TOKENS, output_tokens)


def run(engine: Engine, *jobs: Job) -> list[Job]:
    for each in jobs:
        engine.submit(each)
    list(engine.advance(inf))
    return list(jobs)


def test_prompts_wait_for_prompts_and_a_known_prefix_is_not_computed_again() -> None:
    first, second = run(Engine(MODEL, 100), job(0, 1, 2), job(0, 1, 2, 3))
    assert first.first_token_at_s == pytest.approx(1.0)
    assert second.cached_blocks == 2
    assert second.first_token_at_s == pytest.approx(1.5)


def test_a_prompt_that_is_all_there_costs_one_token() -> None:
    _, again = run(Engine(MODEL, 100), job(0, 1, 2), job(5, 1, 2))
    assert (again.cached_blocks, again.uncached_tokens) == (2, 1)


def test_answers_are_decoded_together_a_token_a_step() -> None:
    one, other = run(Engine(MODEL, 100), job(0, 1, output_tokens=11), job(0, 2, output_tokens=11))
    assert one.first_token_at_s == pytest.approx(0.5)
    # A token of the running answer takes its place in a step: 511 and 1 tokens of the other prompt, then both decode.
    assert other.first_token_at_s == pytest.approx(1.02)
    assert one.ended_at_s == pytest.approx(1.02 + 8 * 0.02)
    assert other.ended_at_s == pytest.approx(1.02 + 8 * 0.02 + 2 * 0.01)


def test_the_prefix_used_longest_ago_goes_its_end_first() -> None:
    cache = BlockCache(4)
    for blocks in ([1, 2], [3, 4]):
        cache.hold(blocks, 0)
        cache.release(blocks, 0)
    cache.hold([5], 0)
    assert [cache.match([1, 2]), cache.match([3, 4]), cache.match([5])] == [1, 2, 1]


def test_what_runs_is_not_evicted_and_a_request_waits_for_room() -> None:
    long, waits = run(Engine(MODEL, 5), job(0, 1, 2, output_tokens=600), job(0, 3, 4, 5))
    assert waits.first_token_at_s > long.ended_at_s


def test_a_request_larger_than_the_cache_runs_alone() -> None:
    (large,) = run(Engine(MODEL, 2), job(0, 1, 2, 3, output_tokens=5))
    assert large.ended_at_s < inf


@given(
    st.lists(
        st.tuples(
            st.floats(0, 20), st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True), st.integers(1, 30)
        ),
        max_size=12,
    ),
    st.lists(st.floats(0, 60), max_size=6),
    st.integers(1, 12),
)
def test_every_request_ends_once_and_looking_in_between_changes_nothing(
    asked: list[tuple[float, list[int], int]], looks: list[float], room: int
) -> None:
    asked = sorted(asked, key=lambda each: each[0])
    whole, parted = ([job(at, *blocks, output_tokens=n) for at, blocks, n in asked] for _ in range(2))
    run(Engine(MODEL, room), *whole)

    engine, waiting = Engine(MODEL, room), list(parted)
    told: list[Job] = []
    for until in [*sorted({*looks, *(each.at_s for each in parted)}), inf]:
        while waiting and waiting[0].at_s <= until:
            told += engine.advance(waiting[0].at_s)
            engine.submit(waiting.pop(0))
        told += engine.advance(until)

    assert sorted(map(id, told)) == sorted(2 * list(map(id, parted)))
    for one, other in zip(whole, parted, strict=True):
        assert other.cached_blocks == one.cached_blocks
        assert other.first_token_at_s == pytest.approx(one.first_token_at_s)
        assert other.ended_at_s == pytest.approx(one.ended_at_s)
        assert one.at_s < one.first_token_at_s <= one.ended_at_s < inf
