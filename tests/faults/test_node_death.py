"""The node store dies at the worst moment and is started again: what was committed is there, nothing else is."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.node.processes import MIB, WITHIN_S, NodeProcess, head, load, store, wait_until
from tests.ports import free_port

from tierline.errors import NodeUnavailable


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    process = NodeProcess(
        tmp_path, grace_s=0, max_ttl_s=2, quarantine_s=0.5, drain_s=60, max_leases_per_client=1_000_000
    )
    yield process
    process.close()


def test_killed_in_the_middle_of_puts_and_leases_it_comes_back_with_exactly_what_was_committed(
    node: NodeProcess,
) -> None:
    contents = {f"object{number}": os.urandom(200_000 + number) for number in range(200)}
    stored: set[str] = set()
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(node.connect(writer=True))
        reader = stack.enter_context(node.connect())
        half_put = stack.enter_context(node.http())
        half_put.send(head("PUT", "/v1/kv/b/half", 4 * MIB) + bytes(MIB))

        def put_over_http() -> None:
            with node.http() as http, contextlib.suppress(OSError):
                for name in list(contents)[:100]:
                    if http.request("PUT", f"/v1/kv/b/{name}", contents[name])[0] == 200:
                        stored.add(name)

        def put_over_the_socket() -> None:
            with contextlib.suppress(NodeUnavailable):
                for name in list(contents)[100:]:
                    store(writer, name, contents[name])
                    stored.add(name)

        def lease() -> None:
            with contextlib.suppress(NodeUnavailable):
                while True:
                    reader.prefix_lease("b", list(contents), 2)

        threads = [threading.Thread(target=work) for work in (put_over_http, put_over_the_socket, lease)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(stored) > 40)
        node.kill()
        for thread in threads:
            thread.join()
    inode = node.segment.stat().st_ino
    node.start()
    assert node.segment.stat().st_ino == inode
    with node.connect() as client:
        found = {name: load(client, name) for name in contents}
        assert load(client, "half") is None
    assert {name for name, content in found.items() if content is not None} >= stored
    assert all(content is None or content == contents[name] for name, content in found.items())
    assert node.stats["store"]["slots"] == 0


def test_a_writer_that_outlives_the_node_cannot_spoil_what_the_next_one_stores(node: NodeProcess) -> None:
    late = node.connect(writer=True, client="late")
    slots = late.grant(MIB, 8)
    node.kill()
    node.start()
    assert node.stats["store"]["orphaned_bytes"] == 8 * MIB
    contents = {f"new{number}": os.urandom(MIB) for number in range(40)}
    with node.connect(writer=True) as client:
        for name, content in contents.items():
            store(client, name, content)
        for slot in slots:
            late.mapping.write_from(slot.extents, b"\xff" * MIB)
        assert {name: load(client, name) for name in contents} == contents
    late.close()
    with node.connect(writer=True, client="late") as again:
        assert again.stats()["store"]["orphaned_bytes"] == 0


def test_a_stopped_node_keeps_its_objects_and_the_slots_of_clients_that_still_write(node: NodeProcess) -> None:
    content = os.urandom(3 * MIB)
    with node.connect(writer=True, client="still-here") as client:
        store(client, "kept", content)
        client.grant(MIB, 2)
        assert node.stop() == 0
        node.start()
        assert node.stats["store"]["orphaned_bytes"] == 2 * MIB
    with node.connect() as client:
        assert load(client, "kept") == content


def test_a_put_under_way_may_end_while_the_node_stops(node: NodeProcess) -> None:
    content = os.urandom(2 * MIB)
    with node.http() as http:
        http.send(head("PUT", "/v1/kv/b/last", len(content)) + content[:MIB])
        wait_until(lambda: node.stats["store"]["slots"] == 1)
        node.process.terminate()
        wait_until(lambda: node.get("/readyz")[0] == 503)
        http.send(content[MIB:])
        assert http.receive()[0] == 200
    assert node.process.wait(WITHIN_S) == 0
    node.start()
    with node.connect() as client:
        assert load(client, "last") == content


def test_adopted_bytes_that_were_spoiled_are_never_served_over_http(node: NodeProcess) -> None:
    with node.connect(writer=True) as client:
        for name in ("spoiled", "spoiled too"):
            store(client, name, os.urandom(MIB))
        store(client, "sound", b"y" * MIB)
        leased = client.prefix_lease("b", ["spoiled", "spoiled too"], 1)
    node.kill()
    with node.segment.open("r+b") as segment:
        for found in leased.objects:
            segment.seek(found.extents[0].offset + 1000)
            segment.write(b"lies")
    node.start()
    with node.http() as http:
        asked = b'{"names": ["sound", "spoiled", "sound"], "timeout_ms": 60000}'
        status, _, body = http.request("POST", "/v1/kv/b/leases", asked)
        assert (status, [leased["size"] for leased in json.loads(body)["objects"]]) == (200, [MIB])
        asked = b'{"names": ["spoiled too", "sound", "absent", "sound"], "across_gaps": true, "timeout_ms": 60000}'
        assert json.loads(http.request("POST", "/v1/kv/b/leases", asked)[2])["places"] == [1, 3]
        assert http.request("POST", "/v1/kv/b/spoiled/leases?timeout_ms=60000&ttl_s=1")[0] == 404
        assert http.request("GET", "/v1/kv/b/spoiled")[0] == 404
        assert http.request("GET", "/v1/kv/b/sound")[2] == b"y" * MIB
    assert node.stats["verifications"] == {"mismatch": 2, "match": 1}


@pytest.mark.parametrize("shared", ["port", "socket", "segment"])
def test_two_nodes_never_share_a_port_a_socket_or_a_segment(node: NodeProcess, tmp_path: Path, shared: str) -> None:
    segment = node.segment_name if shared == "segment" else f"{node.segment_name}-second"
    second = subprocess.run(
        [
            *(sys.executable, "-m", "tierline", "node", "--capacity", "64MiB"),
            *("--port", str(node.port if shared == "port" else free_port())),
            *("--socket", str(node.socket if shared == "socket" else tmp_path / "second.sock")),
            *("--shared-memory-name", segment),
        ],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert second.returncode != 0
    assert "Traceback" not in second.stderr
    assert node.is_ready()
    assert node.socket.exists()


def test_nobody_but_the_writer_itself_frees_what_it_may_be_writing_into(node: NodeProcess) -> None:
    writer = node.connect(writer=True, client="engine")
    writer.grant(MIB, 1)
    node.kill()
    node.start()
    orphaned = {"client": "engine", "pid": os.getpid(), "size_bytes": MIB}
    node.connect(client="engine").close()  # reads only
    say_its_name = (
        "import sys; from tierline.client import NodeClient; "
        "NodeClient(sys.argv[1], writer=True, client='engine', timeout_s=60)"
    )
    subprocess.run([sys.executable, "-c", say_its_name, str(node.socket)], check=True, timeout=60)
    assert node.stats["orphans"] == [orphaned]
    with node.connect(writer=True, client="engine"):
        assert node.stats["orphans"] == []
    writer.close()


def test_an_operator_sees_orphans_that_nobody_can_come_back_for_and_frees_them(node: NodeProcess) -> None:
    with node.connect(writer=True, client="engine") as writer:
        writer.grant(MIB, 2)
        node.kill()
        node.start()
        with node.http() as http:
            orphan = {"client": "engine", "pid": os.getpid(), "size_bytes": 2 * MIB}
            assert json.loads(http.request("GET", "/v1/orphans")[2]) == {"orphans": [orphan]}
            assert json.loads(http.request("DELETE", "/v1/orphans?client=another")[2]) == {"removed": 0}
            assert json.loads(http.request("DELETE", "/v1/orphans?client=engine")[2]) == {"removed": 2}
            assert json.loads(http.request("GET", "/v1/orphans")[2]) == {"orphans": []}
    assert node.stats["store"]["orphaned_bytes"] == 0
