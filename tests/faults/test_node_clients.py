"""Clients that vanish, hang, write late or stop half way: nothing hangs, leaks or is served wrong."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.node.processes import MIB, WITHIN_S, HttpClient, NodeProcess, head, load, store, wait_until

from tierline.client import CommitEntry, Refusal, Slot
from tierline.wire.framing import encode_frame
from tierline.wire.messages import PROTOCOL_VERSION, Grant, Hello

HOLD = """
import os, sys, time
from tierline.client import NodeClient
client = NodeClient(sys.argv[1], writer=True, client="holder", timeout_s=60)
leased = client.prefix_lease("b", ["held"], 60)
slots = client.grant(1024 * 1024, 8)
client.reserve("b", ["reserved for " + str(os.getpid())], [1024 * 1024])
print("holding", flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    process = NodeProcess(
        tmp_path_factory.mktemp("node"),
        capacity="32MiB",
        grace_s=0.2,
        quarantine_s=0.5,
        head_timeout_s=60,
        body_timeout_s=60,
        max_connections=64,
        max_connections_per_address=64,
    )
    yield process
    process.close()


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node that waits for a head or a body for a second only."""
    process = NodeProcess(tmp_path_factory.mktemp("node"), head_timeout_s=1, body_timeout_s=1)
    yield process
    process.close()


@pytest.fixture
def http(node: NodeProcess) -> Iterator[HttpClient]:
    with node.http() as client:
        yield client


def counts(node: NodeProcess) -> tuple[int, int, int]:
    stats = node.stats["store"]
    return stats["slots"], stats["leases"], stats["reserved_bytes"]


@pytest.fixture
def holder(node: NodeProcess) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds a lease, eight granted slots and a reserved name."""
    with node.connect(writer=True) as client:
        client.delete("b", ["held"])
        store(client, "held", b"x")
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(node.socket)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"holding\n"
    process.stdout.close()
    yield process
    process.kill()
    process.wait()


def test_a_client_that_vanishes_gives_back_its_leases_and_reservations(
    node: NodeProcess, holder: subprocess.Popen[bytes]
) -> None:
    assert counts(node) == (9, 1, 9 * MIB)
    holder.kill()
    wait_until(lambda: counts(node) == (0, 0, 0))
    with node.connect(writer=True) as client:
        store(client, f"reserved for {holder.pid}", b"free again")


def test_a_client_that_hangs_with_a_reservation_keeps_its_pages_and_nobody_else_waits(
    node: NodeProcess, holder: subprocess.Popen[bytes]
) -> None:
    holder.send_signal(signal.SIGSTOP)
    time.sleep(1.0)  # no timer may take the pages away, for the client may go on and write
    with node.connect(writer=True) as client:
        assert counts(node) == (9, 1, 9 * MIB)
        assert client.reserve("b", [f"reserved for {holder.pid}"], [1]) == [Refusal.BEING_WRITTEN]
        store(client, "beside", os.urandom(4 * MIB))
    holder.kill()
    wait_until(lambda: counts(node) == (0, 0, 0))


def test_a_client_that_writes_after_its_abort_is_the_only_one_who_could_and_readers_find_out(node: NodeProcess) -> None:
    with node.connect(writer=True) as late, node.connect(writer=True) as client:
        [slot] = late.grant(4 * MIB, 1)
        late.abort([slot.slot])
        content = os.urandom(4 * MIB)
        [taken] = client.reserve("b", ["on-same-pages"], [4 * MIB])
        assert isinstance(taken, Slot)
        checksum = client.mapping.write_from(taken.extents, content)
        late.mapping.write_from(slot.extents, bytes(4 * MIB))
        client.commit("b", [CommitEntry(taken.slot, "on-same-pages", 4 * MIB, checksum)])
        if taken.extents == slot.extents:
            client.suspect("b", "on-same-pages")
            assert load(client, "on-same-pages") is None
        assert late.commit("b", [CommitEntry(slot.slot, "too-late", 1, 0)]) == [Refusal.UNKNOWN_SLOT]


def test_a_client_whose_frames_make_no_sense_keeps_its_slots_until_it_has_closed(node: NodeProcess) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WITHIN_S)
        client.connect(str(node.socket))
        client.sendall(encode_frame(Hello(PROTOCOL_VERSION, "babbler", writer=True)) + encode_frame(Grant(1, MIB, 2)))
        wait_until(lambda: counts(node)[0] == 2)
        client.sendall(b"\xff\xff\xff\xff")
        while client.recv(4096):  # the node ends its half
            pass
        assert counts(node)[0] == 2
    wait_until(lambda: counts(node) == (0, 0, 0))


def test_a_put_that_stops_half_way_is_undone_and_its_name_is_free_again(node: NodeProcess, http: HttpClient) -> None:
    http.send(head("PUT", "/v1/kv/b/half", 4 * MIB) + bytes(MIB))
    wait_until(lambda: counts(node)[0] == 1)
    http.close()
    wait_until(lambda: counts(node) == (0, 0, 0))
    with node.http() as again:
        assert again.request("GET", "/v1/kv/b/half")[0] == 404
        assert again.request("PUT", "/v1/kv/b/half", b"whole")[0] == 200
        assert again.request("GET", "/v1/kv/b/half")[2] == b"whole"


def test_a_put_that_pauses_too_long_is_told_so_and_undone(impatient: NodeProcess) -> None:
    with impatient.http() as http:
        http.send(head("PUT", "/v1/kv/b/paused", 4 * MIB) + bytes(MIB))
        assert http.receive()[0] == 408
        assert counts(impatient) == (0, 0, 0)
        assert http.is_closed_by_peer()


def test_a_head_that_never_ends_is_told_so_and_closed(impatient: NodeProcess) -> None:
    with impatient.http() as http:
        http.send(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        assert http.receive()[0] == 408
        assert http.is_closed_by_peer()


def test_a_connection_too_many_is_turned_away_and_the_others_are_served(node: NodeProcess, http: HttpClient) -> None:
    wait_until(lambda: json.loads(http.request("GET", "/v1/stats")[2])["http"]["connections"] == 1)
    others = [node.http() for _ in range(63)]
    with node.http() as last:
        assert last.receive()[0] == 503
    assert others[-1].request("GET", "/healthz")[0] == 200
    for other in others:
        other.close()
    wait_until(lambda: node.stats["http"]["connections"] <= 2)


def test_a_lease_that_is_never_released_runs_out_and_its_pages_rest_before_they_are_reused(node: NodeProcess) -> None:
    expired = node.stats["store"]["leases_expired"]
    with node.http() as http:
        http.request("PUT", "/v1/kv/b/forgotten", b"x" * MIB)
        assert http.request("POST", "/v1/kv/b/forgotten/leases?timeout_ms=1&ttl_s=2")[0] == 200
    wait_until(lambda: node.stats["store"]["leases_expired"] == expired + 1)
    assert counts(node)[1] == 0
    wait_until(lambda: node.stats["store"]["resting_bytes"] == 0)


def test_deadlines_hold_while_another_file_has_the_segments_name(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, body_timeout_s=1)
    try:
        node.segment.unlink()
        node.segment.write_bytes(b"not a segment")
        wait_until(lambda: "cannot open the segment" in node.log)
        with node.http() as http:
            http.send(head("PUT", "/v1/kv/b/half", 1000) + b"half")
            assert http.receive()[0] == 408
        assert node.stats["store"]["slots"] == 0
    finally:
        node.close()
