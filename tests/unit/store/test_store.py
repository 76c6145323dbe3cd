from collections.abc import Callable

import pytest
from tests.clocks import ManualClock
from tests.unit.store.conftest import PAGES

from tierline.errors import AlreadyStored, BeingWritten, NoSpace, ObjectTooLarge, UnknownLease, UnknownSlot
from tierline.store import NO_PID, PAGE_BYTES, Leased, ObjectKey, Owner, Slot, Store, StoreLimits

HTTP = Owner("", 1)
ENGINE = Owner("engine", 2, 4711)
LIMITS = StoreLimits(max_ttl_s=30.0, grace_s=2.0, quarantine_s=5.0)
OpenStore = Callable[..., Store]


def key(number: int) -> ObjectKey:
    return ObjectKey("kv", f"object-{number}")


def put(store: Store, number: int, pages: int = 1, owner: Owner = HTTP) -> Slot:
    slot = store.write(key(number), pages * PAGE_BYTES, owner)
    fill(store, slot, number)
    store.commit(slot.id, owner, checksum=number)
    return slot


def fill(store: Store, slot: Slot | Leased, number: int) -> None:
    for view in store.views(slot.extents):
        view[:] = bytes([number % 256]) * len(view)


def holds(store: Store, leased: Slot | Leased, number: int) -> bool:
    return all(view == bytes([number % 256]) * len(view) for view in store.views(leased.extents))


def lease(store: Store, number: int, ttl_s: float = 10.0) -> tuple[str, Leased]:
    found = store.lease(key(number), "reader", ttl_s)
    assert found is not None
    return found


def assert_every_page_is_counted_once(store: Store) -> None:
    stats = store.stats()
    assert stats.capacity_bytes == (
        stats.free_bytes + stats.used_bytes + stats.reserved_bytes + stats.orphaned_bytes + stats.retired_bytes
    )


# Writing --------------------------------------------------------------------------------------------------------


def test_what_is_committed_can_be_leased_with_its_bytes_and_checksum(store: Store) -> None:
    slot = store.write(key(1), 2 * PAGE_BYTES + 28, HTTP)
    fill(store, slot, 1)
    store.commit(slot.id, HTTP, checksum=2**64 - 1)

    _, leased = lease(store, 1)

    assert (leased.size, leased.checksum, leased.is_verified) == (2 * PAGE_BYTES + 28, 2**64 - 1, True)
    assert sum(extent.length for extent in leased.extents) == leased.size
    assert holds(store, leased, 1)


def test_what_is_not_committed_cannot_be_leased(store: Store) -> None:
    store.write(key(1), 1, HTTP)

    assert store.lease(key(1), "reader", 1) is None
    assert store.is_being_written(key(1))
    assert not store.is_stored(key(1))


def test_a_key_is_written_by_one_at_a_time_and_once(store: Store) -> None:
    slot = store.write(key(1), 1, HTTP)
    with pytest.raises(BeingWritten):
        store.write(key(1), 1, ENGINE)
    store.commit(slot.id, HTTP, 0)
    with pytest.raises(AlreadyStored):
        store.write(key(1), 1, ENGINE)


def test_an_aborted_key_can_be_written_by_another(store: Store) -> None:
    slot = store.write(key(1), 1, HTTP)
    store.abort(slot.id, HTTP)

    put(store, 1, owner=ENGINE)

    assert store.is_stored(key(1))


def test_a_slot_is_its_owners_alone_and_ends_once(store: Store) -> None:
    slot = store.write(key(1), 1, HTTP)
    with pytest.raises(UnknownSlot):
        store.commit(slot.id, ENGINE, 0)
    with pytest.raises(UnknownSlot):
        store.abort(slot.id, ENGINE)
    store.commit(slot.id, HTTP, 0)
    with pytest.raises(UnknownSlot):
        store.abort(slot.id, HTTP)


def test_a_connection_that_ends_takes_all_its_slots_along(store: Store) -> None:
    for number in range(3):
        store.write(key(number), PAGE_BYTES, ENGINE)
    store.grant(PAGE_BYTES, ENGINE)
    store.write(key(9), PAGE_BYTES, HTTP)

    assert store.end_owner(ENGINE) == 4
    assert store.stats().reserved_bytes == PAGE_BYTES
    assert not store.is_being_written(key(0))


