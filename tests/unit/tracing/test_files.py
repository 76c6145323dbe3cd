"""Files of spans, written by several programs and read back as traces."""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tierline.cli.trace import app
from tierline.errors import UsageError
from tierline.tracing import file as file_module
from tierline.tracing.context import SAMPLED, TraceContext
from tierline.tracing.otlp import ReadSpan, decode, encode
from tierline.tracing.reading import Trace, TraceTree, read_traces
from tierline.tracing.spans import Span, bucket_digest
from tierline.tracing.tracer import Tracer, open_tracer

ROOT = TraceContext(0xABC, 0x1, SAMPLED)
BEGAN_NS = 1_700_000_000_000_000_000


def tracer_of(service: str, file: Path) -> Tracer:
    tracer = open_tracer(service, file, to_collector=False)
    assert tracer is not None
    return tracer


def span(name: str, number: int, parent: int, start_ms: int, end_ms: int, trace: int = 0xABC, **about: object) -> Span:
    return Span(
        name,
        "internal",
        TraceContext(trace, number, SAMPLED),
        TraceContext(trace, parent, SAMPLED) if parent else None,
        BEGAN_NS + start_ms * 1_000_000,
        BEGAN_NS + end_ms * 1_000_000,
        {f"tierline.{key}": str(value) for key, value in about.items()},
    )


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """What a router and a node wrote: one request, and a shorter one behind it."""
    router, node = tmp_path / "router.jsonl", tmp_path / "node.jsonl"
    tracers = [tracer_of("tierline-router", router), tracer_of("tierline-node", node)]
    tracers[1].put(span("prefix lease", 3, 2, 20, 60, bytes=4096, tier="redis"))
    tracers[0].put(span("POST", 2, 1, 10, 90))
    tracers[0].put(span("POST /v1/completions", 1, 0, 0, 100, request_id="an id"))
    tracers[0].put(span("POST /v1/models", 7, 0, 500, 510, trace=0xDEF))
    for tracer in tracers:
        tracer.close_blocking()
    return [router, node]


def test_spans_of_all_programs_make_one_tree(files: list[Path]) -> None:
    trace, other = read_traces(files).traces
    assert (trace.trace_id, trace.request_id, trace.duration_ns) == (f"{0xABC:032x}", "an id", 100_000_000)
    (root,) = trace.roots()
    (attempt,) = root.children
    (lease,) = attempt.children
    assert [each.span.service for each in (root, attempt, lease)] == ["tierline-router"] * 2 + ["tierline-node"]
    assert lease.span.attributes == {"tierline.bytes": "4096", "tierline.tier": "redis"}
    assert other.trace_id == f"{0xDEF:032x}"
    assert read_traces([*files, *files]).traces == [trace, other]


def test_a_tree_is_drawn_with_times(files: list[Path]) -> None:
    drawn = CliRunner().invoke(app, ["show", *map(str, files), "--trace", "an id"]).output.splitlines()
    assert drawn[0] == f"trace {0xABC:032x}  request an id  100.00 ms  3 spans of 2 programs"
    assert [line.split("ms", 2)[2].strip() for line in drawn[1:4]] == [
        "tierline-router  POST /v1/completions",
        "tierline-router  └ POST",
        "tierline-node      └ prefix lease  bytes=4096 tier=redis",
    ]
    assert drawn[3].split()[:4] == ["20.00", "ms", "40.00", "ms"]


def test_without_an_option_the_latest_and_with_one_the_slowest_are_drawn(files: list[Path]) -> None:
    latest = CliRunner().invoke(app, ["show", *map(str, files)]).output
    slowest = CliRunner().invoke(app, ["show", *map(str, files), "--slowest", "1"]).output
    assert latest.startswith(f"trace {0xDEF:032x}")
    assert slowest.startswith(f"trace {0xABC:032x}")
    assert "1 of 2 traces" in latest


def test_spans_below_each_other_in_a_circle_are_drawn_once(tmp_path: Path) -> None:
    file = tmp_path / "circle.jsonl"
    spans = [span("a", 1, 3, 0, 9), span("b", 2, 1, 1, 9), span("c", 3, 2, 2, 9), span("self", 4, 4, 3, 9)]
    file.write_bytes(encode(spans, {}, "1") + b"\n")
    (trace,) = read_traces([file]).traces
    assert [tree.span.name for tree in trace.roots()] == ["a", "self"]
    assert sorted(names(trace)) == ["a", "b", "c", "self"]


def test_a_chain_of_any_length_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "chain.jsonl"
    file.write_bytes(encode([span("s", number, number - 1, 0, 1) for number in range(1, 3000)], {}, "1"))
    shown = CliRunner().invoke(app, ["show", str(file)])
    assert shown.exit_code == 0
    assert shown.output.count("ms") == 2 * 2999 + 1


