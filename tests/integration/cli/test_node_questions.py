"""What an operator asks `tierline node`: what is in it, who uses it, why was this a miss. In tables and in JSON."""

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import xxhash
from tests.integration.cli.conftest import Command
from tests.integration.node.processes import NodeProcess, wait_until

from tierline.prefix import Shard, object_name, tenant_field

BLOCK = bytes(range(256)) * 256
CHECKSUM = xxhash.xxh3_64_hexdigest(BLOCK)
Put = Callable[..., None]


@pytest.fixture
def put(ask: Command, tmp_path: Path) -> Put:
    """Store blocks under keys of a bucket."""
    block = tmp_path / "block"
    block.write_bytes(BLOCK)

    def put(bucket: str, *keys: str) -> None:
        for key in keys:
            assert ask("put", bucket, key, str(block)).status == 0

    return put


@pytest.fixture
def small(tmp_path: Path) -> Iterator[NodeProcess]:
    """A node with room for 31 blocks of a page."""
    process = NodeProcess(tmp_path, capacity="2MiB", grace_s=0)
    yield process
    process.close()


# The node ---------------------------------------------------------------------------------------------------------


def test_status_is_the_document_of_the_api_or_a_page_of_it(ask: Command, node: NodeProcess, put: Put) -> None:
    put("status", "a")
    document, page = ask("status", "--json").document, ask("status")
    assert document.keys() == node.stats.keys()
    assert (page.status, page.errors) == (0, "")
    facts = {line.split("  ")[0]: line for line in page.output.splitlines()}
    assert {"node", "segment", "bytes", "objects", "leases", "lookups", "misses", "gone"} <= facts.keys()
    assert str(node.segment) in facts["segment"]


def test_status_names_the_clients_of_the_socket(ask: Command, node: NodeProcess) -> None:
    with node.connect(client="engine-7", writer=True) as client:
        client.grant(65536, 2)
        line = next(line for line in ask("status").output.splitlines() if line.startswith("client"))
    assert "engine-7" in line
    assert "2 open slots, 128KiB" in line


def test_status_counts_all_segments_of_a_node_and_tells_them_apart(run: Command, tmp_path: Path) -> None:
    own = f"tierline-test-{uuid.uuid4().hex[:12]}"
    segments = msgspec.json.encode([{"name": own, "capacity": "4MiB", "buckets": ["team-a"]}]).decode()
    node = NodeProcess(tmp_path, segments=segments)
    try:
        with node.http() as http:
            for bucket in ("team-a", "others"):
                assert http.request("PUT", f"/v1/kv/{bucket}/key", BLOCK)[0] == 200
        page = run("status", "--url", node.url)
    finally:
        node.close()
        for path in node.segment.parent.glob(f"{own}*"):
            path.unlink()
    assert next(row for row in page.rows if row[0] == "objects")[1].startswith("2 in 2 extents")
    first, second = (row[1] for row in page.rows if row[0] == "of it")
    assert first.startswith(f"{node.segment_name}, 64MiB for ")
    assert second == f"{own}, 4MiB for team-a: used 64KiB, 1 object, 0 leases"


def test_buckets_show_who_has_how_much(ask: Command, put: Put) -> None:
    put("team-a", "a", "b", f"model@00000000@0@5f3a@{'tenant'}")
    rows = {tuple(row[:2]): row for row in ask("buckets").rows}
    assert rows["team-a", "-"][2:4] == ["2", "128KiB"]
    assert rows["team-a", "tenant"][2:4] == ["1", "64KiB"]
    entry = next(entry for entry in ask("buckets", "--json").document["namespaces"] if entry["salt"] == "tenant")
    assert (entry["bucket"], entry["objects"], entry["bytes"]) == ("team-a", 1, 65536)


# Objects ----------------------------------------------------------------------------------------------------------


def test_objects_are_listed_by_bucket_prefix_and_tenant(ask: Command, put: Put) -> None:
    put("listed", "a1", "a2", "b1", "model@00000000@0@5f3a@tenant")
    put("other", "a1")

    def names(*arguments: str) -> set[tuple[str, str]]:
        objects = ask("ls", *arguments, "--json").document["objects"]
        return {(entry["bucket"], entry["name"]) for entry in objects}

    assert names("listed", "--prefix", "a") == {("listed", "a1"), ("listed", "a2")}
    assert names("listed", "--salt", "tenant") == {("listed", "model@00000000@0@5f3a@tenant")}
    assert names("listed", "--salt", "") == {("listed", "a1"), ("listed", "a2"), ("listed", "b1")}
    assert names("--limit", "1000") >= {("listed", "a1"), ("other", "a1")}
    assert ask("ls", "absent", "--json").document == {"objects": [], "cursor": ""}


