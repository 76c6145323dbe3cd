"""The router's metrics: plain numbers on the way of a request, turned into Prometheus families when they are scraped.

An exchange is counted once, when it has ended, from the times and reasons it kept. A labelled counter of
prometheus-client costs about 1 µs; ours is a dictionary entry.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tierline.metrics import families

if TYPE_CHECKING:
    from tierline.router.choosing import Arm, Choosing
    from tierline.router.endpoints import Endpoint, Endpoints
    from tierline.router.pairs import Pairing
    from tierline.router.proxy.exchange import Exchange

_FAST = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Observations per bucket. Invariant: ``counts`` has one more place than ``bounds``, for what is above."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> Iterator[tuple[str, float]]:
        """Yield ``(upper bound, observations up to it)``."""
        sum_so_far = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            sum_so_far += count
            yield bound, float(sum_so_far)


class ArmCounts:
    """What is counted of the requests of one strategy."""

    __slots__ = ("decisions", "queued", "requests", "retries", "tokens", "ttft")

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        """By route and status."""
        self.decisions: Counter[str] = Counter()
        """By reason."""
        self.retries: Counter[str] = Counter()
        """By reason."""
        self.tokens: Counter[str] = Counter()
        """Of prompts whose answers tell what was cached: ``prompt``, ``predicted``, ``cached``."""
        self.queued, self.ttft = Histogram(_SLOW), Histogram(_SLOW)


class RouterMetrics(Collector):
    """Everything that the router counts.

    Parameters
    ----------
    choosing
        Its arms count for themselves; all together are the router's figures.
    endpoints
        Read when scraped: the series of one that left are gone.
    """

    def __init__(self, choosing: "Choosing", endpoints: "Endpoints") -> None:
        self._choosing = choosing
        self._endpoints = endpoints
        self._answered: Counter[tuple[str, int]] = Counter()
        """Requests by route and status that were no arm's."""
        self._aborts: Counter[str] = Counter()
        self._blocks: Counter[tuple[str, ...]] = Counter()
        """By what they are, and whether the answer told what was cached."""
        self._duration = Histogram(_SLOW)
        self._overhead, self._choices, self._tokens = Histogram(_FAST), Histogram(_FAST), Histogram(_FAST)
        self._itl = Histogram(_GAPS)
        self._hedges: Counter[str] = Counter()
        self._pairings: Counter[str] = Counter()
        self._fallbacks: Counter[str] = Counter()
        self._prefill = Histogram(_SLOW)
        self.connections_refused = 0
        self.bypasses: Counter[str] = Counter()
        """Requests that went without something, by what it was."""
        self.limits_reached: Counter[str] = Counter()
        """Requests turned away, by the code of the error that they got."""
        self.gauges: dict[str, Callable[[], float]] = {}
        """Read when scraped, by their names in the catalogue."""
        self.counters: dict[str, Callable[[], int]] = {}
        """The same, of what only grows."""
        self.failed_duties: Mapping[str, int] = {}
        """How often each of the router's duties has failed, kept up to date by their owner."""
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def show(self, collector: Collector) -> None:
        """Have another's metrics on the same page."""
        self._registry.register(collector)

    # Counting ---------------------------------------------------------------------------------------------------------

    def exchange_ended(self, exchange: "Exchange") -> None:
        """An exchange with an endpoint is over, well or not."""
        counts = exchange.arm.counts
        counts.requests[exchange.route, exchange.status] += 1
        decision = exchange.decision
        if decision is not None:
            counts.decisions[decision.reason] += 1
            told = "no"
            if exchange.prompt_tokens and exchange.actual_cached_tokens is not None:
                told = "yes"
                cached = exchange.actual_cached_tokens / exchange.prompt_tokens
                self._blocks["actual", told] += round(decision.total_blocks * cached)
                if exchange.arm.is_compared:
                    counts.tokens["prompt"] += exchange.prompt_tokens
                    counts.tokens["predicted"] += decision.predicted_cached_tokens
                    counts.tokens["cached"] += exchange.actual_cached_tokens
            self._blocks["total", told] += decision.total_blocks
            self._blocks["best", told] += decision.best_blocks
            self._blocks["matched", told] += decision.matched_blocks
        if exchange.queued_s:
            counts.queued.observe(exchange.queued_s)
        if exchange.overhead_s is not None:
            self._overhead.observe(exchange.overhead_s)
        if exchange.tokens_s is not None:
            self._tokens.observe(exchange.tokens_s)
        if exchange.choosing_s is not None:
            self._choices.observe(exchange.choosing_s)
        if exchange.itl_s is not None:
            self._itl.observe(exchange.itl_s)
        if exchange.is_event_stream and exchange.answered_at:
            counts.ttft.observe(exchange.answered_at - exchange.started_at)
        self._duration.observe(exchange.ended_at - exchange.started_at)
        if exchange.retries:
            counts.retries.update(exchange.retries)
        if exchange.hedge:
            self._hedges[exchange.hedge] += 1
        if exchange.pairing is not None:
            self._count_pairing(exchange.pairing)
        if exchange.aborted_by:
            self._aborts[exchange.aborted_by] += 1

    def _count_pairing(self, pairing: "Pairing") -> None:
        self._pairings[pairing.outcome] += 1
        if pairing.outcome == "paired":
            self._prefill.observe(pairing.seconds)
        elif pairing.outcome == "fallback":
            self._fallbacks[pairing.why] += 1

    def request_answered(self, route: str, status: int) -> None:
        """A request was answered by the router itself."""
        self._answered[route, status] += 1

    def request_refused(self, status: int) -> None:
        """A request was refused: it is malformed, too large, or for nothing that is here."""
        self._answered["refused", status] += 1

    # Scraping ---------------------------------------------------------------------------------------------------------

    def families(self) -> list[Metric]:
        """Return all metrics of this process."""
        return list(self._registry.collect())

    def exposition(self) -> tuple[bytes, bytes]:
        """Return the text for Prometheus, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST.encode()

    def collect(self) -> Iterable[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        endpoints, arms = self._endpoints.all, self._choosing.arms
        requests = sum((arm.counts.requests for arm in arms), self._answered)
        retries = sum((arm.counts.retries for arm in arms), Counter[str]())
        decisions: Counter[tuple[str, ...]] = Counter()
        for arm in arms:
            for reason, number in arm.counts.decisions.items():
                decisions[arm.strategy.name, reason] += number
        yield families.counters(
            "tierline_router_requests_total",
            {(route, str(status)): count for (route, status), count in requests.items()},
        )
        yield families.counters("tierline_router_decisions_total", decisions)
        yield families.counters("tierline_router_prompt_blocks_total", self._blocks)
        yield families.counters("tierline_router_retries_total", retries)
        yield families.counters("tierline_router_aborts_total", self._aborts)
        yield families.counters("tierline_router_hedges_total", self._hedges)
        yield families.counters("tierline_router_pairings_total", self._pairings)
        yield families.counters("tierline_router_prefill_fallbacks_total", self._fallbacks)
        yield _histogram("tierline_router_prefill_seconds", self._prefill)
        yield families.counter("tierline_router_connections_refused_total", self.connections_refused)
        yield families.counters("tierline_router_limits_reached_total", self.limits_reached)
        yield families.counters("tierline_router_bypasses_total", self.bypasses)
        yield from self._arms()
        yield _histogram("tierline_router_queue_seconds", _sum(arm.counts.queued for arm in arms))
        yield _histogram("tierline_router_ttft_seconds", _sum(arm.counts.ttft for arm in arms))
        yield _histogram("tierline_router_duration_seconds", self._duration)
        yield _histogram("tierline_router_overhead_seconds", self._overhead)
        yield _histogram("tierline_router_tokens_seconds", self._tokens)
        yield _histogram("tierline_router_choosing_seconds", self._choices)
        yield _histogram("tierline_router_itl_seconds", self._itl)
        yield families.counters(
            "tierline_router_cached_tokens_total",
            {
                (endpoint.url, kind): count
                for endpoint in endpoints
                for kind, count in (
                    ("predicted", endpoint.predicted_cached_tokens),
                    ("actual", endpoint.actual_cached_tokens),
                )
            },
        )
        yield _per_endpoint("tierline_router_inflight", endpoints, lambda e: e.own_inflight)
        yield _per_endpoint("tierline_router_queued_tokens", endpoints, lambda e: e.own_queued_tokens)
        yield _per_endpoint("tierline_router_endpoint_draining", endpoints, lambda e: e.is_draining)
        yield _per_endpoint("tierline_router_endpoint_up", endpoints, lambda e: e.is_up is True)
        yield _per_endpoint("tierline_router_prefill_tokens_per_second", endpoints, lambda e: e.prefill_rate or 0)
        yield families.counters(
            "tierline_router_ejections_total", {endpoint.url: endpoint.ejections for endpoint in endpoints}
        )
        yield families.counters(
            "tierline_router_answers_total",
            {
                (endpoint.url, outcome): count
                for endpoint in endpoints
                for outcome, count in (("good", endpoint.answers_good), ("failed", endpoint.answers_failed))
            },
        )
        yield families.counters("tierline_router_failed_duties_total", self.failed_duties)
        models = {"", *(rule.model for rule in self._choosing.rules), *self._choosing.turned_off}
        yield families.gauges(
            "tierline_router_affinity", {model: not self._choosing.is_turned_off(model) for model in sorted(models)}
        )
        for name, read in self.gauges.items():
            yield families.gauge(name, read())
        for name, count in self.counters.items():
            yield families.counter(name, count())

    def _arms(self) -> Iterable[Metric]:
        """Yield what each arm counts, from its first request on."""
        arms = [arm for arm in self._choosing.arms if arm.counts.requests]
        requests: Counter[tuple[str, ...]] = Counter()
        for arm in arms:
            for (_, status), count in arm.counts.requests.items():
                requests[(*_labels_of(arm), str(status))] += count
        yield families.counters("tierline_router_arm_requests_total", requests)
        yield families.counters(
            "tierline_router_arm_retries_total", {_labels_of(arm): arm.counts.retries.total() for arm in arms}
        )
        yield families.counters(
            "tierline_router_arm_tokens_total",
            {(*_labels_of(arm), kind): count for arm in arms for kind, count in arm.counts.tokens.items()},
        )
        for name, attribute in (
            ("tierline_router_arm_ttft_seconds", "ttft"),
            ("tierline_router_arm_queue_seconds", "queued"),
        ):
            histograms: dict[tuple[str, ...], Histogram] = {
                _labels_of(arm): getattr(arm.counts, attribute) for arm in arms
            }
            yield families.histograms(name, {of: (each.cumulative(), each.total) for of, each in histograms.items()})


def _labels_of(arm: "Arm") -> tuple[str, str, str]:
    return arm.model, arm.name, arm.strategy.name


def _sum(histograms: "Iterable[Histogram]") -> Histogram:
    """Return all observations of histograms with the bounds of :data:`_SLOW`."""
    found = Histogram(_SLOW)
    for histogram in histograms:
        found.counts = [sum(pair) for pair in zip(found.counts, histogram.counts, strict=True)]
        found.total += histogram.total
    return found


def _histogram(name: str, histogram: Histogram) -> HistogramMetricFamily:
    return families.histogram(name, histogram.cumulative(), histogram.total)


def _per_endpoint(name: str, endpoints: "Sequence[Endpoint]", read: "Callable[[Endpoint], float]") -> GaugeMetricFamily:
    return families.gauges(name, {endpoint.url: read(endpoint) for endpoint in endpoints})
