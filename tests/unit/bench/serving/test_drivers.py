"""What other load generators write, read into our records: recorded files, broken ones, and their command lines."""

import contextlib
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tierline.bench.report import Machine
from tierline.bench.serving.client import Target
from tierline.bench.serving.drivers import aiperf, guidellm, vllm
from tierline.bench.serving.drivers.driver import Asked, Driver, result_of
from tierline.bench.serving.drivers.known import DRIVERS
from tierline.bench.serving.measures import summarize
from tierline.bench.serving.records import Record
from tierline.bench.serving.report import report_of
from tierline.bench.serving.results import Settings, decode, encode
from tierline.errors import ConfigurationError, TierlineError, UsageError

DATA = Path(__file__).parent / "data"
"""Each was written by that version, six requests to a simulated engine; guidellm's without texts and empty fields."""
RECORDED: dict[str, tuple[Path, Callable[[bytes], list[Record]]]] = {
    "vllm": (DATA / "vllm-0.32.0.json", vllm.records_of),
    "aiperf": (DATA / "aiperf-0.13.0.jsonl", aiperf.records_of),
    "guidellm": (DATA / "guidellm-0.8.1.json", guidellm.records_of),
}


def asked(**changed: Any) -> Asked:
    given: dict[str, Any] = {
        "base_url": "http://a:1",
        "endpoint": "/v1/chat/completions",
        "model": "m",
        "workload": "independent",
        "input_len": 128,
        "output_len": 8,
        "turns": 1,
        "prefixes": 3,
        "requests": 6,
        "max_concurrency": 2,
    }
    target = Target(base_url="http://a:1", model="m", headers={"x-a": "b", "x-c": "d"}, extra_body={"top_p": 0.5})
    return Asked(Settings(**given | changed), target, "tokenizer")


def words(name: str, **changed: Any) -> str:
    return " ".join(DRIVERS[name].arguments(asked(**changed), Path("/folder")))


@pytest.mark.parametrize("name", RECORDED)
def test_every_request_of_a_recorded_file_is_a_good_record(name: str) -> None:
    path, read = RECORDED[name]

    records = read(path.read_bytes())

    assert [record.index for record in records] == list(range(6))
    assert all(record.is_good and record.output_tokens == 8 and (record.prompt_tokens or 0) > 100 for record in records)
    assert min(record.sent_s for record in records) == 0
    for record in records:
        assert record.ttft_s is not None
        assert 0 < record.ttft_s < record.latency_s < 1


def test_figures_are_those_that_the_tools_print_themselves() -> None:
    told = json.loads((DATA / "vllm-0.32.0.json").read_bytes())
    records = vllm.records_of((DATA / "vllm-0.32.0.json").read_bytes())
    assert statistics.fmean(record.ttft_s or 0 for record in records) == pytest.approx(told["mean_ttft_ms"] / 1000)
    assert statistics.fmean(record.latency_s for record in records) == pytest.approx(told["mean_e2el_ms"] / 1000)
    assert sum(record.prompt_tokens or 0 for record in records) == told["total_input_tokens"]

    report = json.loads((DATA / "guidellm-0.8.1.json").read_bytes())
    latencies = [each["request_latency"] for each in report["benchmarks"][0]["requests"]["successful"]]
    read = guidellm.records_of((DATA / "guidellm-0.8.1.json").read_bytes())
    assert [record.latency_s for record in read] == pytest.approx(latencies)


@pytest.mark.parametrize("name", RECORDED)
def test_a_result_says_whose_it_is_and_can_be_read_again(name: str, tmp_path: Path) -> None:
    path, read = RECORDED[name]
    result = result_of(
        name,
        read(path.read_bytes()),
        asked(),
        started_s=0.0,
        machine=Machine.here(),
        billing=None,
        command="tierline bench run",
    )
    (tmp_path / "r.json").write_bytes(encode(result))

    shown = report_of(decode(tmp_path / "r.json"))

    assert all(row.name.startswith(f"by {name}: ") for row in shown.rows)
    assert any(f"Measured by {name}, not by our own client" in note for note in shown.notes)


@pytest.mark.parametrize("name", RECORDED)
@given(content=st.binary(max_size=200))
def test_bytes_that_are_no_result_are_an_error_of_one_kind(name: str, content: bytes) -> None:
    _, read = RECORDED[name]
    with contextlib.suppress(TierlineError):
        read(content)


@pytest.mark.parametrize("name", RECORDED)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_another_value_anywhere_is_read_or_refused(name: str, data: st.DataObject) -> None:
    path, read = RECORDED[name]
    documents = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else None
    document = json.loads(path.read_text()) if documents is None else documents
    change(document, data)
    content = "\n".join(map(json.dumps, document)) if documents is not None else json.dumps(document)

    try:
        records = read(content.encode())
    except TierlineError:
        return
    for record in records:
        assert record.latency_s >= 0
        assert record.sent_s >= 0
        assert record.ttft_s is None or record.ttft_s >= 0


