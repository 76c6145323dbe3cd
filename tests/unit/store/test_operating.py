"""What operators ask of a store: pins, times to live, flushes, listings, reclaiming, and why something is a miss."""

from collections.abc import Callable

import pytest
from tests.clocks import ManualClock
from tests.unit.store.conftest import PAGES

from tierline.errors import NoSpace, TooManyLeases
from tierline.prefix import Shard, object_name
from tierline.store import PAGE_BYTES, BucketRules, ObjectKey, Owner, Quota, Store, StoreLimits, catalog

HTTP = Owner("", 1)
OpenStore = Callable[..., Store]


def key(number: int, bucket: str = "kv") -> ObjectKey:
    return ObjectKey(bucket, f"object-{number}")


def put(store: Store, wanted: ObjectKey, pages: int = 1) -> ObjectKey:
    slot = store.write(wanted, pages * PAGE_BYTES, HTTP)
    store.commit(slot.id, HTTP, checksum=0)
    return wanted


def lease(store: Store, wanted: ObjectKey, ttl_s: float = 10.0, holder: str = "reader") -> str:
    found = store.lease(wanted, holder, ttl_s)
    assert found is not None
    return found[0]


def let_pass(store: Store, clock: ManualClock, seconds: float) -> None:
    clock.advance(seconds)
    while store.expire():
        pass


# Pins -----------------------------------------------------------------------------------------------------------


