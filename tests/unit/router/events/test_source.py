"""What a source believes after losses, restarts and replays, against a publisher whose cache is known."""

import random

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tierline.router.events.index import PLACEMENT_BYTES, BlockIndex, Tier
from tierline.router.events.keys import chain, token_bytes
from tierline.router.events.source import EventSource, SourceState

SIZE = 4


class Publisher:
    """An engine whose prompts are single blocks, what it sent, and what it can send again."""

    def __init__(self, buffer: int = 1000, seed: int = 0) -> None:
        self.buffer = buffer
        self.sent: list[bytes] = []
        self.cache: set[int] = set()
        self.dice = random.Random(seed)

    def publish(self) -> tuple[int, bytes]:
        if self.cache and self.dice.random() < 0.4:
            block = self.dice.choice(sorted(self.cache))
            self.cache.remove(block)
            event: dict[str, object] = {"type": "BlockRemoved", "block_hashes": [block], "medium": "GPU"}
        else:
            block = self.dice.randrange(50)
            while block in self.cache:
                block = self.dice.randrange(100)
            self.cache.add(block)
            event = {"type": "BlockStored", "block_hashes": [block], "token_ids": [block] * SIZE, "block_size": SIZE}
        payload = msgspec.msgpack.encode([self.dice.random(), [event]])
        self.sent.append(payload)
        return len(self.sent) - 1, payload

    def replay(self, start: int, source: EventSource) -> int | None:
        for sequence in range(max(start, len(self.sent) - self.buffer), len(self.sent)):
            source.replayed(sequence, self.sent[sequence])
        return source.replay_ended()


def make(*, has_replay: bool = True) -> EventSource:
    return EventSource(BlockIndex(5000 * PLACEMENT_BYTES).open(), has_replay=has_replay, clock=lambda: 10.0)


def known(source: EventSource) -> set[int]:
    return {block for block in range(100) if holds(source, block)}


def holds(source: EventSource, block: int) -> bool:
    masks = source.blocks._masks[Tier.GPU]
    return bool(masks.get(chain(token_bytes([block] * SIZE), SIZE)[0], 0))


def answer(source: EventSource, publisher: Publisher, start: int | None) -> None:
    while start is not None:
        start = publisher.replay(start, source)


def test_events_from_the_first_on_are_exact() -> None:
    source, publisher = make(has_replay=False), Publisher()
    assert source.connected() is None
    assert source.state is SourceState.BOOT
    for _ in range(50):
        assert source.received(*publisher.publish()) is None
    assert (source.state, known(source), source.messages) == (SourceState.EXACT, publisher.cache, 50)


def test_one_who_comes_late_replays_what_was_missed() -> None:
    source, publisher = make(), Publisher()
    for _ in range(50):
        publisher.publish()
    answer(source, publisher, source.connected())
    assert (source.state, known(source)) == (SourceState.EXACT, publisher.cache)


def test_a_publisher_that_sent_nothing_yet_is_exact() -> None:
    source = make()
    answer(source, Publisher(), source.connected())
    assert source.state is SourceState.EXACT


def test_one_who_comes_late_without_a_replay_knows_only_what_is_true() -> None:
    source, publisher = make(has_replay=False), Publisher()
    source.connected()
    for _ in range(30):
        publisher.publish()
    for _ in range(30):
        source.received(*publisher.publish())
    assert source.state is SourceState.DEGRADED
    assert known(source) < publisher.cache


def test_a_replay_that_begins_too_late_leaves_a_source_degraded() -> None:
    source, publisher = make(), Publisher(buffer=10)
    for _ in range(50):
        publisher.publish()
    answer(source, publisher, source.connected())
    assert source.state is SourceState.DEGRADED
    assert known(source) < publisher.cache


def test_live_messages_wait_for_a_replay_and_are_applied_once() -> None:
    source, publisher = make(), Publisher()
    for _ in range(20):
        publisher.publish()
    asked = source.connected()
    for _ in range(5):
        assert source.received(*publisher.publish()) is None
    answer(source, publisher, asked)
    source.received(*publisher.publish())
    assert (source.state, known(source), source.messages) == (SourceState.EXACT, publisher.cache, 26)


