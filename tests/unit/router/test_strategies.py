"""Strategies by what they promise, over any loads and any prompts."""

import random
from collections import Counter
from collections.abc import Sequence
from math import ceil

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.router.endpoints import Endpoint, Endpoints
from tierline.router.prompt import BLOCK_BYTES, RequestFields, read_fields
from tierline.router.strategies import STRATEGIES, Decision, RoutingRequest, Strategy, build_strategy
from tierline.router.strategies.base import DECODING_ALLOWANCE, LOAD_ALLOWANCE, WORK_ALLOWANCE_S
from tierline.router.strategies.names import canonical_name
from tierline.router.strategies.prefixaware import RECOMPUTING, PrefixAware
from tierline.router.strategies.session import SessionAffinity

INDEX_BYTES = 2**20


def endpoints_of(count: int) -> tuple[Endpoint, ...]:
    return Endpoints([f"http://host-{number}:8000" for number in range(count)]).all


def ask(prompt: str = "", *, session: bytes = b"", model: str = "m", now: float = 0.0) -> RoutingRequest:
    body = msgspec.json.encode({"model": model, "prompt": prompt})
    return RoutingRequest(read_fields(body) if prompt else RequestFields(model=model), session, now=now)


def blocks(text: str, count: int) -> str:
    return (text * BLOCK_BYTES * count)[: BLOCK_BYTES * count]


def route(strategy: Strategy, endpoints: tuple[Endpoint, ...], request: RoutingRequest) -> Decision:
    decision = strategy.choose(request, endpoints)
    strategy.placed(request, decision)
    return decision


def prefix_aware(count: int) -> tuple[PrefixAware, tuple[Endpoint, ...]]:
    return PrefixAware(count, INDEX_BYTES), endpoints_of(count)


# All ------------------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(sorted(STRATEGIES)),
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 10**6), st.none() | st.floats(1, 1e5)), min_size=1, max_size=9
    ),
    st.lists(st.tuples(st.text("ab", max_size=3), st.binary(max_size=2)), max_size=12),
)
def test_any_strategy_chooses_one_of_those_offered_and_choosing_changes_nothing(
    name: str, loads: list[tuple[int, int, float | None]], asked: list[tuple[str, bytes]]
) -> None:
    endpoints = endpoints_of(len(loads))
    for endpoint, (inflight, queued_tokens, prefill_rate) in zip(endpoints, loads, strict=True):
        endpoint.inflight, endpoint.queued_tokens, endpoint.prefill_rate = inflight, queued_tokens, prefill_rate
    strategy = build_strategy(name, len(endpoints), INDEX_BYTES)
    for text, session in asked:
        request = ask(blocks(text, 4), session=session)
        decision = strategy.choose(request, endpoints)
        assert decision.endpoint in endpoints
        assert decision == strategy.choose(request, endpoints)
        assert 0 <= decision.matched_blocks <= decision.best_blocks <= decision.total_blocks
        strategy.placed(request, decision)


@pytest.mark.parametrize(
    ("spelled", "canonical"),
    [("prefix-aware", "prefixaware"), ("PrefixAware", "prefixaware"), ("round-robin", "roundrobin"), ("session",) * 2],
)
def test_names_may_be_spelled_with_hyphens(spelled: str, canonical: str) -> None:
    assert canonical_name(spelled) == canonical


# prefixaware ----------------------------------------------------------------------------------------------------------


def test_a_prefix_goes_where_it_is_held() -> None:
    strategy, endpoints = prefix_aware(4)
    first = route(strategy, endpoints, ask(blocks("document ", 8)))
    again = route(strategy, endpoints, ask(blocks("document ", 8) + "a question"))
    assert (first.reason, again.reason) == ("cold", "prefix")
    assert again.endpoint is first.endpoint
    assert (again.matched_blocks, again.total_blocks) == (8, 8)


def test_routers_that_share_nothing_agree_on_where_a_new_prefix_goes() -> None:
    for number in range(20):
        prompt = blocks(f"prompt {number} ", 3)
        (one, ours), (other, theirs) = prefix_aware(5), prefix_aware(5)
        assert route(one, ours, ask(prompt)).endpoint.url == route(other, theirs, ask(prompt)).endpoint.url


