"""`tierline node cluster`: a node's document of its pool as pages for people and as JSON."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import msgspec
import pytest
from tests.integration.cli.conftest import Command

from tierline.wire.cluster import ClusterView, MemberFigures, TierFigures, TrafficFigures

MIB = 1024**2
POOL = ClusterView(
    node="a",
    pool="team",
    source="etcd http://127.0.0.1:2379/tierline/members",
    is_behind=True,
    members=[
        MemberFigures(
            name="a",
            address="10.0.0.1:9240",
            state="self",
            epoch=3,
            slots=3072,
            entries=5,
            objects=4,
            used_bytes=MIB,
            capacity_bytes=4 * MIB,
        ),
        MemberFigures(
            name="b",
            address="10.0.0.2:9240",
            state="alive",
            epoch=0x123456789ABCDEF0,
            slots=1024,
            entries=2,
            objects=1,
            used_bytes=3 * MIB,
            capacity_bytes=4 * MIB,
            heard_s=0.4,
            round_trip_s=0.0012,
            traffic=TrafficFigures(fetched_bytes=2 * MIB, sent_bytes=MIB, failed_objects=1, bytes_per_s=1.5 * 1024**3),
        ),
        MemberFigures(name="c", address="10.0.0.3:9240", state="away", why="Connection refused", heard_s=70.0),
    ],
    tiers=[TierFigures(name="tieredstorage", hits=3, misses=1, fetched_bytes=2 * MIB)],
)


@pytest.fixture
def answering() -> Iterator[Callable[[ClusterView], str]]:
    """Serve a document at ``/v1/cluster``; gives the address."""
    servers: list[HTTPServer] = []

    def serve(view: ClusterView) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = msgspec.json.encode(view)
                self.send_response(200 if self.path == "/v1/cluster" else 404)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_members_shares_and_traffic_are_a_page_for_people(run: Command, answering: Callable[..., str]) -> None:
    done = run("cluster", "--url", answering(POOL))
    assert (done.status, done.errors) == (0, "")
    facts = {row[0]: row[1] for row in done.rows if len(row) == 2}
    assert facts["pool"] == "team"
    assert facts["members"].startswith("2 of 3 take part, by etcd http://127.0.0.1:2379/tierline/members; it cannot")
    assert facts["bytes"] == "4MiB of 8MiB: 50.0 %"
    assert facts["directory"] == "7 entries in 4,096 slots"
    assert facts["missing"] == "c: away, heard 1 min 10 s ago: Connection refused"
    rows = {tuple(row[:2]): row[2:] for row in done.rows if len(row) > 3}
    assert rows["b", "alive"] == [
        *("10.0.0.2:9240", "bcdef0", "1,024 (25.0 %)", "2", "1", "3MiB", "4MiB"),
        *("2MiB", "1MiB", "1", "1.5GiB/s", "1.2 ms"),
    ]
    assert rows["c", "away"][:3] == ["10.0.0.3:9240", "-", "-"]
    assert rows["tieredstorage", "3"][:3] == ["1", "75.0 %", "2MiB"]


def test_the_same_is_one_document(run: Command, answering: Callable[..., str]) -> None:
    done = run("cluster", "--json", "--url", answering(POOL))
    assert msgspec.convert(done.document, ClusterView) == POOL


def test_a_node_in_no_pool_says_so(run: Command, answering: Callable[..., str]) -> None:
    done = run("cluster", "--url", answering(ClusterView(node="alone")))
    assert done.rows[1] == ["pool", "none: it serves its own machine only"]
