"""What simulating takes: every size is measured, each in a process of its own."""

import pytest

from tierline.errors import TierlineError
from tierline.simulate.scale import Point, grow, keeps_limit, measure, sizes


def test_growth_is_seen_in_replicas_in_requests_and_in_both() -> None:
    assert sizes(64, 100_000) == [(8, 10_000), (64, 10_000), (8, 100_000), (64, 100_000)]
    assert len(sizes(512, 1_000_000)) == 9
    assert sizes(512, 1_000_000)[-1] == (512, 1_000_000)


def test_a_limit_is_for_one_size_and_for_time_and_memory() -> None:
    point = Point(64, 100_000, "prefixaware", 599.0, 500.0, 4 * 2**30, 1000.0, 0.5)
    assert keeps_limit(point) is True
    assert keeps_limit(point._replace(seconds=601.0)) is False
    assert keeps_limit(point._replace(peak_bytes=4 * 2**30 + 1)) is False
    assert keeps_limit(point._replace(replicas=512, seconds=9999.0)) is None


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
    with pytest.raises(TierlineError, match=r"8 replicas, 160 requests: status 1: .*--strategy: got 'best'"):
        grow(8, 160, "best", 1, lambda _: None)
