"""The proxy's metrics: HyperPod's five of invocations, by its names and labels, and what the proxy does about them.

Rule: a number is counted where it comes about, and becomes a family when it is scraped.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tierline.metrics import HYPERPOD_LABELS, families
from tierline.router.metrics import Histogram

_MILLISECONDS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class ProxyMetrics(Collector):
    """Everything that a proxy counts.

    Parameters
    ----------
    dimensions
        HyperPod's labels and what they say here.
    """

    def __init__(self, dimensions: Mapping[str, str]) -> None:
        self._place = tuple(dimensions[label] for label in HYPERPOD_LABELS)
        self.concurrent = 0
        """Invocations at the model at this moment."""
        self._invocations = self._errors = 0
        self._latency, self._ttfb = Histogram(_MILLISECONDS), Histogram(_MILLISECONDS)
        self._queue = Histogram(_SECONDS)
        self._requests: Counter[tuple[str, ...]] = Counter()
        """By kind and status."""
        self.aborts: Counter[str] = Counter()
        """Answers that did not come to their end, by who left."""
        self.limits_reached: Counter[str] = Counter()
        """Invocations turned away, by the code of the error that they got."""
        self.captures: Counter[str] = Counter({"written": 0, "dropped": 0})
        """Records of invocations, by what became of them."""
        self.capture_failures = 0
        self.connections_refused = 0
        self.gauges: dict[str, Callable[[], float]] = {}
        """Read off the running parts when they are scraped, by their names in the catalogue."""
        self.failed_duties: Mapping[str, int] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def request_ended(self, kind: str, status: int) -> None:
        """A request that was passed on, or turned away, is over; status 0: its client left before its answer."""
        self._requests[kind, str(status)] += 1

    def request_refused(self, status: int) -> None:
        """See :class:`~tierline.router.proxy.serving.Counts`."""
        self._requests["refused", str(status)] += 1

    def waited(self, seconds: float) -> None:
        """An invocation waited for a place."""
        self._queue.observe(seconds)

    def invocation_ended(self, *, is_error: bool, ttfb_s: float | None, latency_s: float | None) -> None:
        """An invocation is over.

        Parameters
        ----------
        is_error
            Its answer has a status from 400 on, or broke.
        ttfb_s, latency_s
            From its being sent to the model to the first byte of the answer's body, and to the last; ``None`` where it
            did not come to that.
        """
        self._invocations += 1
        self._errors += is_error
        if ttfb_s is not None:
            self._ttfb.observe(ttfb_s * 1000)
        if latency_s is not None:
            self._latency.observe(latency_s * 1000)

    def exposition(self) -> tuple[bytes, bytes]:
        """Return the text for Prometheus, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST.encode()

    def collect(self) -> Iterable[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        place = self._place
        yield families.counters("model_invocations_total", {place: self._invocations})
        yield families.counters("model_errors_total", {place: self._errors})
        yield families.gauges("model_concurrent_requests", {place: self.concurrent})
        for name, histogram in (
            ("model_latency_milliseconds", self._latency),
            ("model_ttfb_milliseconds", self._ttfb),
        ):
            yield families.histograms(name, {place: (histogram.cumulative(), histogram.total)})
        yield families.counters("tierline_proxy_requests_total", self._requests)
        yield families.counters("tierline_proxy_aborts_total", self.aborts)
        yield families.counters("tierline_proxy_limits_reached_total", self.limits_reached)
        yield families.histogram("tierline_proxy_queue_seconds", self._queue.cumulative(), self._queue.total)
        yield families.counter("tierline_proxy_connections_refused_total", self.connections_refused)
        yield families.counters("tierline_proxy_capture_records_total", self.captures)
        yield families.counter("tierline_proxy_capture_failures_total", self.capture_failures)
        yield families.counters("tierline_proxy_failed_duties_total", self.failed_duties)
        for name, read in self.gauges.items():
            yield families.gauge(name, read())
