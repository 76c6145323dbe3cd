"""Real nodes that find each other by a real etcd, and what the command line says of the pool that they are."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.etcd import Etcd
from tests.integration.node.processes import NodeProcess, wait_until
from tests.ports import free_ports

from tierline.wire.cluster import ClusterView, MemberFigures

BLOCK = bytes(range(256)) * 1024
EVERYBODY = {"node-0": "self", "node-1": "alive", "node-2": "alive"}


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    server = Etcd(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def nodes(etcd: Etcd, tmp_path: Path) -> Iterator[list[NodeProcess]]:
    started = []
    for number, port in enumerate(free_ports(3)):
        settings = {"transfer_address": f"127.0.0.1:{port}", "peers_etcd": etcd.url, "node_name": f"node-{number}"}
        started.append(NodeProcess(tmp_path, capacity="4MiB", **settings))
    yield started
    for node in started:
        node.close()


def page_of(node: NodeProcess) -> str:
    command = [sys.executable, "-m", "tierline", "node", "cluster", "--url", node.url]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def view(node: NodeProcess) -> ClusterView:
    return msgspec.json.decode(node.get("/v1/cluster")[1], type=ClusterView)


def members(node: NodeProcess) -> dict[str, MemberFigures]:
    return {member.name: member for member in view(node).members}


def states(node: NodeProcess) -> dict[str, str]:
    return {name: member.state for name, member in members(node).items()}


@pytest.mark.timeout(300)
def test_nodes_that_etcd_lists_are_one_pool_and_the_command_line_shows_it(etcd: Etcd, nodes: list[NodeProcess]) -> None:
    first, second, third = nodes
    wait_until(lambda: states(first) == EVERYBODY)
    shares = {name: member.slots for name, member in members(first).items()}
    assert sum(shares.values()) == 4096
    assert min(shares.values()) > 0
    wait_until(lambda: {name: member.slots for name, member in members(third).items()} == shares)

    with second.http() as http:
        assert http.request("PUT", "/v1/kv/b/key", BLOCK)[0] == 200
    wait_until(lambda: sum(member.entries or 0 for member in members(first).values()) == 1)
    with first.http() as http:
        # A look-up may be late on a busy machine, and is a miss then.
        wait_until(lambda: http.request("POST", "/v1/kv/b/key/leases?timeout_ms=10000&ttl_s=5")[0] == 200)
        assert http.request("GET", "/v1/kv/b/key")[2] == BLOCK
    traffic = members(first)["node-1"].traffic
    assert (traffic.fetched_objects, traffic.fetched_bytes) == (1, len(BLOCK))

    wait_until(lambda: members(second)["node-0"].traffic.sent_objects == 1)  # counted when it has been sent
    assert members(second)["node-0"].traffic.sent_bytes == len(BLOCK)
    page = page_of(first)
    assert "3 of 3 take part, by etcd http://127.0.0.1:" in page
    assert "4,096 slots" in page

    epoch = members(first)["node-2"].epoch
    third.kill()
    wait_until(lambda: states(first).get("node-2") not in ("alive", "connecting"))
    assert sum(member.slots for member in members(first).values()) == 4096
    third.start()
    wait_until(lambda: states(first) == EVERYBODY)
    assert members(first)["node-2"].epoch != epoch

    etcd.kill()
    wait_until(lambda: view(first).is_behind)
    assert states(first) == EVERYBODY
