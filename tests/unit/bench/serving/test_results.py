"""Results in every shape, merged, compared, and gone on with; the records are those of hand-made runs."""

import ast
import csv
import datetime as dt
import importlib.util
import io
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from tierline.bench.report import Machine, figure_text, markdown
from tierline.bench.rows import TokenSplit
from tierline.bench.serving.arrivals import Ramp
from tierline.bench.serving.comparing import compare, comparison_table, differences
from tierline.bench.serving.html import html_text
from tierline.bench.serving.journal import Journal, Opening, read_journal
from tierline.bench.serving.measures import duration
from tierline.bench.serving.prices import PriceList
from tierline.bench.serving.records import ClientLoad, Record
from tierline.bench.serving.report import report_of
from tierline.bench.serving.results import (
    Billing,
    Result,
    Settings,
    aiperf_document,
    csv_text,
    decode,
    encode,
    merge,
    vllm_document,
    vllm_file_name,
)
from tierline.bench.serving.running import command_line, parse_share
from tierline.bench.serving.workloads import Shape, plan
from tierline.cli.bench.writing import require_answers
from tierline.cli.main import app
from tierline.errors import ConfigurationError, TierlineError, UsageError

SETTINGS = Settings(
    base_url="http://h:1",
    endpoint="/v1/chat/completions",
    model="org/m",
    workload="documents",
    input_len=800,
    output_len=4,
    turns=4,
    prefixes=8,
    requests=40,
    max_concurrency=4,
    goodput_ms={"ttft": 300.0},
)
MACHINE = Machine("a processor", 2, 1, "6", "3.11", 0.1)


def records(seed: int = 0, factor: float = 1.0, *, simulated: bool = False, count: int = 40) -> list[Record]:
    dice = random.Random(seed)
    made = []
    for index in range(count):
        ttft = factor * dice.uniform(0.1, 0.5)
        made.append(
            Record(
                index=index,
                family=f"document {index // 4}",
                is_cold=index % 4 == 0,
                sent_s=0.25 * index,
                latency_s=ttft + 0.3,
                ttft_s=ttft,
                gaps_s=[0.1, 0.1, 0.1],
                prompt_tokens=800,
                output_tokens=4,
                cached_tokens=0 if index % 4 == 0 else 768,
                is_simulated=simulated,
            )
        )
    return made


def result(made: list[Record], **changes: object) -> Result:
    whole = Result(
        version="1",
        command="tierline bench run",
        started="2026-11-20T10:11:12+00:00",
        started_s=1000.0,
        machine=MACHINE,
        settings=SETTINGS,
        tokens_per_word=1.3,
        loads=[ClientLoad(wall_s=10.0, cpu_s=1.0)],
        records=made,
    )
    return msgspec.structs.replace(whole, **changes)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    prices = PriceList(dt.date(2026, 11, 1), "an invoice", "EUR", {"small": 3.6})
    whole = result(records(), split=TokenSplit(1, 2, 3, 4), billing=Billing(prices, "small", 2))
    (tmp_path / "r.json").write_bytes(encode(whole))

    again = decode(tmp_path / "r.json")
    assert (again.settings, again.billing, again.split) == (whole.settings, whole.billing, whole.split)
    assert encode(again) == encode(whole)
    document = msgspec.json.decode((tmp_path / "r.json").read_bytes())
    assert document["summary"]["metrics"]["ttft"]["p90"] == whole.summary().metrics["ttft"].percentiles[90.0]
    assert set(document["parts"]) == {"cold", "warm"}
    assert document["costs"]["per_request"] > 0
    for wrong in ("{}", '{"schema": "x"}', "no"):
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(UsageError, match=r"wrong\.json"):
            decode(tmp_path / "wrong.json")


