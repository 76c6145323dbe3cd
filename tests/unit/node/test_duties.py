"""Work beside serving: whatever fails of it, the rest goes on, and the failure is counted."""

import asyncio
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.ports import free_port

from tierline import duties
from tierline.duties import Duties
from tierline.node import server
from tierline.node.access import Access, Grant
from tierline.node.config import NodeConfig
from tierline.node.http_protocol import HttpConnection
from tierline.node.listening import Listener
from tierline.node.server import Node, running_node
from tierline.node.service import NodeService

SECRET = "a-secret-0123456789"
TOKENS = f"tokens: [{{name: engine, token: {SECRET}, rights: {{'*': [read]}}}}]"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WATCH_INTERVAL_S", 0.05)
    monkeypatch.setattr(duties, "PAUSE_S", 0.05)


@pytest.fixture
def config(tmp_path: Path, shared_memory: Path) -> NodeConfig:
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(TOKENS)
    return NodeConfig(
        port=free_port(),
        socket=tmp_path / "node.sock",
        shared_memory_directory=shared_memory,
        shared_memory_name="duties",
        capacity=4 * 1024 * 1024,
        tokens_file=tokens,
        scrub_rate=0,
    )


def failing(*_: object, **__: object) -> None:
    raise ValueError("a bug")


async def failures(node: Node, duty: str, at_least: float = 1) -> float:
    """Wait for so many failures of a duty; returns how many there are by then."""
    sample = f'tierline_node_failed_duties_total{{duty="{duty}"}}'
    async with asyncio.timeout(60):
        while True:
            lines = node.metrics(Grant("test", {}))[0].decode().splitlines()
            found = next(float(line.split()[1]) for line in lines if line.startswith(sample))
            if found >= at_least:
                return found
            await asyncio.sleep(0.05)


async def test_a_failing_deadline_keeps_no_name_from_being_put_back_and_no_token_from_being_withdrawn(
    config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HttpConnection, "enforce_deadline", failing)
    async with running_node(config) as node:
        _, writer = await asyncio.open_connection("127.0.0.1", config.port)
        before = await failures(node, "deadlines")
        (config.shared_memory_directory / "duties").unlink()
        assert config.tokens_file is not None
        config.tokens_file.write_text(TOKENS.replace("name: engine", "name: renamed"))
        os.utime(config.tokens_file, ns=(1, 1))
        await failures(node, "deadlines", before + 1)
        assert (config.shared_memory_directory / "duties").exists()
        assert node.access.grant_of(SECRET.encode()).name == "renamed"
        writer.close()


async def test_a_file_that_fails_in_an_unforeseen_way_is_counted_and_looked_at_again(
    config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Access, "reload", failing)
    async with running_node(config) as node:
        await failures(node, "tokens", 2)


async def test_a_clock_that_stops_is_started_again(config: NodeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NodeService, "expire", failing)
    async with running_node(config) as node:
        await failures(node, "clock", 2)


async def test_a_node_that_can_take_in_nobody_any_more_ends_and_says_why(
    config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Listener, "_start", failing)
    async with running_node(config) as node:
        serving = asyncio.create_task(node.serve_until(asyncio.Event()))
        _, writer = await asyncio.open_connection("127.0.0.1", config.port)
        with pytest.raises(ValueError, match="a bug"):
            await asyncio.wait_for(serving, 60)
        writer.close()


def test_a_failure_is_logged_once_a_minute_and_counted_each_time() -> None:
    now = 0.0
    guard = Duties(["room"], lambda: now)
    with capture_logs() as logged:
        for now in (1.0, 2.0, 30.0, 62.0):  # noqa: B007  (the clock above reads it)
            with guard.guarded("room"):
                failing()
    assert guard.failures["room"] == 4
    assert len(logged) == 2
