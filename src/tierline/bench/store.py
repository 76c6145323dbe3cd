"""``tierline bench store``: a real node store beside the machine's limits and its peers, all in one run.

Every measurement takes its turn in each round, so that a disturbance of the machine meets all of them; a row is the
median over rounds. The node store is a process of its own with its own segment, on free ports, and is removed
afterwards.
"""

import contextlib
import functools
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tierline.bench import store_growth
from tierline.bench.floors import HttpFloor, SocketFloor
from tierline.bench.lease_load import LeaseLoad
from tierline.bench.limits import CONNECTIONS, HIREDIS, Copy, Redis, TcpStream, resident
from tierline.bench.mooncake import VERBS, Mooncake
from tierline.bench.plain_http import PIECE_BYTES, PlainHttp
from tierline.bench.programs import Program, answers, free_ports, tierline
from tierline.bench.registry import BenchOptions, Findings, Say
from tierline.bench.report import Bar, Chart
from tierline.bench.rows import Limit, Rounds, Row, at_most, not_measured
from tierline.client import CommitEntry, NodeClient, Slot
from tierline.client.copying import checksum, copy_into
from tierline.configuration import format_byte_size
from tierline.errors import ChecksumMismatch, TierlineError

MIB = 1024 * 1024
GIB = 1024 * MIB
GIGABYTE = 1e9
BUCKET = "bench"
PREFIX_KEYS = (256, 2048)
CLIENTS = 16
"""Connections of the row about many clients at once."""

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (the kernel's tmpfs, not a temporary file)
_TTL_SECONDS = 60.0
_CALL_SECONDS = 20.0
_OBJECTS_READ = 4
_PREFIX_OBJECT_BYTES = 4096
_REST_SECONDS = 30.0
_HOLES_AN_OBJECT = 16
"""After the churn, free space consists of holes of a sixteenth of an object."""


@dataclass(frozen=True)
class _Effort:
    """How much is measured: rounds, and in each round so many of each kind."""

    rounds: int
    object_bytes: int
    capacity_bytes: int
    copies: int
    transfers: int
    pairs: int
    prefix_leases: int
    peer_transfers: int


_FULL = _Effort(
    rounds=5,
    object_bytes=32 * MIB,
    capacity_bytes=768 * MIB,
    copies=8,
    transfers=6,
    pairs=800,
    prefix_leases=10,
    peer_transfers=3,
)
_QUICK = _Effort(
    rounds=1,
    object_bytes=2 * MIB,
    capacity_bytes=256 * MIB,
    copies=2,
    transfers=2,
    pairs=50,
    prefix_leases=2,
    peer_transfers=1,
)


def measure(options: BenchOptions, say: Say) -> Findings:
    """Measure everything in turns and return the rows.

    Raises
    ------
    TierlineError
        When the node store cannot be started or refuses an operation.
    """
    effort = _QUICK if options.quick else _FULL
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tierline-bench-")))
        say(f"starting a node store of {format_byte_size(effort.capacity_bytes)} and what it is compared with")
        program, port, socket = stack.enter_context(_node(folder, effort))
        client = stack.enter_context(NodeClient(socket, client="bench", writer=True, timeout_s=_CALL_SECONDS))
        floor = stack.enter_context(HttpFloor(folder, effort.object_bytes))
        summing_floor = stack.enter_context(HttpFloor(folder, effort.object_bytes, sums=True))
        turns = _Turns(
            effort,
            program,
            client,
            stack.enter_context(PlainHttp(port)),
            stack.enter_context(LeaseLoad(port, CLIENTS, _path_of_a_lease)),
            stack.enter_context(TcpStream(effort.object_bytes, folder)),
            floor,
            summing_floor,
            stack.enter_context(LeaseLoad(floor.port, CLIENTS, _path_of_a_lease)),
            stack.enter_context(SocketFloor(folder)),
        )
        peers = _Peers.start(stack, effort, folder)
        turns.prepare()
        for number in range(effort.rounds):
            say(f"round {number + 1} of {effort.rounds}")
            turns.take_all()
            peers.take_all(turns.rounds)
        say("churning the segment, then reading what was written into its holes")
        turns.churn()
        for _ in range(effort.rounds):
            turns.copy_and_read(" after churn")
    rows = [*_rows(turns), *peers.rows(turns.rounds)]
    with tempfile.TemporaryDirectory(prefix="tierline-bench-") as logs:
        growth = store_growth.measure(store_growth.QUICK if options.quick else store_growth.FULL, Path(logs), say)
    return Findings([*rows, *growth], _notes(effort, turns.churned_extents), [], _chart(rows))


class _Peers:
    """Other stores, as far as they are installed; each takes its turn after ours."""

    def __init__(self, effort: _Effort, redis: Redis | str, mooncake: Mooncake | str) -> None:
        self._effort = effort
        self._size = format_byte_size(effort.object_bytes)
        self._redis = redis
        self._mooncake = mooncake

    @classmethod
    def start(cls, stack: contextlib.ExitStack, effort: _Effort, folder: Path) -> "_Peers":
        """Start what is installed; of the rest, remember why it is not there."""
        redis: Redis | str
        mooncake: Mooncake | str
        try:
            redis = stack.enter_context(Redis(effort.object_bytes, folder))
        except FileNotFoundError as error:
            redis = str(error)
        try:
            mooncake = stack.enter_context(Mooncake(effort.object_bytes, folder))
        except FileNotFoundError as error:
            mooncake = str(error)
        return cls(effort, redis, mooncake)

    def take_all(self, rounds: Rounds) -> None:
        """Take one turn of everything."""
        if isinstance(self._redis, Redis):
            for client, connections in itertools.product(self._redis.clients, CONNECTIONS):
                rounds.add(f"SET {client} {connections}", [self._redis.set(client, connections) / GIGABYTE])
                rounds.add(f"GET {client} {connections}", [self._redis.get(client, connections) / GIGABYTE])
        if isinstance(self._mooncake, Mooncake):
            for verb in VERBS:
                taken = self._mooncake.take(verb, self._effort.peer_transfers)
                rounds.add(f"Mooncake {verb}", [rate / GIGABYTE for rate in taken])

    def rows(self, rounds: Rounds) -> list[Row]:
        """Return what was measured, each with ours beside it."""
        return [*self._redis_rows(rounds), *self._mooncake_rows(rounds)]

    def _redis_rows(self, rounds: Rounds) -> Iterator[Row]:
        for verb, ours in (("GET", "read"), ("SET", "write")):
            if isinstance(self._redis, str):
                yield not_measured(f"Redis {verb} {self._size}", "GB/s", self._redis)
                continue
            for client in self._redis.clients:
                best = max(CONNECTIONS, key=lambda each: rounds.median(f"{verb} {client} {each}"))
                measurement = f"{verb} {client} {best}"
                rate = rounds.median(measurement)
                name = f"Redis {verb} {self._size}, {client}"
                yield Row(name, rate, "GB/s", n=rounds.n(measurement), note=f"best of 1–4 connections: {best}")
                goal = 8.0 if client == HIREDIS else None
                yield self._ours(rounds, ours, f"Redis {verb} by {client}", Limit(f"Redis {verb}", rate, goal=goal))

    def _mooncake_rows(self, rounds: Rounds) -> Iterator[Row]:
        for verb in VERBS:
            name = f"Mooncake {verb} {self._size}, two processes"
            if isinstance(self._mooncake, str):
                yield not_measured(name, "GB/s", self._mooncake)
                continue
            rate = rounds.median(f"Mooncake {verb}")
            yield Row(name, rate, "GB/s", n=rounds.n(f"Mooncake {verb}"))
            ours = "read" if verb.startswith("get") else "write"
            yield self._ours(rounds, ours, f"Mooncake {verb}", Limit(f"Mooncake {verb}", rate))

    def _ours(self, rounds: Rounds, ours: str, beside: str, limit: Limit) -> Row:
        return Row(f"{ours} {self._size}, beside {beside}", rounds.median(ours), "GB/s", limit, rounds.n(ours))


class _Turns:
    """One method a measurement; each takes one turn and books its samples."""

    def __init__(
        self,
        effort: _Effort,
        program: Program,
        client: NodeClient,
        http: PlainHttp,
        many: LeaseLoad,
        stream: TcpStream,
        http_floor: HttpFloor,
        summing_floor: HttpFloor,
        many_floor: LeaseLoad,
        socket_floor: SocketFloor,
    ) -> None:
        self.effort = effort
        self.rounds = Rounds()
        self.churned_extents = 0
        self._program = program
        self._client = client
        self._http = http
        self._many = many
        self._stream = stream
        self._http_floor = http_floor
        self._summing_floor = summing_floor
        self._many_floor = many_floor
        self._socket_floor = socket_floor
        self._copy = Copy(effort.object_bytes)
        self._source = resident(effort.object_bytes)
        self._source_checksum = checksum([self._source])
        self._target = resident(effort.object_bytes)
        self._numbers = itertools.count()
        self._to_read: list[str] = []
        self._prefix = [f"block-{number}" for number in range(max(PREFIX_KEYS))]

    def prepare(self) -> None:
        """Store what will be read, and touch every page that this process will touch."""
        self._client.mapping.prefault()
        self._to_read = [self._store(self._new_name(), self._source) for _ in range(_OBJECTS_READ)]
        small = resident(_PREFIX_OBJECT_BYTES)
        for name in self._prefix:
            self._store(name, small)

    def take_all(self) -> None:
        """Take one turn of everything; what is compared stands side by side."""
        self.copy_and_read()
        self.copy_alone()
        self.read_verified()
        self.write("write", self._fill)
        self.write("write with checksum", self._fill_and_sum)
        self.copy_and_read()
        self.stream()
        self.put()
        self.stream()
        self.pairs_over_http()
        self.pairs_over_socket()
        self.pairs_of_many()
        for count in PREFIX_KEYS:
            self.prefix_leases(count)

    def copy_and_read(self, suffix: str = "") -> None:
        """Copy private memory, then lease an object, copy it to private memory and release it; by turns."""
        copied, read = [], []
        objects = itertools.cycle(self._to_read)
        for _ in range(self.effort.copies):
            copied.append(self._rate(self._copy.copy))
            read.append(self._rate(functools.partial(self._read_one, next(objects))))
        self.rounds.add(f"memcpy{suffix}", copied)
        self.rounds.add(f"read{suffix}", read)

    def copy_alone(self) -> None:
        """Copy private memory and leased bytes by turns, in processor time: what is left of a read without waiting."""
        leased = self._client.prefix_lease(BUCKET, self._to_read, _TTL_SECONDS)
        objects = itertools.cycle(leased.objects)
        copied, read = [], []
        for _ in range(self.effort.copies):
            extents = next(objects).extents
            copied.append(self._rate(self._copy.copy, time.thread_time))
            copy = functools.partial(self._client.mapping.read_into, extents, self._target)
            read.append(self._rate(copy, time.thread_time))
        self._client.release(leased.lease)
        self.rounds.add("memcpy alone", copied)
        self.rounds.add("read alone", read)

    def read_verified(self) -> None:
        """Read as the connector does, which verifies the stored bytes once they are copied."""
        objects = itertools.islice(itertools.cycle(self._to_read), self.effort.copies)
        self.rounds.add(
            "read verified", [self._rate(functools.partial(self._read_and_verify, name)) for name in objects]
        )

    def write(self, name: str, fill: Callable[[Slot], int]) -> None:
        """Reserve a slot, copy private memory into it, commit it."""
        names = [self._new_name() for _ in range(self.effort.transfers)]
        size = self.effort.object_bytes
        self.rounds.add(name, [self._rate(functools.partial(self._reserve, each, size, fill)) for each in names])
        self._client.delete(BUCKET, names)

    def stream(self) -> None:
        """Send an object over loopback TCP."""
        self.rounds.add("tcp", [self._rate(self._stream.send) for _ in range(self.effort.transfers)])

    def put(self) -> None:
        """PUT objects as LMCache's client does."""
        names = [self._new_name() for _ in range(self.effort.transfers)]
        with self._cpu_of("put", len(names)):
            self.rounds.add("put", [self._rate(functools.partial(self._put_one, each)) for each in names])
        with self._cpu_of("put floor", len(names), self._http_floor.program):
            self.rounds.add("put floor", [self._rate(self._http_floor.put) for _ in names])
        with self._cpu_of("put summing floor", len(names), self._summing_floor.program):
            self.rounds.add("put summing floor", [self._rate(self._summing_floor.put) for _ in names])
        self._client.delete(BUCKET, names)

    def pairs_over_http(self) -> None:
        """Lease and release one object over HTTP."""
        path = _path_of_a_lease()

        def pair() -> None:
            status, body = self._http.request("POST", path)
            lease = body.partition(b'"id"')[2].split(b'"')[1].decode()
            released, _ = self._http.request("POST", f"/v1/leases/{lease}/release")
            if (status, released) != (200, 200):
                raise TierlineError(f"the node store answered a lease with {status} and its release with {released}")

        with self._cpu_of("http pair", self.effort.pairs):
            self.rounds.add("http pair", [1e3 * _seconds(pair) for _ in range(self.effort.pairs)])
        with self._cpu_of("http floor", self.effort.pairs, self._http_floor.program):
            floor = [1e3 * _seconds(self._http_floor.pair) for _ in range(self.effort.pairs)]
        self.rounds.add("http floor", floor)

    def pairs_over_socket(self) -> None:
        """Lease and release one object over the UNIX socket."""
        names = self._to_read[:1]

        def pair() -> None:
            self._client.release(self._client.prefix_lease(BUCKET, names, _TTL_SECONDS).lease)

        with self._cpu_of("socket pair", self.effort.pairs):
            self.rounds.add("socket pair", [1e3 * _seconds(pair) for _ in range(self.effort.pairs)])
        with self._cpu_of("socket floor", self.effort.pairs, self._socket_floor.program):
            floor = [1e3 * _seconds(self._socket_floor.pair) for _ in range(self.effort.pairs)]
        self.rounds.add("socket floor", floor)

    def pairs_of_many(self) -> None:
        """Lease and release over HTTP from many clients at once."""
        with self._cpu_of("many pairs", self.effort.pairs):
            self.rounds.add("many pairs", [1e3 * seconds for seconds in self._many.run(self.effort.pairs)])
        with self._cpu_of("many floor", self.effort.pairs, self._http_floor.program):
            self.rounds.add("many floor", [1e3 * seconds for seconds in self._many_floor.run(self.effort.pairs)])

    def prefix_leases(self, count: int) -> None:
        """Lease many objects at once; the release is not timed."""
        names = self._prefix[:count]
        samples = []
        for _ in range(self.effort.prefix_leases):
            started = time.perf_counter()
            leased = self._client.prefix_lease(BUCKET, names, _TTL_SECONDS)
            samples.append(1e3 * (time.perf_counter() - started))
            if len(leased.objects) != count:
                raise TierlineError(f"a prefix lease of {count} objects that are there gave {len(leased.objects)}")
            self._client.release(leased.lease)
        self.rounds.add(f"prefix {count}", samples)

    def churn(self) -> None:
        """Leave only small holes in the segment and write what will be read into them."""
        self._client.delete(BUCKET, [*self._to_read, *self._prefix])
        self._wait_for_resting_pages()
        hole = resident(self.effort.object_bytes // _HOLES_AN_OBJECT)
        room = int(self._client.stats()["store"]["free_bytes"])
        fillers = [self._store(self._new_name(), hole) for _ in range(room // len(hole))]
        self._client.delete(BUCKET, fillers[::2])
        self._to_read = [self._store(self._new_name(), self._source) for _ in range(_OBJECTS_READ)]
        leased = self._client.prefix_lease(BUCKET, self._to_read, _TTL_SECONDS)
        self.churned_extents = max(len(each.extents) for each in leased.objects)
        self._client.release(leased.lease)

    def _wait_for_resting_pages(self) -> None:
        """Pages of deleted objects are free once their last lease has rested."""
        deadline = time.monotonic() + _REST_SECONDS
        while self._client.stats()["store"]["retired_bytes"]:
            if time.monotonic() > deadline:
                raise TierlineError(f"deleted objects still keep their pages after {_REST_SECONDS:.0f} s")
            time.sleep(0.1)

    def _read_one(self, name: str) -> None:
        leased = self._client.prefix_lease(BUCKET, [name], _TTL_SECONDS)
        self._client.mapping.read_into(leased.objects[0].extents, self._target)
        self._client.let_go(leased.lease)

    def _read_and_verify(self, name: str) -> None:
        leased = self._client.prefix_lease(BUCKET, [name], _TTL_SECONDS)
        (stored,) = leased.objects
        self._client.mapping.read_into(stored.extents, self._target)
        if self._client.mapping.checksum(stored.extents, stored.size) != stored.checksum:
            raise ChecksumMismatch(f"the bytes of {name} are not those that were committed")
        self._client.let_go(leased.lease)

    def _put_one(self, name: str) -> None:
        status, body = self._http.request("PUT", f"/v1/kv/{BUCKET}/{name}", self._source)
        if status != 200:
            raise TierlineError(f"the node store answered a PUT with {status}: {body[:200].decode(errors='replace')}")

    def _fill(self, slot: Slot) -> int:
        copy_into(self._client.mapping.views(slot.extents), [self._source])
        return self._source_checksum

    def _fill_and_sum(self, slot: Slot) -> int:
        return self._client.mapping.write_from(slot.extents, self._source)

    def _reserve(self, name: str, size: int, fill: Callable[[Slot], int]) -> None:
        """Reserve a slot, let ``fill`` write it and tell the checksum, commit it."""
        (slot,) = self._client.reserve(BUCKET, [name], [size])
        if not isinstance(slot, Slot):
            raise TierlineError(f"the node store gave no slot for {size} bytes: {slot}")
        (refusal,) = self._client.commit(BUCKET, [CommitEntry(slot.slot, name, size, fill(slot))])
        if refusal is not None:
            raise TierlineError(f"the node store did not take a commit: {refusal}")

    def _store(self, name: str, payload: memoryview) -> str:
        self._reserve(name, len(payload), lambda slot: self._client.mapping.write_from(slot.extents, payload))
        return name

    def _new_name(self) -> str:
        return f"object-{next(self._numbers)}"

    def _rate(self, operation: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
        return self.effort.object_bytes / _seconds(operation, clock) / GIGABYTE

    @contextlib.contextmanager
    def _cpu_of(self, name: str, operations: int, program: Program | None = None) -> Iterator[None]:
        """Book the processor time an operation that the node store, or another program, uses for what is inside."""
        program = program or self._program
        before = program.cpu_seconds()
        yield
        self.rounds.add(f"{name}, cpu", [(program.cpu_seconds() - before) / operations])


@contextlib.contextmanager
def _node(folder: Path, effort: _Effort) -> Iterator[tuple[Program, int, Path]]:
    """Run a node store; yield its process, its port and its socket, and leave nothing of it behind."""
    (port,) = free_ports(1)
    socket = folder / "node.sock"
    segment = f"tierline-bench-{os.getpid()}"
    argv = tierline(
        *("node", "--port", str(port), "--socket", str(socket), "--shared-memory-name", segment),
        *("--capacity", str(effort.capacity_bytes), "--log-level", "warning"),
    )
    try:
        with Program(argv, folder / "node.log", lambda: answers(f"http://127.0.0.1:{port}/readyz")) as program:
            yield program, port, socket
    finally:
        for file in _SHARED_MEMORY.glob(f"{segment}*"):  # the segment, its second link and its journal
            file.unlink()


def _path_of_a_lease() -> str:
    return f"/v1/kv/{BUCKET}/object-0/leases?timeout_ms=0&ttl_s={_TTL_SECONDS:.0f}"


def _seconds(operation: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    operation()
    return clock() - started


def _rows(turns: _Turns) -> list[Row]:
    rounds, size = turns.rounds, format_byte_size(turns.effort.object_bytes)

    def rate(name: str, measurement: str, limit: Limit | None = None, note: str = "") -> Row:
        return Row(name, rounds.median(measurement), "GB/s", limit, rounds.n(measurement), note)

    def latency(name: str, measurement: str, percent: float, limit: Limit | None = None) -> Row:
        return Row(name, rounds.percentile(measurement, percent), "ms", limit, rounds.n(measurement))

    def cpu(name: str, measurement: str, unit: str, scale: float, bound: float, floor: str) -> Iterator[Row]:
        used = scale * rounds.median(f"{measurement}, cpu")
        yield Row(f"{name}, server CPU", used, unit, at_most(bound), rounds.n(measurement))
        least = scale * rounds.median(f"{floor}, cpu")
        yield Row(
            f"{name}, server CPU beside the least",
            used,
            unit,
            Limit("server that looks at nothing", least),
            rounds.n(measurement),
        )

    copied, churned = rounds.median("memcpy"), rounds.median("memcpy after churn")
    streamed = rounds.median("tcp")
    rows = [
        rate(f"memcpy {size}", "memcpy"),
        rate(
            f"read {size} by lease, fresh",
            "read",
            Limit("memcpy", copied, goal=0.9),
            "lease, copy, release without waiting for its answer",
        ),
        rate(
            f"read {size}, its copy alone, by processor time",
            "read alone",
            Limit("memcpy by processor time", rounds.median("memcpy alone")),
            "the part of a read that moves bytes; the rest is a round trip and the waiting for a processor",
        ),
        rate(
            f"read {size} by lease, verified",
            "read verified",
            Limit("memcpy", copied),
            "lease, copy, checksum of the stored bytes, release: as the connector does",
        ),
        rate(
            f"read {size} by lease, after churn",
            "read after churn",
            Limit("memcpy", churned, goal=0.8),
            f"objects of up to {turns.churned_extents} fragments; memcpy measured again beside it",
        ),
        rate(
            f"write {size} by reservation, checksum known",
            "write",
            Limit("memcpy", copied, goal=0.7),
            "reserve, copy, commit with a checksum that was known before",
        ),
        rate(
            f"write {size} by reservation, checksum computed",
            "write with checksum",
            Limit("memcpy", copied),
            "the same, XXH3-64 computed while copying; the connector computes it right after the copy",
        ),
        rate(f"loopback TCP {size}, sendall to recv_into", "tcp"),
        rate(
            f"HTTP PUT {size}",
            "put",
            Limit("loopback TCP", streamed, goal=0.5),
            f"body in pieces of {format_byte_size(PIECE_BYTES)}, checksum computed by the node store",
        ),
        *cpu(f"HTTP PUT {size}", "put", "ms/GiB", 1e3 * GIB / turns.effort.object_bytes, 460.0, "put floor"),
        Row(
            f"HTTP PUT {size}, server CPU beside the least and its checksum",
            1e3 * GIB / turns.effort.object_bytes * rounds.median("put, cpu"),
            "ms/GiB",
            Limit(
                "server that sums and looks at nothing else",
                1e3 * GIB / turns.effort.object_bytes * rounds.median("put summing floor, cpu"),
            ),
            rounds.n("put"),
        ),
        latency("lease and release over HTTP, median", "http pair", 50, at_most(0.6)),
        latency("lease and release over HTTP, P99", "http pair", 99),
        *cpu("lease and release over HTTP", "http pair", "µs", 1e6, 100.0, "http floor"),
        latency(f"lease over HTTP, {CLIENTS} clients at once, median", "many pairs", 50),
        *cpu(f"lease and release over HTTP, {CLIENTS} clients", "many pairs", "µs", 1e6, 100.0, "many floor"),
        latency("lease and release over the UNIX socket, median", "socket pair", 50, at_most(0.6)),
        latency("lease and release over the UNIX socket, P99", "socket pair", 99),
        *cpu("lease and release over the UNIX socket", "socket pair", "µs", 1e6, 100.0, "socket floor"),
    ]
    rows += [
        latency(f"prefix lease of {count} objects, median", f"prefix {count}", 50, at_most(bound))
        for count, bound in zip(PREFIX_KEYS, (3.0, 10.0), strict=True)
    ]
    return rows


def _notes(effort: _Effort, extents: int) -> list[str]:
    return [
        f"Median over {effort.rounds} rounds of the median in a round; all measurements take turns in each round.",
        "GB/s are 10⁹ bytes a second. Reads and writes go between private memory of the client and the segment; pages "
        "were touched before, as an engine does when it starts.",
        "The goal of reads is held against copies that nobody verifies, the goal of writes against copies whose "
        "checksum is known. The connector verifies what it reads and sums what it writes: the rows verified and "
        "checksum computed, which have no goal, are nearer to its work.",
        "Server CPU is the processor time of all threads of the node store's process. The least is that of a server on "
        "the same event loop which receives the same bytes and answers without looking at them.",
        f"After churn: the segment was filled with objects of a {_HOLES_AN_OBJECT}th of the size, every other one was "
        f"deleted, and the objects read were written into the holes ({extents} fragments).",
        "Redis has no persistence and is asked over loopback TCP. Its goal is held against redis-py with hiredis; the "
        "bare socket receives into memory it has already, and is shown for comparison.",
        "Mooncake Store runs as a master, a process that lends its memory and a client, over loopback TCP; put_from "
        "and get_into use memory that was registered before.",
        "Rows that name a number of objects are of node stores whose segments have no memory behind them: a page gets "
        "it when it is written or read. Everything else about those nodes is real; their objects are of one page.",
    ]


def _chart(rows: Sequence[Row]) -> Chart:
    bars = [
        Bar(
            row.name,
            row.value,
            goal=row.limit.value * row.limit.goal if row.limit and row.limit.value and row.limit.goal else None,
        )
        for row in rows
        if row.value is not None and row.unit == "GB/s" and "beside" not in row.name
    ]
    return Chart("Node store beside its limits; mark: goal", "GB/s", bars)