def test_new_prefixes_spread() -> None:
    strategy, endpoints = prefix_aware(4)
    counts = Counter(route(strategy, endpoints, ask(blocks(f"{number} ", 3))).endpoint.url for number in range(400))
    assert min(counts.values()) > 60


def test_affinity_lasts_until_the_queue_costs_more_than_recomputing() -> None:
    strategy, endpoints = prefix_aware(2)
    prompt = blocks("document ", 16)  # 1,024 tokens
    holder = route(strategy, endpoints, ask(prompt)).endpoint
    other = next(endpoint for endpoint in endpoints if endpoint is not holder)
    holder.queued_tokens = int(RECOMPUTING * 1024) - 1
    assert strategy.choose(ask(prompt), endpoints).endpoint is holder
    holder.queued_tokens += 2
    decision = strategy.choose(ask(prompt), endpoints)
    assert (decision.endpoint, decision.reason) == (other, "spill")
    assert (decision.matched_blocks, decision.best_blocks) == (0, 16)


@given(st.lists(st.integers(0, 300), min_size=2, max_size=8))
def test_affinity_lets_no_endpoint_decode_above_the_bound(decoding: list[int]) -> None:
    strategy, endpoints = prefix_aware(len(decoding))
    prompt = blocks("document ", 16)
    route(strategy, endpoints, ask(prompt))
    for endpoint, load in zip(endpoints, decoding, strict=True):
        endpoint.inflight = load
    chosen = strategy.choose(ask(prompt), endpoints).endpoint
    assert chosen.inflight <= 1.25 * sum(decoding) / len(decoding) + DECODING_ALLOWANCE


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 300), st.floats(1e3, 1e5)), min_size=2, max_size=8))
def test_affinity_lets_nobody_wait_behind_more_work_than_the_bound(loads: list[tuple[float, int, float]]) -> None:
    strategy, endpoints = prefix_aware(len(loads))
    prompt = blocks("document ", 16)
    route(strategy, endpoints, ask(prompt))
    for endpoint, (seconds, decoding, speed) in zip(endpoints, loads, strict=True):
        endpoint.inflight, endpoint.prefill_rate, endpoint.queued_tokens = decoding, speed, int(seconds * speed)
    chosen = strategy.choose(ask(prompt), endpoints).endpoint
    assert chosen.prefill_rate is not None
    seconds = chosen.queued_tokens / max(speed for _, _, speed in loads)  # at least
    assert seconds <= 1.25 * sum(seconds for seconds, _, _ in loads) / len(loads) + WORK_ALLOWANCE_S


def test_what_waits_at_an_endpoint_that_has_just_joined_weighs_more() -> None:
    strategy, endpoints = prefix_aware(4)
    prompt = blocks("document ", 64)
    holder = route(strategy, endpoints, ask(prompt)).endpoint
    holder.cold_since = 0.0
    holder.queued_tokens = 4_000
    assert strategy.choose(ask(prompt, now=1.0), endpoints).reason == "spill"
    assert strategy.choose(ask(prompt, now=60.0), endpoints).endpoint is holder


def test_a_system_prompt_that_everybody_has_creates_no_affinity() -> None:
    strategy, endpoints = prefix_aware(4)
    system = blocks("You are helpful. ", 8)
    decisions = [route(strategy, endpoints, ask(system + blocks(f"user {number} ", 2))) for number in range(400)]
    settled = decisions[100:]
    counts = Counter(decision.endpoint.url for decision in settled)
    assert {decision.reason for decision in settled} == {"template"}
    assert min(counts.values()) > 40


def test_short_questions_behind_a_system_prompt_spread_too() -> None:
    strategy, endpoints = prefix_aware(4)
    system = blocks("You are helpful. ", 8)
    decisions = [route(strategy, endpoints, ask(f"{system} question {number}")) for number in range(400)]
    assert min(Counter(decision.endpoint.url for decision in decisions[100:]).values()) > 40


