"""Tiers over links: who waits for what, where blocks lie, and what each kind of L2 takes to write and to read."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierline.bench.engine_model import EngineModel, Job
from tierline.bench.fleet import Fleet
from tierline.bench.routing_loads import arrivals
from tierline.bench.traces import BLOCK_TOKENS, Request, Trace
from tierline.loading import PrefillCost
from tierline.pool.slots import home_of, slot_of
from tierline.router.events.index import Tier
from tierline.router.strategies.kvaware import KvAware
from tierline.simulate.pooled import PoolKind
from tierline.simulate.tiers import NodeTiers, TierModel, Tiers

GB = 10**9
L1_S, L2_S = 0.1, 1.0
"""Of a block, with the bandwidths below: a block is a gigabyte."""
L1, L2 = TierModel(1000 * GB, 10 * GB, 0.0, "lru"), TierModel(3000 * GB, GB, 0.0, "lru")
PROMPT = tuple(range(10))
OTHER = tuple(range(100, 110))
ALWAYS_WORTH_IT = PrefillCost(1000.0)


def tiers(l1: TierModel | None = L1, l2: TierModel | None = L2, kind: PoolKind = "nodes", nodes: int = 3) -> Tiers:
    return Tiers(l1, l2, kind=kind, block_bytes=GB, prefill=ALWAYS_WORTH_IT, nodes=nodes)


def job(blocks: Sequence[int]) -> Job:
    return Job(0.0, blocks, len(blocks) * BLOCK_TOKENS, 1)


def read(engine: NodeTiers, blocks: Sequence[int], at_s: float, start: int = 0) -> tuple[float, float, float]:
    """Return how many blocks come from L1 and from L2, and how long that takes."""
    (l1, l2), ready_at_s = engine.load(job(blocks), start, at_s)
    return l1, l2, ready_at_s - at_s


class Listening:
    """Knows what it was told, and that a block comes behind the one before it."""

    def __init__(self) -> None:
        self.held: set[int] = set()

    def stored(self, parent: int | None, blocks: Sequence[int]) -> None:
        assert parent == (blocks[0] - 1 if blocks[0] % 100 else None)
        assert list(blocks) == list(range(blocks[0], blocks[0] + len(blocks)))
        assert self.held.isdisjoint(blocks)
        self.held.update(blocks)

    def removed(self, block: int) -> None:
        self.held.remove(block)


def home(blocks: Sequence[int], nodes: int = 3) -> int:
    return int(home_of(slot_of("", f"{blocks[0]}"), [f"node-{n}" for n in range(nodes)]).removeprefix("node-"))


# Writing --------------------------------------------------------------------------------------------------------------


def test_a_prompt_can_be_read_no_sooner_than_it_has_been_written() -> None:
    engine = tiers(l2=None).below(0, None, None)
    engine.computed(job(PROMPT), 0.0)
    assert read(engine, PROMPT[:1], 0.0) == pytest.approx((1, 0, 10 * L1_S))


def test_only_what_a_tier_does_not_hold_is_written() -> None:
    engine = tiers(l2=None).below(0, None, None)
    engine.computed(job(PROMPT), 0.0)
    engine.computed(job((*PROMPT, 50)), 5.0)
    assert read(engine, (*PROMPT, 50), 5.0, start=10) == pytest.approx((1, 0, L1_S))


def test_writes_wait_for_writes_and_loads_for_loads_but_neither_for_the_other() -> None:
    engine = tiers(l2=None).below(0, None, None)
    engine.computed(job(PROMPT), 0.0)
    engine.computed(job(OTHER), 10.0)
    engine.computed(job((50,)), 10.0)
    assert read(engine, PROMPT, 10.0) == pytest.approx((10, 0, 10 * L1_S))
    assert read(engine, PROMPT, 10.0) == pytest.approx((10, 0, 20 * L1_S))
    assert read(engine, (50,), 13.0) == pytest.approx((1, 0, L1_S))


# Memory of the nodes beside L1 ----------------------------------------------------------------------------------------


def test_reading_from_another_node_takes_its_outgoing_link_and_the_readers_incoming_one() -> None:
    fleet = tiers()
    writer, reader, third = (fleet.below(n, None, None) for n in range(3))
    writer.computed(job(PROMPT), 0.0)
    assert read(reader, PROMPT, 100.0) == pytest.approx((0, 10, 10 * L2_S))
    writer.computed(job(OTHER), 200.0)
    assert read(reader, OTHER, 300.0) == pytest.approx((0, 10, 10 * L2_S))
    assert read(third, OTHER, 300.0) == pytest.approx((0, 10, 20 * L2_S))


def test_a_reader_takes_no_more_than_its_own_link_however_many_send() -> None:
    fleet = tiers()
    writers, reader = [fleet.below(n, None, None) for n in range(2)], fleet.below(2, None, None)
    for writer, blocks in zip(writers, (PROMPT, OTHER), strict=True):
        writer.computed(job(blocks), 0.0)
    assert read(reader, PROMPT, 100.0) == pytest.approx((0, 10, 10 * L2_S))
    assert read(reader, OTHER, 100.0) == pytest.approx((0, 10, 20 * L2_S))


def test_who_read_a_prompt_holds_a_copy_and_readers_are_shared_out_among_holders() -> None:
    fleet = tiers(nodes=4)
    engines = [fleet.below(n, None, None) for n in range(4)]
    engines[0].computed(job(PROMPT), 0.0)
    read(engines[1], PROMPT, 100.0)
    assert read(engines[1], PROMPT, 200.0) == pytest.approx((10, 0, 10 * L1_S))
    # Half of it comes from each holder, to each reader; one holder alone would take twice as long for the second.
    for engine in engines[2:]:
        assert read(engine, PROMPT, 300.0) == pytest.approx((0, 10, 10 * L2_S))


def test_what_the_nodes_own_part_of_l2_holds_takes_no_network() -> None:
    small = TierModel(10 * GB, 10 * GB, 0.0, "lru")
    engine = tiers(l1=small).below(0, None, None)
    engine.computed(job(PROMPT), 0.0)
    engine.computed(job(OTHER), 50.0)  # L1 has room for one of both
    assert read(engine, PROMPT, 100.0) == pytest.approx((0, 10, 10 * L1_S))


def test_with_the_last_engine_of_a_node_what_it_held_of_l2_is_gone() -> None:
    fleet = tiers()
    writer, reader = (fleet.below(n, None, None) for n in range(2))
    writer.computed(job(PROMPT), 0.0)
    fleet.gone(0)
    assert read(reader, PROMPT, 100.0) == (0, 0, 0)


# Without L1 -----------------------------------------------------------------------------------------------------------


def test_without_l1_a_prompt_is_sent_to_its_home_and_read_from_there() -> None:
    at_home = home(PROMPT)
    fleet = tiers(l1=TierModel(0, 10 * GB, 0.0))
    engines = [fleet.below(n, None, None) for n in range(3)]
    writer, reader = [engine for n, engine in enumerate(engines) if n != at_home]
    writer.computed(job(PROMPT), 0.0)
    assert read(engines[at_home], PROMPT, 0.0) == pytest.approx((0, 10, 10 * L2_S))
    for at_s in (100.0, 200.0):  # it keeps no copy
        assert read(reader, PROMPT, at_s) == pytest.approx((0, 10, 10 * L2_S))


def test_without_l1_what_l2_holds_is_not_sent_again() -> None:
    fleet = tiers(l1=None)
    engines = [fleet.below(n, None, None) for n in range(3)]
    for engine in engines:
        engine.computed(job(PROMPT), 0.0)
    new = (*PROMPT, 50)
    engines[home(PROMPT) - 1].computed(job(new), 100.0)
    assert read(engines[home(PROMPT)], new, 100.0) == pytest.approx((0, 11, L2_S))


# L1 as L2 -------------------------------------------------------------------------------------------------------------


def test_where_l1_is_l2_nothing_is_sent_that_nobody_reads_and_what_l1_drops_is_gone() -> None:
    small = TierModel(10 * GB, 10 * GB, 0.0, "lru")
    fleet = tiers(l1=small, l2=TierModel(0, GB, 0.0), kind="l1")
    writer, reader = (fleet.below(n, None, None) for n in range(2))
    writer.computed(job(PROMPT), 0.0)
    assert read(reader, PROMPT, 100.0) == pytest.approx((0, 10, 10 * L2_S))
    assert read(reader, PROMPT, 200.0) == pytest.approx((10, 0, 10 * L1_S))
    for engine in (writer, reader):
        engine.computed(job(OTHER), 300.0)
    assert read(writer, PROMPT, 400.0) == (0, 0, 0)


# A service ------------------------------------------------------------------------------------------------------------


def test_a_service_is_written_to_over_the_nodes_link_and_all_readers_share_its_own() -> None:
    fleet = tiers(kind="service")
    writer, *readers = (fleet.below(n, None, None) for n in range(3))
    writer.computed(job(PROMPT), 0.0)
    writer.computed(job(PROMPT), 1.0)
    assert read(readers[0], PROMPT, 9.9) == (0, 0, 0)  # it is on its way
    assert read(readers[0], PROMPT, 10.0) == pytest.approx((0, 10, 10 * L2_S))
    assert read(readers[1], PROMPT, 10.0) == pytest.approx((0, 10, 20 * L2_S))
    assert read(readers[0], PROMPT, 100.0) == pytest.approx((10, 0, 10 * L1_S))


# All of them ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["nodes", "l1", "service"]),
    st.sampled_from([0, 1, 12]),
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(1, 8), st.booleans()), max_size=40),
)
def test_no_load_ends_sooner_than_its_bytes_take_and_no_tier_gives_what_nobody_wrote(
    kind: PoolKind, l1_blocks: int, l2_blocks: int, moves: list[tuple[int, int, int, bool]]
) -> None:
    l1, l2 = TierModel(l1_blocks * GB, 10 * GB, 0.0), TierModel(l2_blocks * GB, GB, 0.0)
    fleet = tiers(l1=l1, l2=l2, kind=kind, nodes=2)
    told = [(Listening(), Listening()) for _ in range(4)]
    engines = [fleet.below(n, host, shared) for n, (host, shared) in enumerate(told)]
    written: set[int] = set()
    read_of_service, first_at_s = 0.0, len(moves)
    for at_s, (who, what, length, is_load) in enumerate(moves):
        blocks = tuple(range(100 * what, 100 * what + length))
        of_l1_before = set(told[who][0].held)
        if is_load:
            of_l1, of_l2, seconds = read(engines[who], blocks, float(at_s))
            assert written.issuperset(blocks[: int(of_l1 + of_l2)])
            assert of_l1_before.issuperset(blocks[: int(of_l1)])
            assert seconds >= (of_l1 + of_l2) * L1_S - 1e-9
            if kind == "service" and of_l2:
                read_of_service, first_at_s = read_of_service + of_l2, min(first_at_s, at_s)
                assert at_s + seconds >= first_at_s + read_of_service * L2_S - 1e-9
        else:
            engines[who].computed(job(blocks), float(at_s))
            written.update(blocks)
        for host, shared in told:
            assert len(host.held) <= l1_blocks
            assert written.issuperset(host.held | shared.held)


# What the router hears ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "heard"), [("nodes", 9), ("l1", 9), ("service", 0)])
def test_kvaware_counts_on_what_another_node_holds_as_shared_but_no_service_tells_it(
    kind: PoolKind, heard: int
) -> None:
    l2 = TierModel(0 if kind == "l1" else 3000 * GB, 100 * GB, 0.0)
    strategy = KvAware(2, 2**20, 2**24)
    fleet = Fleet(strategy, 2, 400, EngineModel(), tiers(l2=l2, kind=kind).below)
    long = (*PROMPT, *range(1000, 1300))  # behind what one engine has, so it has much to do
    asked = [Request(0.0, PROMPT, 1), Request(0.0, OTHER, 1), Request(100.0, long, 1), Request(100.1, PROMPT, 1)]
    first, _, third, last = fleet.serve(arrivals(Trace("asked", asked)))
    assert first.position == third.position != last.position
    assert list(last.job.loaded_blocks) == [0, 10]
    assert strategy.predicted[Tier.SHARED] == heard * BLOCK_TOKENS  # the last one's last token is computed anyway
