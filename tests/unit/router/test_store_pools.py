"""What any store of a pool holds counts, as shared, for the endpoints of all its stores, and for nobody else."""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.router.test_store_tiers import CHUNK, FRAME, JOINED, digests, request, stored, tell

from tierline.prefix import Shard
from tierline.router.endpoints import Endpoint
from tierline.router.events.source import EventSource, SourceState
from tierline.router.events.stored import StoreBlocks
from tierline.router.strategies.kvaware import KvAware, weights_of
from tierline.wire import kv_events
from tierline.wire.kv_events import PoolJoined, PoolLeft

TEAM = PoolJoined("team")


def make(*pools: str) -> tuple[KvAware, list[Endpoint], list[EventSource[StoreBlocks]]]:
    """An endpoint with a store, whose engine has introduced itself, for each name of a pool; empty: it is in none."""
    strategy = KvAware(len(pools), 2**20, 2**24)
    endpoints = [Endpoint(f"http://engine-{position}:8000", position) for position in range(len(pools))]
    for endpoint, pool in zip(endpoints, pools, strict=True):
        endpoint.models = frozenset({"m"})
        endpoint.prefill_rate = 1000.0
        engine = EventSource(strategy.blocks.open(), has_replay=False, clock=lambda: 0.0)
        engine.received(0, msgspec.msgpack.encode([0.0, []]))
        strategy.sources[endpoint.url] = [engine]
        store = strategy.stores[endpoint.url] = EventSource(strategy.stored.open(), has_replay=False, clock=lambda: 0.0)
        tell(store, JOINED, *([PoolJoined(pool)] if pool else []))
    return strategy, endpoints, [strategy.stores[endpoint.url] for endpoint in endpoints]


def tiers(strategy: KvAware, endpoint: Endpoint) -> dict[str, int]:
    return strategy.choose(request(), [endpoint]).tiers


def test_what_another_store_of_the_pool_holds_counts_as_shared() -> None:
    strategy, endpoints, stores = make("team", "team", "other", "")
    tell(stores[1], stored(10))
    assert [tiers(strategy, endpoint) for endpoint in endpoints] == [
        {"shared": 10 * CHUNK},
        {"host": 10 * CHUNK},
        {},
        {},
    ]
    assert strategy.choose(request(), endpoints[:1]).uncached_tokens == 641 - int(640 * 0.6)


def test_the_pool_goes_on_where_a_store_s_own_blocks_end() -> None:
    strategy, endpoints, stores = make("team", "team", "team")
    tell(stores[0], stored(3))
    tell(stores[1], stored(6, first=3))
    tell(stores[2], stored(9, first=5))
    assert tiers(strategy, endpoints[0]) == {"host": 3 * CHUNK, "shared": 6 * CHUNK}
    assert tiers(strategy, endpoints[1]) == {"shared": 9 * CHUNK}


def test_a_block_is_in_the_pool_where_all_its_ranks_are_whoever_has_which() -> None:
    strategy, endpoints, stores = make("team", "team", "team")
    halves = [Shard(kv_dtype="b", layout="l", chunk_tokens=CHUNK, tensor_rank=rank, tensor_size=2) for rank in (0, 1)]
    suffixes = [half.suffix() for half in halves]
    both = msgspec.structs.replace(JOINED, shards=suffixes)
    for store, suffix, chunks in ((stores[0], suffixes[0], 4), (stores[1], suffixes[1], 2)):
        tell(store, both, kv_events.BlockStored(block_hashes=digests(chunks), frame=("b", "", f"@{suffix}")))
    tell(stores[2], both)
    assert tiers(strategy, endpoints[2]) == {"shared": 2 * CHUNK}
    assert tiers(strategy, endpoints[0]) == {"shared": 2 * CHUNK}


def test_a_block_counts_as_shared_only_while_a_store_of_the_pool_is_sure_to_hold_it() -> None:
    strategy, endpoints, stores = make("team", "team", "team")
    first = endpoints[0]
    tell(stores[1], stored(10))
    tell(stores[2], stored(4))
    assert tiers(strategy, first) == {"shared": 10 * CHUNK}
    tell(stores[1], kv_events.BlockRemoved(block_hashes=digests(7, 6), frame=FRAME))
    assert tiers(strategy, first) == {"shared": 6 * CHUNK}
    stores[1].disconnected()
    assert stores[1].state is SourceState.LOST
    assert tiers(strategy, first) == {"shared": 4 * CHUNK}
    tell(stores[2], PoolLeft())
    assert tiers(strategy, first) == {}
    tell(stores[2], TEAM)
    assert tiers(strategy, first) == {"shared": 4 * CHUNK}
    tell(stores[2], kv_events.AllBlocksCleared(), number=0)  # it has started again, and is in no pool yet
    tell(stores[2], stored(4))
    assert tiers(strategy, first) == {}


def test_an_endpoint_whose_own_store_is_not_sure_reads_nothing_through_it() -> None:
    strategy, endpoints, stores = make("team", "team")
    tell(stores[1], stored(10))
    stores[0].disconnected()
    assert tiers(strategy, endpoints[0]) == {}
    strategy, endpoints, stores = make("team", "team")
    tell(stores[1], stored(10))
    tell(stores[0], kv_events.EngineLeft("e"))  # whose names nobody knows any more
    assert tiers(strategy, endpoints[0]) == {}


