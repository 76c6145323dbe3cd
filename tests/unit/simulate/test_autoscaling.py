"""Replicas that come and go: the rule, and clusters under it."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierline.bench.traces import Request, Trace
from tierline.errors import ConfigurationError
from tierline.simulate.autoscaling import Autoscaler, Autoscaling
from tierline.simulate.coefficients import read
from tierline.simulate.loads import generate, generate_questions
from tierline.simulate.results import document, figures
from tierline.simulate.running import Cluster, Load, Outcome, simulate
from tierline.simulate.tiers import TierModel

LARGE = read("llama-3.1-70b-tp8-h100")
TERABYTE = 10**12
L2 = TierModel(TERABYTE, 50e9, 0.001)


def rule(cool_down_s: float = 300.0) -> Autoscaler:
    return Autoscaler(Autoscaling(1, 20, target_requests=10.0, cool_down_s=cool_down_s))


def test_as_many_are_wanted_as_requests_under_way_take_at_the_target() -> None:
    assert rule().wanted(0.0, under_way=35, replicas=3) == 4
    assert rule(cool_down_s=0.0).wanted(0.0, under_way=5, replicas=3) == 1


@pytest.mark.parametrize("under_way", [28, 30, 33])
def test_within_a_tenth_of_the_target_nothing_changes(under_way: int) -> None:
    assert rule(cool_down_s=0.0).wanted(0.0, under_way, replicas=3) == 3


def test_no_more_come_at_once_than_there_are_or_four() -> None:
    assert rule().wanted(0.0, under_way=1000, replicas=1) == 5
    assert rule().wanted(0.0, under_way=1000, replicas=8) == 16
    assert rule().wanted(0.0, under_way=1000, replicas=16) == 20


def test_none_goes_before_fewer_have_done_for_the_whole_cool_down() -> None:
    scaler = rule()
    assert scaler.wanted(0.0, under_way=80, replicas=8) == 8
    assert scaler.wanted(30.0, under_way=0, replicas=8) == 8
    assert scaler.wanted(290.0, under_way=40, replicas=8) == 8
    assert scaler.wanted(330.0, under_way=0, replicas=8) == 4
    assert scaler.wanted(600.0, under_way=0, replicas=4) == 1


def burst(strategy: str = "prefixaware", l2: TierModel | None = None, replicas: int = 1, most: int = 6) -> Outcome:
    """Serve readers who come faster than one replica can answer, and then hardly any."""
    busy = generate_questions(1, 60, 3, prompt_tokens=16384, output_tokens=200, per_s=1.0).requests
    quiet = [Request(1500.0 + 60 * n, busy[0].blocks, 20) for n in range(20)]
    autoscaling = Autoscaling(replicas, most, target_requests=4.0, every_s=15.0, start_s=30.0, cool_down_s=120.0)
    cluster = Cluster(LARGE, replicas, strategy, l2=l2, autoscaling=autoscaling)
    return simulate(cluster, Load(Trace("burst", [*busy, *quiet])))


@pytest.mark.parametrize("strategy", ["prefixaware", "kvaware", "session", "leastload", "roundrobin"])
def test_replicas_come_with_load_and_go_without_it_and_no_request_is_lost(strategy: str) -> None:
    outcome = burst(strategy, L2)
    counts = [count for _, count in outcome.replica_counts]
    assert (counts[0], counts[-1]) == (1, 1)
    assert 1 < max(counts) <= 6
    assert len(outcome.served) == 200
    assert all(job.ended_at_s < float("inf") for job, _ in outcome.served)
    made = figures(outcome)
    assert 1 < made["mean_replicas"] < made["most_replicas"] == max(counts)


def test_a_replica_serves_no_sooner_than_it_has_started() -> None:
    outcome = burst()
    second = next(at_s for at_s, count in outcome.replica_counts if count > 1)
    assert second >= 15.0 + 30.0
    assert all(job.at_s >= second for job, position in outcome.served if position > 0)


def test_a_new_replica_has_nothing_of_its_own_and_reads_what_others_computed_from_the_pool() -> None:
    document_blocks = tuple(range(16))
    load = [Request(0.1 * n, (*document_blocks, 100 + n), 400) for n in range(60)]
    later = [Request(60.0 + 0.1 * n, (*document_blocks, 200 + n), 50) for n in range(20)]
    scaling = Autoscaling(1, 2, target_requests=4.0, every_s=5.0, start_s=20.0)
    for l2, read_from_it in ((None, 0), (L2, 16)):
        cluster = Cluster(LARGE, 1, "roundrobin", l2=l2, autoscaling=scaling)
        outcome = simulate(cluster, Load(Trace("document", [*load, *later])))
        first = next(job for job, position in outcome.served if position == 1)
        assert first.cached_blocks == 0
        assert sum(first.loaded_blocks) == read_from_it


def test_more_load_than_the_most_replicas_can_serve_waits_as_it_would_without_an_autoscaler() -> None:
    trace = generate("documents", 1, 300, questions=1, prompt_tokens=1, output_tokens=1)
    alone = simulate(Cluster(LARGE, 2, "roundrobin"), Load(trace))
    scaled = simulate(Cluster(LARGE, 2, "roundrobin", autoscaling=Autoscaling(2, 2, 1.0)), Load(trace))
    assert figures(alone) == figures(scaled)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 300), st.integers(0, 3), st.integers(1, 400)), min_size=1, max_size=40),
    st.sampled_from(["prefixaware", "kvaware", "session"]),
    st.integers(1, 3),
    st.floats(0, 60),
    st.floats(0, 60),
)
def test_whatever_comes_and_goes_every_request_ends_and_counts_stay_within_their_bounds(
    asked: list[tuple[float, int, int]], strategy: str, per_node: int, start_s: float, cool_down_s: float
) -> None:
    trace = Trace("drawn", [Request(at, (kind, 10 + kind), tokens) for at, kind, tokens in sorted(asked)])
    scaling = Autoscaling(1, 4, target_requests=1.0, every_s=2.0, start_s=start_s, cool_down_s=cool_down_s)
    cluster = Cluster(
        LARGE, 1, strategy, l1=TierModel(10**11, 50e9, 0.001), l2=L2, replicas_per_node=per_node, autoscaling=scaling
    )
    outcome = simulate(cluster, Load(trace))
    assert len(outcome.served) == len(asked)
    assert all(job.at_s < job.first_token_at_s <= job.ended_at_s < float("inf") for job, _ in outcome.served)
    assert all(1 <= count <= 4 for _, count in outcome.replica_counts)
    assert all(before < after for (before, _), (after, _) in pairwise(outcome.replica_counts))


def test_the_rule_is_in_the_document_and_fewer_than_at_the_beginning_are_refused() -> None:
    told = document(burst(), "today", "a-name")["cluster"]
    assert isinstance(told, dict)
    assert told["autoscaling"]["target_requests"] == 4.0
    with pytest.raises(ConfigurationError, match="--max-replicas: got 2; allowed: at least --replicas, 3"):
        Cluster(LARGE, 3, autoscaling=Autoscaling(3, 2, 1.0))
