"""What other load generators write, read into our records: recorded files, broken ones, and their command lines."""

import contextlib
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tierline.bench.report import Machine
from tierline.bench.serving.arrivals import Ramp
from tierline.bench.serving.bottleneck import LateRule
from tierline.bench.serving.client import Target
from tierline.bench.serving.drivers import aiperf, guidellm, vllm
from tierline.bench.serving.drivers.driver import Asked, Driver, result_of
from tierline.bench.serving.drivers.known import DRIVERS, driver_for
from tierline.bench.serving.drivers.lateness import reckon
from tierline.bench.serving.measures import summarize
from tierline.bench.serving.records import Record
from tierline.bench.serving.report import report_of
from tierline.bench.serving.results import Result, Settings, decode, encode
from tierline.bench.serving.trace_files import Traced
from tierline.errors import ConfigurationError, TierlineError, UsageError

DATA = Path(__file__).parent / "data"
"""Each was written by that version, of a load on a simulated engine: six requests that share nothing, two chats of
three turns, a trace of four; guidellm's without texts and empty fields."""
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


def result_from(name: str, records: list[Record], given: Asked) -> Result:
    return result_of(
        DRIVERS[name],
        records,
        given,
        started_s=0.0,
        machine=Machine.here(),
        billing=None,
        command="tierline bench run",
        late=LateRule.fixed(60_000),
    )


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
    result = result_from(name, read(path.read_bytes()), asked())
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
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
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


def test_chats_are_as_many_turns_as_ours_and_as_long() -> None:
    chats = {"workload": "chats", "turns": 3, "input_len": 256, "output_len": 8}

    assert "--osl 8 --isl 80 --conversation-num 2 --conversation-turn-mean 3" in words("aiperf", **chats)
    assert '{"kind":"synthetic_text","output_tokens":8,"prompt_tokens":80,"turns":3}' in words("guidellm", **chats)
    for name in ("aiperf", "guidellm"):
        with pytest.raises(ConfigurationError, match="a multiple of --num-turns, 3"):
            words(name, **chats, requests=7)
        with pytest.raises(UsageError, match="--request-rate with chats"):
            words(name, **chats, is_open_loop=True, request_rate=1.0)


@pytest.mark.parametrize(
    ("name", "data"), [("aiperf", "aiperf-0.13.0-chats.jsonl"), ("guidellm", "guidellm-0.8.1-chats.json")]
)
def test_of_a_chat_the_first_turn_is_cold_and_what_follows_is_warm(name: str, data: str) -> None:
    records = RECORDED[name][1]((DATA / data).read_bytes())

    result = result_from(name, records, asked(workload="chats", turns=3))

    for chat in {record.family for record in records}:
        turns = [record for record in result.records if record.family == chat]
        assert [record.is_cold for record in turns] == [True, False, False]
        assert [(record.cached_tokens or 0) > 0 for record in turns] == [False, True, True]
    assert result.unchecked == ""


TRACE = (
    Traced(0.0, 1200, 5, (0, 1, 2)),
    Traced(0.405, 1800, 6, (0, 3, 4, 5)),
    Traced(0.774, 1300, 7, (6, 7, 8)),
    Traced(1.974, 1200, 8, (0, 1, 2)),
)


def replaying(**changed: Any) -> Asked:
    given: dict[str, Any] = {"workload": "trace", "is_open_loop": True, "max_concurrency": None}
    return replace(asked(**given | changed), trace=TRACE)


@pytest.mark.parametrize(
    ("name", "data", "warm"),
    [
        ("vllm", "vllm-0.32.0-trace.json", [3]),
        ("aiperf", "aiperf-0.13.0-trace.jsonl", [3]),
        ("guidellm", "guidellm-0.8.1-trace.json", []),
    ],
)
def test_a_replayed_trace_came_when_it_was_to_come_and_what_it_shares_is_warm(
    name: str, data: str, warm: list[int]
) -> None:
    records = RECORDED[name][1]((DATA / data).read_bytes())

    result = result_from(name, records, replaying())

    assert [record.index for record in result.records if not record.is_cold] == warm
    assert [record.output_tokens for record in result.records] == [5, 6, 7, 8]
    for record, request in zip(result.records, TRACE, strict=True):
        assert record.sent_s == pytest.approx(request.at_s, abs=0.13)
        assert record.late_s is not None
    assert result.unchecked == ""
    assert any("all are called cold" in note for note in result.notes) is (name == "guidellm")


def test_a_trace_is_handed_over_in_mooncakes_format() -> None:
    given = replaying()

    assert (
        "--input-file /folder/trace.jsonl --custom-dataset-type mooncake_trace --isl-block-size 512 --fixed-schedule"
        in " ".join(aiperf.AIPERF.arguments(given, Path("/folder")))
    )
    replay = " ".join(guidellm.GUIDELLM.arguments(given, Path("/folder")))
    assert '--profile {"kind":"replay"}' in replay
    assert '"path":"/folder/trace.jsonl"},"hash_id_block_size":512,"time_scale":0.001' in replay
    with pytest.raises(UsageError, match="another --endpoint than /v1/completions"):
        vllm.VLLM.arguments(given, Path("/folder"))
    as_tokens = replace(given, target=msgspec.structs.replace(given.target, endpoint="/v1/completions"))
    assert "timed_trace --dataset-path /folder/trace.jsonl --timed-trace-chunk-hash-size 512" in " ".join(
        vllm.VLLM.arguments(as_tokens, Path("/folder"))
    )
    for driver in DRIVERS.values():
        with pytest.raises(UsageError, match="--request-rate with a trace"):
            driver.arguments(replaying(request_rate=2.0), Path("/folder"))


