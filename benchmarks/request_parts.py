"""Where the node's processor time of a lease and its release goes: sending the answer, the protocol, all the rest.

Run ``python benchmarks/request_parts.py``: one client at a time, over HTTP and over the UNIX socket, with an event loop
that sleeps between two requests and with one that never does. The rest is the kernel's waking, polling and receiving,
and uvloop's part. What the protocol takes without any of it, ``python benchmarks/protocol_costs.py`` says.
"""
# ruff: noqa: T201

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import uvloop

from tierline.bench.plain_http import PlainHttp
from tierline.bench.programs import free_ports
from tierline.client import NodeClient
from tierline.node.config import NodeConfig
from tierline.node.http_protocol import HttpConnection
from tierline.node.local_protocol import LocalConnection
from tierline.node.server import running_node
from tierline.store import ObjectKey, Owner

MIB = 1024 * 1024
PAIRS = 2000
ROUNDS = 2


class Spent:
    """Processor time of each call of some methods."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def inside(self, method: Callable[..., None]) -> Callable[..., None]:
        """Return the method, timed."""

        def timed(*arguments: Any) -> None:
            started = time.thread_time()
            method(*arguments)
            self.seconds.append(time.thread_time() - started)

        return timed

    def a_pair(self) -> float:
        """Return the microseconds of two calls, at the median of all since the last time."""
        seconds, self.seconds = self.seconds, []
        return 2e6 * statistics.median(seconds)


class TimedTransport:
    """A transport whose writing is timed."""

    def __init__(self, transport: asyncio.Transport, sending: Spent) -> None:
        self._transport = transport
        self.write = sending.inside(transport.write)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def send(kind: str, address: str) -> None:
    """Lease and release, as one client does."""
    if kind == "HTTP":
        http = PlainHttp(int(address))
        for _ in range(PAIRS):
            _, body = http.request("POST", "/v1/kv/bench/object/leases?timeout_ms=0&ttl_s=60")
            lease = body.partition(b'"id":"')[2].partition(b'"')[0].decode()
            http.request("POST", f"/v1/leases/{lease}/release")
    else:
        with NodeClient(address, timeout_s=20.0) as client:
            for _ in range(PAIRS):
                client.release(client.prefix_lease("bench", ["object"], 60.0).lease)


async def main(answering: Spent) -> None:
    """Print the parts."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="tierline-bench-", dir="/dev/shm") as directory:
        folder = Path(directory)
        config = NodeConfig(
            port=port,
            socket=folder / "node.sock",
            shared_memory_directory=folder,
            shared_memory_name="segment",
            capacity=64 * MIB,
            scrub_rate=0,
        )
        async with running_node(config) as node:
            owner = Owner("bench", 0)
            slot = node.service.store.write(ObjectKey("bench", "object"), 4096, owner)
            node.service.store.commit(slot.id, owner, 0)
            for _ in range(ROUNDS):
                for kind, address in (("HTTP", str(port)), ("UNIX socket", str(config.socket_path()))):
                    for never_sleeps in (False, True):
                        await measure(kind, address, answering, never_sleeps=never_sleeps)


async def measure(kind: str, address: str, answering: Spent, *, never_sleeps: bool) -> None:
    """Print the parts of one kind of request, with a loop that sleeps or one that does not."""
    loop = asyncio.get_running_loop()
    sending, is_over = Spent(), False

    def stay_awake() -> None:
        if not is_over:
            loop.call_soon(stay_awake)

    def connect(connection: Any, transport: asyncio.Transport) -> None:
        made(connection, transport)
        connection._transport = TimedTransport(transport, sending)

    protocol = HttpConnection if kind == "HTTP" else LocalConnection
    made = protocol.connection_made
    with mock.patch.object(protocol, "connection_made", connect):
        if never_sleeps:
            stay_awake()
        answering.seconds.clear()
        before = time.thread_time()
        client = await asyncio.create_subprocess_exec(sys.executable, __file__, kind, address, env=dict(os.environ))
        await client.wait()
        all_of_it = 1e6 * (time.thread_time() - before) / PAIRS
        is_over = True
    sent, answered = sending.a_pair(), answering.a_pair()
    parts = f"protocol {answered - sent:.0f} µs a pair, sending {sent:.0f}"
    if not never_sleeps:  # else the loop's own turns are most of it
        parts += f", the rest {all_of_it - answered:.0f}"
    print(f"{kind}, the loop {'never sleeps' if never_sleeps else 'sleeps between requests'}: {parts}")


if __name__ == "__main__":
    if sys.argv[1:]:
        send(*sys.argv[1:])
    else:
        answering = Spent()
        with (
            mock.patch.object(LocalConnection, "data_received", answering.inside(LocalConnection.data_received)),
            mock.patch.object(HttpConnection, "buffer_updated", answering.inside(HttpConnection.buffer_updated)),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(main(answering))
