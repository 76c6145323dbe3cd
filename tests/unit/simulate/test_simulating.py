"""What must hold of every simulation, whatever the cluster and the load."""

from collections.abc import Sequence
from itertools import pairwise
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierline.bench.engine_model import BlockCache, Engine, Job
from tierline.bench.replay import PolicyCache
from tierline.bench.traces import BLOCK_TOKENS, Request, Trace
from tierline.errors import ConfigurationError
from tierline.simulate.coefficients import Coefficients, read
from tierline.simulate.loads import generate, generate_questions
from tierline.simulate.results import cached_tokens, document, figures
from tierline.simulate.running import PUBLISHED, Cluster, Load, Outcome, simulate
from tierline.simulate.tiers import TierModel, block_bytes

LARGE = read("llama-3.1-70b-tp8-h100")
GIB = 2**30


def with_room(blocks: int) -> Coefficients:
    return LARGE.model_copy(update={"kv_tokens": blocks * BLOCK_TOKENS})


def memory(blocks: int, gb_per_s: float = 100.0, *, policy: str = "lru") -> TierModel:
    return TierModel(blocks * block_bytes(LARGE.kv_bytes_per_token), gb_per_s * 1e9, 0.001, policy)  # type: ignore[arg-type]


@st.composite
def prompts(draw: st.DrawFn, most: int = 12) -> list[tuple[int, ...]]:
    """Paths through a tree: a number stands for the whole path to it."""
    numbers: dict[tuple[int, ...], int] = {}
    paths = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=most))
    return [
        tuple(numbers.setdefault(tuple(path[: end + 1]), len(numbers)) for end in range(len(path))) for path in paths
    ]


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    asked = draw(prompts())
    times = sorted(draw(st.floats(0, 3)) for _ in asked)
    requests = [Request(at, blocks, draw(st.integers(1, 40))) for at, blocks in zip(times, asked, strict=True)]
    return Trace("drawn", requests)


@settings(max_examples=60, deadline=None)
@given(
    traces(),
    st.sampled_from(["prefixaware", "kvaware", "session", "leastload", "roundrobin", PUBLISHED]),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(1, 3)),
    st.booleans(),
    st.sampled_from([0, 4, 20]),
    st.sampled_from([0, 50]),
    st.sampled_from([0.2, 100.0]),
)
def test_nothing_is_lost_or_made_and_time_goes_forward(
    trace: Trace,
    strategy: str,
    replicas: int,
    concurrency: int | None,
    keeps: bool,
    l1_blocks: int,
    l2_blocks: int,
    gb_per_s: float,
) -> None:
    cluster = Cluster(
        with_room(24),
        replicas=replicas,
        strategy=strategy,
        keeps_prefixes=keeps,
        l1=memory(l1_blocks, gb_per_s) if l1_blocks and keeps else None,
        l2=memory(l2_blocks, gb_per_s / 2, policy="arc") if l2_blocks and keeps else None,
        overhead_s=0.01,
    )
    outcome = simulate(cluster, Load(trace, concurrency=concurrency))
    assert len(outcome.served) == len(trace.requests)
    assert sum(job.output_tokens for job, _ in outcome.served) == sum(each.output_tokens for each in trace.requests)
    assert outcome.gaps.total() == sum(job.output_tokens - 1 for job, _ in outcome.served)
    for job, position in outcome.served:
        assert 0 <= position < replicas
        assert sum(cached_tokens(job)) == job.cached_tokens < job.prompt_tokens
        assert job.cached_blocks + sum(job.loaded_blocks) <= len(job.blocks)
        assert job.prefill_left == 0
        assert 0 <= job.at_s <= job.admitted_at_s < job.first_token_at_s <= job.ended_at_s < inf
        assert keeps or not job.cached_tokens
    made = figures(outcome)
    assert made["hit_rate"] == pytest.approx(sum(made[f"hit_rate_{name}"] for name in ("engine", "l1", "l2")))
    assert made["hit_rate"] < 1
    assert all(value >= 0 for value in made.values())


