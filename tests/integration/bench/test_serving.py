"""``tierline bench run`` as a user runs it, against a simulated engine in a process of its own."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.ports import free_port
from typer.testing import CliRunner, Result

from tierline.bench.programs import Program, answers, tierline
from tierline.bench.serving.bottleneck import BUSY_SHARE
from tierline.bench.serving.measures import most_in_flight
from tierline.bench.serving.results import decode
from tierline.cli.main import app
from tierline.errors import ConfigurationError, EngineError, TierlineError, UsageError

SLOW_CLIENT_IS_NO_MATTER = ("--late-limit", "60000")
"""What these tests assert does not depend on times, and the machine may be busy."""
SMALL = ("--input-len", "400", "--output-len", "8", "--num-prompts", "16", "--max-concurrency", "4")
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = tierline("simulate-engine", "--port", str(port), "--prefill-rate", "20000", "--decode-rate", "40")
    log = tmp_path_factory.mktemp("engine") / "log"
    with Program(command, log, is_ready=lambda: answers(f"{url}/health"), ready_within_s=60):
        yield url


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "run", *arguments], catch_exceptions=False)


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def test_a_run_is_in_every_file_that_was_asked_for(engine: str, tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("dated: 2026-11-01\nsource: an invoice\ncurrency: EUR\nper_hour: {small: 3.6}\n")

    done = bench(
        *("--base-url", engine, *SMALL, *SLOW_CLIENT_IS_NO_MATTER, "--metrics-url", engine, "--goodput", "ttft:60000"),
        *("--prices", str(prices), "--instance-type", "small", "--num-warmups", "1", "--processes", "2"),
        *("--json", str(tmp_path / "r.json"), "--csv", str(tmp_path / "r.csv"), "--markdown", str(tmp_path / "r.md")),
        *("--aiperf-json", str(tmp_path / "a.json"), "--save-result", "--result-dir", str(tmp_path)),
        *("--result-filename", "v.json", "--metadata", "who=me", "--header", "x-key=secret"),
    )

    assert done.exit_code == 0, done.output
    ours = read(tmp_path / "r.json")
    assert (ours["schema"], ours["is_simulated"], ours["doubts"]) == ("tierline-serving/1", True, [])
    assert (ours["summary"]["completed"], ours["summary"]["failed"], len(ours["records"])) == (16, 0, 16)
    assert len(ours["loads"]) == 2
    assert "secret" not in (tmp_path / "r.json").read_text()
    assert ours["parts"]["cold"]["cached_share"] == 0
    assert ours["parts"]["warm"]["cached_share"] > 0.7
    assert ours["split"]["engine_cache"] == ours["summary"]["cached_tokens"]
    assert sum(ours["split"].values()) == ours["summary"]["input_tokens"]
    assert abs(ours["summary"]["input_tokens"] / 16 - 400) < 60
    assert ours["summary"]["output_tokens"] == 16 * 8
    assert ours["summary"]["goodput"] == ours["summary"]["requests_per_s"]
    assert ours["costs"]["whole"] == pytest.approx(0.001 * ours["summary"]["duration_s"])
    assert len(list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))) == 16
    assert "simulated: Cost" in (tmp_path / "r.md").read_text()
    assert read(tmp_path / "v.json")["who"] == "me"
    assert read(tmp_path / "v.json")["total_output_tokens"] == 128
    assert read(tmp_path / "a.json")["request_count"]["avg"] == 16
    assert not (tmp_path / "r.partial.jsonl").exists()


def test_answers_are_kept_where_every_request_is_to_be_detailed_and_only_there(engine: str, tmp_path: Path) -> None:
    saved = ("--save-result", "--result-dir", str(tmp_path), "--result-filename", "v.json")
    for arguments in ((), (*saved, "--save-detailed")):
        done = bench(
            "--base-url", engine, *SMALL, *SLOW_CLIENT_IS_NO_MATTER, *arguments, "--json", str(tmp_path / "r.json")
        )
        assert done.exit_code == 0, done.output
        kept = [record["text"] for record in read(tmp_path / "r.json")["records"]]
        assert all(kept) if arguments else not any(kept)

    assert sorted(read(tmp_path / "v.json")["generated_texts"]) == sorted(kept)


def test_an_open_loop_and_a_trace_send_at_their_times_and_two_results_compare(engine: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    entries = [{"timestamp": 100 * at, "input_length": 600, "output_length": 4, "hash_ids": [0, at]} for at in range(6)]
    trace.write_text("\n".join(map(json.dumps, entries)))

    open_loop = ("--dataset-name", "independent", *SMALL[:-2], "--request-rate", "40", "--burstiness", "inf")
    for arguments in (
        (*open_loop, "--json", str(tmp_path / "a.json")),
        ("--dataset-name", "trace", "--dataset-path", str(trace), "--json", str(tmp_path / "b.json")),
    ):
        done = bench("--base-url", engine, *SLOW_CLIENT_IS_NO_MATTER, *arguments)
        assert done.exit_code == 0, done.output

    for name, gap_s in (("a.json", 1 / 40), ("b.json", 0.1)):
        sent = sorted((record["index"], record["sent_s"]) for record in read(tmp_path / name)["records"])
        assert all(at_s >= index * gap_s for index, at_s in sent)
    compared = bench("--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    assert compared.exit_code == 0
    assert "workload differs: A independent, B trace" in compared.output.replace("\n", " ")


def test_a_client_that_is_too_slow_publishes_nothing(engine: str, tmp_path: Path) -> None:
    with pytest.raises(TierlineError, match="nothing is written"):
        bench("--base-url", engine, *SMALL, "--late-limit", "0", "--json", str(tmp_path / "r.json"))

    assert list(tmp_path.iterdir()) == []


def test_a_client_that_could_not_look_at_answers_publishes_nothing(engine: str, tmp_path: Path) -> None:
    """In a closed loop it sends nothing late either: whatever it had to wait for, it saw late as well."""
    result, journal = tmp_path / "r.json", tmp_path / "r.partial.jsonl"
    arguments = ("--input-len", "400", "--output-len", "32", "--num-prompts", "24", "--max-concurrency", "4")
    command = tierline("bench", "run", "--base-url", engine, *arguments, "--late-limit", "200", "--json", str(result))

    def has_some() -> bool:
        return journal.exists() and len(journal.read_bytes().splitlines()) > 2

    with Program(command, tmp_path / "log", is_ready=has_some, ready_within_s=60) as run:
        (client,) = clients_of(run.pid)
        os.kill(client, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(client, signal.SIGCONT)
        wait_until(lambda: not journal.exists(), within_s=60)
        wait_until(lambda: "nothing is written" in words_of(tmp_path / "log"), within_s=60)
        wait_until(lambda: "noticed 1 of 100 answers" in words_of(tmp_path / "log"), within_s=60)

    assert not result.exists()


def words_of(log: Path) -> str:
    """Return what a program has said so far, wherever its lines were broken."""
    return " ".join(log.read_text().split())


def clients_of(pid: int) -> list[int]:
    """Return the client processes of a benchmark."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parent = int(file.read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"tierline.bench.serving.worker" in (file.parent / "cmdline").read_bytes():
                found.append(int(file.parent.name))
    return found


