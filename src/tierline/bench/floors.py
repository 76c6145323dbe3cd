"""The least that any server in Python costs on this machine: servers that answer without looking at what was asked.

They run on the node's event loop and receive as the node does, so that what the node costs above them is its own work.
One of them sums what it receives as the node has to, and does nothing else with it. Run as
``python -m tierline.bench.floors http|summing PORT BYTES`` or ``… socket PATH BYTES``; each is a process of its own.
"""

import asyncio
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, cast

import uvloop
import xxhash

from tierline.bench.limits import resident
from tierline.bench.plain_http import PlainHttp
from tierline.bench.programs import Program, free_ports
from tierline.client.copying import Hasher

_HEAD_BYTES = 4096
_LENGTH = b"content-length: "
_BODY = b'{"id":"0000000000000000-0","offsets":[{"offset":65536,"len":33554432}]}'
_REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: application/json\r\n\r\n%s" % (len(_BODY), _BODY)
_RECEIVE_BYTES = 256 * 1024
_LEASE_FRAME_BYTES = 64
_RELEASE_FRAME_BYTES = 48


class HttpFloor:
    """A server that answers every request alike and receives every body into the same memory.

    Parameters
    ----------
    folder
        Where its log goes.
    size
        Bytes of a body.
    sums
        It computes the checksum of every body, and throws it away.
    """

    def __init__(self, folder: Path, size: int, *, sums: bool = False) -> None:
        (self.port,) = free_ports(1)
        kind = "summing" if sums else "http"
        argv = [sys.executable, "-m", "tierline.bench.floors", kind, str(self.port), str(size)]
        self._payload = resident(size)
        self.program = Program(argv, folder / f"{kind}-floor.log", self._connect)

    def pair(self) -> None:
        """Send two requests as long as a lease and its release."""
        self._http.request("POST", "/v1/kv/bench/object-0/leases?timeout_ms=0&ttl_s=60")
        self._http.request("POST", "/v1/leases/0000000000000000-0/release")

    def put(self) -> None:
        """Send a body of the size given."""
        self._http.request("PUT", "/v1/kv/bench/object-0", self._payload)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.__exit__(kind, error, trace)
        self.program.stop()

    def _connect(self) -> bool:
        try:
            self._http = PlainHttp(self.port)
        except ConnectionRefusedError:
            return False
        return True


class SocketFloor:
    """A server on a UNIX socket that sends back what it receives."""

    def __init__(self, folder: Path) -> None:
        path = folder / "floor.sock"
        argv = [sys.executable, "-m", "tierline.bench.floors", "socket", str(path), "0"]
        self._socket = socket.socket(socket.AF_UNIX)
        self.program = Program(argv, folder / "socket-floor.log", lambda: self._connect(path))

    def pair(self) -> None:
        """Send two messages as long as a lease and its release, and receive them back."""
        for length in (_LEASE_FRAME_BYTES, _RELEASE_FRAME_BYTES):
            self._socket.sendall(bytes(length))
            self._socket.recv(_HEAD_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self.program.stop()

    def _connect(self, path: Path) -> bool:
        try:
            self._socket.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


class _Transport(Protocol):
    def write(self, data: bytes) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class _HttpConnection(asyncio.BufferedProtocol):
    """Finds the length of a body in the head and counts its bytes; after each filled read others have their turn."""

    def __init__(self, body: memoryview, *, sums: bool) -> None:
        self._head = bytearray(_HEAD_BYTES)
        self._body = body
        self._missing = 0
        self._sums = sums
        self._hasher: Hasher = xxhash.xxh3_64()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("_Transport", transport)
        self._socket: socket.socket = transport.get_extra_info("socket")

    def get_buffer(self, sizehint: int) -> bytearray | memoryview:  # noqa: ARG002  (asyncio gives it)
        if not self._missing:
            return self._head
        start = len(self._body) - self._missing
        return self._body[start : start + _RECEIVE_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        if self._missing:
            if self._sums:
                start = len(self._body) - self._missing
                self._hasher.update(self._body[start : start + nbytes])
            self._missing -= nbytes
            if self._missing < _RECEIVE_BYTES:
                self._wake_at(1)
            if nbytes == _RECEIVE_BYTES:
                self._transport.pause_reading()
                asyncio.get_running_loop().call_soon(self._transport.resume_reading)
        else:
            start = self._head.index(_LENGTH) + len(_LENGTH)
            length = int(self._head[start : self._head.index(b"\r", start)])
            self._missing = length - (nbytes - self._head.index(b"\r\n\r\n") - 4)
            self._hasher = xxhash.xxh3_64()
            if self._missing >= _RECEIVE_BYTES:
                self._wake_at(_RECEIVE_BYTES)
        if not self._missing:
            self._transport.write(_REPLY)

    def _wake_at(self, length: int) -> None:
        """Hear of bytes once there are so many, as the node does."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, length)


class _SocketConnection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("_Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def _serve(kind: str, address: str, size: int) -> None:
    loop = asyncio.get_running_loop()
    server: asyncio.Server
    if kind in ("http", "summing"):
        body = resident(size)
        sums = kind == "summing"
        server = await loop.create_server(lambda: _HttpConnection(body, sums=sums), "127.0.0.1", int(address))
    else:
        server = await loop.create_unix_server(_SocketConnection, address)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
