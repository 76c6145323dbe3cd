"""``tierline bench cluster``: two node stores as one pool, beside Redis and Mooncake, all on loopback in one run.

What is measured of the pool: a write (which stays where it was written), a read of what the reader's own node holds,
and a read of what only the other node holds: found in the directory, fetched, compared with its checksum, leased,
copied. Every object is read from afar once, for a node keeps what it fetched. Systems take turns in each round.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from tierline.bench.cluster_clients import BUCKET, Clients, Taken, Turn, Verb
from tierline.bench.limits import TcpStream, redis_server
from tierline.bench.mooncake import MooncakeServers
from tierline.bench.programs import Program, answers, free_ports, tierline
from tierline.bench.registry import BenchOptions, Findings, Say
from tierline.bench.report import Table
from tierline.bench.rows import Limit, Rounds, Row, not_measured, percentile
from tierline.client import CommitEntry, NodeClient, Slot
from tierline.configuration import format_byte_size
from tierline.errors import EnvironmentTooSmall, TierlineError
from tierline.prefix import Shard, block_chain, object_name
from tierline.stack.machine import available_memory_bytes

MIB = 2**20
GIB = 2**30
GIGABYTE = 1e9
BYTES_PER_TOKEN = 128 * 1024
"""Of Llama-3.1-8B in bfloat16: 32 layers of 8 heads of 128, keys and values."""
CHUNK_TOKENS = 256

Operation = Literal["local read", "remote read", "write"]
OPERATIONS: Sequence[Operation] = ("write", "local read", "remote read")
LARGE_BYTES = 16 * MIB
GOALS: Mapping[Operation, float] = {"local read": 8.0, "remote read": 3.0, "write": 1.0}
"""Of Redis, from :data:`LARGE_BYTES` on; below it, no less than Redis."""
FETCH_GOAL = 0.8
"""Of a bare sendfile on the same link."""

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (the kernel's tmpfs, not a temporary file)
_CALL_S = 60.0
_MOONCAKE_LEASE_MS = 2000
_SETTLE_S = 0.1
"""Nodes tell each other every 10 ms what they have."""


@dataclass(frozen=True)
class Prefix:
    """A whole prefix; its blocks are smaller than a real model's by ``scale``, where those do not fit."""

    tokens: int
    scale: int

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return CHUNK_TOKENS * BYTES_PER_TOKEN // self.scale

    @property
    def size(self) -> int:
        """Bytes of all."""
        return self.tokens * BYTES_PER_TOKEN // self.scale

    def __str__(self) -> str:
        scaled = f", scaled to 1/{self.scale}" if self.scale > 1 else ""
        return f"{self.tokens // 1024}K tokens ({format_byte_size(self.size)}{scaled})"


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    rounds: int
    sizes: Sequence[int]
    clients: Sequence[int]
    turn_bytes: int
    """About so much is written, and read, in one turn."""
    prefixes: Sequence[Prefix]
    capacity: int

    @property
    def memory(self) -> int:
        """Bytes that everything takes together, about."""
        stores = 4 * self.capacity  # two nodes, Redis, Mooncake
        clients = 4 * max(self.clients) * max(self.sizes)
        return stores + clients + 3 * max(prefix.size for prefix in self.prefixes)


FULL = Effort(
    rounds=3,
    sizes=(MIB, 4 * MIB, 16 * MIB, 32 * MIB),
    clients=(1, 8, 32),
    turn_bytes=512 * MIB,
    prefixes=(Prefix(8192, 1), Prefix(65536, 8)),
    capacity=3 * GIB,
)
QUICK = Effort(
    rounds=1,
    sizes=(MIB,),
    clients=(1, 2),
    turn_bytes=8 * MIB,
    prefixes=(Prefix(8192, 64),),
    capacity=128 * MIB,
)


