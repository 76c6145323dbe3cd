"""Which segment a bucket, a lease and a listing belong to."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tierline.configuration import load
from tierline.errors import ConfigurationError
from tierline.node.admin import Administration, Asker
from tierline.node.config import NodeConfig
from tierline.node.metrics import NodeMetrics
from tierline.node.segments import Segments, ServedSegment
from tierline.node.service import NodeService
from tierline.store import ObjectKey, Store
from tierline.wire import routes
from tierline.wire.http import HttpRefusal

CAPACITY = 4 * 1024 * 1024
BUCKETS = {"first": ("*",), "a": ("team-a", "team-a/*", "t*"), "b": ("team-b*",)}

ASKER = Asker("test", "test")


@pytest.fixture
def segments(shared_memory: Path) -> Iterator[Segments]:
    served = []
    for name, buckets in BUCKETS.items():
        service = NodeService(Store.open(shared_memory, name, CAPACITY, clock=time.monotonic))
        served.append(ServedSegment(name, buckets, service, Administration(service)))
    yield Segments(served)
    for segment in served:
        segment.service.stop_verifying()
        segment.service.close()


def store(segments: Segments, bucket: str, name: str) -> None:
    service = segments.of_bucket(bucket).service
    owner = service.new_owner()
    slot = service.write(ObjectKey(bucket, name), 10, owner)
    service.commit(slot.id, owner, 0, ObjectKey(bucket, name), 10)


@pytest.mark.parametrize(
    ("bucket", "segment"),
    [
        ("team-a", "a"),
        ("team-a/llama", "a"),
        ("team-ab", "a"),
        ("team-b", "b"),
        ("team-b2", "b"),
        ("t", "a"),
        ("lmcache", "first"),
    ],
)
def test_a_bucket_is_in_the_segment_whose_pattern_says_most(segments: Segments, bucket: str, segment: str) -> None:
    assert segments.of_bucket(bucket).name == segment
    assert segments.of(routes.PutObject(bucket, "k")).name == segment


def test_a_lease_belongs_to_the_segment_that_gave_it(segments: Segments) -> None:
    for bucket in ("lmcache", "team-a", "team-b"):
        store(segments, bucket, "k")
        segment = segments.of_bucket(bucket)
        found = segment.service.store.lease(ObjectKey(bucket, "k"), "test", 10)
        assert found is not None
        assert segments.of(routes.ReleaseLease(found[0])) is segment
    assert segments.of(routes.ReleaseLease("of-nobody")) is segments.first


def test_a_segment_is_found_by_its_name_and_the_first_without_one(segments: Segments) -> None:
    assert segments.named("") is segments.first
    assert [segment.name for segment in segments] == [
        found.name for name in BUCKETS if (found := segments.named(name)) is not None
    ]
    assert segments.named("absent") is None


async def pages(segments: Segments, limit: int) -> list[str]:
    names: list[str] = []
    cursor = ""
    while True:
        page = json.loads(await segments.answer(routes.ListObjects(None, "", None, cursor, limit), b"", ASKER))
        names.extend(found["name"] for found in page["objects"])
        cursor = page["cursor"]
        if not cursor:
            return names


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_a_listing_of_every_bucket_goes_through_all_segments(segments: Segments, limit: int) -> None:
    expected = []
    for bucket in ("lmcache", "team-a", "team-b"):
        for number in range(3):
            expected.append(f"{bucket}-{number}")
            store(segments, bucket, expected[-1])
    assert sorted(await pages(segments, limit)) == expected


async def test_flushing_every_bucket_empties_all_segments(segments: Segments) -> None:
    for bucket in ("lmcache", "team-a", "team-b"):
        store(segments, bucket, "k")
    namespaces = json.loads(await segments.answer(routes.ListNamespaces(), b"", ASKER))["namespaces"]
    assert {found["bucket"] for found in namespaces} >= {"lmcache", "team-a", "team-b"}
    assert json.loads(await segments.answer(routes.FlushObjects(None, None), b"", ASKER)) == {"removed": 3}
    assert await pages(segments, 10) == []


@pytest.mark.parametrize("cursor", ["3.", "x", "-1.", "."])
async def test_a_cursor_that_no_page_gave_is_refused(segments: Segments, cursor: str) -> None:
    with pytest.raises(HttpRefusal, match="allowed: what the page before gave"):
        await segments.answer(routes.ListLeases(cursor, 10), b"", ASKER)


def test_series_are_labelled_where_there_are_several_segments(segments: Segments) -> None:
    store(segments, "team-a", "k")
    services = {segment.name: segment.service for segment in segments}
    metrics = NodeMetrics(segments.first.service, lambda: (0, 0), dict, float, services)
    lines = metrics.exposition()[0].decode().splitlines()
    assert 'tierline_node_objects{segment="a"} 1.0' in lines
    assert 'tierline_node_objects{segment="first"} 0.0' in lines
    assert sum(line.startswith("tierline_node_bytes{") for line in lines) == 15
    assert sum(line.startswith("tierline_node_event_loop_lag_seconds") for line in lines) == 1


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([{"name": "shared_memory", "capacity": "2MiB", "buckets": ["a"]}], "segments of different names"),
        ([{"name": "s", "capacity": "2MiB", "buckets": ["*"]}], "each bucket in one segment"),
        ([{"name": "s", "capacity": "2MiB", "buckets": ["a", "a"]}], "each bucket in one segment"),
        (
            [{"name": "s", "capacity": "2MiB", "buckets": ["a*b"]}],
            r"\[0\]\[buckets\]\[0\]: got 'a\*b'; allowed: ",
        ),
        ([{"name": "s", "capacity": "1MiB", "buckets": ["a"]}], r"\[0\]\[capacity\]: .* greater than or equal to"),
        ([{"name": "../s", "capacity": "2MiB", "buckets": ["a"]}], r"\[0\]\[name\]: got '../s'"),
        ([{"name": "s", "capacity": "2MiB", "buckets": []}], r"\[0\]\[buckets\]: "),
        ([{"name": "s", "buckets": ["a"]}], r"SEGMENTS\[0\]\[capacity\]: got None; allowed: a value"),
    ],
)
def test_segments_that_make_no_sense_are_refused(segments: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(NodeConfig, None, {}, {"TIERLINE_NODE_SEGMENTS": json.dumps(segments)})
