import itertools
from collections import OrderedDict

import pytest

from tierline.bench.replay import PolicyCache, clairvoyant_hits, replay, store_cache
from tierline.bench.traces import Request, Trace, generate_trace
from tierline.store import PolicyName, StoreLimits
from tierline.store.eviction import POLICIES

TRACE = generate_trace(5, requests=300)
SIZES = [20, 150]


def trace_of(*prompts: list[int]) -> Trace:
    return Trace("toy", [Request(float(10 * index), blocks) for index, blocks in enumerate(prompts)])


def in_whole_ticks(trace: Trace) -> Trace:
    """The same requests at times that the store's clock can tell apart."""
    return Trace(trace.name, [Request(round(4 * at_s) / 4, blocks) for at_s, blocks, _ in trace.requests])


@pytest.mark.parametrize("name", sorted(POLICIES))
@pytest.mark.parametrize("blocks", SIZES)
def test_the_store_hits_as_often_as_its_policy_alone(name: PolicyName, blocks: int) -> None:
    trace = in_whole_ticks(TRACE)
    limits = StoreLimits(grace_s=0, quarantine_s=0, high_watermark=1, low_watermark=1)
    with store_cache(name, blocks, limits) as cache:
        through_the_store = replay(trace, cache)

    assert through_the_store == replay(trace, PolicyCache(name, blocks))


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_no_policy_hits_more_often_than_a_clairvoyant_or_than_a_cache_that_forgets_nothing(name: PolicyName) -> None:
    for blocks in SIZES:
        assert replay(TRACE, PolicyCache(name, blocks)) <= clairvoyant_hits(TRACE, blocks)
    assert replay(TRACE, PolicyCache(name, TRACE.footprint)) == TRACE.blocks - TRACE.footprint
    assert clairvoyant_hits(TRACE, TRACE.footprint) == TRACE.blocks - TRACE.footprint


def test_a_replay_of_lru_hits_what_a_plain_lru_of_prefixes_does() -> None:
    stored: OrderedDict[int, None] = OrderedDict()
    expected = 0
    for request in TRACE.requests:
        run = list(itertools.takewhile(stored.__contains__, request.blocks))
        expected += len(run)
        for block in run:
            del stored[block]  # nobody evicts what is leased
        new: list[int] = []
        for block in request.blocks[len(run) :]:
            if block not in stored:
                if len(stored) + len(run) + len(new) == 150:
                    stored.popitem(last=False)
                new.append(block)
        stored.update(dict.fromkeys(reversed(new)))
        stored.update(dict.fromkeys(reversed(run)))

    assert replay(TRACE, PolicyCache("lru", 150)) == expected


def test_blocks_behind_the_first_that_is_missing_are_no_hits() -> None:
    cache = PolicyCache("fifo", 3, commits_head_first=True)
    requests = trace_of([1, 2, 3], [4], [1, 2, 3]).requests

    assert [cache.serve(request) for request in requests] == [0, 0, 0]


def test_the_last_block_of_a_prompt_goes_before_the_first() -> None:
    cache = PolicyCache("fifo", 3)
    requests = trace_of([1, 2, 3], [4], [1, 2, 3]).requests

    assert [cache.serve(request) for request in requests] == [0, 0, 2]


def test_a_clairvoyant_keeps_nothing_that_is_not_needed_again() -> None:
    assert clairvoyant_hits(trace_of([1, 2], [3], [4], [5], [1, 2]), 2) == 2
