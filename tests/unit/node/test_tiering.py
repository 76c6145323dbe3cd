"""Misses and the tiers below a segment, in virtual time: right bytes, or a miss in time, whatever a tier does."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.node.simulated_tier import SimulatedTier, content_of
from tests.unit.node.virtual_time import run

from tierline.duties import Duties
from tierline.loading import PrefillCost
from tierline.node import tier_writes
from tierline.node import tiering as tiering_module
from tierline.node.prefix_run import PrefixRun
from tierline.node.service import NodeService
from tierline.node.tier_figures import TierUse, WritePolicy
from tierline.node.tiering import STALL_S, STOP_S, Tiering
from tierline.pool.local import Offered
from tierline.pool.slots import slot_of
from tierline.pool.tier import Arrival, Found
from tierline.store import PAGE_BYTES, ObjectKey, Store, StoreLimits
from tierline.tracing.context import NOWHERE, SAMPLED, Origin, TraceContext, working_for
from tierline.tracing.otlp import decode
from tierline.tracing.reading import read_traces
from tierline.tracing.tracer import open_tracer

CAPACITY = 65 * PAGE_BYTES
CAP_S = 0.02
EXPIRE_S = 0.25
KEYS = [ObjectKey("b", f"k{number}") for number in range(8)]


class World:
    """One segment with tiers below it."""

    def __init__(self, service: NodeService, tiering: Tiering, duties: Duties) -> None:
        self.service = service
        self.tiering = tiering
        self.duties = duties

    def compute(self, *keys: ObjectKey) -> None:
        """Store what everybody would."""
        for key in keys:
            owner = self.service.new_owner()
            content = content_of(key)
            slot = self.service.write(key, len(content), owner)
            for view, _ in zip(self.service.store.views(slot.extents), range(1), strict=True):
                view[:] = content
            self.service.commit(slot.id, owner, xxhash.xxh3_64_intdigest(content), key, len(content))

    async def read(
        self,
        keys: Sequence[ObjectKey] = KEYS,
        wait_s: float = 1.0,
        *,
        anchor: str = "",
        group_size: int = 1,
        prefill_s: float = 0.0,
    ) -> tuple[int, float, dict[str, int]]:
        """Lease a prefix; returns how many objects were leased, how long that took, and who answered."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        names = [key.name for key in keys]
        made = PrefixRun(
            self.service,
            "reader",
            "b",
            names,
            ttl_s=30.0,
            group_size=group_size,
            max_extents=1000,
            anchor=anchor,
            prefill=PrefillCost(prefill_s) if prefill_s else None,
        )
        while made.gather():
            pass
        if made.awaits():
            await made.extend(wait_s)
        for leased in made.objects:
            content = b"".join(self.service.store.views(leased.extents))
            assert content == content_of(leased.key)
            assert xxhash.xxh3_64_intdigest(content) == leased.checksum
        sources = made.sources()
        if lease := made.finish():
            self.service.store.release(lease)
        return len(made.objects), round(loop.time() - since, 6), sources

    async def let_pass(self, seconds: float) -> None:
        for _ in range(round(seconds / EXPIRE_S)):
            await asyncio.sleep(EXPIRE_S)
            while self.service.expire():
                pass

    def require_no_leaks(self) -> None:
        stats = self.service.store.stats()
        assert stats.slots == 0
        assert stats.reserved_bytes == 0
        assert self.tiering._fetching_bytes == 0


@asynccontextmanager
async def world(
    *uses: TierUse, capacity: int = CAPACITY, max_ttl_s: float = 600.0, **options: Any
) -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        clock = asyncio.get_running_loop().time
        limits = StoreLimits(max_ttl_s=max_ttl_s)
        service = NodeService(Store.open(Path(directory), "segment", capacity, clock=clock, limits=limits))
        duties = Duties(("tiers",), clock)
        tiering = Tiering(service, uses, duties=duties, **options)
        tiering.start()
        try:
            yield World(service, tiering, duties)
        finally:
            await tiering.stop()
            assert service.store.stats().slots == 0
            service.stop_verifying()
            service.close()


def test_what_a_tier_has_is_leased_and_says_who_brought_it() -> None:
    async def case() -> None:
        tier = SimulatedTier(source="node-2")
        tier.has(*KEYS)
        async with world(TierUse(tier)) as node:
            assert await node.read() == (8, 0.009, {"redis:node-2": 8})
            assert await node.read() == (8, 0.0, {})
            assert tier.asked["objects"] == 8
            node.require_no_leaks()

    run(case())


