"""Choices by KV events: what counts when sources are exact, degraded or lost; tiers; ranks; adapters; expectations."""

from collections.abc import Sequence

import msgspec
import pytest

from tierline.router.endpoints import Endpoint
from tierline.router.events.keys import PromptTokens
from tierline.router.events.source import EventSource, SourceState
from tierline.router.prompt import read_fields
from tierline.router.specs import EndpointSpec
from tierline.router.strategies import RoutingRequest
from tierline.router.strategies.kvaware import EXPECTED_SECONDS, KvAware, adapter_of

SIZE = 16
IDS = list(range(1000, 1000 + 40 * SIZE + 1))


def make(endpoints: int = 2, ranks: int = 1) -> tuple[KvAware, list[Endpoint]]:
    strategy = KvAware(endpoints, 2**20, 2**24)
    places = [Endpoint(f"http://engine-{position}:8000", position) for position in range(endpoints)]
    for place in places:
        sources = [EventSource(strategy.blocks.open(), has_replay=False, clock=lambda: 0.0) for _ in range(ranks)]
        strategy.sources[place.url] = sources
    return strategy, places


def tell(source: EventSource, blocks: int, medium: str = "GPU", first: int | None = None, **fields: object) -> None:
    """Let a source say that it holds the first blocks of :data:`IDS`."""
    number = source._next or 0 if first is None else first
    event = {
        "type": "BlockStored",
        "block_hashes": list(range(1, blocks + 1)),
        "token_ids": IDS[: blocks * SIZE],
        "block_size": SIZE,
        "medium": medium,
        **fields,
    }
    source.received(number, msgspec.msgpack.encode([0.0, [event]]))


def request(ids: Sequence[int] = IDS, *, has_tokens: bool = True, now: float = 0.0, model: str = "m") -> RoutingRequest:
    body = msgspec.json.encode({"model": model, "prompt": list(ids)})
    routing = RoutingRequest(read_fields(body), now=now)
    routing.tokens = PromptTokens(ids) if has_tokens else None
    return routing


def test_the_endpoint_that_says_it_holds_the_prefix_gets_the_request() -> None:
    strategy, endpoints = make(3)
    for place, blocks in zip(endpoints, (10, 40, 20), strict=True):
        tell(strategy.sources[place.url][0], blocks)
    decision = strategy.choose(request(), endpoints)
    assert (decision.endpoint, decision.reason) == (endpoints[1], "prefix")
    assert (decision.predicted_cached_tokens, decision.uncached_tokens) == (640, 1)


def test_the_last_token_is_computed_in_any_case() -> None:
    strategy, endpoints = make(1)
    tell(strategy.sources[endpoints[0].url][0], 40)
    assert strategy.choose(request(IDS[:640]), endpoints).predicted_cached_tokens == 624


def test_an_exact_source_that_holds_nothing_outweighs_a_guess() -> None:
    strategy, endpoints = make()
    strategy.placed(request(has_tokens=False), strategy.choose(request(has_tokens=False), endpoints[:1]))
    for place in endpoints:
        tell(strategy.sources[place.url][0], 0)
    assert strategy.choose(request(), endpoints).predicted_cached_tokens == 0


def test_without_tokens_or_a_source_that_tells_the_guess_counts() -> None:
    strategy, endpoints = make()
    tell(strategy.sources[endpoints[0].url][0], 40)
    strategy.placed(request(has_tokens=False), strategy.choose(request(has_tokens=False), endpoints[1:]))
    assert strategy.choose(request(has_tokens=False), endpoints).endpoint is endpoints[1]
    strategy.sources[endpoints[0].url][0].disconnected()
    decision = strategy.choose(request(), endpoints)
    assert (decision.endpoint, decision.predicted_cached_tokens) == (endpoints[1], 640)
    assert strategy.lookups["exact"] == 0


