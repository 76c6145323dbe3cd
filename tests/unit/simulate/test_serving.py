"""A simulated run as a result of the bench: its report draws it, its comparison reads it, and all say what it is."""

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from tierline.bench.rows import percentile
from tierline.bench.serving.results import decode
from tierline.cli.main import app
from tierline.simulate.coefficients import read, write

RUN = ("simulate", "run", "--replicas", "2", "--num-prompts", "120", "--request-rate", "4")


def invoked(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_is_a_result_of_the_bench_with_the_same_figures(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    told = msgspec.json.decode(invoked(*RUN, "--l1-size", "50GiB", "--result", str(file), "-o", "json"))
    result = decode(file)
    assert result.is_simulated
    summary = result.summary()
    assert summary.completed == 120
    assert 1000 * summary.metrics["ttft"].median == pytest.approx(told["median_ttft_ms"])
    assert 1000 * summary.metrics["tpot"].percentiles[99.0] == pytest.approx(told["p99_tpot_ms"])
    assert summary.cached_share == pytest.approx(told["hit_rate"])
    assert summary.requests_per_s == pytest.approx(told["request_throughput"], rel=0.02)
    assert percentile([each.latency_s for each in result.records], 90) * 1000 == pytest.approx(told["p90_e2el_ms"])


def test_reports_and_comparisons_of_the_bench_draw_it_and_say_that_it_is_simulated(tmp_path: Path) -> None:
    one, other, page, table = (tmp_path / name for name in ("a.json", "b.json", "a.html", "a.md"))
    invoked(*RUN, "--result", str(one), "--html", str(page), "--markdown", str(table))
    invoked(*RUN, "--no-prefix-caching", "--result", str(other))
    compared = invoked("bench", "run", "--compare", str(one), str(other))
    assert "simulated engines answered in A and B" in " ".join(compared.split())
    assert "TTFT" in compared.upper()
    assert "Simulated: chats" in page.read_text()
    written = table.read_text()
    assert "Simulated engines answered" in written
    assert "Coefficients llama-3.1-70b-tp8-h100: " in written
    assert "Validated: never" in written


def test_every_result_says_which_coefficients_it_is_made_of_and_how_far_they_are_off(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    write(read("llama-3.1-8b-h100"), file)
    told = msgspec.json.decode(invoked(*RUN, "--coefficients", str(file), "-o", "json"))["coefficients"]
    assert told["file"] == str(file)
    assert set(told) == {"file", "model", "hardware", "engine", "source", "date", "fit", "validation"}
    for arguments in (
        RUN,
        ("simulate", "scale", "--up-to-replicas", "8", "--up-to-requests", "80"),
    ):
        printed = " ".join(invoked(*arguments).split())
        assert "coefficients llama-3.1-" in printed
        assert "AIConfigurator" in printed
        assert "fit prefill" in printed
        assert "validated never" in printed


def test_an_autoscaled_run_says_how_many_replicas_there_were() -> None:
    printed = " ".join(invoked(*RUN, "--max-replicas", "4", "--target-requests", "1").split())
    assert "replicas on average" in printed
