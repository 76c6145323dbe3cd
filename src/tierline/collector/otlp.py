"""Metrics as OTLP's JSON (https://opentelemetry.io/docs/specs/otlp/, "JSON Protobuf Encoding"). Pure.

Rules: names stay as Prometheus has them, ``_total`` too, for dashboards ask for those. Counters and histograms are
cumulative, as they were scraped. What OTLP has no place for is left out: values that are no numbers, histograms whose
buckets do not grow.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import inf, isfinite
from typing import Any

from prometheus_client import Metric
from prometheus_client.samples import Sample

_CUMULATIVE = 2
_NANOSECONDS = 1_000_000_000
_Series = dict[tuple[tuple[str, str], ...], list[Sample]]


def export_request(families: Iterable[Metric], now_s: float, version: str) -> dict[str, Any]:
    """Return the body of a ``POST /v1/metrics``.

    Parameters
    ----------
    families
        What was read.
    now_s
        When, in seconds since 1970.
    version
        Ours.
    """
    time = str(int(now_s * _NANOSECONDS))
    metrics = [metric for family in families for metric in _metrics_of(family, time)]
    scope = {"scope": {"name": "tierline.collector", "version": version}, "metrics": metrics}
    return {"resourceMetrics": [{"resource": {"attributes": []}, "scopeMetrics": [scope]}]}


def _metrics_of(family: Metric, time: str) -> Iterator[dict[str, Any]]:
    match family.type:
        case "histogram":
            points = [
                point for series in _series(family, "le") if (point := _histogram_point(family.name, *series, time))
            ]
            if points:
                data = {"aggregationTemporality": _CUMULATIVE, "dataPoints": points}
                yield {"name": family.name, "description": family.documentation, "histogram": data}
        case "summary":
            points = [_summary_point(family.name, *series, time) for series in _series(family, "quantile")]
            if points:
                yield {"name": family.name, "description": family.documentation, "summary": {"dataPoints": points}}
        case _:
            yield from _numbers(family, time)


def _numbers(family: Metric, time: str) -> Iterator[dict[str, Any]]:
    """Yield a counter, a gauge, or what has no type: each sample's name has its own metric."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for sample in family.samples:
        if isfinite(sample.value):
            point = {"attributes": _attributes(sample.labels), "timeUnixNano": time, "asDouble": float(sample.value)}
            by_name.setdefault(sample.name, []).append(point)
    for name, points in by_name.items():
        data: dict[str, Any] = {"dataPoints": points}
        if family.type == "counter":
            data |= {"aggregationTemporality": _CUMULATIVE, "isMonotonic": True}
        yield {"name": name, "description": family.documentation, "sum" if family.type == "counter" else "gauge": data}


def _series(family: Metric, apart: str) -> Iterator[tuple[Mapping[str, str], list[Sample]]]:
    """Yield the samples of each set of labels, that label left out which tells the samples of one apart."""
    series: _Series = {}
    for sample in family.samples:
        labels = tuple(sorted((name, value) for name, value in sample.labels.items() if name != apart))
        series.setdefault(labels, []).append(sample)
    for labels, samples in series.items():
        yield dict(labels), samples


def _histogram_point(name: str, labels: Mapping[str, str], samples: list[Sample], time: str) -> dict[str, Any] | None:
    buckets: dict[float, float] = {}
    total = 0.0
    for sample in samples:
        if sample.name == f"{name}_bucket" and "le" in sample.labels:
            buckets[_bound(sample.labels["le"])] = sample.value
        elif sample.name == f"{name}_sum":
            total = sample.value
    bounds = sorted(buckets)
    counts = [buckets[bound] for bound in bounds]
    grows = all(lower <= upper for lower, upper in zip([0.0, *counts], counts, strict=False))
    if not bounds or bounds[-1] != inf or not grows or not isfinite(counts[-1]) or not isfinite(total):
        return None
    steps = [upper - lower for lower, upper in zip([0.0, *counts], counts, strict=False)]
    return {
        "attributes": _attributes(labels),
        "timeUnixNano": time,
        "count": str(int(counts[-1])),
        "sum": total,
        "bucketCounts": [str(int(step)) for step in steps],
        "explicitBounds": bounds[:-1],
    }


def _summary_point(name: str, labels: Mapping[str, str], samples: list[Sample], time: str) -> dict[str, Any]:
    values = {sample.name: sample.value for sample in samples if isfinite(sample.value)}
    quantiles = [
        {"quantile": _bound(sample.labels["quantile"]), "value": sample.value}
        for sample in samples
        if sample.name == name and "quantile" in sample.labels and isfinite(sample.value)
    ]
    return {
        "attributes": _attributes(labels),
        "timeUnixNano": time,
        "count": str(int(max(values.get(f"{name}_count", 0.0), 0.0))),
        "sum": values.get(f"{name}_sum", 0.0),
        "quantileValues": [each for each in quantiles if isfinite(each["quantile"])],
    }


def _bound(written: str) -> float:
    """Return a number as a label has it; one that is none sorts behind all and has no place."""
    try:
        value = float(written)
    except ValueError:
        return inf
    return value if value == value else inf  # NaN has no order


def _attributes(labels: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": name, "value": {"stringValue": value}} for name, value in labels.items() if value]
