"""Child processes that a benchmark measures: started on free ports, watched through ``/proc``, always stopped.

A program counts as started when its ``is_ready`` says so; one that ends first is reported with the end of its log.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tierline.errors import EnvironmentTooSmall, TierlineError
from tierline.stack.machine import is_port_free
from tierline.stack.processes import GROUP_STOPS_WITHIN_S, STOP_WITHIN_S

_PROCESS_CLOCK = 2
_LOG_LINES_SHOWN = 8
_NEIGHBOURS = 8
_PORTS = range(20_000, 32_000, _NEIGHBOURS)


class Program:
    """A child process in its own process group; it ends with the ``with`` block.

    Parameters
    ----------
    argv
        The command.
    log
        File that takes what the program prints.
    is_ready
        Asked every 50 ms until it says yes.
    ready_within_s
        How long that may take.
    environment
        What the program gets besides our own environment.

    Raises
    ------
    TierlineError
        When the program ends or does not become ready in time.
    """

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        is_ready: Callable[[], bool],
        ready_within_s: float = 120.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        self.pid = self._process.pid
        try:
            self._wait_until(is_ready, ready_within_s)
        except BaseException:
            self.stop()
            raise

    def cpu_seconds(self) -> float:
        """Return the processor time that all threads of the program have used, to the nanosecond."""
        # The clock that clock_getcpuclockid(3) gives for a process; Python has a function for threads only.
        return time.clock_gettime(~self.pid << 3 | _PROCESS_CLOCK)

    def private_bytes(self) -> int:
        """Return the memory that is the program's alone: what is neither a file's nor shared."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    def resident_bytes(self) -> int:
        """Return the memory of the program that is not swapped out."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """End the program and then what it has started: asked first, killed after the times of
        :mod:`tierline.stack.processes`."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_WITHIN_S)
        with contextlib.suppress(ProcessLookupError):  # nobody of its group is left
            deadline = time.monotonic() + GROUP_STOPS_WITHIN_S
            while self._process.poll() is not None and time.monotonic() < deadline:
                os.killpg(self.pid, 0)
                time.sleep(0.02)
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> "Program":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until(self, is_ready: Callable[[], bool], within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while not is_ready():
            if self._process.poll() is not None:
                raise TierlineError(
                    f"{self._name()} ended with status {self._process.returncode}: {self._last_lines()}"
                )
            if time.monotonic() > deadline:
                raise TierlineError(f"{self._name()} was not ready after {within_s:.0f} s: {self._last_lines()}")
            time.sleep(0.05)

    def _name(self) -> str:
        return " ".join(str(part) for part in self._process.args[:4]) if isinstance(self._process.args, list) else "?"

    def _last_lines(self) -> str:
        return " | ".join(self._log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])


def tierline(*arguments: str) -> list[str]:
    """Return the command line of one of our programs, run by this interpreter whatever is in ``PATH``."""
    return [sys.executable, "-m", "tierline", *arguments]


def command_line(pid: int) -> list[str]:
    """Return the arguments that a running process was started with."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return TCP ports of an address of this machine, where nothing listens on them now.

    They lie below the range from which the kernel takes the ports of outgoing connections, so that none is gone when a
    program that starts slowly binds it; each has free neighbours above it for what such a program starts.
    """
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            break
        if all(is_port_free(host, port + step) for step in range(_NEIGHBOURS)):
            found.append(port)
    return found


def answers(url: str) -> bool:
    """Whether a GET of ``url`` is answered with 200 now."""
    try:
        with urllib.request.urlopen(url, timeout=2.0) as response:  # noqa: S310  (our own http:// URL)
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@contextlib.contextmanager
def pinned_to(core: int) -> Iterator[None]:
    """Run what is inside, and the programs it starts, on one core; the programs stay there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def two_cores() -> tuple[int, int]:
    """Return one core for what is measured and another for what loads it.

    Raises
    ------
    EnvironmentTooSmall
        When this process may run on one core only: it would then be measured with its own load.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise EnvironmentTooSmall("this benchmark needs two processor cores: one for the router, one for the load")
    return cores[0], cores[1]
