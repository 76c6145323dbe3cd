"""A child process: its own process group, its output in a log file, ready when an HTTP route answers 200.

A child never outlives its supervisor: it is stopped with its whole group, and the kernel ends it if we are killed.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import aiohttp

from tierline.errors import EngineError
from tierline.lifelines import end_with_parent

READY_WITHIN_S = 900.0
"""A child that is not ready by then is given up; large models take minutes to load."""

STOP_WITHIN_S = 30.0
"""From SIGTERM to SIGKILL; vLLM on a busy machine takes more than ten."""

GROUP_STOPS_WITHIN_S = 5.0
"""From a process's own end to SIGKILL for what it has started. Python's resource tracker needs some of it: it outlives
who started it, and removes the shared memory that vLLM leaves."""

_POLL_S = 0.1
_PROBE_TIMEOUT_S = 5.0
_LAST_LINES = 12


class Child:
    """One program of the stack.

    Parameters
    ----------
    name
        What the user reads: ``node``, ``replica-1``, ``router``.
    argv
        The command.
    environment
        What it gets besides our own environment.
    ready_url
        Answers 200 once the child serves.
    log
        File that its output is appended to.
    """

    def __init__(
        self, name: str, argv: Sequence[str], environment: Mapping[str, str], ready_url: str, log: Path
    ) -> None:
        self.name = name
        self.log = log
        self.ready_url = ready_url
        self._argv = argv
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Process id; also the id of its process group."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    async def start(self) -> None:
        """Start the process, without waiting until it is ready."""
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self._environment},
                start_new_session=True,
                preexec_fn=partial(end_with_parent, os.getpid()),
            )

    async def wait_until_ready(self, http: aiohttp.ClientSession) -> float:
        """Return after how many seconds the child answered.

        Raises
        ------
        EngineError
            When it ends before, or is not ready in time.
        """
        assert self._process is not None
        started = time.monotonic()
        while not await self._is_ready(http):
            if self.has_ended:
                raise EngineError(self.obituary())
            if time.monotonic() - started > READY_WITHIN_S:
                raise EngineError(f"{self.name} was not ready within {READY_WITHIN_S:.0f} s; its log is {self.log}")
            await asyncio.sleep(_POLL_S)
        return time.monotonic() - started

    @property
    def has_ended(self) -> bool:
        """The process was started and is no more."""
        return self._process is not None and self._process.returncode is not None

    async def stop(self) -> None:
        """End the process and its group: SIGTERM, and SIGKILL for what is left after :data:`STOP_WITHIN_S`, or
        :data:`GROUP_STOPS_WITHIN_S` after the process's own end. Does nothing if it never ran."""
        if self._process is None:
            return
        self._signal_group(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), STOP_WITHIN_S)
            async with asyncio.timeout(GROUP_STOPS_WITHIN_S):
                while self._signal_group(0):  # noqa: ASYNC110  (no event tells of grandchildren)
                    await asyncio.sleep(0.02)
        self._signal_group(signal.SIGKILL)
        await self._process.wait()

    def obituary(self) -> str:
        """Say how the process ended, with the last lines of its log."""
        assert self._process is not None
        code = self._process.returncode
        assert code is not None
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        with self.log.open(errors="replace") as log:
            last = deque((line.rstrip() for line in log if line.strip()), maxlen=_LAST_LINES)
        return "\n  ".join([f"{self.name} (pid {self.pid}) {how}; the last lines of {self.log}:", *last])

    def _signal_group(self, number: int) -> bool:
        """Send a signal to all of the group; returns whether there is anyone. 0 asks that alone."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    async def _is_ready(self, http: aiohttp.ClientSession) -> bool:
        try:
            async with http.get(self.ready_url, timeout=aiohttp.ClientTimeout(total=_PROBE_TIMEOUT_S)) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False
