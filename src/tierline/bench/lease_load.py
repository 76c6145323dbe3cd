"""Leases and their releases over HTTP in a closed loop, on many connections at once, from one thread that only waits.

Every connection has one request under way at any time. What is measured is the time from a lease's sending to its whole
reply; a lease that is not granted ends the measurement.
"""

import select
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tierline.bench.plain_http import received_reply
from tierline.errors import TierlineError

_RECEIVE_BYTES = 64 * 1024
_LONGEST_WAIT_SECONDS = 30.0


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_LONGEST_WAIT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.is_leasing = False
        self.sent = 0.0

    def send(self, path: str, *, is_leasing: bool) -> None:
        self.is_leasing = is_leasing
        self.sent = time.perf_counter()
        self.socket.sendall(f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\n\r\n".encode())


class LeaseLoad:
    """So many clients of the node at ``port``, each of which leases what ``next_path`` says and releases it."""

    def __init__(self, port: int, clients: int, next_path: Callable[[], str]) -> None:
        self._next_path = next_path
        self._connections = {}
        for _ in range(clients):
            connection = _Connection(port)
            self._connections[connection.socket.fileno()] = connection

    def run(self, pairs: int) -> list[float]:
        """Lease and release so often, over all clients together; return the seconds that each lease took."""
        seconds: list[float] = []
        left = pairs
        busy = 0
        with select.epoll() as waiting:
            for descriptor, connection in self._connections.items():
                waiting.register(descriptor, select.EPOLLIN)
                if left:
                    left -= 1
                    busy += 1
                    connection.send(self._next_path(), is_leasing=True)
            while busy:
                ready = waiting.poll(_LONGEST_WAIT_SECONDS)
                if not ready:
                    raise TierlineError(f"the node store did not answer a lease within {_LONGEST_WAIT_SECONDS:.0f} s")
                for descriptor, _ in ready:
                    connection = self._connections[descriptor]
                    body = _received(connection)
                    if body is None:
                        continue
                    if connection.is_leasing:
                        seconds.append(time.perf_counter() - connection.sent)
                        lease = body.partition(b'"id":"')[2].partition(b'"')[0].decode()
                        connection.send(f"/v1/leases/{lease}/release", is_leasing=False)
                    elif left:
                        left -= 1
                        connection.send(self._next_path(), is_leasing=True)
                    else:
                        busy -= 1
        return seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections.values():
            connection.socket.close()


def _received(connection: _Connection) -> bytes | None:
    """Receive what is there; return the reply's body once it is whole."""
    piece = connection.socket.recv(_RECEIVE_BYTES)
    if not piece:
        raise TierlineError("the node store closed a connection before its answer was whole")
    connection.received += piece
    reply = received_reply(connection.received)
    if reply is None:
        return None
    status, body = reply
    if status != 200:
        raise TierlineError(f"the node store answered a lease or its release with {status}")
    connection.received = b""
    return body