@settings(max_examples=60, deadline=None)
@given(traces(), st.integers(8, 20))
def test_an_engine_works_as_long_as_there_is_work_and_never_computes_faster_than_it_can(
    trace: Trace, room: int
) -> None:
    model = LARGE.engine_model()
    engine = Engine(model, room)
    jobs = [Job(each.at_s, each.blocks, len(each.blocks) * BLOCK_TOKENS, each.output_tokens) for each in trace.requests]
    for job in jobs:
        engine.submit(job)
    now, ended = 0.0, 0
    while engine.next_at_s < inf:
        assert engine.next_at_s >= now
        now = engine.next_at_s
        ended += sum(job.ended_at_s < inf for job in engine.wake())
        if any(job.at_s <= now and job.ended_at_s == inf for job in jobs):
            assert engine.next_at_s < inf
    assert ended == len(jobs)
    started = jobs[0].at_s
    least = sum(model.prefill_s(job.uncached_tokens, job.cached_tokens) for job in jobs)
    gaps = sum(job.at_s - started for job in jobs[:1])
    assert now - started >= least + gaps - 1e-9
    alone = sum(
        -(-job.uncached_tokens // model.step_tokens) * model.step_s
        + model.prefill_s(job.uncached_tokens, job.cached_tokens)
        + job.output_tokens * (model.step_s + model.decode_s(1, job.prompt_tokens + job.output_tokens))
        for job in jobs
    )
    assert now <= jobs[-1].at_s + alone + 1e-9


class _Counting:
    """Counts what a cache says that it holds."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.most = 0

    def stored(self, parent: int | None, blocks: Sequence[int]) -> None:
        assert not self.held.intersection(blocks)
        self.held.update(blocks)

    def removed(self, block: int) -> None:
        self.held.remove(block)


@given(prompts(30), st.integers(6, 12))
def test_a_cache_never_holds_more_than_it_has_room_for(asked: list[tuple[int, ...]], room: int) -> None:
    cache, told = BlockCache(room), _Counting()
    cache.listener = told
    for blocks in asked:
        cache.hold(blocks, 0)
        assert len(told.held) <= room
        assert cache.match(blocks) == len(blocks)
        cache.release(blocks, 0)


@given(prompts(30), st.integers(6, 12))
def test_a_larger_cache_hits_no_less_where_the_least_recently_used_goes(
    asked: list[tuple[int, ...]], room: int
) -> None:
    hits = []
    for blocks_of_room in (room, room + 1, 2 * room):
        engine, tier = BlockCache(blocks_of_room), PolicyCache("lru", blocks_of_room, touch_window_s=0.0)
        found = [0, 0]
        for at, blocks in enumerate(asked):
            found[0] += engine.match(blocks)
            engine.hold(blocks, 0)
            engine.release(blocks, 0)
            found[1] += tier.serve(Request(float(at), blocks))
        hits.append(found)
    for smaller, larger in pairwise(hits):
        assert smaller[0] <= larger[0]
        assert smaller[1] <= larger[1]


def served(
    l1: TierModel | None, l2: TierModel | None = None, replicas: int = 1, strategy: str = "roundrobin"
) -> Outcome:
    """Serve questions whose documents do not fit into an engine's cache together."""
    trace = generate_questions(1, 12, 4, prompt_tokens=8192, output_tokens=4, per_s=0.2)
    return simulate(Cluster(with_room(40), replicas=replicas, strategy=strategy, l1=l1, l2=l2), Load(trace))


def test_what_an_engine_has_evicted_comes_from_the_nodes_memory_and_sooner_than_it_is_computed() -> None:
    without, with_memory = figures(served(None)), figures(served(memory(1000)))
    assert without["hit_rate"] < 0.2
    assert with_memory["hit_rate"] > 0.6
    assert with_memory["hit_rate_l1"] > with_memory["hit_rate_engine"]
    assert with_memory["median_ttft_ms"] < 0.3 * without["median_ttft_ms"]


def test_what_another_node_computed_comes_from_the_pool() -> None:
    alone, shared = (figures(served(memory(1000), l2, replicas=5)) for l2 in (None, memory(4000, 40.0)))
    assert alone["hit_rate"] < 0.3
    assert shared["hit_rate_l2"] > 0.4
    assert shared["hit_rate"] > 0.6


def test_a_tier_that_is_slower_than_computing_is_tried_and_then_left_alone() -> None:
    slow, fast = served(memory(1000, 0.5)), served(memory(1000))
    assert 0 < figures(slow)["hit_rate_l1"] < 0.6 * figures(fast)["hit_rate_l1"]
    assert slow.refused_blocks[0] > 200 > fast.refused_blocks[0]


def test_loads_over_one_link_wait_for_each_other() -> None:
    trace = Trace("same", [Request(0.0, tuple(range(n, n + 16)), 1) for n in (0, 100, 200)])
    again = [Request(100.0, each.blocks, 1) for each in trace.requests]
    cluster = Cluster(with_room(60), strategy="roundrobin", l1=memory(1000, 20.0))
    filled = Trace("filled", [*trace.requests, Request(50.0, tuple(range(900, 959)), 1), *again])
    jobs = [job for job, _ in simulate(cluster, Load(filled)).served[-3:]]
    assert [sum(job.loaded_blocks) for job in jobs] == [16, 16, 16]
    first_s = 16 * block_bytes(LARGE.kv_bytes_per_token) / 20e9
    assert jobs[0].first_token_at_s - jobs[0].at_s > first_s
    assert jobs[2].first_token_at_s - jobs[2].at_s > 2 * first_s


def test_the_same_is_simulated_each_time() -> None:
    def once(seed: int) -> object:
        load = Load(
            generate("chats", seed, 300, questions=1, prompt_tokens=1, output_tokens=1), concurrency=6, think_s=2.0
        )
        return document(simulate(Cluster(LARGE, replicas=3, l1=memory(500), l2=memory(900)), load), "today", "a-name")

    assert once(1) == once(1) != once(2)


def test_a_closed_loop_has_no_more_requests_under_way_than_clients_and_asks_a_session_in_order() -> None:
    trace = generate_questions(3, 20, 3, prompt_tokens=4096, output_tokens=50)
    outcome = simulate(Cluster(LARGE, replicas=2), Load(trace, concurrency=5, think_s=0.5))
    moves = sorted([(job.at_s, 1) for job, _ in outcome.served] + [(job.ended_at_s, -1) for job, _ in outcome.served])
    under_way = 0
    for _, change in moves:
        under_way += change
        assert under_way <= 5
    assert len(outcome.served) == 60
    document_of = {job.blocks[0]: 0.0 for job, _ in outcome.served}
    for job, _ in outcome.served:
        assert job.at_s >= document_of[job.blocks[0]]
        document_of[job.blocks[0]] = job.ended_at_s


def test_requests_come_at_the_rate_that_is_asked_for() -> None:
    trace = generate("documents", 1, 400, questions=1, prompt_tokens=1, output_tokens=1)
    outcome = simulate(Cluster(LARGE, replicas=4), Load(trace, rate=5.0))
    first, last = outcome.served[0].job.at_s, outcome.served[-1].job.at_s
    assert 399 / (last - first) == pytest.approx(5.0)


def test_more_load_is_never_served_sooner() -> None:
    trace = generate("chats", 1, 500, questions=1, prompt_tokens=1, output_tokens=1)
    ttft = [figures(simulate(Cluster(LARGE, replicas=2), Load(trace, rate=rate)))["p90_ttft_ms"] for rate in (1, 8, 64)]
    assert ttft == sorted(ttft)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cluster(LARGE, strategy="best"), "--strategy: got 'best'; allowed: prefixaware, kvaware"),
        (lambda: Cluster(LARGE, keeps_prefixes=False, l1=memory(1)), "--no-prefix-caching: got True; allowed: no --l1"),
        (lambda: Cluster(LARGE, l2_kind="service"), "--l2-kind: got 'service'; allowed: only with --l2-size"),
        (lambda: Cluster(LARGE, l2=memory(0), l2_kind="l1"), "--l2-kind: got 'l1'; allowed: only with --l1-size"),
        (
            lambda: Cluster(LARGE, l1=memory(1), l2=memory(1), l2_kind="l1"),
            "--l2-size: got .*; allowed: nothing with --l2-kind l1",
        ),
        (
            lambda: simulate(Cluster(with_room(2)), Load(Trace("long", [Request(0.0, (1, 2, 3))]))),
            "kv_tokens: 1024'; allowed: 2048 or more: so long is a request",
        ),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_words(make: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message.replace("[", "\\[")):
        make()  # type: ignore[operator]
