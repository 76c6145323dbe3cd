"""Buckets with rules, as clients of one node meet them."""

import json
from pathlib import Path

from tests.integration.node.processes import MIB, NodeProcess, wait_until

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
