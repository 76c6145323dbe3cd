"""The exact index against a naive model that keeps whole prompts, and what its rules say of odd events."""

import gc
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tierline.router.events.decoding import AllBlocksCleared, BlockRemoved, BlockStored, Event, EventBatch
from tierline.router.events.index import PLACEMENT_BYTES, WAITING_BLOCKS, BlockIndex, SourceBlocks, Tier
from tierline.router.events.keys import chain, token_bytes

SIZE = 2
MEDIA = {Tier.GPU: "GPU", Tier.HOST: "CPU", Tier.STORAGE: "STORAGE"}


def prompt(text: str) -> list[int]:
    """Each letter is a block."""
    return [number for letter in text for number in (ord(letter), 7)]


def name(text: str) -> int:
    """What an engine calls the last block of a prefix."""
    return int.from_bytes(text.encode(), "big")


def stored(text: str, known: int = 0, tier: Tier = Tier.GPU, **fields: object) -> BlockStored:
    """The event of a prompt, of which the first ``known`` blocks were held before."""
    ends = range(known + 1, len(text) + 1)
    return BlockStored(
        [name(text[:end]) for end in ends],
        name(text[:known]) if known else None,
        prompt(text[known:]),
        SIZE,
        medium=MEDIA[tier],
        **fields,  # type: ignore[arg-type]
    )


def removed(*texts: str, tier: Tier = Tier.GPU, group: int | None = None) -> BlockRemoved:
    return BlockRemoved([name(text) for text in texts], MEDIA[tier], group)


def apply(source: SourceBlocks, *events: Event) -> None:
    source.apply(EventBatch(0.0, list(events), None, 0))


def depth(index: BlockIndex, source: SourceBlocks, text: str, tier: Tier = Tier.SHARED, **identity: Any) -> int:
    return index.match(chain(token_bytes(prompt(text)), SIZE, **identity))[tier].get(source.slot, 0)


def roomy() -> BlockIndex:
    return BlockIndex(10_000 * PLACEMENT_BYTES)


TEXTS = st.text("ab", min_size=1, max_size=6)
SOURCES = 3