def seconds_to_start() -> float:
    """Return how long a program takes here to load what a host of a load needs."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import tierline.bench.serving.running"], check=True)
    return time.monotonic() - began


def is_whole(result: Path) -> bool:
    """Whether a run has written its result; its journal goes when that is done."""
    return result.exists() and not result.with_suffix(".partial.jsonl").exists()


def wait_until(is_so: Callable[[], bool], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_twenty_prompts_of_64k_tokens_at_once_are_no_work_for_the_client(tmp_path: Path) -> None:
    port, result = free_port(), tmp_path / "r.json"
    url = f"http://127.0.0.1:{port}"
    rates = ("--prefill-rate", "1000000", "--max-num-batched-tokens", "65536", "--cache-blocks", "120000")
    with Program(
        tierline("simulate-engine", "--port", str(port), *rates),
        tmp_path / "log",
        is_ready=lambda: answers(f"{url}/health"),
        ready_within_s=60,
    ):
        done = bench(
            *("--base-url", url, "--input-len", "65536", "--output-len", "8", "--max-concurrency", "20"),
            *("--num-prompts", "40", "--num-turns", "2", *SLOW_CLIENT_IS_NO_MATTER, "--json", str(result)),
        )

    assert done.exit_code == 0, done.output
    told = decode(result)
    assert most_in_flight(told.records) == 20
    assert len(told.records) == 40
    assert all(record.is_good and abs((record.prompt_tokens or 0) - 65536) < 4000 for record in told.records)
    assert {record.cached_tokens for record in told.records if record.is_cold} == {0}
    assert all((record.cached_tokens or 0) > 60_000 for record in told.records if not record.is_cold)
    (load,) = told.loads
    assert load.cpu_share < BUSY_SHARE / 2


def test_a_run_that_is_interrupted_goes_on_and_is_whole(engine: str, tmp_path: Path) -> None:
    result, journal = tmp_path / "r.json", tmp_path / "r.partial.jsonl"
    arguments = (
        *("--base-url", engine, "--input-len", "400", "--output-len", "32", "--num-prompts", "24"),
        *("--max-concurrency", "4", *SLOW_CLIENT_IS_NO_MATTER, "--json", str(result)),
    )
    command = [sys.executable, "-m", "tierline", "bench", "run", *arguments]

    def has_some() -> bool:
        return journal.exists() and len(journal.read_bytes().splitlines()) > 8

    with Program(command, tmp_path / "log", is_ready=has_some, ready_within_s=60) as run:
        assert run.pid
    assert not result.exists()
    before = len(journal.read_bytes().splitlines())

    done = bench(*arguments, "--resume")

    assert done.exit_code == 0, done.output
    whole = read(result)
    assert before > 8
    assert sorted(record["index"] for record in whole["records"]) == list(range(24))
    assert all(record["cached_tokens"] == 0 for record in whole["records"] if record["index"] % 4 == 0)
    assert any("Interrupted" in note for note in whole["notes"])
    assert not journal.exists()


def test_hosts_that_load_one_server_at_once_are_merged_into_one_load(engine: str, tmp_path: Path) -> None:
    """Each host is a process of its own, as users would start them."""
    files = [tmp_path / "1.json", tmp_path / "2.json"]
    load = ("--input-len", "400", "--output-len", "48", "--num-prompts", "16", "--max-concurrency", "4")
    together = (*load, *SLOW_CLIENT_IS_NO_MATTER, "--salt", f"merged at {time.time()}")
    start_at = time.time() + 5 + 6 * seconds_to_start()  # on a busy machine longer; each starts a process of its own
    with contextlib.ExitStack() as hosts:
        for number, file in enumerate(files, start=1):
            share = ("--share", f"{number}/2", "--start-at", str(start_at), "--json", str(file))
            command = tierline("bench", "run", "--base-url", engine, *together, *share)
            hosts.enter_context(Program(command, tmp_path / f"{number}.log", is_ready=lambda: True))
        for file in files:
            wait_until(partial(is_whole, file), within_s=90)

    done = bench("--merge", str(files[0]), "--merge", str(files[1]), "--json", str(tmp_path / "both.json"))

    assert done.exit_code == 0, done.output
    assert "closed loop, 8 at once" in done.output.replace("\n", " ")
    both = decode(tmp_path / "both.json")
    assert sorted(record.index for record in both.records) == list(range(16))
    assert len(both.loads) == 2
    assert both.started_s >= start_at
    assert any(note.startswith("Several hosts made this load") for note in both.notes)
    assert all((record.cached_tokens or 0) > 200 for record in both.records if not record.is_cold)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--base-url", "http://127.0.0.1:1"), EngineError),
        (("--resume",), UsageError),
        (("--share", "1/2"), UsageError),
        (("--start-at", f"{time.time() - 3600:.0f}", "--salt", "an hour ago"), ConfigurationError),
        (("--start-at", f"{time.time() * 1000:.0f}", "--salt", "in milliseconds"), ConfigurationError),
        (("--ramp-up-strategy", "linear"), UsageError),
        (("--goodput", "itl:3"), ConfigurationError),
        (("--header", "none"), ConfigurationError),
        (("--extra-body", "[1]"), ConfigurationError),
        (("--metric-percentiles", "50,200"), ConfigurationError),
        (("--prices", "missing.yaml"), UsageError),
        (("--dataset-name", "trace"), ConfigurationError),
        (("--input-len", "8"), ConfigurationError),
        (("--metrics-url", "http://127.0.0.1:1"), ConfigurationError),
        (("--plot", "x.foo"), ConfigurationError),
        (("--csv", "/tmp"), UsageError),
        (("--html", "/etc/passwd/x.html"), UsageError),
        (("--save-result", "--result-dir", "/proc"), UsageError),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_mistakes_are_told_before_anything_is_sent(
    engine: str, arguments: tuple[str, ...], error: type[TierlineError]
) -> None:
    with pytest.raises(error):
        bench("--base-url", engine, *arguments)


def test_an_engine_that_has_no_metrics_is_named(engine: str) -> None:
    with pytest.raises(EngineError, match="/nope/metrics answered 404"):
        bench("--base-url", engine, *SMALL, "--metrics-url", f"{engine}/nope")


def test_a_run_that_is_over_before_anything_is_measured_is_no_result(engine: str, tmp_path: Path) -> None:
    with pytest.raises(TierlineError, match="nothing was measured: all 1 requests were sent within --ramp-up-seconds"):
        bench(
            "--base-url", engine, "--num-prompts", "1", "--ramp-up-seconds", "9999", "--json", str(tmp_path / "r.json")
        )

    assert not (tmp_path / "r.json").exists()


def simulated_aiperf(folder: Path, *, status: int) -> Path:
    """Return a program that takes aiperf's command line and leaves what aiperf once wrote."""
    recorded = Path(__file__).parents[2] / "unit/bench/serving/data/aiperf-0.13.0.jsonl"
    program = folder / "simulated-aiperf"
    program.write_text(
        f"#!{sys.executable}\n"
        "import shutil, sys\n"
        "folder = sys.argv[sys.argv.index('--artifact-dir') + 1]\n"
        f"shutil.copy({str(recorded)!r}, folder + '/profile_export.jsonl')\n"
        f"print('no tokenizer of that name', file=sys.stderr)\nsys.exit({status})\n"
    )
    program.chmod(0o755)
    return program


def test_another_load_generator_runs_in_our_place_and_its_result_is_ours(engine: str, tmp_path: Path) -> None:
    program = simulated_aiperf(tmp_path, status=0)
    arguments = ("--base-url", engine, *SMALL, "--dataset-name", "independent", "--driver", "aiperf")

    with pytest.raises(TierlineError, match="nothing is written"):
        bench(*arguments, "--driver-path", str(program), "--json", str(tmp_path / "late.json"))
    done = bench(
        *arguments, *SLOW_CLIENT_IS_NO_MATTER, "--driver-path", str(program), "--json", str(tmp_path / "r.json")
    )

    assert done.exit_code == 0, done.output
    assert not (tmp_path / "late.json").exists()
    result = read(tmp_path / "r.json")
    assert (result["driver"], result["is_simulated"], result["summary"]["completed"]) == ("aiperf", True, 6)
    with pytest.raises(UsageError, match="--resume: goes only with our own client"):
        bench(*arguments, "--driver-path", str(program), "--json", str(tmp_path / "r.json"), "--resume")
    failing = simulated_aiperf(tmp_path, status=3)
    with pytest.raises(TierlineError, match="aiperf ended with status 3: no tokenizer of that name"):
        bench(*arguments, "--driver-path", str(failing))
