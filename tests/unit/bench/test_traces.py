import gzip
import json
import re
from pathlib import Path

import pytest

from tierline.bench.traces import Request, Trace, generate_trace, read_trace
from tierline.errors import UsageError


def test_a_trace_of_mooncake_s_format_is_read_in_the_order_of_time(tmp_path: Path) -> None:
    file = tmp_path / "short_trace.jsonl"
    lines = [
        {"timestamp": 3000, "input_length": 600, "output_length": 1, "hash_ids": [0, 2]},
        {"timestamp": 1500, "input_length": 600, "output_length": 1, "hash_ids": [0, 1]},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))

    trace = read_trace(file)

    assert trace.name == "short_trace"
    assert trace.requests == [Request(1.5, (0, 1)), Request(3.0, (0, 2))]
    assert (trace.blocks, trace.footprint) == (4, 3)


def test_a_packed_trace_is_unpacked_and_one_that_is_cut_off_is_a_users_mistake(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"timestamp": 1500, "hash_ids": [0, 1]}\n')
    (tmp_path / "short_trace.jsonl.gz").write_bytes(packed)
    (tmp_path / "cut.gz").write_bytes(packed[:-9])

    trace = read_trace(tmp_path / "short_trace.jsonl.gz")

    assert trace == Trace("short_trace", [Request(1.5, (0, 1))])
    with pytest.raises(UsageError, match="cannot be read"):
        read_trace(tmp_path / "cut.gz")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[1]", "expected a JSON object"),
        ("hello", "expected a JSON object"),
        ("[" * 100_000, "expected a JSON object"),
        ("{}", "`timestamp`: is missing; allowed: a number"),
        ('{"timestamp": NaN, "hash_ids": [1]}', "`timestamp`: got nan; allowed: a number"),
        ('{"timestamp": 1e400, "hash_ids": [1]}', "`timestamp`: got inf"),
        ('{"timestamp": true, "hash_ids": [1]}', "`timestamp`: got True"),
        ('{"timestamp": 1, "hash_ids": 7}', "`hash_ids`: got 7; allowed: a list of whole numbers"),
        ('{"timestamp": 1, "hash_ids": [1.5]}', "`hash_ids`: got "),
        ('{"timestamp": 1, "hash_ids": [1], "output_length": -5}', "`output_length`: got -5; allowed: a whole number"),
        ('{"timestamp": 1, "hash_ids": [1], "output_length": 2.5}', "`output_length`: got 2.5"),
        ('{"timestamp": 1, "hash_ids": [1], "output_length": 1e300}', "`output_length`: got 1e"),
        ('{"chat_id": 1, "timestamp": 1, "hash_ids": [1]}', "`chat_id` is of Bailian's traces, whose blocks are of 16"),
    ],
)
def test_a_line_that_is_no_request_is_named_with_its_field_and_what_is_allowed(
    tmp_path: Path, line: str, told: str
) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"timestamp": 1, "hash_ids": [1]}\n' + line + "\n")

    with pytest.raises(UsageError, match=rf"--trace: .*trace\.jsonl: line 2: {re.escape(told)}"):
        read_trace(file)


def test_empty_lines_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('\n{"timestamp": 1500, "hash_ids": [0, 1]}\n\n')

    assert read_trace(tmp_path / "t.jsonl").requests == [Request(1.5, (0, 1))]


def test_a_trace_that_is_empty_or_not_there_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()

    with pytest.raises(UsageError, match="is empty"):
        read_trace(tmp_path / "empty")
    with pytest.raises(UsageError, match="cannot be read"):
        read_trace(tmp_path / "missing")


def test_a_generated_trace_is_its_seed_s_and_a_block_has_one_place() -> None:
    trace = generate_trace(7, requests=800)

    assert trace == generate_trace(7, requests=800)
    assert trace != generate_trace(8, requests=800)
    assert [request.at_s for request in trace.requests] == sorted(request.at_s for request in trace.requests)
    before = {block: request.blocks[:index] for request in trace.requests for index, block in enumerate(request.blocks)}
    assert all(
        before[block] == request.blocks[:index]
        for request in trace.requests
        for index, block in enumerate(request.blocks)
    )


def test_a_generated_trace_has_reuse_to_find_and_much_that_never_comes_again() -> None:
    trace = generate_trace(1)

    assert 0.3 < 1 - trace.footprint / trace.blocks < 0.7
