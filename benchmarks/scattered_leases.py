"""A lease on 2,048 keys drawn at random, in processor time of the store alone, by number of objects stored.

Run ``python benchmarks/scattered_leases.py [OBJECTS …] [--huge]``. With ``--huge`` the interpreter's memory is put into
huge pages first (``MADV_COLLAPSE``), to see how much of it is looking up addresses.
"""
# ruff: noqa: T201

import ctypes
import gc
import random
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tierline.bench.sparse_node import BUCKET, NAME, fill, object_name, sparse_segments
from tierline.store import PAGE_BYTES, ObjectKey, Store

KEYS = 2048
LEASES = 12
HUGE_BYTES = 2 * 1024 * 1024
MADV_COLLAPSE = 25


def main(objects: int, *, huge: bool) -> None:
    """Print a line."""
    with tempfile.TemporaryDirectory(prefix="tierline-bench-", dir="/dev/shm") as directory:
        with sparse_segments():
            store = Store.open(Path(directory), NAME, (objects + 1) * PAGE_BYTES, clock=time.monotonic)
        fill(store, objects)
        gc.collect()
        gc.freeze()
        if huge:
            collapse()
        leasing, releasing = [], []
        for _ in range(LEASES):
            keys = [ObjectKey(BUCKET, object_name(number)) for number in random.sample(range(objects), KEYS)]
            started = time.process_time()
            lease = store.open_lease("bench", 60)
            store.extend_lease(lease, keys)
            leased = time.process_time()
            store.release(lease)
            leasing.append(leased - started)
            releasing.append(time.process_time() - leased)
        store.close()
    lease_ms, release_ms = 1e3 * statistics.median(leasing), 1e3 * statistics.median(releasing)
    print(f"{objects:>9,} objects: lease {lease_ms:.1f} CPU-ms, release {release_ms:.1f} CPU-ms")


def collapse() -> None:
    """Put this process's anonymous memory into huge pages, where it is long enough."""
    madvise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0", line)
        if found:
            start = -(-int(found[1], 16) // HUGE_BYTES) * HUGE_BYTES
            length = int(found[2], 16) // HUGE_BYTES * HUGE_BYTES - start
            if length > 0:
                madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_COLLAPSE)


if __name__ == "__main__":
    random.seed(1)
    for count in [int(argument) for argument in sys.argv[1:] if argument.isdecimal()] or [10_000, 100_000]:
        main(count, huge="--huge" in sys.argv)
