"""Rows never invent a figure, and their statistics are the ones that are documented."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.bench.rows import Direction, Limit, Rounds, Row, TokenSplit, at_most, not_measured, percentile


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=40), st.floats(0, 100))
def test_percentiles_are_those_of_numpy(samples: list[float], percent: float) -> None:
    assert percentile(samples, percent) == pytest.approx(float(np.percentile(samples, percent)), rel=1e-9, abs=1e-6)


def test_a_percentile_without_samples_or_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        percentile([], 50)
    with pytest.raises(ValueError, match="got 101"):
        percentile([1.0], 101)


def test_one_disturbed_round_does_not_move_the_median() -> None:
    rounds = Rounds()
    rounds.add("copy", [1.0, 1.0, 50.0])
    rounds.add("copy", [100.0, 100.0, 100.0])
    rounds.add("copy", [1.0, 2.0, 3.0])
    assert rounds.median("copy") == 2.0
    assert rounds.n("copy") == 9
    assert "copy" in rounds
    assert "paste" not in rounds


def test_a_round_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="without samples"):
        Rounds().add("copy", [])


@pytest.mark.parametrize(
    ("value", "direction", "met"),
    [
        (9.0, Direction.AT_LEAST, True),
        (8.9, Direction.AT_LEAST, False),
        (9.0, Direction.AT_MOST, True),
        (9.1, Direction.AT_MOST, False),
    ],
)
def test_a_ratio_is_held_against_its_goal_on_the_right_side(value: float, direction: Direction, met: bool) -> None:
    row = Row("read", value, "GB/s", Limit("memcpy", 10.0, goal=0.9, direction=direction))
    assert row.ratio == pytest.approx(value / 10)
    assert row.is_met is met


def test_a_fixed_bound_is_a_limit_of_ratio_one() -> None:
    assert Row("lease", 90.0, "µs", at_most(100.0)).is_met is True
    assert Row("lease", 110.0, "µs", at_most(100.0)).is_met is False


def test_a_fixed_bound_of_zero_has_a_verdict_but_no_ratio() -> None:
    assert Row("difference", 0.0, "nats", at_most(0.0)).is_met is True
    assert Row("difference", 1e-9, "nats", at_most(0.0)).is_met is False
    assert Row("difference", 0.0, "nats", at_most(0.0)).ratio is None
    assert not_measured("difference", "nats", "no engine").is_met is None


def test_a_comparison_without_a_goal_or_without_a_limit_has_no_verdict() -> None:
    assert Row("read", 1.0, "GB/s", Limit("memcpy", 2.0)).is_met is None
    assert Row("read", 1.0, "GB/s", Limit("Redis GET", None, goal=8.0)).is_met is None
    assert Row("read", 1.0, "GB/s").ratio is None


def test_a_row_without_a_value_says_why() -> None:
    row = not_measured("Redis GET", "GB/s", "redis-server not installed")
    assert row.value is None
    assert row.note == "not measured: redis-server not installed"
    with pytest.raises(ValueError, match="must say why"):
        Row("Redis GET", None, "GB/s")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_is_finite(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Row("read", value, "GB/s")


def test_the_json_of_a_row_has_every_key_scripts_rely_on() -> None:
    row = Row("read", 4.5, "GB/s", Limit("memcpy", 5.0, goal=0.9), n=3, split=TokenSplit(1, 2, 0, 4))
    document = json.loads(json.dumps(row.as_json()))
    assert document == {
        "name": "read",
        "value": 4.5,
        "unit": "GB/s",
        "limit": 5.0,
        "limit_name": "memcpy",
        "ratio": 0.9,
        "goal": 0.9,
        "direction": "at least",
        "met": True,
        "n": 3,
        "note": "",
        "prompt_tokens": {"engine_cache": 1, "node_store": 2, "other_node": 0, "computed": 4},
    }
    assert document.keys() == not_measured("read", "GB/s", "no engine").as_json().keys()


def test_token_splits_add_and_subtract_by_source() -> None:
    before, after = TokenSplit(1, 2, 3, 4), TokenSplit(11, 22, 33, 44)
    assert after - before == TokenSplit(10, 20, 30, 40)
    assert before + (after - before) == after
    assert after.total == 110
