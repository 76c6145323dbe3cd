"""Fields of request traces, checked: whatever reads one refuses the same, and names line, field and what is allowed."""

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tierline.errors import UsageError

MOST_TOKENS = 100_000_000
"""Of a prompt or an answer: more than any model has read, and little enough to be planned."""
_LATEST = 1e15
"""Of a time in any unit: epochs in milliseconds are a thousandth of it."""
_SHOWN_CHARACTERS = 60

Entry = Mapping[str, object]


class BadField(ValueError):  # noqa: N818  (as errors.py: the name states the condition)
    """A field of a trace's line is not what it has to be."""

    def __init__(self, name: str, entry: Entry, allowed: str) -> None:
        got = f"got {entry[name]!r:.{_SHOWN_CHARACTERS}}" if entry.get(name) is not None else "is missing"
        super().__init__(f"`{name}`: {got}; allowed: {allowed}")


@contextmanager
def opened(flag: str, path: Path) -> Iterator[TextIO]:
    """Open a trace, unpacked where its name ends in ``.gz``.

    Raises
    ------
    UsageError
        The file cannot be read; raised also while its lines are.
    """
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig", newline="")
        ) as lines:
            yield lines
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UsageError(f"{flag}: {path}: cannot be read: {error}") from error


@contextmanager
def checked(place: str) -> Iterator[None]:
    """Tell a user where a line is whose fields are read meanwhile: flag, file and line.

    Raises
    ------
    UsageError
        The line is no request.
    """
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{place}: {error}") from error


def json_object(line: str) -> Entry:
    """Return a line's object.

    Raises
    ------
    ValueError
        It is something else.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object with a request, got {line[:_SHOWN_CHARACTERS]!r}")
    return entry


def time_of(entry: Entry, name: str, ticks_per_s: float = 1.0) -> float:
    """Return when a request came, in seconds.

    Raises
    ------
    BadField
        The time is missing or none.
    """
    ticks = _number(entry[name]) if name in entry else math.nan
    if not 0 <= ticks <= _LATEST:
        raise BadField(name, entry, "a number, 0 or more")
    return ticks / ticks_per_s


def tokens_of(entry: Entry, name: str) -> int:
    """Return how long something is; 0 is allowed, for answers that failed have no tokens.

    Raises
    ------
    BadField
        The length is missing or none.
    """
    tokens = _number(entry[name]) if name in entry else math.nan
    if not (0 <= tokens <= MOST_TOKENS and tokens.is_integer()):
        raise BadField(name, entry, f"a whole number of tokens from 0 to {MOST_TOKENS:,}")
    return int(tokens)


def blocks_of(entry: Entry, name: str) -> tuple[int, ...]:
    """Return the numbers of a prompt's blocks.

    Raises
    ------
    BadField
        They are missing or none.
    """
    blocks = entry.get(name)
    if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
        raise BadField(name, entry, "a list of whole numbers")
    return tuple(blocks)


def _number(value: object) -> float:
    """Return a number, written as one or as text; NaN where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
