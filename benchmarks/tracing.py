"""What spans cost, in processor time: the router, the node store and the connector, with them and without.

    python benchmarks/tracing.py

Each way of tracing has its turn in each round, and its best round counts, for the machine may have other work. A
collector of its own, in another process, takes the spans and throws them away. What a span takes until it is written,
or sent, is in the figures of all threads.
"""
# ruff: noqa: T201

import argparse
import asyncio
import contextlib
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from tierline.bench.programs import Program, answers, free_ports, tierline
from tierline.breaker import Breaker, Warnings
from tierline.client import CommitEntry, NodeClient, Slot
from tierline.node.config import NodeConfig
from tierline.node.server import running_node
from tierline.prefix import Shard
from tierline.router.endpoints import Endpoints
from tierline.router.http.heads import RequestHead
from tierline.router.strategies.base import Decision
from tierline.router.tracing.requests import RequestTracing
from tierline.tracing.context import SAMPLED, TRACEPARENT, TRACESTATE, Origin, TraceContext, random_id, working_for
from tierline.tracing.tracer import Tracer, open_tracer
from tierline.wire.messages import Extent, Leased, LeasedObject, Refusal

MIB = 1024 * 1024
COLLECTOR = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: router\r\nuser-agent: bench\r\naccept: */*\r\n%b\r\n"
LEASED, COMMITTED = 16, 8
"""Objects of a lease, and of a commit, as the connector has them."""
AT_ONCE = 25
"""Requests that a connector is asked for together, so that its thread does not sleep before each."""
SHARD = Shard(kv_dtype="float32", layout="bench")
CHAINS = [bytes([number]) * 32 for number in range(LEASED)]
BLOCKS, BLOCKS_PER_CHUNK = 32, 2


class Way(NamedTuple):
    """One way to trace, or not to."""

    name: str
    flags: int = SAMPLED
    into_file: bool = False
    to_collector: bool = False

    def tracer(self, folder: Path) -> Tracer | None:
        """Open the program's tracer."""
        return open_tracer("bench", self.file(folder), to_collector=self.to_collector)

    def file(self, folder: Path) -> Path | None:
        """Return where its spans go."""
        return folder / "spans.jsonl" if self.into_file else None

    def origin(self) -> Origin:
        """Return whose work a request is."""
        return Origin("of a bench", TraceContext(random_id(128), random_id(64), self.flags))


WAYS = (
    Way("spans off"),
    Way("not sampled", flags=0, into_file=True),
    Way("into a file", into_file=True),
    Way("to a collector", to_collector=True),
)


class Cost(NamedTuple):
    """Seconds of processor time that a request takes."""

    own: float
    """Of the thread that serves it."""
    every: float
    """Of all threads of the process."""


class Meter:
    """Measures this process from here on."""

    def __init__(self, thread: int | None = None) -> None:
        self._clock = time.pthread_getcpuclockid(threading.get_ident() if thread is None else thread)
        self._own, self._every = time.clock_gettime(self._clock), time.process_time()

    def own_s(self) -> float:
        """Return the seconds of the thread."""
        return time.clock_gettime(self._clock) - self._own

    def cost(self, own_s: float, requests: int) -> Cost:
        """Return what each of so many requests took."""
        return Cost(own_s / requests, (time.process_time() - self._every) / requests)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200, help="in a round")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--client", nargs=2, metavar=("SOCKET", "FLAGS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client is not None:
        be_client(*given.client)
        return
    costs: dict[str, dict[str, Cost]] = {}
    with collecting(), tempfile.TemporaryDirectory(prefix="tierline-bench-", dir="/dev/shm") as directory:
        folder = Path(directory)
        with contextlib.ExitStack() as stack:
            has_connector = importlib.util.find_spec("vllm") is not None
            connect = stack.enter_context(node_of_connectors(folder)) if has_connector else None
            for _ in range(given.rounds):
                for way in WAYS:
                    measured = {"router: a request with one attempt": of_router(way, folder, given.requests)}
                    with tempfile.TemporaryDirectory(dir=folder) as segment:
                        measured |= asyncio.run(of_node(way, Path(segment), given.requests))
                    if connect is not None:
                        measured |= of_connector(way, folder, connect, given.requests)
                    for name, cost in measured.items():
                        known = costs.setdefault(name, {}).get(way.name, cost)
                        costs[name][way.name] = Cost(min(known.own, cost.own), min(known.every, cost.every))
    print_table(costs, given.rounds, given.requests)
    if not has_connector:
        print("the connector was left out, for vLLM is not installed")


def print_table(costs: dict[str, dict[str, Cost]], rounds: int, requests: int) -> None:
    """Print what each program took by each way."""
    print(f"processor time of a request in µs, the best of {rounds} rounds of {requests};")
    print("of the thread that serves it / of all threads of its process\n")
    print(f"{'':52}" + "".join(f"{way.name:>17}" for way in WAYS))
    for name, by_way in costs.items():
        cells = [f"{by_way[way.name].own * 1e6:.0f} / {by_way[way.name].every * 1e6:.0f}" for way in WAYS]
        print(f"{name:52}" + "".join(f"{cell:>17}" for cell in cells))


@contextlib.contextmanager
def collecting() -> Iterator[None]:
    """Run a collector, to which the standard variables point meanwhile."""
    with subprocess.Popen([sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, text=True) as collector:
        assert collector.stdout is not None
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector.stdout.readline().strip()}"
        os.environ["OTEL_BSP_MAX_QUEUE_SIZE"] = "65536"
        os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "100"
        try:
            yield
        finally:
            collector.terminate()


def all_told(tracer: Tracer | None) -> bool:
    """Whether no span is on its way; each has arrived."""
    assert tracer is None or not (tracer.outcomes()["failed"] or tracer.outcomes()["dropped"])
    return tracer is None or not tracer.waiting


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait, at next to no processor time."""
    while not condition():
        time.sleep(0.005)


# The router ---------------------------------------------------------------------------------------------------------


def of_router(way: Way, folder: Path, requests: int) -> Cost:
    """Read heads, and do what is done for the spans of a request with one attempt."""
    tracer = way.tracer(folder)
    tracing = None if tracer is None else RequestTracing(tracer, time.monotonic)
    (endpoint,) = Endpoints(["http://127.0.0.1:8001"]).all
    decision = Decision(endpoint, "prefix", 0)
    raw = HEAD % b"traceparent: %b\r\n" % way.origin().traceparent.encode()
    meter = Meter()
    for _ in range(requests):
        head = RequestHead(raw, (TRACEPARENT, TRACESTATE))
        if tracing is not None:
            trace(tracing, head, decision)
    own_s = meter.own_s()
    wait_until(lambda: all_told(tracer))
    cost = meter.cost(own_s, requests)
    if tracer is not None:
        tracer.close_blocking()
    return cost


def trace(tracing: RequestTracing, head: RequestHead, decision: Decision) -> None:
    """Do what the router does for a traced request, and nothing else."""
    record = tracing.begin(head)
    if record is None:
        return
    now = time.monotonic()
    attempt = record.attempt(decision, now)
    record.field_for(attempt)
    attempt.ended_at, attempt.status = now, 200
    exchange = SimpleNamespace(
        arm=SimpleNamespace(name="", strategy=SimpleNamespace(name="prefixaware")),
        head=head,
        route="chat",
        model="m",
        status=200,
        aborted_by="",
        retries=[],
        queued_s=0.0,
        choosing_s=1e-5,
        actual_cached_tokens=None,
        decision=decision,
        request_id=b"id",
        started_at=now,
        answered_at=now,
        ended_at=now,
    )
    tracing.ended(record, exchange)  # type: ignore[arg-type]


# The node store -----------------------------------------------------------------------------------------------------


async def of_node(way: Way, folder: Path, requests: int) -> dict[str, Cost]:
    """Serve a client in another process; a node store of its own for each way, in this one."""
    (port,) = free_ports(1)
    config = NodeConfig(
        port=port,
        socket=folder / "node.sock",
        shared_memory_directory=folder,
        shared_memory_name="segment",
        capacity=256 * MIB,
        scrub_rate=0,
        traces_file=way.file(folder),
        opentelemetry=way.to_collector,
    )
    costs = {}
    async with running_node(config) as node:
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, "--client", str(config.socket_path()), str(way.flags)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert client.stdin is not None
        assert client.stdout is not None
        await client.stdout.readline()  # it is connected
        for name, kind in (
            (f"node store: a lease of {LEASED} objects, and its release", "lease"),
            (f"node store: {COMMITTED} objects, granted and committed", "commit"),
        ):
            meter = Meter()
            client.stdin.write(f"{kind} {requests}\n".encode())
            await client.stdout.readline()
            own_s = meter.own_s()
            while not all_told(node.service.tracer):  # noqa: ASYNC110  (its threads tell)
                await asyncio.sleep(0.005)
            costs[name] = meter.cost(own_s, requests)
        client.stdin.close()
        await client.wait()
    return costs


def be_client(socket: str, flags: str) -> None:
    """Do what lines on the standard input ask for, and say when it is done."""
    way = Way("", int(flags))
    with NodeClient(socket, writer=True, timeout_s=60.0) as client:
        names = [f"leased-{number}" for number in range(LEASED)]
        commit(client, names)
        print("connected", flush=True)
        for line in sys.stdin:
            kind, requests = line.split()
            for number in range(int(requests)):
                with working_for(way.origin()):
                    if kind == "lease":
                        client.release(client.prefix_lease("bench", names, 60.0).lease)
                    else:
                        commit(client, [f"{number}-{place}" for place in range(COMMITTED)])
            print("done", flush=True)


def commit(client: NodeClient, names: list[str]) -> None:
    """Store objects of whatever the pages have."""
    slots = client.grant(4096, len(names))
    entries = [CommitEntry(slot.slot, name, 4096, 0) for slot, name in zip(slots, names, strict=True)]
    assert client.commit("bench", entries) == [None] * len(names)


# The connector ------------------------------------------------------------------------------------------------------


class LeasingAtOnce:
    """Stands in for the look-ups' connection to a node store.

    It answers at once, for what a round trip takes varies by more than spans cost.
    """

    epoch, node, has_tiers, is_connected = 1, "node", False, True

    async def prefix_lease(self, _: str, names: list[str], ttl_s: float, *__: object, **___: object) -> Leased:
        """Lease all."""
        return Leased(1, "a lease", [LeasedObject(8, 0, [Extent(0, 8)])] * len(names), ttl_s)

    def let_go(self, lease: str) -> None:
        """Forget it."""

    async def introduce(self, said: object) -> None:
        """Forget it."""

    async def close(self) -> None:
        """Nothing is open."""


class CommittingAtOnce(NodeClient):
    """A writer's connection to a real node store, which has the pages and is told of no commit, for the same reason."""

    def grant(self, size: int, count: int, *, timeout_s: float | None = None) -> list[Slot]:
        """Hand out the same pages again and again."""
        if not hasattr(self, "_granted"):
            self._granted = super().grant(size, count, timeout_s=timeout_s)
        return self._granted

    def commit(self, bucket: str, entries: Sequence[CommitEntry], **_: object) -> list[Refusal | None]:  # noqa: ARG002
        """Agree to all."""
        return [None] * len(entries)


@contextlib.contextmanager
def node_of_connectors(folder: Path) -> Iterator[Callable[[], NodeClient]]:
    """Run a node store for connectors, in a process of its own; yields what connects to it."""
    (port,) = free_ports(1)
    socket = folder / "connectors.sock"
    argv = tierline("node", "--port", str(port), "--socket", str(socket), "--capacity", "64MiB")
    settings = {"shared_memory_directory": str(folder), "shared_memory_name": "connectors"}
    given = {f"TIERLINE_NODE_{name.upper()}": value for name, value in settings.items()}
    is_ready = partial(answers, f"http://127.0.0.1:{port}/readyz")
    with Program(argv, folder / "node.log", is_ready, environment=given):
        yield lambda: CommittingAtOnce(socket, writer=True, timeout_s=60.0)


def of_connector(way: Way, folder: Path, connect: Callable[[], NodeClient], requests: int) -> dict[str, Cost]:
    """Look prefixes up and save chunks, each with the thread that the connector has for it."""
    tracer = way.tracer(folder)
    costs = {
        f"connector: a look-up of {LEASED} chunks": of_lookups(way, tracer, requests),
        f"connector: a save of {COMMITTED} chunks of 12 KiB": of_saves(way, connect, tracer, requests),
    }
    if tracer is not None:
        tracer.close_blocking()
    return costs


def of_lookups(way: Way, tracer: Tracer | None, requests: int) -> Cost:
    """Look up a prefix that is there."""
    from tierline.connectors.vllm.introduction import Introduction
    from tierline.connectors.vllm.lookup import LookupThread
    from tierline.connectors.vllm.metrics import Counters

    async def connect() -> Any:
        return LeasingAtOnce()

    keys: Any = SimpleNamespace(tenant="", leading=lambda chunks: CHAINS[:chunks])
    thread = LookupThread(
        connect,
        [SHARD],
        "bench",
        30.0,
        60.0,
        0.0,
        Introduction("bench", ["m"], "f", [SHARD]),
        Breaker(time.monotonic),
        Warnings(logging.getLogger("bench"), time.monotonic),
        Counters(),
        tracer,
    )

    def look_up(count: int) -> None:
        lookups = [thread.start(keys, LEASED, None, way.origin()) for _ in range(count)]
        for lookup in lookups:
            assert lookup is not None
            wait_until(partial(getattr, lookup, "is_answered"))
            assert lookup.answer is not None
            thread.drop(lookup)

    look_up(1)  # it connects
    cost = of_thread("tierline-lookup", look_up, tracer, requests)
    thread.close()
    return cost


def of_saves(way: Way, connect: Callable[[], NodeClient], tracer: Tracer | None, requests: int) -> Cost:
    """Save chunks that nobody has."""
    import torch

    from tierline.connectors.vllm.copy import HostCopier, page_words
    from tierline.connectors.vllm.metrics import Counters
    from tierline.connectors.vllm.plan import ChunkStore
    from tierline.connectors.vllm.writer import NodeWriter

    layers = [torch.randn(BLOCKS, 4, 16, 8) for _ in range(3)]
    copier = HostCopier([page_words(layer, BLOCKS, "layer") for layer in layers], BLOCKS_PER_CHUNK)
    counters = Counters()
    warnings = Warnings(logging.getLogger("bench"), time.monotonic)
    writer = NodeWriter(connect, copier, SHARD, "bench", None, Breaker(time.monotonic), warnings, counters, tracer)

    def save(count: int) -> None:
        chunks = []
        for _ in range(count):
            origin = way.origin()
            chunks += [ChunkStore(os.urandom(32), (1, 2), origin=origin) for _ in range(COMMITTED)]
        writer.store(chunks, copier.mark())
        stored = 0.0
        while stored < len(chunks):
            time.sleep(0.005)
            counted = counters.take()
            stored += counted.data.get("stored_chunks", 0) if counted is not None else 0

    save(1)  # it connects
    cost = of_thread("tierline-writer", save, tracer, requests)
    writer.close()
    return cost


def of_thread(name: str, work: Callable[[int], None], tracer: Tracer | None, requests: int) -> Cost:
    """Measure what a thread of this process, of this name, does for requests."""
    (thread,) = (each for each in threading.enumerate() if each.name == name)
    assert thread.ident is not None
    meter = Meter(thread.ident)
    for start in range(0, requests, AT_ONCE):
        work(min(AT_ONCE, requests - start))
    own_s = meter.own_s()
    wait_until(lambda: all_told(tracer))
    return meter.cost(own_s, requests)


if __name__ == "__main__":
    main()
