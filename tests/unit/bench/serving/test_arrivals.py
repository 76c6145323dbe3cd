"""Arrivals: the asked rate, the asked variance, and ramps that begin and end where they were told to."""

import itertools
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.bench.serving.arrivals import Ramp, arrival_times
from tierline.errors import ConfigurationError


@given(st.integers(1, 200), st.floats(0.01, 1e4), st.floats(0.1, 50), st.integers(0, 1000))
def test_arrivals_begin_at_once_never_go_back_and_are_their_seed_s(
    count: int, rate: float, burstiness: float, seed: int
) -> None:
    times = arrival_times(count, rate, burstiness, seed)

    assert len(times) == count
    assert times[0] == 0.0
    assert times == sorted(times)
    assert times == arrival_times(count, rate, burstiness, seed)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_and_the_variation_of_a_gamma_process(burstiness: float) -> None:
    times = arrival_times(40_001, 8.0, burstiness, seed=3)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]

    assert statistics.fmean(gaps) == pytest.approx(1 / 8, rel=0.05)
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_a_steady_rate_is_a_clock_and_an_infinite_one_sends_all_at_once() -> None:
    assert arrival_times(4, 4.0, math.inf, seed=1) == [0.0, 0.25, 0.5, 0.75]
    assert arrival_times(3, math.inf, 1.0, seed=1) == [0.0, 0.0, 0.0]


def test_a_ramp_goes_from_its_first_rate_to_its_last() -> None:
    linear, exponential = Ramp("linear", 2, 8), Ramp("exponential", 2, 8)

    assert [linear.rate(progress) for progress in (0, 0.5, 1)] == [2, 5, 8]
    assert [exponential.rate(progress) for progress in (0, 0.5, 1)] == pytest.approx([2, 4, 8])
    times = arrival_times(3, linear, math.inf, seed=0)
    assert times == pytest.approx([0, 1 / 2, 1 / 2 + 1 / 5])


@pytest.mark.parametrize(
    ("rate", "burstiness"), [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, math.nan)]
)
def test_no_rate_is_a_users_mistake(rate: float, burstiness: float) -> None:
    with pytest.raises(ConfigurationError):
        arrival_times(2, rate, burstiness, seed=0)


def test_a_ramp_from_nothing_is_a_users_mistake() -> None:
    with pytest.raises(ConfigurationError, match="--ramp-up-start-rps"):
        Ramp("linear", 0, 4)