def test_a_granted_slot_gets_its_key_on_commit_and_gives_back_what_it_does_not_need(store: Store) -> None:
    slot = store.grant(8 * PAGE_BYTES, ENGINE)
    store.commit(slot.id, ENGINE, 7, key=key(1), size=3 * PAGE_BYTES - 1)

    assert store.stats().used_bytes == 3 * PAGE_BYTES
    assert store.stats().free_bytes == (PAGES - 3) * PAGE_BYTES
    assert lease(store, 1)[1].size == 3 * PAGE_BYTES - 1


def test_a_granted_slot_whose_key_was_taken_meanwhile_stays_with_its_owner(store: Store) -> None:
    slot = store.grant(PAGE_BYTES, ENGINE)
    put(store, 1)
    other = store.write(key(2), 1, HTTP)

    with pytest.raises(AlreadyStored):
        store.commit(slot.id, ENGINE, 0, key=key(1))
    with pytest.raises(BeingWritten):
        store.commit(slot.id, ENGINE, 0, key=key(2))
    store.commit(slot.id, ENGINE, 0, key=key(3))

    store.abort(other.id, HTTP)


def test_a_commit_that_does_not_fit_its_slot_is_refused(store: Store) -> None:
    slot = store.write(key(1), 10, HTTP)

    with pytest.raises(ObjectTooLarge, match="takes 1 to 10 bytes; got 11"):
        store.commit(slot.id, HTTP, 0, size=11)
    with pytest.raises(UnknownSlot, match="reserved for"):
        store.commit(slot.id, HTTP, 0, key=key(2))
    with pytest.raises(UnknownSlot, match="without a key"):
        store.commit(store.grant(1, HTTP).id, HTTP, 0)


@pytest.mark.parametrize("size", [0, -1, PAGES * PAGE_BYTES + 1])
def test_an_object_that_can_never_fit_is_refused_and_evicts_nothing(store: Store, size: int) -> None:
    put(store, 1)

    with pytest.raises(ObjectTooLarge, match=f"1 to {PAGES * PAGE_BYTES} bytes here; got {size}"):
        store.write(key(2), size, HTTP)
    assert store.is_stored(key(1))


def test_an_object_may_take_the_whole_store(store: Store) -> None:
    put(store, 1, PAGES)

    assert store.stats().free_bytes == 0


def test_a_key_too_long_for_the_journal_is_refused_and_leaves_no_page_taken(store: Store) -> None:
    with pytest.raises(ValueError, match="more than"):
        store.write(ObjectKey("kv", "x" * 10_000), PAGE_BYTES, HTTP)

    assert store.stats().free_bytes == PAGES * PAGE_BYTES


