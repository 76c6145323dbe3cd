"""Clients that ask for more than a limit allows: each limit has an outcome, and is counted by its key."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.metrics import metric
from tests.integration.node.processes import MIB, WITHIN_S, NodeProcess, head, wait_until

from tierline.client import Refusal
from tierline.errors import NodeUnavailable, WireError


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    process = NodeProcess(
        tmp_path_factory.mktemp("node"),
        max_object="1MiB",
        max_head="8KiB",
        max_discarded="2MiB",
        slowest_rate="1MiB",
        head_timeout_s=1,
        body_timeout_s=1,
        max_connections=8,
        max_connections_per_address=6,
    )
    yield process
    process.close()


def reached(node: NodeProcess, limit: str) -> float:
    return metric(node, f'tierline_node_limits_reached_total{{limit="{limit}"}}')


def test_a_head_that_is_too_long_is_answered_431_and_its_connection_closed(node: NodeProcess) -> None:
    with node.http() as http:
        http.send(b"GET /healthz HTTP/1.1\r\nX-Long: " + b"x" * 8192)
        assert http.receive()[0] == 431
        assert http.is_closed_by_peer()
    assert reached(node, "max_head") == 1


def test_a_head_just_within_the_limit_is_served(node: NodeProcess) -> None:
    with node.http() as http:
        assert http.request("GET", "/healthz", headers=f"X-Long: {'x' * 8000}\r\n")[0] == 200


def test_an_object_that_is_too_large_is_answered_413_and_its_connection_serves_on(node: NodeProcess) -> None:
    with node.http() as http:
        assert http.request("PUT", "/v1/kv/b/large", bytes(MIB + 1))[0] == 413
        assert http.request("GET", "/healthz")[0] == 200
    assert reached(node, "max_object") == 1


def test_a_refused_body_that_is_longer_than_the_node_reads_costs_the_connection(node: NodeProcess) -> None:
    with node.http() as http:
        http.send(head("PUT", "/v1/kv/b/longer", 3 * MIB))
        status, headers, _ = http.receive()
        assert (status, headers["connection"]) == (413, "close")
        assert http.is_closed_by_peer()


def test_a_head_and_a_body_that_do_not_come_in_time_are_counted(node: NodeProcess) -> None:
    before = [reached(node, limit) for limit in ("head_timeout_s", "body_timeout_s")]
    with node.http() as slow_head, node.http() as slow_body:
        slow_head.send(b"GET /healthz HTT")
        slow_body.send(head("PUT", "/v1/kv/b/slow", 1000) + b"some")
        assert slow_head.receive()[0] == slow_body.receive()[0] == 408
    assert [reached(node, limit) for limit in ("head_timeout_s", "body_timeout_s")] == [each + 1 for each in before]


def test_a_body_that_comes_in_drips_is_stored_as_long_as_none_of_its_pauses_is_too_long(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, body_timeout_s=4, slowest_rate=1)
    content = bytes(range(256)) * 2048
    try:
        with node.http() as http:
            http.send(head("PUT", "/v1/kv/b/drips", len(content)))
            for start in range(0, 10_000, 1000):  # for longer, in all, than one pause may be
                http.send(content[start : start + 1000])
                time.sleep(0.5)
            http.send(content[10_000:])
            assert http.receive()[0] == 200
            assert http.request("GET", "/v1/kv/b/drips")[2] == content
    finally:
        node.close()


def test_a_reply_that_nobody_reads_is_given_up_and_its_lease_released(node: NodeProcess) -> None:
    before = reached(node, "body_timeout_s")
    with node.http() as http:
        http.request("PUT", "/v1/kv/b/unread", bytes(MIB))
        http.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        http.send(head("GET", "/v1/kv/b/unread", 0) * 32)
        wait_until(lambda: reached(node, "body_timeout_s") == before + 1)
    wait_until(lambda: node.stats["store"]["leases"] == 0)


def test_who_asks_on_and_on_and_reads_nothing_costs_no_memory_and_is_given_up(node: NodeProcess) -> None:
    before = reached(node, "body_timeout_s")
    with node.http() as honest, node.http() as greedy:
        for index in range(300):
            honest.request("PUT", f"/v1/kv/listed/{'n' * 200}{index}", b"x")
        resident = node.resident_bytes
        greedy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.socket.settimeout(0.2)
        with contextlib.suppress(TimeoutError, ConnectionError):  # the node reads no further
            while True:
                greedy.send(head("GET", "/v1/kv/listed?list", 0) * 1000)
        assert honest.request("GET", "/healthz")[0] == 200
        assert node.resident_bytes - resident < 16 * MIB
        wait_until(lambda: reached(node, "body_timeout_s") == before + 1)


def test_one_address_cannot_take_the_places_of_all_others(node: NodeProcess) -> None:
    wait_until(lambda: metric(node, 'tierline_node_connections{protocol="http"}') == 1)  # of who asks
    greedy = [node.http() for _ in range(6)]
    with node.http() as seventh:
        status, headers, body = seventh.receive()
        assert (status, headers["retry-after"]) == (503, "1")
        assert b"from 127.0.0.1 are open already" in body
    other = socket.create_connection(("127.0.0.1", node.port), timeout=WITHIN_S, source_address=("127.0.0.2", 0))
    other.sendall(head("GET", "/healthz", 0))
    assert other.recv(4096).startswith(b"HTTP/1.1 200")
    other.close()
    for client in greedy:
        client.close()
    wait_until(lambda: metric(node, 'tierline_node_connections{protocol="http"}') == 1)
    assert reached(node, "max_connections_per_address") >= 1


def test_far_too_many_connections_are_closed_on_and_those_before_are_served(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, max_connections=4, max_connections_per_address=4)
    try:
        served = [node.http() for _ in range(3)]
        flood = [socket.create_connection(("127.0.0.1", node.port), timeout=WITHIN_S) for _ in range(200)]
        assert served[0].request("GET", "/healthz")[0] == 200
        # Some are told why, before there are too many even for that; the first of all was served.
        assert {connection.recv(4096).partition(b"\r\n")[0] for connection in flood[1:]} == {
            b"HTTP/1.1 503 Service Unavailable",
            b"",
        }
        for client in served:
            client.close()
        for connection in flood:
            connection.close()
        wait_until(node.is_ready)
        assert reached(node, "max_connections") >= 190
    finally:
        node.close()


def test_clients_of_the_socket_meet_the_limits_too(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, max_object="1MiB", max_connections=3, max_connections_per_address=3)
    try:
        with (
            node.connect(writer=True) as first,
            node.connect(writer=True) as second,
            node.connect(writer=True) as third,
        ):
            assert first.reserve("b", ["large"], [MIB + 1]) == [Refusal.TOO_LARGE]
            assert first.grant(MIB + 1, 1) == []
            with pytest.raises((WireError, NodeUnavailable)):
                node.connect()
            assert [len(client.grant(MIB, 64)) for client in (first, second, third)] == [32, 16, 0]
        wait_until(lambda: node.stats["store"]["slots"] == 0)
        with node.connect(writer=True) as later:
            assert len(later.grant(MIB, 64)) == 32
        assert reached(node, "max_connections") == 1
    finally:
        node.close()