def test_a_pinned_object_goes_only_when_nothing_else_can(store: Store) -> None:
    put(store, key(0), PAGES // 2)
    put(store, key(1), PAGES // 2)
    assert store.pin([key(0), key(2)], 60) == 1

    put(store, key(3), PAGES // 2)
    assert [store.is_stored(key(number)) for number in range(4)] == [True, False, False, True]
    put(store, key(4), PAGES)

    assert store.stats().objects == 1
    assert store.stats().pinned_bytes == 0


def test_a_pin_ends_by_itself_by_unpinning_and_with_its_object(store: Store, clock: ManualClock) -> None:
    for number in range(3):
        put(store, key(number))
    store.pin([key(number) for number in range(3)], 60)
    assert store.stats().pinned_bytes == 3 * PAGE_BYTES

    assert store.unpin([key(0), key(0), key(9)]) == 1
    store.delete(key(1))
    assert store.stats().pinned_bytes == PAGE_BYTES
    let_pass(store, clock, 61)

    assert store.stats().pinned_bytes == 0
    put(store, key(3), PAGES)
    assert store.stats().objects == 1


def test_a_pin_holds_through_leases(store: Store, clock: ManualClock) -> None:
    store.pin([put(store, key(0))], 60)
    store.release(lease(store, key(0)))
    let_pass(store, clock, 10)
    put(store, key(1), PAGES - 1)

    put(store, key(2))

    assert store.is_stored(key(0))
    found = store.stat(key(0))
    assert found is not None
    assert found.pinned_s == 50


def test_a_pin_lasts_no_longer_than_the_limit_and_never_for_no_time(store: Store) -> None:
    put(store, key(0))

    assert store.pin([key(0)], float("nan")) == 0
    assert store.pin([key(0)], 1e12) == 1

    found = store.stat(key(0))
    assert found is not None
    assert found.pinned_s == store.limits.max_pin_s


# Times to live --------------------------------------------------------------------------------------------------


def test_an_object_lives_for_its_buckets_time(open_store: OpenStore, clock: ManualClock) -> None:
    store = open_store(rules={"short": BucketRules(ttl_s=20)})
    short, long = put(store, key(1, "short")), put(store, key(1))
    held = lease(store, short, 60)

    let_pass(store, clock, 19)
    assert store.is_stored(short)
    let_pass(store, clock, 1)

    assert [store.is_stored(each) for each in (short, long)] == [False, True]
    assert store.stats().retired_bytes == PAGE_BYTES
    assert store.explain(short).kind == "expired"
    assert store.release(held) == 1


@pytest.mark.parametrize(("stopped_s", "left_s"), [(15, 5), (-100, 20), (30, None)])
def test_a_time_to_live_goes_on_while_the_node_is_stopped(
    open_store: OpenStore, clock: ManualClock, stopped_s: float, left_s: float | None
) -> None:
    rules = {"kv": BucketRules(ttl_s=20)}
    put(open_store(rules=rules, wall_clock=lambda: 1e9), key(1))

    store = open_store(rules=rules, wall_clock=lambda: 1e9 + stopped_s)
    let_pass(store, clock, 0.25)
    found = store.stat(key(1))

    assert (found and found.expires_s) == (left_s and left_s - 0.25)


# Listing and flushing -------------------------------------------------------------------------------------------


def test_a_listing_has_every_object_once_however_it_is_cut(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "SCANNED_ROWS", 7)
    for number in range(30):
        put(store, key(number, "ab"[number % 2]))
    for number in range(0, 30, 3):
        store.delete(key(number, "ab"[number % 2]))

    names = []
    page = store.list("a", prefix="object-", limit=3)
    while page.cursor:
        names += [each.key.name for each in page.objects]
        store.delete(key(1, "b"))
        page = store.list("a", prefix="object-", cursor=page.cursor, limit=3)
    names += [each.key.name for each in page.objects]

    assert sorted(names) == sorted(f"object-{number}" for number in range(0, 30, 2) if number % 3)


def test_a_listing_can_be_of_one_tenant(store: Store) -> None:
    for tenant in ("acme", "other"):
        put(store, ObjectKey("kv", f"m@00010000@0@1@{tenant}"))
    put(store, key(1))

    assert [each.key.name for each in store.list(salt="acme").objects] == ["m@00010000@0@1@acme"]
    assert [each.key for each in store.list(salt="").objects] == [key(1)]
    assert len(store.list().objects) == 3


@pytest.mark.parametrize("cursor", ["-1", "x", "1.5"])
def test_what_is_no_cursor_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        store.list(cursor=cursor)


def test_an_object_is_described(store: Store, clock: ManualClock) -> None:
    put(store, key(1), 2)
    clock.advance(5)
    lease(store, key(1))
    lease(store, key(1))
    clock.advance(2)

    (found,) = store.list().objects

    assert found == store.stat(key(1))
    assert (found.size, found.fragments, found.leases, found.hits) == (2 * PAGE_BYTES, 1, 2, 1)
    assert (found.age_s, found.idle_s, found.pinned_s, found.expires_s) == (7, 2, 0, None)


def test_a_flush_takes_what_was_there_and_nothing_else(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "SCANNED_ROWS", 7)
    for number in range(20):
        put(store, key(number, "ab"[number % 2]))
    held = lease(store, key(2, "a"))

    removed, cursor = store.flush("a", limit=3)
    total = removed
    while cursor:
        removed, cursor = store.flush("a", cursor=cursor, limit=3)
        assert removed <= 3
        total += removed

    assert total == 10
    assert {each.key.bucket for each in store.list().objects + store.list(cursor="7").objects} == {"b"}
    assert store.stats().evictions["flushed"] == 10
    assert store.stats().retired_bytes == PAGE_BYTES
    assert store.release(held) == 1
    assert store.explain(key(4, "a")).kind == "flushed"


def test_a_scrub_meets_every_object_in_turn(store: Store) -> None:
    assert store.scrub_next() is None
    for number in range(5):
        put(store, key(number))
    store.delete(key(2))

    met = [store.scrub_next() for _ in range(8)]

    assert met[:4] == met[4:]
    assert set(met) == {key(number) for number in (0, 1, 3, 4)}


# Leases ---------------------------------------------------------------------------------------------------------


def test_leases_are_listed_with_who_has_them(store: Store, clock: ManualClock) -> None:
    put(store, key(1), 2)
    first = lease(store, key(1), 10, "engine")
    clock.advance(1)
    store.extend_lease(store.open_lease("other", 5), [key(1), key(1)])

    page = store.leases(limit=1)
    rest = store.leases(cursor=page.cursor)

    assert page.leases == [(first, "engine", 1, 2 * PAGE_BYTES, 1, 9)]
    assert [each[1:] for each in rest.leases] == [("other", 2, 4 * PAGE_BYTES, 0, 5)]
    assert rest.cursor == ""


def test_a_holder_has_no_more_leases_than_it_may(open_store: OpenStore) -> None:
    store = open_store(limits=StoreLimits(max_leases_per_holder=2, max_leases=3))
    put(store, key(1))
    held = [lease(store, key(1), holder="a") for _ in range(2)]

    with pytest.raises(TooManyLeases, match="'a' has 2 live leases"):
        store.lease(key(1), "a", 1)
    lease(store, key(1), holder="b")
    with pytest.raises(TooManyLeases, match="there are 3 live leases"):
        store.open_lease("c", 1)
    store.release(held[0])
    lease(store, key(1), holder="a")

    assert (store.stats().leases_given, store.stats().leases_refused) == (4, 2)


def test_clients_who_never_release_cannot_take_the_whole_cache_out_of_use(
    open_store: OpenStore, clock: ManualClock
) -> None:
    store = open_store(limits=StoreLimits(max_quarantined_fraction=0.25, quarantine_s=5))
    for number in range(4):
        put(store, key(number), PAGES // 4)
    for number in range(2):
        lease(store, key(number), 1)
    let_pass(store, clock, 2)

    assert store.stats().quarantined_bytes == PAGES // 2 * PAGE_BYTES
    assert store.lease(key(2), "reader", 1) is None
    assert store.extend_lease(store.open_lease("reader", 1), [key(0), key(2)])[0].key == key(0)
    assert store.stats().misses_by_reason["quarantine_full"] == 2
    let_pass(store, clock, 10)
    let_pass(store, clock, 10)

    assert store.stats().quarantined_bytes == 0
    lease(store, key(2))


def test_an_object_that_is_always_in_use_does_not_stay_in_quarantine(store: Store, clock: ManualClock) -> None:
    put(store, key(1))
    lease(store, key(1), 1)
    held = lease(store, key(1), 60)
    let_pass(store, clock, 2)
    assert store.stats().quarantined_bytes == PAGE_BYTES

    for _ in range(4):
        following = lease(store, key(1), 60)
        store.release(held)
        held = following
        let_pass(store, clock, 3)

    assert store.stats().quarantined_bytes == 0
    assert store.stats().leased_bytes == PAGE_BYTES


def test_who_looks_after_the_store_is_no_user_of_it(store: Store, clock: ManualClock) -> None:
    put(store, key(1))
    clock.advance(10)

    assert store.lease(key(1), "scrub", 1, is_use=False) is not None
    assert store.lease(key(2), "scrub", 1, is_use=False) is None

    found = store.stat(key(1))
    assert found is not None
    assert (found.hits, found.idle_s, found.leases) == (0, 10, 1)
    assert (store.stats().hits, store.stats().misses) == (0, 0)


# Reclaiming -----------------------------------------------------------------------------------------------------


def test_reclaiming_goes_from_the_high_watermark_to_the_low_one(open_store: OpenStore) -> None:
    store = open_store(limits=StoreLimits(high_watermark=0.75, low_watermark=0.5))
    for number in range(PAGES * 3 // 4):
        put(store, key(number))
    needs = [store.needs_reclaim]
    put(store, key(PAGES))
    needs.append(store.needs_reclaim)

    assert store.reclaim(10)
    while store.reclaim(10):
        pass
    needs.append(store.needs_reclaim)

    assert store.stats().free_bytes == PAGES // 2 * PAGE_BYTES
    assert needs == [False, True, False]


def test_a_cache_of_few_large_objects_is_not_reclaimed(open_store: OpenStore) -> None:
    store = open_store(limits=StoreLimits(high_watermark=0.75, low_watermark=0.5))
    put(store, key(0), PAGES // 4 * 3)
    put(store, key(1), PAGES // 4)
    needs = [store.needs_reclaim]
    put(store, key(2), PAGES)
    needs.append(store.needs_reclaim)

    assert needs == [True, False]
    assert not store.reclaim(1)


def test_reclaiming_stops_where_nothing_unpinned_can_go(open_store: OpenStore) -> None:
    store = open_store(limits=StoreLimits(high_watermark=0.5, low_watermark=0.25))
    for number in range(3):
        put(store, key(number), PAGES // 4)
    store.pin([key(0)], 60)
    lease(store, key(1))

    assert store.reclaim(10) is False

    assert [store.is_stored(key(number)) for number in range(3)] == [True, True, False]
    assert not store.needs_reclaim


def test_nothing_is_reclaimed_while_leases_of_a_former_process_may_live(
    open_store: OpenStore, clock: ManualClock
) -> None:
    limits = StoreLimits(high_watermark=0.5, low_watermark=0.25)
    store = open_store(limits=limits)
    for number in range(4):
        put(store, key(number), PAGES // 4)
    store = open_store(limits=limits)

    needs = [store.needs_reclaim]
    clock.advance(70)
    needs.append(store.needs_reclaim)

    assert needs == [False, True]


# Why something is a miss ----------------------------------------------------------------------------------------


def test_a_miss_is_explained_by_what_became_of_the_object(open_store: OpenStore, clock: ManualClock) -> None:
    store = open_store(eviction="lru")
    put(store, key(0), PAGES // 2)
    clock.advance(30)
    put(store, key(1), PAGES // 2)
    put(store, key(2), PAGES // 2)
    clock.advance(5)

    kind, ago_s, detail = store.explain(key(0))

    assert (kind, ago_s) == ("evicted", 5)
    assert detail == "evicted by lru for room, 30 s after its commit and 30 s after its last use"
    assert store.explain(key(1)).kind == "stored"
    assert store.explain(key(3)).kind == "never_stored"
    store.delete(key(1))
    assert store.explain(key(1)).kind == "deleted"
    slot = store.write(key(1), PAGE_BYTES, HTTP)
    assert store.explain(key(1)).kind == "being_written"
    store.commit(slot.id, HTTP, checksum=0)
    _, leased = store.lease(key(1), "reader", 1) or ("", None)
    assert leased is not None
    store.drop_corrupt(leased)
    assert store.explain(key(1)).kind == "corrupt"


def test_a_write_that_found_no_room_is_remembered(store: Store) -> None:
    put(store, key(0), PAGES)
    lease(store, key(0))

    with pytest.raises(NoSpace):
        store.write(key(1), PAGE_BYTES, HTTP)

    assert store.explain(key(1)).kind == "no_space"


def test_what_was_being_written_when_the_node_stopped_is_lost(open_store: OpenStore) -> None:
    store = open_store()
    store.write(key(1), PAGE_BYTES, HTTP)
    store.write(key(2), PAGE_BYTES, Owner("engine", 1, 2))

    store = open_store()

    assert [store.explain(key(number)).kind for number in (1, 2, 3)] == ["lost_at_restart"] * 2 + ["never_stored"]


def test_the_same_tokens_under_another_tenant_or_layout_are_pointed_at(store: Store) -> None:
    put(store, ObjectKey("kv", "m@00010000@0@9f@acme"))
    shards = [Shard(kv_dtype="bfloat16", layout="nhd-1", tensor_rank=rank, tensor_size=2) for rank in range(2)]
    put(store, ObjectKey("kv", object_name(bytes(32), shards[0])))
    put(store, ObjectKey("kv", object_name(bytes([1] * 32), shards[1])))

    explanation = store.explain(ObjectKey("kv", "m@00010000@0@9f@other"))
    assert explanation.kind == "other_tenant"
    assert "acme" not in explanation.detail
    assert store.explain(ObjectKey("kv", "m@00020000@0@9f@acme")).kind == "other_layout"
    assert store.explain(ObjectKey("kv", object_name(bytes(32), shards[1]))).kind == "other_layout"
    assert store.explain(ObjectKey("kv", "m@00010000@0@9e@other")).kind == "never_stored"
    assert store.explain(ObjectKey("elsewhere", "m@00010000@0@9f@other")).kind == "never_stored"

    for missed in ("m@00010000@0@9f@other", "m@00020000@0@9f@acme", "m@00010000@0@9e@other"):
        assert store.lease(ObjectKey("kv", missed), "reader", 1) is None
    counted = {reason: count for reason, count in store.stats().misses_by_reason.items() if count}
    assert counted == {"other_tenant": 1, "other_layout": 1, "never_stored": 1}


def test_misses_are_counted_by_reason(open_store: OpenStore) -> None:
    store = open_store(rules={"kv": BucketRules(quota=Quota(hard_objects=3))})
    for number in range(4):
        put(store, key(number))
    store.delete(key(1))
    store.write(key(4), PAGE_BYTES, HTTP)
    lease_id = store.open_lease("reader", 10)

    for number in (0, 1, 4, 5):
        assert store.lease(key(number), "reader", 1) is None
    assert store.extend_lease(lease_id, [key(2), key(3), key(5), key(6)], group_size=1)
    assert store.extend_lease(lease_id, [key(2), key(5)], group_size=2) == []

    stats = store.stats()
    assert {reason: count for reason, count in stats.misses_by_reason.items() if count} == {
        "quota": 1,
        "deleted": 1,
        "being_written": 1,
        "never_stored": 3,
        "behind_a_miss": 2,
    }
    assert stats.misses == sum(stats.misses_by_reason.values()) == 8
    assert sum(namespace.misses for namespace in store.namespaces()) == 8, "so that both have the same rate of hits"
    assert stats.hits == 2
