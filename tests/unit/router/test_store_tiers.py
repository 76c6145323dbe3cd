"""Choices with node stores: what a store holds beyond its endpoint's engine counts, by its weight, while it is sure."""

from collections.abc import Sequence

import msgspec
import pytest

from tierline.prefix import PrefixIdentity, Shard, block_chain
from tierline.router.endpoints import Endpoint
from tierline.router.events.index import Tier
from tierline.router.events.keys import PromptTokens
from tierline.router.events.source import EventSource, SourceState
from tierline.router.events.stored import MOST_ENGINES, OBJECT_BYTES, StoreBlocks, StoreIndex, StoreLookup
from tierline.router.prompt import read_fields
from tierline.router.strategies import RoutingRequest
from tierline.router.strategies.kvaware import KvAware, measured_of, weights_of
from tierline.wire import kv_events

SIZE, CHUNK = 16, 64
IDS = list(range(1000, 1000 + 10 * CHUNK + 1))
SHARD = Shard(kv_dtype="bf16", layout="test-1", chunk_tokens=CHUNK).suffix()
FRAME = ("b", "", f"@{SHARD}")
JOINED = kv_events.EngineJoined(
    engine="e", bucket="b", models=["m"], fingerprint="f", epoch=0, chunk_tokens=CHUNK, shards=[SHARD]
)


def make() -> tuple[KvAware, list[Endpoint]]:
    """Three endpoints; the first two are on one node, the third has none."""
    strategy = KvAware(3, 2**20, 2**24)
    endpoints = [Endpoint(f"http://engine-{position}:8000", position) for position in range(3)]
    for endpoint in endpoints:
        endpoint.models = frozenset({"m"})
        source = EventSource(strategy.blocks.open(), has_replay=False, clock=lambda: 0.0)
        source.received(0, msgspec.msgpack.encode([0.0, []]))
        strategy.sources[endpoint.url] = [source]
    store = EventSource(strategy.stored.open(), has_replay=False, clock=lambda: 0.0)
    for endpoint in endpoints[:2]:
        strategy.stores[endpoint.url] = store
    return strategy, endpoints


def digests(chunks: int, first: int = 0) -> list[bytes]:
    return list(block_chain(PrefixIdentity(model="f").root(), IDS, CHUNK))[first:chunks]


def stored(chunks: int, first: int = 0) -> kv_events.BlockStored:
    return kv_events.BlockStored(block_hashes=digests(chunks, first), frame=FRAME)


def tell(source: EventSource[StoreBlocks], *events: kv_events.StoreEvent, number: int | None = None) -> None:
    number = source._next or 0 if number is None else number
    source.received(number, msgspec.msgpack.encode(kv_events.EventBatch(0.0, events)))


def tell_engine(source: EventSource, blocks: int) -> None:
    event = {
        "type": "BlockStored",
        "block_hashes": list(range(1, blocks + 1)),
        "token_ids": IDS[: blocks * SIZE],
        "block_size": SIZE,
    }
    source.received(source._next or 0, msgspec.msgpack.encode([0.0, [event]]))


def request(ids: Sequence[int] = IDS, model: str = "m") -> RoutingRequest:
    routing = RoutingRequest(read_fields(msgspec.json.encode({"model": model, "prompt": list(ids)})))
    routing.tokens = PromptTokens(ids)
    return routing


def test_what_the_store_holds_beyond_the_engine_counts_by_its_weight() -> None:
    strategy, endpoints = make()
    tell(strategy.stores[endpoints[0].url], JOINED, stored(10))
    tell_engine(strategy.sources[endpoints[1].url][0], 10)
    decision = strategy.choose(request(), endpoints)
    assert (decision.endpoint, decision.predicted_cached_tokens) == (endpoints[1], 640)
    assert decision.tiers == {"gpu": 160, "host": 480}
    assert decision.uncached_tokens == 641 - 160 - int(480 * 0.8)


