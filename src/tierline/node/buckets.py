"""Patterns of bucket names, as tokens use them: one name, the start of names (``team-a/*``), or all (``*``).

Nothing but a last ``*`` is special, so that whether one pattern takes in all of another can be answered exactly.
"""

from collections.abc import Iterable
from typing import Annotated

from pydantic import BeforeValidator

_ALLOWED = "a bucket's name, or the start of names and a last '*', of 1 to 1024 bytes"
_MAX_BYTES = 1024


def parse_pattern(value: object) -> str:
    """Return ``value`` if it is a pattern.

    Raises
    ------
    ValueError
        It is none.
    """
    if not isinstance(value, str) or not 0 < len(value.encode()) <= _MAX_BYTES or "*" in value[:-1]:
        raise ValueError(_ALLOWED)
    return value


BucketPattern = Annotated[str, BeforeValidator(parse_pattern)]

EVERY_BUCKET = "*"


def covers(patterns: Iterable[str], wanted: str) -> bool:
    """Return whether one of ``patterns`` takes in all that ``wanted``, a pattern or a bucket, stands for.

    >>> covers(["team-a/*"], "team-a/llama"), covers(["team-a/*"], "team-*"), covers(["*"], "team-*")
    (True, False, True)
    """
    return any(wanted.startswith(pattern[:-1]) if pattern.endswith("*") else wanted == pattern for pattern in patterns)
