"""The breaker keeps callers away from a node that fails, and lets one probe through after each pause."""

import logging

import pytest

from tierline.breaker import (
    FAILURES_TO_OPEN,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    WARNING_INTERVAL_S,
    Breaker,
    Warnings,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed()
    return breaker


def test_single_failures_leave_it_closed() -> None:
    breaker = Breaker(Clock())
    for _ in range(10):
        breaker.failed()
        breaker.succeeded()
    assert breaker.allows()


def test_failures_in_a_row_open_it() -> None:
    assert not opened(Clock()).allows()


def test_after_a_pause_exactly_one_probe_passes() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += FIRST_PAUSE_S
    assert breaker.allows()
    assert not breaker.allows()


def test_a_probe_that_succeeds_closes_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += FIRST_PAUSE_S
    breaker.allows()
    breaker.succeeded()
    assert breaker.allows()
    assert breaker.allows()


def test_each_failed_probe_doubles_the_pause_up_to_a_limit() -> None:
    clock = Clock()
    breaker = opened(clock)
    pauses = []
    for _ in range(8):
        waited = 0.0
        while not breaker.allows():
            clock.now += 0.25
            waited += 0.25
        pauses.append(waited)
        breaker.failed()
    assert pauses == [FIRST_PAUSE_S, 2.0, 4.0, 8.0, 16.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S]


def test_a_warning_repeats_once_a_minute_and_says_how_many_were_held_back(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    warnings = Warnings(logging.getLogger("test"), clock)
    for _ in range(5):
        warnings.warn("lookups fail", "no node")
    clock.now += WARNING_INTERVAL_S
    warnings.warn("lookups fail", "no node")
    assert [record.getMessage() for record in caplog.records] == [
        "Tierline: lookups fail: no node",
        "Tierline: lookups fail: no node (4 more since the last warning)",
    ]


def test_subjects_warn_independently(caplog: pytest.LogCaptureFixture) -> None:
    warnings = Warnings(logging.getLogger("test"), Clock())
    warnings.warn("lookups fail", "x")
    warnings.warn("chunks are not stored", "y")
    assert len(caplog.records) == 2
