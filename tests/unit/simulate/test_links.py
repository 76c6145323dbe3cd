"""A link carries no more than its bandwidth, and everybody in turn."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.simulate.links import Link

asked = st.lists(st.tuples(st.floats(0, 100), st.integers(1000, 10**9)), min_size=1, max_size=30).map(sorted)


@given(asked, st.floats(1e3, 1e9))
def test_nothing_is_through_sooner_than_its_bytes_take_and_no_two_are_carried_at_once(
    transfers: list[tuple[float, int]], bytes_per_s: float
) -> None:
    link = Link(bytes_per_s)
    carried = []
    for at_s, size in transfers:
        ends_s = link.carry(size, at_s)
        begins_s = ends_s - size / bytes_per_s
        assert begins_s >= at_s - 1e-6 * ends_s
        carried.append((begins_s, ends_s))
    for (_, before_s), (begins_s, _) in pairwise(carried):
        assert begins_s >= before_s - 1e-6 * before_s
    lasted_s = link.free_at_s - transfers[0][0]
    assert sum(size for _, size in transfers) <= bytes_per_s * lasted_s * (1 + 1e-6)


def test_a_link_that_nobody_uses_is_free_at_once() -> None:
    link = Link(1e9)
    assert link.carry(10**9, 5.0) == 6.0
    assert link.would_end_s(10**9, 5.5) == 7.0
    assert link.carry(10**9, 20.0) == 21.0


def test_what_nothing_limits_takes_no_time() -> None:
    assert Link(float("inf")).carry(10**12, 3.0) == pytest.approx(3.0)
