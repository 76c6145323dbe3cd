"""Nodes that start beside others on the same socket: who was first serves, and the others leave it what it has."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.ports import free_port

from tierline.errors import EnvironmentTooSmall, SegmentError
from tierline.node import server
from tierline.node.config import NodeConfig, SegmentConfig
from tierline.node.leftovers import is_stale_socket, remove_stale_socket
from tierline.node.server import running_node
from tierline.store import Segment, Store

CAPACITY = 4 * 1024 * 1024
MakeConfig = Callable[[str], NodeConfig]


@pytest.fixture
def make_config(tmp_path: Path, shared_memory: Path) -> MakeConfig:
    """Make the settings of a node with a segment of this name; all have one socket."""

    def make(segment: str) -> NodeConfig:
        return NodeConfig(
            port=free_port(),
            socket=tmp_path / "node.sock",
            shared_memory_directory=shared_memory,
            shared_memory_name=segment,
            capacity=CAPACITY,
            scrub_rate=0,
        )

    return make


async def connect(config: NodeConfig) -> None:
    _, writer = await asyncio.open_unix_connection(config.socket_path())
    writer.close()


async def test_who_starts_while_another_adopts_the_segment_leaves_that_its_socket(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_adopting, goes_on = threading.Event(), threading.Event()
    open_store = server._open_store

    def open_slowly(config: NodeConfig, segment: SegmentConfig) -> Store:
        store = open_store(config, segment)
        is_adopting.set()
        assert goes_on.wait(60)
        return store

    async def serve() -> None:
        async with running_node(config):
            await connect(config)

    monkeypatch.setattr(server, "_open_store", open_slowly)
    config = make_config("only")
    first = asyncio.create_task(serve())
    assert await asyncio.to_thread(is_adopting.wait, 60)
    try:
        with pytest.raises(SegmentError, match="in use by another node store"):
            async with running_node(config):
                pass
    finally:
        goes_on.set()
    await first


async def test_a_socket_that_is_in_use_is_found_before_the_segment_is_touched(
    make_config: MakeConfig, shared_memory: Path
) -> None:
    first = make_config("first")
    async with running_node(first):
        with pytest.raises(EnvironmentTooSmall, match="another node listens on"):
            async with running_node(make_config("second")):
                pass
        await connect(first)
    assert not (shared_memory / "second").exists()
    assert not first.socket_path().exists()


async def test_a_socket_that_was_taken_while_a_segment_was_adopted_stays_who_took_it_s(
    make_config: MakeConfig, shared_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_config("first")
    async with running_node(first):
        monkeypatch.setattr(server, "is_stale_socket", lambda path: False)  # it was free when the second one looked
        with pytest.raises(EnvironmentTooSmall, match="another node listens on"):
            async with running_node(make_config("second")):
                pass
        await connect(first)
    Segment.open(shared_memory, "second", CAPACITY).close()


def test_a_socket_of_a_dead_node_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert remove_stale_socket(path)
    assert not path.exists()
    assert not remove_stale_socket(path)


def test_a_node_that_more_clients_wait_for_than_may_is_no_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    with contextlib.ExitStack() as sockets:
        busy = sockets.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(str(path))
        busy.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = sockets.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        with pytest.raises(EnvironmentTooSmall, match="another node listens on"):
            remove_stale_socket(path)
    assert path.exists()


def test_a_socket_that_its_node_removes_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "node.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))

    class Late(socket.socket):
        def connect(self, address: Any) -> None:
            path.unlink()
            super().connect(address)

    monkeypatch.setattr(socket, "socket", Late)
    assert not is_stale_socket(path)
