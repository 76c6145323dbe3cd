"""CPU time of the store's operations by number of objects, in one process and without sockets.

Run ``python benchmarks/store_operations.py 100000``. The segment is sparse, so that a million objects need no 61
GiB: keys, leases, pages and the journal are real here, bytes are not.
"""
# ruff: noqa: T201

import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tierline.bench.sparse_node import sparse_segments
from tierline.store import PAGE_BYTES, ObjectKey, Owner, Store

SAMPLE = 20_000
OWNER = Owner("engine", 1)


class MovingClock:
    """Seconds that pass when this program says so."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def main(objects: int) -> None:
    """Print a line for each operation."""
    directory = Path(tempfile.mkdtemp(prefix="tierline-bench-", dir="/dev/shm"))
    clock = MovingClock()
    try:
        with sparse_segments():
            measure(directory, clock, objects)
    finally:
        shutil.rmtree(directory)


def measure(directory: Path, clock: MovingClock, objects: int) -> None:
    """Fill a store, use it, evict from it, and adopt it."""
    capacity = (objects + 1) * PAGE_BYTES
    resident = resident_bytes()
    store = Store.open(directory, "segment", capacity, clock=clock)
    report("write + commit", cpu_s(lambda: write(store, range(objects))) / objects)
    print(f"memory {(resident_bytes() - resident) / objects:.0f} bytes an object in Python")
    print(f"journal {(directory / 'segment.journal').stat().st_blocks * 512 / objects:.0f} bytes an object")

    sample = [key(random.randrange(objects)) for _ in range(SAMPLE)]
    report("lease + release", cpu_s(lambda: lease_each(store, sample)) / SAMPLE)
    for count in (256, 2048):
        times = []
        for _ in range(9):
            settle(store, clock)
            start = random.randrange(max(objects - count, 1))
            keys = [key(start + index) for index in range(count)]
            times.append(cpu_s(partial(lease_prefix, store, keys)))
        report(f"prefix lease of {count} keys", statistics.median(times))
    settle(store, clock)
    report("write + commit, evicting", cpu_s(lambda: write(store, range(objects, objects + SAMPLE))) / SAMPLE)
    store.close()
    report(
        f"adoption of {objects} objects", cpu_s(lambda: Store.open(directory, "segment", capacity, clock=clock).close())
    )


def key(number: int) -> ObjectKey:
    """Return a key as long as those of our connector."""
    return ObjectKey("kv", f"{number:064x}@bfloat16.hnd128-1.c256.tp0-1.pp0-1.g0")


def write(store: Store, numbers: range) -> None:
    """Reserve and commit objects of one page."""
    for number in numbers:
        slot = store.write(key(number), PAGE_BYTES, OWNER)
        store.commit(slot.id, OWNER, checksum=number)


def lease_each(store: Store, keys: list[ObjectKey]) -> None:
    """Lease and release objects one by one."""
    for wanted in keys:
        found = store.lease(wanted, "bench", 30)
        if found is not None:
            store.release(found[0])


def lease_prefix(store: Store, keys: list[ObjectKey]) -> None:
    """Lease many objects at once."""
    store.extend_lease(store.open_lease("bench", 30), keys)


def settle(store: Store, clock: MovingClock) -> None:
    """Let all leases end and all pages rest."""
    for _ in range(2):
        clock.now += store.limits.max_ttl_s + store.limits.quarantine_s
        while store.expire():
            pass


def cpu_s(work: Callable[[], object]) -> float:
    """Return the CPU seconds of this process that a piece of work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def report(name: str, seconds: float) -> None:
    """Print a line."""
    print(f"{name}: {seconds * 1e6:.1f} CPU-µs" if seconds < 1e-3 else f"{name}: {seconds * 1e3:.2f} CPU-ms")


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    random.seed(1)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
