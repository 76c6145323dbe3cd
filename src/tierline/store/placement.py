"""Where a segment's memory lies: asked of the kernel when it is allocated, and read back afterwards.

Rule: what is reported is what the kernel says it gave, never what it was asked for. A wish that the machine cannot
grant at all (a NUMA node that is not there, a kernel that refuses) is an error; huge pages are a hint by nature.
"""

import contextlib
import ctypes
import mmap
import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path

from tierline.errors import ConfigurationError, SegmentError

_MBIND = {"x86_64": 237, "aarch64": 235}
_MPOL_BIND = 2
_MADV_POPULATE_READ = 22  # Linux 5.14; the mmap module does not name these
_MADV_POPULATE_WRITE = 23
_WORD_BITS = 8 * ctypes.sizeof(ctypes.c_ulong)
_NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True, slots=True)
class SegmentOptions:
    """How a segment's file is made.

    Parameters
    ----------
    mode
        Access rights of the file, whatever the umask. 0o666 lets clients of every user read and write, which LMCache's
        in-process client needs; 0o644 lets others read only; 0o600 shuts them out.
    group
        Id of the group that the file is given to; ``None`` leaves it to the process's own.
    numa_node
        NUMA node that memory is allocated on; memory that is there already stays where it is.
    huge_pages
        Allocate in transparent huge pages, where the filesystem is mounted with ``huge=``.
    """

    mode: int = 0o666
    group: int | None = None
    numa_node: int | None = None
    huge_pages: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """What the kernel gave: bytes in huge pages, and bytes by NUMA node (empty: the kernel does not say)."""

    huge_bytes: int = 0
    node_bytes: dict[int, int] = field(default_factory=dict)


def numa_nodes() -> list[int]:
    """Return the NUMA nodes of this machine that have memory."""
    return sorted(int(path.name.removeprefix("node")) for path in _NODES.glob("node[0-9]*"))


def bind(mapping: mmap.mmap, numa_node: int) -> None:
    """Have memory of a mapped shared-memory file allocated on one NUMA node from now on, by whichever process.

    Raises
    ------
    ConfigurationError
        The machine has no such node.
    SegmentError
        The kernel refuses.
    """
    nodes = numa_nodes()
    number = _MBIND.get(platform.machine())
    if numa_node not in nodes or number is None:
        known = ", ".join(map(str, nodes)) if nodes and number is not None else "none: this kernel has no NUMA nodes"
        raise ConfigurationError("numa_node", numa_node, f"a NUMA node of this machine ({known})")
    mask = (ctypes.c_ulong * (numa_node // _WORD_BITS + 1))()
    mask[numa_node // _WORD_BITS] = 1 << numa_node % _WORD_BITS
    libc = ctypes.CDLL(None, use_errno=True)
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    arguments = [start, len(mapping), _MPOL_BIND, ctypes.addressof(mask), len(mask) * _WORD_BITS + 1, 0]
    if libc.syscall(*map(ctypes.c_long, [number, *arguments])):
        reason = os.strerror(ctypes.get_errno())
        raise SegmentError(
            f"numa_node: the kernel does not bind memory to node {numa_node} ({reason}); a container needs CAP_SYS_NICE"
        )


def populate_huge(mapping: mmap.mmap, offset: int, length: int) -> None:
    """Allocate a piece of a mapped file in huge pages, as far as they can be had; allocate the rest after it.

    Not ``posix_fallocate``: with ``huge=advise`` the kernel looks at the mapping's advice, and that has no mapping.
    """
    with contextlib.suppress(OSError):  # a kernel without them, or no room: allocating the rest finds out
        mapping.madvise(mmap.MADV_HUGEPAGE, offset, length)
        mapping.madvise(_MADV_POPULATE_WRITE, offset, length)


def read_placement(path: Path, mapping: mmap.mmap, *, huge_pages: bool) -> Placement:
    """Return where the memory of a file lies; takes about 0.1 s a GiB, for the kernel tells only of what is mapped."""
    try:
        if huge_pages:
            mapping.madvise(mmap.MADV_HUGEPAGE)
        mapping.madvise(_MADV_POPULATE_READ)
    except OSError:  # a kernel too old to be asked
        return Placement()
    return Placement(_huge_bytes(path), _node_bytes(path))


def _huge_bytes(path: Path) -> int:
    total = 0
    is_ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_ours = line.endswith(f" {path}")
        elif is_ours and line.startswith("ShmemPmdMapped:"):
            total += int(line.split()[1]) * 1024
    return total


def _node_bytes(path: Path) -> dict[int, int]:
    try:
        lines = Path("/proc/self/numa_maps").read_text().splitlines()
    except OSError:  # a kernel without NUMA
        return {}
    found: dict[int, int] = {}
    for line in lines:
        if f" file={path} " not in line:
            continue
        unit = re.search(r"kernelpagesize_kB=(\d+)", line)
        page_bytes = int(unit[1]) * 1024 if unit else mmap.PAGESIZE
        for node, pages in re.findall(r" N(\d+)=(\d+)", line):
            found[int(node)] = found.get(int(node), 0) + int(pages) * page_bytes
    return found