def test_simulated_engines_are_called_so_in_every_shape() -> None:
    whole = result(records(simulated=True))
    report = report_of(whole)

    assert all(row.name.startswith("simulated: ") for row in report.rows)
    assert all(table.title.startswith("simulated: ") for table in report.tables)
    assert "never of a real one" in report.notes[0]
    assert vllm_document(whole)["is_simulated"]
    assert aiperf_document(whole)["is_simulated"]
    assert b'"is_simulated": true' in encode(whole)
    assert csv_text(whole).splitlines()[1].split(",")[5] == "True"


def test_vllms_names_are_flat_and_in_milliseconds() -> None:
    document = vllm_document(result(records()), is_detailed=True)

    assert {"completed", "failed", "request_throughput", "output_throughput", "request_goodput"} <= document.keys()
    assert document["p50_ttft_ms"] == document["median_ttft_ms"]
    assert 100 <= document["mean_ttft_ms"] <= 500
    assert document["mean_tpot_ms"] == pytest.approx(100)
    assert document["date"] == "20261120-101112"
    assert len(document["ttfts"]) == len(document["itls"]) == document["num_prompts"] == 40


def of_vllm() -> ast.Module:
    """Return vLLM's own benchmark, read and not imported: that would take seconds."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    return ast.parse((Path(found.submodule_search_locations[0]) / "benchmarks" / "serve.py").read_text())


def test_all_names_that_vllm_writes_are_there() -> None:
    code = of_vllm()
    names = {  # result_json["date"] = …
        node.slice.value
        for node in ast.walk(code)
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
        if isinstance(node.value, ast.Name) and node.value.id == "result_json"
        if isinstance(node.slice, ast.Constant)
    }
    [measured] = [  # result = {"duration": …}, of tasks that generate
        {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
        for node in ast.walk(code)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        if any(isinstance(key, ast.Constant) and key.value == "generated_texts" for key in node.value.keys)
    ]
    calls = {  # process_one_metric("ttft", …)
        str(node.args[0].value)
        for node in ast.walk(code)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "process_one_metric"
        if isinstance(node.args[0], ast.Constant)
    }
    ramped = msgspec.structs.replace(SETTINGS, is_open_loop=True, ramp=Ramp("linear", 1, 8))

    document = vllm_document(result(records(), settings=ramped), is_detailed=True)

    assert {"date", "ramp_up_end_rps"} <= names
    assert {"rtfx", "max_output_tokens_per_s", "queue_times"} <= measured
    assert {"ttft", "client_queue_time"} <= calls
    assert (names | measured | {f"p99_{metric}_ms" for metric in calls}) - document.keys() == set()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "openai-chat-infqps-concurrency4-m-20261120-101112.json"),
        ({"endpoint": "/v1/completions", "request_rate": 2.5}, "openai-2.5qps-concurrency4-m-20261120-101112.json"),
        (
            {"ramp": Ramp("linear", 1, 8), "max_concurrency": None},
            "openai-chat-ramp-up-linear-1qps-8qps-m-20261120-101112.json",
        ),
    ],
    ids=["closed", "rate", "ramp"],
)
def test_a_file_of_vllms_names_is_called_as_vllm_calls_it(changes: dict[str, Any], name: str) -> None:
    assert vllm_file_name(result(records(), settings=msgspec.structs.replace(SETTINGS, **changes))) == name


def test_waiting_for_a_place_is_summed_up_under_vllms_names_where_an_open_loop_has_a_limit() -> None:
    waited = [msgspec.structs.replace(record, queued_s=0.2) for record in records()]
    limited = msgspec.structs.replace(SETTINGS, is_open_loop=True, request_rate=9.0)

    document = vllm_document(result(waited, settings=limited))

    assert document["mean_client_queue_time_ms"] == pytest.approx(200)
    assert document["mean_e2el_including_client_queue_ms"] == pytest.approx(document["mean_e2el_ms"] + 200)
    assert "mean_client_queue_time_ms" not in vllm_document(result(waited))


def test_the_most_tokens_a_second_are_those_of_the_best_second() -> None:
    made = [  # tokens at 0.1, 0.2, 0.3, 0.4 and at 5.9, 6.0, 6.1, 6.2
        msgspec.structs.replace(record, sent_s=sent_s, ttft_s=0.1)
        for record, sent_s in zip(records(count=2), (0, 5.8), strict=True)
    ]

    assert vllm_document(result(made))["max_output_tokens_per_s"] == 4
    assert vllm_document(result([]))["max_output_tokens_per_s"] == 0


def test_every_record_of_a_result_has_every_field() -> None:
    document = msgspec.json.decode(encode(result(records())))

    assert all(record.keys() == set(Record.__struct_fields__) for record in document["records"])
    assert document["records"][0]["is_measured"] is True


def test_aiperfs_shape_has_a_unit_and_percentiles_for_each_metric() -> None:
    document = aiperf_document(result(records()))

    assert document["time_to_first_token"]["unit"] == "ms"
    assert document["time_to_first_token"]["count"] == 40
    assert document["inter_token_latency"]["p50"] == pytest.approx(100)
    assert document["inter_chunk_latency"]["count"] == 120
    assert document["overall_usage_prompt_cache_read_pct"]["avg"] == pytest.approx(100 * 0.75 * 768 / 800)
    lasted = dt.datetime.fromisoformat(document["end_time"]) - dt.datetime.fromisoformat(document["start_time"])
    assert lasted.total_seconds() == pytest.approx(max(record.ended_s for record in records()), abs=1e-5)


def test_the_csv_has_a_line_a_request() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(result(records())))))

    assert len(rows) == 40
    assert float(rows[3]["ttft_s"]) == records()[3].ttft_s
    assert rows[3]["error"] == ""


def test_a_page_needs_no_other_file_and_what_servers_say_is_no_markup() -> None:
    mean = "</script><script>alert(1)</script>"
    whole = result(
        [msgspec.structs.replace(record, family=mean, endpoint=mean, detail=mean) for record in records()],
        settings=msgspec.structs.replace(SETTINGS, model=mean),
        notes=[mean],
    )

    page = html_text(whole)

    assert mean not in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']|url\(|@import""", page.replace("xmlns", ""))
    charts = msgspec.json.decode(page.partition('type="application/json">')[2].partition("</script>")[0])
    assert [len(chart["data"]) for chart in charts] == [3, 3, 2]
    assert all(len(series) == len(chart["data"][0]) for chart in charts for series in chart["data"])
    assert charts[1]["data"][1][-1] == charts[1]["data"][2][-1] == 1.0