def measure(options: BenchOptions, say: Say) -> Findings:
    """Measure everything in turns and return the rows.

    Raises
    ------
    TierlineError
        When the pool cannot be started or refuses an operation, or memory is short.
    """
    effort = QUICK if options.quick else FULL
    _require_memory(effort.memory)
    rounds = Rounds()
    cpu: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tierline-bench-")))
        say(f"starting two node stores of {format_byte_size(effort.capacity)} as one pool, and what they stand beside")
        systems: list[System | str] = [stack.enter_context(pool(folder, effort))]
        for start in (redis, mooncake):
            try:
                systems.append(stack.enter_context(start(folder, effort)))
            except FileNotFoundError as error:
                systems.append(str(error))
        present = [system for system in systems if isinstance(system, System)]
        for size, clients in itertools.product(effort.sizes, effort.clients):
            say(f"{format_byte_size(size)} objects, {clients} client{'s' * (clients > 1)}")
            for system in present:  # once for nothing: connections, memory, paths of the code
                _take_cell(system, effort, size, clients, Rounds(), {})
            for _ in range(effort.rounds):
                for system in present:
                    _take_cell(system, effort, size, clients, rounds, cpu)
        for prefix in effort.prefixes:
            say(f"whole prefixes of {prefix}")
            for _ in range(effort.rounds):
                for system in present:
                    _take_prefix(system, prefix, rounds)
        fetched = present[0]
        for size in effort.sizes:
            say(f"a bare sendfile of {format_byte_size(size)} beside fetches of one client")
            with TcpStream(size, folder) as stream, _file_of(size) as descriptor:
                for _ in range(effort.rounds):
                    _take_fetches(fetched, effort, size, stream, descriptor, rounds)
    names = ["tieredstorage", "redis", "mooncake"]
    reasons = {name: system for name, system in zip(names, systems, strict=True) if isinstance(system, str)}
    rows = [
        *_cell_rows(effort, rounds, reasons),
        *_cpu_rows(effort, cpu, reasons),
        *_prefix_rows(effort, rounds, reasons),
        *_fetch_rows(effort, rounds),
    ]
    return Findings(rows, _notes(effort), _tables(effort, rounds, cpu, reasons), None)


def _require_memory(needed: int) -> None:
    if needed > (available := available_memory_bytes()):
        raise EnvironmentTooSmall(
            f"memory: all that is compared needs about {format_byte_size(needed)} of it, {format_byte_size(available)} "
            "are available; end other programs, or give --quick"
        )


@dataclass(frozen=True)
class System:
    """What is measured.

    Parameters
    ----------
    name
        As users say it.
    writers, readers
        Clients that write, and that read what is there; the same, but for the pool.
    far
        Clients for whom all that was written is somewhere else.
    programs
        The servers, whose processor time counts.
    settle_s
        How long after a write it takes until the far clients are told of it.
    """

    name: str
    writers: Clients
    readers: Clients
    far: Clients
    programs: Sequence[Program]
    settle_s: float = 0.0

    def forget(self, names: Sequence[str]) -> None:
        """Remove objects, wherever they are."""
        for clients in dict.fromkeys((self.far, self.writers)):
            clients.take(Turn("forget", 1, [[list(names)]]))

    def cpu_seconds(self) -> float:
        """Return the processor time that the servers have used."""
        return sum(program.cpu_seconds() for program in self.programs)


@contextlib.contextmanager
def pool(folder: Path, effort: Effort) -> Iterator[System]:
    """Run two node stores that are one pool, and leave nothing of them behind."""
    most = max(effort.clients)
    ports = free_ports(2)
    with contextlib.ExitStack() as stack:
        programs, sockets = [], []
        for number, port in enumerate(ports):
            segment = f"tierline-bench-{os.getpid()}-{number}"
            sockets.append(folder / f"node-{number}.sock")
            settings = folder / f"node-{number}.json"
            settings.write_text(json.dumps({"node_name": f"node-{number}", "grace_s": 0, "lookup_cap_ms": 1000}))
            argv = tierline(
                *(
                    "node",
                    "--config",
                    str(settings),
                    "--port",
                    str(port),
                    "--socket",
                    str(sockets[-1]),
                    "--shared-memory-name",
                    segment,
                ),
                *("--capacity", str(effort.capacity), "--log-level", "warning"),
                *(
                    "--transfer-address",
                    f"127.0.0.1:{port + 1}",
                    "--peers",
                    f"node-{1 - number}=127.0.0.1:{ports[1 - number] + 1}",
                ),
            )
            stack.callback(_remove_segment, segment)
            ready = partial(answers, f"http://127.0.0.1:{port}/readyz")
            programs.append(stack.enter_context(Program(argv, folder / f"node-{number}.log", ready)))
        here, far = (stack.enter_context(Clients("node", str(path), most)) for path in sockets)
        owners = [
            stack.enter_context(NodeClient(path, client="bench", writer=True, timeout_s=_CALL_S)) for path in sockets
        ]

        _wait_until_joined(*owners)
        yield System("tieredstorage", here, here, far, programs, _SETTLE_S)


