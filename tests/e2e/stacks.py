"""``tierline up`` as a child of the test: started, waited for, interrupted, and ended with all that it started."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tierline.stack.running import RunningStack, find_stack

ENDS_WITHIN_S = 200.0
"""An engine that does not end by itself in half a minute is killed, and a busy machine has several of them."""


@contextlib.contextmanager
def running_up(port: int, arguments: Sequence[str], output: Path) -> Iterator[RunningStack]:
    """Run ``tierline up`` on ``port``; it must end well at Ctrl-C, and no process outlives the block."""
    with output.open("wb") as log:
        program = subprocess.Popen(
            [sys.executable, "-m", "tierline", "up", "--port", str(port), *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while (ready := find_stack(port)) is None:
            assert program.poll() is None, output.read_text()
            time.sleep(0.5)
        yield ready
        program.send_signal(signal.SIGINT)
        assert program.wait(ENDS_WITHIN_S) == 0
    finally:
        program.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(ENDS_WITHIN_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
