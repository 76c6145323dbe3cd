"""What a store does for the tiers below it: anchors, copies that others hold, transit, and listeners."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.clocks import ManualClock
from tests.unit.store.conftest import PAGES

from tierline.store import PAGE_BYTES, Entry, ObjectKey, Owner, PolicyName, Store
from tierline.store.eviction import POLICIES, EvictionPolicy
from tierline.store.index import key_of, text_of
from tierline.store.partition import LOOK_AHEAD

HTTP = Owner("", 1)
OpenStore = Callable[..., Store]
GRACE_S = 2.0


def key(number: int) -> ObjectKey:
    return ObjectKey("kv", f"object-{number}")


def put(
    store: Store, wanted: ObjectKey, *, pages: int = 1, anchor: int | None = None, is_transit: bool = False
) -> ObjectKey:
    slot = store.write(wanted, pages * PAGE_BYTES, HTTP)
    store.commit(slot.id, HTTP, checksum=7, anchor=anchor, is_transit=is_transit)
    return wanted


def let_pass(store: Store, clock: ManualClock, seconds: float) -> None:
    clock.advance(seconds)
    while store.expire():
        pass


def stored(store: Store) -> set[str]:
    return {key_of(text).name for text in store.keys()[0]}


# Anchors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchor", [None, 0, 4095])
def test_an_anchor_is_kept_with_the_object_through_a_restart(open_store: OpenStore, anchor: int | None) -> None:
    store = open_store()
    put(store, key(0), anchor=anchor)
    assert store.entry(text_of(key(0))) == Entry(PAGE_BYTES, 7, anchor, is_transit=False)

    adopted = open_store()

    assert adopted.entry(text_of(key(0))) == Entry(PAGE_BYTES, 7, anchor, is_transit=False)
    assert adopted.entry(text_of(key(1))) is None


def test_an_anchor_is_not_that_of_the_object_before_on_the_same_pages(store: Store) -> None:
    put(store, key(0), anchor=17)
    store.delete(key(0))

    put(store, key(1))

    entry = store.entry(text_of(key(1)))
    assert entry is not None
    assert entry.anchor is None


def test_a_retired_record_keeps_its_anchor_bytes_and_is_adopted_as_no_object(open_store: OpenStore) -> None:
    store = open_store()
    put(store, key(0), anchor=3)
    assert store.lease(key(0), "reader", 60) is not None
    store.delete(key(0))

    adopted = open_store()

    assert adopted.stats().objects == 0
    assert adopted.stats().retired_bytes == PAGE_BYTES


# Listeners ------------------------------------------------------------------------------------------------------


def test_every_listener_hears_of_each_object_that_comes_and_goes(store: Store) -> None:
    told: list[tuple[str, str, bool]] = []
    first = lambda text, is_stored: told.append(("first", text, is_stored))  # noqa: E731
    second = lambda text, is_stored: told.append(("second", text, is_stored))  # noqa: E731
    store.listen(first)
    store.listen(second)

    put(store, key(0))
    store.unlisten(first)
    store.delete(key(0))

    text = text_of(key(0))
    assert told == [("first", text, True), ("second", text, True), ("second", text, False)]


def test_a_listener_finds_an_object_for_the_last_time_when_it_hears_of_its_end(store: Store) -> None:
    found: list[Entry | None] = []
    put(store, key(0), anchor=5)
    store.listen(lambda text, _: found.append(store.entry(text)))

    store.delete(key(0))

    assert found == [Entry(PAGE_BYTES, 7, 5, is_transit=False)]


# Copies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eviction", sorted(POLICIES))
def test_a_copy_that_others_hold_goes_before_a_last_copy_next_in_turn(
    open_store: OpenStore, eviction: PolicyName
) -> None:
    store = open_store(eviction=eviction)
    for number in range(PAGES):
        put(store, key(number))
    store.mark_copied(key(5))
    store.mark_copied(key(9))

    put(store, key(PAGES))
    put(store, key(PAGES + 1))

    assert {"object-5", "object-9"}.isdisjoint(stored(store))
    assert store.stats().objects == PAGES


def test_a_copy_that_is_far_from_its_turn_outlives_what_is_near(open_store: OpenStore) -> None:
    store = open_store(eviction="lru")
    for number in range(PAGES):
        put(store, key(number))
    store.mark_copied(key(LOOK_AHEAD))

    put(store, key(PAGES))

    assert store.is_stored(key(LOOK_AHEAD))
    assert not store.is_stored(key(0))


def test_what_is_the_last_copy_again_goes_in_its_turn(open_store: OpenStore) -> None:
    store = open_store(eviction="lru")
    for number in range(PAGES):
        put(store, key(number))
    store.mark_copied(key(5))
    store.mark_copied(key(5), is_copied=False)
    store.mark_copied(key(PAGES + 7))  # not stored: nothing happens

    put(store, key(PAGES))

    assert store.is_stored(key(5))
    assert not store.is_stored(key(0))


def test_a_copy_under_lease_is_never_evicted(open_store: OpenStore) -> None:
    store = open_store(eviction="lru")
    for number in range(PAGES):
        put(store, key(number))
    store.mark_copied(key(5))
    assert store.lease(key(5), "reader", 60) is not None

    put(store, key(PAGES))

    assert store.is_stored(key(5))
    assert not store.is_stored(key(0))


def test_a_copy_that_went_and_came_again_is_no_copy_until_somebody_says_so(open_store: OpenStore) -> None:
    store = open_store(eviction="lru")
    put(store, key(1))
    put(store, key(0))
    store.mark_copied(key(0))
    store.delete(key(0))
    put(store, key(0))

    put(store, key(2), pages=PAGES - 1)

    assert stored(store) == {"object-0", "object-2"}


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(
    acts=st.lists(st.tuples(st.integers(0, 15), st.sampled_from(["hold", "use", "back", "remove", "victim"]))),
    most=st.integers(1, 6),
)
def test_what_is_upcoming_is_listed_and_begins_with_the_next_victim(
    name: PolicyName, acts: list[tuple[int, str]], most: int
) -> None:
    policy: EvictionPolicy[int] = POLICIES[name](16)
    listed: set[int] = set()
    held: set[int] = set()
    for number, act in acts:
        if number in listed and act in ("hold", "use"):
            policy.hold_out(number)
            listed.remove(number)
            held.add(number)
        elif number in held and act == "use":
            policy.use(number)
        elif number in held and act == "back":
            policy.put_back(number)
            held.remove(number)
            listed.add(number)
        elif number in listed | held and act == "remove":
            policy.remove(number)
            listed.discard(number)
            held.discard(number)
        elif act == "victim":
            victim = policy.victim()
            listed -= {victim} if victim is not None else set()
        elif number not in listed | held:
            policy.insert(number, 1)
            listed.add(number)

    upcoming = policy.upcoming(most)

    assert len(upcoming) <= most
    assert len(set(upcoming)) == len(upcoming)
    assert listed.issuperset(upcoming)
    assert next(iter(upcoming), None) == policy.peek() == policy.victim()


# Transit --------------------------------------------------------------------------------------------------------


def test_an_object_in_transit_that_nobody_leases_goes_after_the_grace_time(store: Store, clock: ManualClock) -> None:
    put(store, key(0), is_transit=True)
    assert store.entry(text_of(key(0))) == Entry(PAGE_BYTES, 7, None, is_transit=True)
    let_pass(store, clock, GRACE_S / 2)
    assert store.is_stored(key(0))

    let_pass(store, clock, GRACE_S)

    assert not store.is_stored(key(0))
    assert store.stats().free_bytes == PAGES * PAGE_BYTES
    assert store.stats().evictions["transit"] == 1
    assert store.explain(key(0)).kind == "transit"


def test_an_object_in_transit_stays_for_all_its_readers_and_goes_with_the_rest_of_the_last(
    store: Store, clock: ManualClock
) -> None:
    put(store, key(0), is_transit=True)
    first, second = (store.lease(key(0), "reader", 60) for _ in range(2))
    assert first is not None
    assert second is not None
    let_pass(store, clock, 2 * GRACE_S)
    store.release(first[0])
    let_pass(store, clock, 2 * GRACE_S)
    assert store.is_stored(key(0))
    store.release(second[0])
    assert store.is_stored(key(0))

    let_pass(store, clock, 1.5 * GRACE_S)

    assert not store.is_stored(key(0))
    assert store.stats().free_bytes == PAGES * PAGE_BYTES


def test_an_object_in_transit_can_be_evicted_at_once_and_its_pages_are_another_s(
    store: Store, clock: ManualClock
) -> None:
    put(store, key(0), is_transit=True)

    put(store, key(1), pages=PAGES)
    let_pass(store, clock, 2 * GRACE_S)

    assert stored(store) == {"object-1"}


def test_what_was_in_transit_when_the_process_ended_is_so_in_the_next_one(
    open_store: OpenStore, clock: ManualClock
) -> None:
    store = open_store()
    put(store, key(0), is_transit=True)
    put(store, key(1), is_transit=True)
    put(store, key(2))
    assert store.keep(key(1))

    adopted = open_store()

    entry = adopted.entry(text_of(key(0)))
    assert entry is not None
    assert entry.is_transit
    let_pass(adopted, clock, GRACE_S + 1)
    assert stored(adopted) == {"object-1", "object-2"}


def test_what_is_kept_is_in_transit_no_more(store: Store, clock: ManualClock) -> None:
    put(store, key(0), is_transit=True)

    assert store.keep(key(0))
    assert not store.keep(key(1))
    let_pass(store, clock, 10 * GRACE_S)

    assert store.is_stored(key(0))


def test_a_pin_does_not_keep_what_is_in_transit(store: Store, clock: ManualClock) -> None:
    put(store, key(0), is_transit=True)
    store.pin([key(0)], 600)

    let_pass(store, clock, 2 * GRACE_S)

    assert store.stats().objects == 0
    assert store.stats().pinned_bytes == 0


def test_an_older_journal_is_read_as_one_without_anchors(open_store: OpenStore, shared_memory: Path) -> None:
    store = open_store()
    put(store, key(0))
    store.close()
    record = (shared_memory / "segment.journal").read_bytes()[4096 : 4096 + 64]

    assert record[40:48] == bytes(8)  # what every former process has written there
