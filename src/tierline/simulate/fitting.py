"""Least squares for step times: none of the coefficients negative, and a deviation counts as a share of what was seen.

Rules: pure arithmetic. A relative deviation counts because a second too much is nothing for a long prompt and
everything for a short one.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from tierline.errors import UsageError

_SINGULAR = 1e-12


class PrefillSeen(NamedTuple):
    """A time to first token of a request that was alone: of so many new tokens behind so many cached ones."""

    tokens: int
    cached: int
    seconds: float


class DecodeSeen(NamedTuple):
    """The time between two tokens of so many sequences with so many tokens together."""

    sequences: int
    context: int
    seconds: float


class Prefill(NamedTuple):
    """``first_s + token_s · n + attention_s · n · (c + n / 2)`` for ``n`` tokens behind ``c`` others."""

    first_s: float
    token_s: float
    attention_s: float

    def seconds(self, tokens: int, cached: int) -> float:
        """Return how long a prompt takes that is alone."""
        return self.first_s + self.token_s * tokens + self.attention_s * tokens * (cached + tokens / 2)


class Decode(NamedTuple):
    """``step_s + sequence_s · B + context_s · C`` for ``B`` sequences with ``C`` tokens together."""

    step_s: float
    sequence_s: float
    context_s: float

    def seconds(self, sequences: int, context: int) -> float:
        """Return how long a step takes that only decodes."""
        return self.step_s + self.sequence_s * sequences + self.context_s * context


def fit_prefill(seen: Sequence[PrefillSeen]) -> Prefill:
    """Return the coefficients that come nearest to what was seen.

    Raises
    ------
    UsageError
        There is too little to tell from.
    """
    rows = [(1.0, float(n), n * (c + n / 2)) for n, c, _ in seen]
    return Prefill(*_nearest("prefill", rows, [seconds for _, _, seconds in seen], needed=1))


def fit_decode(seen: Sequence[DecodeSeen]) -> Decode:
    """Return the coefficients that come nearest to what was seen; raises as :func:`fit_prefill` does."""
    rows = [(1.0, float(sequences), float(context)) for sequences, context, _ in seen]
    return Decode(*_nearest("decode", rows, [seconds for _, _, seconds in seen], needed=0))


def _nearest(what: str, rows: Sequence[Sequence[float]], seconds: Sequence[float], *, needed: int) -> Sequence[float]:
    """Solve for the best of all subsets of the columns whose solution has nothing negative: there are few of them.

    The ``needed`` column is in all of them, above 0: an engine without a time for a token, or for a step, is none.
    """
    if any(value <= 0 for value in seconds):
        raise UsageError(f"{what}: got a time of {min(seconds)} s; allowed: times above 0")
    columns = len(rows[0]) if rows else 0
    relative = [[value / took for value in row] for row, took in zip(rows, seconds, strict=True)]
    best: Sequence[float] | None = None
    least = float("inf")
    for count in range(1, columns + 1):
        for kept in combinations(range(columns), count):
            if needed not in kept:
                continue
            solved = _solve([[row[column] for column in kept] for row in relative])
            if solved is None or min(solved) < 0 or not solved[kept.index(needed)]:
                continue
            whole = [0.0] * columns
            for column, value in zip(kept, solved, strict=True):
                whole[column] = value
            missed = sum((sum(a * b for a, b in zip(row, whole, strict=True)) - 1) ** 2 for row in relative)
            if missed < least * (1 - _SINGULAR):
                best, least = whole, missed
    if best is None:
        raise UsageError(f"{what}: got {len(rows)} observations that do not tell the coefficients apart; take more")
    return best


def _solve(rows: Sequence[Sequence[float]]) -> Sequence[float] | None:
    """Return the least squares for a right side of ones, by the normal equations; ``None`` where they are singular."""
    size = len(rows[0])
    scale = [max(abs(row[column]) for row in rows) or 1.0 for column in range(size)]
    scaled = [[value / by for value, by in zip(row, scale, strict=True)] for row in rows]
    matrix = [[sum(row[i] * row[j] for row in scaled) for j in range(size)] for i in range(size)]
    right = [sum(row[i] for row in scaled) for i in range(size)]
    for pivot in range(size):
        largest = max(range(pivot, size), key=lambda line: abs(matrix[line][pivot]))
        if abs(matrix[largest][pivot]) < _SINGULAR:
            return None
        matrix[pivot], matrix[largest] = matrix[largest], matrix[pivot]
        right[pivot], right[largest] = right[largest], right[pivot]
        for line in range(pivot + 1, size):
            factor = matrix[line][pivot] / matrix[pivot][pivot]
            for column in range(pivot, size):
                matrix[line][column] -= factor * matrix[pivot][column]
            right[line] -= factor * right[pivot]
    for pivot in reversed(range(size)):
        known = sum(matrix[pivot][column] * right[column] for column in range(pivot + 1, size))
        right[pivot] = (right[pivot] - known) / matrix[pivot][pivot]
    return [value / by for value, by in zip(right, scale, strict=True)]