def change(document: Any, data: st.DataObject) -> None:
    """Put another value into a document, as deep as it happens."""
    while True:
        keys = sorted(document) if isinstance(document, dict) else list(range(len(document)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if isinstance(document[key], dict | list) and document[key] and data.draw(st.integers(0, 3)):
            document = document[key]
            continue
        document[key] = data.draw(
            st.one_of(st.none(), st.integers(-5, 10**20), st.floats(), st.just("text"), st.just([]), st.just({}))
        )
        return


def test_what_failed_is_a_failure_with_its_reason() -> None:
    told = json.loads((DATA / "vllm-0.32.0.json").read_bytes())
    told["errors"][2], told["ttfts"][2] = "Traceback\nConnectionResetError: reset", 0.0

    record = vllm.records_of(json.dumps(told).encode())[2]

    assert (record.is_good, record.ttft_s, record.detail) == (False, None, "ConnectionResetError: reset")


def test_of_means_no_percentile_of_gaps_is_made() -> None:
    (mean, *_) = records = guidellm.records_of((DATA / "guidellm-0.8.1.json").read_bytes())

    summary = summarize(records, 1.0)

    assert "itl" not in summary.metrics
    assert summary.metrics["tpot"].n == len(records)
    assert mean.output == 8


def aiperf_lines(**metadata: Any) -> bytes:
    told = [json.loads(line) for line in (DATA / "aiperf-0.13.0.jsonl").read_text().splitlines()]
    told[0]["metrics"]["time_to_first_output_token"]["value"] = 5 * told[0]["metrics"]["time_to_first_token"]["value"]
    told[0]["metadata"] |= metadata
    return "\n".join(map(json.dumps, told)).encode()


def test_reasoning_is_the_first_token_whoever_measures() -> None:
    as_recorded = aiperf.records_of((DATA / "aiperf-0.13.0.jsonl").read_bytes())

    assert aiperf.records_of(aiperf_lines())[0].ttft_s == as_recorded[0].ttft_s


def test_what_the_end_of_a_run_cut_off_has_not_failed() -> None:
    records = aiperf.records_of(aiperf_lines(was_cancelled=True))

    assert len(records) == 5
    assert all(record.is_good for record in records)


def test_our_flags_are_theirs() -> None:
    assert "--dataset-name random --random-input-len 128 --random-output-len 8" in words("vllm")
    assert "--header x-a=b x-c=d" in words("vllm")
    assert '--extra-body {"top_p":0.5}' in words("vllm")
    assert "--isl 128 --concurrency 2" in words("aiperf")
    assert "--header x-a:b --header x-c:d" in words("aiperf")
    assert '"prompt_tokens":128' in words("guidellm")
    assert '{"kind":"concurrent","streams":2}' in words("guidellm")


def test_templates_are_prefixes_with_a_question_behind() -> None:
    assert "--prefix-repetition-prefix-len 96 --prefix-repetition-suffix-len 32" in words("vllm", workload="templates")
    assert "--isl 32 --prefix-prompt-length 96 --num-prefix-prompts 3" in words("aiperf", workload="templates")
    assert '"prefix_tokens":96,"prefix_count":3' in words("guidellm", workload="templates")


def test_a_rate_comes_as_it_was_asked_for() -> None:
    bursts = {"is_open_loop": True, "request_rate": 4.0, "burstiness": 0.5, "max_concurrency": None}
    steady = bursts | {"burstiness": None}

    assert "--request-rate 4.0 --burstiness 0.5" in words("vllm", **bursts)
    assert "--request-rate 4.0 --arrival-pattern gamma --arrival-smoothness 0.5" in words("aiperf", **bursts)
    assert "--arrival-pattern constant" in words("aiperf", **steady)
    assert '{"kind":"constant","rate":4.0}' in words("guidellm", **steady)
    with pytest.raises(UsageError, match="--burstiness"):
        words("guidellm", **bursts)


@pytest.mark.parametrize("name", DRIVERS)
def test_a_workload_that_a_driver_cannot_make_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="independent, templates with --driver"):
        words(name, workload="chats")


def test_a_driver_that_is_not_there_says_how_it_is_had() -> None:
    driver = Driver("aiperf", "no-such-program", "pip install aiperf", lambda *_: [], lambda _: [])

    with pytest.raises(UsageError, match="there is no no-such-program in PATH; pip install aiperf, or give its place"):
        driver.command(None)
    with pytest.raises(UsageError, match="is no program"):
        driver.command(Path("/no/such/file"))
