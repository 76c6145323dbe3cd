"""The router's metrics: plain numbers on the way of a request, turned into Prometheus families when they are scraped.

An exchange is counted once, when it has ended, from the times and reasons it kept. A labelled counter of
prometheus-client costs about 1 µs; ours is a dictionary entry. ``docs/router.md`` lists every name; a test compares.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

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
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        """Read when scraped: name without prefix → what it is, and where it is read."""
        self.counters: dict[str, tuple[str, Callable[[], int]]] = {}
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
        yield _counter(
            "requests",
            "Requests by route and status; status 0: the client left before its answer began",
            ("route", "status"),
            {(route, str(status)): count for (route, status), count in requests.items()},
        )
        yield _counter(
            "decisions",
            "Choices of an endpoint",
            ("strategy", "reason"),
            decisions,
        )
        yield _counter(
            "prompt_blocks",
            "Blocks of prompts: all; what the best endpoint held; what the chosen one held; what answers told of",
            ("kind", "told"),
            self._blocks,
        )
        yield _counter("retries", "Further attempts", ("reason",), {(key,): n for key, n in retries.items()})
        yield _counter(
            "aborts", "Answers not ended, by who left", ("side",), {(k,): n for k, n in self._aborts.items()}
        )
        yield _counter(
            "hedges",
            "Requests sent to a second endpoint while the first was silent, by whether the second answered",
            ("outcome",),
            {(outcome,): count for outcome, count in self._hedges.items()},
        )
        yield _counter(
            "pairings",
            "Requests at endpoints that only decode, by whether another computed the prompt",
            ("outcome",),
            {(outcome,): count for outcome, count in self._pairings.items()},
        )
        yield _counter(
            "prefill_fallbacks",
            "Prompts that no prefill endpoint computed though one should have",
            ("reason",),
            {(reason,): count for reason, count in self._fallbacks.items()},
        )
        yield _histogram("prefill_seconds", "Spent on having a prompt computed elsewhere", self._prefill)
        yield _counter("connections_refused", "Connections above the limit", (), {(): self.connections_refused})
        yield _counter(
            "limits_reached",
            "Requests turned away",
            ("reason",),
            {(reason,): count for reason, count in self.limits_reached.items()},
        )
        yield _counter(
            "bypasses",
            "Requests that asked to go without",
            ("kind",),
            {(kind,): count for kind, count in self.bypasses.items()},
        )
        yield from self._arms()
        yield _histogram(
            "queue_seconds",
            "Spent waiting, by requests that had to wait for a place",
            _sum(arm.counts.queued for arm in arms),
        )
        yield _histogram(
            "ttft_seconds",
            "From a request to the first byte of its stream's body",
            _sum(arm.counts.ttft for arm in arms),
        )
        yield _histogram("duration_seconds", "From a request to the end of its answer", self._duration)
        yield _histogram("overhead_seconds", "From a request to its being sent on, without connecting", self._overhead)
        yield _histogram("tokens_seconds", "Of this, waiting for a prompt's tokens and a controller", self._tokens)
        yield _histogram("choosing_seconds", "Of this, choosing an endpoint", self._choices)
        yield _histogram("itl_seconds", "From one event of a stream to the next, its mean", self._itl)
        yield _counter(
            "cached_tokens",
            "Of prompts whose answers tell what was cached: what was predicted, and what they tell",
            ("endpoint", "kind"),
            {
                (endpoint.url, kind): count
                for endpoint in endpoints
                for kind, count in (
                    ("predicted", endpoint.predicted_cached_tokens),
                    ("actual", endpoint.actual_cached_tokens),
                )
            },
        )
        yield _per_endpoint("inflight", "Requests in flight", endpoints, lambda e: e.own_inflight)
        yield _per_endpoint(
            "queued_tokens", "Prompt tokens awaiting an answer", endpoints, lambda e: e.own_queued_tokens
        )
        yield _per_endpoint("endpoint_draining", "Whether it gets no new requests", endpoints, lambda e: e.is_draining)
        yield _per_endpoint("endpoint_up", "Whether the last health check passed", endpoints, lambda e: e.is_up is True)
        yield _per_endpoint(
            "prefill_tokens_per_second",
            "Measured by streams; 0: not yet",
            endpoints,
            lambda e: e.prefill_rate or 0,
        )
        yield _counter(
            "ejections",
            "Times an endpoint was passed over for a while",
            ("endpoint",),
            {(endpoint.url,): endpoint.ejections for endpoint in endpoints},
        )
        yield _counter(
            "answers",
            "Answers by whether they came to their end, or the endpoint failed to give one",
            ("endpoint", "outcome"),
            {
                (endpoint.url, outcome): count
                for endpoint in endpoints
                for outcome, count in (("good", endpoint.answers_good), ("failed", endpoint.answers_failed))
            },
        )
        yield _counter(
            "failed_duties",
            "Work beside serving that failed and is tried again",
            ("duty",),
            {(duty,): count for duty, count in self.failed_duties.items()},
        )
        affinity = GaugeMetricFamily(
            "tierline_router_affinity", "1, or 0 where it is turned off; without a model: for all", labels=("model",)
        )
        for model in sorted({"", *(rule.model for rule in self._choosing.rules), *self._choosing.turned_off}):
            affinity.add_metric((model,), not self._choosing.is_turned_off(model))
        yield affinity
        for name, (text, read) in self.gauges.items():
            yield GaugeMetricFamily(f"tierline_router_{name}", text, value=read())
        for name, (text, count) in self.counters.items():
            yield _counter(name, text, (), {(): count()})

    def _arms(self) -> Iterable[Metric]:
        """Yield what each arm counts, from its first request on."""
        arms = [arm for arm in self._choosing.arms if arm.counts.requests]
        labels = ("model", "arm", "strategy")
        requests: Counter[tuple[str, ...]] = Counter()
        for arm in arms:
            for (_, status), count in arm.counts.requests.items():
                requests[(*_labels_of(arm), str(status))] += count
        yield _counter("arm_requests", "Requests of an arm by status", (*labels, "status"), requests)
        yield _counter(
            "arm_retries",
            "Their further attempts",
            labels,
            {_labels_of(arm): arm.counts.retries.total() for arm in arms},
        )
        yield _counter(
            "arm_tokens",
            "Of their prompts whose answers tell what was cached: all, what was predicted as cached, and what was",
            (*labels, "kind"),
            {(*_labels_of(arm), kind): count for arm in arms for kind, count in arm.counts.tokens.items()},
        )
        for name, text, attribute in (
            ("arm_ttft_seconds", "Of an arm: from a request to the first byte of its stream's body", "ttft"),
            ("arm_queue_seconds", "Of an arm: spent waiting, by requests that had to wait for a place", "queued"),
        ):
            family = HistogramMetricFamily(f"tierline_router_{name}", text, labels=labels)
            for arm in arms:
                histogram: Histogram = getattr(arm.counts, attribute)
                family.add_metric(_labels_of(arm), list(histogram.cumulative()), histogram.total)
            yield family


def _labels_of(arm: "Arm") -> tuple[str, str, str]:
    return arm.model, arm.name, arm.strategy.name


def _sum(histograms: "Iterable[Histogram]") -> Histogram:
    """Return all observations of histograms with the bounds of :data:`_SLOW`."""
    found = Histogram(_SLOW)
    for histogram in histograms:
        found.counts = [sum(pair) for pair in zip(found.counts, histogram.counts, strict=True)]
        found.total += histogram.total
    return found


def _counter(name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"tierline_router_{name}", text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    return HistogramMetricFamily(
        f"tierline_router_{name}", text, buckets=list(histogram.cumulative()), sum_value=histogram.total
    )


def _per_endpoint(
    name: str, text: str, endpoints: "Sequence[Endpoint]", read: "Callable[[Endpoint], float]"
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"tierline_router_{name}", text, labels=("endpoint",))
    for endpoint in endpoints:
        family.add_metric((endpoint.url,), read(endpoint))
    return family
