"""The simulated prefix cache: no block is lost, and what was computed is found until it is evicted."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tierline.stack.simulated_engine.cache import BLOCK_TOKENS, Holding, PrefixCache, block_hashes
from tierline.stack.simulated_engine.kv_events import AllBlocksCleared, BlockRemoved, BlockStored

TOKENS = list(range(4 * BLOCK_TOKENS))


def compute(cache: PrefixCache, tokens: Sequence[int], salt: str = "") -> Holding:
    hashes = block_hashes(tokens, salt)
    matched = cache.match(hashes)
    holding = cache.hold(hashes[:matched], len(hashes) - matched)
    assert holding is not None
    cache.name(holding, hashes[matched:], tokens[matched * BLOCK_TOKENS :], salt)
    return holding


def test_a_computed_prefix_is_found_after_its_request_ended() -> None:
    cache = PrefixCache(8)
    cache.release(compute(cache, TOKENS))
    assert cache.match(block_hashes([*TOKENS[:32], *reversed(TOKENS[32:])])) == 2


def test_tenants_with_different_salts_share_nothing() -> None:
    cache = PrefixCache(8)
    compute(cache, TOKENS, "one")
    assert cache.match(block_hashes(TOKENS, "another")) == 0


def test_the_tail_of_a_chain_is_evicted_before_its_head() -> None:
    cache = PrefixCache(4)
    cache.release(compute(cache, TOKENS))
    assert cache.hold([], 3) is not None
    assert cache.match(block_hashes(TOKENS)) == 1


def test_a_held_block_is_never_evicted() -> None:
    cache = PrefixCache(4)
    compute(cache, TOKENS)
    assert cache.hold([], 1) is None
    assert cache.match(block_hashes(TOKENS)) == 4


def test_matched_idle_blocks_do_not_count_as_room_for_new_ones() -> None:
    cache = PrefixCache(4)
    cache.release(compute(cache, TOKENS))
    assert cache.hold(block_hashes(TOKENS), 1) is None


def test_a_run_of_blocks_is_one_event_and_each_evicted_block_another() -> None:
    cache = PrefixCache(4)
    cache.release(compute(cache, TOKENS))
    (stored,) = cache.events
    assert isinstance(stored, BlockStored)
    assert (stored.block_hashes, stored.parent_block_hash) == (block_hashes(TOKENS), None)
    assert stored.token_ids == TOKENS
    cache.events = []
    cache.hold([], 2)
    assert cache.events == [BlockRemoved([block], "GPU", 0) for block in reversed(block_hashes(TOKENS)[2:])]


def test_a_block_that_follows_a_cached_one_names_its_parent() -> None:
    cache = PrefixCache(8)
    compute(cache, TOKENS[:32])
    cache.events = []
    compute(cache, TOKENS)
    (stored,) = cache.events
    assert isinstance(stored, BlockStored)
    assert stored.parent_block_hash == block_hashes(TOKENS)[1]
    assert stored.token_ids == TOKENS[32:]


def test_a_block_computed_twice_at_once_is_stored_once() -> None:
    cache = PrefixCache(8)
    hashes = block_hashes(TOKENS)
    first, second = cache.hold([], 4), cache.hold([], 4)
    assert first is not None
    assert second is not None
    for holding in (first, second):
        cache.name(holding, hashes, TOKENS)
    assert cache.held_blocks == 4
    assert len(cache.events) == 1


def test_clearing_is_refused_while_blocks_are_held() -> None:
    cache = PrefixCache(8)
    holding = compute(cache, TOKENS)
    assert not cache.clear()
    cache.release(holding)
    assert cache.clear()
    assert cache.match(block_hashes(TOKENS)) == 0
    assert cache.events[-1] == AllBlocksCleared()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.booleans()), max_size=40))
def test_events_tell_exactly_which_blocks_are_in_the_cache(requests: list[tuple[int, int, bool]]) -> None:
    cache = PrefixCache(12)
    held, known = [], set[int]()
    for document, blocks, is_released in requests:
        hashes = block_hashes([document] * blocks * BLOCK_TOKENS)
        matched = cache.match(hashes)
        holding = cache.hold(hashes[:matched], blocks - matched)
        if holding is None:
            continue
        cache.name(holding, hashes[matched:], [document] * (blocks - matched) * BLOCK_TOKENS)
        held.append(holding)
        if is_released:
            cache.release(held.pop(0))
    for event in cache.events:
        if isinstance(event, BlockStored):
            known.update(event.block_hashes)
        elif isinstance(event, BlockRemoved):
            known.difference_update(event.block_hashes)
    possible = [block for document in range(4) for block in block_hashes([document] * 6 * BLOCK_TOKENS)]
    assert known == {block for block in possible if cache.match([block])}
    for holding in held:
        cache.release(holding)
    assert cache.held_blocks == 0
    assert cache.hold([], 12) is not None
