"""What TLS costs a node: PUTs and leases, plain and encrypted, side by side over loopback.

Run ``python benchmarks/tls.py``. Two nodes of this machine serve in turn, so that a slow minute is shared by both; the
medians of the rounds are printed, and the node's processor time for a GiB or a lease. Needs ``trustme``.
"""
# ruff: noqa: T201

import http.client
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import trustme

MIB = 1024 * 1024
OBJECT = os.urandom(32 * MIB)
ROUNDS = 15
LEASES = 500
PORTS = {"plain": 9391, "TLS": 9392}
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Node:
    """A node on ``port``; with a certificate where ``settings`` have one."""

    def __init__(self, folder: Path, port: int, context: ssl.SSLContext | None, settings: dict[str, str]) -> None:
        self._name = f"tierline-tls-{uuid.uuid4().hex[:8]}"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tierline", "node", "--port", str(port), "--capacity", "256MiB"),
                *("--socket", str(folder / f"{port}.sock"), "--shared-memory-name", self._name),
            ],
            env={**os.environ, **settings, "TIERLINE_NODE_LOG_LEVEL": "error"},
            stdout=subprocess.DEVNULL,
        )
        self.connection = (
            http.client.HTTPConnection("localhost", port)
            if context is None
            else http.client.HTTPSConnection("localhost", port, context=context)
        )
        end = time.monotonic() + 20
        while True:
            try:
                self.request("GET", "/readyz")
                return
            except OSError:
                self.connection.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Return the body of a reply that must be 200."""
        self.connection.request(method, path, body)
        reply = self.connection.getresponse()
        content = reply.read()
        assert reply.status == 200, reply.status
        return content

    def cpu_s(self) -> float:
        """Return the processor time that the node has taken."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    def close(self) -> None:
        """End the node and remove its segment."""
        self.process.terminate()
        self.process.wait()
        for path in Path("/dev/shm").glob(f"{self._name}*"):  # noqa: S108
            path.unlink()


def put(node: Node, number: int) -> None:
    """Store an object."""
    node.request("PUT", f"/v1/kv/b/{number}", OBJECT)


def lease(node: Node, _: int) -> None:
    """Lease and release one many times."""
    for _ in range(LEASES):
        found = json.loads(node.request("POST", "/v1/kv/b/held/leases?timeout_ms=1&ttl_s=30"))["id"]
        node.request("POST", f"/v1/leases/{found}/release")


def measure(nodes: dict[str, Node], act: Callable[[Node, int], None]) -> dict[str, tuple[float, float]]:
    """Return seconds (median) and processor seconds (mean) of a round, by node."""
    seconds: dict[str, list[float]] = {name: [] for name in nodes}
    before = {name: node.cpu_s() for name, node in nodes.items()}
    for number in range(ROUNDS):
        for name, node in nodes.items():
            start = time.perf_counter()
            act(node, number)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: (statistics.median(seconds[name]), (node.cpu_s() - before[name]) / ROUNDS) for name, node in nodes.items()
    }


def main() -> None:
    """Print a line for each operation and node."""
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        folder = Path(directory)
        issued = authority.issue_cert("localhost")
        issued.private_key_and_cert_chain_pem.write_to_path(folder / "node.pem")
        files = {"TIERLINE_NODE_TLS_CERTIFICATE": folder / "node.pem", "TIERLINE_NODE_TLS_KEY": folder / "node.pem"}
        nodes = {
            "plain": Node(folder, PORTS["plain"], None, {}),
            "TLS": Node(folder, PORTS["TLS"], context, {key: str(file) for key, file in files.items()}),
        }
        for node in nodes.values():
            stack.callback(node.close)
        print("operation          over    median      node's processor time")
        for name, (median, cpu) in measure(nodes, put).items():
            print(f"PUT of 32 MiB      {name:6}  {32 * MIB / median / 1e9:5.2f} GB/s  {cpu * 32 * 1000:6.0f} ms/GiB")
        for node in nodes.values():
            node.request("PUT", "/v1/kv/b/held", b"x" * MIB)
        for name, (median, cpu) in measure(nodes, lease).items():
            print(f"lease and release  {name:6}  {median / LEASES * 1e3:5.2f} ms    {cpu / LEASES * 1e6:6.0f} µs")


if __name__ == "__main__":
    main()
