"""Results of ``tierline bench run`` on the terminal and in files; a result that the client spoilt is in no file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console

from tierline.bench import report as reports
from tierline.bench.report import Report
from tierline.bench.serving import results
from tierline.bench.serving.comparing import compare, comparison_table, differences
from tierline.bench.serving.html import html_text
from tierline.bench.serving.report import report_of
from tierline.bench.serving.results import Result
from tierline.errors import TierlineError


def shown(result: Result) -> None:
    """Print a result's tables and notes."""
    reports.show(report_of(result), Console())


def compared(first: Path, second: Path) -> None:
    """Print how many times the figures of one result are those of another."""
    one, other = results.decode(first), results.decode(second)
    report = Report(
        bench="run",
        command=other.command,
        started=other.started,
        duration_s=0.0,
        machine=other.machine,
        rows=[],
        notes=[f"A is {first}, B is {second}.", *differences(one, other)],
        tables=[comparison_table(compare(one, other))],
    )
    reports.show(report, Console())


def require_answers(result: Result) -> None:
    """Fail where figures are those of a few, which is no measurement of what was asked for.

    Raises
    ------
    TierlineError
        When more than half of the requests failed.
    """
    summary = result.summary()
    if summary.failed > summary.completed:
        kinds = ", ".join(f"{count} × {kind}" for kind, count in summary.errors.items())
        requests = summary.failed + summary.completed
        raise TierlineError(f"{summary.failed} of {requests} requests failed, so the figures are of few: {kinds}")


@dataclass(frozen=True)
class Files:
    """Where a result goes; ``None``: not there.

    Parameters
    ----------
    vllm_folder, vllm_name
        Where vLLM's names go; without a name the file is called as vLLM would call it.
    is_detailed
        With arrays of every request.
    """

    json: Path | None = None
    csv: Path | None = None
    markdown: Path | None = None
    plot: Path | None = None
    html: Path | None = None
    aiperf: Path | None = None
    vllm_folder: Path | None = None
    vllm_name: str | None = None
    is_detailed: bool = False

    def check(self) -> None:
        """Fail before a long run, not after it.

        Raises
        ------
        UsageError
            When a file cannot be written, or a chart not be drawn.
        """
        if self.plot is not None:
            reports.require_plotting(self.plot)
        vllm = None if self.vllm_folder is None else self.vllm_folder / (self.vllm_name or "named-when-written.json")
        reports.require_writable(
            {
                "--json": self.json,
                "--csv": self.csv,
                "--markdown": self.markdown,
                "--plot": self.plot,
                "--html": self.html,
                "--aiperf-json": self.aiperf,
                "--save-result": vllm,
            }
        )

    def write(self, result: Result) -> None:
        """Write the files.

        Raises
        ------
        TierlineError
            When the client was too slow: then nothing is written.
        """
        if result.doubts:
            raise TierlineError(f"the client was what was measured, so nothing is written: {'; '.join(result.doubts)}")
        report = report_of(result)
        writers: dict[Path | None, Callable[[Path], object]] = {
            self.json: lambda path: path.write_bytes(results.encode(result)),
            self.csv: lambda path: path.write_text(results.csv_text(result)),
            self.markdown: lambda path: reports.write_markdown(report, path),
            self.plot if result.summary().completed else None: lambda path: reports.plot(report, path),
            self.html: lambda path: path.write_text(html_text(result)),
            self.aiperf: lambda path: path.write_bytes(_json(results.aiperf_document(result))),
            self._vllm(result): lambda path: path.write_bytes(
                _json(results.vllm_document(result, is_detailed=self.is_detailed))
            ),
        }
        for path, write in writers.items():
            if path is not None:
                write(path)

    def _vllm(self, result: Result) -> Path | None:
        if self.vllm_folder is None:
            return None
        return self.vllm_folder / (self.vllm_name or results.vllm_file_name(result))


def _json(document: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