def test_a_page_without_a_good_answer_has_no_charts() -> None:
    failed = [Record(index=0, family="f", is_cold=True, sent_s=0.0, latency_s=0.1, error="HTTP 429")]

    assert 'type="application/json">[]</script>' in html_text(result(failed))


def test_a_report_holds_no_figure_of_what_the_ramp_sent_or_the_server_did_not_say() -> None:
    bare = [
        msgspec.structs.replace(
            record, is_measured=record.index >= 20, cached_tokens=None, prompt_tokens=None, output_tokens=None
        )
        for record in records()
    ]
    report = report_of(result(bare))
    rows = {row.name: row for row in report.rows}

    assert rows["all: TTFT P50"].n == 20
    assert rows["all: cached tokens"].value is None
    assert any("20 requests of the ramp" in note for note in report.notes)
    assert any("does not count tokens" in note for note in report.notes)


def test_a_run_without_a_good_answer_is_a_report_of_errors() -> None:
    failed = [Record(index=0, family="f", is_cold=True, sent_s=0.0, latency_s=0.1, error="HTTP 429")]
    report = report_of(result(failed))

    assert {row.name: row.value for row in report.rows}["all: error, HTTP 429"] == 1
    assert report.chart is None
    assert encode(result(failed))


def test_what_failed_is_in_every_view_by_kind_with_what_was_said_of_it() -> None:
    kinds = ["HTTP 429", "timeout", "HTTP 429", ""]
    said = {"HTTP 429": "too many\n<b>requests</b> | " + 200 * "x ", "timeout": "", "": ""}
    made = [
        msgspec.structs.replace(record, error=kind, detail=said[kind])
        for record, kind in zip(records(count=4), kinds, strict=True)
    ]
    report = report_of(result(made))

    [table] = [table for table in report.tables if table.title == "What failed"]
    assert [line[:2] for line in table.lines] == [("HTTP 429", "2"), ("timeout", "1")]
    assert table.lines[0][2].startswith("too many <b>requests</b> | x x")
    assert table.lines[0][2].endswith("…")
    assert "3 of 4 requests failed: times and rates are those of the others." in report.notes
    assert "| HTTP 429 | 2 | too many <b>requests</b> \\|" in markdown(report)
    page = html_text(result(made))
    assert "<caption>What failed</caption>" in page
    assert "too many &lt;b&gt;requests" in page
    assert not any(table.title == "What failed" for table in report_of(result(records())).tables)


