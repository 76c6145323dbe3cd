"""What a node measures, in Prometheus' terms, and nothing decided: observers that listen and a collector that reads.

Base units are bytes and seconds.
"""

import itertools
from bisect import bisect_left
from collections import Counter as Counted
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import get_args

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, exposition
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tierline.metrics import families
from tierline.node.publishing import EventKind, EventPublisher, ReplayAnswer
from tierline.node.service import NodeService, Occasion, Verdict
from tierline.node.tier_figures import SECONDS_BUCKETS, StoreResult, TierUse
from tierline.node.waiting import Kind
from tierline.pool.members import MemberSource
from tierline.store.namespaces import OTHERS, WHOLE
from tierline.wire.cluster import SELF, MemberFigures

_SECONDS_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

LIMITS = (
    "max_connections",
    "max_connections_per_address",
    "max_head",
    "max_object",
    "head_timeout_s",
    "body_timeout_s",
)
"""Keys of the configuration whose bounds are counted when a client meets them."""


MAX_BUCKETS = 20
"""Buckets that have series of their own."""
_OF_BUCKETS: tuple[tuple[Callable[[str, dict[str, int]], Metric], str], ...] = (
    (families.gauges, "tierline_node_bucket_bytes"),
    (families.gauges, "tierline_node_bucket_objects"),
    (families.counters, "tierline_node_bucket_hits_total"),
    (families.counters, "tierline_node_bucket_misses_total"),
    (families.counters, "tierline_node_bucket_evictions_total"),
    (families.counters, "tierline_node_bucket_refusals_total"),
)
"""In the order of a bucket's figures."""


class NodeMetrics:
    """The registry of one node; hears of requests from both protocols and reads the rest when it is asked.

    Parameters
    ----------
    service
        What is measured.
    open_connections
        Returns how many connections HTTP and the UNIX socket have.
    failed_reloads
        Returns how often changed files could not be used, by what is in them.
    certificate_expires
        Returns until when the certificate is valid, in seconds since 1970; 0: there is none.
    segments
        All services by the name of their segment, where the node has several: their series then have a label
        ``segment``.
    failed_duties
        How often each of the node's duties has failed, kept up to date by its owner.
    events
        What publishes KV events, where something does.
    tiers
        What lies below the node's memory.
    members
        Returns the nodes of the pool that this one is in.
    source
        Who says where they are, where somebody does.
    """

    def __init__(
        self,
        service: NodeService,
        open_connections: Callable[[], tuple[int, int]],
        failed_reloads: Callable[[], Mapping[str, int]],
        certificate_expires: Callable[[], float],
        segments: Mapping[str, NodeService] | None = None,
        failed_duties: Mapping[str, int] = MappingProxyType({}),
        events: EventPublisher | None = None,
        tiers: Sequence[TierUse] = (),
        members: Callable[[], Sequence[MemberFigures]] = list,
        source: MemberSource | None = None,
    ) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(
            _SegmentsCollector({name: _StoreCollector(each) for name, each in segments.items()})
            if segments
            else _StoreCollector(service)
        )
        self._of_buckets = CollectorRegistry()
        self._of_buckets.register(
            _SegmentsCollector({name: _BucketsCollector(each) for name, each in segments.items()})
            if segments
            else _BucketsCollector(service)
        )
        self._registry.register(
            _NodeCollector(service, open_connections, failed_reloads, certificate_expires, failed_duties)
        )
        if events is not None:
            self._registry.register(_EventsCollector(events))
        self._registry.register(_TiersCollector(tiers))
        self._registry.register(_PoolCollector(members, source))
        self._http = _Requests("tierline_node_http")
        self._bodies = _Bodies()
        self._connections = _Connections()
        self._socket = _Requests("tierline_node_socket")
        self._registry.register(self._http)
        self._registry.register(self._bodies)
        self._registry.register(self._connections)
        self._registry.register(self._socket)

    def http_request(self, route: str, status: HTTPStatus, seconds: float, received: int, sent: int) -> None:
        """Count one answered HTTP request."""
        self._http.add(route or "none", int(status), seconds)
        self._bodies.received += received
        self._bodies.sent += sent

    def limit_reached(self, limit: str) -> None:
        """Count a request or connection that a limit ended; ``limit`` is one of :data:`LIMITS`."""
        self._connections.limits_reached[limit] += 1

    def handshake_failed(self) -> None:
        """Count a TLS handshake that came to nothing."""
        self._connections.failed_handshakes += 1

    def socket_request(self, verb: str, outcome: str, seconds: float) -> None:
        """Count one answered request of the UNIX socket."""
        self._socket.add(verb, outcome, seconds)

    def show_spans(self, outcomes: Callable[[], dict[str, int]]) -> None:
        """Have the page say what became of spans, too."""
        self._registry.register(_SpansCollector(outcomes))

    def exposition(self, *, with_buckets: bool = True) -> tuple[bytes, str]:
        """Return the text of ``GET /metrics`` and its content type; without buckets, no name of one is in it."""
        text = exposition.generate_latest(self._registry)
        if with_buckets:
            text += exposition.generate_latest(self._of_buckets)
        return text, exposition.CONTENT_TYPE_LATEST


