"""Clocks that leap, start anew or are put back: what may depend on them does, and nothing else."""

from collections.abc import Callable

import pytest
from tests.clocks import ManualClock

from tierline.errors import UnknownLease
from tierline.store import PAGE_BYTES, BucketRules, ObjectKey, Owner, Store, StoreLimits

OpenStore = Callable[..., Store]
NODE = Owner("", 1)
PAGES = 16
YEAR_S = 365 * 86_400.0
LIMITS = StoreLimits(max_ttl_s=20.0, grace_s=2.0, quarantine_s=5.0)


def key(number: int) -> ObjectKey:
    return ObjectKey("kv", str(number))


def put(store: Store, number: int) -> None:
    slot = store.write(key(number), PAGES * PAGE_BYTES, NODE)
    store.commit(slot.id, NODE, number)


def expire(store: Store) -> None:
    while store.expire():
        pass


def test_after_a_leap_of_the_clock_pages_rest_from_when_it_is_noticed(
    open_store: OpenStore, clock: ManualClock
) -> None:
    store = open_store(pages=PAGES, limits=LIMITS)
    put(store, 1)
    lease = store.lease(key(1), "reader", 10)
    assert lease is not None
    clock.advance(YEAR_S)
    expire(store)

    assert store.stats().leases_expired == 1
    with pytest.raises(UnknownLease):
        store.renew(lease[0], 10)
    assert store.stats().resting_bytes == PAGES * PAGE_BYTES
    clock.advance(LIMITS.quarantine_s)
    expire(store)
    assert store.stats().resting_bytes == 0


def test_a_clock_that_starts_anew_after_a_restart_delays_nothing(open_store: OpenStore, clock: ManualClock) -> None:
    clock.now = YEAR_S
    store = open_store(pages=PAGES, limits=LIMITS)
    put(store, 1)
    assert store.lease(key(1), "reader", 10) is not None
    clock.now = 3.0  # as after the start of a machine whose memory lived on
    store = open_store(pages=PAGES, limits=LIMITS)

    clock.advance(LIMITS.max_ttl_s + LIMITS.quarantine_s)
    expire(store)
    put(store, 2)
    assert store.is_stored(key(2))


@pytest.mark.parametrize(("step_s", "is_left"), [(0.0, True), (YEAR_S, False), (-YEAR_S, True)])
def test_a_wall_clock_put_back_or_forward_over_a_restart_moves_times_to_live_only(
    open_store: OpenStore, clock: ManualClock, step_s: float, is_left: bool
) -> None:
    rules = {"kv": BucketRules(ttl_s=60.0)}
    now = 1.7e9
    store = open_store(pages=2 * PAGES, limits=LIMITS, rules=rules, wall_clock=lambda: now)
    put(store, 1)
    other = ObjectKey("other", "1")
    slot = store.write(other, PAGE_BYTES, NODE)
    store.commit(slot.id, NODE, 1)
    now += step_s
    store = open_store(pages=2 * PAGES, limits=LIMITS, rules=rules, wall_clock=lambda: now)
    expire(store)

    assert store.is_stored(key(1)) == is_left
    assert store.is_stored(other)
    clock.advance(61)  # however far it was put back, a whole time to live is the most that is added
    expire(store)
    assert not store.is_stored(key(1))
