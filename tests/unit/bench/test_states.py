"""The rows that answers make: speed-up, split, and whether the node store's answers are the engine's own."""

import pytest

from tierline.bench.chat import Answer
from tierline.bench.rows import Row, TokenSplit
from tierline.bench.states import (
    COLD,
    EMPTIED,
    EQUAL_TO_COLD,
    EQUAL_TO_OWN_HIT,
    LOGPROB_DIFFERENCE,
    LOGPROB_DIFFERENCE_TO_COLD,
    OTHER_REPLICA,
    RESTARTED,
    SAME_REPLICA,
    SPEEDUP,
    STAYED,
    States,
)

ALL_COMPUTED = TokenSplit(0, 0, 0, 100)


def answer(
    ttft_s: float = 1.0, *, cached: int = 0, tokens: tuple[int, ...] = (1, 2), logprobs: tuple[float, ...] = ()
) -> Answer:
    return Answer(ttft_s, ttft_s + 1.0, tokens, logprobs, prompt_tokens=100, cached_tokens=cached, endpoint="")


def states_of(*, in_float32: bool = False, **answers: Answer) -> States:
    """Return the states of one prompt."""
    states = States(in_float32=in_float32)
    names = {"cold": COLD, "own": SAME_REPLICA, "other": OTHER_REPLICA, "emptied": EMPTIED, "restarted": RESTARTED}
    for short, given in answers.items():
        states[names[short]].add("prompt", given, ALL_COMPUTED)
    return states


def row_of(states: States, name: str) -> Row:
    return next(row for row in states.rows() if row.name == name)


def test_cold_over_warm_on_the_other_replica_is_held_against_ten() -> None:
    fast = states_of(cold=answer(11.0), own=answer(0.4), other=answer(0.5))
    slow = states_of(cold=answer(11.0), own=answer(0.4), other=answer(2.0))
    assert row_of(fast, SPEEDUP).value == 22.0
    assert [row_of(states, SPEEDUP).is_met for states in (fast, slow)] == [True, False]


def test_a_row_has_the_split_of_all_its_requests() -> None:
    states = states_of(cold=answer(), own=answer(), other=answer())
    states[COLD].add("another prompt", answer(3.0), TokenSplit(0, 0, 0, 50))
    row = row_of(states, f"TTFT P50, {COLD}")
    assert (row.value, row.n) == (2.0, 2)
    assert row.split == TokenSplit(0, 0, 0, 150)


def test_output_rate_counts_whole_requests() -> None:
    states = states_of(cold=answer(9.0, tokens=(1, 2, 3, 4, 5)), own=answer(), other=answer())
    assert row_of(states, f"output rate, {COLD}").value == 0.5


def test_the_stores_answers_are_compared_with_the_engines_own_hit_of_the_same_length() -> None:
    states = states_of(
        cold=answer(tokens=(9, 9)),
        own=answer(cached=64, logprobs=(-0.5, -1.0)),
        other=answer(cached=64, logprobs=(-0.5, -1.0)),
        emptied=answer(cached=64, tokens=(1, 3), logprobs=(-0.5, -1.25)),
        restarted=answer(cached=32, tokens=(7, 7)),  # another length: says nothing about the KV
    )
    equal = row_of(states, EQUAL_TO_OWN_HIT)
    assert (equal.value, equal.n, equal.is_met) == (0.5, 2, False)
    difference = row_of(states, LOGPROB_DIFFERENCE)
    assert (difference.value, difference.n, difference.is_met) == (0.25, 4, False)


def test_only_the_same_bits_are_the_engines_own_hit() -> None:
    own = answer(cached=64, logprobs=(-0.5,))
    same = row_of(states_of(cold=answer(), own=own, other=own), LOGPROB_DIFFERENCE)
    assert (same.value, same.is_met) == (0.0, True)
    rounded = answer(cached=64, logprobs=(-0.5000001,))
    assert row_of(states_of(cold=answer(), own=own, other=rounded), LOGPROB_DIFFERENCE).is_met is False


