"""A process that stands still for longer than a call may take: an answer that came meanwhile is one."""

import asyncio
import select
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.ports import free_port

from tierline.client import AsyncNodeClient, NodeClient
from tierline.node.config import NodeConfig
from tierline.node.server import running_node

TIMEOUT_S = 0.05


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Path]:
    """The socket of a node that goes on while the test stands still."""
    is_ready, stops = threading.Event(), threading.Event()

    async def serve(config: NodeConfig) -> None:
        async with running_node(config):
            is_ready.set()
            await asyncio.to_thread(stops.wait)

    with tempfile.TemporaryDirectory(prefix="tierline-test-", dir="/dev/shm") as directory:
        config = NodeConfig(
            port=free_port(),
            socket=tmp_path / "node.sock",
            shared_memory_directory=Path(directory),
            shared_memory_name="segment",
            capacity=4 * 1024 * 1024,
            scrub_rate=0,
        )
        serving = threading.Thread(target=asyncio.run, args=(serve(config),))
        serving.start()
        try:
            assert is_ready.wait(60)
            yield config.socket_path()
        finally:
            stops.set()
            serving.join()


def stand_still_until_it_is_late(descriptor: int) -> None:
    assert select.select([descriptor], [], [], 60)[0], "there is no answer"
    time.sleep(2 * TIMEOUT_S)


def test_what_came_while_a_blocking_client_stood_still_is_its_answer(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with NodeClient(node, timeout_s=30) as client:
        send = client._send

        def send_and_stand_still() -> None:
            monkeypatch.undo()
            send()
            stand_still_until_it_is_late(client._socket.fileno())

        monkeypatch.setattr(client, "_send", send_and_stand_still)
        assert client.release("none", timeout_s=TIMEOUT_S) == 0


async def test_what_came_while_an_asyncio_client_stood_still_is_its_answer(node: Path) -> None:
    async with await AsyncNodeClient.connect(node, timeout_s=30) as client:
        releasing = asyncio.create_task(client.release("none", timeout_s=TIMEOUT_S))
        await asyncio.sleep(0)
        assert client._connection._transport is not None
        stand_still_until_it_is_late(client._connection._transport.get_extra_info("socket").fileno())
        assert await releasing == 0