def test_conversations_behind_a_system_prompt_keep_their_affinity() -> None:
    strategy, endpoints = prefix_aware(4)
    system = blocks("You are helpful. ", 8)
    for number in range(100):
        route(strategy, endpoints, ask(system + blocks(f"user {number} ", 2)))
    for number in range(50):
        conversation = system + blocks(f"later user {number} ", 4)
        place = route(strategy, endpoints, ask(conversation)).endpoint
        for turn in range(4):
            conversation += blocks(f"turn {turn} of {number} ", 3)
            decision = route(strategy, endpoints, ask(conversation))
            assert (decision.endpoint, decision.reason) == (place, "prefix")


def test_one_conversation_alone_is_no_template() -> None:
    strategy, endpoints = prefix_aware(2)
    conversation = blocks("start ", 4)
    place = route(strategy, endpoints, ask(conversation)).endpoint
    for turn in range(100):
        conversation += blocks(f"turn {turn} ", 2)
        assert route(strategy, endpoints, ask(conversation)).endpoint is place


def test_a_prompt_repeated_without_end_stays_where_it_is() -> None:
    strategy, endpoints = prefix_aware(4)
    assert len({route(strategy, endpoints, ask(blocks("same ", 8))).endpoint.url for _ in range(200)}) == 1


def test_a_document_that_many_ask_about_is_no_template_and_has_its_place() -> None:
    strategy, endpoints = prefix_aware(4)
    popular = blocks("everybody reads this ", 16)
    places = set()
    for number in range(400):
        decision = route(strategy, endpoints, ask(popular + f" question {number}"))
        places.add(decision.endpoint.url)
        for other in range(2):
            route(strategy, endpoints, ask(blocks(f"something else {number} {other} ", 4)))
    assert len(places) == 1


def test_no_more_is_believed_of_an_endpoint_than_its_engine_holds() -> None:
    strategy, endpoints = prefix_aware(1)
    endpoints[0].capacity_blocks, endpoints[0].block_tokens = 40, 16  # 640 tokens, 10 blocks of ours
    for number in range(5):
        route(strategy, endpoints, ask(blocks(f"prompt {number} ", 4)))
    held = [strategy.choose(ask(blocks(f"prompt {number} ", 4)), endpoints).matched_blocks for number in range(5)]
    assert held == [0, 0, 2, 4, 4]


def test_what_waits_at_an_endpoint_is_remembered_beside_what_its_engine_holds() -> None:
    strategy, endpoints = prefix_aware(1)
    endpoints[0].capacity_blocks, endpoints[0].block_tokens = 40, 16
    for number in range(5):
        decision = route(strategy, endpoints, ask(blocks(f"prompt {number} ", 4)))
        endpoints[0].begin(decision.uncached_tokens, 0.0)
    held = [strategy.choose(ask(blocks(f"prompt {number} ", 4)), endpoints).matched_blocks for number in range(5)]
    assert held == [4] * 5


def test_a_template_is_forgotten_when_nobody_uses_it() -> None:
    strategy, endpoints = prefix_aware(2)
    system = blocks("You are helpful. ", 8)
    for number in range(40):
        route(strategy, endpoints, ask(system + blocks(f"user {number} ", 2)))
    for number in range(80):
        route(strategy, endpoints, ask(blocks(f"unrelated {number} ", 2)))
    assert route(strategy, endpoints, ask(system + blocks("late user ", 2))).reason == "prefix"


def test_a_slower_endpoint_gets_less_and_a_slightly_slower_one_as_much() -> None:
    strategy, endpoints = prefix_aware(2)
    endpoints[0].prefill_rate, endpoints[1].prefill_rate = 1000.0, 100.0
    assert {strategy.choose(ask(blocks(str(n), 4)), endpoints).endpoint for n in range(50)} == {endpoints[0]}
    endpoints[1].prefill_rate = 900.0
    assert {strategy.choose(ask(blocks(str(n), 4)), endpoints).endpoint for n in range(50)} == set(endpoints)


