"""A node that stops: nothing is received into a segment that is closed, and no segment is closed before another."""

import asyncio
from pathlib import Path

import pytest
from tests.ports import free_port

from tierline.node.config import NodeConfig, SegmentConfig
from tierline.node.server import running_node
from tierline.node.service import NodeService

CAPACITY = 4 * 1024 * 1024


async def test_bodies_end_before_any_segment_is_closed(
    tmp_path: Path, shared_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    clients: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []  # kept, for what nobody has is closed
    close, stop_verifying = NodeService.close, NodeService.stop_verifying

    def noted_close(service: NodeService, *, keeps_segment: bool) -> None:
        events.append(f"closed with {service.store.stats().slots} slots")
        close(service, keeps_segment=keeps_segment)

    def noted_stop(service: NodeService) -> None:
        events.append("verified")
        stop_verifying(service)

    monkeypatch.setattr(NodeService, "close", noted_close)
    monkeypatch.setattr(NodeService, "stop_verifying", noted_stop)
    config = NodeConfig(
        port=free_port(),
        socket=tmp_path / "node.sock",
        shared_memory_directory=shared_memory,
        shared_memory_name="first",
        capacity=CAPACITY,
        segments=[SegmentConfig(name="second", capacity=CAPACITY, buckets=["second"])],
        scrub_rate=0,
    )
    async with running_node(config) as node:
        for bucket in ("first", "second"):
            clients.append(await asyncio.open_connection("127.0.0.1", config.port))
            clients[-1][1].write(b"PUT /v1/kv/%s/k HTTP/1.1\r\nContent-Length: 1000\r\n\r\nhalf" % bucket.encode())
        while sum(segment.service.store.stats().slots for segment in node.segments) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert events == ["verified", "verified", "closed with 0 slots", "closed with 0 slots"]
    for _, writer in clients:
        writer.close()
