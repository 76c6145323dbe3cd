"""The wire contract over HTTP, against a real node."""

import json
import os
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.faults.metrics import metric
from tests.integration.node.processes import MIB, WITHIN_S, HttpClient, NodeProcess, head, wait_until


def readers_waiting(node: NodeProcess) -> float:
    return metric(node, 'tierline_node_waiting{kind="reader"}')


def test_what_was_put_is_got_byte_for_byte(http: HttpClient) -> None:
    content = os.urandom(5 * MIB + 28)
    assert http.request("PUT", "/v1/kv/b/roundtrip", content)[0] == 200
    status, headers, body = http.request("GET", "/v1/kv/b/roundtrip")
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    assert body == content


def test_a_lease_says_where_the_bytes_are_and_its_lengths_sum_to_the_object(
    node: NodeProcess, http: HttpClient
) -> None:
    content = os.urandom(3 * MIB + 28)
    http.request("PUT", "/v1/kv/b/leased", content)
    status, headers, body = http.request("POST", "/v1/kv/b/leased/leases?timeout_ms=1000&ttl_s=1.0")
    lease = json.loads(body)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert set(lease) == {"id", "offsets"}
    assert all(fragment["len"] > 0 for fragment in lease["offsets"])
    segment = node.segment.read_bytes()
    assert b"".join(segment[part["offset"] : part["offset"] + part["len"]] for part in lease["offsets"]) == content
    assert http.request("POST", f"/v1/leases/{lease['id']}/release")[0] == 200


@pytest.mark.parametrize("lease", ["never-given", "%00%ff", "a" * 300])
def test_releasing_an_unknown_lease_is_answered_200(http: HttpClient, lease: str) -> None:
    assert http.request("POST", f"/v1/leases/{lease}/release")[0] == 200


def test_a_miss_is_answered_404_at_once(http: HttpClient) -> None:
    begin = time.monotonic()
    assert http.request("POST", "/v1/kv/b/absent/leases?timeout_ms=60000&ttl_s=30")[0] == 404
    assert time.monotonic() - begin < WITHIN_S / 2


@pytest.mark.parametrize("key", ["model/a@1@0@8@bfloat16", "a%2Fb", "ä ö/?#&", "..", "leases"])
def test_keys_keep_every_character(http: HttpClient, key: str) -> None:
    content = key.encode() * 10
    path = f"/v1/kv/bucket/{quote(key, safe='')}"
    assert http.request("PUT", path, content)[0] == 200
    assert http.request("GET", path)[2] == content
    assert http.request("POST", f"{path}/leases?timeout_ms=1&ttl_s=1")[0] == 200


def test_an_unquoted_bucket_with_slashes_names_the_same_bucket_as_a_quoted_one(http: HttpClient) -> None:
    http.request("PUT", "/v1/kv/team/a/key", b"content")
    assert http.request("GET", "/v1/kv/team%2Fa/key")[2] == b"content"


def test_a_stored_key_is_refused_before_its_body_is_sent(http: HttpClient) -> None:
    http.request("PUT", "/v1/kv/b/once", b"first")
    http.send(head("PUT", "/v1/kv/b/once", 10 * MIB))
    assert http.receive()[0] == 409
    http.send(bytes(10 * MIB))
    assert http.request("GET", "/v1/kv/b/once")[2] == b"first"


def test_a_key_that_another_is_writing_is_refused_before_its_body_is_sent(node: NodeProcess, http: HttpClient) -> None:
    with node.http() as writer:
        writer.send(head("PUT", "/v1/kv/b/contended", MIB) + b"x")
        wait_until(lambda: node.stats["store"]["slots"] == 1)
        http.send(head("PUT", "/v1/kv/b/contended", MIB))
        assert http.receive()[0] == 409
        writer.send(b"x" * (MIB - 1))
        assert writer.receive()[0] == 200


def test_a_lease_on_an_object_being_written_waits_for_its_commit(node: NodeProcess, http: HttpClient) -> None:
    with node.http() as writer:
        writer.send(head("PUT", "/v1/kv/b/awaited", MIB) + b"y")
        wait_until(lambda: node.stats["store"]["slots"] == 1)
        http.send(head("POST", "/v1/kv/b/awaited/leases?timeout_ms=60000&ttl_s=0.5", 0))
        wait_until(lambda: readers_waiting(node) == 1)
        writer.send(b"y" * (MIB - 1))
        status, _, body = http.receive()
        assert status == 200
        assert sum(part["len"] for part in json.loads(body)["offsets"]) == MIB
        assert writer.receive()[0] == 200


def test_a_lease_that_waited_in_vain_is_answered_504_within_its_own_time(node: NodeProcess, http: HttpClient) -> None:
    with node.http() as writer:
        writer.send(head("PUT", "/v1/kv/b/stuck", MIB) + b"y")
        wait_until(lambda: node.stats["store"]["slots"] == 1)
        assert http.request("POST", "/v1/kv/b/stuck/leases?timeout_ms=300&ttl_s=0.5")[0] == 504
    wait_until(lambda: node.stats["store"]["slots"] == 0)


