"""The publisher by itself: what it drops, lists and repeats, and that it waits for nobody."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from tierline.configuration import load
from tierline.errors import ConfigurationError, EnvironmentTooSmall, UsageError
from tierline.node import publishing
from tierline.node.config import NodeConfig
from tierline.node.publishing import EventKind, EventPublisher
from tierline.node.service import NodeService
from tierline.router.events.addresses import SourceAddress
from tierline.router.events.source import EventSource
from tierline.router.events.stored import StoreBlocks, StoreIndex
from tierline.router.events.subscriber import EventSubscriptions
from tierline.store import ObjectKey, Owner

OWNER = Owner("test", 1)


def name(number: int) -> str:
    return f"{number:064x}@bf16.test-1.c256.tp0-1.pp0-1.g0"


def store(service: NodeService, *numbers: int) -> None:
    for number in numbers:
        key = ObjectKey("b", name(number))
        service.commit(service.write(key, 1, OWNER).id, OWNER, 0, key, 1)


@pytest.fixture
async def publisher(service: NodeService, tmp_path: Path) -> AsyncIterator[EventPublisher]:
    publisher = EventPublisher(f"ipc://{tmp_path}/events")
    publisher.start([service.store])
    replays = asyncio.create_task(publisher.serve_replays())
    yield publisher
    replays.cancel()
    await asyncio.gather(replays, return_exceptions=True)
    publisher.close()


@pytest.fixture
async def source(publisher: EventPublisher, tmp_path: Path) -> AsyncIterator[EventSource[StoreBlocks]]:
    address = f"ipc://{tmp_path}/events"
    subscriptions: EventSubscriptions[StoreBlocks] = EventSubscriptions(StoreIndex(1024**2), time.time)
    [source] = subscriptions.add("node", [SourceAddress(address, f"{address}.replay")])
    await until(source, 0)
    yield source
    await subscriptions.close()


async def told(publisher: EventPublisher, kind: EventKind, changes: int) -> None:
    """Wait until the publisher has told of so many changes."""
    async with asyncio.timeout(60):
        while publisher.counts[kind] < changes:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until(source: EventSource[StoreBlocks], objects: int) -> None:
    async with asyncio.timeout(60):
        while not source.is_exact or len(source.blocks) != objects:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_what_is_dropped_is_counted_and_a_listing_makes_up_for_it(
    service: NodeService,
    publisher: EventPublisher,
    source: EventSource[StoreBlocks],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store(service, 1, 2)
    await until(source, 2)
    monkeypatch.setattr(publishing, "MOST_PENDING", 10)
    store(service, *range(3, 40))
    service.store.delete(ObjectKey("b", name(1)))
    await until(source, 38)
    assert publisher.counts["dropped"] >= 10
    assert publisher.replays["listing"] >= 1


async def test_messages_that_are_kept_no_more_are_made_up_for_by_a_listing(
    service: NodeService, publisher: EventPublisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "KEPT_BYTES", 500)
    monkeypatch.setattr(publishing, "CHANGES_PER_MESSAGE", 3)
    store(service, *range(30))
    await told(publisher, "stored", 30)
    subscriptions: EventSubscriptions[StoreBlocks] = EventSubscriptions(StoreIndex(1024**2), time.time)
    address = f"ipc://{tmp_path}/events"
    [late] = subscriptions.add("node", [SourceAddress(address, f"{address}.replay")])
    await until(late, 30)
    store(service, *range(30, 60))
    await until(late, 60)
    assert late.gaps == 0
    await subscriptions.close()


async def test_a_listing_made_while_the_store_goes_on_is_right_in_the_end(
    service: NodeService, publisher: EventPublisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "CHANGES_PER_MESSAGE", 2)
    monkeypatch.setattr(publishing, "KEPT_BYTES", 4_000)
    for changes in (30, 60, 90):
        store(service, *range(30))
        await told(publisher, "stored", changes)
        for number in range(30):
            service.store.delete(ObjectKey("b", name(number)))
        await told(publisher, "removed", changes)
    store(service, *range(30))
    subscriptions: EventSubscriptions[StoreBlocks] = EventSubscriptions(StoreIndex(1024**2), time.time)
    address = f"ipc://{tmp_path}/events"
    [late] = subscriptions.add("node", [SourceAddress(address, f"{address}.replay")])
    for number in range(30, 130):
        store(service, number)
        service.store.delete(ObjectKey("b", name(number - 30)))
        await asyncio.sleep(0.003)
    await until(late, 30)
    assert publisher.replays["listing"] >= 1
    await subscriptions.close()


async def test_the_pool_that_the_stores_are_in_is_told_and_listed(
    service: NodeService,
    publisher: EventPublisher,
    source: EventSource[StoreBlocks],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publishing, "KEPT_BYTES", 500)
    monkeypatch.setattr(publishing, "CHANGES_PER_MESSAGE", 3)
    publisher.joined_pool("team")
    publisher.joined_pool("team")  # which is no news
    store(service, *range(30))
    await until(source, 30)
    assert source.blocks.pool == "team"
    subscriptions: EventSubscriptions[StoreBlocks] = EventSubscriptions(StoreIndex(1024**2), time.time)
    address = f"ipc://{tmp_path}/events"
    [late] = subscriptions.add("node", [SourceAddress(address, f"{address}.replay")])
    await until(late, 30)
    assert (late.blocks.pool, publisher.replays["listing"]) == ("team", 1)
    publisher.left_pool()
    publisher.left_pool()
    store(service, 30)
    for told in (source, late):
        await until(told, 31)
        assert told.blocks.pool == ""
    await subscriptions.close()


async def test_objects_that_are_no_blocks_are_not_told_of(
    service: NodeService, publisher: EventPublisher, source: EventSource[StoreBlocks]
) -> None:
    for odd in ("plain", "model@1@0@xyz@bf16", "a@b@c@abc", "@" * 70):
        key = ObjectKey("b", odd)
        service.commit(service.write(key, 1, OWNER).id, OWNER, 0, key, 1)
    store(service, 1)
    await until(source, 1)
    assert publisher.counts["stored"] == 1


async def test_who_takes_nothing_holds_up_neither_the_store_nor_for_long_the_others(
    service: NodeService,
    publisher: EventPublisher,
    source: EventSource[StoreBlocks],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publishing, "STALL_S", 0.3)
    monkeypatch.setattr(publishing, "FLUSH_S", 0.0)
    for number in range(600):
        store(service, number)
        service.store.delete(ObjectKey("b", name(number - 1)))
        await asyncio.sleep(0.001)
    context = zmq.Context()
    stalled = context.socket(zmq.DEALER)
    for option, value in ((zmq.RCVHWM, 1), (zmq.RCVBUF, 4096), (zmq.LINGER, 0)):
        stalled.setsockopt(option, value)
    stalled.connect(f"ipc://{tmp_path}/events.replay")
    for _ in range(10):
        stalled.send_multipart([b"", bytes(8)])
    async with asyncio.timeout(60):
        while not publisher.replays["given_up"]:
            store(service, 1000)
            service.store.delete(ObjectKey("b", name(1000)))
            await asyncio.sleep(0.01)
    await until(source, 1)
    stalled.close()
    context.term()


async def test_who_takes_what_it_is_sent_is_never_given_up_however_long_the_node_stood_still(
    service: NodeService, publisher: EventPublisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "STALL_S", -1.0)  # what has passed when the first try is made
    store(service, *range(30))
    await told(publisher, "stored", 30)
    subscriptions: EventSubscriptions[StoreBlocks] = EventSubscriptions(StoreIndex(1024**2), time.time)
    address = f"ipc://{tmp_path}/events"
    [late] = subscriptions.add("node", [SourceAddress(address, f"{address}.replay")])
    await until(late, 30)
    assert not publisher.replays["given_up"]
    await subscriptions.close()


@pytest.mark.parametrize(("kind", "address"), [(zmq.DEALER, "events.replay"), (zmq.XSUB, "events")])
async def test_who_says_more_than_a_question_is_not_listened_to(
    publisher: EventPublisher, tmp_path: Path, kind: int, address: str
) -> None:
    context = zmq.asyncio.Context()
    talker = context.socket(kind)
    talker.setsockopt(zmq.LINGER, 0)
    monitor = talker.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    talker.connect(f"ipc://{tmp_path}/{address}")
    await talker.send(b"\x01" + bytes(4096))
    assert await monitor.poll(20_000)
    talker.disable_monitor()
    monitor.close()
    talker.close()
    context.term()


def test_only_this_machine_can_subscribe_unless_the_network_is_trusted() -> None:
    with pytest.raises(ConfigurationError, match="trusted_network"):
        load(NodeConfig, None, {"kv_events": "tcp://0.0.0.0:5560"})
    load(NodeConfig, None, {"kv_events": "tcp://0.0.0.0:5560", "trusted_network": True})
    for address in ("tcp://127.0.0.1:5560", "tcp://[::1]:5560", "tcp://localhost:5560", "ipc:///run/events"):
        assert load(NodeConfig, None, {"kv_events": address}).kv_events == address
    assert load(NodeConfig, None, {}).kv_events is None


@pytest.mark.parametrize("address", ["5560", "udp://127.0.0.1:5560", "tcp://127.0.0.1", "tcp://127.0.0.1:65535", ""])
def test_an_address_that_cannot_be_bound_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="--kv-events"):
        load(NodeConfig, None, {"kv_events": address})


async def test_an_address_in_use_is_named(publisher: EventPublisher, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentTooSmall, match="--kv-events: ipc:///nowhere/events cannot be used"):
        EventPublisher("ipc:///nowhere/events")


async def test_without_pyzmq_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zmq", None)
    with pytest.raises(UsageError, match=r"tierline\[events\]"):
        EventPublisher("ipc:///tmp/never")