def test_of_a_degraded_source_the_longer_of_index_and_guess_counts() -> None:
    strategy, endpoints = make(1)
    (source,) = strategy.sources[endpoints[0].url]
    tell(source, 5, first=7)
    assert source.state is SourceState.DEGRADED
    assert strategy.choose(request(), endpoints).predicted_cached_tokens == 80
    strategy.placed(request(has_tokens=False), strategy.choose(request(has_tokens=False), endpoints))
    assert strategy.choose(request(), endpoints).predicted_cached_tokens == 640
    assert strategy.lookups["bound"] == 2


def test_a_slower_tier_saves_less_than_the_engines_own_cache() -> None:
    strategy, endpoints = make(3)
    for place, medium in zip(endpoints, ("STORAGE", "GPU", "CPU"), strict=True):
        tell(strategy.sources[place.url][0], 40, medium)
    assert strategy.choose(request(), endpoints).endpoint is endpoints[1]
    without = [endpoints[0], endpoints[2]]
    decision = strategy.choose(request(), without)
    assert decision.endpoint is endpoints[2]
    assert (decision.predicted_cached_tokens, decision.uncached_tokens) == (640, 641 - 512)


def test_a_prompt_of_fewer_tokens_than_blocks_saves_no_more_than_it_has() -> None:
    strategy, endpoints = make()
    tools = [{"type": "function", "function": {"name": "f", "description": "?" * 4096}}]
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": tools}
    for _ in range(2):
        routing = RoutingRequest(read_fields(msgspec.json.encode(chat)))
        routing.tokens = PromptTokens([1, 2, 3])  # the template leaves tools out
        decision = strategy.choose(routing, endpoints)
        strategy.placed(routing, decision)
        assert 0 <= decision.uncached_tokens <= 3
        assert 0 <= decision.predicted_cached_tokens <= 3
    assert decision.matched_blocks == len(routing.blocks) > 3


def test_what_is_in_a_shared_store_draws_nobody_to_its_writer() -> None:
    strategy, endpoints = make()
    tell(strategy.sources[endpoints[0].url][0], 40, "STORAGE", locality="REMOTE")
    tell(strategy.sources[endpoints[1].url][0], 1)
    endpoints[0].begin(100, 0.0)
    decision = strategy.choose(request(), endpoints)
    assert (decision.endpoint, decision.predicted_cached_tokens) == (endpoints[1], 640)


def test_of_several_ranks_the_mean_is_expected() -> None:
    strategy, endpoints = make(1, ranks=2)
    for source, blocks in zip(strategy.sources[endpoints[0].url], (40, 10), strict=True):
        tell(source, blocks)
    assert strategy.choose(request(), endpoints).predicted_cached_tokens == 400


def test_an_adapter_has_blocks_of_its_own() -> None:
    strategy, endpoints = make(1)
    endpoints[0].model_cards = {"m": b'{"id":"m","parent":null}', "poet": b'{"id":"poet","parent":"m"}'}
    tell(strategy.sources[endpoints[0].url][0], 40, lora_name="poet", extra_keys=[["poet"]] * 40)
    assert strategy.choose(request(model="poet"), endpoints).predicted_cached_tokens == 640
    assert strategy.choose(request(model="m"), endpoints).predicted_cached_tokens == 0
    assert adapter_of("unknown", endpoints[0]) is None


def test_a_name_that_might_be_an_adapters_is_not_taken_for_the_model() -> None:
    strategy, (endpoint,) = make(1)
    endpoint.apply(EndpointSpec(url=endpoint.url, models=frozenset({"m", "poet"})), "file")
    tell(strategy.sources[endpoint.url][0], 40)
    assert strategy.choose(request(model="poet"), [endpoint]).predicted_cached_tokens == 0
    strategy.placed(request(model="poet"), strategy.choose(request(model="poet"), [endpoint]))
    assert not strategy.sources[endpoint.url][0].blocks.expected
    endpoint.learn_models({"m": b'{"id":"m"}', "poet": b'{"id":"poet","parent":"m"}'})
    assert strategy.choose(request(model="m"), [endpoint]).predicted_cached_tokens == 640
    assert strategy.choose(request(model="poet"), [endpoint]).predicted_cached_tokens == 0