def test_a_list_is_a_table_for_people_and_says_that_there_is_more(ask: Command, put: Put) -> None:
    put("table", *(f"key-{number}" for number in range(5)))
    whole = ask("ls", "table")
    part = ask("ls", "table", "--limit", "2")
    assert whole.rows[0][:3] == ["BUCKET", "KEY", "SIZE"]
    assert sorted(row[1] for row in whole.rows[1:]) == [f"key-{number}" for number in range(5)]
    assert whole.errors == ""
    assert len(part.rows) == 3
    assert part.errors == "the first 2; there are more: --limit, or --prefix to narrow the list\n"


def test_a_list_goes_on_at_its_cursor(ask: Command, put: Put) -> None:
    put("paged", *(f"key-{number}" for number in range(7)))
    found, cursor = [], ""
    for _ in range(7):
        page = ask("ls", "paged", "--limit", "3", "--json", "--cursor", cursor).document
        found += [entry["name"] for entry in page["objects"]]
        cursor = page["cursor"]
        if not cursor:
            break
    assert sorted(found) == [f"key-{number}" for number in range(7)]


def test_stat_tells_all_of_one_object(ask: Command, put: Put) -> None:
    put("one", "org/model@x")
    document, page = ask("stat", "one", "org/model@x", "--json").document, ask("stat", "one", "org/model@x")
    assert (document["size"], document["checksum"], document["salt"]) == (len(BLOCK), CHECKSUM, "")
    assert {"age_s", "idle_s", "hits", "leases", "fragments", "is_verified", "pinned_s", "expires_s"} <= document.keys()
    assert ["checksum", f"{CHECKSUM}, verified"] in page.rows
    assert ["size", "65,536 bytes in 1 extent"] in page.rows


def test_stat_of_what_is_not_stored_says_why(ask: Command) -> None:
    done = ask("stat", "one", "absent")
    assert done.status == 1
    assert "(never_stored)" in done.errors


def test_a_name_that_a_terminal_would_obey_is_printed_harmless(ask: Command, put: Put) -> None:
    put("evil", "a\x1b[2J\nb")
    assert "a\\x1b[2J\\nb" in ask("ls", "evil").output


def test_pins_are_shown_and_end(ask: Command, put: Put) -> None:
    put("pins", "a", "b")
    assert ask("pin", "pins", "a", "b", "--ttl", "600").output == "2 objects pinned for 10 min\n"
    assert 590 < ask("stat", "pins", "a", "--json").document["pinned_s"] <= 600
    (again,) = ask("pin", "pins", "a", "--ttl", "60", "--json").document["objects"]
    assert (again["bucket"], again["name"]) == ("pins", "a")
    assert 0 < again["pinned_s"] <= 60
    assert ask("unpin", "pins", "a").output == "1 object no longer pinned\n"
    assert ask("unpin", "pins", "b", "--json").document == {
        "objects": [{"bucket": "pins", "name": "b", "pinned_s": 0.0}]
    }
    assert ask("stat", "pins", "a", "--json").document["pinned_s"] == 0
    assert ask("pin", "pins", "absent").status == 1


# Leases -----------------------------------------------------------------------------------------------------------


def test_leases_show_who_holds_what_for_how_long(ask: Command, node: NodeProcess, put: Put) -> None:
    put("leased", "a", "b")
    with node.connect(client="engine-3") as client:
        lease = client.prefix_lease("leased", ["a", "b"], 30.0)
        listed = ask("leases", "--json").document["leases"]
        rows = ask("leases").rows
    entry = next(entry for entry in listed if entry["id"] == lease.lease)
    assert "engine-3" in entry["holder"]
    assert (entry["objects"], entry["bytes"]) == (2, 2 * len(BLOCK))
    assert 20 < entry["expires_in_s"] <= 30
    row = next(row for row in rows if lease.lease in row)
    assert row[1:3] == ["2", "128KiB"]
    wait_until(lambda: lease.lease not in {entry["id"] for entry in ask("leases", "--json").document["leases"]})


# Why was this a miss ----------------------------------------------------------------------------------------------


def test_a_miss_is_explained(ask: Command, put: Put) -> None:
    put("why", "stored", "removed")
    ask("rm", "why", "removed")
    kinds = {key: ask("explain", "why", key, "--json").document["kind"] for key in ("stored", "removed", "absent")}
    assert kinds == {"stored": "stored", "removed": "deleted", "absent": "never_stored"}
    assert ask("explain", "why", "removed").output.startswith("deleted ")
    assert ask("explain", "why", "absent").output.startswith("never_stored: ")


