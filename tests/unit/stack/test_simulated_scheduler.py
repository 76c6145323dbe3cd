"""Steps of the simulated engine: their order, their cost, and what they leave in the cache."""

import pytest

from tierline.stack.simulated_engine.cache import PrefixCache
from tierline.stack.simulated_engine.scheduler import Request, Scheduler


def make_scheduler(blocks: int = 64, seqs: int = 8, batched: int = 1000) -> Scheduler:
    return Scheduler(
        PrefixCache(blocks), prefill_rate=1000, decode_rate=10, max_num_seqs=seqs, max_num_batched_tokens=batched
    )


def run_to_end(scheduler: Scheduler) -> float:
    elapsed = 0.0
    while (step := scheduler.plan()) is not None:
        elapsed += step.duration_s
        scheduler.complete(step)
    return elapsed


def prompt(length: int, document: int = 0) -> list[int]:
    return [document] * length


def test_a_cold_request_costs_its_prompt_and_its_later_tokens() -> None:
    scheduler = make_scheduler()
    scheduler.add(Request(prompt(100), [0] * 5))
    assert run_to_end(scheduler) == pytest.approx(100 / 1000 + 4 / 10)


def test_a_cached_prefix_costs_nothing_but_its_last_tokens() -> None:
    scheduler = make_scheduler()
    scheduler.add(Request(prompt(100), [0]))
    run_to_end(scheduler)
    warm = Request(prompt(100), [0])
    scheduler.add(warm)
    assert run_to_end(scheduler) == pytest.approx(4 / 1000)
    assert warm.cached == 96


def test_a_whole_prompt_in_the_cache_still_computes_its_last_block() -> None:
    scheduler = make_scheduler()
    scheduler.add(Request(prompt(96), [0]))
    run_to_end(scheduler)
    warm = Request(prompt(96), [0])
    scheduler.add(warm)
    run_to_end(scheduler)
    assert warm.cached == 80


def test_what_others_computed_costs_nothing_and_what_is_in_the_cache_counts_as_its_own() -> None:
    scheduler = make_scheduler()
    scheduler.add(Request(prompt(32), [0]))
    run_to_end(scheduler)
    fetched = Request(prompt(100), [0], fetched=64)
    scheduler.add(fetched)
    assert run_to_end(scheduler) == pytest.approx(36 / 1000)
    assert (fetched.cached, fetched.external) == (64, 32)
    again = Request(prompt(100), [0], fetched=64)
    scheduler.add(again)
    run_to_end(scheduler)
    assert (again.cached, again.external) == (96, 0)


def test_a_long_prompt_is_computed_in_chunks() -> None:
    scheduler = make_scheduler(batched=40)
    scheduler.add(Request(prompt(100), [0]))
    tokens = []
    while (step := scheduler.plan()) is not None:
        tokens.append(sum(count for _, count in step.work))
        scheduler.complete(step)
    assert tokens == [40, 40, 20]


def test_prefill_delays_who_decodes_beside_it() -> None:
    scheduler = make_scheduler()
    scheduler.add(Request(prompt(16), [0] * 9))
    first = scheduler.plan()
    assert first is not None
    scheduler.complete(first)
    scheduler.add(Request(prompt(500, 1), [0]))
    step = scheduler.plan()
    assert step is not None
    assert step.duration_s == pytest.approx(500 / 1000 + 1 / 10)


def test_requests_run_in_the_order_of_their_arrival() -> None:
    scheduler = make_scheduler(seqs=1)
    requests = [Request(prompt(16, document), [0]) for document in range(3)]
    for request in requests:
        scheduler.add(request)
    order = []
    while (step := scheduler.plan()) is not None:
        order += step.admitted
        scheduler.complete(step)
    assert order == requests


def test_a_request_waits_until_the_cache_has_room() -> None:
    scheduler = make_scheduler(blocks=4)
    first, second = Request(prompt(40), [0] * 8), Request(prompt(40, 1), [0] * 8)
    scheduler.add(first)
    scheduler.add(second)
    step = scheduler.plan()
    assert step is not None
    assert (step.admitted, list(scheduler.waiting)) == ([first], [second])
    run_to_end(scheduler)
    assert not scheduler.waiting


def test_an_answer_is_a_prefix_of_the_next_turn() -> None:
    scheduler = make_scheduler()
    answer = [7] * 20
    scheduler.add(Request(prompt(16), answer))
    run_to_end(scheduler)
    turn = Request([*prompt(16), *answer, *prompt(10, 2)], [0])
    scheduler.add(turn)
    run_to_end(scheduler)
    assert turn.cached == 32


def test_an_aborted_request_gives_back_its_blocks_even_in_the_middle_of_a_step() -> None:
    scheduler = make_scheduler()
    running, waiting = Request(prompt(40), [0] * 8), Request(prompt(40, 1), [0] * 8)
    scheduler.add(running)
    step = scheduler.plan()
    assert step is not None
    scheduler.add(waiting)
    scheduler.abort(running)
    scheduler.abort(waiting)
    assert scheduler.complete(step) == []
    assert (scheduler.cache.held_blocks, scheduler.running, list(scheduler.waiting)) == (0, [], [])
