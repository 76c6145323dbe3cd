"""The four views of a report: JSON, Markdown, terminal and chart."""

import importlib.util
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tierline.bench import registry
from tierline.bench.registry import BENCHES, BenchOptions, run_bench
from tierline.bench.report import (
    Bar,
    Chart,
    Machine,
    Report,
    Table,
    figure_text,
    markdown,
    plot,
    require_plotting,
    require_writable,
    show,
    write_json,
)
from tierline.bench.rows import Limit, Row, not_measured
from tierline.errors import UsageError

ROWS = (
    Row("memcpy", 5.0, "GB/s", n=9),
    Row("read by lease", 4.4, "GB/s", Limit("memcpy", 5.0, goal=0.9), n=9, note="checksum not verified"),
    not_measured("Redis GET", "GB/s", "redis-server not installed"),
)


def report_of(rows: tuple[Row, ...] = ROWS, tables: tuple[Table, ...] = (), chart: Chart | None = None) -> Report:
    return Report(
        bench="store",
        command="tierline bench store",
        started="2026-01-02T03:04:05+00:00",
        duration_s=12.3,
        machine=Machine("Some CPU", 2, 8 << 30, "6.1", "3.11.2", 0.5),
        rows=rows,
        notes=("interleaved",),
        tables=tables,
        chart=chart,
    )


def test_the_json_file_names_its_schema_command_machine_and_rows(tmp_path: Path) -> None:
    file = tmp_path / "store.json"
    write_json(report_of(), file)
    document = json.loads(file.read_text())
    assert document["schema"] == "tierline-bench/1"
    assert document["command"] == "tierline bench store"
    assert document["machine"]["cores"] == 2
    assert [row["name"] for row in document["rows"]] == ["memcpy", "read by lease", "Redis GET"]
    assert document["rows"][1]["met"] is False


def test_markdown_shows_value_limit_ratio_and_verdict_and_why_a_row_is_missing() -> None:
    text = markdown(report_of())
    assert "| read by lease | 4.4 | GB/s | memcpy | 5 | 0.88 | ≥ 0.9 ✗ | 9 |" in text
    assert "- Redis GET: not measured: redis-server not installed" in text
    assert text.startswith("`tierline bench store` · Some CPU, 2 cores, 8 GiB")


def test_a_laid_out_table_takes_the_place_of_the_rows_and_escapes_bars() -> None:
    text = markdown(report_of(tables=(Table("TTFT", ("state", "P50"), (("cold | salted", "11 s"),)),)))
    assert "| cold \\| salted | 11 s |" in text
    assert "read by lease" not in text


def test_the_terminal_shows_the_same_rows() -> None:
    stream = io.StringIO()
    show(report_of(), Console(file=stream, width=140))
    assert "read by lease" in stream.getvalue()
    assert "≥ 0.9 ✗" in stream.getvalue()


def test_a_table_too_wide_for_the_terminal_is_shown_in_parts_that_begin_alike() -> None:
    table = Table("TTFT", ("state", *(f"column {n}" for n in range(9))), (("cold", *(str(n) for n in range(9))),))
    stream = io.StringIO()
    show(report_of(tables=(table,)), Console(file=stream, width=60))
    lines = stream.getvalue().splitlines()
    assert max(len(line) for line in lines[1:]) <= 60
    assert sum("cold" in line for line in lines) == 3
    assert "column 8" in stream.getvalue()


def test_a_chart_is_drawn_as_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "chart.png"
    chart = Chart("TTFT", "seconds", (Bar("cold", 11.0, upper=12.0), Bar("warm", 0.5, goal=1.1)), is_logarithmic=True)
    plot(report_of(chart=chart), file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(registry.Bench, "load", lambda bench: pytest.fail("measured"))
    with pytest.raises(UsageError, match=r"pip install 'tierline\[bench\]'"):
        run_bench("store", BenchOptions(), console=Console(file=io.StringIO()), plot=tmp_path / "chart.png")


def test_an_unknown_bench_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(UsageError, match="allowed: cluster, document, eviction, router, routing, store"):
        run_bench("sotre", BenchOptions(), console=Console(file=io.StringIO()))


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_that_is_listed_can_be_loaded(name: str) -> None:
    assert callable(BENCHES[name].load())


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0"), (0.01234, "0.0123"), (5.128, "5.13"), (12345.6, "12,346")]
)
def test_figures_are_shown_with_three_significant_digits(value: float | None, text: str) -> None:
    assert figure_text(value) == text


def test_a_cell_that_is_a_sentence_leaves_room_for_the_name_of_its_line() -> None:
    text = io.StringIO()
    lines = [("connection broken", "2", "said " * 20), ("HTTP 429", "31", "")]
    show(report_of(tables=(Table("errors", ("error", "requests", "said"), lines),)), Console(file=text, width=80))
    assert "connection broken" in text.getvalue()
    assert text.getvalue().count("said") == 20 + 1


def test_what_servers_say_is_no_markup_on_a_terminal() -> None:
    text = io.StringIO()
    show(
        report_of(tables=(Table("errors", ("error", "said"), (("HTTP 429", "[/red] [b]no[/b]"),)),)), Console(file=text)
    )
    assert "[/red] [b]no[/b]" in text.getvalue()


def test_files_that_cannot_be_written_are_refused_before_a_run_and_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "not there yet")
    for wrong, why in (
        ({"--csv": tmp_path}, "--csv: .* is a folder"),
        ({"--html": tmp_path / "file" / "x.html"}, "--html: .*file: is no folder"),
        ({"--html": tmp_path / "file" / "deeper" / "x.html"}, "--html: .*: cannot be written"),
        ({"--json": Path("/proc/x.json")}, "--json: .*/proc/x.json: No such file"),
        ({"--json": tmp_path / ("x" * 300)}, "--json: .*: File name too long"),
        ({"--json": tmp_path / "a", "--csv": tmp_path / "b" / ".." / "a"}, "--csv: .* is the file of --json"),
        ({"--json": tmp_path / "link", "--csv": tmp_path / "not there yet"}, "--csv: .* is the file of --json"),
    ):
        with pytest.raises(UsageError, match=why):
            require_writable(wrong)

    require_writable({"--json": tmp_path / "new" / "a.json", "--csv": tmp_path / "file", "--html": None})
    require_writable({"--json": Path("/dev/null"), "--csv": Path("/dev/null")})

    assert (tmp_path / "file").read_text() == "kept"
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["file", "link", "new"]


def test_a_chart_is_png_or_svg(tmp_path: Path) -> None:
    for name in ("a.png", "a.SVG"):
        require_plotting(tmp_path / name)
    for name in ("a.foo", "a.gif", "a"):
        with pytest.raises(UsageError, match=r"--plot.*\.png, \.svg"):
            require_plotting(tmp_path / name)
