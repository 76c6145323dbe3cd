"""What this machine has to give: processors, memory, room in /dev/shm, free ports; a cgroup's limits count."""

import errno
import os
import socket
from collections.abc import Collection, Iterable
from pathlib import Path

from tierline.configuration import format_byte_size
from tierline.errors import EnvironmentTooSmall

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (the kernel's tmpfs, not a temporary file)

_CGROUP = Path("/sys/fs/cgroup")
_LAST_PORT = 65_535


def usable_cpus() -> int:
    """Return how many processors this process may use: its affinity, or its cgroup's quota when that is less."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
    except OSError:
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def computes_bfloat16() -> bool:
    """Say whether the processor has instructions for bfloat16 products (AVX512-BF16, AMX, Arm's BF16)."""
    with Path("/proc/cpuinfo").open() as processors:
        for line in processors:
            name, _, features = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(features.split())
    return False


def available_memory_bytes() -> int:
    """Return how much memory can be taken without swapping: the machine's, or the cgroup's rest when that is less.

    A cgroup counts cached files as used; the kernel drops them before it refuses anything, so they are room.
    """
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    available = next(int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:")
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        counted = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return available
    cached = sum(int(counted.get(kind, 0)) for kind in ("active_file", "inactive_file"))
    return available if limit == "max" else max(0, min(available, int(limit) - used + cached))


def require_memory(needed_bytes: int, for_what: str) -> None:
    """Raise :class:`EnvironmentTooSmall` unless ``needed_bytes`` are available."""
    available = available_memory_bytes()
    if needed_bytes > available:
        raise EnvironmentTooSmall(
            f"memory: {for_what} need about {format_byte_size(needed_bytes)}, {format_byte_size(available)} are "
            "available; lower --replicas or --cache-size, or try --engine simulated"
        )


def require_shared_memory(size: int, names: Iterable[str]) -> None:
    """Raise :class:`EnvironmentTooSmall` unless /dev/shm has room for segments ``names`` of ``size`` bytes in all."""
    room = os.statvfs(SHARED_MEMORY)
    leftovers = [SHARED_MEMORY / name for name in names]
    free = room.f_bavail * room.f_frsize + sum(each.stat().st_size for each in leftovers if each.exists())
    if size > free:
        raise EnvironmentTooSmall(
            f"--cache-size: {format_byte_size(size)} do not fit into {SHARED_MEMORY}, which has "
            f"{format_byte_size(free)} free; lower it, or enlarge {SHARED_MEMORY} (docker run --shm-size, "
            f"mount -o remount,size=… {SHARED_MEMORY})"
        )


def is_port_free(host: str, port: int) -> bool:
    """Say whether a server could listen there now."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do: a port whose last connections are in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def require_port(host: str, port: int, flag: str) -> None:
    """Raise :class:`EnvironmentTooSmall` unless a server could listen on ``port``."""
    if not is_port_free(host, port):
        raise EnvironmentTooSmall(f"{flag}: port {port} on {host} is in use; give another one")


def free_ports_after(host: str, port: int, count: int, reserved: Collection[int] = ()) -> list[int]:
    """Return the ``count`` lowest free ports above ``port`` that are not ``reserved`` for something else."""
    found: list[int] = []
    for candidate in range(port + 1, _LAST_PORT + 1):
        if len(found) == count:
            break
        if candidate not in reserved and is_port_free(host, candidate):
            found.append(candidate)
    if len(found) < count:
        raise EnvironmentTooSmall(f"--port: fewer than {count} free ports above {port} on {host}; give a lower one")
    return found
