"""A benchmark's result as JSON for scripts, Markdown and a terminal table for people, and a chart.

All four are views of one :class:`Report`; none computes a figure of its own.
"""

import importlib.util
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from tierline import __version__
from tierline.bench.rows import FIXED, Direction, JsonValue, Row
from tierline.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEMA = "tierline-bench/1"

_CHARTS = (".png", ".svg")
_WIDEST_FIRST_COLUMN = 42
_COLUMN_MARGIN = 3


@dataclass(frozen=True)
class Machine:
    """Where the figures come from: absolute values do not travel without it."""

    processor: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    load_average: float

    @classmethod
    def here(cls) -> "Machine":
        """Describe this machine, with the load it has now."""
        return cls(
            processor=_processor_name(),
            cores=len(os.sched_getaffinity(0)),
            memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            kernel=platform.release(),
            python=platform.python_version(),
            load_average=round(os.getloadavg()[0], 2),
        )

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.cores} cores, {self.memory_bytes / 2**30:.0f} GiB, Linux {self.kernel}, "
            f"Python {self.python}, load average {self.load_average} at the start"
        )


@dataclass(frozen=True)
class Table:
    """A table for people: the same figures as the rows, laid out by what a reader compares."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Bar:
    """One bar of a chart; ``upper`` draws a whisker up to it, ``goal`` a mark."""

    label: str
    value: float
    upper: float | None = None
    goal: float | None = None


@dataclass(frozen=True)
class Chart:
    """Bars of one unit."""

    title: str
    unit: str
    bars: Sequence[Bar]
    is_logarithmic: bool = False


@dataclass(frozen=True)
class ChartGrid:
    """Charts of the same things in several units, two in a line."""

    charts: Sequence[Chart]


@dataclass(frozen=True)
class Curve:
    """One line through points of x and y; ``is_bound`` draws it as what cannot be exceeded."""

    label: str
    points: Sequence[tuple[float, float]]
    is_bound: bool = False


@dataclass(frozen=True)
class Panel:
    """Curves that share their axes."""

    title: str
    curves: Sequence[Curve]


@dataclass(frozen=True)
class CurveChart:
    """Panels side by side, of the same two quantities; x is logarithmic, with a tick at each point."""

    x_unit: str
    y_unit: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Report:
    """Everything that one run of a benchmark found.

    Parameters
    ----------
    bench
        Name of the benchmark.
    command
        The command line that makes this report again.
    started
        Time of the start, ISO 8601 in UTC.
    duration_s
        How long it took.
    machine
        Where it ran.
    rows
        The figures; their names are unique.
    notes
        What a reader must know about all rows: method, versions, what differed from the documented setting.
    tables
        Laid-out views; without any, the rows are shown as they are.
    chart
        What ``--plot`` draws.
    """

    bench: str
    command: str
    started: str
    duration_s: float
    machine: Machine
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    chart: Chart | ChartGrid | CurveChart | None = None

    def as_json(self) -> dict[str, JsonValue]:
        """Return the document that ``--json`` writes."""
        return {
            "schema": SCHEMA,
            "bench": self.bench,
            "version": __version__,
            "command": self.command,
            "started": self.started,
            "duration_s": round(self.duration_s, 1),
            "machine": {
                "processor": self.machine.processor,
                "cores": self.machine.cores,
                "memory_bytes": self.machine.memory_bytes,
                "kernel": self.machine.kernel,
                "python": self.machine.python,
                "load_average": self.machine.load_average,
            },
            "rows": [row.as_json() for row in self.rows],
            "notes": list(self.notes),
        }


def write_json(report: Report, path: Path) -> None:
    """Write the report for scripts."""
    path.write_text(json.dumps(report.as_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_markdown(report: Report, path: Path) -> None:
    """Write the report for a README."""
    path.write_text(markdown(report))


def markdown(report: Report) -> str:
    """Return the report's tables and notes, with the command that prints them."""
    parts = [f"`{report.command}` · {report.machine} · {report.started} · {report.duration_s:.0f} s"]
    for table in report_tables(report):
        lines = [f"**{table.title}**", "", _markdown_line(table.header)]
        lines.append("|" + "|".join(" --- " if column == 0 else " ---: " for column in range(len(table.header))) + "|")
        lines.extend(_markdown_line(line) for line in table.lines)
        parts.append("\n".join(lines))
    if notes := _all_notes(report):
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def show(report: Report, console: Console) -> None:
    """Print the report's tables and notes."""
    console.print(f"{report.machine}", highlight=False)
    for table in report_tables(report):
        for columns in _fitting_columns(table, console.width):
            shown = RichTable(title=table.title, title_justify="left", title_style="bold")
            for column in columns:
                is_text = column == 0 or any(len(line[column]) > console.width / 2 for line in table.lines)
                shown.add_column(table.header[column], justify="left" if is_text else "right", no_wrap=not is_text)
            for line in table.lines:
                shown.add_row(*(Text(line[column]) for column in columns))  # what servers say is no markup
            console.print(shown)
    for note in _all_notes(report):
        console.print(f"- {note}", highlight=False, markup=False)