@pytest.mark.parametrize(
    ("name", "workload", "others"),
    [
        ("vllm", "chats", "--driver aiperf or --driver guidellm or our own client"),
        ("aiperf", "documents", "give it to our own client"),
        ("guidellm", "agents", "give it to our own client"),
    ],
)
def test_a_workload_that_a_driver_cannot_make_is_refused_and_who_can_is_named(
    name: str, workload: str, others: str
) -> None:
    with pytest.raises(UsageError, match=others):
        driver_for(name, workload)


def record(index: int, sent_s: float, latency_s: float, **more: Any) -> Record:
    told: dict[str, Any] = {"family": f"prompt {index}", "is_cold": True, "ttft_s": 0.01, "late_s": None}
    return Record(index=index, sent_s=sent_s, latency_s=latency_s, **told | more)


def lateness(records: list[Record], **changed: Any) -> list[float | None]:
    reckoned = reckon(records, asked(**changed).settings)
    assert reckoned.unknown == ""
    return [None if each.late_s is None else round(each.late_s, 3) for each in reckoned.records]


def test_in_a_closed_loop_a_request_is_late_from_the_answer_on_that_made_room() -> None:
    sent = [record(0, 0.0, 1.0), record(1, 0.1, 2.0), record(2, 1.0, 1.0), record(3, 2.05, 1.0), record(4, 2.1, 1.0)]

    assert lateness(sent) == [0.0, 0.1, 0.0, 0.05, 0.0]


def test_a_turn_is_late_from_the_answer_on_that_it_follows() -> None:
    first, second = {"family": "a"}, {"family": "b"}
    sent = [record(0, 0.0, 1.0, **first), record(1, 0.0, 5.0, **second), record(2, 5.25, 1.0, **second)]

    assert lateness(sent, workload="chats", turns=2) == [0.0, 0.0, 0.25]


def test_with_a_steady_rate_a_request_is_late_from_its_turn_on() -> None:
    sent = [record(0, 0.0, 9.0), record(1, 0.5, 9.0), record(2, 1.3, 9.0)]
    steady = {"is_open_loop": True, "request_rate": 2.0, "burstiness": None, "max_concurrency": None}

    assert lateness(sent, **steady) == [0.0, 0.0, 0.3]


@pytest.mark.parametrize(
    "changed",
    [
        {"is_open_loop": True, "request_rate": 2.0, "max_concurrency": None},
        {"duration_s": 5.0},
        {"ramp_s": 5.0},
        {"workload": "chats", "turns": 1},
    ],
    ids=str,
)
def test_what_records_do_not_tell_is_unknown_and_said_to_be(changed: dict[str, Any]) -> None:
    result = result_from("vllm", [record(0, 0.0, 1.0), record(1, 6.0, 1.0)], asked(**changed))

    assert result.unchecked
    assert any("How late vllm sent is unknown" in note for note in report_of(result).notes)
    assert not any("at most" in note and "late" in note for note in report_of(result).notes)


def test_how_long_a_failed_request_had_its_place_is_unknown() -> None:
    failed = record(1, 0.0, 0.0, ttft_s=None, error="failed")

    assert "failed requests" in reckon([record(0, 0.0, 1.0), failed], asked().settings).unknown


def test_text_that_a_cache_has_seen_before_is_not_called_cold_without_a_word() -> None:
    seen = record(0, 0.0, 1.0, prompt_tokens=100, cached_tokens=96)

    notes = result_from("aiperf", [seen, record(1, 1.0, 1.0)], asked()).notes

    assert any("1 cold requests found most of their prompt" in note for note in notes)


def test_a_driver_that_was_too_slow_is_not_published() -> None:
    sent = [record(index, 0.5 * index, 0.1) for index in range(4)]

    result = result_of(
        DRIVERS["vllm"],
        sent,
        asked(max_concurrency=1),
        started_s=0.0,
        machine=Machine.here(),
        billing=None,
        command="tierline bench run",
    )

    assert "400 ms late or more" in result.doubts[0]
    assert "--processes" not in result.doubts[0]


@pytest.mark.parametrize(
    ("name", "changed", "flag"),
    [
        ("vllm", {"ramp": Ramp("linear", 1.5, 4.0), "is_open_loop": True}, "--ramp-up-\\*-rps that is no whole number"),
        ("aiperf", {"is_open_loop": True, "max_concurrency": None}, "--request-rate inf"),
        ("aiperf", {"workload": "chats", "turns": 2, "warmups": 1}, "--num-warmups with chats"),
        ("guidellm", {"warmups": 1}, "--num-warmups"),
    ],
)
def test_what_a_driver_would_do_otherwise_is_refused(name: str, changed: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        words(name, **changed)


def test_a_driver_that_is_not_there_says_how_it_is_had() -> None:
    driver = Driver("aiperf", "no-such-program", "pip install aiperf", (), lambda *_: [], lambda _: [])

    with pytest.raises(UsageError, match="there is no no-such-program in PATH; pip install aiperf, or give its place"):
        driver.command(None)
    with pytest.raises(UsageError, match="is no program"):
        driver.command(Path("/no/such/file"))
