"""Clients that lie about lengths, places and contents, and a thousand that say nothing: who is honest is served."""

import os
import socket
import struct
from collections.abc import Iterator

import msgspec
import pytest
from tests.faults.metrics import metric
from tests.integration.node.processes import MIB, WITHIN_S, HttpClient, NodeProcess, head, load, store, wait_until

from tierline.client import CommitEntry, Refusal, Slot
from tierline.wire import messages
from tierline.wire.framing import encode_frame

HALF_OPEN = 1_000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    process = NodeProcess(
        tmp_path_factory.mktemp("node"),
        capacity="16MiB",
        grace_s=0,
        quarantine_s=0.1,
        max_ttl_s=5,
        head_timeout_s=2,
        body_timeout_s=1,
    )
    yield process
    process.close()


@pytest.fixture
def http(node: NodeProcess) -> Iterator[HttpClient]:
    with node.http() as client:
        yield client


def is_idle(node: NodeProcess) -> bool:
    stats = node.stats["store"]
    return not any(stats[held] for held in ("slots", "leases", "reserved_bytes", "retired_bytes"))


# Lengths over HTTP ----------------------------------------------------------------------------------------------------


def test_a_body_longer_than_its_length_is_an_object_of_that_length_and_a_bad_request(
    node: NodeProcess, http: HttpClient
) -> None:
    http.send(head("PUT", "/v1/kv/b/longer", 4) + b"datasmuggled")
    assert http.receive()[0] == 200
    assert http.receive()[0] in (400, 408)
    assert http.is_closed_by_peer()
    with node.http() as other:
        assert other.request("GET", "/v1/kv/b/longer")[2] == b"data"


def test_a_body_shorter_than_its_length_is_no_object(node: NodeProcess, http: HttpClient) -> None:
    http.send(head("PUT", "/v1/kv/b/shorter", MIB) + b"x" * (MIB - 1))
    assert http.receive()[0] == 408
    wait_until(lambda: is_idle(node))
    with node.http() as other:
        assert other.request("GET", "/v1/kv/b/shorter")[0] == 404
    assert metric(node, 'tierline_node_http_requests_total{route="PutObject",status="408"}') == 1


@pytest.mark.parametrize(
    ("lengths", "statuses"),
    [
        (["4", "40"], {400}),
        (["4", "4"], {400}),
        (["-4"], {400}),
        (["+4"], {400}),
        (["0x4"], {400}),
        (["4, 4"], {400}),
        (["4 4"], {400}),
        (["1e3"], {400}),
        (["four"], {400}),
        (["9" * 19], {413}),
        (["9" * 30], {400, 413}),
        (["0"], {400}),
        ([""], {400, 411}),
    ],
)
def test_a_length_that_is_none_or_two_is_refused(
    node: NodeProcess, http: HttpClient, lengths: list[str], statuses: set[int]
) -> None:
    headers = "".join(f"Content-Length: {length}\r\n" for length in lengths)
    http.send(f"PUT /v1/kv/b/liar HTTP/1.1\r\nHost: node\r\n{headers}\r\ndata".encode())
    assert http.receive()[0] in statuses
    assert is_idle(node)
    with node.http() as other:
        assert other.request("GET", "/v1/kv/b/liar")[0] == 404


def test_a_length_beside_a_transfer_coding_is_refused_and_the_connection_ends(
    node: NodeProcess, http: HttpClient
) -> None:
    """What one side takes for a body the other could take for a request: nothing after it is read as one."""
    smuggled = head("DELETE", "/v1/kv/b/honest", 0)
    with node.http() as other:
        other.request("PUT", "/v1/kv/b/honest", b"stays")
    chunk = f"{len(smuggled):x}\r\n".encode() + smuggled + b"\r\n0\r\n\r\n"
    http.send(head("PUT", "/v1/kv/b/liar", 4, "Transfer-Encoding: chunked\r\n") + chunk)
    assert http.receive()[0] in (400, 501)
    assert http.is_closed_by_peer()
    with node.http() as other:
        assert other.request("GET", "/v1/kv/b/honest")[2] == b"stays"


