"""What a program that passes requests on asks of its process: descriptors, and an allocator that keeps some memory."""

import contextlib
import ctypes
import resource
import sys

FREED_KEPT_BYTES = 32 * 1024**2
"""Of memory that the process has freed."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def keep_freed_memory() -> None:
    """Have the allocator keep some of what is freed for the next large body.

    glibc gives it back to the system else, which hands it out again page by page, each filled with zeros: a seventh of
    the processor time of a prompt of 256 KiB, a fifth of one of 1 MiB.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, FREED_KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, FREED_KEPT_BYTES)


def raise_file_limit() -> int:
    """Allow this process as many descriptors as it may allow itself; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