def test_an_endpoint_that_lost_its_cache_has_no_affinity() -> None:
    strategy, endpoints = prefix_aware(3)
    prompt = blocks("document ", 8)
    holder = route(strategy, endpoints, ask(prompt)).endpoint
    strategy.forget(holder)
    assert strategy.choose(ask(prompt), endpoints).reason == "cold"


def test_a_prompt_that_was_not_served_leaves_what_was_held_before() -> None:
    strategy, endpoints = prefix_aware(1)
    route(strategy, endpoints, ask(blocks("known", 4)))
    longer = ask(blocks("known", 4) + blocks("more", 4))
    decision = strategy.choose(longer, endpoints)
    strategy.placed(longer, decision)
    strategy.withdrawn(longer, decision)
    assert strategy.choose(longer, endpoints).matched_blocks == decision.matched_blocks > 0
    assert len(strategy.index) == decision.matched_blocks


def test_skewed_conversations_hit_almost_as_often_as_one_perfect_cache_would() -> None:
    """Zipf-distributed documents on eight endpoints, each with a few requests in flight."""
    dice = random.Random(3)
    strategy, endpoints = prefix_aware(8)
    matched = total = 0
    inflight: list[Endpoint] = []
    for number in range(3000):
        document = blocks(f"document {int(dice.paretovariate(0.8))} ", 12)
        decision = route(strategy, endpoints, ask(document + f"question {number}"))
        if number > 1000:
            matched += decision.matched_blocks
            total += decision.total_blocks
        decision.endpoint.inflight += 1
        inflight.append(decision.endpoint)
        if len(inflight) > 24:
            inflight.pop(dice.randrange(len(inflight))).inflight -= 1
    assert matched / total > 0.75


# session --------------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=8), st.integers(2, 8))
def test_a_session_moves_only_when_its_own_endpoint_goes(session: bytes, count: int) -> None:
    strategy, endpoints = build_strategy("session", count, INDEX_BYTES), endpoints_of(count)
    home = strategy.choose(ask(session=session), endpoints).endpoint
    for gone in endpoints:
        left = [endpoint for endpoint in endpoints if endpoint is not gone]
        moved = strategy.choose(ask(session=session), left).endpoint
        assert (moved is home) == (gone is not home)


@given(st.binary(min_size=1, max_size=8), st.lists(st.integers(0, 90), min_size=1, max_size=8))
def test_a_session_never_overloads_its_endpoint(session: bytes, inflight: list[int]) -> None:
    strategy, endpoints = build_strategy("session", len(inflight), INDEX_BYTES), endpoints_of(len(inflight))
    for endpoint, load in zip(endpoints, inflight, strict=True):
        endpoint.inflight = load
    decision = strategy.choose(ask(session=session), endpoints)
    assert decision.endpoint.inflight <= ceil(1.25 * (sum(inflight) + 1) / len(inflight)) + LOAD_ALLOWANCE
    assert decision.reason in ("session", "spill")


def test_a_session_that_had_to_leave_stays_where_it_went() -> None:
    strategy, endpoints = build_strategy("session", 4, INDEX_BYTES), endpoints_of(4)
    home = route(strategy, endpoints, ask(session=b"s")).endpoint
    home.inflight = 60
    away = route(strategy, endpoints, ask(session=b"s"))
    home.inflight = 0
    again = route(strategy, endpoints, ask(session=b"s"))
    assert (away.reason, again.reason) == ("spill", "spilled")
    assert away.endpoint is again.endpoint is not home


def test_a_session_away_from_home_goes_back_when_its_place_is_gone() -> None:
    strategy, endpoints = build_strategy("session", 4, INDEX_BYTES), endpoints_of(4)
    home = strategy.choose(ask(session=b"s"), endpoints).endpoint
    home.inflight = 60
    away = route(strategy, endpoints, ask(session=b"s")).endpoint
    home.inflight = 0
    left = tuple(endpoint for endpoint in endpoints if endpoint is not away)
    assert route(strategy, left, ask(session=b"s")).endpoint is home
    assert route(strategy, endpoints, ask(session=b"s")).endpoint is home


