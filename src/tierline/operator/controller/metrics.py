"""What the operator counts, read off where it is kept; ``docs/metrics.md`` lists it."""

from collections import Counter
from collections.abc import Callable, Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tierline.duties import Duties
from tierline.metrics import families
from tierline.operator.controller.leading import Leadership
from tierline.operator.controller.looping import Loop


class OperatorMetrics(Collector):
    """Reads them off where they are kept.

    Parameters
    ----------
    leadership
        Whether this operator leads.
    loop
        Returns the term of leadership that goes on, if any.
    duties
        Work beside it.
    """

    def __init__(self, leadership: Leadership, loop: Callable[[], Loop | None], duties: Duties) -> None:
        self._leadership = leadership
        self._loop = loop
        self._duties = duties

    def collect(self) -> Iterable[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        yield families.gauge("tierline_operator_leads", float(self._leadership.is_leader))
        yield families.counters("tierline_operator_failed_duties_total", self._duties.failures)
        yield families.counter("tierline_operator_lease_failures_total", self._leadership.failures)
        loop = self._loop()
        if loop is not None:
            yield from self._of_loop(loop)

    def _of_loop(self, loop: Loop) -> Iterable[Metric]:
        reconciler, children = loop.reconciler, loop.children
        yield families.gauges("tierline_operator_resources", Counter(reconciler.states.values()))
        yield families.gauge("tierline_operator_children", len(children))
        yield families.gauge("tierline_operator_queue_resources", len(loop.queue))
        yield families.gauge("tierline_operator_working_resources", loop.queue.at_work)
        yield families.gauge("tierline_operator_watch_behind", float(loop.is_behind))
        yield families.counters("tierline_operator_looks_total", loop.looks)
        yield families.counters("tierline_operator_child_writes_total", children.writes)
        yield families.counter("tierline_operator_retries_total", loop.queue.retries)
        yield families.counter("tierline_operator_reasserted_total", children.reasserted)
        yield families.counter("tierline_operator_status_writes_total", reconciler.status_writes)
        yield families.counter("tierline_operator_secret_writes_total", reconciler.keeper.written)
        yield families.counter("tierline_operator_events_total", loop.events.told)
        yield families.counter("tierline_operator_failed_events_total", loop.events.failures)
        yield families.counter("tierline_operator_watch_failures_total", loop.watch_failures)
