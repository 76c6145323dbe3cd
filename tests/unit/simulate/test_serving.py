"""A simulated run as a result of the bench: its report draws it, its comparison reads it, and all say what it is."""

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from tierline.bench.rows import percentile
from tierline.bench.serving.results import decode
from tierline.cli.main import app
from tierline.errors import ConfigurationError, UsageError
from tierline.simulate.coefficients import read, write

RUN = ("simulate", "run", "--replicas", "2", "--num-prompts", "120", "--request-rate", "4")

ENGINE = (
    *("--base-url", "http://127.0.0.1:1", "--model", "m", "--hardware", "none"),
    *("--kv-bytes-per-token", "9", "--kv-tokens", "9999"),
)


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


def test_a_session_is_a_family_and_cold_is_what_the_trace_had_not_before(tmp_path: Path) -> None:
    trace, files = tmp_path / "trace.jsonl", [tmp_path / "with.json", tmp_path / "without.json"]
    prompts = [[0, 1, 2], [0, 1, 2, 3], [0, 7, 8, 9], [0, 7, 8, 9, 10]]  # two chats behind one system prompt
    lines = [{"timestamp": 9_000 * place, "hash_ids": each, "output_length": 3} for place, each in enumerate(prompts)]
    trace.write_bytes(b"\n".join(map(msgspec.json.encode, lines)))
    run = ("simulate", "run", "--replicas", "1", "--trace", str(trace))
    invoked(*run, "--result", str(files[0]))
    invoked(*run, "--no-prefix-caching", "--result", str(files[1]))

    for file in files:
        made = decode(file).records
        assert [record.is_cold for record in made] == [True, False, True, False]
        assert [record.family for record in made] == ["session 0", "session 0", "session 2", "session 2"]
    assert [record.cached_tokens for record in decode(files[0]).records] == [0, 1536, 512, 2048]


def test_a_closed_loop_s_requests_are_cold_by_what_was_sent_before_them(tmp_path: Path) -> None:
    file = tmp_path / "closed.json"
    invoked(*RUN[:-2], "--max-concurrency", "3", "--result", str(file))

    made = decode(file).records
    assert len({record.family for record in made}) > 10
    assert {record.is_cold for record in made} == {True, False}
    # A chat's later turns repeat more than half of what it said, unless the new message is longer than all before it.
    assert sum(not record.is_cold for record in made) > len(made) / 4


def test_a_report_of_a_simulation_says_nothing_of_a_client_or_a_server(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    invoked(*RUN, "--warmup", "5", "--l1-size", "50GiB", "--markdown", str(file))
    written = file.read_text()

    assert "open loop, 4 requests/s in the rhythm of the trace" in written
    assert "2 replicas behind prefixaware" in written
    assert "| L1 |" in written
    assert "requests outside the measured time are not measured" in written
    for wrong in (
        "all at once",
        "as in the trace",
        "tokens a word",
        "simulate:",
        "ms late",
        "counters",
        "another node",
    ):
        assert wrong not in written
    invoked(*RUN[:-2], "--max-concurrency", "3", "--think-time", "2", "--markdown", str(file))
    assert "closed loop, 3 clients, who pause for 2 s on average" in file.read_text()


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


@pytest.mark.parametrize("flag", ["--json", "--result", "--html", "--markdown"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_simulated(flag: str) -> None:
    with pytest.raises(UsageError, match=f"^{flag}: /proc/x: cannot be written"):
        CliRunner().invoke(app, (*RUN, flag, "/proc/x"), catch_exceptions=False)


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (("simulate", "calibrate", *ENGINE), "--output"),
        (("simulate", "mocker"), "--json"),
        (("simulate", "vendor"), "--json"),
        (("simulate", "validate"), "--markdown"),
        (("bench", "compare-features"), "--result-dir"),
        (("bench", "store"), "--json"),
    ],
    ids=lambda each: each if isinstance(each, str) else each[1],
)
def test_so_are_those_of_whatever_takes_long(command: tuple[str, ...], flag: str) -> None:
    with pytest.raises(UsageError, match=f"^{flag}: /proc/x.*: cannot be written"):
        CliRunner().invoke(app, (*command, flag, "/proc/x.yaml"), catch_exceptions=False)


def test_a_chart_that_cannot_be_drawn_is_refused_before_a_study() -> None:
    with pytest.raises(ConfigurationError, match=r"--plot: got .x\.foo"):
        CliRunner().invoke(app, ("simulate", "vendor", "--plot", "x.foo"), catch_exceptions=False)


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
