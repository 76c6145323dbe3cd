"""Metrics as OTLP: what OpenTelemetry's own classes read from our JSON."""

from typing import Any

import msgspec
import pytest

from tierline.collector.otlp import export_request
from tierline.collector.pages import read_page

service = pytest.importorskip("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2")
json_format = pytest.importorskip("google.protobuf.json_format")

PAGE = b"""# HELP calls_total How many.
# TYPE calls_total counter
calls_total{route="a"} 3
calls_total{route="b"} 4
# TYPE depth gauge
depth 2.5
nothing NaN
# TYPE seconds histogram
seconds_bucket{le="0.1",route="a"} 1
seconds_bucket{le="1.0",route="a"} 3
seconds_bucket{le="+Inf",route="a"} 4
seconds_sum{route="a"} 12.5
seconds_count{route="a"} 4
# TYPE shrinks histogram
shrinks_bucket{le="1.0"} 3
shrinks_bucket{le="+Inf"} 2
# TYPE size summary
size{quantile="0.5"} 7
size_sum 20
size_count 3
"""


def read(page: bytes, labels: dict[str, str] | None = None) -> dict[str, Any]:
    """Return each metric that the protobuf classes find in our JSON, by its name."""
    body = msgspec.json.encode(export_request(read_page(page, labels or {}), 1_700_000_000.5, "1"))
    request = service.ExportMetricsServiceRequest()
    json_format.Parse(body, request)  # refuses fields that there are not
    (resource,) = request.resource_metrics
    (scope,) = resource.scope_metrics
    return {metric.name: metric for metric in scope.metrics}


def attributes(point: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in point.attributes}


def test_counters_are_cumulative_sums_under_their_own_name() -> None:
    metric = read(PAGE, {"pod_name": "demo-1", "cluster_id": ""})["calls_total"]
    assert (metric.description, metric.sum.is_monotonic, metric.sum.aggregation_temporality) == ("How many.", True, 2)
    points = {attributes(point)["route"]: point for point in metric.sum.data_points}
    assert {route: point.as_double for route, point in points.items()} == {"a": 3, "b": 4}
    assert attributes(points["a"]) == {"route": "a", "pod_name": "demo-1"}
    assert points["a"].time_unix_nano == 1_700_000_000_500_000_000


def test_gauges_and_what_has_no_type_are_gauges_and_what_is_no_number_is_left_out() -> None:
    metrics = read(PAGE)
    assert [point.as_double for point in metrics["depth"].gauge.data_points] == [2.5]
    assert "nothing" not in metrics


def test_histograms_have_what_fell_into_each_bucket() -> None:
    metrics = read(PAGE)
    (point,) = metrics["seconds"].histogram.data_points
    assert list(point.bucket_counts) == [1, 2, 1]
    assert list(point.explicit_bounds) == [0.1, 1.0]
    assert (point.count, point.sum, attributes(point)) == (4, 12.5, {"route": "a"})
    assert "shrinks" not in metrics


def test_summaries_keep_their_quantiles() -> None:
    (point,) = read(PAGE)["size"].summary.data_points
    assert [(each.quantile, each.value) for each in point.quantile_values] == [(0.5, 7)]
    assert (point.count, point.sum) == (3, 20)