def test_input_and_output_tokens_a_second_are_in_the_table_of_rates() -> None:
    whole = result(records())

    [table] = [table for table in report_of(whole).tables if table.title == "How much is answered"]
    assert dict(zip(table.header, table.lines[0], strict=True))["all tokens/s"] == figure_text(
        whole.summary().tokens_per_s
    )


def test_a_run_of_which_more_than_half_failed_is_written_and_ends_with_an_error(tmp_path: Path) -> None:
    def of(failed: int) -> Result:
        made = [msgspec.structs.replace(each, error="HTTP 429" if each.index < failed else "") for each in records()]
        return result(made)

    require_answers(of(20))
    with pytest.raises(TierlineError, match="21 of 40 requests failed, so the figures are of few: 21 × HTTP 429"):
        require_answers(of(21))

    (tmp_path / "host.json").write_bytes(encode(of(40)))
    files = ("--plot", str(tmp_path / "all.svg"), "--json", str(tmp_path / "all.json"))
    with pytest.raises(TierlineError, match="40 of 40 requests failed"):
        CliRunner().invoke(
            app, ["bench", "run", "--merge", str(tmp_path / "host.json"), *files], catch_exceptions=False
        )
    assert decode(tmp_path / "all.json").summary().failed == 40


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "open"])
def test_a_closed_loop_that_never_had_so_many_in_flight_says_so(is_closed: bool) -> None:
    made = [msgspec.structs.replace(record, sent_s=10.0 * (record.index // 3)) for record in records()]
    settings = msgspec.structs.replace(SETTINGS, max_concurrency=20, is_open_loop=not is_closed)

    notes = report_of(result(made, settings=settings)).notes

    assert any("At most 3 were in flight at once, not 20" in note for note in notes) is is_closed


def test_rates_of_parts_add_up_to_those_of_the_run() -> None:
    whole = result(records())
    parts = whole.parts()

    assert parts["cold"].requests_per_s + parts["warm"].requests_per_s == pytest.approx(whole.summary().requests_per_s)
    assert parts["cold"].own_output_tokens_per_s != parts["warm"].own_output_tokens_per_s


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({}, "documents: prompts of at most 800 tokens, answers of at most 4 tokens; closed loop, 4 at once"),
        ({"is_open_loop": True, "max_concurrency": None}, "open loop, all at once;"),
        ({"is_open_loop": True, "request_rate": 2.5}, "open loop, 2.5 requests/s, at most 4 at once"),
        ({"is_open_loop": True, "ramp": Ramp("linear", 1, 8)}, "open loop, 1 to 8 requests/s, at most 4 at once"),
        (
            {"is_open_loop": True, "trace": "t.csv", "trace_speed": 2.0, "input_len": 0, "max_concurrency": None},
            "documents t.csv: prompts of lengths as in the trace, answers of at most 4 tokens; "
            "open loop, as the trace has it, 2 times as fast;",
        ),
    ],
    ids=["closed", "at once", "rate", "ramp", "trace"],
)
def test_a_report_says_how_requests_came(changes: dict[str, Any], note: str) -> None:
    report = report_of(result(records(), settings=msgspec.structs.replace(SETTINGS, **changes)))

    assert any(note in each for each in report.notes)


def test_hosts_are_merged_on_one_clock() -> None:
    one = result(records()[::2], settings=msgspec.structs.replace(SETTINGS, share="1/2"))
    other = result(records()[1::2], settings=msgspec.structs.replace(SETTINGS, share="2/2"), started_s=1002.0)

    merged = merge([other, one])

    assert merged.settings.share == "1/2+2/2"
    assert len(merged.records) == 40
    assert len(merged.loads) == 2
    moved = next(record for record in merged.records if record.index == 1)
    assert moved.sent_s == 0.25 + 2.0
    assert [record.sent_s for record in merged.records] == sorted(record.sent_s for record in merged.records)


def test_a_merged_load_has_the_places_and_the_rate_of_all_hosts_and_names_them() -> None:
    own: dict[str, Any] = {"max_concurrency": 8, "request_rate": 2.5, "ramp": Ramp("linear", 1.0, 4.0)}
    hosts = [msgspec.structs.replace(SETTINGS, share=share, **own) for share in ("1/2", "2/2")]
    other_machine = replace(MACHINE, processor="another one")

    merged = merge(
        [
            result(records(), settings=hosts[0]),
            result(records(), settings=hosts[1], machine=other_machine, started_s=1001),
        ]
    )

    asked = merged.settings
    assert (asked.max_concurrency, asked.request_rate, asked.ramp) == (16, 5.0, Ramp("linear", 2.0, 8.0))
    whole_s = duration(records())
    assert f"all of them at once for {whole_s - 1:.1f} of {whole_s + 1:.1f} s: 1/2 from {MACHINE}" in merged.notes[-1]
    assert f"2/2 from {other_machine}" in merged.notes[-1]


def test_hosts_that_asked_for_other_things_or_at_other_times_are_not_merged() -> None:
    one = result(records(), settings=msgspec.structs.replace(SETTINGS, share="1/2"))
    for wrong in (
        result(records(), settings=msgspec.structs.replace(SETTINGS, share="2/2", input_len=9)),
        result(records(), settings=msgspec.structs.replace(SETTINGS, share="2/2"), started_s=5000.0),
    ):
        with pytest.raises(UsageError):
            merge([one, wrong])


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        (["1/2"], "2/2: no result has this share"),
        (["2/4", "4/4"], "1/4, 3/4: no result has this share"),
        (["1/2", "1/2"], "1/2: more than one result has this share"),
        (["1/2+2/2", "2/2"], "2/2: more than one result has this share"),
        (["1/2", "2/3"], "1/2, 2/3: are not of the same number of hosts"),
    ],
)
def test_results_that_are_not_those_of_all_hosts_are_not_merged(shares: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=f"--merge: {re.escape(said)}"):
        merge([result(records(), settings=msgspec.structs.replace(SETTINGS, share=share)) for share in shares])


