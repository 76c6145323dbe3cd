"""Children that end with their parents, also with those that end while they begin."""

import os
import signal
import subprocess
import sys
from functools import partial

from tierline.lifelines import end_with_parent

PROGRAM = [sys.executable, "-c", "print('it runs')"]
PARENT = """
import os, signal, subprocess
from functools import partial
from tierline.lifelines import end_with_parent
subprocess.Popen(["sleep", "600"], preexec_fn=partial(end_with_parent, os.getpid()))
print("it has a child", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"it has a child\n"
        assert parent.stdout.read() == b"", "nobody has the other end of the pipe any more"


def test_who_starts_when_its_parent_has_ended_already_ends_at_once() -> None:
    nobody = 2**22 + 1  # more than the number of any process
    done = subprocess.run(PROGRAM, preexec_fn=partial(end_with_parent, nobody), capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, b"")


def test_whoever_s_parent_ends_before_it_is_another_program_ends_though_the_parent_had_a_handler() -> None:
    parent = os.getpid()

    def begin() -> None:
        end_with_parent(parent)
        os.kill(os.getpid(), signal.SIGTERM)  # as the kernel does when the parent ends

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        done = subprocess.run(PROGRAM, preexec_fn=begin, capture_output=True, check=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, b"")