def test_a_lease_that_waits_for_a_writer_that_gives_up_is_a_miss(node: NodeProcess, http: HttpClient) -> None:
    with node.http() as writer:
        writer.send(head("PUT", "/v1/kv/b/given-up", MIB) + b"y")
        wait_until(lambda: node.stats["store"]["slots"] == 1)
        http.send(head("POST", "/v1/kv/b/given-up/leases?timeout_ms=60000&ttl_s=0.5", 0))
        wait_until(lambda: readers_waiting(node) == 1)
    assert http.receive()[0] == 404


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"PUT /v1/kv/b/k HTTP/1.1\r\n\r\n", 411),
        (b"PUT /v1/kv/b/k HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
        (b"PUT /v1/kv/b/k HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
        (b"PUT /v1/kv/b/k HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"PUT /v1/kv/b/k HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"PUT /v1/kv/b/k HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"PUT /v1/kv/b/k HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"PUT /v1/kv/b/" + b"k" * 1025 + b" HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", 400),
        (b"PUT /v1/kv/b/%ff HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", 400),
        (b"PATCH /v1/kv/b/k HTTP/1.1\r\n\r\n", 405),
        (b"GET /v1/leases/x/release HTTP/1.1\r\n\r\n", 405),
        (b"GET /v1/kv HTTP/1.1\r\n\r\n", 404),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"POST /v1/kv/b/k/leases?timeout_ms=nan HTTP/1.1\r\n\r\n", 400),
        (b"POST /v1/kv/b/k/leases?ttl_s=-1 HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 20000, 431),
    ],
)
def test_a_request_that_cannot_be_served_says_why(http: HttpClient, request_bytes: bytes, status: int) -> None:
    http.send(request_bytes)
    found, headers, body = http.receive()
    assert found == status
    assert headers["content-type"] == "application/json"
    assert json.loads(body)["error"]


def test_a_refused_method_names_those_allowed(http: HttpClient) -> None:
    assert http.request("PATCH", "/v1/kv/b/k")[1]["allow"] == "PUT, GET, HEAD, DELETE"


def test_a_node_without_room_answers_507_and_when_to_try_again(node: NodeProcess, http: HttpClient) -> None:
    with node.http() as first, node.http() as second:
        for number, writer in enumerate((first, second)):
            writer.send(head("PUT", f"/v1/kv/b/hog{number}", 31 * MIB) + b"x")
        wait_until(lambda: node.stats["store"]["slots"] == 2)
        status, headers, _ = http.request("PUT", "/v1/kv/b/late", bytes(8 * MIB))
    assert status == 507
    assert int(headers["retry-after"]) >= 1
    wait_until(lambda: node.stats["store"]["slots"] == 0)


def test_a_put_whose_record_finds_no_room_in_the_end_is_undone_and_answered_507(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, capacity="4MiB", grace_s=0, quarantine_s=0)
    try:
        with node.http() as early, node.http() as http:
            early.send(head("PUT", "/v1/kv/b/early", 2) + b"x")
            wait_until(lambda: node.stats["store"]["slots"] == 1)
            for number in range(60):  # leased names of 2 KiB each: the journal is full long before the segment is
                path = f"/v1/kv/{'b' * 1024}/{number:01024d}"
                if http.request("PUT", path, b"x")[0] != 200:
                    break
                http.request("POST", f"{path}/leases?ttl_s=30")
            early.send(b"x")
            status, headers, _ = early.receive()
            stats = node.stats["store"]
            assert (status, headers["retry-after"]) == (507, "1")
            assert (stats["aborts"], stats["slots"], stats["reserved_bytes"]) == (1, 0, 0)
            assert early.request("GET", "/v1/kv/b/early")[0] == 404
    finally:
        node.close()


def test_requests_sent_together_are_answered_in_order(http: HttpClient) -> None:
    http.send(
        head("PUT", "/v1/kv/b/pipe1", 3)
        + b"one"
        + head("PUT", "/v1/kv/b/pipe1", 3)
        + b"two"
        + head("GET", "/v1/kv/b/pipe1", 0)
        + head("GET", "/v1/kv/b/pipe-none", 0)
        + head("DELETE", "/v1/kv/b/pipe1", 0)
        + head("HEAD", "/v1/kv/b/pipe1", 0)
    )
    replies = [http.receive() for _ in range(5)] + [http.receive(has_body=False)]
    assert [status for status, _, _ in replies] == [200, 409, 200, 404, 200, 404]
    assert replies[2][2] == b"one"


def test_a_head_that_comes_in_pieces_is_understood(http: HttpClient) -> None:
    for byte in head("PUT", "/v1/kv/b/pieces", 4) + b"data":
        http.send(bytes([byte]))
    assert http.receive()[0] == 200


def test_head_tells_size_and_checksum_without_the_body(http: HttpClient) -> None:
    http.request("PUT", "/v1/kv/b/headed", b"x" * 1000)
    status, headers, body = http.request("HEAD", "/v1/kv/b/headed")
    assert (status, headers["content-length"], body) == (200, "1000", b"")
    assert headers["etag"].strip('"') == "9c6ba3eef1bb1d87" or len(headers["etag"]) == 18


def test_a_client_that_waits_for_100_continue_gets_it(http: HttpClient) -> None:
    http.send(head("PUT", "/v1/kv/b/expected", 4, "Expect: 100-continue\r\n"))
    assert http.receive()[0] == 100
    http.send(b"data")
    assert http.receive()[0] == 200


def test_connection_close_is_honoured(http: HttpClient) -> None:
    status, headers, _ = http.request("GET", "/healthz", headers="Connection: close\r\n")
    assert (status, headers["connection"]) == (200, "close")
    assert http.is_closed_by_peer()


def test_a_reader_that_stops_reading_holds_nobody_up(node: NodeProcess, http: HttpClient) -> None:
    http.request("PUT", "/v1/kv/b/large", os.urandom(24 * MIB))
    with node.http() as slow:
        slow.send(head("GET", "/v1/kv/b/large", 0))
        wait_until(lambda: node.stats["store"]["leases"] == 1)
        assert http.request("GET", "/healthz")[0] == 200
    wait_until(lambda: node.stats["store"]["leases"] == 0)


def test_every_document_for_operators_answers(http: HttpClient) -> None:
    assert [http.request("GET", path)[0] for path in ("/healthz", "/readyz", "/v1/stats", "/metrics")] == [200] * 4
