"""Spans into a file, a line of OTLP's JSON at a time, for reading without a collector: ``tierline trace show``.

Rule: nobody waits for the disk. A thread takes spans from a bounded queue; each line is one write at the file's end,
so several processes may share a file.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from tierline import __version__, logs
from tierline.errors import UsageError
from tierline.tracing.otlp import encode
from tierline.tracing.spans import Span

log = logs.get(__name__)

QUEUE_SPANS = 8192
SPANS_PER_LINE = 64
MOST_FILE_BYTES = 2**30
"""A file this long gets no more: requests may have spans because their clients want it, and those fill no disk."""
GATHERING_S = 0.05
"""How long spans gather for a line, once there is one."""
_LOGGED_EVERY_S = 60.0


class SpanFile:
    """Writes spans.

    Parameters
    ----------
    path
        Made if need be, and appended to.
    resource
        What every line says of this program.

    Raises
    ------
    UsageError
        The file cannot be written.
    """

    def __init__(self, path: Path, resource: Mapping[str, str]) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags, 0o640)
        except OSError as error:
            raise UsageError(f"{path}: traces cannot be written there: {error.strerror}") from error
        self.exported = self.failed = self.dropped = 0
        self._path = path
        self._resource = resource
        self._queue: deque[Span] = deque()
        self._lock = threading.Lock()
        self._has_work = threading.Event()
        self._is_closing = False
        self._is_cut = False
        self._log_again_at = 0.0
        threading.Thread(target=self._run, daemon=True, name="trace file").start()

    @property
    def waiting(self) -> int:
        """Spans that are not written yet."""
        return len(self._queue)

    def put(self, span: Span) -> None:
        """Have a span written, or drop it where the disk does not keep up."""
        if len(self._queue) >= QUEUE_SPANS:
            with self._lock:  # spans end in threads, too
                self.dropped += 1
            return
        self._queue.append(span)
        if not self._has_work.is_set():
            self._has_work.set()

    def close(self) -> None:
        """Write what is left, and end."""
        self._is_closing = True
        self._has_work.set()

    def _run(self) -> None:
        while True:
            self._has_work.wait()
            if not self._is_closing:
                time.sleep(GATHERING_S)
            self._has_work.clear()  # before anything is looked at: what comes then sets it again
            is_last = self._is_closing
            while self._queue:
                count = min(len(self._queue), SPANS_PER_LINE)
                self._write([self._queue[index] for index in range(count)])
                for _ in range(count):
                    self._queue.popleft()  # now, for what waits is what is not written
            if is_last:
                os.close(self._descriptor)
                return

    def _write(self, spans: list[Span]) -> None:
        line = b""
        written = 0
        try:
            line = encode(spans, self._resource, __version__) + b"\n"
            if self._is_cut:  # by a full disk: what comes next must not become a part of that line
                line = b"\n" + line
            if os.fstat(self._descriptor).st_size >= MOST_FILE_BYTES:
                self._warn("the file has as much as it may: remove or rotate it")
            else:
                written = os.write(self._descriptor, line)
        except (OSError, ValueError) as error:  # also of a name with half a character, which is no text of JSON
            self._warn(str(error))
        if line and written == len(line):
            self.exported += len(spans)
            self._is_cut = False
            return
        self.failed += len(spans)
        if written:
            self._is_cut = True
            self._warn("the disk is full")

    def _warn(self, why: str) -> None:
        now = time.monotonic()
        if now >= self._log_again_at:
            self._log_again_at = now + _LOGGED_EVERY_S
            log.warning("spans cannot be written", file=str(self._path), error=why, failed=self.failed)