def test_the_tiers_are_asked_behind_what_is_here_and_with_the_slot_of_the_prefix() -> None:
    async def case() -> None:
        tier = SimulatedTier()
        tier.has(*KEYS[3:6])
        async with world(TierUse(tier)) as node:
            node.compute(*KEYS[:3])
            found, _, sources = await node.read(anchor="ff")
            assert (found, sources) == (6, {"redis": 3})
            assert tier.anchors == [slot_of("b", "ff")]
            entry = node.service.store.entry("1:bk4")
            assert entry is not None
            assert entry.anchor == slot_of("b", "ff")

    run(case())


def test_a_definite_miss_is_known_when_the_tier_says_so_and_no_later_than_the_cap() -> None:
    async def case() -> None:
        tier = SimulatedTier()
        async with world(TierUse(tier)) as node:
            assert await node.read(wait_s=60) == (0, 0.001, {})
            tier.exists_s = 5.0
            tier.has(*KEYS)
            assert await node.read(wait_s=60) == (0, CAP_S, {})
            assert tier.asked["fetch_into"] == 0

    run(case())


def test_the_first_tier_has_the_say_and_the_next_one_what_it_lacks() -> None:
    async def case() -> None:
        first, second = SimulatedTier("tieredstorage"), SimulatedTier("redis")
        first.has(*KEYS[:3])
        second.has(*KEYS[:6])
        async with world(TierUse(first), TierUse(second)) as node:
            found, _, sources = await node.read()
            assert (found, sources) == (6, {"tieredstorage": 3, "redis": 3})

    run(case())


def test_many_who_ask_at_once_stand_behind_one_fetch() -> None:
    async def case() -> None:
        tier = SimulatedTier(object_s=0.05)
        tier.has(*KEYS)
        async with world(TierUse(tier)) as node:
            answers = await asyncio.gather(*(node.read() for _ in range(20)), node.read(KEYS[:5]), node.read(KEYS[2:]))
            assert [found for found, _, _ in answers] == [8] * 20 + [5, 6]
            assert tier.asked["objects"] == 8

    run(case())


def test_prompts_that_begin_alike_and_are_of_one_length_are_each_fetched_to_their_own_end() -> None:
    async def case() -> None:
        tier = SimulatedTier()
        prompts = [KEYS[:4] + [ObjectKey("b", f"{prompt}{number}") for number in range(4)] for prompt in "xy"]
        tier.has(*{key for prompt in prompts for key in prompt})
        async with world(TierUse(tier)) as node:
            assert [found for found, _, _ in await asyncio.gather(*map(node.read, prompts))] == [8, 8]
            assert tier.asked["objects"] == 12
            node.require_no_leaks()

    run(case())


def test_leading_blocks_are_leased_while_the_last_are_on_their_way_and_the_fetch_goes_on() -> None:
    async def case() -> None:
        tier = SimulatedTier(object_s=1.0)
        tier.has(*KEYS)
        use = TierUse(tier)
        async with world(use) as node:
            assert await node.read(wait_s=3.5) == (3, 3.5, {"redis": 3})
            assert (use.figures.hits.total(), use.figures.fetched_bytes) == (3, 3 * 4000)
            await asyncio.sleep(10)
            assert await node.read() == (8, 0.0, {})
            assert tier.asked["fetch_into"] == 1

    run(case())


def test_who_does_not_wait_has_it_fetched_for_the_next() -> None:
    async def case() -> None:
        tier = SimulatedTier()
        tier.has(*KEYS)
        async with world(TierUse(tier)) as node:
            node.tiering.seek_ahead(KEYS)
            await asyncio.sleep(1)
            assert await node.read(wait_s=0.0) == (8, 0.0, {})

    run(case())


def test_what_a_look_up_across_gaps_did_not_find_is_fetched_for_the_next() -> None:
    async def case() -> None:
        tier = SimulatedTier()
        tier.has(*KEYS)
        async with world(TierUse(tier)) as node:
            node.compute(KEYS[1], KEYS[4])
            names = [key.name for key in KEYS]
            made = PrefixRun(
                node.service, "reader", "b", names, ttl_s=30.0, group_size=1, max_extents=1000, across_gaps=True
            )
            assert not made.gather()
            made.seek_ahead()
            assert (made.places, made.awaits()) == ([1, 4], False)
            made.release()
            await asyncio.sleep(1)
            assert tier.asked["objects"] == 6
            assert await node.read(wait_s=0.0) == (8, 0.0, {})

    run(case())