class IndexIsASetOfPrefixesForEachSourceAndTier(RuleBasedStateMachine):
    """The model keeps, for each source and tier, the prefixes that are held and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.index = roomy()
        self.sources = [self.index.open() for _ in range(SOURCES)]
        self.model: list[dict[Tier, Counter[str]]] = [{tier: Counter() for tier in MEDIA} for _ in range(SOURCES)]

    @rule(number=st.integers(0, SOURCES - 1), text=TEXTS, tier=st.sampled_from(sorted(MEDIA)), known=st.integers(0, 5))
    def store(self, number: int, text: str, tier: Tier, known: int) -> None:
        known = min(known, len(text) - 1)
        held = self.model[number]
        while known and text[:known] not in held[tier]:
            known -= 1
        apply(self.sources[number], stored(text, known, tier))
        for end in range(known + 1, len(text) + 1):
            if tier is Tier.GPU or text[:end] not in held[tier]:
                held[tier][text[:end]] += 1

    @rule(number=st.integers(0, SOURCES - 1), text=TEXTS, tier=st.sampled_from(sorted(MEDIA)))
    def remove(self, number: int, text: str, tier: Tier) -> None:
        others = self.model[number][tier]
        text = max((other for other in others if other.startswith(text)), key=len, default=text)  # the end goes first
        apply(self.sources[number], removed(text, tier=tier))
        self.model[number][tier] -= Counter([text])

    @rule(number=st.integers(0, SOURCES - 1))
    def clear_the_engine(self, number: int) -> None:
        apply(self.sources[number], AllBlocksCleared())
        self.model[number][Tier.GPU].clear()

    @rule(number=st.integers(0, SOURCES - 1))
    def forget(self, number: int) -> None:
        self.index.close(self.sources[number])
        self.sources[number] = self.index.open()
        self.model[number] = {tier: Counter() for tier in MEDIA}

    @rule(text=TEXTS)
    def match(self, text: str) -> None:
        for source, held in zip(self.sources, self.model, strict=True):
            for tier in MEDIA:
                faster = [held[faster] for faster in MEDIA if faster <= tier]
                run = 0
                while run < len(text) and any(text[: run + 1] in prefixes for prefixes in faster):
                    run += 1
                assert depth(self.index, source, text, tier) == run

    @invariant()
    def it_holds_as_much_as_the_model(self) -> None:
        assert [len(source) for source in self.sources] == [sum(map(len, held.values())) for held in self.model]


TestIndex = IndexIsASetOfPrefixesForEachSourceAndTier.TestCase
TestIndex.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@given(st.permutations([(3, 6), (1, 3), (0, 1), (6, 9)]))
def test_a_child_may_be_told_before_its_parent(order: Sequence[tuple[int, int]]) -> None:
    index = roomy()
    source = index.open()
    for known, end in order:
        apply(source, stored("abcdefghi"[:end], known))
    assert depth(index, source, "abcdefghi") == 9
    assert source.waiting == 0


def test_a_child_that_was_removed_while_it_waited_is_not_held() -> None:
    index = roomy()
    source = index.open()
    apply(source, stored("abc", known=1), removed("abc"), stored("a"))
    assert depth(index, source, "abc") == 2


def test_what_waits_is_bounded() -> None:
    index = roomy()
    source = index.open()
    for number in range(WAITING_BLOCKS + 10):
        apply(source, BlockStored([number], -1 - number, [1, 2], SIZE))
    assert (source.waiting, source.orphans_dropped, len(source)) == (WAITING_BLOCKS, 10, 0)


def test_a_placeholder_is_the_block_of_that_name_whether_told_before_or_after() -> None:
    index = roomy()
    source = index.open()
    placeholders = BlockStored([name("a"), name("ab")], medium="CPU")
    apply(source, stored("a"), placeholders, stored("ab", known=1), removed("a", "ab"))
    assert depth(index, source, "ab", Tier.GPU) == 0
    assert depth(index, source, "ab", Tier.HOST) == 2


def test_a_block_stored_twice_is_held_until_it_was_removed_twice() -> None:
    index = roomy()
    source = index.open()
    apply(source, stored("ab"), stored("ab"), removed("ab"))
    assert depth(index, source, "ab") == 2
    apply(source, removed("ab"))
    assert depth(index, source, "ab") == 1


def test_long_prompts_are_followed_to_where_each_source_stops() -> None:
    index = roomy()
    sources = [index.open() for _ in range(3)]
    tokens = list(range(4000))
    for source, blocks in zip(sources, (700, 512, 2000), strict=True):
        apply(source, BlockStored(list(range(blocks)), None, tokens[: 2 * blocks], SIZE))
    depths = index.match(chain(token_bytes(tokens), SIZE))[Tier.SHARED]
    assert [depths[source.slot] for source in sources] == [700, 512, 2000]


def test_adapters_and_salts_have_blocks_of_their_own() -> None:
    index = roomy()
    source = index.open()
    apply(
        source,
        stored("abc", lora_name="poet", extra_keys=[["poet", "secret"], ["poet"], ["poet"]]),
        stored("xy", extra_keys=[["salt"], None]),
    )
    assert depth(index, source, "abc", adapter="poet", salt="secret") == 3
    assert depth(index, source, "xy", salt="salt") == 2
    others: list[dict[str, Any]] = [{}, {"adapter": "poet"}, {"salt": "secret"}, {"adapter": "other", "salt": "secret"}]
    for identity in others:
        assert depth(index, source, "abc", **identity) == 0
    assert depth(index, source, "xy") == 0


def test_images_have_blocks_of_their_own() -> None:
    index = roomy()
    source = index.open()
    apply(source, stored("abc", extra_keys=[None, [["image", 0]], None]))
    assert depth(index, source, "abc") == 1


def test_an_adapter_without_a_name_is_ignored() -> None:
    index = roomy()
    source = index.open()
    apply(source, stored("ab", lora_id=3))
    assert (len(source), source.ignored) == (0, 1)


def test_only_the_first_group_that_attends_to_whole_prompts_counts() -> None:
    index = roomy()
    source = index.open()
    apply(
        source,
        stored("ab", group_idx=0, kv_cache_spec_kind="sliding_window"),
        stored("ab", group_idx=1, kv_cache_spec_kind="full_attention"),
        stored("ab", group_idx=2, kv_cache_spec_kind="full_attention"),
        removed("ab", group=0),
        removed("ab", group=2),
    )
    assert (depth(index, source, "ab"), source.ignored) == (2, 2)
    apply(source, removed("ab", group=1))
    assert depth(index, source, "ab") == 1


def test_a_masked_run_says_nothing_of_prefixes() -> None:
    index = roomy()
    source = index.open()
    apply(source, BlockStored([1], None, prompt("ab"), SIZE))
    assert (len(source), source.ignored) == (0, 1)


def test_tokens_in_blocks_of_none_say_nothing_and_do_not_decide_the_size_of_a_block() -> None:
    index = roomy()
    source = index.open()
    apply(source, BlockStored([1], None, prompt("a"), 0))
    assert (source.block_tokens, source.ignored) == (None, 1)
    apply(source, stored("ab"))
    assert depth(index, source, "ab") == 2


def test_what_one_has_in_a_shared_store_all_have_that_can_read_it() -> None:
    index = roomy()
    writer, reader = index.open(), index.open()
    apply(writer, BlockStored([1, 2], None, prompt("ab"), SIZE, medium="STORAGE", locality="REMOTE"))
    apply(reader, stored("a"))
    keys = chain(token_bytes(prompt("ab")), SIZE)
    assert index.match(keys)[Tier.SHARED] == {writer.slot: 2, reader.slot: 2}
    assert index.match(keys)[Tier.STORAGE] == {reader.slot: 1}
    assert index.match(keys, reach=reader.bit)[Tier.SHARED] == {reader.slot: 1}


def test_beyond_the_budget_what_was_told_first_is_dropped_and_the_source_is_not_whole() -> None:
    budget = 2000 * PLACEMENT_BYTES
    gc.collect()
    tracemalloc.start()
    try:
        index = BlockIndex(budget)
        sources = [index.open(), index.open()]
        for number in range(1000):
            digest = number.to_bytes(31, "big")
            names: list[int | bytes] = [digest + bytes([block]) for block in range(10)]
            apply(sources[number % 2], BlockStored(names, None, list(range(20 * number, 20 * number + 20)), SIZE))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert all(900 < len(source) <= 1000 for source in sources)
    assert not any(source.is_whole for source in sources)
    assert peak <= budget
    assert index.size_bytes <= budget


def test_a_source_that_is_closed_leaves_nothing_and_its_bit_to_the_next() -> None:
    index = roomy()
    first, second = index.open(), index.open()
    apply(first, stored("ab"))
    apply(second, stored("ab"))
    index.close(first)
    assert len(index) == 2
    assert depth(index, index.open(), "ab") == 0
    assert depth(index, second, "ab") == 2


def test_blocks_are_expected_until_events_tell_of_them_or_their_time_is_over() -> None:
    index = roomy()
    source = index.open()
    keys = chain(token_bytes(prompt("abcd")), SIZE)
    apply(source, stored("a"))
    source.expect(keys, now=0.0, until=2.0)
    assert (source.expected.run(keys, 1, 1.9), source.expected.run(keys, 1, 2.0)) == (3, 0)
    apply(source, stored("ab", known=1), removed("ab"))
    assert source.expected.run(keys, 1, 1.0) == 0
    source.expect(keys, now=5.0, until=7.0)
    source.expect(keys[:1], now=8.0, until=10.0)
    assert not source.expected
    source.expect(keys, now=8.0, until=10.0)
    source.expected.withdraw(keys[2:])
    assert source.expected.run(keys, 1, 9.0) == 1
    apply(source, AllBlocksCleared())
    assert not source.expected
