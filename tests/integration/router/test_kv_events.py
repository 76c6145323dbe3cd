"""Subscriptions over real ZeroMQ sockets: replay in both of its forms, gaps, restarts, and what speaks otherwise."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.integration.router.publisher import Publisher

from tierline.errors import UsageError
from tierline.router.events import subscriber
from tierline.router.events.addresses import parse_addresses
from tierline.router.events.index import PLACEMENT_BYTES, BlockIndex
from tierline.router.events.source import EventSource, SourceState
from tierline.router.events.subscriber import EventSubscriptions


def stored(number: int) -> dict[str, object]:
    return {"type": "BlockStored", "block_hashes": [number], "token_ids": [number] * 4, "block_size": 4}


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  (the test's own timeout ends this)
        await asyncio.sleep(0.01)


@pytest.fixture
async def subscriptions() -> AsyncIterator[EventSubscriptions]:
    subscriptions = EventSubscriptions(BlockIndex(1000 * PLACEMENT_BYTES), time.time)
    yield subscriptions
    await subscriptions.close()


def listen(subscriptions: EventSubscriptions, address: str) -> EventSource:
    (source,) = subscriptions.add("http://engine", parse_addresses(address))
    return source


@pytest.mark.parametrize("has_topic", [True, False])
async def test_what_was_published_before_is_replayed_and_what_comes_is_applied(
    tmp_path: Path, subscriptions: EventSubscriptions, has_topic: bool
) -> None:
    publisher = Publisher(tmp_path, has_topic=has_topic)
    try:
        for number in range(100):
            publisher.publish(stored(number))
        source = listen(subscriptions, publisher.address)
        await until(lambda: source.state is SourceState.EXACT)
        assert len(source.blocks) == 100
        publisher.publish(stored(100))
        await until(lambda: len(source.blocks) == 101)
        publisher.publish(stored(101), is_lost=True)
        publisher.publish(stored(102))
        await until(lambda: len(source.blocks) == 103)
        assert (source.state, source.gaps) == (SourceState.EXACT, 0)
    finally:
        publisher.close()


async def test_a_publisher_that_starts_again_is_believed_anew(
    tmp_path: Path, subscriptions: EventSubscriptions
) -> None:
    publisher = Publisher(tmp_path)
    publisher.publish(stored(1))
    publisher.publish(stored(2))
    source = listen(subscriptions, publisher.address)
    await until(lambda: source.state is SourceState.EXACT)
    publisher.close()
    await until(lambda: source.state is SourceState.LOST)
    publisher = Publisher(tmp_path)
    try:
        publisher.publish(stored(3))
        await until(lambda: source.state is SourceState.EXACT)
        assert len(source.blocks) == 1
    finally:
        publisher.close()


async def test_a_replay_that_nobody_answers_leaves_a_source_degraded(
    tmp_path: Path, subscriptions: EventSubscriptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "REPLAY_SECONDS", 0.2)
    publisher = Publisher(tmp_path, answers=False)
    try:
        publisher.publish(stored(1))
        source = listen(subscriptions, publisher.address)
        await until(lambda: source.wants_replay)
        publisher.publish(stored(2))
        await until(lambda: source.state is SourceState.DEGRADED)
        assert len(source.blocks) == 1
    finally:
        publisher.close()


async def test_messages_of_another_form_are_counted_and_skipped(
    tmp_path: Path, subscriptions: EventSubscriptions
) -> None:
    publisher = Publisher(tmp_path)
    try:
        source = listen(subscriptions, publisher.address)
        await until(lambda: source.state is SourceState.EXACT)
        publisher.send_raw(b"one frame")
        publisher.send_raw(b"topic", b"short", b"payload")
        publisher.publish(stored(0))
        await until(lambda: len(source.blocks) == 1)
        assert (source.state, subscriptions.by_endpoint["http://engine"][0].malformed) == (SourceState.EXACT, 2)
    finally:
        publisher.close()


async def test_an_endpoint_that_is_removed_is_forgotten(tmp_path: Path, subscriptions: EventSubscriptions) -> None:
    publisher = Publisher(tmp_path)
    try:
        publisher.publish(stored(1))
        source = listen(subscriptions, publisher.address)
        await until(lambda: source.state is SourceState.EXACT)
        await subscriptions.remove("http://engine")
        index = subscriptions.index
        assert isinstance(index, BlockIndex)
        assert (len(index), list(index.sources)) == (0, [])
    finally:
        publisher.close()


def test_without_pyzmq_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zmq.asyncio", None)
    with pytest.raises(UsageError, match="pip install"):
        EventSubscriptions(BlockIndex(1), time.time)


async def test_a_subscription_that_fails_in_an_unforeseen_way_is_begun_anew(
    tmp_path: Path, subscriptions: EventSubscriptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "RETRY_SECONDS", 0.05)
    publisher = Publisher(tmp_path)
    try:
        publisher.publish(stored(1))
        source = listen(subscriptions, publisher.address)
        await until(lambda: source.state is SourceState.EXACT)
        received = source.received
        monkeypatch.setattr(source, "received", lambda sequence, payload: 1 / 0)
        publisher.publish(stored(2))
        await until(lambda: source.state is SourceState.LOST)
        monkeypatch.setattr(source, "received", received)
        await until(lambda: source.state is SourceState.EXACT and len(source.blocks) == 2)
        publisher.publish(stored(3))
        await until(lambda: len(source.blocks) == 3)
    finally:
        publisher.close()