def test_what_is_removed_here_is_removed_below_where_this_node_may_write() -> None:
    async def case() -> None:
        writable, foreign, pool = SimulatedTier("redis"), SimulatedTier("s3"), SimulatedTier("tieredstorage")
        for tier in (writable, foreign, pool):
            tier.has(*KEYS)
        async with world(TierUse(writable), TierUse(foreign, "read-only"), TierUse(pool)) as node:
            node.tiering.forget(KEYS[:3])
            await asyncio.sleep(1)
            assert [len(tier.objects) for tier in (writable, foreign, pool)] == [5, 8, 8]

    run(case())


def test_what_is_removed_while_it_is_being_written_to_a_tier_is_not_found_again() -> None:
    async def case() -> None:
        tier = SimulatedTier(store_s=10.0)
        use = TierUse(tier)
        async with world(use) as node:
            node.compute(*KEYS)
            await asyncio.sleep(5)
            node.tiering.forget(KEYS[:1])
            assert node.service.store.delete(KEYS[0])
            await asyncio.sleep(10)
            assert tier.objects == {key: content_of(key) for key in KEYS[1:]}
            assert (await node.read(KEYS[:1]))[0] == 0
            node.compute(KEYS[0])  # who computes it anew has it written again
            await asyncio.sleep(15)
            assert set(tier.objects) == set(KEYS)

    run(case())


def test_what_is_removed_while_a_write_of_it_has_told_others_already_is_not_fetched_back() -> None:
    async def case() -> None:
        tier = SimulatedTier(store_s=10.0)
        async with world(TierUse(tier)) as node:
            node.compute(KEYS[0])
            await asyncio.sleep(5)
            node.tiering.forget(KEYS[:1])
            assert node.service.store.delete(KEYS[0])
            await asyncio.sleep(1)
            tier.has(KEYS[0])  # the write is visible before it has ended
            assert (await node.read(KEYS[:1]))[0] == 0
            await asyncio.sleep(10)
            assert not tier.objects

    run(case())


def test_what_is_removed_before_its_turn_is_not_written_also_where_it_is_computed_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tier_writes, "BATCH_OBJECTS", 1)

    async def case() -> None:
        tier = SimulatedTier(store_s=10.0)
        use = TierUse(tier)
        async with world(use) as node:
            node.compute(*reversed(KEYS[:4]))
            await asyncio.sleep(5)
            node.tiering.forget([KEYS[3]])
            assert node.service.store.delete(KEYS[3])
            assert use.figures.stores["gone"] == 1
            node.compute(KEYS[3])
            await asyncio.sleep(60)
            assert set(tier.objects) == set(KEYS[:4])
            assert tier.asked["store_from"] == 4
            assert node.service.store.stats().leases == 0

    run(case())


def test_a_removal_is_done_although_the_node_stops() -> None:
    async def case() -> None:
        tier = SimulatedTier(store_s=10.0)
        async with world(TierUse(tier)) as node:
            node.compute(*KEYS)
            await asyncio.sleep(1)
            node.tiering.forget(KEYS)
            await node.tiering.stop()
            assert tier.asked["delete"] == 2
            node.tiering.start()

    run(case())


def test_a_reader_that_goes_leaves_the_fetch_to_the_others() -> None:
    async def case() -> None:
        tier = SimulatedTier(object_s=0.1)
        tier.has(*KEYS)
        async with world(TierUse(tier)) as node:
            gone = asyncio.create_task(node.read())
            staying = asyncio.create_task(node.read(wait_s=5))
            await asyncio.sleep(0.15)
            gone.cancel()
            found, _, _ = await staying
            assert found == 8
            gone_early = asyncio.create_task(node.read([ObjectKey("b", "absent")]))
            await asyncio.sleep(0.0005)
            gone_early.cancel()
            await asyncio.sleep(1)
            node.require_no_leaks()

    run(case())


# Load or recompute ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observed_s", "prefill_s", "found", "decision"),
    [(None, 0.1, 8, "unknown"), (0.05, 0.0, 8, "unknown"), (0.05, 0.1, 8, "load"), (0.2, 0.1, 0, "recompute")],
)
def test_what_would_take_longer_than_to_compute_it_is_a_miss(
    observed_s: float | None, prefill_s: float, found: int, decision: str
) -> None:
    async def case() -> None:
        tier = SimulatedTier(observed_s=observed_s)
        tier.has(*KEYS)
        use = TierUse(tier)
        async with world(use) as node:
            assert (await node.read(prefill_s=prefill_s))[0] == found
            assert use.figures.decisions == {decision: 1}
            assert tier.asked["fetch_into"] == (found > 0)

    run(case())