@contextlib.contextmanager
def redis(folder: Path, effort: Effort) -> Iterator[System]:
    """Run a Redis server. Raises ``FileNotFoundError`` where it, or redis-py, is not installed."""
    if importlib.util.find_spec("redis") is None or importlib.util.find_spec("hiredis") is None:
        raise FileNotFoundError("redis-py with hiredis not installed")
    program, port = redis_server(folder)
    with program, Clients("redis", str(port), max(effort.clients)) as clients:
        yield System("redis", clients, clients, clients, [program])


@contextlib.contextmanager
def mooncake(folder: Path, effort: Effort) -> Iterator[System]:
    """Run Mooncake's master and a process that lends memory. Raises ``FileNotFoundError`` where it is not there."""
    with (
        MooncakeServers(effort.capacity, folder, _MOONCAKE_LEASE_MS) as servers,
        Clients("mooncake", servers.address, max(effort.clients)) as clients,
    ):
        yield System("mooncake", clients, clients, clients, [servers.master, servers.lender])


def _wait_until_joined(writer: NodeClient, reader: NodeClient) -> None:
    """Return once each node finds what the other has, which takes until they have connected."""
    for here, far in ((writer, reader), (reader, writer)):
        end = time.monotonic() + _CALL_S
        while True:
            [name] = _new_names(1)
            [slot] = here.reserve(BUCKET, [name], [1])
            assert isinstance(slot, Slot), "a new store has room"
            checksum = here.mapping.write_from(slot.extents, b"\1")
            here.commit(BUCKET, [CommitEntry(slot.slot, name, 1, checksum)])
            time.sleep(_SETTLE_S)
            if far.prefix_lease(BUCKET, [name], 1.0, wait_s=1.0).objects:
                break
            if time.monotonic() > end:
                raise TierlineError("the two node stores did not become a pool")


_numbers = itertools.count()


def _new_names(count: int) -> list[str]:
    return [f"object-{next(_numbers)}" for _ in range(count)]


