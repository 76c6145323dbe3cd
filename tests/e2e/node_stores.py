"""Real node stores in processes of their own, and a slow path to one."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tests.ports import free_port

from tierline.client import NodeClient
from tierline.errors import TierlineError

START_S = 60.0
LOADS_ALWAYS = 1e6
"""As ``load_factor``: what can be had from a cache is worth any time, which is the machine's affair."""


class NodeStore:
    """A `tierline node` process; started again, it adopts its segment."""

    def __init__(self, folder: Path, name: str, capacity: str) -> None:
        self.name = name
        self.socket = folder / f"{name}.sock"
        self._log = folder / f"{name}.log"
        self.segment = Path("/dev/shm") / f"tierline-test-{os.getpid()}-{name}"
        self._capacity = capacity
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, **settings: str) -> None:
        """Start and wait until it answers; ``settings`` by key."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-c", "from tierline.cli.main import main; main()", "node", "--port", str(port)]
        command += ["--shared-memory-name", self.segment.name, "--capacity", self._capacity]
        command += ["--socket", str(self.socket), *arguments]
        given = {f"TIERLINE_NODE_{key.upper()}": value for key, value in ({"node_name": self.name} | settings).items()}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | given)
        wait_until(self._answers, f"the node store answers; its log: {self._log}")

    def kill(self) -> None:
        """``kill -9``, without a chance to say goodbye; nothing where it is dead already."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stats(self) -> dict[str, Any]:
        """Return the store's own statistics."""
        with NodeClient(self.socket, timeout_s=START_S) as client:
            return client.stats()

    def members(self, state: str) -> list[dict[str, Any]]:
        """Return the pool's members that are in a state: ``self`` for this node, ``alive`` for others that answer."""
        with urllib.request.urlopen(f"{self.url}/v1/cluster", timeout=START_S) as response:
            return [member for member in json.load(response)["members"] if member["state"] == state]

    def bytes_written_below(self) -> int:
        """Return how many bytes of objects the tiers below have taken."""
        with urllib.request.urlopen(f"{self.url}/v1/cluster", timeout=START_S) as response:
            return sum(tier["stored_bytes"] for tier in json.load(response)["tiers"])

    def flip_bits(self) -> None:
        """Flip a bit in every 4 KiB of the segment, behind the node store's back."""
        np.memmap(self.segment, dtype=np.uint8, mode="r+")[::4096] ^= 1

    def remove(self) -> None:
        """Stop it and remove what it left."""
        self.kill()
        for path in self.segment.parent.glob(self.segment.name + "*"):
            path.unlink()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        with contextlib.suppress(TierlineError):
            NodeClient(self.socket, timeout_s=START_S).close()
            return True
        return False


class SlowPath:
    """A UNIX socket in front of a node store's that holds every byte of every answer back for a while."""

    def __init__(self, path: Path, target: Path, delay_s: float) -> None:
        self._target = target
        self._delay_s = delay_s
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._open = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Close all connections."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                node = socket.socket(socket.AF_UNIX)
                node.connect(str(self._target))
                self._open += [client, node]
                threading.Thread(target=self._pass_on, args=(client, node, 0.0), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(node, client, self._delay_s), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket, delay_s: float) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, descriptors, _, _ = socket.recv_fds(source, 65536, 4)
                if not data:
                    break
                time.sleep(delay_s)
                socket.send_fds(target, [data], descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = START_S) -> None:
    """Wait until a condition holds; fail with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain until {what}"
        time.sleep(0.1)