# Room -----------------------------------------------------------------------------------------------------------


def test_what_has_no_room_is_not_fetched_and_what_has_is() -> None:
    async def case() -> None:
        tier = SimulatedTier()
        keys = [ObjectKey("b", f"n{number}") for number in range(64)]
        tier.has(*keys)
        use = TierUse(tier)
        async with world(use) as node:
            taken = 60
            owner = node.service.new_owner()
            slot = node.service.write(ObjectKey("b", "large"), taken * PAGE_BYTES, owner)
            found, _, _ = await node.read(keys)
            assert found == 64 - taken
            assert use.figures.failures["no_room"] == 1
            node.service.abort(slot.id, owner)
            node.require_no_leaks()

    run(case())


def test_a_group_is_fetched_whole_or_not_at_all() -> None:
    async def case() -> None:
        tier = SimulatedTier()
        tier.has(*KEYS)
        async with world(TierUse(tier)) as node:
            owner = node.service.new_owner()
            slot = node.service.write(ObjectKey("b", "large"), 59 * PAGE_BYTES, owner)
            found, _, _ = await node.read(group_size=4)
            assert found == 4
            assert tier.asked["objects"] == 4
            node.service.abort(slot.id, owner)
            node.require_no_leaks()

    run(case())


def test_no_more_than_half_of_a_segment_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiering_module, "MOST_FETCHING_SHARE", 5 * 4000 / CAPACITY)

    async def case() -> None:
        tier = SimulatedTier()
        tier.has(*KEYS)
        async with world(TierUse(tier)) as node:
            assert (await node.read())[0] == 5
            assert (await node.read())[0] == 8
            node.require_no_leaks()

    run(case())


def test_a_stopping_node_fetches_nothing() -> None:
    async def case() -> None:
        tier = SimulatedTier()
        tier.has(*KEYS)
        async with world(TierUse(tier)) as node:
            node.service.accepts_writes = False
            assert (await node.read())[0] == 0

    run(case())


def test_a_fetch_under_way_when_the_node_stops_gives_its_slots_back() -> None:
    async def case() -> None:
        tier = SimulatedTier(object_s=1.0)
        tier.has(*KEYS)
        async with world(TierUse(tier)) as node:
            await node.read(wait_s=2.5)
            assert tier.fetching == 1
            await node.tiering.stop()
            assert tier.fetching == 0
            node.require_no_leaks()
            node.tiering.start()

    run(case())


@pytest.mark.parametrize("hangs", ["fetch", "write"])
def test_a_node_stops_in_time_and_says_so_where_a_tier_does_not_let_go_of_pages(hangs: str) -> None:
    async def case() -> None:
        tier = SimulatedTier(hangs_after=0, store_s=1e6, is_stubborn=True)
        async with world(TierUse(tier)) as node:
            if hangs == "fetch":
                tier.has(*KEYS)
                await node.read()
            else:
                node.compute(*KEYS)
                await asyncio.sleep(1)
            since = asyncio.get_running_loop().time()
            assert not await node.tiering.stop()
            assert asyncio.get_running_loop().time() - since <= 2 * STOP_S
            stats = node.service.store.stats()
            assert (stats.slots, stats.leases) == ((8, 0) if hangs == "fetch" else (0, 8))
            await asyncio.sleep(2e6)  # however late it ends, its pages are its own until then
            node.require_no_leaks()
            assert node.service.store.stats().leases == 0
            node.tiering.start()

    run(case())


# Faults ---------------------------------------------------------------------------------------------------------


def test_what_does_not_come_is_a_miss_and_computed_anew() -> None:
    async def case() -> None:
        tier = SimulatedTier(lacks_at_fetch={KEYS[2]})
        tier.has(*KEYS)
        use = TierUse(tier)
        async with world(use) as node:
            assert (await node.read())[0] == 2
            node.compute(KEYS[2])
            assert (await node.read())[0] == 8
            assert use.figures.failures["not_brought"] == 1

    run(case())


