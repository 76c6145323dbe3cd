"""What all workers say, made one answer; counts never go down."""

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from tierline.router.admin.documents import DecisionEntry, DecisionList, EndpointList, EndpointState
from tierline.router.workers.board import Load, endpoint_key
from tierline.router.workers.gathering import (
    MetricsBook,
    encode_families,
    families_of,
    merge_decisions,
    merge_endpoints,
)


def state(url: str = "http://a:1", **known: object) -> EndpointState:
    fields: dict[str, object] = dict.fromkeys(EndpointState.__struct_fields__)
    fields |= {
        "url": url,
        "state": "serving",
        "models": ["m"],
        "ejections": 1,
        "ejected_for_s": 0.0,
        "rests_for_s": 0.0,
    }
    fields |= {"inflight": 2, "inflight_elsewhere": 0, "queued_tokens": 10, "idle_connections": 1}
    return EndpointState(**(fields | known))  # type: ignore[arg-type]


def test_loads_are_added_up_and_the_worst_state_is_what_is_said() -> None:
    first = state(prefill_tokens_per_second=100.0, models=None)
    second = state(state="ejected", ejected_for_s=3.0, capacity_blocks=10, block_tokens=16, joined_s=5.0)
    lists = [EndpointList([first, state("http://b:1")]), EndpointList([second])]
    merged, other = merge_endpoints(lists, [Load(endpoint_key("http://a:1"), 7, 70)]).endpoints
    assert (merged.inflight_elsewhere, other.inflight_elsewhere) == (7, 0)
    assert (merged.inflight, merged.queued_tokens, merged.ejections, merged.idle_connections) == (4, 20, 2, 2)
    assert (merged.state, merged.ejected_for_s, merged.joined_s) == ("ejected", 3.0, 5.0)
    assert (merged.capacity_blocks, merged.block_tokens, merged.models) == (10, 16, ["m"])
    assert merged.prefill_tokens_per_second == 100.0
    assert other == state("http://b:1")


def entry(ended: float) -> DecisionEntry:
    unsaid: dict[str, object] = dict.fromkeys(DecisionEntry.__struct_fields__)
    return DecisionEntry(**(unsaid | {"request_id": str(ended), "time": ended - 1.0, "seconds": 1.0}))  # type: ignore[arg-type]


def test_decisions_come_in_the_order_in_which_they_ended() -> None:
    merged = merge_decisions([DecisionList([entry(5), entry(2)]), DecisionList([entry(4), entry(3)])])
    assert [decision.request_id for decision in merged.decisions] == ["5", "4", "3", "2"]


def said(requests: int, up: bool, speed: float) -> bytes:
    counter = CounterMetricFamily("tierline_router_requests", "Requests", labels=("route",))
    counter.add_metric(("chat",), requests)
    gauges = []
    states = ("affinity", True), ("endpoint_up", up)
    for name, value in (*states, ("prefill_tokens_per_second", speed), ("inflight", requests)):
        gauge = GaugeMetricFamily(f"tierline_router_{name}", name, labels=("endpoint",))
        gauge.add_metric(("a",), value)
        gauges.append(gauge)
    histogram = HistogramMetricFamily(
        "tierline_router_ttft_seconds", "t", buckets=[("1.0", requests), ("+Inf", 2 * requests)], sum_value=requests
    )
    return encode_families(families_of([counter, *gauges, histogram]))


def read(book: MetricsBook, own: list[Metric] | None = None) -> dict[tuple[str, str], float]:
    page = book.page(own or []).decode()
    return {
        (sample.name.removeprefix("tierline_router_"), sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_counts_and_loads_are_added_up_and_states_are_not() -> None:
    book = MetricsBook()
    book.said(0, said(3, True, 100.0))
    book.said(1, said(4, False, 0.0))
    found = read(book, [GaugeMetricFamily("tierline_router_workers", "w", value=2)])
    assert found["requests_total", ""] == 7
    assert found["inflight", ""] == 7
    assert (found["affinity", ""], found["endpoint_up", ""]) == (1, 0)
    assert found["prefill_tokens_per_second", ""] == 100
    assert (found["ttft_seconds_bucket", "1.0"], found["ttft_seconds_bucket", "+Inf"]) == (7, 14)
    assert (found["ttft_seconds_count", ""], found["ttft_seconds_sum", ""]) == (14, 7)
    assert found["workers", ""] == 2


def test_the_counts_of_a_worker_that_died_stay_and_its_gauges_go() -> None:
    book = MetricsBook()
    book.said(0, said(3, True, 100.0))
    book.said(1, said(4, True, 100.0))
    book.died(1)
    found = read(book)
    assert (found["requests_total", ""], found["inflight", ""]) == (7, 3)
    book.said(1, said(1, True, 50.0))  # who came after it
    assert read(book)["requests_total", ""] == 8
    book.died(1)
    book.died(1)
    assert read(book)["requests_total", ""] == 8


def test_one_that_is_late_is_answered_for_with_what_it_said_last() -> None:
    book = MetricsBook()
    book.said(0, said(3, True, 100.0))
    book.said(1, said(4, True, 100.0))
    book.said(0, said(5, True, 100.0))
    assert read(book)["requests_total", ""] == 9
