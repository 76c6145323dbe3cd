"""What a metric is, before anybody measures it.

Rule: no program exports a metric that is not defined here. Families are made from definitions only
(:mod:`tierline.metrics.families`), so that a name, a type, labels and a meaning are each written once.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
HYPERPOD_LABELS = (
    *("cluster_id", "cluster_name", "resource_name", "resource_type", "namespace", "model_name", "model_version"),
    *("model_container_type", "pod_name", "node_name", "instance_type", "metric_source", "task_type"),
)
"""Where a pod is and what it serves, as HyperPod says it (:mod:`tierline.dimensions`)."""
VLLM_LABELS = ("model_name", "engine")
"""Of every metric of vLLM's engines."""
_UNITS = {
    "tokens_per_second": "tokens per second",
    "bytes_per_second": "bytes per second",
    "milliseconds": "milliseconds",
    "seconds": "seconds",
    "bytes": "bytes",
}
"""By how names end; what ends otherwise counts things, or is 0 or 1."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A metric.

    Parameters
    ----------
    name
        As whoever scrapes sees it: a counter's ends in ``_total``.
    kind
        Its type.
    meaning
        What a value of it says, as Markdown; the text of ``# HELP`` too.
    labels
        Names, in the order in which their values are given.
    """

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """What a value of it counts, as its name says; empty: things, or whether something is so."""
        bare = self.name.removesuffix("_total")
        return next((unit for ending, unit in _UNITS.items() if bare.endswith(f"_{ending}")), "")

    @property
    def series(self) -> tuple[str, ...]:
        """Names of its samples."""
        endings = ("_bucket", "_count", "_sum") if self.kind == "histogram" else ("",)
        return tuple(self.name + ending for ending in endings)


def counter(name: str, meaning: str, *labels: str) -> Definition:
    """Define what only grows while a program runs."""
    return Definition(name, "counter", meaning, labels)


def gauge(name: str, meaning: str, *labels: str) -> Definition:
    """Define what comes and goes."""
    return Definition(name, "gauge", meaning, labels)


def histogram(name: str, meaning: str, *labels: str) -> Definition:
    """Define what is observed many times."""
    return Definition(name, "histogram", meaning, labels)