def test_an_object_that_cannot_be_stored_here_leaves_no_slot_open_of_those_beside_it() -> None:
    async def case() -> None:
        too_long = ObjectKey("b", "\N{GOTHIC LETTER AHSA}" * 1024)  # of 4 bytes each: more than a journal's record has
        tier = SimulatedTier("tieredstorage")
        tier.has(*KEYS, too_long)
        use = TierUse(tier)
        async with world(use) as node:
            assert (await node.read([*KEYS[:2], too_long]))[0] == 0
            node.require_no_leaks()
            found = [Offered(key, 7, Found(4000, key)) for key in (*KEYS[:2], too_long)]
            with pytest.raises(ValueError, match="bytes"):
                await node.tiering.hold(use, found)
            node.require_no_leaks()
            assert await node.read() == (8, 0.009, {"tieredstorage": 8})

    run(case())


def test_a_fetch_that_stalls_is_given_up_and_its_pages_are_free() -> None:
    async def case() -> None:
        tier = SimulatedTier(hangs_after=3)
        tier.has(*KEYS)
        use = TierUse(tier)
        async with world(use) as node:
            found, took_s, _ = await node.read(wait_s=2.0)
            assert (found, took_s) == (3, 2.0)
            assert node.service.store.stats().slots == 5
            await asyncio.sleep(STALL_S)
            assert use.figures.failures["stalled"] == 1
            assert tier.fetching == 0
            node.require_no_leaks()

    run(case())


@pytest.mark.parametrize("where", ["exists", "seconds", "fetch_into"])
def test_a_tier_that_raises_is_a_miss_and_counted_and_the_next_one_is_asked(where: str) -> None:
    async def case() -> None:
        broken, sound = SimulatedTier("mooncake", raises={where}), SimulatedTier("redis")
        broken.has(*KEYS)
        sound.has(*KEYS)
        async with world(TierUse(broken), TierUse(sound)) as node:
            found, _, _ = await node.read()
            assert found == (0 if where == "fetch_into" else 8)
            assert node.duties.failures["tiers"] == 1
            node.require_no_leaks()

    run(case())


KEY_SETS = st.sets(st.sampled_from(KEYS))
SIZES = st.sampled_from([-1, 0, 1, 3999, 4000, 4001, 2 * PAGE_BYTES, CAPACITY, 2**70])
ARRIVALS = st.builds(
    Arrival,
    st.integers(-2, 9),
    st.none() | st.sampled_from([-1, 2**64]),
    st.sampled_from(["", "node-2"]),
)
SECONDS = st.sampled_from([0.0, 0.001, 0.02, 0.3, 40.0])
TIERS = st.builds(
    SimulatedTier,
    name=st.sampled_from(["redis", "tieredstorage", "s3"]),
    exists_s=SECONDS,
    object_s=SECONDS,
    store_s=SECONDS,
    observed_s=st.none() | st.sampled_from([0.0, 0.01, 5.0, float("inf"), float("nan")]),
    claims=st.dictionaries(st.sampled_from(KEYS), SIZES, max_size=2),
    extra_claims=st.integers(0, 3),
    lacks_at_fetch=KEY_SETS,
    arrivals=st.lists(ARRIVALS, max_size=3),
    raises=st.sets(st.sampled_from(["exists", "seconds", "fetch_into", "store_from"]), max_size=1),
    refuses=KEY_SETS,
    hangs_after=st.none() | st.integers(0, 3),
    source=st.sampled_from(["", "node-2"]),
    reverses=st.booleans(),
)
USES = st.builds(
    TierUse,
    tier=TIERS,
    policy=st.sampled_from(["write-all", "write-through-on-second-use", "read-only"]),
    promotes=st.booleans(),
)
READS = st.tuples(
    st.integers(1, 4),  # groups of two
    st.sampled_from([0.0, 0.01, 0.5, 3.0]),
    st.sampled_from([0.0, 0.001, 1.0]),
    st.sampled_from([0.0, 0.0, 0.1, 30.0]),  # pause before it
    st.sampled_from([None, None, 0.005, 0.4]),  # cancelled after
)