def plot(report: Report, path: Path) -> None:
    """Draw the report's chart, as what the file's name ends in.

    Raises
    ------
    UsageError
        When there is nothing to draw, or :func:`require_plotting` raises it.
    """
    require_plotting(path)
    if report.chart is None:
        raise UsageError(f"--plot: tierline bench {report.bench} has nothing to draw")
    if isinstance(report.chart, CurveChart):
        figure = _draw_curves(report.chart)
    elif isinstance(report.chart, ChartGrid):
        figure = _draw_grid(report.chart)
    else:
        figure = _draw_bars(report.chart)
    figure.savefig(path, dpi=150)


def _draw_grid(grid: ChartGrid) -> "Figure":
    from matplotlib.figure import Figure

    lines = -(-len(grid.charts) // 2)
    tallest = max(len(chart.bars) for chart in grid.charts)
    figure = Figure(figsize=(15, lines * (1.2 + 0.36 * tallest)), layout="constrained")
    places = figure.subplots(lines, 2, squeeze=False).flatten()
    for axes, chart in zip(places, grid.charts, strict=False):
        _draw_bars_on(axes, chart)
    for axes in places[len(grid.charts) :]:
        axes.set_visible(False)
    return figure


def _draw_bars(chart: Chart) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.42 * len(chart.bars)), layout="constrained")
    _draw_bars_on(figure.subplots(), chart)
    return figure


def _draw_bars_on(axes: "Axes", chart: Chart) -> None:
    bars = list(reversed(chart.bars))  # matplotlib counts from the bottom
    for index, bar in enumerate(bars):
        axes.barh(index, bar.value, color="#3b6ea5")
        if bar.upper is not None:
            axes.hlines(index, bar.value, bar.upper, color="#1d1d1d", linewidth=1.5)
            axes.vlines(bar.upper, index - 0.15, index + 0.15, color="#1d1d1d", linewidth=1.5)
        if bar.goal is not None:
            axes.vlines(bar.goal, index - 0.4, index + 0.4, color="#c0392b", linewidth=2)
        axes.annotate(
            f" {figure_text(bar.value)}",
            (max(bar.value, bar.upper or 0), index),
            verticalalignment="center",
            fontsize="small",
        )
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.set_xlabel(chart.unit)
    axes.set_title(chart.title, loc="left", fontsize="medium")
    axes.margins(x=0.16)
    if chart.is_logarithmic:
        axes.set_xscale("log")


