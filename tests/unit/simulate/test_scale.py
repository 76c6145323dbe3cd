"""What simulating takes: every size is measured, each in a process of its own."""

import pytest

from tierline.errors import TierlineError
from tierline.simulate.scale import grow, measure, sizes


def test_growth_is_seen_in_replicas_in_requests_and_in_both() -> None:
    assert sizes(64, 100_000) == [(8, 12_500), (8, 100_000), (64, 12_500), (64, 100_000)]


def test_a_size_is_simulated_and_what_it_took_is_told() -> None:
    said: list[str] = []
    points = grow(8, 160, "roundrobin", 1, said.append)
    assert [(point.replicas, point.requests) for point in points] == sizes(8, 160)
    assert len(said) == len(points)
    for point in points:
        assert point.cpu_seconds > 0
        assert 2**20 < point.peak_bytes < 2**32
        assert point.simulated_s > 0
    again = measure(8, 160, "roundrobin", 1)
    assert (again.simulated_s, again.hit_rate) == (points[-1].simulated_s, points[-1].hit_rate)


def test_a_size_that_fails_says_why() -> None:
    with pytest.raises(TierlineError, match=r"1 replicas, 20 requests: status 1: .*--strategy: got 'best'"):
        grow(8, 160, "best", 1, lambda _: None)
