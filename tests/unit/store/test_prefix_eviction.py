"""A prefix under each policy, through the real store: a block is of no use without those before it."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.clocks import ManualClock

from tierline.store import PAGE_BYTES, ObjectKey, Owner, PolicyName, Store
from tierline.store.eviction import POLICIES

WRITER = Owner("engine", 1, 1)
BLOCKS = 8
PAGES = 12
OpenStore = Callable[..., Store]


def block(number: int) -> ObjectKey:
    return ObjectKey("kv", f"prefix-{number}")


def put(store: Store, key: ObjectKey) -> None:
    store.commit(store.write(key, PAGE_BYTES, WRITER).id, WRITER, checksum=0)


def read(store: Store, blocks: int) -> str:
    lease_id = store.open_lease("reader", 60)
    store.extend_lease(lease_id, [block(number) for number in range(blocks)])
    return lease_id


def stored_blocks(store: Store) -> list[int]:
    return [number for number in range(BLOCKS) if store.is_stored(block(number))]


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(
    reads=st.lists(st.tuples(st.integers(1, BLOCKS), st.floats(0, 6), st.booleans()), max_size=8),
    fillers=st.lists(st.integers(0, 30), min_size=30, max_size=60),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_the_head_of_a_prefix_outlives_its_tail(
    name: PolicyName,
    open_store: OpenStore,
    clock: ManualClock,
    reads: list[tuple[int, float, bool]],
    fillers: list[int],
) -> None:
    """Committed last block first, read again and again in part or whole by leases that overlap or do not."""
    store = open_store(PAGES, eviction=name)
    for number in reversed(range(BLOCKS)):
        put(store, block(number))
    leases = []
    for blocks, pause_s, is_released in reads:
        clock.advance(pause_s)
        store.expire()
        leases.append(read(store, blocks))
        if is_released:
            store.release(leases.pop(0))
    for lease_id in reversed(leases):
        store.release(lease_id)
    clock.advance(10)
    store.expire()

    for number in fillers:
        filler = ObjectKey("kv", f"other-{number}")
        if store.is_stored(filler):
            found = store.lease(filler, "reader", 10)
            assert found is not None
            store.release(found[0])
            clock.advance(3)
            store.expire()
        else:
            put(store, filler)
        left = stored_blocks(store)
        assert left == list(range(len(left)))
    for key in map(block, range(BLOCKS)):
        store.delete(key)
    for number in range(31):
        store.delete(ObjectKey("kv", f"other-{number}"))