def test_a_session_whose_request_was_not_served_where_it_spilled_to_is_not_there() -> None:
    strategy, endpoints = build_strategy("session", 4, INDEX_BYTES), endpoints_of(4)
    home = strategy.choose(ask(session=b"s"), endpoints).endpoint
    home.inflight = 60
    request = ask(session=b"s")
    decision = route(strategy, endpoints, request)
    strategy.withdrawn(request, decision)
    home.inflight = 0
    assert strategy.choose(ask(session=b"s"), endpoints).reason == "session"


class Told:
    """A witness that keeps what it is told of sessions."""

    def __init__(self) -> None:
        self.places: list[str | None] = []

    def placed(self, endpoint: Endpoint, blocks: Sequence[int]) -> None:
        raise AssertionError

    def withdrawn(self, endpoint: Endpoint, blocks: Sequence[int]) -> None:
        raise AssertionError

    def spilled(self, session: int, endpoint: Endpoint | None) -> None:
        self.places.append(endpoint.url if endpoint is not None else None)


def test_a_session_stays_where_its_request_is_served_when_a_second_endpoint_was_asked_in_vain() -> None:
    strategy, endpoints, told = SessionAffinity(), endpoints_of(4), Told()
    strategy.witness = told
    home = strategy.choose(ask(session=b"s"), endpoints).endpoint
    home.inflight = 60
    away = route(strategy, endpoints, ask(session=b"s")).endpoint
    home.inflight = 0
    request = ask(session=b"s")
    first = route(strategy, endpoints, request)
    hedge = route(strategy, tuple(endpoint for endpoint in endpoints if endpoint is not away), request)
    strategy.withdrawn(request, hedge)
    assert (first.endpoint, strategy.choose(ask(session=b"s"), endpoints).reason) == (away, "spilled")
    strategy.withdrawn(request, first)
    assert strategy.choose(ask(session=b"s"), endpoints).reason == "session"
    assert (told.places[0], told.places[-1]) == (away.url, None), "other workers are told, too"


def test_sessions_away_from_home_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierline.router.strategies.session.SPILLS_MAX", 3)
    strategy, endpoints = build_strategy("session", 2, INDEX_BYTES), endpoints_of(2)
    spilled = []
    for number in range(40):
        session = b"%d" % number
        home = strategy.choose(ask(session=session), endpoints).endpoint
        home.inflight = 60
        spilled.append(session)
        route(strategy, endpoints, ask(session=session))
        home.inflight = 0
    remembered = [strategy.choose(ask(session=session), endpoints).reason == "spilled" for session in spilled]
    assert remembered == [False] * 37 + [True] * 3


def test_sessions_settle_by_weight() -> None:
    strategy, endpoints = build_strategy("session", 2, INDEX_BYTES), endpoints_of(2)
    endpoints[0].weight = 3.0
    counts = Counter(strategy.choose(ask(session=b"%d" % n), endpoints).endpoint.url for n in range(2000))
    assert 0.7 < counts[endpoints[0].url] / 2000 < 0.8


def test_without_a_session_the_least_busy_endpoint_is_chosen() -> None:
    strategy, endpoints = build_strategy("session", 3, INDEX_BYTES), endpoints_of(3)
    endpoints[0].inflight, endpoints[1].inflight, endpoints[2].inflight = 2, 0, 1
    decision = strategy.choose(ask(), endpoints)
    assert (decision.endpoint, decision.reason) == (endpoints[1], "no-session")


# leastload ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0.5, 1.0, 4.0])), min_size=1, max_size=8))
def test_the_fewest_requests_for_its_weight_win(loads: list[tuple[int, float]]) -> None:
    strategy, endpoints = build_strategy("leastload", len(loads), INDEX_BYTES), endpoints_of(len(loads))
    for endpoint, (inflight, weight) in zip(endpoints, loads, strict=True):
        endpoint.inflight, endpoint.weight = inflight, weight
    chosen = strategy.choose(ask(), endpoints).endpoint
    assert chosen.inflight / chosen.weight == min(inflight / weight for inflight, weight in loads)