def names(trace: Trace) -> list[str]:
    waiting: list[TraceTree] = trace.roots()
    found = []
    while waiting:
        tree = waiting.pop()
        found.append(tree.span.name)
        waiting += tree.children
    return found


LINE = {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "a" * 32, "spanId": "b" * 16, "name": "n"}]}]}]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("no json\n", "line 1: no spans"),
        ('{"resourceMetrics":[]}\n', "resourceSpans"),
        (json.dumps(LINE) + "\n", "startTimeUnixNano"),
        ("\n[]\n", "line 2"),
    ],
)
def test_what_is_no_file_of_spans_is_one_clear_error(tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "spans.jsonl"
    file.write_text(content)
    with pytest.raises(UsageError, match=problem):
        read_traces([file])


@pytest.mark.parametrize(
    "change", [{"traceId": "xyz"}, {"startTimeUnixNano": "-1"}, {"startTimeUnixNano": "9"}, {"endTimeUnixNano": "1e3"}]
)
def test_spans_that_cannot_be_are_refused(change: dict[str, str]) -> None:
    whole = {"traceId": "a" * 32, "spanId": "b" * 16, "name": "n", "startTimeUnixNano": "1", "endTimeUnixNano": "2"}
    line = {"resourceSpans": [{"scopeSpans": [{"spans": [whole | change]}]}]}
    with pytest.raises(ValueError, match=r"no id|no time|before it begins"):
        decode(json.dumps(line).encode())


def test_a_file_that_is_not_there_and_one_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.jsonl: No such file"):
        read_traces([tmp_path / "missing.jsonl"])
    with pytest.raises(UsageError, match="traces cannot be written"):
        tracer_of("tierline-node", tmp_path / "no folder" / "spans.jsonl")


def test_a_last_line_that_somebody_is_writing_is_left_out_and_said(files: list[Path]) -> None:
    with files[0].open("a") as file:
        file.write('{"resourceSpans":[{"res')
    reading = read_traces(files)
    assert (len(reading.traces), reading.unfinished) == (2, [files[0]])
    assert "the last line is not whole yet" in CliRunner().invoke(app, ["show", *map(str, files)]).output


def test_what_a_full_disk_cuts_off_is_counted_and_spoils_nothing_behind_it() -> None:
    tracer = tracer_of("tierline-node", Path("/dev/full"))
    tracer.put(span("lost", 1, 0, 0, 1))
    tracer.close_blocking()
    assert tracer.outcomes() == {"exported": 0, "failed": 1, "dropped": 0}


def test_a_line_that_a_full_disk_cut_off_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "spans.jsonl"
    tracer = tracer_of("tierline-node", file)
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda to, line: real_write(to, line[:50]))
    tracer.put(span("cut", 1, 0, 0, 1, trace=1))
    while tracer.waiting:
        time.sleep(0.01)
    monkeypatch.setattr(os, "write", real_write)
    tracer.put(span("whole", 2, 0, 0, 1, trace=2))
    tracer.close_blocking()
    reading = read_traces([file])
    assert ([trace.trace_id for trace in reading.traces], reading.unread_lines) == ([f"{2:032x}"], {file: 1})
    assert f"{file}: 1 line without spans left out" in CliRunner().invoke(app, ["show", str(file)]).output


def test_a_file_that_is_long_enough_gets_no_more_until_it_is_rotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_module, "MOST_FILE_BYTES", 1)
    file = tmp_path / "spans.jsonl"
    tracer = tracer_of("tierline-node", file)
    for number in range(1, 4):
        tracer.put(span("s", number, 0, 0, 1, trace=number))
        while tracer.waiting:
            time.sleep(0.01)
        if number == 2:
            os.truncate(file, 0)
    tracer.close_blocking()
    assert tracer.outcomes() == {"exported": 2, "failed": 1, "dropped": 0}
    assert [trace.trace_id for trace in read_traces([file]).traces] == [f"{3:032x}"]


def test_what_cannot_be_written_is_counted_and_the_next_is_written(tmp_path: Path) -> None:
    tracer = tracer_of("tierline-node", tmp_path / "spans.jsonl")
    tracer.put(span("half a character \ud800", 1, 0, 0, 1))
    while tracer.waiting:
        time.sleep(0.01)
    tracer.put(span("whole", 2, 0, 0, 1))
    tracer.close_blocking()
    assert tracer.outcomes() == {"exported": 1, "failed": 1, "dropped": 0}


