"""What the connector counts and measures, carried to vLLM's own ``/metrics`` by vLLM's own hooks.

The split of prompt tokens by who answered is vLLM's: ``vllm:prompt_tokens_cached_by_source`` has ours as ``host``. Ours
tells whether that was in the node store's memory or came from below it.
"""

import threading
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Gauge
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
    PromMetric,
    PromMetricT,
)

from tierline.metrics import VLLM_LABELS
from tierline.metrics.connector import CONNECTOR

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_PREFIX = "vllm:tierline_"
_OURS = {each.name.removeprefix(_PREFIX).removesuffix("_total"): each for each in CONNECTOR}
_COUNTED = [name for name, each in _OURS.items() if each.kind == "counter"]
COUNTERS = tuple(name for name in _COUNTED if _OURS[name].labels == VLLM_LABELS)
LABELLED = tuple(name for name in _COUNTED if _OURS[name].labels != VLLM_LABELS)
"""Counters with a label of their own; counted as ``name:value``."""
GAUGES = tuple(name for name, each in _OURS.items() if each.kind == "gauge")


class Counters:
    """Counts since the last take, and what was measured last; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, float] = {}

    def add(self, name: str, amount: float = 1) -> None:
        """Add to a counter of ``COUNTERS``, or of ``LABELLED`` with the label's value behind a colon."""
        assert name in COUNTERS or name.partition(":")[0] in LABELLED
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + amount

    def measure(self, name: str, value: float) -> None:
        """Set a gauge of ``GAUGES``."""
        assert name in GAUGES
        with self._lock:
            self._counts[name] = value

    def take(self) -> "ConnectorStats | None":
        """Return what was counted since the last call; ``None`` for nothing."""
        with self._lock:
            counts, self._counts = self._counts, {}
        return ConnectorStats(data=counts) if counts else None


class ConnectorStats(KVConnectorStats):  # type: ignore[misc]  # vLLM is not typed for us
    """Counts of one interval, which are added up, and gauges, of which the last counts."""

    data: dict[str, float]

    def reset(self) -> None:
        """Forget the interval."""
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> "ConnectorStats":
        """Add another's counts to this one's."""
        for name, amount in other.data.items():
            self.data[name] = amount if name in GAUGES else self.data.get(name, 0) + amount
        return self

    def reduce(self) -> dict[str, int | float]:
        """Return the counts, for vLLM's log line."""
        return {name: round(amount, 3) for name, amount in self.data.items()}

    def is_empty(self) -> bool:
        """Say whether nothing was counted."""
        return not self.data


class ConnectorMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """The counters as Prometheus metrics ``vllm:tierline_<name>_total``, gauges without the ending.

    Names start as all of vLLM's do, because vLLM removes those when a process makes another engine.
    """

    def __init__(
        self,
        vllm_config: "VllmConfig",
        metric_types: dict[type[PromMetric], type[PromMetricT]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters: dict[str, Any] = {
            name: metric_types[Counter](
                name=_PREFIX + name,
                documentation=_OURS[name].meaning,
                labelnames=[*labelnames, *_OURS[name].labels[len(VLLM_LABELS) :]],
            )
            for name in (*COUNTERS, *LABELLED)
        }
        self._gauges: dict[str, Any] = {
            name: metric_types[Gauge](
                name=_PREFIX + name,
                documentation=_OURS[name].meaning,
                labelnames=labelnames,
                multiprocess_mode="mostrecent",
            )
            for name in GAUGES
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add the counts of one interval."""
        labels = self.per_engine_labelvalues[engine_idx]
        for name, amount in transfer_stats_data.items():
            counter, _, value = name.partition(":")
            if name in GAUGES:
                self._gauges[name].labels(*labels).set(amount)
            elif value:
                self._counters[counter].labels(*labels, value).inc(amount)
            else:
                self._counters[name].labels(*labels).inc(amount)
