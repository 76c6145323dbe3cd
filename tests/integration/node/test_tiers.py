"""Real nodes with a real Redis below them: each on and off, over both protocols, through failures and restarts."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.integration.node.processes import MIB, NodeProcess, store, wait_until
from tests.integration.pool import redis_servers
from tests.integration.pool.redis_servers import needs_redis

from tierline.client import NodeClient
from tierline.tracing.reading import TraceTree, read_traces
from tierline.wire.messages import Leased

NAMES = [f"{number:064x}@bf16.x.c256.tp0-1.pp0-1.g0" for number in range(6)]
SIZE = 300_000
StartNode = Callable[..., NodeProcess]

pytestmark = needs_redis


@pytest.fixture
def redis_port(tmp_path: Path) -> Iterator[int]:
    with redis_servers.one(tmp_path) as port:
        yield port


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[StartNode]:
    started: list[NodeProcess] = []

    def start(**settings: Any) -> NodeProcess:
        usual: dict[str, Any] = {"grace_s": 0.2, "quarantine_s": 0.2, "lookup_cap_ms": 30_000}
        started.append(NodeProcess(tmp_path, **{**usual, **settings}))
        return started[-1]

    yield start
    for node in started:
        node.close()


def content_of(name: str) -> bytes:
    return name.encode() * (SIZE // len(name))


def compute(client: NodeClient, names: Sequence[str]) -> None:
    for name in names:
        store(client, name, content_of(name))


def lease(client: NodeClient, names: Sequence[str], wait_s: float = 20.0) -> Leased:
    return client.prefix_lease("b", list(names), 30.0, wait_s=wait_s, anchor=NAMES[0][:64], timeout_s=wait_s + 10)


def read(client: NodeClient, names: Sequence[str], wait_s: float = 20.0) -> tuple[int, dict[str, int]]:
    """Lease a prefix and compare every byte of it; returns how long it was, and who brought it."""
    leased = lease(client, names, wait_s)
    for name, found in zip(names, leased.objects, strict=False):
        content = bytearray(found.size)
        client.mapping.read_into(found.extents, content, checksum=found.checksum)
        assert content == content_of(name)
    if leased.lease:
        client.release(leased.lease)
    return len(leased.objects), leased.sources


def figure(node: NodeProcess, name: str) -> float:
    lines = node.get("/metrics")[1].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def flush(node: NodeProcess) -> None:
    """Empty a node's memory, and nothing below it."""
    with node.http() as http:
        assert http.request("DELETE", "/v1/kv?flush")[0] == 200


def stored_below(node: NodeProcess) -> int:
    return int(figure(node, 'tierline_node_tier_stores_total{result="stored"'))


@pytest.mark.parametrize(("l1", "l2"), list(itertools.product([True, False], repeat=2)))
def test_what_one_node_computed_is_a_hit_on_another_as_far_as_l1_and_l2_are_on(
    start_node: StartNode, redis_port: int, l1: bool, l2: bool
) -> None:
    tiers = f"redis://127.0.0.1:{redis_port}" if l2 else ""
    first, second = (start_node(l1=l1, tiers=tiers) for _ in range(2))
    with first.connect(writer=True) as writer, second.connect() as reader:
        compute(writer, NAMES)
        if l2:
            wait_until(lambda: stored_below(first) == len(NAMES))
        wait_until(lambda: first.stats["store"]["objects"] == (len(NAMES) if l1 else 0))
        assert read(writer, NAMES) == (6 if l1 or l2 else 0, {} if l1 or not l2 else {"redis": 6})
        assert read(reader, NAMES) == (6 if l2 else 0, {"redis": 6} if l2 else {})
        wait_until(lambda: second.stats["store"]["objects"] == (len(NAMES) if l1 and l2 else 0))


def test_a_node_that_was_killed_and_emptied_finds_in_the_tier_what_it_had(
    start_node: StartNode, redis_port: int
) -> None:
    node = start_node(tiers=f"redis://127.0.0.1:{redis_port}")
    with node.connect(writer=True) as client:
        compute(client, NAMES)
        wait_until(lambda: stored_below(node) == len(NAMES))
    node.kill()
    node.start()
    with node.connect() as client:
        assert read(client, NAMES) == (6, {})
        flush(node)
        assert read(client, NAMES[:4]) == (4, {"redis": 4})
        assert read(client, NAMES) == (6, {"redis": 2})


def test_a_tier_that_is_killed_is_a_miss_in_time_and_asked_again_when_it_is_back(
    tmp_path: Path, start_node: StartNode
) -> None:
    with redis_servers.one(tmp_path) as port:
        node = start_node(tiers=f"redis://127.0.0.1:{port}")
        with node.connect(writer=True) as client:
            compute(client, NAMES)
            wait_until(lambda: stored_below(node) == len(NAMES))
            flush(node)
    with node.connect(writer=True) as client:
        assert read(client, NAMES, wait_s=5.0) == (0, {})
        compute(client, NAMES)
        assert read(client, NAMES) == (6, {})
        assert node.get("/readyz")[0] == 200


