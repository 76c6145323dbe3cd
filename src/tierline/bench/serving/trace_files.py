"""Traces of real services as plans: when requests came, how long they were, and, where it is told, what they share.

Mooncake's and Bailian's name blocks of prompts by number, where equal numbers are equal prefixes; Azure's and
BurstGPT's tell lengths only, so their prompts share nothing here. What was said is in none of them, and is made up.
"""

import csv
import datetime as dt
import itertools
import json
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tierline.bench.serving.plan import Message, Planned
from tierline.bench.serving.text import Piece
from tierline.bench.trace_fields import BadField, Entry, blocks_of, checked, json_object, opened, time_of, tokens_of
from tierline.errors import ConfigurationError, UsageError

MOONCAKE_BLOCK_TOKENS = 512
BAILIAN_BLOCK_TOKENS = 16
_MILLISECONDS = 1000.0
_FLAG = "--dataset-path"


@dataclass(frozen=True)
class Traced:
    """A request of a trace.

    Parameters
    ----------
    at_s
        When it came.
    input_tokens, output_tokens
        Lengths of prompt and answer.
    blocks
        Of the prompt, in order; without any, it shares nothing.
    block_tokens
        Length of a block.
    """

    at_s: float
    input_tokens: int
    output_tokens: int
    blocks: Sequence[int] = ()
    block_tokens: int = MOONCAKE_BLOCK_TOKENS


def read(path: Path) -> list[Traced]:
    """Read a trace in one of four formats, told apart by their first line; in the order of time, from 0 on.

    Mooncake (repository kvcache-ai/Mooncake), a JSON object a line: ``timestamp`` in ms, ``input_length``,
    ``output_length``, ``hash_ids`` of 512 tokens each. Bailian (alibaba-edu/qwen-bailian-usagetraces-anon): the same
    with ``chat_id``, ``timestamp`` in seconds and blocks of 16 tokens. Azure (Azure/AzurePublicDataset), CSV:
    ``TIMESTAMP``, ``ContextTokens``, ``GeneratedTokens``. BurstGPT (HPMLL/BurstGPT), CSV: ``Timestamp`` in seconds,
    ``Request tokens``, ``Response tokens``; failed requests, with no response tokens, are left out. A file whose name
    ends in ``.gz`` is unpacked.

    Raises
    ------
    UsageError
        When the file cannot be read, is empty, or is something else.
    """
    with opened(_FLAG, path) as lines:
        traced = list(_requests(path, iter(lines)))
    if not traced:
        raise UsageError(f"{_FLAG}: {path}: has no requests")
    traced.sort(key=lambda request: request.at_s)
    start = traced[0].at_s
    return [
        Traced(request.at_s - start, request.input_tokens, request.output_tokens, request.blocks, request.block_tokens)
        for request in traced
    ]


def _requests(path: Path, lines: Iterator[str]) -> Iterator[Traced]:
    numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    begin, first = next(numbered, (1, ""))
    if first.startswith("{"):
        read_line = _bailian if '"chat_id"' in first else _mooncake
        for number, line in itertools.chain([(begin, first)], numbered):
            with checked(f"{_FLAG}: {path}: line {number}"):
                yield read_line(json_object(line))
        return
    rows = csv.reader(itertools.chain([first], lines))
    try:
        columns = next(rows, [])
        read_row = next((read for column, read in _BY_COLUMN.items() if column in columns), None)
        if read_row is None:
            raise UsageError(f"{_FLAG}: {path}: is no trace of Mooncake's, Bailian's, Azure's or BurstGPT's")
        for row in filter(None, rows):
            with checked(f"{_FLAG}: {path}: line {begin - 1 + rows.line_num}"):
                traced = read_row(dict(zip(columns, row, strict=False)))
            if traced.input_tokens > 0 and traced.output_tokens > 0:
                yield traced
    except csv.Error as error:
        raise UsageError(f"{_FLAG}: {path}: line {begin - 1 + rows.line_num}: {error}") from error


def _mooncake(entry: Entry) -> Traced:
    return _with_blocks(entry, MOONCAKE_BLOCK_TOKENS, ticks_per_s=_MILLISECONDS)


def _bailian(entry: Entry) -> Traced:
    return _with_blocks(entry, BAILIAN_BLOCK_TOKENS, ticks_per_s=1.0)


def _with_blocks(entry: Entry, block_tokens: int, ticks_per_s: float) -> Traced:
    return Traced(
        at_s=time_of(entry, "timestamp", ticks_per_s),
        input_tokens=max(1, tokens_of(entry, "input_length")),
        output_tokens=max(1, tokens_of(entry, "output_length")),
        blocks=blocks_of(entry, "hash_ids"),
        block_tokens=block_tokens,
    )