def test_two_runs_of_the_same_server_are_not_called_different_and_a_slower_one_is() -> None:
    first, same, slow = (
        result(records(1, count=400)),
        result(records(2, count=400)),
        result(records(3, 2.0, count=400)),
    )

    alike = {each.name: each for each in compare(first, same, resamples=200)}
    unlike = {each.name: each for each in compare(first, slow, resamples=200)}

    assert not alike["TTFT P50"].is_different
    assert unlike["TTFT P50"].is_different
    assert unlike["TTFT P50"].ratio == pytest.approx(2, rel=0.2)
    for each in unlike.values():
        assert each.low is not None
        assert each.high is not None
        assert each.low <= each.ratio <= each.high
    assert not unlike["ITL P50"].is_different
    assert alike.keys() == unlike.keys() >= {"requests", "output tokens", "E2EL P99"}
    assert len(comparison_table(list(unlike.values())).lines) == len(unlike)


def test_two_shuffles_of_one_trace_are_not_different() -> None:
    dice, times = random.Random(7), [record.ttft_s for record in records(count=120)]
    sides = []
    for _ in range(2):
        dice.shuffle(times)
        made = records(count=120)
        shuffled = [
            msgspec.structs.replace(record, family="trace", ttft_s=time * dice.uniform(0.9, 1.1))
            for record, time in zip(made, times, strict=True)
            if time is not None
        ]
        sides.append(result(shuffled))

    found = {each.name: each for each in compare(sides[0], sides[1], resamples=200)}

    for each in found.values():
        assert each.is_different is False
    ttft = found["TTFT P50"]
    assert ttft.low is not None
    assert ttft.high is not None
    assert ttft.high - ttft.low > 0.05


