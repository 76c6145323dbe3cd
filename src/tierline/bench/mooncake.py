"""Mooncake Store on loopback TCP: its master, a process that lends memory, and a client in a third process.

Run as ``python -m tierline.bench.mooncake lend MASTER BYTES`` or ``… ask MASTER BYTES``. The client is told what to do
by lines on its standard input and answers each with a line of seconds, so that Mooncake's threads are in none of ours.
"""

import contextlib
import ctypes
import importlib.util
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tierline.bench.limits import resident
from tierline.bench.programs import Program, free_ports
from tierline.errors import TierlineError

VERBS = ("put", "put_from", "get", "get_into")
"""By copy, and zero-copy from or into memory that was registered before."""

_LENT_OBJECTS = 32
_LEASE_MS = 500
"""How long Mooncake keeps what was read from being removed; long enough for a slow read."""

_READY = "ready"
_US = (sys.executable, "-m", "tierline.bench.mooncake")
_STOP_SECONDS = 5.0


class MooncakeServers:
    """Its master, at ``address``, and a process that lends memory.

    Parameters
    ----------
    lent_bytes
        How much.
    lease_ms
        How long what is read stays, and a read may take.

    Raises
    ------
    FileNotFoundError
        Mooncake, or a library that it needs, is not installed.
    """

    def __init__(self, lent_bytes: int, folder: Path, lease_ms: int) -> None:
        master = Path(sys.executable).with_name("mooncake_master")
        if importlib.util.find_spec("mooncake") is None or not (master.exists() or shutil.which(master.name)):
            raise FileNotFoundError("mooncake-transfer-engine-non-cuda not installed")
        rpc, metrics = free_ports(2)
        argv = [
            *(str(master) if master.exists() else master.name, f"--rpc_port={rpc}", "--rpc_address=127.0.0.1"),
            *("--metrics_host=127.0.0.1", f"--metrics_port={metrics}", f"--default_kv_lease_ttl={lease_ms}"),
        ]
        self.address = f"127.0.0.1:{rpc}"
        with contextlib.ExitStack() as stack:
            try:
                self.master = stack.enter_context(Program(argv, folder / "mooncake-master.log", lambda: _listens(rpc)))
                log = folder / "mooncake-lend.log"
                lend = [*_US, "lend", self.address, str(lent_bytes)]
                self.lender = stack.enter_context(
                    Program(lend, log, lambda: _READY in log.read_text(errors="replace").split())
                )
            except TierlineError as error:  # of the loader, where libibverbs1 or librdmacm1 is missing
                raise FileNotFoundError(f"Mooncake does not start: {error}") from error
            self._running = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()


class Mooncake:
    """The three processes, for objects of one size.

    Raises
    ------
    FileNotFoundError
        Mooncake, or a library that it needs, is not installed.
    """

    def __init__(self, size: int, folder: Path) -> None:
        self._size = size
        with contextlib.ExitStack() as stack:
            servers = stack.enter_context(MooncakeServers(_LENT_OBJECTS * size, folder, _LEASE_MS))
            self._client = subprocess.Popen(
                [*_US, "ask", servers.address, str(size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            stack.callback(self._stop_client)
            self._answer()
            self._running = stack.pop_all()

    def take(self, verb: str, operations: int) -> list[float]:
        """Carry out one of :data:`VERBS` so many times and return bytes a second of each."""
        return [self._size / float(self._ask(verb)) for _ in range(operations)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def _ask(self, verb: str) -> str:
        assert self._client.stdin is not None
        self._client.stdin.write(f"{verb}\n")
        self._client.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._client.stdout is not None
        line = self._client.stdout.readline()
        if not line:
            raise TierlineError("Mooncake's client ended before its answer")
        return line.strip()

    def _stop_client(self) -> None:
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._client.stdin.close()
        try:
            self._client.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._client.kill()
            self._client.wait()
        self._client.stdout.close()


def _listens(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=2.0):
        return True
    return False


class _Asking:
    """Mooncake's client: writes new objects, reads the latest, removes the earlier ones once their leases let it."""

    def __init__(self, store: Any, size: int) -> None:
        self._store = store
        self._size = size
        self._memory = resident(size)
        self._payload = bytes(self._memory)
        array = (ctypes.c_char * size).from_buffer(self._memory)
        self._address = ctypes.addressof(array)
        _require(store.register_buffer(self._address, size), "register_buffer")
        self._written: list[str] = []
        self._count = 0

    def perform(self, verb: str) -> float:
        """Carry out one operation and return its seconds."""
        if verb in ("put", "put_from"):
            self._written = [name for name in self._written[:-1] if self._store.remove(name)] + self._written[-1:]
            self._count += 1
            self._written.append(f"object-{self._count}")
        name = self._written[-1]
        operations: dict[str, Callable[[], object]] = {
            "put": lambda: _require(self._store.put(name, self._payload), verb),
            "put_from": lambda: _require(self._store.put_from(name, self._address, self._size), verb),
            "get": lambda: _require(len(self._store.get(name)) - self._size, verb),
            "get_into": lambda: _require(self._store.get_into(name, self._address, self._size) - self._size, verb),
        }
        started = time.perf_counter()
        operations[verb]()
        return time.perf_counter() - started


def _require(status: int, what: str) -> None:
    if status:
        raise TierlineError(f"Mooncake's {what} gave {status}")


def _main(role: str, master: str, size: int) -> None:
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    lent, buffer = (size, 16 * 2**20) if role == "lend" else (0, 4 * size)
    _require(store.setup("127.0.0.1", "P2PHANDSHAKE", lent, buffer, "tcp", "", master), "setup")
    if role == "lend":
        print(_READY, flush=True)  # noqa: T201  (read by the parent process)
        while True:
            time.sleep(3600)
    asking = _Asking(store, size)
    print(_READY, flush=True)  # noqa: T201
    for line in sys.stdin:
        print(asking.perform(line.strip()), flush=True)  # noqa: T201
    store.close()


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