def test_a_gap_is_closed_by_a_replay() -> None:
    source, publisher = make(), Publisher()
    answer(source, publisher, source.connected())
    source.received(*publisher.publish())
    publisher.publish()
    asked = source.received(*publisher.publish())
    assert asked == 0
    answer(source, publisher, asked)
    assert (source.state, known(source), source.gaps) == (SourceState.EXACT, publisher.cache, 0)


def test_a_gap_that_cannot_be_closed_costs_what_was_known() -> None:
    source, publisher = make(has_replay=False), Publisher()
    source.connected()
    for _ in range(20):
        source.received(*publisher.publish())
    publisher.publish()
    source.received(*publisher.publish())
    assert (source.state, source.gaps) == (SourceState.DEGRADED, 1)
    assert known(source) <= publisher.cache


def test_a_restart_is_seen_by_its_numbers() -> None:
    source = make(has_replay=False)
    source.connected()
    old, new = Publisher(), Publisher(seed=1)
    for _ in range(9):
        source.received(*old.publish())
    for _ in range(3):
        source.received(*new.publish())
    assert (source.state, known(source), source.restarts) == (SourceState.EXACT, new.cache, 1)


def test_a_restart_behind_a_broken_connection_is_seen_by_the_replay_even_with_the_same_number() -> None:
    source, old, new = make(), Publisher(), Publisher(seed=1)
    answer(source, old, source.connected())
    for _ in range(9):
        source.received(*old.publish())
    source.disconnected()
    assert source.state is SourceState.LOST
    for _ in range(9):
        new.publish()
    answer(source, new, source.connected())
    assert (source.state, known(source)) == (SourceState.EXACT, new.cache)


def test_a_connection_that_comes_back_makes_the_same_publisher_exact_again() -> None:
    source, publisher = make(), Publisher()
    answer(source, publisher, source.connected())
    for _ in range(9):
        source.received(*publisher.publish())
    source.disconnected()
    for _ in range(5):
        publisher.publish()
    answer(source, publisher, source.connected())
    assert (source.state, known(source)) == (SourceState.EXACT, publisher.cache)


def test_without_a_replay_the_next_number_shows_that_nothing_was_missed() -> None:
    source, publisher = make(has_replay=False), Publisher()
    source.connected()
    source.received(*publisher.publish())
    source.disconnected()
    source.connected()
    assert source.state is SourceState.LOST
    source.received(*publisher.publish())
    assert (source.state, known(source)) == (SourceState.EXACT, publisher.cache)


def test_a_replay_that_is_not_answered_is_asked_for_again_later() -> None:
    source, publisher = make(), Publisher()
    for _ in range(5):
        publisher.publish()
    source.connected()
    source.received(*publisher.publish())
    assert source.replay_failed() is None
    assert source.state is SourceState.DEGRADED
    assert source.wants_replay
    answer(source, publisher, source.ask_again())
    assert (source.state, known(source)) == (SourceState.EXACT, publisher.cache)


def test_a_payload_that_cannot_be_read_costs_what_was_known() -> None:
    source, publisher = make(has_replay=False), Publisher()
    source.connected()
    source.received(*publisher.publish())
    assert source.received(1, b"\xc1") is None
    assert (source.state, known(source), source.unreadable) == (SourceState.DEGRADED, set(), 1)


def drops(publisher: Publisher, source: EventSource, start: int, dropped: range) -> int | None:
    """Have a replay come without some of its messages."""
    for sequence in range(start, len(publisher.sent)):
        if sequence not in dropped:
            source.replayed(sequence, publisher.sent[sequence])
    return source.replay_ended()


def test_a_replay_that_comes_with_a_hole_is_asked_for_from_there_on() -> None:
    source, publisher = make(), Publisher()
    for _ in range(60):
        publisher.publish()
    start = source.connected()
    for hole in (range(10, 20), range(30, 40), range(41, 45), range(46, 47), range(50, 55)):
        assert start is not None
        start = drops(publisher, source, start, hole)
        assert not source.is_exact
        assert (start, known(source) <= set(range(100))) == (hole.start - 1, True)
    answer(source, publisher, start)
    assert (source.state, source.gaps, known(source)) == (SourceState.EXACT, 0, publisher.cache)


