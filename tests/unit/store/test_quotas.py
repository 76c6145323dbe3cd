import gc
from collections.abc import Callable

import pytest
from tests.clocks import ManualClock
from tests.unit.store.conftest import PAGES

from tierline.errors import NoSpace, QuotaExceeded
from tierline.store import PAGE_BYTES, BucketRules, Namespace, ObjectKey, Owner, Quota, Store, StoreLimits
from tierline.store.namespaces import OTHERS, WHOLE, Account

HTTP = Owner("", 1)
ENGINE = Owner("engine", 2, 4711)
OpenStore = Callable[..., Store]


def key(number: int, tenant: str = "acme", bucket: str = "kv") -> ObjectKey:
    return ObjectKey(bucket, f"model@00010000@0@{number:x}@{tenant}")


def put(store: Store, wanted: ObjectKey, pages: int = 1) -> ObjectKey:
    slot = store.write(wanted, pages * PAGE_BYTES, HTTP)
    store.commit(slot.id, HTTP, checksum=0)
    return wanted


def lease(store: Store, wanted: ObjectKey, ttl_s: float = 10.0) -> str:
    found = store.lease(wanted, "reader", ttl_s)
    assert found is not None
    return found[0]


def with_tenant_quota(open_store: OpenStore, **bounds: int) -> Store:
    return open_store(rules={"kv": BucketRules(tenant_quota=Quota(**bounds))})


def stored(store: Store, tenant: str, count: int) -> list[int]:
    return [number for number in range(count) if store.is_stored(key(number, tenant))]


def test_a_tenant_at_its_hard_quota_makes_room_out_of_its_own(open_store: OpenStore) -> None:
    store = with_tenant_quota(open_store, hard_bytes=3 * PAGE_BYTES)
    other = put(store, key(0, "other"))
    for number in range(5):
        put(store, key(number))

    assert stored(store, "acme", 5) == [2, 3, 4]
    assert store.is_stored(other)
    assert store.stats().evictions["quota"] == 2


def test_a_hard_quota_counts_objects_too(open_store: OpenStore) -> None:
    store = with_tenant_quota(open_store, hard_objects=2)
    for number in range(3):
        put(store, key(number))

    assert stored(store, "acme", 3) == [1, 2]


def test_what_is_being_written_counts_against_the_quota(open_store: OpenStore) -> None:
    store = with_tenant_quota(open_store, hard_bytes=2 * PAGE_BYTES)
    slot = store.write(key(1), 2 * PAGE_BYTES, HTTP)

    with pytest.raises(QuotaExceeded, match="would pass its hard quota"):
        store.write(key(2), PAGE_BYTES, HTTP)
    store.abort(slot.id, HTTP)
    put(store, key(2))


def test_a_tenant_whose_objects_are_all_leased_is_refused_and_loses_nothing(open_store: OpenStore) -> None:
    store = with_tenant_quota(open_store, hard_bytes=2 * PAGE_BYTES)
    lease(store, put(store, key(1)))
    put(store, key(2))

    with pytest.raises(QuotaExceeded):
        store.write(key(3), 2 * PAGE_BYTES, HTTP)

    assert store.is_stored(key(2))
    assert store.explain(key(3)).kind == "quota"
    assert [each.refusals for each in store.namespaces()] == [1]
    assert issubclass(QuotaExceeded, NoSpace)


def test_an_object_larger_than_the_quota_is_refused_before_anything_goes(open_store: OpenStore) -> None:
    store = with_tenant_quota(open_store, hard_bytes=2 * PAGE_BYTES)
    put(store, key(1))

    with pytest.raises(QuotaExceeded):
        store.write(key(2), 3 * PAGE_BYTES, HTTP)

    assert store.is_stored(key(1))


def test_a_granted_slot_is_charged_when_its_key_is_known(open_store: OpenStore) -> None:
    store = with_tenant_quota(open_store, hard_bytes=PAGE_BYTES)
    slot = store.grant(2 * PAGE_BYTES, ENGINE)

    with pytest.raises(QuotaExceeded):
        store.commit(slot.id, ENGINE, checksum=0, key=key(1))
    store.commit(slot.id, ENGINE, checksum=0, key=key(1), size=PAGE_BYTES)

    assert store.is_stored(key(1))


def test_a_buckets_quota_holds_for_all_its_tenants_together(open_store: OpenStore) -> None:
    rules = BucketRules(quota=Quota(hard_bytes=4 * PAGE_BYTES), tenant_quota=Quota(hard_bytes=3 * PAGE_BYTES))
    store = open_store(rules={"kv": rules})
    for tenant in ("a", "b"):
        for number in range(4):
            put(store, key(number, tenant))
    elsewhere = put(store, key(1, "a", "elsewhere"), 8)

    figures = {each.namespace: each.bytes for each in store.namespaces()}
    assert figures[Namespace("kv", WHOLE)] == 4 * PAGE_BYTES
    assert figures[Namespace("kv", "a")] <= 3 * PAGE_BYTES
    assert figures[Namespace("kv", "b")] <= 3 * PAGE_BYTES
    assert store.is_stored(elsewhere)