def test_a_prompt_that_was_just_sent_is_expected_until_its_time_is_over() -> None:
    strategy, endpoints = make()
    for place in endpoints:
        tell(strategy.sources[place.url][0], 0)
        tell(strategy.sources[place.url][0], 1)
    first = strategy.choose(request(), endpoints)
    strategy.placed(request(), first)
    second = strategy.choose(request(now=0.1), endpoints)
    assert (second.endpoint, second.predicted_cached_tokens) == (first.endpoint, 640)
    assert strategy.choose(request(now=EXPECTED_SECONDS), endpoints).predicted_cached_tokens == 16
    strategy.withdrawn(request(), first)
    assert strategy.choose(request(now=0.1), endpoints).predicted_cached_tokens == 16


def test_a_prompt_that_waits_is_expected_until_it_should_be_computed() -> None:
    strategy, (endpoint,) = make(1)
    tell(strategy.sources[endpoint.url][0], 1)
    endpoint.prefill_rate = 100.0
    endpoint.begin(375, 0.0)
    strategy.placed(request(), strategy.choose(request(), [endpoint]))  # 625 of its tokens are new
    expected = [strategy.choose(request(now=now), [endpoint]).predicted_cached_tokens for now in (0.1, 11.9, 12.1)]
    assert expected == [640, 640, 16]
    endpoint.prefill_rate = 1.0
    strategy.placed(request(), strategy.choose(request(now=20.0), [endpoint]))
    assert strategy.choose(request(now=61.0), [endpoint]).predicted_cached_tokens == 16


def test_a_prompt_that_was_not_served_takes_nothing_from_others_that_begin_alike() -> None:
    strategy, (endpoint,) = make(1)
    tell(strategy.sources[endpoint.url][0], 1)
    ids = [IDS[: 20 * SIZE] + [7] * 20 * SIZE, IDS[: 20 * SIZE] + [8] * 20 * SIZE]
    sent = [request(prompt, now=now) for now, prompt in enumerate(ids)]
    decisions = [strategy.choose(one, [endpoint]) for one in sent]
    for one, decision in zip(sent, decisions, strict=True):
        strategy.placed(one, decision)
    strategy.withdrawn(sent[0], decisions[0])
    assert strategy.choose(request(ids[0], now=1.5), [endpoint]).predicted_cached_tokens == 20 * SIZE
    strategy.withdrawn(sent[1], decisions[1])
    assert strategy.choose(request(ids[0], now=1.5), [endpoint]).predicted_cached_tokens == SIZE


def test_what_was_sent_before_is_remembered_though_events_say_that_it_is_gone() -> None:
    strategy, (endpoint,) = make(1)
    known = request()
    strategy.placed(known, strategy.choose(known, [endpoint]))
    tell(strategy.sources[endpoint.url][0], 1)
    decision = strategy.choose(request(now=EXPECTED_SECONDS), [endpoint])
    assert decision.matched_blocks < decision.remembered_blocks == decision.total_blocks
    strategy.placed(known, decision)
    strategy.withdrawn(known, decision)
    assert len(strategy.index) == decision.total_blocks


def test_a_decision_says_what_its_figures_go_by() -> None:
    strategy, endpoints = make(1)
    (source,) = strategy.sources[endpoints[0].url]
    assert strategy.choose(request(), endpoints).confidence == "approximate"
    tell(source, 40)
    assert strategy.choose(request(), endpoints).confidence == "exact"
    assert strategy.choose(request(has_tokens=False), endpoints).confidence == "approximate"
    tell(source, 40, first=7)
    assert (source.state, strategy.choose(request(), endpoints).confidence) == (SourceState.DEGRADED, "bound")
    assert strategy.choose(RoutingRequest(), endpoints).confidence == ""


@pytest.mark.parametrize("length", [0, 1, 15, 17])
def test_short_prompts_have_a_choice_too(length: int) -> None:
    strategy, endpoints = make()
    for place in endpoints:
        tell(strategy.sources[place.url][0], 1)
    decision = strategy.choose(request(IDS[:length]), endpoints)
    assert decision.predicted_cached_tokens == (16 if length == 17 else 0)
