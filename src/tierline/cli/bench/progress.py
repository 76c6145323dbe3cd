"""How a run goes, on standard error: a bar with the latest percentiles at a terminal, a line now and then elsewhere."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from tierline.bench.rows import percentile
from tierline.bench.serving.records import Record
from tierline.bench.serving.running import Watcher

_LATEST = 200
_BETWEEN_S = 0.5
_BETWEEN_LINES_S = 10.0


@contextlib.contextmanager
def watching() -> Iterator[Watcher]:
    """Show how a run goes, and yield who is told of it."""
    with Progress() as progress:
        yield progress.watcher


class Progress:
    """Shows what a watcher is told; percentiles are of the latest answers.

    Attributes
    ----------
    watcher
        To be given to the run.
    """

    def __init__(self) -> None:
        console = Console(stderr=True, markup=False, highlight=False)
        self._is_terminal = console.is_terminal
        self._console = console
        self._bar = Bar(
            TextColumn("requests"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[live]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("requests", total=None, live="")
        self._latest: deque[float] = deque(maxlen=_LATEST)
        self._total = self._seen = self._failed = 0
        self._shown_at = time.monotonic()
        self.watcher = Watcher(says=console.print, begins=self._begins, sees=self._sees)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def _begins(self, total: int) -> None:
        self._total = total
        self._bar.reset(self._task, total=total, live="")

    def _sees(self, record: Record) -> None:
        self._seen += 1
        self._failed += not record.is_good
        if record.ttft_s is not None:
            self._latest.append(record.ttft_s)
        self._bar.advance(self._task)
        now = time.monotonic()
        if now - self._shown_at >= (_BETWEEN_S if self._is_terminal else _BETWEEN_LINES_S):
            self._shown_at = now
            self._bar.update(self._task, live=self._live())
            if not self._is_terminal:
                self._console.print(f"{self._seen} of {self._total} requests; {self._live()}")

    def _live(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        if not self._latest:
            return f"no answer yet{failed}"
        latest = list(self._latest)
        p50, p90, p99 = (percentile(latest, percent) for percent in (50, 90, 99))
        return f"TTFT P50 {p50:.3f} s, P90 {p90:.3f} s, P99 {p99:.3f} s{failed}"
