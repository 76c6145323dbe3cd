"""A real node store in a process of its own, and a plain HTTP connection to it that can misbehave."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from tests.ports import free_port

from tierline.client import CommitEntry, NodeClient, Slot

MIB = 1024 * 1024
WITHIN_S = 60.0


def wait_until(condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


class NodeProcess:
    """`tierline node` on a free port with a segment of its own, which :meth:`close` removes.

    ``program`` runs in place of ``python -m tierline``, for a node in a world that is not as it should be.
    """

    def __init__(
        self,
        folder: Path,
        *,
        capacity: str = "64MiB",
        program: Sequence[str] = (sys.executable, "-m", "tierline"),
        **settings: object,
    ) -> None:
        self.port = free_port()
        self.segment_name = f"tierline-test-{uuid.uuid4().hex[:12]}"
        self.segment = Path("/dev/shm") / self.segment_name
        self.socket = folder / f"{self.port}.sock"
        self._log = folder / f"node-{self.port}.log"
        self._capacity = capacity
        self._program = program
        # Without the scrub, whose leases are not those that tests count.
        settings = {"scrub_rate": 0, **settings}
        self._settings = {f"TIERLINE_NODE_{key}".upper(): str(value) for key, value in settings.items()}
        self.start()

    def start(self) -> None:
        """Start, or start again on the same segment."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(*self._program, "node"),
                    *("--port", str(self.port), "--socket", str(self.socket), "--capacity", self._capacity),
                    *("--shared-memory-name", self.segment_name),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, **self._settings},
            )
        wait_until(self.is_ready)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            return bool(self.get("/readyz")[0] == 200)
        except OSError:
            return False

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=WITHIN_S) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    @property
    def resident_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")  # without the segment

    @property
    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = json.loads(self.get("/v1/stats")[1])
        return stats

    def connect(self, **options: Any) -> NodeClient:
        return NodeClient(self.socket, **{"timeout_s": WITHIN_S, **options})

    def http(self) -> "HttpClient":
        return HttpClient(self.port)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WITHIN_S)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        self.kill()
        self.socket.unlink(missing_ok=True)
        for path in self.segment.parent.glob(f"{self.segment_name}*"):
            path.unlink()


class HttpClient:
    """One HTTP/1.1 connection; sends what it is told, whole or not."""

    def __init__(self, port: int, from_address: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WITHIN_S, source_address=(from_address, 0))
        self._received = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, *, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
        """Return the next reply: status, headers in lower case, body."""
        while b"\r\n\r\n" not in self._received:
            self._receive_more()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        status = int(status_line.split()[1])
        length = int(headers.get("content-length", 0)) if has_body else 0
        while len(self._received) < length:
            self._receive_more()
        body, self._received = self._received[:length], self._received[length:]
        return status, headers, body

    def request(
        self, method: str, path: str, body: bytes = b"", headers: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        self.send(head(method, path, len(body), headers) + body)
        return self.receive(has_body=method != "HEAD")

    def is_closed_by_peer(self) -> bool:
        """Wait for the node to end the connection; True when it does."""
        try:
            while received := self.socket.recv(65536):
                self._received += received
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive_more(self) -> None:
        received = self.socket.recv(65536)
        if not received:
            raise ConnectionResetError("the node closed the connection")
        self._received += received


def head(method: str, path: str, length: int, headers: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: node\r\nContent-Length: {length}\r\n{headers}\r\n".encode()


def store(client: NodeClient, name: str, content: bytes, bucket: str = "b") -> None:
    """Write one object through a reservation."""
    [slot] = client.reserve(bucket, [name], [len(content)])
    assert isinstance(slot, Slot), slot
    checksum = client.mapping.write_from(slot.extents, content)
    assert client.commit(bucket, [CommitEntry(slot.slot, name, len(content), checksum)]) == [None]


def load(client: NodeClient, name: str, bucket: str = "b") -> bytes | None:
    """Read one object through a lease and verify it; None where it is not stored."""
    leased = client.prefix_lease(bucket, [name], 10)
    if not leased.objects:
        return None
    [found] = leased.objects
    content = bytearray(found.size)
    client.mapping.read_into(found.extents, content, checksum=found.checksum)
    client.release(leased.lease)
    return bytes(content)
