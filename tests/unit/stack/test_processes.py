"""Children of the stack end with all that they have started, which has time to tidy up."""

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tierline.stack import processes
from tierline.stack.processes import Child

FOR_EVER = "import time; time.sleep(600)"


async def started(code: str, sign: Path) -> Child:
    """Start a child, and wait until a file is there."""
    child = Child("child", [sys.executable, "-c", code], {}, "http://127.0.0.1:1", sign.parent / "log")
    await child.start()
    await asyncio.to_thread(wait_until, lambda: sign.exists() and sign.read_text() != "")
    return child


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def test_what_a_child_started_has_time_to_tidy_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python's resource tracker does, which removes shared memory once those who made it are gone."""
    monkeypatch.setattr(processes, "GROUP_STOPS_WITHIN_S", 60)
    sign, tidied = tmp_path / "sign", tmp_path / "tidied"
    helper = f"""
import os, pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
parent = os.getppid()
pathlib.Path({str(sign)!r}).write_text("started")
while os.getppid() == parent: time.sleep(0.01)
pathlib.Path({str(tidied)!r}).touch()
"""
    child = await started(
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {helper!r}])\n{FOR_EVER}", sign
    )
    await child.stop()
    assert child.has_ended
    assert tidied.exists()


async def test_what_does_not_end_by_itself_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GROUP_STOPS_WITHIN_S", 0.5)
    sign = tmp_path / "sign"
    helper = f"""
import os, pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path({str(sign)!r}).write_text(str(os.getpid()))
time.sleep(600)
"""
    child = await started(
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {helper!r}])\n{FOR_EVER}", sign
    )
    await child.stop()
    await asyncio.to_thread(wait_until, lambda: not is_running(int(sign.read_text())))


def is_running(pid: int) -> bool:
    """Whether a process is there that is not dead and waits to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
