"""What a node measures: every metric of the catalogue is set."""

import re
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path

import pytest

from tierline.metrics.node import NODE
from tierline.node.metrics import MAX_BUCKETS, NodeMetrics
from tierline.node.publishing import EventPublisher
from tierline.node.service import NodeService
from tierline.store import ObjectKey


@pytest.fixture
async def events(tmp_path: Path) -> AsyncIterator[EventPublisher]:
    publisher = EventPublisher(f"ipc://{tmp_path}/events")
    yield publisher
    publisher.close()


@pytest.fixture
def metrics(service: NodeService, events: EventPublisher) -> NodeMetrics:
    metrics = NodeMetrics(
        service, lambda: (3, 2), lambda: {"tokens": 1}, lambda: 2e9, failed_duties={"room": 1}, events=events
    )
    metrics.http_request("PutObject", HTTPStatus.OK, 0.01, 1000, 0)
    metrics.http_request("", HTTPStatus.BAD_REQUEST, 0.01, 0, 50)
    metrics.socket_request("PrefixLease", "ok", 0.001)
    metrics.show_spans(lambda: {"exported": 1})
    return metrics


def exposed(metrics: NodeMetrics) -> dict[str, float]:
    text, _ = metrics.exposition()
    samples = (line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def test_every_metric_of_the_catalogue_is_exported(metrics: NodeMetrics) -> None:
    names = re.findall(r"^# TYPE (\w+)", metrics.exposition()[0].decode(), re.MULTILINE)
    assert sorted(names) == sorted(each.name for each in NODE)


def test_the_bytes_of_all_states_add_up_to_the_capacity(service: NodeService, metrics: NodeMetrics) -> None:
    owner = service.new_owner()
    service.write(ObjectKey("b", "open"), 100_000, owner)
    slot = service.write(ObjectKey("b", "done"), 100_000, owner)
    service.commit(slot.id, owner, 0, ObjectKey("b", "done"), 100_000)
    found = exposed(metrics)
    states = [value for name, value in found.items() if name.startswith("tierline_node_bytes{")]
    assert sum(states) == found["tierline_node_capacity_bytes"]
    assert found['tierline_node_bytes{state="reserved"}'] == found['tierline_node_bytes{state="used"}'] == 131072


def test_requests_are_counted_by_what_they_were_and_how_they_ended(metrics: NodeMetrics) -> None:
    found = exposed(metrics)
    assert found['tierline_node_http_requests_total{route="PutObject",status="200"}'] == 1
    assert found['tierline_node_http_requests_total{route="none",status="400"}'] == 1
    assert found["tierline_node_http_received_bytes_total"] == 1000
    assert found["tierline_node_http_sent_bytes_total"] == 50
    assert found['tierline_node_socket_requests_total{outcome="ok",verb="PrefixLease"}'] == 1
    assert found['tierline_node_connections{protocol="http"}'] == 3


def test_few_buckets_have_series_of_their_own_and_keep_them(service: NodeService, metrics: NodeMetrics) -> None:
    def put(bucket: str, size: int) -> None:
        owner, key = service.new_owner(), ObjectKey(bucket, "object")
        slot = service.write(key, size, owner)
        service.commit(slot.id, owner, 0, key, size)

    def buckets() -> dict[str, float]:
        found = exposed(metrics).items()
        return {name: value for name, value in found if name.startswith("tierline_node_bucket_objects{")}

    for number in range(15):
        put(f"early{number}", 1)
    assert len(buckets()) == 15
    for number in range(10):
        put(f"late{number}", 1000)
    put("large", 200_000)

    found = buckets()
    assert len(found) == MAX_BUCKETS + 1
    assert found['tierline_node_bucket_objects{bucket="@others"}'] == 6
    assert found['tierline_node_bucket_objects{bucket="large"}'] == 1
    assert sum(found.values()) == 26