@given(
    uses=st.lists(st.tuples(USES, KEY_SETS), max_size=2),
    computed=KEY_SETS,
    reads=st.lists(READS, min_size=1, max_size=6),
    keeps_own=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_whatever_a_tier_answers_lies_or_delays_it_is_right_bytes_or_a_miss_in_time(
    uses: list[tuple[TierUse, set[ObjectKey]]],
    computed: set[ObjectKey],
    reads: list[tuple[int, float, float, float, float | None]],
    keeps_own: bool,
) -> None:
    async def case() -> None:
        for use, keys in uses:
            assert isinstance(use.tier, SimulatedTier)
            use.tier.has(*keys)
        async with world(*(use for use, _ in uses), keeps_own=keeps_own) as node:
            node.compute(*computed)

            async def read(groups: int, wait_s: float, prefill_s: float, cancelled_after: float | None) -> None:
                try:
                    async with asyncio.timeout(cancelled_after):
                        _, took_s, _ = await node.read(KEYS[: 2 * groups], wait_s, group_size=2, prefill_s=prefill_s)
                    assert took_s <= wait_s + 1e-6
                except TimeoutError:
                    assert cancelled_after is not None

            under_way: list[Coroutine[Any, Any, None]] = []
            for groups, wait_s, prefill_s, pause_s, cancelled_after in reads:
                await node.let_pass(pause_s)
                under_way.append(read(groups, wait_s, prefill_s, cancelled_after))
                if pause_s:
                    await asyncio.gather(*under_way)
                    under_way = []
            await asyncio.gather(*under_way)
            await node.let_pass(10 * STALL_S + 8 * 40)
            node.require_no_leaks()
            if not keeps_own:
                assert node.service.store.stats().objects == 0

    run(case())


# Asked to hold --------------------------------------------------------------------------------------------------


def test_what_a_peer_asks_to_hold_is_fetched_and_stays_also_where_nothing_else_does() -> None:
    async def case() -> None:
        tier = SimulatedTier("tieredstorage", lacks_at_fetch={KEYS[1]})
        tier.has(*KEYS)
        use = TierUse(tier, promotes=False)
        async with world(use, keeps_own=False) as node:
            node.compute(KEYS[2])
            offered = [Offered(key, 7, Found(4000, None)) for key in KEYS[:3]]
            assert await node.tiering.hold(use, offered) == [True, False, True]
            await node.let_pass(10)
            assert [node.service.store.is_stored(key) for key in KEYS[:3]] == [True, False, True]
            entry = node.service.store.entry("1:bk0")
            assert entry is not None
            assert (entry.anchor, entry.is_transit) == (7, False)

    run(case())


# L1 off, promotion ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keeps_own", "promotes", "stays"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_what_was_fetched_stays_only_where_it_is_promoted_and_l1_is_on(
    keeps_own: bool, promotes: bool, stays: bool
) -> None:
    async def case() -> None:
        tier = SimulatedTier()
        tier.has(*KEYS)
        async with world(TierUse(tier, promotes=promotes), keeps_own=keeps_own) as node:
            assert (await node.read())[0] == 8
            await node.let_pass(5)
            assert node.service.store.stats().objects == (8 if stays else 0)
            assert (await node.read())[0] == 8

    run(case())


@pytest.mark.parametrize("object_s", [0.5, 12.0])
@pytest.mark.parametrize(("promotes", "keeps_own"), [(False, True), (True, False)])
def test_what_does_not_stay_waits_for_what_comes_after_it_and_is_before_it(
    promotes: bool, keeps_own: bool, object_s: float
) -> None:
    async def case() -> None:
        tier = SimulatedTier(object_s=object_s, reverses=True)
        tier.has(*KEYS)
        async with world(TierUse(tier, promotes=promotes), keeps_own=keeps_own) as node:
            time_goes_on = asyncio.create_task(node.let_pass(200))
            node.tiering.seek_ahead(KEYS)
            await asyncio.sleep(8 * object_s + 0.1)
            assert (await node.read(wait_s=0.0))[0] == 8
            assert tier.asked["objects"] == 8
            node.require_no_leaks()
            await time_goes_on
            stats = node.service.store.stats()
            assert (stats.objects, stats.leases) == (0, 0)

    run(case())


def test_with_l1_off_what_is_computed_is_written_below_and_gone_and_found_there() -> None:
    async def case() -> None:
        tier = SimulatedTier(store_s=10.0)
        async with world(TierUse(tier), keeps_own=False) as node:
            node.compute(*KEYS)
            await node.let_pass(5)
            assert node.service.store.stats().objects == 8
            await node.let_pass(10)
            assert node.service.store.stats().objects == 0
            found, _, sources = await node.read()
            assert (found, sources) == (8, {"redis": 8})

    run(case())


