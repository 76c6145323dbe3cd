"""How much memory this machine has for a program: all of it, or its control group's limit where that is less.

Memory in ``/dev/shm`` counts against the limit of the group whose process touched it first: against the node's.
"""

from collections.abc import Iterator
from pathlib import Path


def total_memory_bytes(root: Path = Path("/")) -> int:
    """Return the machine's memory, or the tightest limit of this process's control groups (version 1 or 2)."""
    lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
    total = next(int(line[1]) * 1024 for line in lines if line[0] == "MemTotal:")
    return min([total, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        base = root / "sys/fs/cgroup" / folder
        path = base / group.lstrip("/")
        for parent in (path, *path.parents):  # a limit of any group above holds, too
            if not parent.is_relative_to(base):
                break
            try:
                limit = (parent / name).read_text().strip()
            except OSError:  # the root has none; and in a container only its own group can be seen
                continue
            if limit != "max":
                yield int(limit)