def test_leases_over_http_are_404_where_nobody_has_it_and_granted_where_the_tier_does(
    start_node: StartNode, redis_port: int
) -> None:
    node = start_node(tiers=f"redis://127.0.0.1:{redis_port}")
    with node.connect(writer=True) as client, node.http() as http:
        compute(client, NAMES)
        wait_until(lambda: stored_below(node) == len(NAMES))
        flush(node)
        quoted = NAMES[0].replace("@", "%40")
        assert http.request("POST", "/v1/kv/b/absent/leases?timeout_ms=5000")[0] == 404
        status, _, body = http.request("POST", f"/v1/kv/b/{quoted}/leases?timeout_ms=5000")
        assert status == 200
        assert sum(each["len"] for each in json.loads(body)["offsets"]) == len(content_of(NAMES[0]))
        status, _, body = http.request("GET", "/v1/kv/b/" + NAMES[1].replace("@", "%40"))
        assert (status, body) == (200, content_of(NAMES[1]))
        assert http.request("HEAD", "/v1/kv/b/" + NAMES[2].replace("@", "%40"))[0] == 200
        asked = json.dumps({"names": NAMES, "timeout_ms": 5000, "anchor": NAMES[0][:64]}).encode()
        status, _, body = http.request("POST", "/v1/kv/b/leases", asked)
        assert (status, len(json.loads(body)["objects"])) == (200, 6)
        assert json.loads(body)["sources"] == {"redis": 3}


def test_what_is_removed_is_removed_below_too(start_node: StartNode, redis_port: int) -> None:
    node = start_node(tiers=f"redis://127.0.0.1:{redis_port}")
    with node.connect(writer=True) as client, node.http() as http, redis.Redis(port=redis_port) as server:
        compute(client, NAMES)
        wait_until(lambda: stored_below(node) == len(NAMES))
        client.delete("b", NAMES[:3])
        for name in NAMES[3:]:
            assert http.request("DELETE", f"/v1/kv/b/{name}")[0] == 200
        wait_until(lambda: server.dbsize() == 0)
        assert read(client, NAMES) == (0, {})


def test_a_full_segment_takes_from_the_tier_what_it_has_room_for(start_node: StartNode, redis_port: int) -> None:
    large = start_node(tiers=f"redis://127.0.0.1:{redis_port}")
    small = start_node(tiers=f"redis://127.0.0.1:{redis_port}", capacity="4MiB", max_reserved="4MiB")
    names = [f"{number:064x}@bf16.x.c256.tp0-1.pp0-1.g0" for number in range(20)]
    with large.connect(writer=True) as writer, small.connect(writer=True) as reader:
        compute(writer, names)
        wait_until(lambda: stored_below(large) == len(names))
        [slot] = reader.grant(3 * MIB, 1)
        found, _ = read(reader, names)
        assert 0 < found < len(names)
        assert figure(small, 'tierline_node_tier_failures_total{reason="no_room",tier="redis"}') > 0
        reader.abort([slot.slot])
        wait_until(lambda: small.stats["store"]["slots"] == 0)


def test_a_bucket_at_its_quota_has_no_more_fetched_than_it_may_have(start_node: StartNode, redis_port: int) -> None:
    tiers = f"redis://127.0.0.1:{redis_port}"
    first = start_node(tiers=tiers)
    limited = start_node(tiers=tiers, buckets=json.dumps({"b": {"hard_objects": 3}}))
    with first.connect(writer=True) as writer, limited.connect() as reader:
        compute(writer, NAMES)
        wait_until(lambda: stored_below(first) == len(NAMES))
        assert read(reader, NAMES)[0] == 3
        assert limited.stats["store"]["objects"] == 3


def test_what_tiers_do_is_in_the_document_of_the_cluster_and_needs_no_pool(
    start_node: StartNode, redis_port: int
) -> None:
    node = start_node(tiers=f"redis://127.0.0.1:{redis_port}")
    with node.connect(writer=True) as client:
        compute(client, NAMES)
        wait_until(lambda: stored_below(node) == len(NAMES))
        flush(node)
        assert read(client, NAMES)[0] == 6
    status, body = node.get("/v1/cluster")
    document = json.loads(body)
    assert (status, document["pool"], document["members"]) == (200, "", [])
    [tier] = document["tiers"]
    assert (tier["name"], tier["hits"]) == ("redis", 6)
    assert tier["fetched_bytes"] == tier["stored_bytes"] == 6 * len(content_of(NAMES[0]))


def test_over_http_what_is_written_to_a_tier_and_fetched_from_it_is_under_the_request_s_span(
    tmp_path: Path, start_node: StartNode, redis_port: int
) -> None:
    file = tmp_path / "traces.jsonl"
    node = start_node(tiers=f"redis://127.0.0.1:{redis_port}", traces_file=file)
    writing, reading = (f"traceparent: 00-{number:032x}-{7:016x}-01\r\n" for number in (1, 2))
    with node.http() as http:
        assert http.request("PUT", "/v1/kv/b/an-object", content_of(NAMES[0]), writing)[0] == 200
        wait_until(lambda: stored_below(node) == 1)
        flush(node)
        assert http.request("GET", "/v1/kv/b/an-object", headers=reading)[2] == content_of(NAMES[0])

    def drawn(tree: TraceTree) -> list[object]:
        return [tree.span.name, *map(drawn, tree.children)]

    def told() -> list[object]:
        traces = read_traces([file]).traces if file.exists() else []
        return [drawn(root) for trace in traces for root in trace.roots()]

    wait_until(lambda: told() == [["PUT PutObject", ["write redis"]], ["GET GetObject", ["fetch redis"]]])