def test_with_l1_off_what_waits_for_a_slow_tier_longer_than_a_lease_lives_is_there_until_it_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tier_writes, "BATCH_OBJECTS", 1)

    async def case() -> None:
        tier = SimulatedTier(store_s=25.0)
        use = TierUse(tier)
        async with world(use, keeps_own=False, max_ttl_s=60.0) as node:
            node.compute(*KEYS)
            await node.let_pass(130)
            assert tier.objects == {key: content_of(key) for key in KEYS}
            assert use.figures.stores == Counter(stored=8, refused=0)
            stats = node.service.store.stats()
            assert (stats.objects, stats.leases) == (0, 0)

    run(case())


def test_with_l1_off_what_is_at_home_here_stays() -> None:
    async def case() -> None:
        async with world(keeps_own=False, is_at_home=lambda slot: slot == slot_of("b", "k0")) as node:
            node.compute(*KEYS)
            await node.let_pass(5)
            assert [key for key in KEYS if node.service.store.is_stored(key)] == KEYS[:1]

    run(case())


# Writes ---------------------------------------------------------------------------------------------------------


def test_by_write_all_what_is_stored_goes_to_the_tier_and_what_came_from_it_does_not_go_back() -> None:
    async def case() -> None:
        tier = SimulatedTier()
        tier.has(*KEYS[4:])
        use = TierUse(tier)
        async with world(use) as node:
            node.compute(*KEYS[:4])
            assert (await node.read())[0] == 8
            await asyncio.sleep(1)
            assert tier.objects == {key: content_of(key) for key in KEYS}
            assert use.figures.stores["stored"] == 4

    run(case())


def test_by_second_use_what_is_stored_goes_to_the_tier_when_it_is_asked_for() -> None:
    async def case() -> None:
        tier = SimulatedTier()
        async with world(TierUse(tier, "write-through-on-second-use")) as node:
            node.compute(*KEYS)
            await asyncio.sleep(1)
            assert not tier.objects
            await node.read(KEYS[:3])
            await node.read(KEYS[:3])
            await asyncio.sleep(1)
            assert set(tier.objects) == set(KEYS[:3])
            assert tier.asked["store_from"] == 1

    run(case())


def test_a_read_only_tier_is_never_written_to() -> None:
    async def case() -> None:
        tier = SimulatedTier()
        async with world(TierUse(tier, "read-only")) as node:
            node.compute(*KEYS)
            await node.read()
            await asyncio.sleep(1)
            assert not tier.asked["store_from"]

    run(case())


@pytest.mark.parametrize("has_second_copy", [False, True])
def test_other_nodes_get_a_copy_only_of_buckets_that_ask_for_one(has_second_copy: bool) -> None:
    async def case() -> None:
        tier = SimulatedTier("tieredstorage")
        async with world(TierUse(tier), has_second_copy=lambda _: has_second_copy) as node:
            node.compute(*KEYS)
            await asyncio.sleep(1)
            assert len(tier.objects) == (8 if has_second_copy else 0)

    run(case())


def test_what_is_too_much_for_a_slow_tier_is_dropped_and_counted_and_holds_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tier_writes, "MOST_WAITING_SHARE", 5 * 4000 / CAPACITY)

    async def case() -> None:
        use = TierUse(SimulatedTier(store_s=5.0))
        async with world(use) as node:
            node.compute(*(ObjectKey("b", f"n{number}") for number in range(60)))
            await node.let_pass(60)
            assert use.figures.stores["stored"] >= 5
            assert use.figures.stores["stored"] + use.figures.stores["dropped"] == 60
            assert node.service.store.stats().leases == 0

    run(case())


def test_of_a_prefix_that_is_too_much_for_a_tier_the_beginning_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier_writes, "MOST_WAITING_SHARE", 5 * 4000 / CAPACITY)

    async def case() -> None:
        tier = SimulatedTier(store_s=5.0)
        async with world(TierUse(tier)) as node:
            node.compute(*reversed(KEYS))  # as one commit of a prefix does
            await node.let_pass(60)
            assert set(tier.objects) == set(KEYS[:5])

    run(case())


def test_an_object_that_goes_before_its_turn_is_counted_and_nothing_else() -> None:
    async def case() -> None:
        tier = SimulatedTier()
        use = TierUse(tier)
        async with world(use) as node:
            node.compute(KEYS[0])
            node.service.store.delete(KEYS[0])
            await asyncio.sleep(1)
            assert not tier.objects
            assert node.tiering.writes.waiting == 0

    run(case())


