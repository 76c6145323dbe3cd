"""Programs that are measured start, are watched and always end."""

import os
import sys
import time
from pathlib import Path

import pytest

from tierline.bench.programs import Program, command_line, free_ports, pinned_to
from tierline.errors import TierlineError

FOR_EVER = "import time; time.sleep(600)"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the latter where it goes while it is read
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_program_ends_with_its_block_and_so_do_its_children(tmp_path: Path) -> None:
    children = tmp_path / "children"
    code = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {FOR_EVER!r}])
print(child.pid, file=open({str(children)!r}, "w"), flush=True)
{FOR_EVER}
"""

    def has_started() -> bool:
        return children.exists() and children.read_text().strip() != ""

    with Program(python(code), tmp_path / "log", has_started) as program:
        assert is_alive(program.pid)
    assert not Path(f"/proc/{program.pid}").exists()
    wait_until_gone(int(children.read_text()))


def test_what_a_program_started_has_time_to_tidy_up(tmp_path: Path) -> None:
    started, tidied = tmp_path / "started", tmp_path / "tidied"
    helper = f"""
import os, pathlib, time
parent = os.getppid()
pathlib.Path({str(started)!r}).touch()
while os.getppid() == parent: time.sleep(0.01)
pathlib.Path({str(tidied)!r}).touch()
"""
    code = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {helper!r}])\n{FOR_EVER}"

    with Program(python(code), tmp_path / "log", started.exists):
        assert not tidied.exists()

    assert tidied.exists()


def wait_until_gone(pid: int) -> None:
    """Wait until a process that nobody of ours waits for has ended."""
    deadline = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_program_that_ends_too_early_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(TierlineError, match=r"status 3.*no such segment"):
        Program(python("import sys; print('no such segment'); sys.exit(3)"), tmp_path / "log", lambda: False)


def test_a_program_that_is_never_ready_is_given_up_and_stopped(tmp_path: Path) -> None:
    with pytest.raises(TierlineError, match="not ready after 0 s"):
        Program(python(FOR_EVER), tmp_path / "log", lambda: False, ready_within_s=0.2)


def test_processor_time_counts_work_and_not_waiting(tmp_path: Path) -> None:
    log = tmp_path / "log"
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ntime.sleep(60)"
    with Program(python(busy), log, lambda: "done" in log.read_text()) as program:
        used = program.cpu_seconds()
        assert used >= 0.28
        assert program.cpu_seconds() - used < 0.1
        assert program.resident_bytes() > 1_000_000


def test_the_command_line_of_a_program_can_be_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = [*python(f"print('started', flush=True); {FOR_EVER}"), "--dtype", "float32", ""]
    with Program(argv, log, lambda: "started" in log.read_text()) as program:
        assert command_line(program.pid) == argv


def test_free_ports_differ() -> None:
    assert len(set(free_ports(8))) == 8


def test_programs_started_on_a_core_stay_there_and_the_caller_does_not(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    core = max(before)
    with pinned_to(core), Program(python(FOR_EVER), tmp_path / "log", lambda: True) as program:
        assert os.sched_getaffinity(program.pid) == {core}
    assert os.sched_getaffinity(0) == before
