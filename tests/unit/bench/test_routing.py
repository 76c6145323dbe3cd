"""The replay of traces through strategies: its loads, its bounds, and what it must show of each strategy."""

from collections.abc import Callable

import pytest

from tierline.bench.engine_model import EngineModel
from tierline.bench.fleet import Fleet, Served, one_cache_hits, one_cache_hits_beside
from tierline.bench.routing_loads import (
    ROUTER_BLOCKS,
    arrivals,
    generate_chats,
    generate_documents,
    generate_templates,
    infer_sessions,
)
from tierline.bench.traces import Request, Trace
from tierline.router.strategies import build_strategy

MODEL = EngineModel()
GENERATED = [generate_chats, generate_documents, generate_templates]


def serve(name: str, trace: Trace, endpoints: int, blocks: int, time_scale: float = 1.0) -> list[Served]:
    strategy = build_strategy(name, endpoints, 2**26)
    return Fleet(strategy, endpoints, blocks, MODEL).serve(arrivals(trace), time_scale)


def hits(served: list[Served]) -> int:
    return sum(job.cached_blocks for job, _ in served)


@pytest.mark.parametrize("generate", GENERATED)
def test_generated_traffic_is_its_seed_s_and_a_block_has_one_place(generate: Callable[[int, int], Trace]) -> None:
    trace = generate(3, 400)
    assert trace == generate(3, 400) != generate(4, 400)
    assert len(trace.requests) == 400
    assert [request.at_s for request in trace.requests] == sorted(request.at_s for request in trace.requests)
    before = {block: request.blocks[:index] for request in trace.requests for index, block in enumerate(request.blocks)}
    assert all(
        before[block] == request.blocks[:index]
        for request in trace.requests
        for index, block in enumerate(request.blocks)
    )


def test_a_conversation_is_told_from_a_system_prompt() -> None:
    prompts = [(0, 10, 11), (0, 1), (0, 2), (0, 1, 3, 4), (0, 2, 5), (0, 6), (0, 1, 3, 7, 8)]
    assert infer_sessions([Request(0.0, blocks) for blocks in prompts]) == [0, 1, 2, 1, 2, 5, 1]


def test_the_router_sees_as_many_blocks_shared_as_the_engines_do() -> None:
    first, second = arrivals(Trace("toy", [Request(0.0, (1, 2, 3)), Request(1.0, (1, 2, 4, 5))]))
    shared = sum(one == other for one, other in zip(first.hashes, second.hashes, strict=False))
    assert (len(second.hashes), shared) == (4 * ROUTER_BLOCKS, 2 * ROUTER_BLOCKS)


@pytest.mark.parametrize("name", ["roundrobin", "leastload", "session", "prefixaware", "kvaware"])
def test_everything_is_served_and_one_engine_is_one_cache(name: str) -> None:
    trace = generate_chats(1, 300)
    served = serve(name, trace, 1, trace.footprint * 2, time_scale=10)
    assert [job.blocks for job, _ in served] == [request.blocks for request in trace.requests]
    assert hits(served) == one_cache_hits(trace.requests, trace.footprint) == trace.blocks - trace.footprint


def test_affinity_hits_more_and_prefixes_more_than_sessions() -> None:
    trace = generate_documents(2, 1200)
    by = {name: hits(serve(name, trace, 4, trace.footprint // 8)) for name in ("roundrobin", "session", "prefixaware")}
    assert by["prefixaware"] > 1.2 * by["roundrobin"]
    assert by["prefixaware"] > by["session"]


def test_prefixes_stay_near_one_cache_while_the_endpoints_share_the_work() -> None:
    trace = generate_chats(2, 1500)
    served = serve("prefixaware", trace, 4, trace.footprint // 4)
    assert hits(served) > 0.9 * one_cache_hits(trace.requests, trace.footprint)
    computed = [sum(job.uncached_tokens for job, at in served if at == position) for position in range(4)]
    assert max(computed) < 1.25 * sum(computed) / 4


def test_events_tell_more_than_guesses_where_running_requests_fill_the_caches() -> None:
    trace = generate_chats(4, 1200)
    room = trace.footprint // 20
    guessed, told = (serve(name, trace, 4, room, time_scale=1.5) for name in ("prefixaware", "kvaware"))
    assert hits(told) > hits(guessed)
    assert hits(told) < one_cache_hits(trace.requests, 4 * room)


def test_one_cache_that_holds_what_runs_hits_no_more_than_one_that_does_not() -> None:
    trace = generate_chats(2, 400)
    room = trace.footprint // 10
    served = serve("prefixaware", trace, 4, room)
    assert one_cache_hits_beside(served, 4 * trace.footprint) == trace.blocks - trace.footprint
    assert one_cache_hits_beside(served, 4 * room) < one_cache_hits(trace.requests, 4 * room)
