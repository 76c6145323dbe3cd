"""Where the time of a read by lease goes: its parts by the wall clock and by processor time, beside memcpy, by turns.

Run ``python benchmarks/read_parts.py [ROUNDS]``. The difference between a part's wall clock and the reader's processor
time is waiting: for the node's answer, and for a processor. Reads that wait for the answer to their release take turns
with reads that do not.
"""
# ruff: noqa: T201

import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tierline.bench.limits import Copy, resident
from tierline.bench.programs import Program, answers, free_ports, tierline
from tierline.client import CommitEntry, NodeClient, Slot

T = TypeVar("T")

MIB = 1024 * 1024
OBJECT_BYTES = 32 * MIB
OBJECTS = 4
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (the kernel's tmpfs, not a temporary file)


class Parts:
    """Times by name."""

    def __init__(self) -> None:
        self._taken: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def take(self, name: str, operation: Callable[[], T]) -> T:
        """Do something and book how long it took."""
        wall, cpu = time.perf_counter(), time.thread_time()
        result = operation()
        self._taken[name].append((time.perf_counter() - wall, time.thread_time() - cpu))
        return result

    def show(self) -> None:
        """Print the medians."""
        for name, taken in self._taken.items():
            wall, cpu = (1e3 * statistics.median(each) for each in zip(*taken, strict=True))
            print(f"{name:36} {wall:7.3f} ms, of it {cpu:7.3f} ms of the reader's processor")


def main(rounds: int) -> None:
    """Print the parts."""
    (port,) = free_ports(1)
    segment = f"tierline-bench-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="tierline-bench-") as directory:
        folder = Path(directory)
        argv = tierline(
            *("node", "--port", str(port), "--socket", str(folder / "node.sock"), "--shared-memory-name", segment),
            *("--capacity", "256MiB", "--log-level", "warning"),
        )
        try:
            with (
                Program(argv, folder / "node.log", lambda: answers(f"http://127.0.0.1:{port}/readyz")),
                NodeClient(folder / "node.sock", writer=True, timeout_s=20.0) as client,
            ):
                measure(client, rounds).show()
        finally:
            for file in SHARED_MEMORY.glob(f"{segment}*"):
                file.unlink()


def measure(client: NodeClient, rounds: int) -> Parts:
    """Read by turns with and without waiting for the release."""
    client.mapping.prefault()
    source, target, copy = resident(OBJECT_BYTES), resident(OBJECT_BYTES), Copy(OBJECT_BYTES)
    names = [f"object-{number}" for number in range(OBJECTS)]
    for name in names:
        (slot,) = client.reserve("bench", [name], [OBJECT_BYTES])
        assert isinstance(slot, Slot)
        checksum = client.mapping.write_from(slot.extents, source)
        client.commit("bench", [CommitEntry(slot.slot, name, OBJECT_BYTES, checksum)])
    parts = Parts()

    def read(name: str, give_back: Callable[[str], object], how: str) -> None:
        leased = parts.take("lease", lambda: client.prefix_lease("bench", [name], 60.0))
        parts.take("copy", lambda: client.mapping.read_into(leased.objects[0].extents, target))
        parts.take(f"release, {how}", lambda: give_back(leased.lease))

    for number in range(rounds):
        name = names[number % OBJECTS]
        parts.take("memcpy", copy.copy)
        parts.take("read, its release waited for", lambda name=name: read(name, client.release, "waited for"))  # type: ignore[misc]
        parts.take("memcpy", copy.copy)
        parts.take("read", lambda name=name: read(name, client.let_go, "let go"))  # type: ignore[misc]
    return parts


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 50)
