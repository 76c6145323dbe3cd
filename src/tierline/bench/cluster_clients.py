"""Many clients of one store at once, each a process of its own, told what to read and write by one line a turn.

Run as ``python -m tierline.bench.cluster_clients SYSTEM ADDRESS COUNT``; SYSTEM is ``node`` (ADDRESS is its socket),
``redis`` (its port) or ``mooncake`` (its master). Clients are forked once everything is imported, so that 32 of them
cost little; each has memory of its own that was touched before, and reads into it as an engine would.
"""

import ctypes
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import msgspec

from tierline.bench.limits import resident
from tierline.client import CommitEntry, NodeClient, Slot
from tierline.errors import TierlineError

System = Literal["node", "redis", "mooncake"]
Verb = Literal["read", "lease", "write", "forget"]
"""Read into the client's memory; read as far as the store gives a lease, and no further; write from that memory; remove
what was stored, however long that takes."""

BUCKET = "bench"
_TTL_S = 60.0
_WAIT_S = 30.0
_TOLD_EVERY_S = 0.01
"""Nodes of a pool tell each other so often what they have."""
_REDIS_BATCH = 8
_MOONCAKE_BATCH_BYTES = 256 * 2**20
_MOONCAKE_LEASE_EXPIRED = -707
"""Leases are short, for what is leased cannot be removed; of 32 clients some outlast theirs, and read once more."""
_STOP_S = 10.0


class Turn(msgspec.Struct, frozen=True):
    """What each of the first ``clients`` does, at the same time.

    Parameters
    ----------
    names
        For each client, operations in order; an operation is on as many objects as it has names.
    anchor
        Of the names, where they are one prefix.
    """

    verb: Verb
    size: int
    names: list[list[list[str]]]
    anchor: str = ""


class Taken(msgspec.Struct, frozen=True):
    """How it went: seconds of each operation, from the first start to the last end, and the clients' processor time."""

    seconds: list[float]
    whole_s: float
    cpu_s: float


class _Done(msgspec.Struct, frozen=True):
    """The same of one client; ``began`` and ``ended`` by the clock that all processes have in common."""

    seconds: list[float]
    began: float
    ended: float
    cpu_s: float
    error: str = ""


