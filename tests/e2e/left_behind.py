"""What a program starts, watched through ``/proc`` while it runs, and what of that is still there afterwards."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


class Started:
    """All processes below one, and the files in ``/dev/shm`` that they had mapped, as far as somebody looked.

    Parameters
    ----------
    pid
        The program.
    """

    def __init__(self, pid: int) -> None:
        self.processes: dict[int, str] = {}
        """When each was started: a number alone may be another process's later on."""
        self.memory: set[str] = set()
        self._roots = {pid}

    def look(self) -> None:
        """Remember what there is now."""
        parents = {pid: (parent, since) for pid, parent, since in _running()}
        below = {pid: since for pid, (_, since) in parents.items() if self._is_below(pid, parents)}
        self.processes |= below
        for pid in below:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                maps = Path(f"/proc/{pid}/maps").read_text()
                self.memory |= set(re.findall(rf"{SHARED_MEMORY}/(\S+)$", maps, re.MULTILINE))

    def processes_left(self) -> list[int]:
        """Return which processes still run."""
        now = {pid: since for pid, _, since in _running()}
        return [pid for pid, since in self.processes.items() if now.get(pid) == since]

    def memory_left(self) -> list[str]:
        """Return which files in ``/dev/shm`` are still there."""
        return sorted(name for name in self.memory if (SHARED_MEMORY / name).exists())

    def _is_below(self, pid: int, parents: dict[int, tuple[int, str]]) -> bool:
        while pid in parents:
            parent, since = parents[pid]
            # Who lost its parent is still one of them.
            if parent in self._roots or self.processes.get(pid) == since:
                return True
            pid = parent
        return False


def _running() -> Iterator[tuple[int, int, str]]:
    """Yield each process that is no zombie, its parent and when it was started."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # proc_pid_stat(5): behind the name, which may have anything in it, are state, parent, …, start time.
            state, parent, *others = file.read_text().rpartition(")")[2].split()
            if state != "Z":
                yield int(file.parent.name), int(parent), others[17]
