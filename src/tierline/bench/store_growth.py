"""How the node store grows: leases by number of objects and of clients, memory an object, pauses, and restarts.

All nodes of different size run at the same time and take turns. Their segments have no memory behind them
(:mod:`tierline.bench.sparse_node`), so that a million objects fit any machine.
"""

import contextlib
import gc
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType, TracebackType
from typing import Self

from tierline.bench.floors import HttpFloor
from tierline.bench.lease_load import LeaseLoad
from tierline.bench.programs import Program, answers, free_ports
from tierline.bench.put_load import PutLoad
from tierline.bench.registry import Say
from tierline.bench.rows import Limit, Rounds, Row, at_most
from tierline.bench.sparse_node import BUCKET, NAME, SOCKET, fill, object_name, sparse_segments
from tierline.client import NodeClient
from tierline.errors import TierlineError
from tierline.store import PAGE_BYTES, Store

MIB = 1024 * 1024
WRITERS = 16
PREFIX_KEYS = 2048

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (the kernel's tmpfs, not a temporary file)
_TTL_SECONDS = 30.0
_CALL_SECONDS = 60.0
_FILL_SECONDS = 900.0
_PARTS_SHOWN = 8
_MOST_FILLED = 0.9
"""Above it the node evicts ahead of need, and a lease would miss."""


@dataclass(frozen=True)
class Effort:
    """How much is measured: rounds, and in each round so many of each kind."""

    objects: tuple[int, ...]
    clients: tuple[int, ...]
    restarted: int
    rounds: int
    pairs: int
    pairs_beside_puts: int
    put_bytes: int
    prefix_leases: int
    objects_weighed: int


FULL = Effort(
    objects=(100, 10_000, 1_000_000),
    clients=(1, 16, 256),
    restarted=100_000,
    rounds=5,
    pairs=2000,
    pairs_beside_puts=600,
    put_bytes=32 * MIB,
    prefix_leases=10,
    objects_weighed=20_000,
)
QUICK = Effort(
    objects=(100, 3000),
    clients=(1, 16),
    restarted=1000,
    rounds=1,
    pairs=50,
    pairs_beside_puts=50,
    put_bytes=2 * MIB,
    prefix_leases=2,
    objects_weighed=500,
)


def measure(effort: Effort, folder: Path, say: Say) -> list[Row]:
    """Measure everything in turns and return the rows.

    Raises
    ------
    TierlineError
        A node store cannot be started or refuses an operation.
    """
    rounds = Rounds()
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        nodes = []
        for objects in effort.objects:
            say(f"filling a node store with {objects:,} objects")
            nodes.append(stack.enter_context(_SparseNode(objects, _room(effort), folder)))
        smallest, largest = nodes[0], nodes[-1]
        resident = largest.program.private_bytes() - smallest.program.private_bytes()
        journal = largest.journal_bytes() / largest.objects
        floor = stack.enter_context(HttpFloor(folder, effort.put_bytes))
        for number in range(effort.rounds):
            say(f"growth, round {number + 1} of {effort.rounds}")
            for node in nodes:
                _take_leases(effort, node, rounds)
            _take_beside_puts(effort, largest, floor, rounds)
        rows += _lease_rows(effort, rounds)
        rows += _pause_rows(largest)
    say("weighing what the store keeps of an object")
    rows += _memory_rows(effort, resident / (largest.objects - smallest.objects), journal)
    say(f"restarting a node store with {effort.restarted:,} objects")
    rows += _restart_rows(effort, folder)
    return rows


def _room(effort: Effort) -> int:
    """Return how many pages the writers need beside the objects."""
    return 2 * WRITERS * (effort.put_bytes // PAGE_BYTES)


class _SparseNode:
    """A node store with so many objects of one page and room for more; removed with everything it made."""

    def __init__(self, objects: int, free_pages: int, folder: Path) -> None:
        self.objects = objects
        self.folder = Path(tempfile.mkdtemp(prefix=f"tierline-bench-{os.getpid()}-", dir=_SHARED_MEMORY))
        self._log = folder / f"sparse-{objects}.log"
        self._report = folder / f"sparse-{objects}.json"
        self._pages = int(objects / _MOST_FILLED) + free_pages
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self.folder)
            raise

    def start(self) -> None:
        """Start the node's process, which adopts what a former one left, or stores the objects."""
        (self.port,) = free_ports(1)
        numbers = (self.port, self._pages, self.objects)
        argv = [sys.executable, "-m", "tierline.bench.sparse_node", str(self.folder), *map(str, numbers)]
        ready = f"http://127.0.0.1:{self.port}/readyz"
        self.program = Program([*argv, str(self._report)], self._log, lambda: answers(ready), _FILL_SECONDS)

    def client(self) -> NodeClient:
        """Connect to it over its UNIX socket."""
        return NodeClient(self.folder / SOCKET, client="bench", writer=True, timeout_s=_CALL_SECONDS)

    def path_of_a_lease(self) -> str:
        """Return the target of a lease on any of its objects."""
        name = object_name(random.randrange(self.objects)).replace("@", "%40")
        return f"/v1/kv/{BUCKET}/{name}/leases?timeout_ms=0&ttl_s={_TTL_SECONDS:.0f}"

    def journal_bytes(self) -> int:
        """Return the memory that the journal takes."""
        return (self.folder / f"{NAME}.journal").stat().st_blocks * 512

    def stop(self) -> list[float]:
        """Stop its process; return the seconds of each pause that the garbage collector made."""
        self.program.stop()
        pauses: list[float] = json.loads(self._report.read_text())
        return pauses

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.program.stop()
        shutil.rmtree(self.folder)


# Leases -----------------------------------------------------------------------------------------------------------


def _take_leases(effort: Effort, node: _SparseNode, rounds: Rounds) -> None:
    for clients in effort.clients:
        with LeaseLoad(node.port, clients, node.path_of_a_lease) as load:
            before, started = node.program.cpu_seconds(), time.perf_counter()
            seconds = load.run(effort.pairs)
            rounds.add(f"pairs {node.objects} {clients}", [effort.pairs / (time.perf_counter() - started)])
            rounds.add(f"cpu {node.objects} {clients}", [(node.program.cpu_seconds() - before) / effort.pairs])
        rounds.add(f"lease {node.objects} {clients}", [1e3 * each for each in seconds])
    if node.objects < PREFIX_KEYS:
        return
    with node.client() as client:
        samples = []
        before = node.program.cpu_seconds()
        for _ in range(effort.prefix_leases):
            names = [object_name(number) for number in random.sample(range(node.objects), PREFIX_KEYS)]
            started = time.perf_counter()
            leased = client.prefix_lease(BUCKET, names, _TTL_SECONDS)
            samples.append(1e3 * (time.perf_counter() - started))
            client.release(leased.lease)
            if len(leased.objects) != PREFIX_KEYS:
                raise TierlineError(f"a prefix lease of {PREFIX_KEYS} objects gave {len(leased.objects)}")
        rounds.add(f"prefix {node.objects}", samples)
        used = (node.program.cpu_seconds() - before) / effort.prefix_leases
        rounds.add(f"prefix cpu {node.objects}", [1e3 * used])


def _take_beside_puts(effort: Effort, node: _SparseNode, floor: HttpFloor, rounds: Rounds) -> None:
    """Lease while others write without a pause; then the same beside a server that looks at nothing."""
    for name, port in (("node", node.port), ("floor", floor.port)):
        with PutLoad(port, WRITERS, effort.put_bytes), LeaseLoad(port, 1, node.path_of_a_lease) as load:
            rounds.add(f"beside puts {name}", [1e3 * seconds for seconds in load.run(effort.pairs_beside_puts)])


def _lease_rows(effort: Effort, rounds: Rounds) -> Iterator[Row]:
    for objects in effort.objects:
        for clients in effort.clients:
            samples = f"lease {objects} {clients}"
            where = f"{objects:,} objects, {clients} client{'s' if clients > 1 else ''}"
            bound = at_most(0.6) if clients == 1 else None
            yield Row(f"lease, {where}, median", rounds.median(samples), "ms", bound, rounds.n(samples))
            yield Row(f"lease, {where}, P99", rounds.percentile(samples, 99), "ms", n=rounds.n(samples))
            yield Row(f"leases and releases, {where}", rounds.median(f"pairs {objects} {clients}"), "a second")
            cpu = 1e6 * rounds.median(f"cpu {objects} {clients}")
            yield Row(f"lease and release, {where}, server CPU", cpu, "µs", at_most(100.0), rounds.n(samples))
        if f"prefix {objects}" in rounds:
            median = rounds.median(f"prefix {objects}")
            name = f"prefix lease of {PREFIX_KEYS} scattered keys, {objects:,} objects"
            n = rounds.n(f"prefix {objects}")
            yield Row(f"{name}, median", median, "ms", at_most(10.0), n)
            cpu = rounds.median(f"prefix cpu {objects}")
            yield Row(f"{name}, server CPU with its release", cpu, "ms", n=n)
    most = effort.objects[-1]
    for name, percent, bound in (("median", 50, None), ("P99", 99, at_most(5.0))):
        value = rounds.percentile("beside puts node", percent)
        n = rounds.n("beside puts node")
        yield Row(f"lease beside {WRITERS} PUTs, {most:,} objects, {name}", value, "ms", bound, n)
        least = Limit("server that looks at nothing", rounds.percentile("beside puts floor", percent))
        yield Row(f"lease beside {WRITERS} PUTs, {most:,} objects, {name}, beside the least", value, "ms", least, n)


def _pause_rows(node: _SparseNode) -> Iterator[Row]:
    pauses = node.stop()
    name = f"garbage collector, {node.objects:,} objects"
    yield Row(f"{name}, longest pause", 1e3 * max(pauses, default=0.0), "ms", n=len(pauses))
    yield Row(f"{name}, all pauses", 1e3 * sum(pauses), "ms", n=len(pauses))


# Memory -----------------------------------------------------------------------------------------------------------


def _memory_rows(effort: Effort, resident: float, journal: float) -> Iterator[Row]:
    most = effort.objects[-1]
    yield Row(
        f"memory an object, {most:,} objects",
        resident,
        "bytes",
        n=most,
        note="private memory of the node's process, less that of the node with fewest objects",
    )
    parts = _parts(effort.objects_weighed)
    named = parts.most_common(_PARTS_SHOWN)
    for kind, size in named:
        yield Row(f"memory an object: {kind}", size / effort.objects_weighed, "bytes", n=effort.objects_weighed)
    rest = sum(parts.values()) - sum(size for _, size in named)
    yield Row("memory an object: other", rest / effort.objects_weighed, "bytes", n=effort.objects_weighed)
    yield Row("memory an object: journal, in shared memory", journal, "bytes", n=most)


def _parts(objects: int) -> Counter[str]:
    """Return the bytes by type of what a store of so many objects reaches, less what an empty one does."""
    with tempfile.TemporaryDirectory(prefix=f"tierline-bench-{os.getpid()}-", dir=_SHARED_MEMORY) as directory:
        with sparse_segments():
            store = Store.open(Path(directory), NAME, (objects + 1) * PAGE_BYTES, clock=time.monotonic)
        try:
            empty = _weigh(store)
            fill(store, objects)
            return _weigh(store) - empty
        finally:
            store.close()


def _weigh(root: object) -> Counter[str]:
    """Return the bytes by type of everything that can be reached from an object, each thing once."""
    seen = {id(root)}
    waiting = [root]
    sizes: Counter[str] = Counter()
    while waiting:
        found = waiting.pop()
        sizes[type(found).__name__] += sys.getsizeof(found)
        for inner in gc.get_referents(found):
            if id(inner) not in seen and not isinstance(inner, type | ModuleType | FunctionType | BuiltinFunctionType):
                seen.add(id(inner))
                waiting.append(inner)
    return sizes


# Restarts ---------------------------------------------------------------------------------------------------------


def _restart_rows(effort: Effort, folder: Path) -> Iterator[Row]:
    fewest, many = (_restart_seconds(effort, objects, folder) for objects in (effort.objects[0], effort.restarted))
    name = f"first service after a restart, {effort.restarted:,} objects"
    yield Row(name, many, "s", n=effort.rounds, note="from the start of the process to its first answer")
    yield Row(
        f"{name}, of it their adoption",
        many - fewest,
        "s",
        at_most(2.0),
        effort.rounds,
        note=f"less the same with {effort.objects[0]} objects",
    )


def _restart_seconds(effort: Effort, objects: int, folder: Path) -> float:
    rounds = Rounds()
    with _SparseNode(objects, 0, folder) as node:
        for _ in range(effort.rounds):
            node.program.stop()
            rounds.add("restart", [_seconds(node.start)])
    return rounds.median("restart")


def _seconds(operation: Callable[[], None]) -> float:
    started = time.perf_counter()
    operation()
    return time.perf_counter() - started