def test_of_endpoints_with_as_many_requests_the_one_with_less_to_compute_wins() -> None:
    strategy, endpoints = build_strategy("leastload", 3, INDEX_BYTES), endpoints_of(3)
    for endpoint, queued_tokens in zip(endpoints, (900, 100, 500), strict=True):
        endpoint.inflight, endpoint.queued_tokens = 1, queued_tokens
    assert strategy.choose(ask(), endpoints).endpoint is endpoints[1]


def test_endpoints_that_are_idle_take_turns() -> None:
    strategy, endpoints = build_strategy("leastload", 3, INDEX_BYTES), endpoints_of(3)
    assert {route(strategy, endpoints, ask()).endpoint for _ in range(3)} == set(endpoints)


# roundrobin -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 40))
def test_turns_are_even(count: int, requests: int) -> None:
    strategy, endpoints = build_strategy("roundrobin", count, INDEX_BYTES), endpoints_of(count)
    turns = Counter(route(strategy, endpoints, ask()).endpoint.url for _ in range(requests))
    assert max(turns.values()) - (min(turns.values()) if len(turns) == count else 0) <= 1


@given(st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=60))
def test_a_change_of_the_set_gives_nobody_two_turns(offered: list[set[int]]) -> None:
    strategy, endpoints = build_strategy("roundrobin", 5, INDEX_BYTES), endpoints_of(5)
    last = None
    for positions in offered:
        chosen = route(strategy, tuple(endpoints[position] for position in sorted(positions)), ask()).endpoint
        assert chosen is not last or len(positions) == 1
        last = chosen


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 4))
def test_turns_are_in_the_ratio_of_the_weights_and_spread_over_the_round(weights: list[int], rounds: int) -> None:
    strategy, endpoints = build_strategy("roundrobin", len(weights), INDEX_BYTES), endpoints_of(len(weights))
    for endpoint, weight in zip(endpoints, weights, strict=True):
        endpoint.weight = float(weight)
    turns: Counter[str] = Counter()
    for turn in range(1, rounds * sum(weights) + 1):
        turns[route(strategy, endpoints, ask()).endpoint.url] += 1
        for endpoint in endpoints:
            fair = turn * endpoint.weight / sum(weights)
            assert abs(turns[endpoint.url] - fair) <= max(1.5, len(weights) / 2)


def test_an_endpoint_that_was_away_does_not_make_up_for_it() -> None:
    strategy, endpoints = build_strategy("roundrobin", 3, INDEX_BYTES), endpoints_of(3)
    for _ in range(300):
        route(strategy, endpoints[:2], ask())
    turns = Counter(route(strategy, endpoints, ask()).endpoint.url for _ in range(30))
    assert set(turns.values()) == {10}


def test_traffic_of_one_model_does_not_disturb_the_turns_of_another() -> None:
    strategy, endpoints = build_strategy("roundrobin", 4, INDEX_BYTES), endpoints_of(4)
    endpoints[2].weight = 2.0
    turns: Counter[str] = Counter()
    for _ in range(30):
        turns[route(strategy, endpoints[2:], ask()).endpoint.url] += 1
        for _ in range(17):
            route(strategy, endpoints[:2], ask())
    assert turns == {endpoints[2].url: 20, endpoints[3].url: 10}


# Endpoints that join --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_an_endpoint_that_joins_gets_more_as_it_warms_up(name: str) -> None:
    strategy, endpoints = build_strategy(name, 4, INDEX_BYTES), endpoints_of(4)
    endpoints[3].cold_since = 1000.0
    given_at: dict[float, int] = {}
    for now in (1000.0, 1030.0, 1090.0):
        begun: list[Decision] = []
        for number in range(400):
            request = ask(blocks(f"{now} {number} ", 3), session=b"%d %d" % (now, number), now=now)
            decision = strategy.choose(request, endpoints)
            strategy.placed(request, decision)
            decision.endpoint.begin(decision.uncached_tokens, 0.0)
            begun.append(decision)
        given_at[now] = endpoints[3].inflight
        for decision in begun:
            decision.endpoint.end(decision.uncached_tokens)
    assert given_at[1000.0] < 30
    assert given_at[1000.0] < given_at[1030.0] < given_at[1090.0]
    assert given_at[1090.0] > 75
