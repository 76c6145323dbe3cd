"""Buckets with rules, and with segments of their own, as clients of one node meet them."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from tests.integration.node.processes import MIB, NodeProcess, load, store, wait_until

from tierline.errors import AccessDenied, WireError

BUCKETS = {"small": {"hard_bytes": "1MiB"}, "shared": {"tenant": {"hard_objects": 1}}, "short": {"ttl_s": 0.5}}


def test_quotas_and_times_to_live_hold_by_bucket(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, buckets=json.dumps(BUCKETS), grace_s=0)

    def is_stored(bucket: str, name: str) -> bool:
        return http.request("HEAD", f"/v1/kv/{bucket}/{name}")[0] == 200

    try:
        with node.http() as http:
            for name in ("first", "second"):
                assert http.request("PUT", f"/v1/kv/small/{name}", bytes(MIB))[0] == 200
            assert (is_stored("small", "first"), is_stored("small", "second")) == (False, True)
            assert http.request("PUT", "/v1/kv/small/large", bytes(2 * MIB))[0] == 507
            assert http.request("PUT", "/v1/kv/other/large", bytes(2 * MIB))[0] == 200

            for name in ("m@00000001@0@ab@one", "m@00000001@0@cd@one", "m@00000001@0@ef@two"):
                assert http.request("PUT", f"/v1/kv/shared/{name}", b"x")[0] == 200
            assert not is_stored("shared", "m@00000001@0@ab@one")
            assert is_stored("shared", "m@00000001@0@ef@two")

            http.request("PUT", "/v1/kv/short/lived", b"x")
            wait_until(lambda: not is_stored("short", "lived"))
            assert is_stored("other", "large")
    finally:
        node.close()


TEAM_A: dict[str, Any] = {"capacity": "8MiB", "buckets": ["team-a*"]}
TOKENS = """
tokens:
  - {name: team-a, token: team-a-0123456789, rights: {"team-a*": [read, write]}}
  - {name: others, token: others-0123456789, rights: {"other*": [read, write]}}
"""


def test_tenants_with_a_segment_of_their_own_share_no_memory(tmp_path: Path) -> None:
    name = f"tierline-test-{uuid.uuid4().hex[:12]}"
    (tmp_path / "tokens.yaml").write_text(TOKENS)
    segments = json.dumps([{**TEAM_A, "name": name}])
    node = NodeProcess(tmp_path, segments=segments, tokens_file=tmp_path / "tokens.yaml")
    path = Path("/dev/shm") / name
    try:
        assert path.stat().st_mode & 0o777 == 0o600
        with node.connect(writer=True, token="team-a-0123456789", segment=name) as client:
            assert client.segment_bytes == 8 * MIB
            store(client, "k", b"of team a", bucket="team-a")
            assert load(client, "k", bucket="team-a") == b"of team a"
            with pytest.raises(AccessDenied, match="team-a may not read bucket other"):
                client.prefix_lease("other", ["k"], 1)
        for token, segment in (("team-a-0123456789", ""), ("others-0123456789", name)):
            with pytest.raises(AccessDenied, match="who maps a segment has all of it"):
                node.connect(token=token, segment=segment)
        with pytest.raises(WireError, match="no segment 'absent' at this node"):
            node.connect(token="team-a-0123456789", segment="absent")
        assert b"of team a" in path.read_bytes()
        assert b"of team a" not in node.segment.read_bytes()
    finally:
        node.close()
        for left in path.parent.glob(f"{name}*"):
            left.unlink()


def test_every_bucket_is_served_from_its_segment_and_adopted_into_it(tmp_path: Path) -> None:
    name = f"tierline-test-{uuid.uuid4().hex[:12]}"
    node = NodeProcess(tmp_path, segments=json.dumps([{**TEAM_A, "name": name, "mode": "0666"}]))
    try:
        with node.http() as http:
            for bucket in ("team-a", "lmcache"):
                assert http.request("PUT", f"/v1/kv/{bucket}/k", bucket.encode() * 1000)[0] == 200
                granted = json.loads(http.request("POST", f"/v1/kv/{bucket}/k/leases?timeout_ms=1&ttl_s=9")[2])
                [extent] = granted["offsets"]
                memory = (Path("/dev/shm") / name if bucket == "team-a" else node.segment).read_bytes()
                assert memory[extent["offset"] : extent["offset"] + extent["len"]] == bucket.encode() * 1000
                assert http.request("POST", f"/v1/leases/{granted['id']}/release")[0] == 200
            targets = ["/v1/kv/team-a/k", "/v1/kv/lmcache/k"] * 10
            http.send(b"".join(f"GET {target} HTTP/1.1\r\n\r\n".encode() for target in targets))
            assert [http.receive()[0] for _ in targets] == [200] * 20
        found = {segment["name"]: segment["store"] for segment in node.stats["segments"]}
        assert [found[segment]["leases"] for segment in found] == [0, 0]
        with node.connect() as client, pytest.raises(WireError, match="bucket team-a is not in segment"):
            client.prefix_lease("team-a", ["k"], 1)
        with node.connect(bucket="team-a") as client:
            assert load(client, "k", bucket="team-a") == b"team-a" * 1000
        assert f'tierline_node_objects{{segment="{name}"}} 1.0' in node.get("/metrics")[1].decode()

        node.kill()
        node.start()
        for bucket in ("team-a", "lmcache"):
            assert node.get(f"/v1/kv/{bucket}/k")[1] == bucket.encode() * 1000
    finally:
        node.close()
        for left in Path("/dev/shm").glob(f"{name}*"):
            left.unlink()