@pytest.mark.parametrize("first", [1, 10])
def test_a_hole_that_stays_costs_what_was_known_and_is_tried_again_later(first: int) -> None:
    source, publisher = make(), Publisher()
    for _ in range(60):
        publisher.publish()
    start, asked = source.connected(), 0
    while start is not None and (asked := asked + 1) < 20:
        start = drops(publisher, source, start, range(first, 20))
    assert (start, source.state, source.gaps, known(source)) == (None, SourceState.DEGRADED, 1, set())
    assert source.wants_replay
    answer(source, publisher, source.ask_again())
    assert (source.state, known(source)) == (SourceState.EXACT, publisher.cache)


def test_the_age_of_the_last_batch_is_told() -> None:
    source = make(has_replay=False)
    source.received(0, msgspec.msgpack.encode([7.5, []]))
    assert source.lag_s == 2.5


STEPS = st.lists(
    st.sampled_from(["publish", "publish", "lose", "restart", "disconnect", "answer", "fail", "retry"]), max_size=40
)


@pytest.mark.parametrize("has_replay", [True, False])
@settings(max_examples=150, deadline=None)
@given(steps=STEPS, buffer=st.sampled_from([0, 2, 1000]), seed=st.integers(0, 9))
@example(steps=["lose", "publish", "lose", "fail"], buffer=1000, seed=0)
def test_whatever_happens_exact_means_exact_and_nothing_false_is_ever_known(
    has_replay: bool, steps: list[str], buffer: int, seed: int
) -> None:
    source, publisher = make(has_replay=has_replay), Publisher(buffer, seed)
    asked = source.connected()
    for number, step in enumerate(steps):
        if step == "publish":
            asked = told(source, publisher, asked)
        elif step == "lose":
            publisher.publish()
        elif step in ("restart", "disconnect"):
            source.disconnected()
            if step == "restart":
                publisher = Publisher(buffer, seed + number + 1)
            asked = source.connected()
            if not has_replay:  # else it might go on with the number that the last one left off with
                asked = told(source, publisher, asked)
        elif step == "answer" and asked is not None:
            asked = publisher.replay(asked, source)
        elif step == "fail" and asked is not None:
            asked = source.replay_failed()
        elif step == "retry" and asked is None and source.wants_replay:
            asked = source.ask_again()
    answer(source, publisher, told(source, publisher, asked))
    if source.state is SourceState.EXACT:
        assert known(source) == publisher.cache
    else:
        assert known(source) <= publisher.cache
    if has_replay and buffer == 1000:
        assert source.state is SourceState.EXACT or source.wants_replay


def told(source: EventSource, publisher: Publisher, asked: int | None) -> int | None:
    """Publish; return from where a replay is awaited now."""
    asks = source.received(*publisher.publish())
    return asked if asks is None and source.awaits_replay else asks


def test_a_degraded_source_is_exact_again_when_its_engine_clears_its_cache() -> None:
    source, publisher = make(has_replay=False), Publisher()
    source.connected()
    publisher.publish()
    source.received(*publisher.publish())
    assert source.state is SourceState.DEGRADED
    source.received(2, msgspec.msgpack.encode([1.0, [{"type": "AllBlocksCleared"}]]))
    assert (source.state, known(source)) == (SourceState.EXACT, set())


def test_a_source_is_not_believed_while_a_replay_runs() -> None:
    source, publisher = make(), Publisher()
    for _ in range(9):
        publisher.publish()
    source.connected()
    source.replayed(0, publisher.sent[0])
    assert (source.is_exact, source.is_telling) == (False, False)
    for sequence in range(1, 9):
        source.replayed(sequence, publisher.sent[sequence])
    source.replay_ended()
    assert (source.is_exact, source.is_telling) == (True, True)
    source.received(20, publisher.sent[0])
    assert (source.is_exact, source.is_telling) == (False, False)