def test_an_eviction_is_explained_with_its_time(run: Command, small: NodeProcess) -> None:
    written = {f"key-{number}" for number in range(40)}
    with small.http() as http:
        for key in written:
            assert http.request("PUT", f"/v1/kv/kv/{key}", BLOCK)[0] == 200
    stored = {entry["name"] for entry in run("ls", "kv", "--json", "--url", small.url).document["objects"]}
    missing = min(written - stored)

    document = run("explain", "kv", missing, "--json", "--url", small.url).document
    assert document["kind"] == "evicted"
    assert document["ago_s"] >= 0
    assert run("explain", "kv", missing, "--url", small.url).output.startswith("evicted ")


def test_another_tenant_s_and_another_layout_s_object_is_no_hit_and_said_so(ask: Command, put: Put) -> None:
    chain, shard = bytes(range(32)), Shard(kv_dtype="bfloat16", layout="hnd128-1")
    other_shard = Shard(kv_dtype="bfloat16", layout="nhd128-1")
    here, there = tenant_field("salt of tenant a"), tenant_field("salt of tenant b")
    put("ours", object_name(chain, shard, here), object_name(bytes(32), shard, there))
    put("ours", object_name(bytes(32), other_shard, here))
    assert ask("explain", "ours", object_name(chain, shard, there), "--json").document["kind"] == "other_tenant"
    assert ask("explain", "ours", object_name(chain, other_shard, here), "--json").document["kind"] == "other_layout"


# Checking and removing --------------------------------------------------------------------------------------------


def overwrite(node: NodeProcess, content: bytes) -> None:
    """Change the first byte of every copy of ``content`` in the segment, as broken memory would."""
    with node.segment.open("r+b") as segment:
        data, at = segment.read(), -1
        while (at := data.find(content, at + 1)) >= 0:
            segment.seek(at)
            segment.write(bytes([content[0] ^ 1]))


def test_bytes_are_compared_with_their_checksums(ask: Command, put: Put) -> None:
    put("checked", "a", "b")
    assert ask("verify", "checked", "a").output == "checked/a: its bytes match their checksum\n"
    assert ask("verify", "checked", "a", "--json").document == {"result": "match"}
    assert ask("verify", "checked", "--json").document == {"match": 2, "mismatch": 0, "missing": 0, "dropped": []}
    absent = ask("verify", "checked", "absent")
    assert (absent.status, absent.errors.count("\n")) == (1, 1)


def test_what_does_not_match_is_dropped_and_named(ask: Command, node: NodeProcess, tmp_path: Path) -> None:
    content = bytes(reversed(range(256))) * 256
    (tmp_path / "block").write_bytes(content)
    for key in ("a", "b"):
        ask("put", "broken", key, str(tmp_path / "block"))
    overwrite(node, content)
    done = ask("verify", "broken")
    assert done.status == 1
    assert done.output.splitlines()[0] == "broken: 0 match, 2 do not and were dropped, 0 went meanwhile"
    assert sorted(done.output.splitlines()[1:]) == ["dropped: a", "dropped: b"]
    assert "2 of 2 objects did not match" in done.errors
    assert ask("explain", "broken", "a", "--json").document["kind"] == "corrupt"


def test_a_flush_removes_what_it_names_and_nothing_else(ask: Command, put: Put) -> None:
    put("flushed", "a", "b", "model@00000000@0@5f3a@tenant")
    put("kept", "a")
    assert ask("flush", "flushed", "--salt", "tenant", "--yes", "--json").document == {"removed": 1}
    assert ask("flush", "flushed", "--yes").output == "2 objects removed: bucket flushed\n"
    assert ask("ls", "flushed", "--json").document["objects"] == []
    assert ask("stat", "kept", "a").status == 0
    assert ask("explain", "flushed", "a", "--json").document["kind"] == "flushed"


def test_a_flush_that_cannot_ask_removes_nothing(node: NodeProcess, ask: Command, put: Put) -> None:
    put("asked", "a")
    command = [sys.executable, "-m", "tierline", "node", "flush", "asked", "--url", node.url]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("tierline: --yes: ")
    assert ask("stat", "asked", "a").status == 0


def test_every_bucket_is_flushed_where_none_is_named(run: Command, small: NodeProcess, tmp_path: Path) -> None:
    (tmp_path / "block").write_bytes(BLOCK)
    for bucket in ("a", "b"):
        run("put", bucket, "key", str(tmp_path / "block"), "--url", small.url)
    assert run("flush", "--yes", "--url", small.url).output == "2 objects removed: every bucket\n"
