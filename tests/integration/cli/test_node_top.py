"""`tierline node top` at a real terminal, in a pipe, and while its node restarts."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.cli.conftest import Command
from tests.integration.node.processes import NodeProcess, wait_until

SCREEN_OF_BEFORE = "\x1b[?1049l"
"""Has a terminal show again what it showed before the view."""


class Screen:
    """A terminal of a given size with `tierline node top` on it."""

    def __init__(self, node: NodeProcess, rows: int, columns: int) -> None:
        self._master, self.slave = pty.openpty()
        self.resize(rows, columns)
        self.settings = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tierline", "node", "top", "--interval", "0.2", "--url", node.url],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        self.written = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, key: str) -> None:
        os.write(self._master, key.encode())

    def shows(self, text: str) -> None:
        wait_until(lambda: text.encode() in self.written)

    @property
    def bar_columns(self) -> int:
        """How wide the bar was drawn last; 0 before that."""
        text = re.sub(r"\x1b\[[0-9;]*m", "", self.written.decode(errors="ignore"))
        return len((re.findall("[█▓▒░]{40,}", text) or [""])[-1])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.slave)
        self._reader.join()
        os.close(self._master)

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 65536):
                self.written += data
        except OSError:  # the last holder of the other end is gone
            return


@pytest.fixture
def screen(node: NodeProcess) -> Iterator[Screen]:
    screen = Screen(node, 40, 120)
    yield screen
    screen.close()


def test_one_frame_is_printed_for_scripts(ask: Command) -> None:
    done = ask("top", "--once", "--interval", "0.1")
    assert (done.status, done.errors) == (0, "")
    assert done.output.count("SINCE THE START") == 1
    assert any(line and set(line) <= set("█▓▒░") for line in done.output.splitlines())


def test_readings_are_lines_of_json(ask: Command, node: NodeProcess) -> None:
    document = ask("top", "--once", "--interval", "0.1", "--json").document
    assert document["stats"]["segment"]["path"] == str(node.segment)
    assert isinstance(document["namespaces"], list)


def test_a_node_that_never_answered_is_an_error_and_no_view(run: Command) -> None:
    assert run("top", "--url", "http://127.0.0.1:1").status == 1


def test_q_ends_the_view_and_the_terminal_is_as_before(screen: Screen) -> None:
    screen.shows("hit rate")
    screen.press("q")
    assert screen.process.wait(60) == 0
    assert termios.tcgetattr(screen.slave) == screen.settings
    screen.shows(SCREEN_OF_BEFORE)


def test_ctrl_c_is_a_wanted_end(screen: Screen) -> None:
    screen.shows("hit rate")
    screen.process.send_signal(signal.SIGINT)
    assert screen.process.wait(60) == 0
    screen.shows(SCREEN_OF_BEFORE)
    assert b"Traceback" not in screen.written


def test_the_view_follows_the_size_of_its_terminal(screen: Screen) -> None:
    wait_until(lambda: screen.bar_columns == 118)
    screen.resize(30, 60)
    screen.process.send_signal(signal.SIGWINCH)
    wait_until(lambda: screen.bar_columns == 58)


def test_the_view_outlives_a_restart_of_its_node(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path)
    file = tmp_path / "printed"

    def printed() -> str:
        return file.read_text(errors="replace")  # its last character may be there in part

    with file.open("wb") as output:
        top = subprocess.Popen(
            [sys.executable, "-m", "tierline", "node", "top", "--interval", "0.1", "--url", node.url], stdout=output
        )
    try:
        wait_until(lambda: "hit rate" in printed())
        node.stop()
        wait_until(lambda: f"{node.url} unreachable since " in printed())
        node.start()
        wait_until(lambda: printed().rpartition("unreachable")[2].count("SINCE THE START") >= 2)
        top.send_signal(signal.SIGTERM)
        assert top.wait(60) == 0
    finally:
        top.kill()
        top.wait()
        node.close()