def test_lines_of_several_processes_in_one_file_stay_whole(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    tracers = [tracer_of(f"program-{number}", file) for number in range(3)]
    for number in range(1, 301):
        tracers[number % 3].put(span("s", number, 0, 0, 1, trace=number))
    for tracer in tracers:
        tracer.close_blocking()
    assert len(read_traces([file]).traces) == 300
    assert file.stat().st_mode & 0o007 == 0


def test_spans_begin_under_what_is_sampled_alone(tmp_path: Path) -> None:
    tracer = tracer_of("tierline-node", tmp_path / "spans.jsonl")
    assert tracer.open("s", "server", None) is None
    assert tracer.open("s", "server", TraceContext(1, 2, 0)) is None
    begun = tracer.open("s", "server", TraceContext(1, 2, SAMPLED))
    assert begun is not None
    begun.end({"tierline.tier": "redis"}, is_error=True)
    tracer.close_blocking()
    (trace,) = read_traces([tmp_path / "spans.jsonl"]).traces
    (only,) = trace.spans
    assert (only.parent_id, only.is_error, only.attributes) == (f"{2:016x}", True, {"tierline.tier": "redis"})


def test_work_that_several_spans_caused_is_under_the_first_of_one_trace_or_in_a_trace_of_its_own(
    tmp_path: Path,
) -> None:
    tracer = tracer_of("tierline-node", tmp_path / "spans.jsonl")
    first, second, other = TraceContext(1, 2, SAMPLED), TraceContext(1, 3, SAMPLED), TraceContext(4, 5, SAMPLED)
    assert tracer.open_for_all("write", "client", []) is None
    for causes in ([first], [first, second], [first, other]):
        begun = tracer.open_for_all("write", "client", causes)
        assert begun is not None
        begun.end({})
    tracer.close_blocking()
    line = (tmp_path / "spans.jsonl").read_bytes()
    alone, batch, shared = decode(line)
    named = [(f"{each.trace_id:032x}", f"{each.span_id:016x}") for each in (first, second, other)]
    assert [(each.trace_id, each.parent_id) for each in (alone, batch)] == [named[0]] * 2
    assert [each.links for each in (alone, batch, shared)] == [(), (named[1],), (named[0], named[2])]
    assert shared.parent_id == ""
    assert shared.trace_id not in (named[0][0], named[2][0])


def linked(number: int, trace: int, *links: int) -> Span:
    """Return a span that begins a trace and links to the root of others."""
    places = tuple(TraceContext(other, 1, SAMPLED) for other in links)
    return Span("write redis", "client", TraceContext(trace, number, SAMPLED), None, 5, 9, {}, links=places)


def test_work_for_several_requests_is_drawn_in_each_of_their_traces_and_not_alone(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    requests = [span("commit", 1, 0, 0, 10, trace=1), span("commit", 1, 0, 20, 30, trace=2)]
    batch = [linked(7, 3, 1, 2, 0xF0), span("fetch tieredstorage", 8, 7, 5, 6, trace=3)]
    file.write_bytes(encode([*requests, *batch], {}, "1") + b"\n")
    traces = read_traces([file]).traces
    assert [trace.trace_id for trace in traces] == [f"{1:032x}", f"{2:032x}"]
    for trace in traces:
        assert names(trace) == ["commit", "write redis", "fetch tieredstorage"]
        assert trace.is_called(f"{3:032x}")


def test_traces_that_link_to_each_other_and_to_none_that_is_here_stay_what_they_are(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    file.write_bytes(encode([linked(1, 1, 2), linked(1, 2, 1), linked(1, 3, 3), linked(1, 4, 9)], {}, "1") + b"\n")
    assert sorted(trace.trace_id for trace in read_traces([file]).traces) == [f"{n:032x}" for n in (1, 2, 3, 4)]


def test_without_a_destination_there_is_no_tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert open_tracer("tierline-node", None, to_collector=False) is None
    assert open_tracer("tierline-node", None, to_collector=True) is None


def test_of_a_bucket_spans_have_a_digest() -> None:
    assert bucket_digest("team-a") == bucket_digest("team-a") != bucket_digest("team-b")
    assert "team" not in bucket_digest("team-a")


@given(
    name=st.text(),
    attributes=st.dictionaries(
        st.text(),
        st.text() | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    ),
    start=st.integers(0, 2**62),
    length=st.integers(0, 2**40),
    links=st.lists(st.builds(TraceContext, st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.just(SAMPLED))),
)
def test_any_span_is_read_as_it_was_written(
    name: str,
    attributes: dict[str, str | int | float | bool],
    start: int,
    length: int,
    links: list[TraceContext],
) -> None:
    written = Span(name, "server", ROOT, None, start, start + length, attributes, links=tuple(links))
    (read,) = decode(encode([written], {"service.name": "s"}, "1"))
    assert read == ReadSpan(
        "s",
        name,
        f"{0xABC:032x}",
        f"{1:016x}",
        "",
        start,
        start + length,
        attributes,
        is_error=False,
        links=tuple((f"{link.trace_id:032x}", f"{link.span_id:016x}") for link in links),
    )