def test_a_store_that_is_closed_takes_its_blocks_out_of_the_pool() -> None:
    strategy, endpoints, stores = make("team", "team")
    tell(stores[1], stored(10))
    del strategy.stores[endpoints[1].url]
    strategy.stored.close(stores[1].blocks)
    assert tiers(strategy, endpoints[0]) == {}


@pytest.mark.parametrize(
    ("queued", "chosen"),
    [
        ((0, 0, 0), 0),
        ((2000, 0, 0), 1),  # 8 * 129 tokens computed behind 2000 are dearer than 8 * 257
        ((5000, 5000, 0), 2),
        ((1000, 0, 0), 0),
    ],
)
def test_a_store_s_own_block_goes_before_the_pool_s_and_the_pool_s_before_an_idle_endpoint_until_load_says_otherwise(
    queued: Sequence[int], chosen: int
) -> None:
    """The first endpoint's store has the prompt, the second would get it from the pool, the third computes it."""
    strategy, endpoints, stores = make("team", "team", "")
    tell(stores[0], stored(10))
    for endpoint, tokens in zip(endpoints, queued, strict=True):
        if tokens:
            endpoint.begin(tokens, 0.0)
    assert strategy.choose(request(), endpoints).endpoint is endpoints[chosen]


def test_the_weight_of_shared_storage_is_what_the_pool_costs() -> None:
    for weight, chosen in (("shared=0.05", 2), ("shared=0.9", 1)):
        strategy, endpoints, stores = make("team", "team", "")
        strategy.weights = weights_of([weight])
        tell(stores[0], stored(10))
        endpoints[1].begin(500, 0.0)
        assert strategy.choose(request(), endpoints[1:]).endpoint is endpoints[chosen]


def test_a_pool_s_name_is_bounded() -> None:
    _, _, stores = make("team")
    tell(stores[0], PoolJoined("x" * 2000))
    assert (stores[0].unreadable, stores[0].blocks.pool) == (1, "")


CHUNKS, SHARDS, STORES = 5, 2, 3
SUFFIXES = [
    Shard(kv_dtype="b", layout="l", chunk_tokens=CHUNK, tensor_rank=rank, tensor_size=2).suffix() for rank in (0, 1)
]
READS_BOTH = msgspec.structs.replace(JOINED, shards=SUFFIXES)
Change = tuple[str, int, int, int, str]
DEPTHS = st.lists(st.tuples(*[st.integers(0, CHUNKS)] * SHARDS), min_size=STORES, max_size=STORES)
"""How many leading chunks each store has of each shard to begin with."""
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["stored", "removed", "joined", "left", "lost", "heard"]),
        st.integers(0, STORES - 1),
        st.integers(0, SHARDS - 1),
        st.integers(0, CHUNKS - 1),
        st.sampled_from(["team", "other"]),
    ),
    max_size=8,
)


@given(DEPTHS, CHANGES)
def test_whatever_stores_tell_the_index_says_what_a_plain_model_does(
    depths: list[tuple[int, ...]], changes: list[Change]
) -> None:
    strategy, endpoints, stores = make(*["team"] * STORES)
    held: list[set[tuple[int, int]]] = [set() for _ in stores]
    pools = ["team"] * STORES
    lost: set[int] = set()
    for place, store in enumerate(stores):
        tell(store, READS_BOTH)
        for shard, depth in enumerate(depths[place]):
            tell(store, kv_events.BlockStored(block_hashes=digests(depth), frame=("b", "", f"@{SUFFIXES[shard]}")))
            held[place] |= {(shard, chunk) for chunk in range(depth)}
    for kind, place, shard, chunk, pool in changes:
        frame = ("b", "", f"@{SUFFIXES[shard]}")
        hashes = digests(chunk + 1, chunk)
        if kind == "heard":
            if place in lost:
                lost.discard(place)
                stores[place].connected()
                tell(stores[place], PoolJoined(pool))
                pools[place] = pool
        elif place in lost:
            continue
        elif kind == "stored":
            tell(stores[place], kv_events.BlockStored(block_hashes=hashes, frame=frame))
            held[place].add((shard, chunk))
        elif kind == "removed":
            tell(stores[place], kv_events.BlockRemoved(block_hashes=hashes, frame=frame))
            held[place].discard((shard, chunk))
        elif kind == "lost":
            stores[place].disconnected()
            lost.add(place)
        else:
            tell(stores[place], PoolJoined(pool) if kind == "joined" else PoolLeft())
            pools[place] = pool if kind == "joined" else ""
    for place, endpoint in enumerate(endpoints):
        own = _leading([held[place]])
        together = [held[other] for other in range(STORES) if pools[other] == pools[place] and other not in lost]
        shared = max(own, _leading(together)) if pools[place] else own
        said = tiers(strategy, endpoint)
        assert (said.get("host", 0), said.get("shared", 0)) == ((0, 0) if place in lost else (own, shared - own))


def _leading(stores: Sequence[set[tuple[int, int]]]) -> int:
    """Return how many leading tokens these hold together."""
    for chunk in range(CHUNKS):
        if not all(any((shard, chunk) in held for held in stores) for shard in range(SHARDS)):
            return chunk * CHUNK
    return CHUNKS * CHUNK