def test_whoever_is_over_its_soft_quota_goes_first(open_store: OpenStore, clock: ManualClock) -> None:
    store = with_tenant_quota(open_store, soft_bytes=8 * PAGE_BYTES)
    for number in range(20):
        put(store, key(number, "modest")) if number < 8 else put(store, key(number, "greedy"))
    for number in range(100, 100 + PAGES - 20):
        clock.advance(2)
        put(store, key(number, "", "elsewhere"))

    put(store, key(0, "newcomer"), 4)

    assert stored(store, "modest", 8) == list(range(8))
    assert stored(store, "greedy", 20) == list(range(12, 20))


def test_without_greed_the_tenant_untouched_for_longest_loses_first(open_store: OpenStore, clock: ManualClock) -> None:
    store = with_tenant_quota(open_store, soft_bytes=PAGES * PAGE_BYTES)
    put(store, key(1, "old"), PAGES // 2)
    clock.advance(5)
    put(store, key(1, "new"), PAGES // 2)

    put(store, key(2, "new"))

    assert not store.is_stored(key(1, "old"))
    assert store.is_stored(key(1, "new"))


def test_many_tenants_over_their_quota_take_turns(open_store: OpenStore) -> None:
    store = open_store(default_rules=BucketRules(tenant_quota=Quota(soft_bytes=0)))
    for number in range(PAGES):
        put(store, key(0, f"t{number}"))
    for number in range(PAGES):
        put(store, key(1, f"t{number}"))

    assert store.stats().objects == PAGES
    assert store.stats().evictions["space"] == PAGES


def test_a_quota_is_kept_after_a_restart_that_forgot_who_had_what(open_store: OpenStore, clock: ManualClock) -> None:
    store = with_tenant_quota(open_store, hard_bytes=3 * PAGE_BYTES)
    for number in range(3):
        put(store, key(number))
    store = with_tenant_quota(open_store, hard_bytes=3 * PAGE_BYTES)

    with pytest.raises(QuotaExceeded):
        store.write(key(3), PAGE_BYTES, HTTP)
    clock.advance(70)
    put(store, key(3))

    assert store.stats().objects == 3


def test_namespaces_tell_what_they_have_and_what_happened(open_store: OpenStore) -> None:
    store = with_tenant_quota(open_store, hard_bytes=2 * PAGE_BYTES)
    for number in range(3):
        put(store, key(number))
    lease(store, key(2))
    store.lease(key(0), "reader", 1)
    put(store, ObjectKey("kv", "no tenant"))

    acme, nobody = store.namespaces()

    assert (acme.namespace, nobody.namespace) == (Namespace("kv", "acme"), Namespace("kv", ""))
    assert acme[1:] == (2, 2 * PAGE_BYTES, Quota(hard_bytes=2 * PAGE_BYTES), 1, 1, 1, 0)
    assert nobody[1:3] == (1, PAGE_BYTES)


def test_a_flood_of_names_is_counted_in_bounded_memory(open_store: OpenStore) -> None:
    store = open_store(limits=StoreLimits(max_namespaces=4), rules={"kv": BucketRules(quota=Quota(hard_objects=40))})
    for number in range(6):
        put(store, key(0, f"t{number}"))
        put(store, key(0, "t", f"bucket{number}"))
    for number in range(50):
        store.lease(key(number, f"m{number}", f"b{number}"), "reader", 1)

    named = {each.namespace: each.objects for each in store.namespaces()}
    assert len(named) <= 4 + 3
    assert sum(count for namespace, count in named.items() if namespace.salt != WHOLE) == 12
    assert named[Namespace("kv", WHOLE)] == 6
    assert named[Namespace("kv", OTHERS)] > 0
    assert store.stats().namespaces == 4


def test_empty_namespaces_make_way_for_new_ones(open_store: OpenStore) -> None:
    store = open_store(
        limits=StoreLimits(max_namespaces=2), default_rules=BucketRules(tenant_quota=Quota(hard_objects=1))
    )
    for number in range(6):
        store.delete(put(store, key(0, "t", f"bucket{number}")))

    assert [each.namespace.bucket for each in store.namespaces()] == ["bucket4", "bucket5"]


def test_a_bucket_whose_others_went_last_is_forgotten_like_any(open_store: OpenStore) -> None:
    store = open_store(limits=StoreLimits(max_namespaces=1))
    for number in range(20):
        own, of_others = (put(store, key(0, tenant, f"bucket{number}")) for tenant in ("a", "b"))
        store.delete(own)
        newcomer = put(store, key(0, "x", "kv"))
        store.delete(newcomer)
        store.delete(of_others)

    assert len(store.namespaces()) <= 2


def test_a_tenant_counted_with_the_others_never_has_its_quota_twice(open_store: OpenStore) -> None:
    rules = {"kv": BucketRules(tenant_quota=Quota(hard_objects=2))}
    store = open_store(limits=StoreLimits(max_namespaces=1), rules=rules)
    first = put(store, key(0, "first"))
    put(store, key(0, "late"))
    store.delete(first)

    for number in range(1, 5):
        put(store, key(number, "late"))

    assert stored(store, "late", 5) == [3, 4]


def test_rows_of_objects_that_are_gone_keep_no_tenant_s_account(open_store: OpenStore) -> None:
    def accounts() -> int:
        gc.collect()
        return sum(isinstance(found, Account) for found in gc.get_objects())

    others = accounts()
    store = open_store(limits=StoreLimits(max_namespaces=1))
    for count in range(8, 0, -1):
        for wanted in [put(store, key(number, f"tenant-{count}")) for number in range(count)]:
            store.delete(wanted)

    assert accounts() - others <= 4
