"""Families for Prometheus, made from the catalogue: whoever measures gives a name and values, and no words.

Rule: a name that is not in the catalogue is a bug, and raises :class:`KeyError`.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from tierline.metrics.catalogue import CATALOGUE

Values = TypeVar("Values", bound=str | tuple[str, ...])
"""Of labels: one, or several in the order of the definition."""


def counter(name: str, value: float) -> CounterMetricFamily:
    """Return a counter without labels."""
    return CounterMetricFamily(name, CATALOGUE[name].meaning, value=value)


def counters(name: str, counts: Mapping[Values, float]) -> CounterMetricFamily:
    """Return a counter with labels; no counts make an empty one."""
    family = CounterMetricFamily(name, CATALOGUE[name].meaning, labels=CATALOGUE[name].labels)
    for values, count in counts.items():
        family.add_metric(_each(values), count)
    return family


def gauge(name: str, value: float) -> GaugeMetricFamily:
    """Return a gauge without labels."""
    return GaugeMetricFamily(name, CATALOGUE[name].meaning, value=value)


def gauges(name: str, figures: Mapping[Values, float]) -> GaugeMetricFamily:
    """Return a gauge with labels; no figures make an empty one."""
    family = GaugeMetricFamily(name, CATALOGUE[name].meaning, labels=CATALOGUE[name].labels)
    for values, figure in figures.items():
        family.add_metric(_each(values), figure)
    return family


def histogram(name: str, cumulative: Iterable[tuple[str, float]], total: float) -> HistogramMetricFamily:
    """Return a histogram without labels: observations up to each bound, and the sum of all."""
    return HistogramMetricFamily(name, CATALOGUE[name].meaning, buckets=list(cumulative), sum_value=total)


def histograms(
    name: str, observed: Mapping[Values, tuple[Iterable[tuple[str, float]], float]]
) -> HistogramMetricFamily:
    """Return a histogram with labels; each as :func:`histogram` takes it."""
    family = HistogramMetricFamily(name, CATALOGUE[name].meaning, labels=CATALOGUE[name].labels)
    for values, (cumulative, total) in observed.items():
        family.add_metric(_each(values), list(cumulative), total)
    return family


def _each(values: str | tuple[str, ...]) -> tuple[str, ...]:
    return values if isinstance(values, tuple) else (values,)