# Lengths and places over the socket -----------------------------------------------------------------------------------


def test_a_commit_of_more_bytes_than_its_slot_has_is_refused(node: NodeProcess) -> None:
    with node.connect(writer=True) as client:
        [slot] = client.grant(100_000, 1)
        for size in (100_001, 10**9, 2**62):
            assert client.commit("b", [CommitEntry(slot.slot, "liar", size, 0)]) == [Refusal.TOO_LARGE]
        assert load(client, "liar") is None
        client.abort([slot.slot])


def test_a_reservation_larger_than_the_segment_is_refused(node: NodeProcess) -> None:
    with node.connect(writer=True) as client:
        for size in (17 * MIB, 2**40, 2**62):
            [outcome] = client.reserve("b", ["huge"], [size])
            assert outcome in (Refusal.NO_SPACE, Refusal.TOO_LARGE)
            assert client.grant(size, 3) == []
        wait_until(lambda: is_idle(node))


def test_a_slot_of_another_connection_can_be_neither_committed_nor_aborted(node: NodeProcess) -> None:
    with node.connect(writer=True) as owner, node.connect(writer=True) as liar:
        [slot] = owner.reserve("b", ["owned"], [1000])
        assert isinstance(slot, Slot)
        assert liar.commit("b", [CommitEntry(slot.slot, "owned", 1000, 0)]) == [Refusal.UNKNOWN_SLOT]
        liar.abort([slot.slot])
        assert node.stats["store"]["slots"] == 1
        checksum = owner.mapping.write_from(slot.extents, b"x" * 1000)
        assert owner.commit("b", [CommitEntry(slot.slot, "owned", 1000, checksum)]) == [None]
        assert load(liar, "owned") == b"x" * 1000


def test_a_checksum_that_is_a_lie_is_found_by_the_first_reader_and_costs_the_object(node: NodeProcess) -> None:
    found = 'tierline_node_verifications_total{occasion="suspect",result="mismatch"}'
    before = metric(node, found)
    with node.connect(writer=True) as client:
        [slot] = client.reserve("b", ["lie"], [1000])
        assert isinstance(slot, Slot)
        client.mapping.write_from(slot.extents, b"x" * 1000)
        client.commit("b", [CommitEntry(slot.slot, "lie", 1000, 12345)])
        client.suspect("b", "lie")
        assert load(client, "lie") is None
    assert metric(node, found) == before + 1
    assert metric(node, 'tierline_node_evictions_total{reason="corrupt"}') >= 1


def test_a_client_that_suspects_without_end_waits_for_a_bounded_number_of_comparisons(node: NodeProcess) -> None:
    with node.connect(writer=True) as client, socket.socket(socket.AF_UNIX) as liar:
        store(client, "suspected", b"x" * (8 * MIB))
        liar.settimeout(WITHIN_S)
        liar.connect(str(node.socket))
        liar.sendall(encode_frame(messages.Hello(messages.PROTOCOL_VERSION, "liar")))
        liar.recv(65536)
        count = 2000
        liar.sendall(b"".join(encode_frame(messages.Suspect(n, "b", "suspected")) for n in range(1, count + 1)))
        answered: list[int] = []
        received = b""
        while len(answered) < count:
            received += liar.recv(65536)
            while len(received) >= 4 and len(received) >= 4 + int.from_bytes(received[:4], "little"):
                end = 4 + int.from_bytes(received[:4], "little")
                answered.append(msgspec.msgpack.decode(received[4:end])[1])
                received = received[end:]
        assert sorted(answered) == list(range(1, count + 1))
        assert answered.index(256) > count / 2  # beyond the bound they are answered at once
        client.delete("b", ["suspected"])
    wait_until(lambda: is_idle(node))