class Clients:
    """A process for each client, from the outside.

    Parameters
    ----------
    system, address
        See the module.
    count
        How many clients there are at most.
    """

    def __init__(self, system: System, address: str, count: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, system, address, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Mooncake logs there; what fails is in the answer
            text=True,
        )

    def take(self, turn: Turn) -> Taken:
        """Have a turn taken and return how it went. Raises ``TierlineError`` where a client could not do it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(turn).decode() + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise TierlineError("the clients of the benchmark ended before their answer")
        done = msgspec.json.decode(line, type=list[_Done])
        if errors := {each.error for each in done if each.error}:
            raise TierlineError(f"{turn.verb} of {turn.size} bytes: {'; '.join(sorted(errors))}")
        return Taken(
            [seconds for each in done for seconds in each.seconds],
            max(each.ended for each in done) - min(each.began for each in done),
            sum(each.cpu_s for each in done),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class _Client(Protocol):
    """One connection; memory is as large as what is read or written at once."""

    def read(self, names: Sequence[str], memory: memoryview, anchor: str) -> None:
        """Fill the memory with the objects, one behind the other."""

    def lease(self, names: Sequence[str], memory: memoryview, anchor: str) -> None:
        """Have the objects where this machine can read them, without reading them."""

    def write(self, names: Sequence[str], memory: memoryview, anchor: str) -> None:
        """Store the memory as these objects, in equal parts."""

    def forget(self, names: Sequence[str], memory: memoryview, anchor: str) -> None:
        """Remove the objects."""


class _NodeClient:
    """Leases, and reserves, on the socket of a node store."""

    def __init__(self, address: str, number: int) -> None:
        self._client = NodeClient(address, client=f"bench-{number}", writer=True, timeout_s=2 * _WAIT_S)
        self._is_touched = False

    def read(self, names: Sequence[str], memory: memoryview, anchor: str) -> None:
        lease, objects = self._leased(names, anchor)
        start = 0
        for each in objects:
            self._client.mapping.read_into(each.extents, memory[start : start + each.size])
            start += each.size
        self._client.let_go(lease)

    def lease(self, names: Sequence[str], memory: memoryview, anchor: str) -> None:  # noqa: ARG002
        lease, _ = self._leased(names, anchor)
        self._client.let_go(lease)

    def write(self, names: Sequence[str], memory: memoryview, anchor: str) -> None:
        size = memory.nbytes // len(names)
        slots = self._client.reserve(BUCKET, names, [size] * len(names))
        entries = []
        for number, (name, slot) in enumerate(zip(names, slots, strict=True)):
            if not isinstance(slot, Slot):
                raise TierlineError(f"the node store gave no slot: {slot}")
            part = memory[number * size : (number + 1) * size]
            checksum = self._client.mapping.write_from(slot.extents, part)
            entries.append(CommitEntry(slot.slot, name, size, checksum, anchor))
        if any(refusal is not None for refusal in self._client.commit(BUCKET, entries)):
            raise TierlineError("the node store refused a commit")

    def forget(self, names: Sequence[str], memory: memoryview, anchor: str) -> None:  # noqa: ARG002
        self._client.delete(BUCKET, names)

    def _leased(self, names: Sequence[str], anchor: str) -> tuple[str, Sequence[Any]]:
        if not self._is_touched:
            self._client.mapping.prefault()
            self._is_touched = True
        end = time.monotonic() + _WAIT_S
        while True:
            leased = self._client.prefix_lease(BUCKET, names, _TTL_S, wait_s=_WAIT_S, anchor=anchor)
            if len(leased.objects) == len(names):
                return leased.lease, leased.objects
            if leased.lease:
                self._client.let_go(leased.lease)
            if time.monotonic() > end:
                raise TierlineError(f"the node store leased {len(leased.objects)} of {len(names)} objects")
            time.sleep(_TOLD_EVERY_S)  # the pool has not heard of all, for its nodes wait for a processor


class _RedisClient:
    """redis-py with hiredis, as LMCache uses it: one value an object."""

    def __init__(self, address: str, number: int) -> None:  # noqa: ARG002
        import redis

        self._client = redis.Redis(host="127.0.0.1", port=int(address), single_connection_client=True)

    def read(self, names: Sequence[str], memory: memoryview, anchor: str) -> None:  # noqa: ARG002
        size = memory.nbytes // len(names)
        start = 0
        for first in range(0, len(names), _REDIS_BATCH):
            batch = names[first : first + _REDIS_BATCH]
            values = [self._client.get(batch[0])] if len(batch) == 1 else self._client.mget(batch)
            for value in values:
                if value is None:
                    raise TierlineError("Redis does not have what was stored")
                memory[start : start + size] = value
                start += size

    lease = read

    def write(self, names: Sequence[str], memory: memoryview, anchor: str) -> None:  # noqa: ARG002
        size = memory.nbytes // len(names)
        for number, name in enumerate(names):
            self._client.set(name, memory[number * size : (number + 1) * size])

    def forget(self, names: Sequence[str], memory: memoryview, anchor: str) -> None:  # noqa: ARG002
        self._client.delete(*names)


class _MooncakeClient:
    """A client of Mooncake that lends no memory; its own is registered, so that nothing is copied twice."""

    def __init__(self, address: str, number: int) -> None:  # noqa: ARG002
        from mooncake.store import MooncakeDistributedStore

        self._store = MooncakeDistributedStore()
        _require(self._store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 64 * 2**20, "tcp", "", address), "setup")
        self._registered: tuple[int, int] = (0, 0)

    def read(self, names: Sequence[str], memory: memoryview, anchor: str) -> None:  # noqa: ARG002
        places, size = self._places(names, memory)
        each = max(1, _MOONCAKE_BATCH_BYTES // size)
        end = time.monotonic() + _WAIT_S
        wanted = list(zip(names, places, strict=True))
        while wanted:
            batch, wanted = wanted[:each], wanted[each:]
            asked, into = map(list, zip(*batch, strict=True))
            for one, got in zip(batch, self._store.batch_get_into(asked, into, [size] * len(batch)), strict=True):
                if got == _MOONCAKE_LEASE_EXPIRED and time.monotonic() < end:
                    wanted.append(one)
                elif got != size:
                    raise TierlineError(f"Mooncake's batch_get_into gave {got}")

    lease = read

    def write(self, names: Sequence[str], memory: memoryview, anchor: str) -> None:  # noqa: ARG002
        places, size = self._places(names, memory)
        for status in self._store.batch_put_from(list(names), places, [size] * len(names)):
            _require(status, "batch_put_from")

    def forget(self, names: Sequence[str], memory: memoryview, anchor: str) -> None:  # noqa: ARG002
        end = time.monotonic() + _WAIT_S
        for name in names:
            while self._store.remove(name):  # as long as somebody's lease on it lasts
                if time.monotonic() > end:
                    raise TierlineError("Mooncake does not remove what nobody reads")
                time.sleep(0.05)

    def _places(self, names: Sequence[str], memory: memoryview) -> tuple[list[int], int]:
        size = memory.nbytes // len(names)
        start = ctypes.addressof((ctypes.c_char * memory.nbytes).from_buffer(memory))
        if self._registered != (start, memory.nbytes):
            if self._registered[0]:
                _require(self._store.unregister_buffer(self._registered[0]), "unregister_buffer")
            _require(self._store.register_buffer(start, memory.nbytes), "register_buffer")
            self._registered = (start, memory.nbytes)
        return [start + number * size for number in range(len(names))], size


_CLIENTS: dict[str, Callable[[str, int], _Client]] = {
    "node": _NodeClient,
    "redis": _RedisClient,
    "mooncake": _MooncakeClient,
}


def _require(status: int, what: str) -> None:
    if status:
        raise TierlineError(f"Mooncake's {what} gave {status}")


def _serve_one(system: str, address: str, number: int, told: Connection) -> None:
    """Be one client, until the pipe ends."""
    client: _Client | None = None
    memory = memoryview(bytearray())
    while True:
        try:
            turn = msgspec.json.decode(told.recv_bytes(), type=Turn)
        except EOFError:
            return
        operations = turn.names[number]
        seconds: list[float] = []
        error = ""
        began, cpu = time.monotonic(), time.process_time()
        try:
            client = client or _CLIENTS[system](address, number)
            wanted = turn.size * max(map(len, operations))
            if memory.nbytes != wanted and turn.verb != "forget":
                memory = resident(wanted)
            began, cpu = time.monotonic(), time.process_time()
            do = getattr(client, turn.verb)
            for names in operations:
                started = time.perf_counter()
                do(names, memory[: turn.size * len(names)], turn.anchor)
                seconds.append(time.perf_counter() - started)
        except Exception as failure:  # noqa: BLE001  (told to the one who asked)
            error = f"{type(failure).__name__}: {failure}"
        ended = time.monotonic()
        told.send_bytes(msgspec.json.encode(_Done(seconds, began, ended, time.process_time() - cpu, error)))


def _main(system: str, address: str, count: int) -> None:
    if system == "redis":
        import redis  # noqa: F401  (once, before the forks)
    context = multiprocessing.get_context("fork")
    pipes: list[Connection] = []
    for number in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve_one, args=(system, address, number, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
    for line in sys.stdin:
        taking = pipes[: len(msgspec.json.decode(line, type=Turn).names)]
        for pipe in taking:
            pipe.send_bytes(line.encode())
        done = [msgspec.json.decode(pipe.recv_bytes(), type=_Done) for pipe in taking]
        print(msgspec.json.encode(done).decode(), flush=True)  # noqa: T201  (read by the parent process)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
