"""What workers cost and give: processor time a request of a router of 1, 2 and 4 workers, side by side over loopback.

Run ``python benchmarks/router_workers.py [SECONDS]``. A client, and engine stubs in a process of their own, load the
routers in turn, round by round, so that a slow minute is shared by all; medians of the rounds are printed. Processor
time is that of the router's processes together, the parent's part apart. Throughput says something of workers only on a
machine with cores for all of them, the client and the stubs. Before that, what the parts of sharing cost, each alone:
the best of many runs, which a busy machine disturbs least.
"""
# ruff: noqa: T201

import asyncio
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import timeit
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tierline.bench.load import NUMBER_BYTES, Load, Prompt
from tierline.bench.programs import answers, free_ports
from tierline.router.endpoints import Endpoint, Endpoints
from tierline.router.index import PrefixIndex
from tierline.router.specs import EndpointSpec
from tierline.router.workers.board import Board
from tierline.router.workers.endpoints import SharedEndpoints
from tierline.router.workers.messages import Knowledge, Placed, decode_knowledge, encode

WORKERS = (1, 2, 4)
PROMPT_BYTES = (200, 16 * 1024)
CONNECTIONS = 64
ROUNDS = 7
ENDPOINTS = 4
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ANSWER = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{"ok":true}'


class Stub(asyncio.Protocol):
    """An engine that answers any request that has come whole."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        self._transport = transport
        self._unread = b""

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        self._unread += data
        while True:
            head, end, body = self._unread.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            if not end or len(body) < length:
                return
            self._unread = body[length:]
            self._transport.write(_ANSWER)  # type: ignore[attr-defined]


def serve(ports: list[int]) -> None:
    """Run the stubs, for ever."""

    async def run() -> None:
        for port in ports:
            await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", port)
        await asyncio.Event().wait()

    asyncio.run(run())


class Router(NamedTuple):
    """A router that runs."""

    port: int
    pid: int

    def ticks(self) -> tuple[float, float]:
        """Return the processor time of all its processes, and of the parent alone, in seconds."""
        parent = _seconds(self.pid)
        if (children := Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()) == []:
            return parent, 0.0
        return parent + sum(map(_seconds, map(int, children))), parent


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


@contextmanager
def router(workers: int, endpoints: list[int]) -> Iterator[Router]:
    """Start one."""
    (port,) = free_ports(1)
    urls = [f"http://127.0.0.1:{endpoint}" for endpoint in endpoints]
    flags = [part for url in urls for part in ("--endpoint", url)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tierline", "router", "--port", str(port), "--workers", str(workers), *flags],
        env=os.environ | {"TIERLINE_ROUTER_LOG_LEVEL": "error", "TIERLINE_ROUTER_SHUTDOWN_TIMEOUT_S": "0"},
    )
    try:
        while not answers(f"http://127.0.0.1:{port}/health"):
            time.sleep(0.1)
        yield Router(port, process.pid)
    finally:
        process.terminate()
        process.wait()


def prompts(size: int) -> list[Prompt]:
    """Return chats whose prompts begin alike in groups of eight turns, as conversations do."""
    made = []
    for number in range(64):
        text = (f"conversation {number} " * (size // 16 + 1))[: size - NUMBER_BYTES]
        body = json.dumps({"messages": [{"role": "user", "content": text + "\x01"}]}).encode()
        before, after = body.split(b"\\u0001")
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        made.append(Prompt(head % (len(body) - 6 + NUMBER_BYTES) + before, after))
    return made


def parts() -> None:
    """Print what a worker does for the others, and with what they did."""
    print("| part | µs |\n|---|---|")
    for endpoints, workers in ((8, 2), (64, 2), (64, 8)):
        board = Board.create(workers)
        sets = [SharedEndpoints(board, index) for index in range(workers)]
        for number, each in itertools.product(range(endpoints), sets):
            each.add(EndpointSpec(url=f"http://e{number}:1"), source="flags")
        mine, others = sets[0], sets[1:]
        endpoint, plain = mine.all[0], Endpoints(["http://e:1"]).all[0]
        if others and endpoints == 8:
            for name, one in (("alone", plain), ("with workers", endpoint)):
                print(f"| one request's counting, {name} | {best_us(lambda one=one: _count(one)):.1f} |")

        def look(mine: SharedEndpoints = mine, others: list[SharedEndpoints] = others) -> None:
            for other in others:
                _count(other.all[0])
            mine.refresh()

        us = best_us(look) - len(others) * best_us(lambda one=others[0].all[0]: _count(one))
        print(f"| one look at {endpoints} endpoints when all of {workers - 1} others have changed | {us:.1f} |")
        print(f"| one when nobody has | {best_us(mine.refresh):.1f} |")
        board.close()
    for size in PROMPT_BYTES[1:]:
        blocks = list(range(1 << 60, (1 << 60) + size // 256))
        told = Knowledge(7, [Placed(7, array("Q", blocks).tobytes())], [])
        payload, index = encode(told), PrefixIndex(8, 64 * 1024**2)
        us = best_us(lambda blocks=blocks: encode(Knowledge(7, [Placed(7, array("Q", blocks).tobytes())], [])))
        print(f"| telling of a prompt of {size:,} B | {us:.1f} |")

        def learn(payload: bytes = payload, index: PrefixIndex = index) -> None:
            for placed in decode_knowledge(payload).placed:
                index.place(3, array("Q", placed.blocks).tolist())

        print(f"| learning of it | {best_us(learn):.1f} |\n", flush=True)


def _count(endpoint: Endpoint) -> None:
    endpoint.begin(10, 0.0)
    endpoint.answered(10, 10, None, 0.0)
    endpoint.end(0)


def best_us(work: Callable[[], object]) -> float:
    """Return the least of many."""
    return min(timeit.repeat(work, number=10, repeat=1000)) * 1e5


def main(seconds: float) -> None:
    """Measure and print two tables."""
    parts()
    ports = free_ports(ENDPOINTS)
    stubs = multiprocessing.get_context("spawn").Process(target=serve, args=(ports,), daemon=True)
    stubs.start()
    with ExitStack() as stack:
        routers = {workers: stack.enter_context(router(workers, ports)) for workers in WORKERS}
        print("| prompt | workers | CPU µs a request | of it the parent | requests/s | P50 ms | P99 ms |")
        print("|---|---|---|---|---|---|---|")
        for size in PROMPT_BYTES:
            found: dict[int, list[tuple[float, ...]]] = {workers: [] for workers in WORKERS}
            for _, (workers, target) in itertools.product(range(ROUNDS), routers.items()):
                found[workers].append(asyncio.run(measured(target, size, seconds)))
            for workers, rounds in found.items():
                cells = [statistics.median(column) for column in zip(*rounds, strict=True)]
                print(f"| {size:,} B | {workers} | " + " | ".join(f"{cell:,.1f}" for cell in cells) + " |", flush=True)
    stubs.terminate()


async def measured(target: Router, size: int, seconds: float) -> tuple[float, ...]:
    """Return what one round found."""
    before, began = target.ticks(), time.perf_counter()
    outcome = await Load(prompts(size), b"application/json").run(target.port, connections=CONNECTIONS, seconds=seconds)
    took_s, after = time.perf_counter() - began, target.ticks()
    assert not outcome.failures, outcome.failures
    latencies = sorted(outcome.latencies_s)
    a_request = 1e6 / outcome.answered
    return (
        (after[0] - before[0]) * a_request,
        (after[1] - before[1]) * a_request,
        outcome.answered / took_s,
        latencies[len(latencies) // 2] * 1000,
        latencies[len(latencies) * 99 // 100] * 1000,
    )


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else 3.0)