def test_positions_and_times_that_make_no_sense_give_back_nothing_and_hold_nothing(node: NodeProcess) -> None:
    with node.connect(writer=True) as client:
        client.delete("b", ["placed"])
        store(client, "placed", b"x")
        lease = client.prefix_lease("b", ["placed"], 1e300)
        assert lease.ttl_s <= 5
        assert client.release(lease.lease, 5, 2) == 0
        assert client.release(lease.lease, 10**12, None) == 0
        assert client.release(lease.lease) == 1


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("<I", 2**32 - 1),
        struct.pack("<I", 0),
        struct.pack("<I", 4) + bytes(encode_frame(messages.Grant(1, 2**63 - 1, 65536)))[4:],
        struct.pack("<I", 9) + b"\xdd\xff\xff\xff\xff0123",  # an array that says it has four billion items
        struct.pack("<I", 6) + b"\xc6\xff\xff\xff\xff0",  # bytes that say they are four billion
    ],
    ids=["longer than any", "none", "cut inside its message", "array of billions", "bytes of billions"],
)
def test_a_frame_that_lies_about_its_length_ends_the_trust_and_holds_nothing(node: NodeProcess, frame: bytes) -> None:
    hello = encode_frame(messages.Hello(messages.PROTOCOL_VERSION, "liar", writer=True))
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WITHIN_S)
        client.connect(str(node.socket))
        client.sendall(hello + frame)
        received = b""
        while part := client.recv(65536):
            received += part
        assert b"Failed" in received
    wait_until(lambda: is_idle(node))


def test_a_greeting_of_another_version_or_size_is_refused_with_its_reason(node: NodeProcess) -> None:
    before = metric(node, 'tierline_node_socket_requests_total{outcome="WireError",verb="Hello"}')
    for greeting in (
        encode_frame(messages.Hello(99, "liar")),
        struct.pack("<I", 2**31),
        encode_frame(messages.Describe(1)),
    ):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(WITHIN_S)
            client.connect(str(node.socket))
            client.sendall(greeting)
            assert b"WireError" in client.recv(65536)
    assert metric(node, 'tierline_node_socket_requests_total{outcome="WireError",verb="Hello"}') == before + 3


# Silence --------------------------------------------------------------------------------------------------------------


def test_a_thousand_half_open_connections_hold_up_nobody_and_are_closed_in_time(node: NodeProcess) -> None:
    silent, halves, greetings = [], [], []
    try:
        for number in range(HALF_OPEN):
            connection = socket.create_connection(("127.0.0.1", node.port), timeout=WITHIN_S)
            if number % 2:
                connection.sendall(b"PUT /v1/kv/b/half HTTP/1.1\r\nContent-Le")
                halves.append(connection)
            else:
                silent.append(connection)
            if number % 10 == 0:
                greeting = socket.socket(socket.AF_UNIX)
                greeting.connect(str(node.socket))
                greeting.sendall(b"\x20")
                greetings.append(greeting)
        content = os.urandom(MIB // 16)  # far from the watermark, where what was stored would rightly be evicted
        with node.http() as http, node.connect(writer=True) as client:
            for number in range(50):
                name = f"among-{number % 8}-{content[:4].hex()}"
                assert http.request("PUT", f"/v1/kv/b/{name}", content)[0] in (200, 409)
                assert load(client, name) == content
            assert metric(node, 'tierline_node_connections{protocol="http"}') > len(silent)
        for connection in (*halves[:5], halves[-1]):
            connection.settimeout(WITHIN_S)
            assert connection.recv(65536).startswith(b"HTTP/1.1 408")
        for greeting in greetings:
            greeting.settimeout(WITHIN_S)
            assert _is_ended(greeting)
        wait_until(lambda: metric(node, 'tierline_node_connections{protocol="http"}') <= len(silent) + 1)
        assert metric(node, 'tierline_node_http_requests_total{route="none",status="408"}') >= len(halves)
        assert metric(node, 'tierline_node_socket_requests_total{outcome="TimeoutError",verb="Hello"}') >= len(
            greetings
        )
    finally:
        for connection in (*silent, *halves, *greetings):
            connection.close()
    wait_until(lambda: metric(node, 'tierline_node_connections{protocol="http"}') <= 1)


def _is_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(65536) == b""
    except ConnectionResetError:
        return True