def _azure(row: Entry) -> Traced:
    # Python reads six digits of a second's fraction, the trace has seven.
    whole, _, fraction = str(row.get("TIMESTAMP", "")).strip().partition(".")
    digits = "".join(each for each in fraction if each in string.digits)
    try:
        at_s = dt.datetime.fromisoformat(whole).replace(tzinfo=dt.UTC).timestamp() + float(f"0.{digits or 0}")
    except ValueError as error:
        raise BadField("TIMESTAMP", row, "a time such as 2023-11-16 18:15:46.6805900") from error
    return Traced(at_s, tokens_of(row, "ContextTokens"), tokens_of(row, "GeneratedTokens"))


def _burstgpt(row: Entry) -> Traced:
    return Traced(time_of(row, "Timestamp"), tokens_of(row, "Request tokens"), tokens_of(row, "Response tokens"))


_BY_COLUMN: Mapping[str, Callable[[Entry], Traced]] = {"ContextTokens": _azure, "Request tokens": _burstgpt}


def replayed(
    trace: Sequence[Traced],
    requests: int,
    speed: float = 1.0,
    longest_input: int | None = None,
    longest_output: int = 0,
) -> list[Traced]:
    """Return a trace's beginning as it is asked again.

    Parameters
    ----------
    requests
        How many of them.
    speed
        How many times faster than they came.
    longest_input, longest_output
        Longer prompts and answers are cut to this; ``None`` and 0: none is.

    Raises
    ------
    ConfigurationError
        When ``speed`` is no speed.
    """
    if not speed > 0:
        raise ConfigurationError("--trace-speed", str(speed), "more than 0; 2: twice as fast as they came")
    return [
        replace(
            request,
            at_s=request.at_s / speed,
            input_tokens=min(request.input_tokens, longest_input or request.input_tokens),
            output_tokens=min(request.output_tokens, longest_output or request.output_tokens),
        )
        for request in trace[:requests]
    ]


def plan(trace: Sequence[Traced]) -> list[Planned]:
    """Return a trace as a plan of an open loop."""
    planned, seen = [], set[int]()
    for index, request in enumerate(trace):
        pieces, known = _pieces(index, request, seen)
        planned.append(
            Planned(
                index=index,
                # Blocks come back in any order, so what was interrupted is asked again as a whole.
                family="trace" if request.blocks else f"prompt {index}",
                messages=(Message("user", pieces),),
                output_tokens=request.output_tokens,
                input_tokens=request.input_tokens,
                known_tokens=known,
                at_s=request.at_s,
            )
        )
    return planned


def mooncake_lines(trace: Sequence[Traced]) -> bytes:
    """Return a trace in Mooncake's format, whatever it was read from, for programs that read no other.

    Every prompt has as many blocks as its length takes. What shares nothing has numbers that no other prompt has, and
    so has a block of which a part is left: its text is another one than that of the whole.
    """
    numbers: dict[tuple[int | str, int], int] = {}
    lines = []
    for index, request in enumerate(trace):
        size, ids = request.block_tokens, []
        for place, begin in enumerate(range(0, request.input_tokens, size)):
            length = min(size, request.input_tokens - begin)
            name = request.blocks[place] if place < len(request.blocks) else f"{index}/{place}"
            ids.append(numbers.setdefault((name, length), len(numbers)))
        line = {
            "timestamp": round(request.at_s * _MILLISECONDS, 3),
            "input_length": request.input_tokens,
            "output_length": request.output_tokens,
            "hash_ids": ids,
        }
        lines.append(json.dumps(line))
    return "\n".join([*lines, ""]).encode()


def _pieces(index: int, request: Traced, seen: set[int]) -> tuple[tuple[Piece, ...], int]:
    if not request.blocks:
        return (Piece("talk", f"prompt {index}", request.input_tokens),), 0
    pieces, known, left, is_known = [], 0, request.input_tokens, True
    for block in request.blocks:
        if left <= 0:
            break
        length = min(left, request.block_tokens)
        # A block that is cut is another text than the whole one, as its tokens are.
        pieces.append(
            Piece("talk", f"block {block} of {length}" if length < request.block_tokens else f"block {block}", length)
        )
        is_known = is_known and block in seen
        known += length if is_known else 0
        seen.add(block)
        left -= length
    if left > 0:
        pieces.append(Piece("talk", f"rest of {index}", left))
    return tuple(pieces), known
