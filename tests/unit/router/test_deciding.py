"""A decision, which weighs all endpoints at once, is the one that its rules make of each endpoint by itself.

The rules are written down here once more, plainly and one endpoint at a time.
"""

from collections.abc import Sequence
from math import ceil, inf, log2
from typing import NamedTuple

import msgspec
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tierline.router.endpoints import Endpoint
from tierline.router.events.keys import PromptTokens
from tierline.router.events.source import EventSource, SourceState
from tierline.router.prompt import read_fields
from tierline.router.strategies.base import (
    DECODING_ALLOWANCE,
    LOAD_ALLOWANCE,
    LOAD_BOUND,
    WORK_ALLOWANCE_S,
    Decision,
    RoutingRequest,
    Weighed,
    share,
)
from tierline.router.strategies.kvaware import KvAware
from tierline.router.strategies.leastload import LeastLoad
from tierline.router.strategies.prefixaware import RECOMPUTING, SAME_SPEED, PrefixAware
from tierline.router.strategies.session import SessionAffinity

NOW = 100.0
SIZE = 16
PROMPT_TOKENS = 1_000


class State(NamedTuple):
    """An endpoint, and what goes on there."""

    weight: float
    age_s: float
    rate: float | None
    prompts: list[tuple[int, float]]
    """Of those that wait: tokens to compute, and how long ago it was sent."""
    decoding: int
    elsewhere: tuple[int, int]
    held: int
    """Tokens of the prompt."""
    source: SourceState


any_state = st.builds(
    State,
    weight=st.sampled_from([1.0, 1.0, 0.7, 2.5]),
    age_s=st.sampled_from([inf, inf, 90.0, 60.0, 30.0, 0.0]),
    rate=st.none() | st.sampled_from([8_000.0, 9_000.0, 20_000.0, 123.4]),
    prompts=st.lists(st.tuples(st.integers(1, 30_000), st.floats(0, 9)), max_size=3),
    decoding=st.sampled_from([0, 0, 1, 2, 60, 200]),
    elsewhere=st.sampled_from([(0, 0), (0, 0), (3, 5_000), (90, 0)]),
    held=st.sampled_from([0, 0, 64, 500, PROMPT_TOKENS]),
    source=st.sampled_from([SourceState.EXACT, SourceState.DEGRADED, SourceState.LOST]),
)
calm_state = st.builds(  # so that several are equally good
    lambda decoding: State(1.0, inf, None, [], decoding, (0, 0), 0, SourceState.EXACT), st.integers(0, 1)
)
states = st.lists(any_state, min_size=1, max_size=9) | st.lists(calm_state | any_state, min_size=1, max_size=9)


def prompt(tokens: int = PROMPT_TOKENS, *, session: bytes = b"") -> RoutingRequest:
    ids = list(range(1000, 1000 + tokens))
    request = RoutingRequest(read_fields(msgspec.json.encode({"model": "m", "prompt": ids})), session, now=NOW)
    request.tokens = PromptTokens(ids)
    return request


def endpoints_in(wanted: Sequence[State]) -> list[Endpoint]:
    endpoints = []
    for position, state in enumerate(wanted):
        endpoint = Endpoint(
            f"http://engine-{position}:8000", position, weight=state.weight, joined_at=NOW - state.age_s
        )
        endpoint.prefill_rate = state.rate
        for tokens, ago_s in state.prompts:
            endpoint.begin(tokens, NOW - ago_s)
        for _ in range(state.decoding):
            endpoint.begin(0, NOW)
        endpoint.elsewhere_inflight, endpoint.elsewhere_tokens = state.elsewhere
        endpoint.inflight += endpoint.elsewhere_inflight
        endpoint.queued_tokens += endpoint.elsewhere_tokens
        endpoints.append(endpoint)
    return endpoints


def score(key: int, endpoint: Endpoint) -> float:
    return share(endpoint, NOW) / (64.0 - log2(xxhash.xxh3_64_intdigest(endpoint.name, key) + 0.5))


def speed_of(endpoint: Endpoint, endpoints: Sequence[Endpoint]) -> float:
    fastest = max(each.prefill_rate or 0.0 for each in endpoints)
    if endpoint.prefill_rate is None:
        return fastest * endpoint.weight
    return fastest if endpoint.prefill_rate >= SAME_SPEED * fastest else endpoint.prefill_rate