def test_a_tier_that_raises_or_hangs_at_a_write_keeps_nothing_from_being_read() -> None:
    async def case() -> None:
        raising, hanging = SimulatedTier("redis", raises={"store_from"}), SimulatedTier("s3", store_s=1e8)
        use = TierUse(hanging)
        async with world(TierUse(raising), use) as node:
            node.compute(*KEYS)
            assert (await node.read())[0] == 8
            await node.let_pass(120)
            assert use.figures.failures["stalled"] == 1
            assert node.service.store.stats().leases == 0
            assert node.duties.failures["tiers"] == 1

    run(case())


def test_what_a_tier_brings_for_a_traced_request_is_a_span_under_its_lease(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    tracer = open_tracer("tierline-node", file, to_collector=False)
    assert tracer is not None

    async def case() -> None:
        tier = SimulatedTier()
        tier.has(*KEYS[:3])
        async with world(TierUse(tier)) as node:
            node.service.tracer = tracer
            with working_for(Origin("an id", TraceContext(0xABC, 0xDEF, SAMPLED))):
                assert (await node.read(KEYS[:3]))[0] == 3

    run(case())
    tracer.close_blocking()
    (trace,) = read_traces([file]).traces
    (lease,) = trace.roots()
    (fetch,) = lease.children
    assert (lease.span.name, lease.span.parent_id) == ("prefix lease", f"{0xDEF:016x}")
    assert lease.span.attributes["tierline.from.redis"] == 3
    assert fetch.span.name == "fetch redis"
    told = {name: fetch.span.attributes[f"tierline.{name}"] for name in ("tier", "objects", "bytes")}
    assert told == {"tier": "redis", "objects": 3, "bytes": sum(len(content_of(key)) for key in KEYS[:3])}


def origin_of(trace: int, span: int, flags: int = SAMPLED) -> Origin:
    return Origin(f"request {trace}", TraceContext(trace, span, flags))


@pytest.mark.parametrize("policy", ["write-all", "write-through-on-second-use"])
def test_what_is_written_to_a_tier_is_a_span_under_whose_work_it_was(tmp_path: Path, policy: WritePolicy) -> None:
    file = tmp_path / "spans.jsonl"
    tracer = open_tracer("tierline-node", file, to_collector=False)
    assert tracer is not None
    tier = SimulatedTier(store_s=5.0)

    async def case() -> None:
        async with world(TierUse(tier, policy)) as node:
            node.service.tracer = tracer

            async def work(origin: Origin, *keys: ObjectKey) -> None:
                """Have objects written for somebody, by what a tier with this policy writes at."""
                if policy == "write-all":
                    with working_for(origin):
                        node.compute(*keys)
                else:
                    node.compute(*keys)
                    with working_for(origin):
                        await node.read(keys)

            await work(origin_of(1, 2), *KEYS[:2])
            await asyncio.sleep(1.0)  # one writer has these in hand
            await work(NOWHERE, KEYS[2])
            await asyncio.sleep(1.0)  # and so has the other: what comes now waits, and goes together
            await work(origin_of(3, 4), KEYS[3])
            await work(origin_of(5, 6), KEYS[4])
            await work(origin_of(7, 8, flags=0), KEYS[5])
            await node.let_pass(60)
            assert tier.asked["store_from"] == 3

    run(case())
    tracer.close_blocking()
    writes = [span for line in file.read_bytes().splitlines() for span in decode(line) if span.name == "write redis"]
    alone, together = writes
    assert alone.trace_id == f"{1:032x}"
    assert (alone.attributes["tierline.objects"], alone.attributes["tierline.bytes"]) == (2, 8000)
    assert together.attributes["tierline.objects"] == 3
    assert (together.parent_id, {trace for trace, _ in together.links}) == ("", {f"{3:032x}", f"{5:032x}"})
    if policy == "write-all":
        assert alone.parent_id == f"{2:016x}"


def test_a_write_that_a_tier_does_not_take_is_a_failed_span(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    tracer = open_tracer("tierline-node", file, to_collector=False)
    assert tracer is not None

    async def case() -> None:
        async with world(TierUse(SimulatedTier(raises={"store_from"}), "write-all")) as node:
            node.service.tracer = tracer
            with working_for(origin_of(1, 2)):
                node.compute(KEYS[0])
            await node.let_pass(60)

    run(case())
    tracer.close_blocking()
    (only,) = decode(file.read_bytes())
    assert (only.name, only.is_error, only.attributes["tierline.objects"]) == ("write redis", True, 0)
