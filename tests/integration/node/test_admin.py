"""What operators ask a node over HTTP, against a real one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.integration.node.processes import HttpClient, NodeProcess, store, wait_until

from tierline.client import CommitEntry, Slot
from tierline.errors import TooManyLeases

SALTED = "model@00000000@0@c0ffee@tenant-a"
NAMES = ["team/a b", SALTED, *(f"n{number:03}" for number in range(30))]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node that nobody but this module writes to."""
    process = NodeProcess(tmp_path_factory.mktemp("node"), grace_s=0)
    with process.connect(writer=True) as client:
        for name in NAMES:
            store(client, name, name.encode(), bucket="team/b")
        store(client, "elsewhere", b"x", bucket="other")
    yield process
    process.close()


@pytest.fixture
def client(filled: NodeProcess) -> Iterator[HttpClient]:
    with filled.http() as client:
        yield client


def ask(client: HttpClient, method: str, path: str) -> tuple[int, Any]:
    status, headers, body = client.request(method, path)
    assert headers["content-type"] == "application/json"
    return status, json.loads(body)


def pages(client: HttpClient, path: str) -> Iterator[dict[str, Any]]:
    cursor = ""
    while True:
        status, page = ask(client, "GET", f"{path}&cursor={cursor}")
        assert status == 200
        yield page
        if not (cursor := page["cursor"]):
            return


def listed(client: HttpClient, path: str) -> list[str]:
    return sorted(found["name"] for page in pages(client, path) for found in page["objects"])


def test_a_bucket_is_listed_page_by_page_each_object_once(client: HttpClient) -> None:
    assert listed(client, "/v1/kv/team%2Fb?list&limit=7") == sorted(NAMES)
    assert listed(client, "/v1/kv/team/b?list") == sorted(NAMES)


def test_a_listing_may_be_of_every_bucket_of_a_prefix_or_of_a_tenant(client: HttpClient) -> None:
    assert listed(client, "/v1/kv?list") == sorted([*NAMES, "elsewhere"])
    assert listed(client, "/v1/kv/team%2Fb?list&prefix=n01") == [f"n{number:03}" for number in range(10, 20)]
    assert listed(client, "/v1/kv/team%2Fb?list&salt=tenant-a") == [SALTED]
    assert listed(client, "/v1/kv/team%2Fb?list&salt=") == sorted(set(NAMES) - {SALTED})
    assert listed(client, "/v1/kv/absent?list") == []


@pytest.mark.parametrize(
    "path", ["/v1/kv?list&cursor=x", "/v1/kv?list&limit=0", "/v1/leases?cursor=x", "/v1/leases?limit=x"]
)
def test_a_page_that_cannot_be_is_refused(client: HttpClient, path: str) -> None:
    status, reply = ask(client, "GET", path)
    assert status == 400
    assert "allowed" in reply["error"]


def test_one_object_is_described(client: HttpClient) -> None:
    status, found = ask(client, "GET", f"/v1/kv/team%2Fb/{quote(SALTED, safe='')}/stat")
    assert status == 200
    assert (found["bucket"], found["name"], found["salt"], found["size"]) == ("team/b", SALTED, "tenant-a", len(SALTED))
    assert (found["fragments"], found["leases"], found["pinned_s"], found["expires_s"]) == (1, 0, 0, None)
    assert len(found["checksum"]) == 16


def test_what_is_not_there_is_explained(client: HttpClient) -> None:
    status, reply = ask(client, "GET", "/v1/kv/b/never/stat")
    assert (status, reply["reason"]) == (404, "never_stored")
    client.request("PUT", "/v1/kv/b/gone", b"x")
    assert ask(client, "GET", "/v1/kv/b/gone/explain")[1]["kind"] == "stored"
    client.request("DELETE", "/v1/kv/b/gone")
    found = ask(client, "GET", "/v1/kv/b/gone/explain")[1]
    assert found["kind"] == "deleted"
    assert found["ago_s"] >= 0


def test_an_object_is_pinned_for_a_time(client: HttpClient) -> None:
    status, pinned = ask(client, "POST", "/v1/kv/team%2Fb/n001/pin?ttl_s=100")
    assert status == 200
    assert 90 < pinned["pinned_s"] <= 100
    assert ask(client, "GET", "/v1/kv/team%2Fb/n001/stat")[1]["pinned_s"] > 90
    assert ask(client, "DELETE", "/v1/kv/team%2Fb/n001/pin") == (200, {"pinned_s": 0.0})
    assert ask(client, "POST", "/v1/kv/b/never/pin")[0] == 404
    assert ask(client, "DELETE", "/v1/kv/b/never/pin")[0] == 404


def test_leases_are_listed_with_who_holds_them(filled: NodeProcess, client: HttpClient) -> None:
    client.request("POST", "/v1/kv/team%2Fb/n001/leases?ttl_s=30", headers="X-Tierline-Client: engine 7\r\n")
    client.request("POST", "/v1/kv/team%2Fb/n001/leases?ttl_s=30")
    with filled.connect(client="reader") as reader:
        reader.prefix_lease("team/b", ["n001", "n002"], 30)
        leases = [lease for page in pages(client, "/v1/leases?limit=1") for lease in page["leases"]]
        assert {lease["holder"].partition("#")[0] for lease in leases} >= {"http:engine 7", "http:127.0.0.1", "reader"}
        [ours] = [lease for lease in leases if lease["holder"].startswith("reader#")]
        assert (ours["objects"], ours["bytes"]) == (2, 8)
        assert 0 < ours["expires_in_s"] <= 30
    for lease in leases:
        client.request("POST", f"/v1/leases/{lease['id']}/release")


