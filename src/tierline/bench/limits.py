"""What the node store is compared with: a memory copy, a loopback TCP stream, Redis. Each at its best, nothing of ours.

Redis is asked by two clients, and the faster one counts: redis-py with hiredis, as applications use it, and a bare
socket that receives into memory it has already, which no client can beat.
"""

import contextlib
import functools
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Protocol

from tierline.bench.programs import Program, free_ports
from tierline.errors import TierlineError

CONNECTIONS = (1, 2, 3, 4)
BARE = "bare socket"
HIREDIS = "redis-py with hiredis"
_SOCKET_BUFFER_BYTES = 4 * 1024 * 1024
_ACKNOWLEDGED = b"\x01"


def resident(size: int, fill: int = 1) -> memoryview:
    """Return ``size`` bytes of private memory whose pages are all there."""
    return memoryview(bytearray([fill]) * size)


class Copy:
    """Copies private memory to private memory, from one source after another so that no cache holds the next."""

    def __init__(self, size: int, sources: int = 4) -> None:
        self._sources = [resident(size, fill) for fill in range(1, 1 + sources)]
        self.target = resident(size)
        self._next = 0

    def copy(self) -> None:
        """Copy the next source to :attr:`target`."""
        self.target[:] = self._sources[self._next]
        self._next = (self._next + 1) % len(self._sources)


class TcpStream:
    """A loopback connection to another process that receives into memory and acknowledges every ``size`` bytes."""

    def __init__(self, size: int, folder: Path) -> None:
        (port,) = free_ports(1)
        self.size = size
        self._payload = resident(size)
        argv = [sys.executable, "-m", "tierline.bench.limits", str(port), str(size)]
        self._program = Program(argv, folder / "tcp.log", lambda: self._connect(port))

    def send(self) -> None:
        """Send the payload and wait until it was received."""
        self._socket.sendall(self._payload)
        self._await()

    def seconds(self, descriptor: int) -> float:
        """Send so much of a file, which the kernel reads, and return how long it took until it was received."""
        started = time.perf_counter()
        sent = 0
        while sent < self.size:
            sent += os.sendfile(self._socket.fileno(), descriptor, sent, self.size - sent)
        self._await()
        return time.perf_counter() - started

    def _await(self) -> None:
        if self._socket.recv(1) != _ACKNOWLEDGED:
            raise TierlineError("the receiver of the TCP comparison ended")

    def __enter__(self) -> "TcpStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._program.stop()

    def _connect(self, port: int) -> bool:
        try:
            self._socket = socket.create_connection(("127.0.0.1", port), timeout=30.0)
        except ConnectionRefusedError:
            return False
        self._socket.settimeout(None)  # a socket with a timeout is a non-blocking one to sendfile
        return True


class RedisClient(Protocol):
    """One connection to Redis."""

    def set(self, key: str, payload: memoryview) -> None:
        """Store the payload."""

    def get(self, key: str) -> object:
        """Fetch what is stored, all of it."""


class BareRedis:
    """The Redis protocol on a bare socket: sends from and receives into memory that is there already."""

    def __init__(self, port: int, size: int) -> None:
        self._size = size
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30.0)
        self._received = resident(size + 64)

    def set(self, key: str, payload: memoryview) -> None:
        """Store the payload."""
        head = b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n" % (len(key), key.encode(), len(payload))
        self._socket.sendall(head)
        self._socket.sendall(payload)
        self._socket.sendall(b"\r\n")
        if self._socket.recv(16) != b"+OK\r\n":
            raise TierlineError("Redis refused a SET")

    def get(self, key: str) -> memoryview:
        """Fetch what is stored, all of it; the next call overwrites it."""
        self._socket.sendall(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key.encode()))
        start = len(b"$%d\r\n" % self._size)
        wanted = start + self._size + 2
        received = 0
        while received < wanted:
            count = self._socket.recv_into(self._received[received:wanted])
            if count == 0 or self._received[0] != ord("$"):
                raise TierlineError("Redis did not answer a GET with the value")
            received += count
        return self._received[start : start + self._size]

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


class Redis:
    """A Redis server of our own without persistence, and one to four connections of each kind of client.

    Raises
    ------
    FileNotFoundError
        When there is no ``redis-server`` in ``PATH``.
    """

    def __init__(self, size: int, folder: Path) -> None:
        self._program, port = redis_server(folder)
        self._payload = resident(size)
        self._threads = ThreadPoolExecutor(len(CONNECTIONS))
        self._bare = [BareRedis(port, size) for _ in CONNECTIONS]
        self.clients: dict[str, Sequence[RedisClient]] = {BARE: self._bare}
        if (libraries := _redis_py(port, len(CONNECTIONS))) is not None:
            self.clients[HIREDIS] = libraries

    def set(self, client: str, connections: int) -> float:
        """Store one payload over each connection at once; return bytes a second."""
        each = enumerate(self.clients[client][:connections])
        return self._at_once([functools.partial(one.set, f"k{number}", self._payload) for number, one in each])

    def get(self, client: str, connections: int) -> float:
        """Fetch one payload over each connection at once; return bytes a second."""
        each = enumerate(self.clients[client][:connections])
        return self._at_once([functools.partial(one.get, f"k{number}") for number, one in each])

    def __enter__(self) -> "Redis":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown()
        for each in self._bare:
            each.close()
        self._program.stop()

    def _at_once(self, operations: Sequence[Callable[[], object]]) -> float:
        started = time.perf_counter()
        for operation in [self._threads.submit(operation) for operation in operations]:
            operation.result()
        return len(operations) * len(self._payload) / (time.perf_counter() - started)


def redis_server(folder: Path) -> tuple[Program, int]:
    """Start a Redis server without persistence; return it, to be stopped, and its port.

    Raises
    ------
    FileNotFoundError
        There is no ``redis-server`` in ``PATH``.
    """
    binary = shutil.which("redis-server")
    if binary is None:
        raise FileNotFoundError("redis-server not installed")
    (port,) = free_ports(1)
    argv = [
        *(binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)),
        *("--save", "", "--appendonly", "no"),
    ]
    return Program(argv, folder / "redis.log", lambda: _listens(port)), port


def _redis_py(port: int, connections: int) -> Sequence[RedisClient] | None:
    """Return connections of redis-py, or ``None`` where it is not installed."""
    try:
        import hiredis  # noqa: F401  (redis-py uses it when it is there)
        import redis
    except ImportError:
        return None

    class Library:
        def __init__(self) -> None:
            self._client = redis.Redis(host="127.0.0.1", port=port, single_connection_client=True)

        def set(self, key: str, payload: memoryview) -> None:
            self._client.set(key, payload)

        def get(self, key: str) -> object:
            value: object = self._client.get(key)
            if value is None:
                raise TierlineError("Redis did not answer a GET with the value")
            return value

    return [Library() for _ in range(connections)]


def _listens(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=2.0):
        return True
    return False


def _receive_for_ever(port: int, size: int) -> None:
    target = resident(size)
    with socket.create_server(("127.0.0.1", port)) as server:
        connection, _ = server.accept()
        with connection:
            while True:
                received = 0
                while received < size:
                    count = connection.recv_into(target[received:])
                    if count == 0:
                        return
                    received += count
                connection.sendall(_ACKNOWLEDGED)


if __name__ == "__main__":
    _receive_for_ever(*(int(argument) for argument in sys.argv[1:]))
