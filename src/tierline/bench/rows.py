"""What a benchmark says: rows of a value beside the limit it is compared with, and the statistics that make them.

A row never holds an invented number: what could not be measured has no value and a note that says why. A ratio exists
only between two figures of the same run. Percentiles interpolate linearly between closest ranks (type 7 of Hyndman
and Fan 1996, numpy's default), so that ours compare with those of ``vllm bench serve``.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

JsonValue = str | int | float | bool | None | Sequence["JsonValue"] | Mapping[str, "JsonValue"]


class Direction(StrEnum):
    """On which side of the goal a ratio has to lie."""

    AT_LEAST = "at least"
    AT_MOST = "at most"


@dataclass(frozen=True)
class Limit:
    """What a value is compared with.

    Parameters
    ----------
    name
        What was measured to get it, or :data:`FIXED` where the limit is a fixed figure.
    value
        In the row's unit.
    goal
        The ratio of value to limit that is wanted; ``None`` where the limit is shown for comparison only.
    direction
        Whether the ratio should be at least or at most the goal.
    """

    name: str
    value: float | None
    goal: float | None = None
    direction: Direction = Direction.AT_LEAST


FIXED = "goal"


def at_least(value: float) -> Limit:
    """Return the limit of a value that must reach a fixed figure, in the row's unit."""
    return Limit(FIXED, value, goal=1.0)


def at_most(value: float) -> Limit:
    """Return the limit of a value that must not exceed a fixed figure, in the row's unit."""
    return Limit(FIXED, value, goal=1.0, direction=Direction.AT_MOST)


@dataclass(frozen=True)
class TokenSplit:
    """Who answered the prompt tokens of a row's requests, from the engines' and the stores' own counters."""

    engine_cache: int
    node_store: int
    other_node: int
    computed: int

    @property
    def total(self) -> int:
        """All prompt tokens."""
        return self.engine_cache + self.node_store + self.other_node + self.computed

    def __add__(self, other: "TokenSplit") -> "TokenSplit":
        return TokenSplit(
            self.engine_cache + other.engine_cache,
            self.node_store + other.node_store,
            self.other_node + other.other_node,
            self.computed + other.computed,
        )

    def __sub__(self, other: "TokenSplit") -> "TokenSplit":
        return TokenSplit(
            self.engine_cache - other.engine_cache,
            self.node_store - other.node_store,
            self.other_node - other.other_node,
            self.computed - other.computed,
        )


NO_TOKENS = TokenSplit(0, 0, 0, 0)


@dataclass(frozen=True)
class Row:
    """One figure.

    Parameters
    ----------
    name
        What was measured; unique in a report.
    value
        The figure, or ``None`` when it could not be measured: then ``note`` says why.
    unit
        Unit of the value and of the limit.
    limit
        What the value is compared with.
    n
        Number of samples behind the value.
    note
        Conditions a reader must know, on one line.
    split
        Who answered the prompt tokens, for rows about requests to engines.
    """

    name: str
    value: float | None
    unit: str
    limit: Limit | None = None
    n: int = 0
    note: str = ""
    split: TokenSplit | None = None

    def __post_init__(self) -> None:
        if self.value is None and not self.note:
            raise ValueError(f"{self.name}: a row without a value must say why")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"{self.name}: got {self.value}; a value is a finite number or None")

    @property
    def ratio(self) -> float | None:
        """Value over limit, where both were measured and the limit is not zero."""
        if self.value is None or self.limit is None or not self.limit.value:
            return None
        return self.value / self.limit.value

    @property
    def is_met(self) -> bool | None:
        """Whether the ratio reaches the goal, or the value a fixed figure; ``None`` where either is missing."""
        if self.limit is None or self.limit.goal is None:
            return None
        is_fixed = self.limit.name == FIXED  # compared as it is: the figure may be zero
        reached, wanted = (self.value, self.limit.value) if is_fixed else (self.ratio, self.limit.goal)
        if reached is None or wanted is None:
            return None
        return reached >= wanted if self.limit.direction is Direction.AT_LEAST else reached <= wanted

    def as_json(self) -> dict[str, JsonValue]:
        """Return the row as it stands in the JSON file; every key is always there."""
        limit = self.limit
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "limit": limit.value if limit else None,
            "limit_name": limit.name if limit else None,
            "ratio": self.ratio,
            "goal": limit.goal if limit else None,
            "direction": limit.direction.value if limit and limit.goal is not None else None,
            "met": self.is_met,
            "n": self.n,
            "note": self.note,
            "prompt_tokens": {
                "engine_cache": self.split.engine_cache,
                "node_store": self.split.node_store,
                "other_node": self.split.other_node,
                "computed": self.split.computed,
            }
            if self.split
            else None,
        }


def not_measured(name: str, unit: str, reason: str) -> Row:
    """Return the row of a figure that could not be had here."""
    return Row(name, None, unit, note=f"not measured: {reason}")


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the value below which ``percent`` of the samples lie, interpolated linearly between closest ranks.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 50)
    2.5

    Raises
    ------
    ValueError
        Without samples, or for a percentage outside 0–100.
    """
    if not samples:
        raise ValueError("a percentile needs at least one sample")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent: got {percent}; allowed: 0 to 100")
    ordered = sorted(samples)
    rank = (len(ordered) - 1) * percent / 100
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


@dataclass
class Rounds:
    """Samples of several measurements that took turns; each figure is the median over rounds of the round's median.

    Taking turns spreads a disturbance of the machine over all measurements, so that their ratios stand even where
    their absolute values move.
    """

    _rounds: dict[str, list[list[float]]] = field(default_factory=dict)

    def add(self, name: str, samples: Sequence[float]) -> None:
        """Record what one measurement gave in one round.

        Raises
        ------
        ValueError
            When there are no samples.
        """
        if not samples:
            raise ValueError(f"{name}: a round without samples")
        self._rounds.setdefault(name, []).append(list(samples))

    def median(self, name: str) -> float:
        """Return the median over rounds of the median within a round."""
        return statistics.median(statistics.median(samples) for samples in self._rounds[name])

    def percentile(self, name: str, percent: float) -> float:
        """Return the median over rounds of a percentile within a round."""
        return statistics.median(percentile(samples, percent) for samples in self._rounds[name])

    def n(self, name: str) -> int:
        """Return the number of samples in all rounds."""
        return sum(len(samples) for samples in self._rounds[name])

    def __contains__(self, name: str) -> bool:
        return name in self._rounds