def _take_cell(
    system: System, effort: Effort, size: int, clients: int, rounds: Rounds, cpu: dict[str, list[float]]
) -> None:
    """Write objects, read them where they are and from afar, and remove them."""
    each = max(1, min(16, effort.turn_bytes // (size * clients)))
    names = [[[name] for name in _new_names(each)] for _ in range(clients)]
    total = size * each * clients
    users: Mapping[Operation, tuple[Verb, Clients]] = {
        "write": ("write", system.writers),
        "local read": ("read", system.readers),
        "remote read": ("read", system.far),
    }
    for operation in OPERATIONS:
        verb, users_of = users[operation]
        if operation == "remote read":
            time.sleep(system.settle_s)
        before = system.cpu_seconds()
        taken = users_of.take(Turn(verb, size, names))
        key = _key(system.name, operation, size, clients)
        _book(rounds, key, taken, total)
        cpu.setdefault(key, []).append(1e3 * (system.cpu_seconds() - before + taken.cpu_s) * GIB / total)
    system.forget([name for of_client in names for [name] in of_client])


def _take_prefix(system: System, prefix: Prefix, rounds: Rounds) -> None:
    """Write a prefix, and have it leased, then another one read, from afar."""
    verbs: Sequence[Verb] = ("lease", "read")
    for verb in verbs:
        chain = list(block_chain(next(_numbers).to_bytes(32), range(prefix.tokens), CHUNK_TOKENS))
        shard = Shard(kv_dtype="bfloat16", layout="bench-1")
        names = [object_name(block, shard) for block in chain]
        anchor = chain[0].hex()
        # One by one, so that a writer's memory is that of a block; a reader's is that of the prefix.
        system.writers.take(Turn("write", prefix.block_bytes, [[[name] for name in names]], anchor))
        time.sleep(system.settle_s)
        taken = system.far.take(Turn(verb, prefix.block_bytes, [[names]], anchor))
        _book(rounds, _prefix_key(system.name, verb, prefix), taken, prefix.size)
        system.forget(names)


def _take_fetches(
    system: System, effort: Effort, size: int, stream: TcpStream, descriptor: int, rounds: Rounds
) -> None:
    """Fetch objects from afar, one after another, without reading them; and send as many bytes without looking."""
    each = max(1, min(16, effort.turn_bytes // size))
    names = _new_names(each)
    operations = [[[name] for name in names]]
    system.writers.take(Turn("write", size, operations))
    time.sleep(system.settle_s)
    taken = system.far.take(Turn("lease", size, operations))
    rounds.add(f"fetch {size}", [size / seconds / GIGABYTE for seconds in taken.seconds])
    rounds.add(f"sendfile {size}", [stream.size / stream.seconds(descriptor) / GIGABYTE for _ in range(each)])
    system.forget(names)


def _book(rounds: Rounds, key: str, taken: Taken, total: int) -> None:
    rounds.add(key, [total / taken.whole_s / GIGABYTE])
    rounds.add(f"{key}, ms", [1e3 * seconds for seconds in taken.seconds])


def _key(system: str, operation: str, size: int, clients: int) -> str:
    return f"{system} {operation} {size} {clients}"


def _prefix_key(system: str, verb: str, prefix: Prefix) -> str:
    return f"{system} {verb} {prefix}"


def _remove_segment(segment: str) -> None:
    for file in _SHARED_MEMORY.glob(f"{segment}*"):  # the segment, its second link and its journal
        file.unlink()


@contextlib.contextmanager
def _file_of(size: int) -> Iterator[int]:
    """Yield the descriptor of a file in shared memory, whose pages are all there."""
    descriptor = os.memfd_create("tierline-bench")
    try:
        os.write(descriptor, b"\1" * size)
        yield descriptor
    finally:
        os.close(descriptor)


# What is said of it ---------------------------------------------------------------------------------------------------


def _cell_rows(effort: Effort, rounds: Rounds, reasons: Mapping[str, str]) -> Iterator[Row]:
    for operation, size, clients in itertools.product(OPERATIONS, effort.sizes, effort.clients):
        what = f"{operation} {format_byte_size(size)}, {clients} client{'s' * (clients > 1)}"
        goal = GOALS[operation] if size >= LARGE_BYTES else 1.0
        yield from _beside(what, partial(_key, operation=operation, size=size, clients=clients), goal, rounds, reasons)


def _cpu_rows(effort: Effort, cpu: Mapping[str, Sequence[float]], reasons: Mapping[str, str]) -> Iterator[Row]:
    for operation, size, clients in itertools.product(OPERATIONS, effort.sizes, effort.clients):
        ours, theirs = (
            percentile(cpu[_key(system, operation, size, clients)], 50) if system not in reasons else None
            for system in ("tieredstorage", "redis")
        )
        what = f"{operation} {format_byte_size(size)}, {clients} client{'s' * (clients > 1)}, CPU"
        yield Row(what, ours, "ms/GiB", Limit("redis", theirs), effort.rounds)


def _prefix_rows(effort: Effort, rounds: Rounds, reasons: Mapping[str, str]) -> Iterator[Row]:
    for prefix in effort.prefixes:
        for verb, done in (("lease", "fetched"), ("read", "read")):
            yield from _beside(
                f"remote prefix of {prefix}, {done}",
                partial(_prefix_key, verb=verb, prefix=prefix),
                3.0 if prefix.block_bytes >= LARGE_BYTES else 1.0,
                rounds,
                reasons,
            )


def _beside(
    what: str, key_of: Callable[[str], str], goal: float, rounds: Rounds, reasons: Mapping[str, str]
) -> Iterator[Row]:
    ours = key_of("tieredstorage")
    for peer in ("redis", "mooncake"):
        theirs = key_of(peer)
        if peer in reasons:
            yield not_measured(f"{what}, beside {peer}", "GB/s", reasons[peer])
            continue
        limit = Limit(peer, rounds.median(theirs), goal=goal if peer == "redis" else None)
        yield Row(f"{what}, beside {peer}", rounds.median(ours), "GB/s", limit, rounds.n(ours))


def _fetch_rows(effort: Effort, rounds: Rounds) -> Iterator[Row]:
    for size in effort.sizes:
        bare = Limit("bare sendfile", rounds.median(f"sendfile {size}"), goal=FETCH_GOAL)
        yield Row(
            f"fetch {format_byte_size(size)}, one after another",
            rounds.median(f"fetch {size}"),
            "GB/s",
            bare,
            rounds.n(f"fetch {size}"),
            "asked, found, fetched, summed, committed, leased",
        )


def _tables(
    effort: Effort, rounds: Rounds, cpu: Mapping[str, Sequence[float]], reasons: Mapping[str, str]
) -> list[Table]:
    systems = [name for name in ("tieredstorage", "redis", "mooncake") if name not in reasons]
    tables = []
    for operation in OPERATIONS:
        header = ["objects, clients"]
        for system in systems:
            header += [f"{system}, GB/s", "P50 · P99, ms", "CPU, ms/GiB"]
        header += ["of redis", "goal"] if "redis" in systems else []
        lines = []
        for size, clients in itertools.product(effort.sizes, effort.clients):
            line = [f"{format_byte_size(size)}, {clients}"]
            for system in systems:
                key = _key(system, operation, size, clients)
                latencies = f"{rounds.percentile(f'{key}, ms', 50):.3g} · {rounds.percentile(f'{key}, ms', 99):.3g}"
                line += [f"{rounds.median(key):.3g}", latencies, f"{percentile(cpu[key], 50):.0f}"]
            if "redis" in systems:
                ours, theirs = (
                    rounds.median(_key(system, operation, size, clients)) for system in ("tieredstorage", "redis")
                )
                goal = GOALS[operation] if size >= LARGE_BYTES else 1.0
                line += [f"{ours / theirs:.2f}", f"≥ {goal:.0f} {'✓' if ours >= goal * theirs else '✗'}"]
            lines.append(line)
        tables.append(Table(operation.capitalize(), header, lines))
    lines = []
    for prefix in effort.prefixes:
        for verb, done in (("lease", "fetched"), ("read", "read")):
            figures = [f"{rounds.median(_prefix_key(system, verb, prefix)):.3g}" for system in systems]
            lines.append([f"{prefix}, {done}", *figures])
    tables.append(Table("Whole prefixes from afar, one client", ["prefix", *(f"{s}, GB/s" for s in systems)], lines))
    lines = [
        [
            format_byte_size(size),
            f"{rounds.median(f'fetch {size}'):.3g}",
            f"{rounds.median(f'sendfile {size}'):.3g}",
            f"{rounds.median(f'fetch {size}') / rounds.median(f'sendfile {size}'):.2f}",
        ]
        for size in effort.sizes
    ]
    header = ["objects", "fetch, GB/s", "bare sendfile, GB/s", f"goal ≥ {FETCH_GOAL}"]
    tables.append(Table("One object after another from the other node", header, lines))
    return tables


def _notes(effort: Effort) -> list[str]:
    return [
        f"Median over {effort.rounds} rounds; the systems take turns in each. GB/s are 10⁹ bytes a second.",
        "All on one machine, over loopback: every process, and both ends of every transfer, share its processors.",
        "Clients are processes of their own. A read ends with the bytes in the client's memory; fetched means that the "
        "client has a lease on them, in its node's segment.",
        "A node would take an object for missing when a look-up takes 20 ms; here it waits for a second, so that every "
        "read is one, and how long it took is in its latency.",
        "Redis has no persistence and is asked by redis-py with hiredis, one value an object, of a prefix eight at a "
        "time; it has no local read, so the same reads stand beside both of ours. Mooncake's clients use registered "
        "memory (batch_get_into, 256 MiB at a time, and batch_put_from) and lend none.",
        "Processor time is that of servers and clients together, a GiB. Nothing is encrypted.",
        f"A prefix is of Llama-3.1-8B: {BYTES_PER_TOKEN // 1024} KiB a token, blocks of {CHUNK_TOKENS} tokens; where "
        "it says scaled, blocks are that much smaller, for this machine's memory.",
    ]