def test_buckets_are_listed_with_what_their_tenants_have(client: HttpClient) -> None:
    namespaces = {
        (found["bucket"], found["salt"]): found for found in ask(client, "GET", "/v1/buckets")[1]["namespaces"]
    }
    assert namespaces["team/b", "tenant-a"]["objects"] == 1
    assert namespaces["team/b", ""]["objects"] == len(NAMES) - 1
    assert namespaces["other", ""]["quota"]["hard_bytes"] is None


def test_a_flush_takes_what_it_is_told_and_nothing_else(filled: NodeProcess, client: HttpClient) -> None:
    with filled.connect(writer=True) as writer:
        names = [f"many{number}" for number in range(400)]
        slots = [slot for slot in writer.reserve("flushed", names, [1] * 400) if isinstance(slot, Slot)]
        entries = [CommitEntry(slot.slot, name, 1, 0) for slot, name in zip(slots, names, strict=True)]
        assert writer.commit("flushed", entries) == [None] * 400
        store(writer, SALTED, b"x", bucket="flushed")
    assert ask(client, "DELETE", "/v1/kv/flushed?flush&salt=tenant-a") == (200, {"removed": 1})
    assert ask(client, "DELETE", "/v1/kv/flushed?flush") == (200, {"removed": 400})
    assert ask(client, "GET", "/v1/kv/flushed/many1/explain")[1]["kind"] == "flushed"
    assert listed(client, "/v1/kv/team%2Fb?list") == sorted(NAMES)


def test_the_scrub_goes_round_and_drops_what_rotted_without_being_a_use(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, scrub_rate="1GiB")
    try:
        with node.connect(writer=True) as writer, node.http() as client:
            store(writer, "sound", b"content")
            [slot] = writer.reserve("b", ["rotten"], [1000])
            assert isinstance(slot, Slot)
            writer.commit("b", [CommitEntry(slot.slot, "rotten", 1000, 12345)])
            wait_until(lambda: ask(client, "GET", "/v1/kv/b/rotten/explain")[1]["kind"] == "corrupt")
            metrics = node.get("/metrics")[1].decode()
            assert 'tierline_node_verifications_total{occasion="scrub",result="mismatch"} 1.0' in metrics
            assert ask(client, "GET", "/v1/kv/b/sound/stat")[1]["hits"] == 0
    finally:
        node.close()


def test_room_is_made_ahead_of_need(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, capacity="32MiB", grace_s=0, quarantine_s=0)
    try:
        with node.http() as http:
            for number in range(40):
                assert http.request("PUT", f"/v1/kv/b/{number}", bytes(1024 * 1024))[0] == 200
        wait_until(lambda: node.stats["store"]["free_bytes"] >= 0.05 * node.stats["store"]["capacity_bytes"])
        assert "tierline_node_reclaims_total 0.0" not in node.get("/metrics")[1].decode()
    finally:
        node.close()


def test_a_client_with_too_many_leases_is_told_so_and_others_are_not(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, max_leases_per_client=2)
    try:
        with node.http() as http, node.connect(writer=True) as client:
            store(client, "k", b"x")
            path = "/v1/kv/b/k/leases?ttl_s=30"
            assert [http.request("POST", path)[0] for _ in range(2)] == [200, 200]
            for status, headers, _ in (
                http.request("POST", path),
                http.request("GET", "/v1/kv/b/k"),
                http.request("POST", "/v1/kv/b/leases", b'{"names":["k"]}'),
            ):
                assert (status, headers["retry-after"]) == (429, "1")
            assert http.request("POST", path, headers="X-Tierline-Client: another\r\n")[0] == 429  # is who it was
            with HttpClient(node.port, "127.0.0.2") as elsewhere:
                assert elsewhere.request("POST", path)[0] == 200
            leases = [client.prefix_lease("b", ["k"], 30).lease for _ in range(2)]
            with pytest.raises(TooManyLeases):
                client.prefix_lease("b", ["k"], 30)
            client.release(leases[0])
            assert client.prefix_lease("b", ["k"], 30).objects
        assert "tierline_node_leases_refused_total 5.0" in node.get("/metrics")[1].decode()
    finally:
        node.close()


def test_no_name_that_a_client_gives_keeps_the_node_from_verifying_what_it_adopted(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, max_leases_per_client=2, quarantine_s=0)
    try:
        with node.connect(writer=True) as client:
            store(client, "k", b"content")
            store(client, "other", b"x")
        node.kill()
        node.start()
        with node.http() as liar, HttpClient(node.port, "127.0.0.2") as honest:
            for _ in range(3):
                liar.request("POST", "/v1/kv/b/other/leases?ttl_s=30", headers="X-Tierline-Client: node:verify\r\n")
            assert honest.request("POST", "/v1/kv/b/k/leases?ttl_s=30")[0] == 200
            assert honest.request("GET", "/v1/kv/b/k")[2] == b"content"
            assert ask(honest, "POST", "/v1/kv/b/k/verify") == (200, {"result": "match"})
    finally:
        node.close()
