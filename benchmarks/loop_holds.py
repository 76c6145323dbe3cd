"""How long one turn of the node's event loop is held, in processor time, while sixteen clients PUT without a pause.

Run ``python benchmarks/loop_holds.py [READ_KIB] [--greedy | --all]``: the size of a read, 256 as the node has it; with
``--greedy`` a filled read does not end a connection's turn, and uvloop reads on as it does by itself; with ``--all``
every sender may receive in each turn of the loop, and not a few of them.
"""
# ruff: noqa: T201

import asyncio
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import uvloop

from tierline.bench.programs import free_ports
from tierline.bench.put_load import PutLoad
from tierline.node import http_protocol, turns, upload
from tierline.node.config import NodeConfig
from tierline.node.server import running_node

MIB = 1024 * 1024
WRITERS = 16
SECONDS = 6.0


async def main() -> None:
    """Print the percentiles."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="tierline-bench-", dir="/dev/shm") as directory:
        folder = Path(directory)
        config = NodeConfig(
            port=port,
            socket=folder / "node.sock",
            shared_memory_directory=folder,
            shared_memory_name="segment",
            capacity=1200 * MIB,
        )
        async with running_node(config) as node:
            load = await asyncio.to_thread(PutLoad, port, WRITERS, 32 * MIB)
            before, used, started = node.service.store.stats().commits, time.process_time(), time.perf_counter()
            taken = await turns_taken()
            stored = (node.service.store.stats().commits - before) / 32
            rate = stored / (time.perf_counter() - started)
            used = (time.process_time() - used) / stored
            await asyncio.to_thread(load.__exit__, None, None, None)
    shown = ", ".join(f"{percent} % meet turns of up to {1e3 * met(taken, percent):.1f}" for percent in (50, 99))
    print(f"of requests {shown} CPU-ms, the longest took {1e3 * max(taken):.1f}")
    print(f"{rate:.2f} GiB/s at {1e3 * used:.0f} CPU-ms a GiB")


async def turns_taken() -> list[float]:
    """Return the processor time of each turn that the loop takes for a while."""
    loop = asyncio.get_running_loop()
    taken: list[float] = []
    end = time.monotonic() + SECONDS
    done = loop.create_future()
    before = time.thread_time()

    def turn() -> None:
        nonlocal before
        now = time.thread_time()
        taken.append(now - before)
        before = now
        if time.monotonic() < end:
            loop.call_soon(turn)
        else:
            done.set_result(None)

    turn()
    await done
    return taken


def met(taken: list[float], percent: float) -> float:
    """Return the turn that so many percent of requests, coming at any time, find no longer one under way."""
    left = sum(taken) * percent / 100
    for each in sorted(taken):
        left -= each
        if left <= 0:
            return each
    return max(taken)


if __name__ == "__main__":
    sizes = [int(argument) * 1024 for argument in sys.argv[1:] if argument.isdecimal()]
    read_bytes = sizes[0] if sizes else upload.RECEIVE_BYTES
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(upload, "RECEIVE_BYTES", read_bytes))
        patches.enter_context(mock.patch.object(http_protocol, "RECEIVE_BYTES", read_bytes))
        if "--greedy" in sys.argv:
            patches.enter_context(mock.patch.object(http_protocol.HttpConnection, "_end_turn"))
        if "--all" in sys.argv:
            patches.enter_context(mock.patch.object(turns, "AT_ONCE", WRITERS))
        runner = patches.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        runner.run(main())
