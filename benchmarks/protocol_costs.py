"""What a lease and its release cost the node's protocols without sockets, and of that the store; in processor time.

Run ``python benchmarks/protocol_costs.py``: the least of several runs of each, a pair. A connection is called as the
event loop calls it, with the bytes that a client sends; what it writes is kept. With sockets each costs about twice as
much: the kernel's part, and caches that have gone cold between two requests.
"""
# ruff: noqa: T201

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import uvloop

from tierline.bench.programs import free_ports
from tierline.node import http_protocol
from tierline.node.access import Access, Pass
from tierline.node.config import NodeConfig
from tierline.node.local_protocol import LocalConnection
from tierline.node.metrics import NodeMetrics
from tierline.node.server import Node, running_node
from tierline.store import ObjectKey, Owner, Store
from tierline.wire import messages
from tierline.wire.framing import encode_frame

MIB = 1024 * 1024
OBJECTS = 2048
PAIRS = 3000
RUNS = 7
HEADERS = b" HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\n\r\n"
LEASE = b"POST /v1/kv/bench/object-0/leases?timeout_ms=0&ttl_s=60" + HEADERS
SENT_LEASE = bytes(encode_frame(messages.PrefixLease(1, "bench", ["object-0"], 60.0)))
SENT_PREFIX = bytes(encode_frame(messages.PrefixLease(2, "bench", [f"object-{n}" for n in range(OBJECTS)], 60.0)))


class Sink(asyncio.Transport):
    """Keeps the last that was written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.last = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        self.last = bytes(data)

    def is_reading(self) -> bool:
        """It always is."""
        return True

    def is_closing(self) -> bool:
        """It never is."""
        return False

    def abort(self) -> None:
        """Nothing is open."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is buffered."""


async def main() -> None:
    """Print the figures."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="tierline-bench-", dir="/dev/shm") as directory:
        folder = Path(directory)
        config = NodeConfig(
            port=port,
            socket=folder / "node.sock",
            shared_memory_directory=folder,
            shared_memory_name="segment",
            capacity=256 * MIB,
            scrub_rate=0,
        )
        async with running_node(config) as node:
            store = node.service.store
            fill(store)
            key = ObjectKey("bench", "object-0")
            print(f"the store alone: {least(lambda: store_pair(store, key)):.1f} µs")
            print(f"over HTTP: {least(http_pair(node)):.1f} µs")
            local, sink = local_connection(node)
            print(f"over the UNIX socket: {least(lambda: socket_pair(local, sink)):.1f} µs")
            prefixes = [await prefix_seconds(local, sink) for _ in range(3 * RUNS)]
            print(f"prefix lease of {OBJECTS} objects and its release: {1e3 * min(prefixes):.2f} ms")


def fill(store: Store) -> None:
    """Store objects of one page."""
    owner = Owner("bench", 0)
    for number in range(OBJECTS):
        slot = store.write(ObjectKey("bench", f"object-{number}"), 4096, owner)
        store.commit(slot.id, owner, 0)


def least(pair: Callable[[], None]) -> float:
    """Return the fewest microseconds that a pair took, over a run of them."""
    taken = []
    for _ in range(RUNS):
        started = time.thread_time()
        for _ in range(PAIRS):
            pair()
        taken.append((time.thread_time() - started) / PAIRS)
    return 1e6 * min(taken)


def store_pair(store: Store, key: ObjectKey) -> None:
    """Lease and release without a protocol."""
    found = store.lease(key, "bench", 60.0)
    assert found is not None
    store.release(found[0])


def http_pair(node: Node) -> Callable[[], None]:
    """Return what leases and releases on one connection."""
    connection, sink = node._http_connection("", lambda: None), Sink()
    connection.connection_made(sink)

    def receive(data: bytes) -> None:
        connection.get_buffer(-1)[: len(data)] = data
        connection.buffer_updated(len(data))

    def pair() -> None:
        receive(LEASE)
        lease = sink.last.partition(b'"id":"')[2].partition(b'"')[0]
        receive(b"POST /v1/leases/" + lease + b"/release" + HEADERS)

    return pair


def local_connection(node: Node) -> tuple[LocalConnection, Sink]:
    """Return a welcomed connection and where its replies go."""
    metrics = NodeMetrics(node.service, lambda: (0, 0), dict, float)
    connection = LocalConnection(
        node.segments.first,
        None,
        messages.Hello(messages.PROTOCOL_VERSION, "bench"),
        1,
        Pass(Access(None), ""),
        max_reserved_bytes=MIB,
        observer=metrics,
        stats=node.stats,
        connections=set(),
    )
    sink = Sink()
    connection.connection_made(sink)
    return connection, sink


def socket_pair(connection: LocalConnection, sink: Sink) -> None:
    """Lease and release on a connection of the UNIX socket."""
    connection.data_received(SENT_LEASE)
    reply: list[Any] = msgspec.msgpack.decode(sink.last[messages.FRAME_HEADER_BYTES :])
    connection.data_received(encode_frame(messages.Release(3, reply[2])))


async def prefix_seconds(connection: LocalConnection, sink: Sink) -> float:
    """Lease many objects at once and release them; return the processor time that the node took."""
    sink.last = b""
    started = time.thread_time()
    connection.data_received(SENT_PREFIX)
    while not sink.last:  # noqa: ASYNC110
        await asyncio.sleep(0)
    leasing = time.thread_time() - started
    reply: list[Any] = msgspec.msgpack.decode(sink.last[messages.FRAME_HEADER_BYTES :])
    release = encode_frame(messages.Release(4, reply[2]))
    started = time.thread_time()
    connection.data_received(release)
    return leasing + time.thread_time() - started


if __name__ == "__main__":
    with (
        mock.patch.object(http_protocol, "TURN_S", 60.0),  # a request that was kept waiting goes on at once
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(main())