# Room -----------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_goes_when_room_is_needed(open_store: OpenStore, clock: ManualClock) -> None:
    store = open_store(eviction="lru")
    for number in range(4):
        put(store, number, PAGES // 4)
    clock.advance(1)
    store.release(lease(store, 0)[0])
    clock.advance(LIMITS.grace_s)
    store.expire()

    put(store, 4, PAGES // 4)

    assert [number for number in range(5) if store.is_stored(key(number))] == [0, 2, 3, 4]
    assert store.stats().evictions["space"] == 1


def test_a_leased_object_is_never_evicted(store: Store) -> None:
    put(store, 1)
    lease_id, leased = lease(store, 1, ttl_s=60)
    for number in range(2, 200):
        put(store, number)

    assert store.is_stored(key(1))
    assert holds(store, leased, 1)
    assert store.release(lease_id) == 1


def test_a_store_full_of_leased_objects_refuses_and_evicts_nothing(store: Store) -> None:
    put(store, 1, PAGES // 2)
    put(store, 2, PAGES // 2)
    lease(store, 1)

    with pytest.raises(NoSpace, match=f"{PAGES // 2} leased"):
        store.write(key(3), (PAGES // 2 + 1) * PAGE_BYTES, HTTP)
    assert store.is_stored(key(2))
    assert store.stats().refusals == 1


def test_one_write_evicts_no_more_than_its_bound_and_the_next_goes_on_from_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierline.store.store.MOST_EVICTIONS", 8)
    for number in range(PAGES):
        put(store, number)

    for objects_left in (56, 48, 40):
        with pytest.raises(NoSpace):
            store.write(key(99), 30 * PAGE_BYTES, HTTP)
        assert store.stats().objects == objects_left

    assert store.write(key(99), 30 * PAGE_BYTES, HTTP).size == 30 * PAGE_BYTES
    assert store.stats().objects == 34
    assert_every_page_is_counted_once(store)


def test_an_object_is_pieced_together_where_no_run_is_long_enough(store: Store) -> None:
    for number in range(PAGES):
        put(store, number)
    for number in range(0, PAGES, 2):
        store.delete(key(number))

    slot = put(store, 1000, PAGES // 2)

    assert len(slot.extents) == 32
    assert holds(store, slot, 1000 % 256)
    assert store.stats().evictions["space"] == 0


# Reading --------------------------------------------------------------------------------------------------------


def test_a_prefix_lease_covers_the_longest_leading_run(store: Store) -> None:
    for number in (0, 1, 2, 4):
        put(store, number)
    lease_id = store.open_lease("reader", 10)

    run = store.extend_lease(lease_id, [key(number) for number in range(6)])

    assert [leased.key for leased in run] == [key(0), key(1), key(2)]
    assert (store.stats().hits, store.stats().misses) == (3, 3)
    assert (store.stats().hit_bytes, store.stats().commit_bytes) == (3 * PAGE_BYTES, 4 * PAGE_BYTES)
    assert store.release(lease_id) == 3


def test_a_prefix_lease_ends_before_a_group_that_is_not_complete(store: Store) -> None:
    for number in range(7):
        put(store, number)

    run = store.extend_lease(store.open_lease("reader", 10), [key(number) for number in range(9)], group_size=3)

    assert len(run) == 6


def test_a_lease_grows_by_slices_and_is_given_back_in_parts(store: Store) -> None:
    for number in range(4):
        put(store, number)
    lease_id = store.open_lease("reader", 10)
    store.extend_lease(lease_id, [key(0), key(1)])
    store.extend_lease(lease_id, [key(2), key(3)])

    assert store.release(lease_id, 1, 3) == 2
    assert store.stats().leased_bytes == 2 * PAGE_BYTES
    assert store.release(lease_id) == 2
    assert store.release(lease_id) == 0
    assert store.stats().leases == 0


def test_an_object_stays_readable_for_the_grace_time_after_release(store: Store, clock: ManualClock) -> None:
    put(store, 1, PAGES)
    store.release(lease(store, 1)[0])
    clock.advance(1.9)
    store.expire()
    with pytest.raises(NoSpace, match=f"{PAGES} resting"):
        store.write(key(2), 1, HTTP)

    clock.advance(0.4)
    store.expire()
    store.write(key(2), 1, HTTP)

    assert not store.is_stored(key(1))


def test_pages_of_an_expired_lease_rest_before_they_are_reused(store: Store, clock: ManualClock) -> None:
    put(store, 1, PAGES)
    _, leased = lease(store, 1, ttl_s=10)
    clock.advance(10)
    store.expire()
    clock.advance(4.9)
    store.expire()
    with pytest.raises(NoSpace):
        store.write(key(2), 1, HTTP)
    assert holds(store, leased, 1)
    assert store.stats().leases_expired == 1

    clock.advance(0.4)
    store.expire()
    store.write(key(2), 1, HTTP)


def test_an_object_under_several_leases_is_held_by_the_last(store: Store, clock: ManualClock) -> None:
    put(store, 1, PAGES)
    first, _ = lease(store, 1)
    lease(store, 1, ttl_s=30)
    store.release(first)
    clock.advance(20)
    store.expire()

    with pytest.raises(NoSpace, match=f"{PAGES} leased"):
        store.write(key(2), 1, HTTP)


def test_a_renewed_lease_lives_on(store: Store, clock: ManualClock) -> None:
    put(store, 1)
    lease_id, _ = lease(store, 1, ttl_s=10)
    clock.advance(9)
    store.renew(lease_id, 10)
    clock.advance(9)
    store.expire()

    assert store.release(lease_id) == 1
    with pytest.raises(UnknownLease):
        store.renew(lease_id, 10)


@pytest.mark.parametrize("ttl_s", [1e9, float("inf")])
def test_a_lease_lives_no_longer_than_the_longest_allowed(store: Store, clock: ManualClock, ttl_s: float) -> None:
    put(store, 1)
    lease_id, _ = lease(store, 1, ttl_s=ttl_s)
    clock.advance(store.limits.max_ttl_s)
    store.expire()

    assert store.release(lease_id) == 0


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan")])
def test_a_lease_without_time_ends_with_the_next_tick(store: Store, clock: ManualClock, ttl_s: float) -> None:
    put(store, 1)
    lease_id, _ = lease(store, 1, ttl_s=ttl_s)
    clock.advance(0.25)
    store.expire()

    assert store.release(lease_id) == 0


def test_leases_of_a_connection_that_ended_rest_like_expired_ones(store: Store, clock: ManualClock) -> None:
    put(store, 1, PAGES)
    lease(store, 1)
    lease(store, 1)

    assert store.release_holder("reader") == 2
    clock.advance(4.9)
    store.expire()
    with pytest.raises(NoSpace):
        store.write(key(2), 1, HTTP)
    assert store.stats().leases_abandoned == 2


def test_expiry_is_done_in_portions(store: Store, clock: ManualClock) -> None:
    for number in range(10):
        put(store, number)
        lease(store, number, ttl_s=1)
    clock.advance(100)

    portions = 1
    while store.expire(limit=4):
        portions += 1

    assert portions == 6  # two leases of one object each in every full portion
    assert store.stats().leases == 0


def test_touches_within_a_second_count_once(open_store: OpenStore, clock: ManualClock) -> None:
    store = open_store()
    put(store, 1, PAGES // 2)
    clock.advance(0.9)
    store.release(lease(store, 1)[0])
    clock.advance(2.5)
    store.expire()
    put(store, 2, PAGES // 2)
    clock.advance(1)
    store.release(lease(store, 2)[0])
    clock.advance(2.5)
    store.expire()

    put(store, 3)

    assert not store.is_stored(key(1))
    assert store.is_stored(key(2))


# Removing -------------------------------------------------------------------------------------------------------


def test_a_deleted_object_frees_its_pages_and_its_key(store: Store) -> None:
    put(store, 1)

    assert store.delete(key(1))
    assert not store.delete(key(1))
    assert store.stats().free_bytes == PAGES * PAGE_BYTES
    put(store, 1)


def test_a_deleted_object_under_lease_is_hidden_and_its_pages_come_back_after_the_lease(
    store: Store, clock: ManualClock
) -> None:
    put(store, 1, PAGES)
    lease_id, leased = lease(store, 1)
    store.delete(key(1))

    assert store.lease(key(1), "reader", 1) is None
    with pytest.raises(NoSpace, match=f"{PAGES} deleted but read"):
        store.write(key(1), 1, HTTP)
    assert holds(store, leased, 1)
    assert_every_page_is_counted_once(store)

    store.release(lease_id)
    clock.advance(2.25)
    store.expire()
    assert store.stats().free_bytes == PAGES * PAGE_BYTES


def test_a_corrupt_object_is_dropped_once_and_counted(store: Store) -> None:
    put(store, 1)
    _, leased = lease(store, 1)

    assert store.drop_corrupt(leased)
    assert not store.drop_corrupt(leased)
    assert store.stats().evictions["corrupt"] == 1


def test_a_report_about_a_former_object_does_not_touch_its_successor(store: Store) -> None:
    put(store, 1)
    _, leased = lease(store, 1)
    store.delete(key(1))
    put(store, 1)

    assert not store.drop_corrupt(leased)
    assert store.is_stored(key(1))


def test_an_object_is_described_without_being_touched(store: Store, clock: ManualClock) -> None:
    put(store, 1, 3)
    clock.advance(5)
    stat = store.stat(key(1))

    assert stat is not None
    assert (stat.size, stat.fragments, stat.leases, stat.age_s) == (3 * PAGE_BYTES, 1, 0, 5)
    assert store.stat(key(2)) is None


# After a restart ------------------------------------------------------------------------------------------------


def test_committed_objects_survive_and_are_unverified(open_store: OpenStore) -> None:
    store = open_store()
    for number in range(1, 6):
        put(store, number, number)

    store = open_store()

    for number in range(1, 6):
        _, leased = lease(store, number)
        assert (leased.size, leased.checksum, leased.is_verified) == (number * PAGE_BYTES, number, False)
        assert holds(store, leased, number)
    assert (store.stats().adopted, store.stats().unverified) == (5, 5)
    assert_every_page_is_counted_once(store)


def test_an_adopted_object_is_verified_once(open_store: OpenStore) -> None:
    put(open_store(), 1)
    store = open_store()
    _, leased = lease(store, 1)
    store.mark_verified(leased)
    store.mark_verified(leased)

    assert lease(store, 1)[1].is_verified
    assert store.stats().unverified == 0


def test_pages_of_adopted_objects_rest_for_the_longest_lease_of_the_former_process(
    open_store: OpenStore, clock: ManualClock
) -> None:
    put(open_store(limits=LIMITS), 1, PAGES - 1)
    store = open_store(limits=StoreLimits(max_ttl_s=1))

    put(store, 2)  # what was free is free
    clock.advance(34.9)
    store.expire()
    with pytest.raises(NoSpace, match="leases given before the restart may still be read"):
        put(store, 3)
    clock.advance(0.2)
    put(store, 3)


def test_a_deleted_adopted_object_rests_as_long(open_store: OpenStore, clock: ManualClock) -> None:
    put(open_store(limits=LIMITS), 1, PAGES)
    store = open_store(limits=LIMITS)
    store.delete(key(1))

    clock.advance(34)
    store.expire()
    assert store.stats().retired_bytes == PAGES * PAGE_BYTES
    clock.advance(1.25)
    store.expire()
    assert store.stats().free_bytes == PAGES * PAGE_BYTES


def test_pages_deleted_under_lease_rest_over_the_restart(open_store: OpenStore, clock: ManualClock) -> None:
    store = open_store(limits=LIMITS)
    put(store, 1, PAGES)
    lease(store, 1, ttl_s=30)
    store.delete(key(1))

    store = open_store(limits=LIMITS)

    assert not store.is_stored(key(1))
    assert store.stats().retired_bytes == PAGES * PAGE_BYTES
    clock.advance(35.25)
    store.expire()
    assert store.stats().free_bytes == PAGES * PAGE_BYTES


def test_a_half_written_put_is_gone_and_its_pages_are_free(open_store: OpenStore) -> None:
    open_store().write(key(1), PAGES * PAGE_BYTES, HTTP)

    store = open_store()

    assert not store.is_stored(key(1))
    assert store.stats().free_bytes == PAGES * PAGE_BYTES


def test_pages_a_client_may_still_be_writing_rest_until_it_is_known_that_it_does_not(open_store: OpenStore) -> None:
    store = open_store()
    store.write(key(1), 3 * PAGE_BYTES, ENGINE)
    store.grant(2 * PAGE_BYTES, ENGINE)
    for _ in range(2):  # over several restarts, too
        store = open_store()

    assert store.orphaned_owners() == [("engine", 4711, 5 * PAGE_BYTES)]
    assert not store.is_being_written(key(1))
    with pytest.raises(NoSpace):
        store.write(key(2), (PAGES - 4) * PAGE_BYTES, HTTP)
    assert store.release_orphans("engine") == 2
    assert store.release_orphans("engine") == 0
    store.write(key(2), PAGES * PAGE_BYTES, HTTP)


def test_slots_of_one_name_are_freed_process_by_process(open_store: OpenStore) -> None:
    store = open_store()
    store.write(key(1), 3 * PAGE_BYTES, ENGINE)
    store.write(key(2), PAGE_BYTES, Owner("engine", 2, NO_PID + 1000))
    store = open_store()

    assert store.orphaned_owners() == [("engine", 4711, 3 * PAGE_BYTES), ("engine", NO_PID + 1000, PAGE_BYTES)]
    assert store.release_orphans("engine", 1) == 0
    assert store.release_orphans("engine", NO_PID + 1000) == 1
    assert store.orphaned_owners() == [("engine", 4711, 3 * PAGE_BYTES)]


def test_a_lease_of_a_former_process_is_unknown_and_its_release_is_well(open_store: OpenStore) -> None:
    store = open_store()
    put(store, 1)
    former, _ = lease(store, 1)

    store = open_store()
    lease(store, 1)

    assert store.release(former) == 0
    assert store.stats().leases == 1


def test_objects_keep_their_age_over_a_restart(open_store: OpenStore, clock: ManualClock) -> None:
    store = open_store(limits=LIMITS)
    for number in (3, 1, 2):
        put(store, number, PAGES // 4)
    store = open_store(limits=LIMITS)
    clock.advance(36)

    put(store, 4, PAGES // 2)

    assert [number for number in range(1, 5) if store.is_stored(key(number))] == [1, 2, 4]
