"""The benchmarks by name, and the one way to run them: measure, print, write.

A benchmark is imported only when it runs, so that listing them costs nothing.
"""

import contextlib
import importlib
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Literal, Protocol

from rich.console import Console

from tierline.bench import report as reports
from tierline.bench.report import Machine, Report
from tierline.bench.rows import Row
from tierline.errors import ConfigurationError

Say = Callable[[str], None]
"""Tells the user what is being done; one line at a time."""


QUICK_NOTE = "Run with --quick: few samples of small objects. It shows that everything works, not how fast it is."


@dataclass(frozen=True)
class BenchOptions:
    """What a user can choose.

    Parameters
    ----------
    quick
        Few samples: shows that everything works, says little about speed.
    url
        ``document`` only: the router of a running stack; without it, the stack that ``tierline up`` runs here is
        found, or one is started.
    engine
        ``document`` only: what to start when no stack runs.
    samples
        ``document`` only: documents to measure, where 15 minutes allow.
    traces
        ``eviction`` and ``routing``: files to replay; without any, traces are generated.
    seed
        ``eviction`` and ``routing``: of the generated traces.
    endpoints
        ``routing`` only: how many engines.
    through_store
        ``eviction`` only: replay through the real store as well.
    black_boxes
        ``routing`` only: routers as processes before simulated engines behind HTTP, too.
    """

    quick: bool = False
    url: str | None = None
    engine: Literal["vllm", "simulated"] = "vllm"
    samples: int = 20
    traces: tuple[Path, ...] = ()
    seed: int = 1
    endpoints: int = 8
    through_store: bool = False
    black_boxes: bool = False


@dataclass(frozen=True)
class Findings:
    """What a benchmark returns; :func:`run_bench` adds where and when."""

    rows: list[Row]
    notes: list[str]
    tables: list[reports.Table]
    chart: reports.Chart | reports.CurveChart | None


class Measure(Protocol):
    """The function ``measure`` that each benchmark's module has."""

    def __call__(self, options: BenchOptions, say: Say) -> Findings:
        """Measure, and say what is being done."""


@dataclass(frozen=True)
class Bench:
    """A benchmark that can be run by name."""

    name: str
    summary: str
    module: str

    def load(self) -> Measure:
        """Import the benchmark and return its ``measure``."""
        measure: Measure = importlib.import_module(self.module).measure
        return measure


BENCHES = {
    bench.name: bench
    for bench in (
        Bench(
            "document",
            "time to first token of a long document: cold, and warm in each place its KV can be",
            "tierline.bench.document",
        ),
        Bench("store", "the node store beside memcpy, loopback TCP, Redis and Mooncake", "tierline.bench.store"),
        Bench("cluster", "two node stores as one pool beside Redis and Mooncake", "tierline.bench.cluster"),
        Bench("eviction", "hit rates of the eviction policies on request traces", "tierline.bench.eviction"),
        Bench(
            "routing", "hits, queues and balance of the routing strategies on request traces", "tierline.bench.routing"
        ),
        Bench("router", "the router's CPU time a request beside the Rust routers of PyPI", "tierline.bench.router"),
    )
}


def run_bench(
    name: str,
    options: BenchOptions,
    *,
    console: Console,
    json: Path | None = None,
    markdown: Path | None = None,
    plot: Path | None = None,
) -> Report:
    """Run a benchmark, print its tables and write the files that were asked for.

    Raises
    ------
    ConfigurationError
        When there is no benchmark of that name.
    UsageError
        When the machine lacks something that the benchmark cannot do without, or ``plot`` is given without matplotlib.
    """
    if name not in BENCHES:
        raise ConfigurationError("NAME", name, ", ".join(sorted(BENCHES)))
    if plot is not None:
        reports.require_plotting(plot)
    reports.require_writable({"--json": json, "--markdown": markdown, "--plot": plot})
    measure = BENCHES[name].load()
    machine = Machine.here()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    clock = time.monotonic()
    with ended_in_order():
        findings = measure(options, lambda line: console.print(line, style="dim", highlight=False, markup=False))
    report = Report(
        bench=name,
        command=shlex.join(["tierline", *sys.argv[1:]]),
        started=started,
        duration_s=time.monotonic() - clock,
        machine=machine,
        rows=findings.rows,
        notes=[*([QUICK_NOTE] if options.quick else []), *findings.notes],
        tables=findings.tables,
        chart=findings.chart,
    )
    reports.show(report, console)
    for path, write in ((json, reports.write_json), (markdown, reports.write_markdown), (plot, reports.plot)):
        if path is not None:
            write(report, path)
    return report


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Leave by an exception on SIGTERM too, so that measured programs and segments do not outlive the benchmark."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
