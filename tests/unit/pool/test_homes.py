"""Homes of slots: what is kept up to date is what is computed anew, and what moves is little."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tierline.pool.homes import Homes
from tierline.pool.slots import home_of
from tierline.wire.pool import SLOTS

NAMES = st.sampled_from([f"node-{number}" for number in range(6)])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.booleans(), NAMES), max_size=12))
def test_homes_are_those_of_the_members_whoever_came_and_went(steps: list[tuple[bool, str]]) -> None:
    homes = Homes("first")
    for joins, name in steps:
        before = list(homes)
        changed = homes.join(name) if joins else homes.leave(name)
        assert changed == [slot for slot in range(SLOTS) if homes[slot] != before[slot]]
    members = sorted(homes.members)
    for slot in random.Random(0).sample(range(SLOTS), 100):
        assert homes[slot] == home_of(slot, members) == homes.ranked(slot)[0]


def test_a_member_that_comes_moves_its_share_and_nothing_else() -> None:
    homes = Homes("node-0")
    for number in range(1, 64):
        homes.join(f"node-{number}")
    moved = homes.join("node-64")
    assert 0.6 * SLOTS / 65 < len(moved) < 1.5 * SLOTS / 65
    assert all(homes[slot] == "node-64" for slot in moved)
    assert homes.leave("node-64") == moved
    shares = [len(homes.slots_of(member)) for member in homes.members]
    assert max(shares) < 2 * SLOTS / 64


def test_who_is_next_for_a_slot_gets_it_when_its_home_leaves() -> None:
    homes = Homes("a")
    for name in "bcd":
        homes.join(name)
    for slot in range(50):
        home, heir, *_ = homes.ranked(slot)
        if home != "a":
            homes.leave(home)
            assert homes[slot] == heir
            homes.join(home)


def test_a_node_never_leaves_itself() -> None:
    homes = Homes("a")
    assert homes.leave("a") == []
    assert set(homes) == {"a"}
