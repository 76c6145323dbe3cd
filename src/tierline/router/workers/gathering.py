"""What all workers say, made one answer: lists of endpoints, lists of decisions, metrics.

Rule for metrics: **what counts up never goes down**, or whoever scrapes takes it for a restart. So the supervisor keeps
what each worker said last, answers with that when one is late, and keeps for good the counts of those that died; their
gauges are gone with them.
"""

from collections.abc import Callable, Iterable, Sequence
from math import fsum

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tierline.router.admin.documents import AffinityState, ArmState, DecisionList, EndpointList, EndpointState
from tierline.router.workers.board import Load, endpoint_key

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()
_STATES = ("draining", "down", "ejected", "resting", "probation", "unchecked", "serving")
"""The first that any worker says of an endpoint is what all say."""


# Endpoints and decisions ----------------------------------------------------------------------------------------------


def merge_endpoints(lists: Sequence[EndpointList], elsewhere: Iterable[Load] = ()) -> EndpointList:
    """Return the endpoints of all workers, in the order of the first that has them.

    Parameters
    ----------
    elsewhere
        What other routers have.
    """
    inflight = {load.endpoint: load.inflight for load in elsewhere}
    found: dict[str, list[EndpointState]] = {}
    for each in lists:
        for endpoint in each.endpoints:
            found.setdefault(endpoint.url, []).append(endpoint)
    return EndpointList(
        [_merged(states, inflight.get(endpoint_key(url), 0)) for url, states in found.items()], lists[0].aliases
    )


def _merged(states: Sequence[EndpointState], inflight_elsewhere: int) -> EndpointState:
    rates = [state.prefill_tokens_per_second for state in states if state.prefill_tokens_per_second is not None]
    models = [state.models for state in states if state.models is not None]
    capacity = next((state for state in states if state.capacity_blocks is not None), states[0])
    return msgspec.structs.replace(
        states[0],
        state=min((state.state for state in states), key=_STATES.index),
        models=sorted({model for names in models for model in names}) if models else None,
        joined_s=max((state.joined_s for state in states if state.joined_s is not None), default=None),
        ejections=sum(state.ejections for state in states),
        ejected_for_s=max(state.ejected_for_s for state in states),
        rests_for_s=max(state.rests_for_s for state in states),
        capacity_blocks=capacity.capacity_blocks,
        block_tokens=capacity.block_tokens,
        inflight=sum(state.inflight for state in states),
        inflight_elsewhere=inflight_elsewhere,
        queued_tokens=sum(state.queued_tokens for state in states),
        prefill_tokens_per_second=fsum(rates) / len(rates) if rates else None,
        idle_connections=sum(state.idle_connections for state in states),
    )


def merge_affinity(states: Sequence[AffinityState]) -> AffinityState:
    """Return the arms of all workers, with the requests of all."""
    found: dict[tuple[str, str, str], ArmState] = {}
    for arm in (arm for state in states for arm in state.arms):
        known = found.setdefault((arm.model, arm.arm, arm.strategy), arm)
        if known is not arm:
            known.requests += arm.requests
    return AffinityState(turned_off=states[0].turned_off, arms=list(found.values()))


def merge_decisions(lists: Sequence[DecisionList]) -> DecisionList:
    """Return the decisions of all workers, the latest first."""
    entries = [entry for each in lists for entry in each.decisions]
    return DecisionList(sorted(entries, key=lambda entry: -(entry.time + entry.seconds)))


# Metrics --------------------------------------------------------------------------------------------------------------


class Family(msgspec.Struct, array_like=True):
    """One metric of one worker."""

    name: str
    text: str
    kind: str
    samples: list[tuple[str, tuple[tuple[str, str], ...], float]]


Sample = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and labels."""
_COUNTING = frozenset({"counter", "histogram", "summary"})
_decode = msgspec.msgpack.Decoder(list[Family]).decode


def _mean_of_known(values: Sequence[float]) -> float:
    known = [value for value in values if value]
    return fsum(known) / len(known) if known else 0.0


_GAUGES: dict[str, Callable[[Sequence[float]], float]] = {
    "tierline_router_affinity": min,
    "tierline_router_endpoint_up": min,
    "tierline_router_endpoint_draining": max,
    "tierline_router_prefill_tokens_per_second": _mean_of_known,
    "tierline_router_index_placements": max,
    "tierline_router_kubernetes_sources_behind": max,
}
"""Gauges that are no sums over workers."""


def families_of(metrics: Iterable[Metric]) -> list[Family]:
    """Return metrics as they are sent."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [(sample.name, tuple(sample.labels.items()), float(sample.value)) for sample in metric.samples],
        )
        for metric in metrics
    ]


encode_families = msgspec.msgpack.Encoder().encode


def merge_families(workers: Sequence[Sequence[Family]]) -> list[Family]:
    """Return the metrics of all."""
    merged: dict[str, Family] = {}
    values: dict[str, dict[Sample, list[float]]] = {}
    for families in workers:
        for family in families:
            merged.setdefault(family.name, family)
            samples = values.setdefault(family.name, {})
            for name, labels, value in family.samples:
                samples.setdefault((name, labels), []).append(value)
    return [
        Family(
            family.name,
            family.text,
            family.kind,
            [
                (name, labels, _GAUGES.get(name, fsum)(found) if family.kind == "gauge" else fsum(found))
                for (name, labels), found in values[family.name].items()
            ],
        )
        for family in merged.values()
    ]


class MetricsBook:
    """What workers said of their metrics.

    Invariant: the counts of :meth:`page` never shrink.
    """

    def __init__(self) -> None:
        self._latest: dict[int, list[Family]] = {}
        self._departed: list[Family] = []

    def said(self, worker: int, content: bytes) -> None:
        """A worker said what its metrics are."""
        self._latest[worker] = _decode(content)

    def died(self, worker: int) -> None:
        """A worker is gone; what it counted since it said something last is lost."""
        families = [family for family in self._latest.pop(worker, []) if family.kind in _COUNTING]
        self._departed = merge_families([self._departed, families])

    def page(self, own: Iterable[Metric]) -> bytes:
        """Return the page for Prometheus; ``own`` are the supervisor's metrics."""
        of_workers = [self._latest[worker] for worker in sorted(self._latest)]
        registry = CollectorRegistry()
        registry.register(_Given(list(map(_metric, merge_families([*of_workers, self._departed, families_of(own)])))))
        return generate_latest(registry)


class _Given(Collector):
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _metric(family: Family) -> Metric:
    metric = Metric(family.name, family.text, family.kind)
    for name, labels, value in family.samples:
        metric.add_sample(name, dict(labels), value)
    return metric
