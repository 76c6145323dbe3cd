"""What records amount to: percentiles, rates, goodput, cached shares; the formulae of ``vllm bench serve``.

Only good answers have times. Time per output token leaves out the first; gaps between tokens are those between events,
which servers that send several tokens in one make longer and fewer. Rates are over the time from the first request that
is measured to the last answer of one, in each run that was interrupted.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tierline.bench.rows import percentile
from tierline.bench.serving.records import Record
from tierline.errors import ConfigurationError

PERCENTS = (50.0, 90.0, 95.0, 99.0)

METRICS: Mapping[str, str] = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "gap between tokens",
    "e2el": "end to end",
}


def samples(records: Sequence[Record], metric: str) -> list[float]:
    """Return a metric's samples of good answers, in seconds; gaps come many to an answer."""
    good = [record for record in records if record.is_good]
    if metric == "itl":
        return [gap for record in good for gap in record.gaps_s]
    return [value for record in good if (value := _value(record, metric)) is not None]


def _value(record: Record, metric: str) -> float | None:
    match metric:
        case "ttft":
            return record.ttft_s
        case "tpot":
            return record.tpot_s
        case "e2el":
            return record.latency_s
    raise ValueError(f"metric: got {metric}; allowed: ttft, tpot, e2el")


@dataclass(frozen=True)
class Spread:
    """One metric over requests, in seconds."""

    n: int
    mean: float
    median: float
    std: float
    smallest: float
    largest: float
    percentiles: Mapping[float, float]


def spread(values: Sequence[float], percents: Sequence[float] = PERCENTS) -> Spread | None:
    """Return how samples spread; ``None`` of none."""
    if not values:
        return None
    return Spread(
        n=len(values),
        mean=statistics.fmean(values),
        median=statistics.median(values),
        std=statistics.pstdev(values),
        smallest=min(values),
        largest=max(values),
        percentiles={percent: percentile(values, percent) for percent in percents},
    )


@dataclass(frozen=True)
class Slos:
    """What an answer must keep to be good for its user, in milliseconds by metric: ``ttft``, ``tpot``, ``e2el``."""

    limits_ms: Mapping[str, float]

    def are_kept(self, record: Record) -> bool:
        """Whether a good answer keeps all of them; an answer of one token has no time per token to keep."""
        values = {name: _value(record, name) for name in self.limits_ms}
        return record.is_good and all(
            value is None or value * 1000 <= self.limits_ms[name] for name, value in values.items()
        )


def parse_slos(texts: Sequence[str]) -> Slos:
    """Read ``ttft:500 tpot:50``.

    Raises
    ------
    ConfigurationError
        When one is not METRIC:MILLISECONDS.
    """
    limits = {}
    for text in " ".join(texts).split():
        name, _, limit = text.partition(":")
        try:
            limits[name] = float(limit)
        except ValueError:
            limits[name] = -1.0
        if name not in ("ttft", "tpot", "e2el") or not 0 < limits[name] < math.inf:
            raise ConfigurationError("--goodput", text, "METRIC:MILLISECONDS; metrics: ttft, tpot, e2el")
    return Slos(limits)


@dataclass(frozen=True)
class Summary:
    """What a set of requests amounts to.

    Parameters
    ----------
    completed, failed
        Good answers and others.
    duration_s
        What rates are over.
    input_tokens, output_tokens
        Of good answers, as the server counts them.
    cached_tokens
        Of the input, as the server says; ``None``: it says nothing of it.
    metrics
        Spreads by metric; those without a sample are missing.
    goodput
        Requests a second that keep the SLOs; ``None`` without any.
    errors
        How many of each kind, the most frequent first.
    """

    completed: int
    failed: int
    duration_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int | None
    metrics: Mapping[str, Spread]
    goodput: float | None
    errors: Mapping[str, int]

    @property
    def requests_per_s(self) -> float:
        """Good answers a second."""
        return self._rate(self.completed)

    @property
    def output_tokens_per_s(self) -> float:
        """Output tokens a second."""
        return self._rate(self.output_tokens)

    @property
    def tokens_per_s(self) -> float:
        """Input and output tokens a second."""
        return self._rate(self.input_tokens + self.output_tokens)

    @property
    def own_output_tokens_per_s(self) -> float | None:
        """Output tokens over the time of whole requests: what one request gets, whatever runs beside it."""
        spread = self.metrics.get("e2el")
        in_all = spread.mean * spread.n if spread is not None else 0.0
        return self.output_tokens / in_all if in_all else None

    @property
    def cached_share(self) -> float | None:
        """Of the input, what the server says was cached."""
        if self.cached_tokens is None or not self.input_tokens:
            return None
        return self.cached_tokens / self.input_tokens

    def _rate(self, count: float) -> float:
        return count / self.duration_s if self.duration_s else 0.0


def summarize(
    records: Sequence[Record], duration_s: float, slos: Slos | None = None, percents: Sequence[float] = PERCENTS
) -> Summary:
    """Sum up records; those that are not measured must have been left out."""
    good = [record for record in records if record.is_good]
    cached = [record.cached_tokens for record in good if record.cached_tokens is not None]
    spreads = {metric: spread(samples(good, metric), percents) for metric in METRICS}
    return Summary(
        completed=len(good),
        failed=len(records) - len(good),
        duration_s=duration_s,
        input_tokens=sum(record.prompt_tokens or 0 for record in good),
        output_tokens=sum(record.output for record in good),
        cached_tokens=sum(cached) if cached else None,
        metrics={metric: values for metric, values in spreads.items() if values is not None},
        goodput=sum(map(slos.are_kept, good)) / duration_s if slos and slos.limits_ms and duration_s else None,
        errors=dict(Counter(record.error for record in records if record.error).most_common()),
    )


def duration(records: Sequence[Record]) -> float:
    """Return the time from the first request to the last answer."""
    if not records:
        return 0.0
    return max(record.ended_s for record in records) - min(record.sent_s for record in records)


def most_in_flight(records: Sequence[Record]) -> int:
    """Return how many requests were in flight at once, at most."""
    moves = sorted([(record.sent_s, 1) for record in records] + [(record.ended_s, -1) for record in records])
    now = most = 0
    for _, change in moves:
        now += change
        most = max(most, now)
    return most
