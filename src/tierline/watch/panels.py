"""What a dashboard is made of, and the few shapes that its queries have.

Rule: every selector of a query has braces, so that a query's metrics can be told from its words; ``$where`` in them
stands for the instances that were chosen, and ``$__rate_interval`` is Grafana's.
"""

import re
from dataclasses import dataclass
from typing import Literal

from tierline.metrics import CATALOGUE

CHOSEN = 'instance=~"$instance"'
"""What ``$where`` becomes."""
GPU = "a GPU and NVIDIA's dcgm-exporter"
LOGS = "Loki, and a collector of logs (`deploy/logs/collector.yaml`)"
ENGINE = "vLLM with our connector"
CLUSTER = "a Kubernetes cluster and the operator"
_WINDOW = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, and how its series are called."""

    expression: str
    legend: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the samples that it asks for."""
        return tuple(re.findall(r"[A-Za-z_:][A-Za-z0-9_:]*(?=\{)", self.expression))


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture.

    Parameters
    ----------
    title
        Of it.
    unit
        As Grafana spells it.
    queries
        What is drawn.
    needs
        Without what there is nothing to draw; empty: the programs alone.
    source
        Who is asked: Prometheus for numbers, Loki for lines of logs.
    """

    title: str
    unit: str
    queries: tuple[Query, ...]
    needs: str = ""
    source: Literal["prometheus", "loki"] = "prometheus"

    @property
    def description(self) -> str:
        """What its metrics mean, in the catalogue's words, and what it needs."""
        named = dict.fromkeys(name for query in self.queries for name in query.metrics)
        bare = dict.fromkeys(re.sub("_(bucket|count|sum)$", "", name) for name in named)
        lines = [f"{name}: {CATALOGUE[name].meaning}" for name in bare if name in CATALOGUE]
        return "\n\n".join([*([f"Needs {self.needs}."] if self.needs else []), *lines])


@dataclass(frozen=True, slots=True)
class Row:
    """Panels that belong together."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page.

    Parameters
    ----------
    name
        Of its file, and of its address in Grafana.
    title
        Of the page.
    instances
        A metric that all programs have whose instances can be chosen.
    rows
        What is on it.
    """

    name: str
    title: str
    instances: str
    rows: tuple[Row, ...]


def rate(counter: str, *by: str, only: str = "") -> str:
    """Return how fast a counter grows, by labels."""
    selector = f"{counter}{{{', '.join(filter(None, (only, '$where')))}}}"
    return f"sum{_by(*by)} (rate({selector}{_WINDOW}))"


def total(gauge: str, *by: str, only: str = "") -> str:
    """Return a gauge's sum, by labels."""
    return f"sum{_by(*by)} ({gauge}{{{', '.join(filter(None, (only, '$where')))}}})"


def ratio(part: str, whole: str) -> str:
    """Return what part of something that is not nothing."""
    return f"{part} / ({whole} > 0)"


def quantile(share: float, histogram: str, *by: str) -> str:
    """Return below what a share of the observations of late is, by labels."""
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', 'le', *by)})"


def quantiles(histogram: str) -> tuple[Query, ...]:
    """Return queries for the median, P90 and P99."""
    return tuple(Query(quantile(share, histogram), f"P{share * 100:.0f}") for share in (0.5, 0.9, 0.99))


def _by(*labels: str) -> str:
    return f" by ({', '.join(labels)})" if labels else ""
