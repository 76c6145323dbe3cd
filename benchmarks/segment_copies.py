"""Copies of 32 MiB by what the bytes lie in and how they are moved, in processor time, beside private memory.

Run ``python benchmarks/segment_copies.py``. All take turns; processor time leaves out waiting for a processor, which on
a machine that others use is more than the differences that are looked for here.
"""
# ruff: noqa: T201

import ctypes
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable

MIB = 1024 * 1024
SIZE = 32 * MIB
SOURCES = 4
ROUNDS = 12
SEGMENT_BYTES = SOURCES * SIZE


def anonymous(*, huge: bool) -> memoryview:
    """Return touched private memory, in huge pages where the kernel gives them."""
    area = mmap.mmap(-1, SIZE + 2 * MIB)
    if huge:
        area.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(area)
    view[:] = b"\1" * len(view)
    return view[:SIZE]


def segment(descriptor: int, **how: int) -> list[memoryview]:
    """Return touched pieces of a shared mapping."""
    view = memoryview(mmap.mmap(descriptor, SEGMENT_BYTES, **how))
    bytes(view[:: mmap.PAGESIZE])
    return [view[start : start + SIZE] for start in range(0, SEGMENT_BYTES, SIZE)]


def address(view: memoryview) -> int:
    """Return where writable memory is."""
    return ctypes.addressof((ctypes.c_char * len(view)).from_buffer(view))


def assigned(target: memoryview, sources: list[memoryview]) -> list[Callable[[], object]]:
    """Copy by assignment to a memoryview."""
    return [lambda source=source: target.__setitem__(slice(None), source) for source in sources]


def moved(target: memoryview, sources: list[memoryview], piece: int) -> list[Callable[[], object]]:
    """Copy by memmove through ctypes, in pieces."""

    def move(to: int, origin: int) -> None:
        for start in range(0, SIZE, piece):
            ctypes.memmove(to + start, origin + start, piece)

    return [lambda source=source: move(address(target), address(source)) for source in sources]


def main() -> None:
    """Print a line for each way."""
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        os.posix_fallocate(file.fileno(), 0, SEGMENT_BYTES)
        os.pwrite(file.fileno(), b"\1" * SEGMENT_BYTES, 0)
        target, huge_target = anonymous(huge=False), anonymous(huge=True)
        private = [anonymous(huge=False) for _ in range(SOURCES)]
        huge = [anonymous(huge=True) for _ in range(SOURCES)]
        shared = segment(file.fileno())
        read_only = segment(file.fileno(), flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        populated = segment(file.fileno(), flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        ways = {
            "private to private": assigned(target, private),
            "segment to private": assigned(target, shared),
            "segment, mapped read-only": assigned(target, read_only),
            "segment, mapped with MAP_POPULATE": assigned(target, populated),
            "segment, by memmove": moved(target, shared, SIZE),
            "segment, by memmove of 1 MiB": moved(target, shared, MIB),
            "private to segment": assigned(shared[0], private),
            "huge pages to private": assigned(target, huge),
            "huge pages to huge pages": assigned(huge_target, huge),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, copies in ways.items():
                for copy in copies:
                    started = time.thread_time()
                    copy()
                    rates[name].append(SIZE / (time.thread_time() - started) / 1e9)
    least = statistics.median(rates["private to private"])
    for name, samples in rates.items():
        median = statistics.median(samples)
        print(f"{name:36} {median:5.2f} GB a CPU-second, {median / least:.2f} of private to private")


if __name__ == "__main__":
    main()