def test_weights_decide_between_an_engine_s_cache_and_a_longer_prefix_in_a_store() -> None:
    for weights, chosen in ((["host=0.4"], 2), (["host=0.9"], 0)):
        strategy, endpoints = make()
        strategy.weights = weights_of(weights)
        tell(strategy.stores[endpoints[0].url], JOINED, stored(10))
        tell_engine(strategy.sources[endpoints[2].url][0], 20)
        assert strategy.choose(request(), [endpoints[0], endpoints[2]]).endpoint is endpoints[chosen]


def test_what_the_store_s_engines_measured_counts_before_the_usual_weight_and_the_setting_before_both() -> None:
    for entries, saved in (([], 0.25), (["host=0.9"], 0.9), (["storage=0.1"], 0.25)):
        strategy, endpoints = make()
        strategy.weights, strategy.measured = weights_of(entries), measured_of(entries)
        other = msgspec.structs.replace(JOINED, engine="another", saves={"host": 0.5, "shared": 0.1})
        measured = msgspec.structs.replace(JOINED, saves={"host": 0.0})
        tell(strategy.stores[endpoints[0].url], other, measured, stored(10))
        decision = strategy.choose(request(), endpoints)
        assert decision.uncached_tokens == 641 - int(640 * saved)


def test_what_engines_measured_goes_with_them() -> None:
    strategy, endpoints = make()
    source = strategy.stores[endpoints[0].url]
    tell(source, msgspec.structs.replace(JOINED, saves={"host": 0.5}))
    assert source.blocks.saves == {"host": 0.5}
    tell(source, kv_events.EngineLeft("e"))
    assert source.blocks.saves == {}


@pytest.mark.parametrize("entries", [["host"], ["ram=1"], ["host=2"], ["host=-1"], ["host=nan"], ["host=x"]])
def test_a_weight_that_is_none_is_refused(entries: list[str]) -> None:
    with pytest.raises(ValueError, match="each from 0 to 1"):
        weights_of(entries)


def test_a_store_adds_to_what_is_guessed_where_an_engine_tells_nothing() -> None:
    strategy, endpoints = make()
    del strategy.sources[endpoints[0].url]
    tell(strategy.stores[endpoints[0].url], JOINED, stored(10))
    decision = strategy.choose(request(), [endpoints[0]])
    assert (decision.predicted_cached_tokens, decision.tiers) == (640, {"host": 640})


@pytest.mark.parametrize("state", [SourceState.BOOT, SourceState.LOST])
def test_a_store_that_is_not_sure_counts_for_nothing(state: SourceState) -> None:
    strategy, endpoints = make()
    tell(strategy.stores[endpoints[0].url], JOINED, stored(10))
    strategy.stores[endpoints[0].url].state = state
    assert strategy.choose(request(), endpoints).predicted_cached_tokens == 0


def test_a_hole_ends_what_counts() -> None:
    strategy, endpoints = make()
    source = strategy.stores[endpoints[0].url]
    tell(source, JOINED, stored(10))
    tell(source, kv_events.BlockRemoved(block_hashes=digests(5, 4), frame=FRAME))
    assert strategy.choose(request(), endpoints).predicted_cached_tokens == 4 * CHUNK


def test_a_message_that_cannot_be_read_makes_the_store_hold_nothing_until_it_is_listed() -> None:
    strategy, endpoints = make()
    source = strategy.stores[endpoints[0].url]
    tell(source, JOINED, stored(10))
    source.received(1, b"\xc1 no msgpack")
    assert (source.unreadable, len(source.blocks), source.is_exact) == (1, 0, False)
    tell(source, kv_events.AllBlocksCleared(), JOINED, stored(3))
    assert source.is_exact
    assert strategy.choose(request(), endpoints).predicted_cached_tokens == 3 * CHUNK


def test_a_gap_forgets_what_was_told_before_it() -> None:
    strategy, endpoints = make()
    source = strategy.stores[endpoints[0].url]
    tell(source, JOINED, stored(10))
    tell(source, stored(10, first=5), number=7)
    assert (source.gaps, len(source.blocks), source.state) == (1, 5, SourceState.DEGRADED)
    assert strategy.choose(request(), endpoints).predicted_cached_tokens == 0


