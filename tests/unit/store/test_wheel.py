import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from tierline.store import wheel as wheel_module
from tierline.store.wheel import TICK_SECONDS, DueWheel


@given(st.dictionaries(st.integers(), st.floats(0, 100)), st.floats(0, 100))
def test_nothing_falls_due_early_or_more_than_a_tick_late(due: dict[int, float], now: float) -> None:
    wheel: DueWheel[int] = DueWheel()
    for item, at in due.items():
        wheel.put(item, at)

    taken = set(wheel.take_due(now))

    assert all(due[item] <= now for item in taken)
    assert all(at > now - TICK_SECONDS for item, at in due.items() if item not in taken)


def test_items_of_one_tick_come_in_the_order_they_were_put() -> None:
    wheel: DueWheel[str] = DueWheel()
    for item in "cab":
        wheel.put(item, 1.0)

    assert list(wheel.take_due(1.0)) == ["c", "a", "b"]


def test_what_is_discarded_never_falls_due() -> None:
    wheel: DueWheel[str] = DueWheel()
    wheel.put("kept", 1.0)
    wheel.put("discarded", 1.0)
    wheel.discard("discarded", 1.0)

    assert list(wheel.take_due(2.0)) == ["kept"]


def test_what_was_not_taken_yet_is_still_due() -> None:
    wheel: DueWheel[str] = DueWheel()
    for item in "abc":
        wheel.put(item, 1.0)
    next(wheel.take_due(2.0))

    assert list(wheel.take_due(2.0)) == ["b", "c"]


def test_what_falls_due_far_away_and_is_discarded_leaves_nothing_behind() -> None:
    wheel: DueWheel[int] = DueWheel()
    tracemalloc.start()
    try:
        for item in range(50_000):
            wheel.put(item, 86_400.0 + item)
            wheel.discard(item, 86_400.0 + item)
        held = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, wheel_module.__file__)])
    finally:
        tracemalloc.stop()

    assert sum(trace.size for trace in held.traces) < 50_000
    assert list(wheel.take_due(1e9)) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.booleans()), max_size=200))
def test_any_order_of_putting_and_discarding_leaves_what_was_not_discarded(steps: list[tuple[int, int, bool]]) -> None:
    wheel: DueWheel[int] = DueWheel()
    due: dict[int, float] = {}
    for item, tick, is_put in steps:
        if item in due:
            wheel.discard(item, due.pop(item))
        if is_put:
            due[item] = tick * TICK_SECONDS
            wheel.put(item, due[item])

    assert sorted(wheel.take_due(5 * TICK_SECONDS)) == sorted(
        item for item, at in due.items() if at <= 5 * TICK_SECONDS
    )
    assert sorted(wheel.take_due(1e9)) == sorted(item for item, at in due.items() if at > 5 * TICK_SECONDS)


def test_many_at_once_come_as_if_put_one_after_the_other() -> None:
    wheel: DueWheel[str] = DueWheel()
    wheel.put_all([], 1.0)
    wheel.put_all("ca", 1.0)
    wheel.put("b", 1.0)
    wheel.put_all("", 0.5)

    assert list(wheel.take_due(2.0)) == ["c", "a", "b"]