def _draw_curves(chart: CurveChart) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7 * len(chart.panels), 4.5), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(chart.panels), squeeze=False)[0], chart.panels, strict=True):
        for curve in panel.curves:
            line = {"color": "#1d1d1d", "linestyle": "--"} if curve.is_bound else {"marker": "o"}
            axes.plot(*zip(*curve.points, strict=True), label=curve.label, linewidth=1.5, markersize=4, **line)
        ticks = sorted({x for curve in panel.curves for x, _ in curve.points})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [figure_text(tick) for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(chart.x_unit)
        axes.set_ylabel(chart.y_unit)
        axes.set_title(panel.title, loc="left", fontsize="medium")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def require_writable(outputs: Mapping[str, Path | None]) -> None:
    """Fail before a long run, not after it: make the folders of files that will be written, and try to open each.

    Parameters
    ----------
    outputs
        By flag, the file; ``None``: there is none.

    Raises
    ------
    UsageError
        When one cannot be written, or two flags have the same one.
    """
    flags: dict[Path, str] = {}
    for flag, path in outputs.items():
        if path is None:
            continue
        try:
            file = path.resolve()
            if file.is_dir():
                raise UsageError(f"{flag}: {path} is a folder; give a file")
            file.parent.mkdir(parents=True, exist_ok=True)
            is_new = not file.exists()
            if is_new or file.is_file():  # a pipe's reader would take opening and closing it for the end
                if flags.setdefault(file, flag) != flag:
                    raise UsageError(f"{flag}: {path} is the file of {flags[file]}")
                file.open("ab").close()
            if is_new:
                file.unlink()
        except OSError as error:
            why = "is no folder" if isinstance(error, FileExistsError) else error.strerror
            raise UsageError(f"{flag}: {path}: cannot be written: {error.filename}: {why}") from error


def require_plotting(path: Path | None = None) -> None:
    """Fail before a long run, not after it.

    Raises
    ------
    UsageError
        When matplotlib is not installed, or does not write what the file's name ends in.
    """
    if path is not None and path.suffix.lower() not in _CHARTS:
        raise ConfigurationError("--plot", str(path), f"a file that ends in {', '.join(_CHARTS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'tierline[bench]'")


def figure_text(value: float | None) -> str:
    """Return a figure with three significant digits, as people read it; a dash where there is none."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def report_tables(report: Report) -> Sequence[Table]:
    """Return a report's tables; the rows as they are, where it has none."""
    return report.tables or [_table_of_rows(report)]


def _table_of_rows(report: Report) -> Table:
    return Table(
        title=f"tierline bench {report.bench}",
        header=("what", "value", "unit", "beside", "limit", "ratio", "goal", "n"),
        lines=[
            (
                row.name,
                figure_text(row.value),
                row.unit,
                row.limit.name if row.limit else "",
                figure_text(row.limit.value) if row.limit else "",
                figure_text(row.ratio) if row.ratio is not None else "",
                goal_text(row),
                str(row.n) if row.n else "",
            )
            for row in report.rows
        ],
    )


def goal_text(row: Row) -> str:
    """Return what the ratio, or the value where the goal is a fixed figure, should reach and whether it does."""
    if row.limit is None or row.limit.goal is None:
        return ""
    wanted = row.limit.value if row.limit.name == FIXED else row.limit.goal
    sign = "≥" if row.limit.direction is Direction.AT_LEAST else "≤"
    verdict = {True: " ✓", False: " ✗", None: ""}[row.is_met]
    return f"{sign} {figure_text(wanted)}{verdict}"


def _fitting_columns(table: Table, width: int) -> list[list[int]]:
    """Return the columns of each part that a table is shown in, the first column always among them."""
    widths = [
        max(len(cell) for cell in column) + _COLUMN_MARGIN for column in zip(table.header, *table.lines, strict=True)
    ]
    room = width - min(widths[0], _WIDEST_FIRST_COLUMN) - 1
    parts: list[list[int]] = []
    left = 0
    for column in range(1, len(widths)):
        if not parts or widths[column] > left:
            parts.append([0])
            left = room
        parts[-1].append(column)
        left -= widths[column]
    return parts


def _all_notes(report: Report) -> list[str]:
    if report.tables:
        return list(report.notes)
    return [*report.notes, *(f"{row.name}: {row.note}" for row in report.rows if row.note)]


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