def not_too_busy(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    def waits_s(endpoint: Endpoint) -> float:
        speed = speed_of(endpoint, endpoints)
        return endpoint.waiting_tokens(NOW) / speed if speed else 0.0

    work_bound = LOAD_BOUND * sum(map(waits_s, endpoints)) / len(endpoints) + WORK_ALLOWANCE_S
    decoding = sum(endpoint.decoding for endpoint in endpoints)
    shares = sum(share(endpoint, NOW) for endpoint in endpoints)
    decoding_bound = (LOAD_BOUND * decoding + DECODING_ALLOWANCE * len(endpoints)) / shares
    have_time = [endpoint for endpoint in endpoints if waits_s(endpoint) <= work_bound]
    return [each for each in have_time if each.decoding <= decoding_bound * share(each, NOW)] or have_time


def plainly(
    strategy: PrefixAware, request: RoutingRequest, endpoints: Sequence[Endpoint]
) -> tuple[Endpoint, list[Weighed]]:
    """Return the choice where there is no template, and what was weighed."""
    candidates = not_too_busy(endpoints)
    weighed, ranks = [], []
    for endpoint in endpoints:
        held = strategy.held_by(request, endpoint, endpoints)
        waiting, speed = endpoint.waiting_tokens(NOW), speed_of(endpoint, endpoints)
        uncached = request.prompt_tokens - held.saved
        is_candidate = endpoint in candidates
        weighed.append(Weighed(endpoint, waiting if is_candidate else None, uncached, speed, held.depth))
        if is_candidate:
            queued = waiting * endpoint.weight / share(endpoint, NOW)
            cost = (queued + RECOMPUTING * uncached) / (speed or endpoint.weight)
            ranks.append((cost, endpoint.inflight, -score(request.blocks[0], endpoint), endpoint.position))
    return endpoints[min(ranks)[-1]], weighed


def same(decision: Decision, expected: tuple[Endpoint, list[Weighed]]) -> None:
    endpoint, weighed = expected
    assert decision.endpoint is endpoint
    assert list(decision.weighed.rows()) == weighed
    assert decision.best_blocks == max(row.matched_blocks for row in weighed)


@given(states)
def test_prefixaware_decides_as_if_it_weighed_one_endpoint_after_the_other(wanted: list[State]) -> None:
    endpoints, strategy = endpoints_in(wanted), PrefixAware(len(wanted), 2**24)
    for endpoint, state in zip(endpoints, wanted, strict=True):
        strategy.learn_placed(endpoint, prompt(state.held).blocks)
    request = prompt()
    same(strategy.choose(request, endpoints), plainly(strategy, request, endpoints))


@given(states)
def test_kvaware_decides_as_if_it_weighed_one_endpoint_after_the_other(wanted: list[State]) -> None:
    endpoints, strategy = endpoints_in(wanted), KvAware(len(wanted), 2**24, 2**24)
    for endpoint, state in zip(endpoints, wanted, strict=True):
        source = EventSource(strategy.blocks.open(), has_replay=False, clock=lambda: NOW)
        strategy.sources[endpoint.url] = [source]
        ids = list(range(1000, 1000 + state.held // SIZE * SIZE))
        names = list(range(1, len(ids) // SIZE + 1))
        event = {"type": "BlockStored", "block_hashes": names, "token_ids": ids, "block_size": SIZE, "medium": "GPU"}
        source.received(0, msgspec.msgpack.encode([0.0, [event]]))
        source.state = state.source
        strategy.learn_placed(endpoint, prompt(state.prompts[0][0] % PROMPT_TOKENS if state.prompts else 0).blocks)
    request = prompt()
    same(strategy.choose(request, endpoints), plainly(strategy, request, endpoints))


@given(states)
def test_session_takes_the_home_or_else_the_best_of_those_within_the_bound(wanted: list[State]) -> None:
    endpoints, request = endpoints_in(wanted), prompt(session=b"anna")
    key = xxhash.xxh3_64_intdigest(b"anna", xxhash.xxh3_64_intdigest(b"m"))
    inflight, shares = sum(each.inflight for each in endpoints), sum(share(each, NOW) for each in endpoints)
    bound = (LOAD_BOUND * (inflight + 1) + LOAD_ALLOWANCE * len(endpoints)) / shares
    within = [each for each in endpoints if each.inflight <= ceil(bound * share(each, NOW))]
    home = max(endpoints, key=lambda each: score(key, each))
    expected = home if home in within else max(within, key=lambda each: score(key, each))
    assert SessionAffinity().choose(request, endpoints).endpoint is expected


@given(states)
def test_leastload_takes_one_of_the_least_loaded(wanted: list[State]) -> None:
    endpoints = endpoints_in(wanted)
    loads = [(each.inflight / share(each, NOW), each.queued_tokens / share(each, NOW)) for each in endpoints]
    chosen = LeastLoad().choose(prompt(), endpoints).endpoint
    assert loads[chosen.position] == min(loads)