class _Requests(Collector):
    """Requests of one protocol by kind and outcome, and how long each kind took.

    Counted in plain numbers: Prometheus' own, three locked objects for each request, were a tenth of the processor time
    of a lease.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tallies: dict[str, _Tally] = {}

    def add(self, kind: str, outcome: str | int, seconds: float) -> None:
        """Count one answered request."""
        tally = self._tallies.get(kind)
        if tally is None:
            tally = self._tallies[kind] = _Tally()
        tally.outcomes[outcome] = tally.outcomes.get(outcome, 0) + 1
        tally.seconds += seconds
        tally.buckets[bisect_left(_SECONDS_BUCKETS, seconds)] += 1

    def collect(self) -> Iterator[Metric]:
        requests = families.counters(f"{self._name}_requests_total", {})
        seconds = families.histograms(f"{self._name}_request_seconds", {})
        for kind, tally in self._tallies.items():
            for outcome, count in tally.outcomes.items():
                requests.add_metric([kind, str(outcome)], count)
            so_far = itertools.accumulate(tally.buckets)
            bounds = [*map(str, _SECONDS_BUCKETS), "+Inf"]
            seconds.add_metric([kind], list(zip(bounds, so_far, strict=True)), tally.seconds)
        yield requests
        yield seconds


class _Bodies(Collector):
    """Bytes of the bodies of all HTTP requests and replies; plain numbers, as the requests."""

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0

    def collect(self) -> Iterator[Metric]:
        yield families.counter("tierline_node_http_received_bytes_total", self.received)
        yield families.counter("tierline_node_http_sent_bytes_total", self.sent)


class _Connections(Collector):
    """What came to an end before it was a request."""

    def __init__(self) -> None:
        self.limits_reached = dict.fromkeys(LIMITS, 0)
        self.failed_handshakes = 0

    def collect(self) -> Iterator[Metric]:
        yield families.counters("tierline_node_limits_reached_total", self.limits_reached)
        yield families.counter("tierline_node_tls_failed_handshakes_total", self.failed_handshakes)


class _Tally:
    """Requests of one kind: by outcome, and by the bucket of seconds they fell into; all seconds together."""

    __slots__ = ("buckets", "outcomes", "seconds")

    def __init__(self) -> None:
        self.outcomes: dict[str | int, int] = {}
        self.buckets = [0] * (len(_SECONDS_BUCKETS) + 1)
        self.seconds = 0.0


class _StoreCollector(Collector):
    """Reads one store's own counts when Prometheus asks for them."""

    def __init__(self, service: NodeService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        stats = self._service.store.stats()
        yield families.gauge("tierline_node_capacity_bytes", stats.capacity_bytes)
        yield families.gauges(
            "tierline_node_bytes",
            {
                "free": stats.free_bytes,
                "used": stats.used_bytes,
                "reserved": stats.reserved_bytes,
                "orphaned": stats.orphaned_bytes,
                "retired": stats.retired_bytes,
            },
        )
        yield families.gauges(
            "tierline_node_held_bytes", {"leased": stats.leased_bytes, "resting": stats.resting_bytes}
        )
        yield families.gauge("tierline_node_quarantined_bytes", stats.quarantined_bytes)
        yield families.gauge("tierline_node_pinned_bytes", stats.pinned_bytes)
        yield families.gauge("tierline_node_largest_free_bytes", stats.largest_free_bytes)
        yield families.gauge("tierline_node_objects", stats.objects)
        yield families.gauge("tierline_node_fragments", stats.fragments)
        yield families.gauge("tierline_node_unverified_objects", stats.unverified)
        yield families.gauge("tierline_node_slots", stats.slots)
        yield families.gauge("tierline_node_leases", stats.leases)
        yield families.gauge("tierline_node_adopted_objects", stats.adopted)
        yield families.gauge("tierline_node_dropped_objects", stats.dropped)
        yield families.counter("tierline_node_hits_total", stats.hits)
        yield families.counters(
            "tierline_node_misses_total", {str(reason): count for reason, count in stats.misses_by_reason.items()}
        )
        yield families.counter("tierline_node_hit_bytes_total", stats.hit_bytes)
        yield families.counter("tierline_node_commits_total", stats.commits)
        yield families.counter("tierline_node_commit_bytes_total", stats.commit_bytes)
        yield families.counter("tierline_node_aborts_total", stats.aborts)
        yield families.counter("tierline_node_refusals_total", stats.refusals)
        yield families.counter("tierline_node_leases_given_total", stats.leases_given)
        yield families.counter("tierline_node_leases_refused_total", stats.leases_refused)
        yield families.counter("tierline_node_leases_expired_total", stats.leases_expired)
        yield families.counter("tierline_node_leases_abandoned_total", stats.leases_abandoned)
        yield families.counters(
            "tierline_node_evictions_total", {str(reason): count for reason, count in stats.evictions.items()}
        )
        yield families.counter("tierline_node_reclaims_total", self._service.reclaims)
        yield families.gauge("tierline_node_remembered_objects", stats.ghost_entries)
        yield self._verifications()
        yield families.counter("tierline_node_scrubbed_bytes_total", self._service.scrubbed_bytes)
        yield self._waits()
        yield families.gauges(
            "tierline_node_waiting", {kind: self._service.waiters.waiting[kind] for kind in get_args(Kind)}
        )
        yield families.counter("tierline_node_segment_relinks_total", self._service.relinks)
        yield families.gauge("tierline_node_segment_named", self._service.is_named)

    def _verifications(self) -> Metric:
        return families.counters(
            "tierline_node_verifications_total",
            {
                (occasion, result): self._service.verifications[occasion, result]
                for occasion, result in itertools.product(get_args(Occasion), (Verdict.MATCH, Verdict.MISMATCH))
            },
        )

    def _waits(self) -> Metric:
        return families.counters(
            "tierline_node_waits_total",
            {
                (kind, outcome): self._service.waiters.ended[kind, outcome]
                for kind, outcome in itertools.product(get_args(Kind), ("settled", "timeout"))
            },
        )


class _BucketsCollector(Collector):
    """Reads what each bucket of one store has."""

    def __init__(self, service: NodeService) -> None:
        self._service = service
        self._named: set[str] = set()

    def collect(self) -> Iterator[Metric]:
        """Buckets by name while there are few; with more, those that came first, or had most, keep theirs for good.

        Names that changed would make counters of the others jump.
        """
        totals: dict[str, list[int]] = {}
        for found in self._service.store.namespaces():
            if found.namespace.salt != WHOLE:
                figures = [found.bytes, found.objects, found.hits, found.misses, found.evictions, found.refusals]
                _add(totals, found.namespace.bucket, figures)
        largest_first = sorted(totals, key=lambda bucket: totals[bucket], reverse=True)
        self._named |= {*[name for name in largest_first if name not in self._named][: MAX_BUCKETS - len(self._named)]}
        labelled: dict[str, list[int]] = {}
        for bucket, figures in totals.items():
            _add(labelled, bucket if bucket in self._named else OTHERS, figures)
        for index, (make, name) in enumerate(_OF_BUCKETS):
            yield make(name, {label: figures[index] for label, figures in labelled.items()})


class _NodeCollector(Collector):
    """Reads what concerns the node as a whole."""

    def __init__(
        self,
        service: NodeService,
        open_connections: Callable[[], tuple[int, int]],
        failed_reloads: Callable[[], Mapping[str, int]],
        certificate_expires: Callable[[], float],
        failed_duties: Mapping[str, int],
    ) -> None:
        self._service = service
        self._failed_duties = failed_duties
        self._open_connections = open_connections
        self._failed_reloads = failed_reloads
        self._certificate_expires = certificate_expires

    def collect(self) -> Iterator[Metric]:
        yield families.gauge("tierline_node_event_loop_lag_seconds", self._service.lag_s)
        yield families.counters("tierline_node_failed_reloads_total", self._failed_reloads())
        yield families.counters("tierline_node_failed_duties_total", self._failed_duties)
        if expires := self._certificate_expires():
            yield families.gauge("tierline_node_certificate_expiry_seconds", expires)
        http, unix = self._open_connections()
        yield families.gauges("tierline_node_connections", {"http": http, "socket": unix})


class _SpansCollector(Collector):
    """Says what became of spans."""

    def __init__(self, outcomes: Callable[[], dict[str, int]]) -> None:
        self._outcomes = outcomes

    def collect(self) -> Iterator[Metric]:
        yield families.counters("tierline_node_spans_total", self._outcomes())


class _EventsCollector(Collector):
    """Reads what was published."""

    def __init__(self, events: EventPublisher) -> None:
        self._events = events

    def collect(self) -> Iterator[Metric]:
        yield families.counters(
            "tierline_node_kv_events_total", {kind: self._events.counts[kind] for kind in get_args(EventKind)}
        )
        yield families.counters(
            "tierline_node_kv_replays_total",
            {answer: self._events.replays[answer] for answer in get_args(ReplayAnswer)},
        )


class _TiersCollector(Collector):
    """Reads what was counted of each tier."""

    def __init__(self, uses: Sequence[TierUse]) -> None:
        self._uses = uses

    def collect(self) -> Iterator[Metric]:
        hits = families.counters("tierline_node_tier_hits_total", {})
        misses = families.counters("tierline_node_tier_misses_total", {})
        seconds = families.histograms("tierline_node_tier_fetch_seconds", {})
        fetched = families.counters("tierline_node_tier_fetch_bytes_total", {})
        failures = families.counters("tierline_node_tier_failures_total", {})
        decisions = families.counters("tierline_node_tier_decisions_total", {})
        load = families.gauges("tierline_node_tier_load_seconds", {})
        prefill = families.gauges("tierline_node_tier_prefill_seconds", {})
        speed = families.gauges("tierline_node_tier_bytes_per_second", {})
        stores = families.counters("tierline_node_tier_stores_total", {})
        stored = families.counters("tierline_node_tier_store_bytes_total", {})
        for use in self._uses:
            tier, figures = use.tier.name, use.figures
            for source, count in figures.hits.items():
                hits.add_metric([tier, source], count)
            misses.add_metric([tier], figures.misses)
            bounds = [*map(str, SECONDS_BUCKETS), "+Inf"]
            so_far = itertools.accumulate(figures.fetches)
            seconds.add_metric([tier], list(zip(bounds, so_far, strict=True)), figures.fetch_seconds)
            fetched.add_metric([tier], figures.fetched_bytes)
            for reason, count in use.failures().items():
                failures.add_metric([tier, reason], count)
            for decision in ("load", "recompute", "unknown"):
                decisions.add_metric([tier, decision], figures.decisions[decision])
            if figures.latest is not None and figures.latest.load_s is not None:
                load.add_metric([tier], figures.latest.load_s)
            if figures.latest is not None and figures.latest.prefill_s is not None:
                prefill.add_metric([tier], figures.latest.prefill_s)
            if (bytes_per_s := figures.speed.bytes_per_s) is not None:
                speed.add_metric([tier], bytes_per_s)
            for result in get_args(StoreResult):
                stores.add_metric([tier, result], figures.stores[result])
            stored.add_metric([tier], figures.stored_bytes)
        yield from (hits, misses, seconds, fetched, failures, decisions, load, prefill, speed, stores, stored)


class _PoolCollector(Collector):
    """Reads who is in the pool, and how the one stands who says so."""

    def __init__(self, members: Callable[[], Sequence[MemberFigures]], source: MemberSource | None) -> None:
        self._members = members
        self._source = source

    def collect(self) -> Iterator[Metric]:
        members = self._members()
        states = Counted(member.state for member in members)
        yield families.gauges("tierline_node_pool_members", states)
        entries = next((member.entries for member in members if member.state == SELF), None)
        yield families.gauge("tierline_node_directory_entries", entries or 0)
        source = self._source
        is_behind, failures = (False, 0) if source is None else (source.is_behind, source.failures)
        yield families.gauge("tierline_node_pool_source_behind", is_behind)
        yield families.counter("tierline_node_pool_source_failures_total", failures)


class _SegmentsCollector(Collector):
    """Reads the counts of several stores, one collector each; each sample gets its segment's name as a label."""

    def __init__(self, collectors: Mapping[str, Collector]) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Metric]:
        for of_each in zip(*(collector.collect() for collector in self._collectors.values()), strict=True):
            family = of_each[0]
            family.samples = [
                sample._replace(labels={**sample.labels, "segment": name})
                for name, one in zip(self._collectors, of_each, strict=True)
                for sample in one.samples
            ]
            yield family


def _add(totals: dict[str, list[int]], name: str, figures: list[int]) -> None:
    totals[name] = [a + b for a, b in zip(totals.get(name, [0] * len(figures)), figures, strict=True)]
