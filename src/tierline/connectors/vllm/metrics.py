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

if TYPE_CHECKING:
    from vllm.config import VllmConfig

COUNTERS = {
    "lookups": "Prefix lookups that the node store answered",
    "lookups_late": "Lookups whose answer came too late for their request",
    "lookups_failed": "Calls to the node store for lookups and leases that failed",
    "lookups_skipped": "Lookups not made because the node store failed shortly before",
    "lookups_below": "Lookups that waited for tiers below the node store",
    "handovers_late": "Requests whose prompt another engine computed and that did not wait until all of it was stored",
    "loaded_chunks": "Chunks copied into the engine and verified, all ranks",
    "loaded_bytes": "Bytes copied into the engine and verified, all ranks",
    "load_seconds": "Time spent on loads, all ranks",
    "loads_failed": "Requests whose load failed and that are computed instead, all ranks",
    "corrupt_chunks": "Chunks whose bytes did not match their checksum",
    "stored_chunks": "Chunks written into the node store, all ranks",
    "stored_bytes": "Bytes written into the node store, all ranks",
    "store_seconds": "Time spent on copying and committing, all ranks",
    "stores_dropped": "Chunks not stored: no room, no node store, or their blocks were needed first",
}

LABELLED = {
    "decisions": ("decision", "What was decided of prefixes that the node store had: load, recompute or unknown"),
    "loaded_tokens": ("source", "Tokens to be loaded: from the node's memory (node), or from which tier below it"),
}
"""Counters with a label of their own, with its name; counted as ``name:value``."""

GAUGES = {
    "prefill_token_seconds": "What computing a token of a prompt takes, with nothing before it",
    "prefill_growth_seconds": "What each token before it adds to that",
    "load_bytes_per_second": "Bytes a second of loads from the node's memory; 0 where none was lately",
}


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
                name=f"vllm:tierline_{name}", documentation=documentation, labelnames=labelnames
            )
            for name, documentation in COUNTERS.items()
        }
        self._labelled: dict[str, Any] = {
            name: metric_types[Counter](
                name=f"vllm:tierline_{name}", documentation=documentation, labelnames=[*labelnames, label]
            )
            for name, (label, documentation) in LABELLED.items()
        }
        self._gauges: dict[str, Any] = {
            name: metric_types[Gauge](
                name=f"vllm:tierline_{name}",
                documentation=documentation,
                labelnames=labelnames,
                multiprocess_mode="mostrecent",
            )
            for name, documentation in GAUGES.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add the counts of one interval."""
        labels = self.per_engine_labelvalues[engine_idx]
        for name, amount in transfer_stats_data.items():
            counter, _, value = name.partition(":")
            if name in GAUGES:
                self._gauges[name].labels(*labels).set(amount)
            elif value:
                self._labelled[counter].labels(*labels, value).inc(amount)
            else:
                self._counters[name].labels(*labels).inc(amount)