def test_more_objects_than_fit_are_not_kept_and_those_that_are_stay_true() -> None:
    index = StoreIndex(4 * OBJECT_BYTES)
    blocks = index.open()
    source = EventSource(blocks, has_replay=False, clock=lambda: 0.0)
    tell(source, JOINED, stored(10))
    assert (len(blocks), blocks.is_whole, source.is_exact) == (4, False, False)
    lookup = StoreLookup(index, PromptTokens(IDS))
    assert lookup.held_tokens(blocks, frozenset({"m"}), None) == (4 * CHUNK, 0)
    tell(source, kv_events.AllBlocksCleared(), stored(3))
    assert (len(blocks), blocks.is_whole) == (3, True)


def test_a_store_that_comes_has_its_share_of_the_memory() -> None:
    index = StoreIndex(8 * OBJECT_BYTES)
    first = index.open()
    tell(EventSource(first, has_replay=False, clock=lambda: 0.0), JOINED, stored(8))
    assert (len(first), first.is_whole) == (8, True)
    second = index.open()
    tell(EventSource(second, has_replay=False, clock=lambda: 0.0), JOINED, stored(8))
    assert (len(first), first.is_whole, len(second)) == (4, False, 4)
    assert index.size_bytes == 8 * OBJECT_BYTES
    assert sum(map(int.bit_count, index.tables[FRAME].values())) == 8


def test_engines_of_one_store_are_bounded() -> None:
    blocks = StoreIndex(2**20).open()
    source = EventSource(blocks, has_replay=False, clock=lambda: 0.0)
    for number in range(MOST_ENGINES + 10):
        tell(source, msgspec.structs.replace(JOINED, engine=str(number)))
    assert blocks.engines == MOST_ENGINES
    tell(source, kv_events.EngineLeft("0"), kv_events.EngineLeft("never heard of"))
    assert blocks.engines == MOST_ENGINES - 1


def test_two_stores_are_told_apart_and_one_that_is_closed_leaves_nothing() -> None:
    index = StoreIndex(2**20)
    one, other = index.open(), index.open()
    for blocks, chunks in ((one, 3), (other, 7)):
        tell(EventSource(blocks, has_replay=False, clock=lambda: 0.0), JOINED, stored(chunks))
    lookup = StoreLookup(index, PromptTokens(IDS))
    held = [lookup.held_tokens(blocks, frozenset({"m"}), None)[0] for blocks in (one, other)]
    assert held == [3 * CHUNK, 7 * CHUNK]
    index.close(one)
    assert StoreLookup(index, PromptTokens(IDS)).held_tokens(other, None, None) == (7 * CHUNK, 0)
    index.close(other)
    assert index.tables == {}


def test_a_tenant_whose_objects_are_gone_leaves_nothing() -> None:
    index = StoreIndex(4 * OBJECT_BYTES)
    blocks = index.open()
    source = EventSource(blocks, has_replay=False, clock=lambda: 0.0)
    for tenant in range(100):
        frame = ("b", "", f"@{SHARD}@{tenant}")
        tell(source, kv_events.BlockStored(block_hashes=digests(8), frame=frame))
        tell(source, kv_events.BlockStored(block_hashes=digests(1), frame=(*frame[:2], "no room is left")))
        tell(source, kv_events.BlockRemoved(block_hashes=digests(8), frame=frame))
    assert (len(blocks), index.tables, blocks._held) == (0, {}, {})


def test_tokens_to_be_read_are_counted_by_tier() -> None:
    strategy, endpoints = make()
    tell(strategy.stores[endpoints[0].url], JOINED, stored(10))
    routing = request()
    strategy.placed(routing, strategy.choose(routing, endpoints[:1]))
    assert strategy.predicted == {Tier.GPU: 0, Tier.HOST: 640, Tier.STORAGE: 0, Tier.SHARED: 0}
