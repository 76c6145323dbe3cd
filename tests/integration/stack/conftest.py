"""Real programs on free ports; every fixture ends what it started."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests import ports

READY_WITHIN_S = 60.0
PATIENT = {"TIERLINE_SIMULATE_ENGINE_STORE_LOOKUP_TIMEOUT_MS": "60000"}
"""Engines find what a node store has, however long it takes on a machine that runs tests."""


def is_answering(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture
def free_port() -> Callable[[], int]:
    return ports.free_port


class Tierline:
    """A running ``tierline`` command and what it printed."""

    def __init__(self, arguments: list[str], output_file: Path, environment: dict[str, str]) -> None:
        self.output_file = output_file
        with self.output_file.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tierline", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def wait_for_exit(self) -> int:
        return self.process.wait(READY_WITHIN_S)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.wait_for_exit()

    def close(self) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(READY_WITHIN_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def tierline(tmp_path: Path) -> Iterator[Callable[..., Tierline]]:
    """Start ``tierline …`` with folders of its own; stopped at the end of the test."""
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, **environment: str) -> Tierline:
            usual = {"XDG_STATE_HOME": str(tmp_path / "state"), **PATIENT}
            output_file = tmp_path / f"output-{next(numbers)}"
            program = Tierline(list(arguments), output_file, {**usual, **environment})
            stack.callback(program.close)
            return program

        yield start


@pytest.fixture
def simulated_engine(tierline: Callable[..., Tierline], free_port: Callable[[], int]) -> Callable[..., str]:
    """Start a simulated engine; return its URL once it serves."""

    def start(*arguments: str) -> str:
        port = free_port()
        program = tierline("simulate-engine", "--port", str(port), *arguments)
        url = f"http://127.0.0.1:{port}"
        program.wait_for(lambda: is_answering(f"{url}/health"))
        return url

    return start
