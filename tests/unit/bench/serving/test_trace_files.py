"""Traces of real services in their own formats, and what becomes of them."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.bench.serving.plan import write_messages
from tierline.bench.serving.text import MARK_TOKENS, Lengths
from tierline.bench.serving.trace_files import Traced, mooncake_lines, plan, read, replayed
from tierline.errors import ConfigurationError, UsageError


def lines(path: Path, entries: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("\n".join(map(json.dumps, entries)) + "\n")
    return path


def test_mooncakes_traces_count_milliseconds_and_blocks_of_512(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "t.jsonl",
        [
            {"timestamp": 3000, "input_length": 1030, "output_length": 5, "hash_ids": [0, 1, 2]},
            {"timestamp": 1500, "input_length": 600, "output_length": 7, "hash_ids": [0, 3]},
        ],
    )

    assert read(file) == [Traced(0.0, 600, 7, (0, 3), 512), Traced(1.5, 1030, 5, (0, 1, 2), 512)]


def test_bailians_traces_count_seconds_and_blocks_of_16(tmp_path: Path) -> None:
    entry = {"chat_id": 1, "parent_chat_id": -1, "input_length": 20, "output_length": 3, "type": "text", "turn": 1}
    file = lines(
        tmp_path / "t.jsonl",
        [{**entry, "timestamp": 61.5, "hash_ids": [5, 6]}, {**entry, "timestamp": 63.0, "hash_ids": [5, 7]}],
    )

    assert read(file) == [Traced(0.0, 20, 3, (5, 6), 16), Traced(1.5, 20, 3, (5, 7), 16)]


def test_azures_traces_have_times_of_day_and_lengths(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    )

    first, second = read(file)

    assert (first.at_s, first.input_tokens, first.output_tokens, first.blocks) == (0.0, 374, 44, ())
    assert second.at_s == pytest.approx(4.314579, abs=1e-5)


def test_burstgpts_traces_have_seconds_and_failures_that_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,Conversation log\n"
        "118,GPT-4,417,276,693,Conversation log\n"
    )

    assert read(file) == [Traced(0.0, 472, 18), Traced(113.0, 417, 276)]


@pytest.mark.parametrize(
    "text",
    ["", "hello\n", "a,b\n1,2\n", '{"timestamp": 1}\n', "TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,1\n", "{\n"],
)
def test_a_file_that_is_no_trace_is_a_users_mistake(tmp_path: Path, text: str) -> None:
    (tmp_path / "t").write_text(text)
    with pytest.raises(UsageError, match="--dataset-path"):
        read(tmp_path / "t")


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
MOONCAKE = '{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": [0]}\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (MOONCAKE + MOONCAKE.replace("0,", "NaN,", 1), "`timestamp`: got nan; allowed: a number, 0 or more"),
        (MOONCAKE + MOONCAKE.replace("0,", "1e400,", 1), "`timestamp`: got inf"),
        (MOONCAKE + MOONCAKE.replace("5", "-5", 1), "`input_length`: got -5; allowed: a whole number of tokens from 0"),
        (MOONCAKE + MOONCAKE.replace('"input_length": 5, ', ""), "`input_length`: is missing"),
        (MOONCAKE + "{\n", "expected a JSON object"),
        ("Other,ContextTokens,GeneratedTokens,TIMESTAMP\nx,1\n", "`TIMESTAMP`: is missing; allowed: a time such as"),
        (AZURE + "now,1,1\n", "`TIMESTAMP`: got 'now'"),
        (AZURE + "2023-11-16 18:15:46,many,1\n", "`ContextTokens`: got 'many'; allowed: a whole number of tokens"),
        (BURSTGPT + "5,GPT-4,472.5,18,490,API\n", "`Request tokens`: got '472.5'"),
        (BURSTGPT + "inf,GPT-4,472,18,490,API\n", "`Timestamp`: got 'inf'"),
        (BURSTGPT + "5," + "x" * 200_000 + "\n", "field larger than field limit"),
    ],
)
def test_a_line_that_is_no_request_is_named_with_its_field_and_what_is_allowed(
    tmp_path: Path, text: str, told: str
) -> None:
    (tmp_path / "t").write_text(text)
    with pytest.raises(UsageError, match=rf"--dataset-path: .*: line 2: {re.escape(told)}"):
        read(tmp_path / "t")


def test_counts_may_be_written_with_a_point_and_lines_may_be_empty(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"\ufeff{BURSTGPT}\n5,ChatGPT,472.0,18.0,490.0,API\n\n", encoding="utf-8")
    (tmp_path / "t.jsonl").write_text(f"\n{MOONCAKE}\n\n")

    assert read(tmp_path / "t.csv") == [Traced(0.0, 472, 18)]
    assert read(tmp_path / "t.jsonl") == [Traced(0.0, 5, 5, (0,), 512)]


def test_the_line_that_is_wrong_is_counted_with_the_empty_ones(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"\n{BURSTGPT}\n5,ChatGPT,472,18,490,API\n5,ChatGPT,-1,18,490,API\n")
    with pytest.raises(UsageError, match="line 5: `Request tokens`: got '-1'"):
        read(tmp_path / "t.csv")


def test_a_trace_that_is_not_there_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "missing")


traces = st.lists(
    st.builds(
        lambda at_s, chain, output: Traced(at_s, max(1, len(chain) * 16 - 3), output, tuple(chain), 16),
        st.floats(0, 100),
        st.integers(1, 5).map(lambda depth: [7, *range(10 * depth, 10 * depth + depth)]),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=12,
)


@given(traces, st.integers(1, 12), st.none() | st.integers(1, 60))
def test_equal_blocks_are_equal_text_and_a_prompt_is_as_long_as_in_the_trace(
    trace: list[Traced], count: int, longest: int | None
) -> None:
    planned = plan(replayed(trace, count, longest_input=longest))

    assert len(planned) == min(count, len(trace))
    for each, request in zip(planned, trace, strict=False):
        assert each.input_tokens == min(request.input_tokens, longest or request.input_tokens)
        (message,) = write_messages(each, "salt", Lengths(1.0))
        assert abs(len(message["content"].split()) - each.input_tokens) <= len(request.blocks)
        assert 0 <= each.known_tokens <= each.input_tokens
    opening = {
        tuple(write_messages(each, "salt", Lengths(1.0))[0]["content"].split()[:MARK_TOKENS])
        for each in planned
        if each.input_tokens >= 16
    }
    assert len(opening) <= 1  # all begin with block 7


def test_the_first_to_ask_for_blocks_is_cold_and_who_asks_again_is_warm() -> None:
    trace = [Traced(float(at), 32, 1, blocks, 16) for at, blocks in enumerate([(1, 2), (1, 2), (1, 3), (4, 2)])]

    planned = plan(replayed(trace, 4, speed=2.0))

    assert [each.known_tokens for each in planned] == [0, 32, 16, 16 * 0]
    assert [each.at_s for each in planned] == [0.0, 0.5, 1.0, 1.5]
    assert [each.is_cold for each in planned] == [True, False, True, True]


def test_a_trace_without_blocks_shares_nothing() -> None:
    planned = plan(replayed([Traced(0.0, 30, 4), Traced(1.0, 30, 400)], 5, longest_output=9))

    assert [each.family for each in planned] == ["prompt 0", "prompt 1"]
    assert [each.output_tokens for each in planned] == [4, 9]
    with pytest.raises(ConfigurationError, match="--trace-speed"):
        replayed([Traced(0.0, 30, 4)], 1, speed=0)


@given(traces, st.integers(1, 12), st.none() | st.integers(1, 60))
def test_in_mooncakes_format_a_trace_shares_what_our_own_replay_of_it_shares(
    trace: list[Traced], count: int, longest: int | None
) -> None:
    asked = replayed([*trace, Traced(200.0, 40, 1)], count, longest_input=longest)

    told = [json.loads(line) for line in mooncake_lines(asked).splitlines()]

    assert [each["input_length"] for each in told] == [request.input_tokens for request in asked]
    seen = set[int]()
    for each, request, planned in zip(told, asked, plan(asked), strict=True):
        assert each["timestamp"] == pytest.approx(1000 * request.at_s, abs=1e-3)
        assert len(each["hash_ids"]) == -(-request.input_tokens // request.block_tokens)
        known = list(itertools.takewhile(seen.__contains__, each["hash_ids"]))
        assert min(request.input_tokens, len(known) * request.block_tokens) == planned.known_tokens
        seen |= set(each["hash_ids"])
