"""Who fails far more often than the others: told from chance, and never too many at once."""

import pytest

from tierline.router.endpoints import Endpoints
from tierline.router.outliers import EJECTION_SECONDS, INTERVAL_SECONDS, OutlierDetector


def ejected(tallies: list[tuple[int, int]], intervals: int = 1) -> list[int]:
    """Return which endpoints are passed over after ``intervals`` in each of which they had these answers."""
    endpoints = Endpoints([f"http://host-{number}:1" for number in range(len(tallies))])
    detector = OutlierDetector(endpoints, 0.0)
    now = 0.0
    for _ in range(intervals):
        now += INTERVAL_SECONDS
        for endpoint, (good, failed) in zip(endpoints.all, tallies, strict=True):
            endpoint.answers_good += good
            endpoint.answers_failed += failed
        detector.sweep(now)
    return [endpoint.position for endpoint in endpoints.all if not endpoint.is_usable(now)]


@pytest.mark.parametrize(
    ("tallies", "expected"),
    [
        ([(100, 0), (50, 50)], [1]),
        ([(100, 0), (100, 0), (100, 0), (70, 30)], [3]),
        ([(100, 0), (90, 10)], []),  # rare enough for retries
        ([(19, 0), (0, 20)], []),  # too little is known of the others
        ([(100, 0), (0, 19)], []),  # and here of itself
        ([(50, 50), (45, 55)], []),  # all are ill: the fault is not theirs
        ([(0, 100)], []),
        ([(20, 3), (17, 5)], []),  # may be chance
    ],
)
def test_an_endpoint_that_fails_far_more_often_than_the_others_is_passed_over(
    tallies: list[tuple[int, int]], expected: list[int]
) -> None:
    assert ejected(tallies) == expected


def test_no_more_than_a_third_are_passed_over_the_worst_first() -> None:
    tallies = [(100, 0)] * 4 + [(40, 60), (60, 40)]
    assert ejected([*tallies, (30, 70)]) == [4, 6]
    assert ejected(tallies, intervals=3) == [4, 5]


def test_those_that_are_down_count_among_the_passed_over() -> None:
    endpoints = Endpoints(["http://a:1", "http://b:1", "http://c:1"])
    a, b, c = endpoints.all
    a.checked(is_up=False)
    b.answers_good, c.answers_failed = 100, 100
    OutlierDetector(endpoints, 0.0).sweep(INTERVAL_SECONDS)
    assert c.is_usable(INTERVAL_SECONDS)


def test_it_is_back_after_its_time_with_one_request_first() -> None:
    endpoints = Endpoints(["http://a:1", "http://b:1"])
    good, bad = endpoints.all
    good.answers_good, bad.answers_failed = 100, 100
    OutlierDetector(endpoints, 0.0).sweep(INTERVAL_SECONDS)
    back = INTERVAL_SECONDS + EJECTION_SECONDS
    assert not bad.is_usable(back - 0.01)
    assert bad.is_usable(back)
    bad.begin(0, 0.0)
    assert not bad.is_usable(back)
