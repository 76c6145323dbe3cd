"""Two results beside each other: how many times the one is the other, and how sure that is.

Confidence intervals are percentile bootstraps (B. Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979):
each side is drawn again with replacement, by families, because requests that share a prefix are not independent. Where
a few families have most of the requests (a trace is one), it is drawn by twentieths of the requests in the order in
which they were sent; rates by twentieths of the time. There must be ten or more to draw from: whoever draws from one
draws the same each time, and an interval without width is no certainty. And there must be a sample or more beyond a
percentile, which are 100 for P99. An interval that does not contain 1 is a difference. It knows of chance within these
two runs only, not of what differs from day to day: for that, run more often.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tierline.bench.report import Table, figure_text
from tierline.bench.rows import percentile
from tierline.bench.serving.measures import METRICS, duration, samples
from tierline.bench.serving.records import Record
from tierline.bench.serving.results import Result

RESAMPLES = 1_000
LEVEL_PERCENT = 95.0
PARTS_OF_A_RUN = 20
LEAST_DRAWN = 10

_COMPARED_PERCENTS = (50.0, 90.0, 99.0)

T = TypeVar("T")


@dataclass(frozen=True)
class Comparison:
    """One figure of two results.

    Parameters
    ----------
    name, unit
        Of the figure.
    first, second
        What it was.
    ratio
        Second over first.
    low, high
        Between these the ratio lies, by the bootstrap; ``None``: there is too little to draw from.
    """

    name: str
    unit: str
    first: float
    second: float
    ratio: float
    low: float | None
    high: float | None

    @property
    def is_different(self) -> bool | None:
        """Whether chance alone would seldom make this; ``None``: nobody can say."""
        if self.low is None or self.high is None:
            return None
        return not self.low <= 1 <= self.high


def compare(first: Result, second: Result, seed: int = 0, resamples: int = RESAMPLES) -> list[Comparison]:
    """Compare what two results measured, as far as both measured it."""
    dice = random.Random(seed)
    found = []
    for metric in METRICS:
        sides = [_drawn_by(result.measured, metric) for result in (first, second)]
        if not all(sides):
            continue
        for percent in _COMPARED_PERCENTS:

            def figure(drawn: Sequence[Sequence[float]], percent: float = percent) -> float:
                return percentile([value for values in drawn for value in values], percent) * 1000

            is_enough = all(_is_enough(side, percent) for side in sides)
            name, times = f"{metric.upper()} P{percent:g}", resamples if is_enough else 0
            found.append(_compared(name, "ms", sides[0], sides[1], figure, dice, times))
    for name, unit, count in _RATES:
        sides_of_rate = [_twentieths(result.measured, count) for result in (first, second)]
        if all(any(side) for side in sides_of_rate):
            found.append(_compared(name, unit, sides_of_rate[0], sides_of_rate[1], _mean, dice, resamples))
    return found


def comparison_table(found: Sequence[Comparison]) -> Table:
    """Lay out a comparison."""
    lines = [
        (
            each.name,
            each.unit,
            figure_text(each.first),
            figure_text(each.second),
            f"{each.ratio:.3f}",
            "–" if each.low is None or each.high is None else f"{each.low:.3f} – {each.high:.3f}",
            {True: "yes", False: "no", None: "too few requests"}[each.is_different],
        )
        for each in found
    ]
    header = ("figure", "unit", "A", "B", "B / A", f"{LEVEL_PERCENT:g} % of bootstraps", "different")
    return Table("B over A", header, lines)


def differences(first: Result, second: Result) -> list[str]:
    """Say in what the two runs were not alike, and what that makes of their comparison."""
    notes = []
    for name in first.settings.__struct_fields__:
        one, other = getattr(first.settings, name), getattr(second.settings, name)
        if name == "metadata":
            notes += [
                f"{key} differs: A {one.get(key, '–')}, B {other.get(key, '–')}"
                for key in sorted({*one, *other})
                if one.get(key) != other.get(key)
            ]
        elif one != other:
            notes.append(f"{name} differs: A {one}, B {other}")
    if first.is_simulated or second.is_simulated:
        which = [name for name, result in (("A", first), ("B", second)) if result.is_simulated]
        notes.append(f"simulated engines answered in {' and '.join(which)}: no figure is a real engine's")
    if first.machine.processor != second.machine.processor:
        notes.append(f"clients differ: A {first.machine.processor}, B {second.machine.processor}")
    return notes


def _compared(
    name: str,
    unit: str,
    first: Sequence[T],
    second: Sequence[T],
    figure: Callable[[Sequence[T]], float],
    dice: random.Random,
    resamples: int,
) -> Comparison:
    one, other = figure(first), figure(second)
    ratios = []
    for _ in range(resamples):
        base = figure(dice.choices(first, k=len(first)))
        drawn = figure(dice.choices(second, k=len(second)))
        if base:
            ratios.append(drawn / base)
    tail = (100 - LEVEL_PERCENT) / 2
    return Comparison(
        name=name,
        unit=unit,
        first=one,
        second=other,
        ratio=other / one if one else float("inf"),
        low=percentile(ratios, tail) if ratios else None,
        high=percentile(ratios, 100 - tail) if ratios else None,
    )


def _drawn_by(records: Sequence[Record], metric: str) -> list[list[float]]:
    """Return a metric's samples as they are drawn: together with those that they are not independent of."""
    by_family: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_family[record.family].append(record)
    families = _samples(by_family.values(), metric)
    if _effective(families) >= LEAST_DRAWN:
        return families
    ordered = sorted((record for record in records if samples([record], metric)), key=lambda record: record.sent_s)
    n = len(ordered)
    neighbours = (
        ordered[n * part // PARTS_OF_A_RUN : n * (part + 1) // PARTS_OF_A_RUN] for part in range(PARTS_OF_A_RUN)
    )
    return _samples(neighbours, metric)


def _samples(groups: Iterable[Sequence[Record]], metric: str) -> list[list[float]]:
    return [values for group in groups if (values := samples(group, metric))]


def _is_enough(drawn: Sequence[Sequence[float]], percent: float) -> bool:
    """Whether to draw from: of fewer samples, what is drawn for P99 is the largest one again and again."""
    return _effective(drawn) >= LEAST_DRAWN and sum(map(len, drawn)) * (100 - percent) >= 100


def _effective(drawn: Sequence[Sequence[float]]) -> float:
    """Return how many of equal size would vary as these do (L. Kish, "Survey Sampling", 1965): of one large one, 1."""
    sizes = [len(values) for values in drawn]
    return sum(sizes) ** 2 / sum(size**2 for size in sizes) if sizes else 0.0


def _twentieths(records: Sequence[Record], count: Callable[[Record], int]) -> list[float]:
    """Return rates of what ended in each part of the run."""
    lasts = duration(records)
    if not lasts:
        return []
    start = min(record.sent_s for record in records)
    part_s = lasts / PARTS_OF_A_RUN
    counts = [0] * PARTS_OF_A_RUN
    for record in records:
        if record.is_good:
            counts[min(PARTS_OF_A_RUN - 1, int((record.ended_s - start) / part_s))] += count(record)
    return [each / part_s for each in counts]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _one(_: Record) -> int:
    return 1


def _output(record: Record) -> int:
    return record.output


_RATES: tuple[tuple[str, str, Callable[[Record], int]], ...] = (
    ("requests", "1/s", _one),
    ("output tokens", "1/s", _output),
)
