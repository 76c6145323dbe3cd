"""Kills a store at one labelled point of what it does: before, in the middle of, or after each change that outlives it.

What outlives a process are its changes of files: every system call that makes one is replaced in a forked child,
counts, and at the chosen count ends the child with SIGKILL. The label of a point is read off the bytes themselves
(which state of a record, or a body), so the store knows nothing of it. Bytes that a writer puts into the segment are
points too: scenarios write them through :meth:`KillPoints.fill`.
"""

import multiprocessing
import os
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from tierline.store import Segment, Slot, Store
from tierline.store.journal import RecordState

JOURNAL_HEADER_BYTES = 4096
RECORD_BYTES = 64
WITHIN_S = 60.0


class KillPoints:
    """Counts the points that a scenario passes, and kills at number ``kill_at``.

    Parameters
    ----------
    kill_at
        Point to die at, from 0; a scenario with fewer points ends by itself.
    diary
        File that takes each point's label, and what the scenario has to say, as it happens.
    """

    def __init__(self, kill_at: int, diary: Path) -> None:
        self._left = kill_at
        self._diary = os.open(diary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        self._pwrite = os.pwrite

    def say(self, words: str) -> None:
        """Note what has been promised to somebody."""
        os.write(self._diary, f"said {words}\n".encode())

    def point(self, label: str) -> None:
        """Die here if it is this point's turn."""
        os.write(self._diary, f"point {label}\n".encode())
        if self._left == 0:
            self._die()
        self._left -= 1

    def fill(self, store: Store, slot: Slot, content: bytes) -> None:
        """Write an object's bytes into its slot, half by half."""
        views = store.views(slot.extents)
        at = 0
        for view in views:
            for start, stop in ((0, len(view) // 2), (len(view) // 2, len(view))):
                self.point("a part of the bytes")
                piece = content[at + start : min(at + stop, len(content))]
                view[start : start + len(piece)] = piece
            at += len(view)

    def install(self) -> None:
        """Replace what changes files; for a child that ends after the scenario."""
        os.pwrite = self._torn_pwrite  # type: ignore[assignment]
        for name in ("truncate", "posix_fallocate", "link", "unlink", "fchmod", "rename", "replace"):
            setattr(os, name, self._around(name, getattr(os, name)))
        Segment.seal = self._around("seal", Segment.seal)  # type: ignore[method-assign]

    def _around(self, label: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.point(f"before {label}")
            result = call(*arguments, **options)
            self.point(f"after {label}")
            return result

        return wrapped

    def _torn_pwrite(self, descriptor: int, content: bytes, offset: int) -> int:
        label = _label(descriptor, content, offset)
        self.point(f"before {label}")
        if self._left == 0:
            self._pwrite(descriptor, content[: len(content) // 2], offset)
        self.point(f"half of {label}")
        written = self._pwrite(descriptor, content, offset)
        self.point(f"after {label}")
        return written

    def _die(self) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()
        raise AssertionError


def _label(descriptor: int, content: bytes, offset: int) -> str:
    if offset < JOURNAL_HEADER_BYTES:
        return "header"
    if len(content) != RECORD_BYTES:
        return "body"
    packed = os.pread(descriptor, 48, 0)  # a body of 64 bytes is told from a record by its place
    (pages,) = struct.unpack_from("<Q", packed, 24)
    if offset >= JOURNAL_HEADER_BYTES + pages * RECORD_BYTES:
        return "body"
    return f"record {RecordState(content[0]).name}" if content[0] else "record none"


def killed_at_each_point(
    scenario: Callable[[KillPoints], None], prepare: Callable[[], None], diary: Path
) -> Iterator[tuple[str, list[str]]]:
    """Run a scenario again and again, each time killed one point later, until it comes to its end.

    Parameters
    ----------
    scenario
        Runs in a forked child.
    prepare
        Brings the files to where the scenario starts; runs before each.
    diary
        Where the child's words go.

    Yields
    ------
    tuple
        Label of the point where it died, empty for the run that came to its end, and what it had said.
    """
    kill_at = 0
    while True:
        prepare()
        child = multiprocessing.get_context("fork").Process(target=_run, args=(scenario, kill_at, diary))
        child.start()
        child.join(WITHIN_S)
        lines = diary.read_text().splitlines()
        said = [line.removeprefix("said ") for line in lines if line.startswith("said ")]
        if child.exitcode == 0:
            yield "", said
            return
        assert child.exitcode == -signal.SIGKILL, (child.exitcode, lines)
        yield lines[-1].removeprefix("point "), said
        kill_at += 1


def _run(scenario: Callable[[KillPoints], None], kill_at: int, diary: Path) -> None:
    points = KillPoints(kill_at, diary)
    points.install()
    scenario(points)
