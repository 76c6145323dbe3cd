from hypothesis import given
from hypothesis import strategies as st

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