def test_of_a_few_requests_nobody_can_say_whether_they_differ() -> None:
    first, second = result(records(1, count=8)), result(records(2, 3.0, count=8))

    found = compare(first, second, resamples=50)

    assert {each.name: each.is_different for each in found}["TTFT P50"] is None
    line = next(line for line in comparison_table(found).lines if line[0] == "TTFT P50")
    assert line[-2:] == ("–", "too few requests")


def test_a_percentile_that_few_requests_are_beyond_is_not_compared() -> None:
    sides = [result(records(seed, 3.0 * seed, count=60)) for seed in (1, 2)]

    verdicts = {each.name: each.is_different for each in compare(sides[0], sides[1], resamples=100)}

    assert verdicts["TTFT P90"] is True
    assert verdicts["TTFT P99"] is None
    assert verdicts["ITL P99"] is False  # 180 gaps


def test_a_comparison_says_in_what_the_runs_were_not_alike() -> None:
    other = result(records(simulated=True), settings=msgspec.structs.replace(SETTINGS, max_concurrency=9))

    notes = differences(result(records()), other)

    assert "max_concurrency differs: A 4, B 9" in notes
    assert any("simulated engines answered in B" in note for note in notes)


def test_an_interrupted_run_goes_on_with_the_families_that_are_not_done(tmp_path: Path) -> None:
    planned = plan("documents", Shape(requests=12, input_tokens=800, output_tokens=4, turns=4))
    file = tmp_path / "r.partial.jsonl"
    journal = Journal(file, Opening(SETTINGS, "salt", 1000.0))
    for record in records()[:6]:
        journal.write(record)
    journal.close()
    with file.open("ab") as cut:
        cut.write(b'{"index":7,"fam')

    earlier = read_journal(file, SETTINGS, planned)

    assert earlier is not None
    assert [record.index for record in earlier.records] == [0, 1, 2, 3]
    assert [each.index for each in earlier.left(planned)] == list(range(4, 12))
    assert earlier.lasted_s == max(record.ended_s for record in records()[:4])
    Journal(file, earlier.opening, earlier).close()
    again = read_journal(file, SETTINGS, planned)
    assert again is not None
    assert (again.attempts, again.records) == (2, earlier.records)


def test_only_the_same_run_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "r.partial.jsonl"
    assert read_journal(file, SETTINGS, []) is None
    Journal(file, Opening(SETTINGS, "salt", 1000.0)).close()

    with pytest.raises(UsageError, match="asked for something else"):
        read_journal(file, msgspec.structs.replace(SETTINGS, input_len=9), [])
    file.write_text("nonsense\n")
    with pytest.raises(UsageError, match="cannot be read"):
        read_journal(file, SETTINGS, [])


def test_a_share_is_a_number_of_hosts() -> None:
    assert parse_share("2/3") == (2, 3)
    for wrong in ("0/3", "4/3", "1", "a/b", "1/"):
        with pytest.raises(ConfigurationError, match="--share"):
            parse_share(wrong)


def test_a_command_that_is_written_down_has_no_header_s_value() -> None:
    assert command_line(["bench", "run", "--header", "authorization=Bearer x y", "--header=a=b", "--seed", "1"]) == (
        "tierline bench run --header authorization=… --header=a=… --seed 1"
    )