@pytest.mark.parametrize(
    "other", [answer(cached=64, tokens=(1,), logprobs=(-0.5,)), answer(cached=64, logprobs=(-0.5,))]
)
def test_answers_of_different_length_are_unequal(other: Answer) -> None:
    full = answer(cached=64, logprobs=(-0.5, -1.0))
    states = states_of(in_float32=True, cold=full, own=full, other=other)
    for equality, difference in (
        (EQUAL_TO_OWN_HIT, LOGPROB_DIFFERENCE),
        (EQUAL_TO_COLD, LOGPROB_DIFFERENCE_TO_COLD),
    ):
        equal = row_of(states, equality)
        assert (equal.value, equal.is_met) == (0.0, False)
        assert row_of(states, difference).note == ("not measured: answers have different numbers of log probabilities")


def test_an_engine_without_log_probabilities_is_compared_by_tokens() -> None:
    states = states_of(cold=answer(), own=answer(cached=64), other=answer(cached=64))
    assert row_of(states, EQUAL_TO_OWN_HIT).is_met is True
    assert row_of(states, LOGPROB_DIFFERENCE).note == "not measured: the engine tells no log probabilities"


def test_outside_float32_warm_is_compared_with_cold_without_a_goal() -> None:
    warm = answer(cached=64, logprobs=(-0.5, -1.0))
    states = states_of(cold=answer(logprobs=(-0.5, -1.5)), own=warm, other=warm, emptied=answer(tokens=(4,)))
    equal, difference = row_of(states, EQUAL_TO_COLD), row_of(states, LOGPROB_DIFFERENCE_TO_COLD)
    assert (equal.value, equal.n, equal.is_met) == (1.0, 1, None)
    assert (difference.value, difference.n, difference.is_met) == (0.5, 2, None)


@pytest.mark.parametrize(
    ("tokens", "logprob", "equal", "near"),
    [((1,), -0.5009, True, True), ((1,), -0.502, True, False), ((2,), -0.5, False, True)],
)
def test_in_float32_warm_has_to_agree_with_cold(
    tokens: tuple[int, ...], logprob: float, equal: bool, near: bool
) -> None:
    warm = answer(cached=64, tokens=tokens, logprobs=(logprob,))
    states = states_of(in_float32=True, cold=answer(tokens=(1,), logprobs=(-0.5,)), own=warm, other=warm)
    assert row_of(states, EQUAL_TO_COLD).is_met is equal
    assert row_of(states, LOGPROB_DIFFERENCE_TO_COLD).is_met is near


def test_routing_is_the_share_of_later_questions_that_stayed_with_their_replica() -> None:
    states = states_of(cold=answer(), own=answer(), other=answer())
    for stayed in (True, False, True, True):
        states.routed("prefixaware, cache on", to_the_same=stayed)
    assert row_of(states, f"prefixaware, cache on: {STAYED}").value == 0.75


def test_without_comparable_answers_the_comparison_is_not_measured() -> None:
    states = states_of(cold=answer(), own=answer(cached=64), other=answer(cached=0))
    names = (EQUAL_TO_OWN_HIT, LOGPROB_DIFFERENCE, EQUAL_TO_COLD, LOGPROB_DIFFERENCE_TO_COLD)
    assert [row_of(states, name).value for name in names] == [None] * 4


def test_a_state_that_could_not_be_measured_is_a_row_and_a_note_that_say_why() -> None:
    states = states_of(cold=answer(), own=answer(), other=answer())
    states.cannot(RESTARTED, "the supervisor is gone")
    row = row_of(states, f"TTFT P50, {RESTARTED}")
    assert row.note == "not measured: the supervisor is gone"
    assert states.reasons() == [f"{RESTARTED}: not measured: the supervisor is gone"]


def test_the_label_begins_the_name_of_every_state_and_comparison() -> None:
    states = States("simulated: ")
    for name in (COLD, SAME_REPLICA, OTHER_REPLICA):
        states[name].add("prompt", answer(), ALL_COMPUTED)
    assert [row.name for row in states.rows() if "simulated: " not in row.name] == []


def test_the_table_shows_the_split_in_percent_and_the_verdict() -> None:
    states = states_of(cold=answer(10.0), own=answer(0.5), other=answer(0.5))
    lines = {line[0]: line for line in states.table(states.rows()).lines}
    assert lines[COLD] == (COLD, "1", "10", "10", "÷ 1.0", "0.182", "0.0 %", "0.0 %", "0.0 %", "100.0 %")
    assert lines[SPEEDUP][2:5] == ("20", "", "≥ 10 ✓")
