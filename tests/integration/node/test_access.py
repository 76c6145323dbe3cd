"""A node with tokens, as its clients meet it, and where a node will not listen."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.node.processes import WITHIN_S, NodeProcess, load, store, wait_until
from tests.ports import free_port

from tierline.client import AsyncNodeClient, NodeClient
from tierline.errors import AccessDenied

ENGINE, READER, OPERATOR = "engine-0123456789", "reader-0123456789", "operator-0123456789"
TENANT = "tenant-0123456789"
TOKENS = f"""
tokens:
  - {{name: engine, token: {ENGINE}, rights: {{"*": [read, write]}}}}
  - {{name: reader, token: {READER}, rights: {{"*": [read]}}}}
  - {{name: operator, token: {OPERATOR}, rights: {{"*": [admin]}}}}
  - {{name: tenant, token: {TENANT}, rights: {{team-a: [read]}}}}
"""


class GuardedNode(NodeProcess):
    def get(self, path: str) -> tuple[int, bytes]:
        if path == "/v1/stats":
            with self.http() as http:
                status, _, body = http.request("GET", path, headers=bearer(OPERATOR))
                return status, body
        return super().get(path)


def bearer(token: str) -> str:
    return f"Authorization: Bearer {token}\r\n"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.yaml"
    file.write_text(TOKENS)
    return file


@pytest.fixture
def node(tmp_path: Path, tokens: Path) -> Iterator[GuardedNode]:
    process = GuardedNode(tmp_path, tokens_file=tokens)
    yield process
    assert all(token not in process.log for token in (ENGINE, READER, OPERATOR))
    process.close()


def test_http_asks_for_a_token_and_for_its_rights(node: GuardedNode) -> None:
    path = "/v1/kv/b/k"
    with node.http() as http:
        status, headers, _ = http.request("PUT", path, b"content")
        assert (status, headers["www-authenticate"].split()[0]) == (401, "Bearer")
        assert http.request("PUT", path, b"content", bearer(READER))[0] == 403
        assert http.request("PUT", path, b"content", bearer(ENGINE))[0] == 200
        assert http.request("GET", path, headers=bearer(READER))[2] == b"content"
        assert http.request("DELETE", path, headers=bearer(ENGINE))[0] == 403
        assert http.request("DELETE", path, headers=bearer(OPERATOR))[0] == 200
        assert http.request("GET", "/metrics")[0] == 401
        assert http.request("GET", "/metrics", headers=bearer(READER))[0] == 200
        assert http.request("GET", "/healthz")[0] == 200


async def test_the_unix_socket_asks_for_a_token_and_for_its_rights(node: GuardedNode) -> None:
    with node.connect(writer=True, token=ENGINE) as engine, node.connect(token=READER) as reader:
        store(engine, "k", b"content")
        assert load(reader, "k") == b"content"
        with pytest.raises(AccessDenied, match="engine may not admin bucket b"):
            engine.delete("b", ["k"])
    with pytest.raises(AccessDenied, match="asks for a token"):
        node.connect()
    with pytest.raises(AccessDenied, match="reader may not write bucket"):
        node.connect(writer=True, token=READER)
    with pytest.raises(AccessDenied, match="does not know"):
        await AsyncNodeClient.connect(node.socket, token="nobody-0123456789", timeout_s=WITHIN_S)


@pytest.mark.parametrize("by_signal", [True, False])
def test_a_token_that_is_withdrawn_ends_without_a_restart(node: GuardedNode, tokens: Path, by_signal: bool) -> None:
    with NodeClient(node.socket, token=READER, timeout_s=WITHIN_S) as reader:
        reader.prefix_lease("b", ["k"], 1)
        tokens.write_text(TOKENS.replace(READER, "another-0123456789"))
        if by_signal:
            node.process.send_signal(signal.SIGHUP)

        def is_denied() -> bool:
            try:
                reader.prefix_lease("b", ["k"], 1)
            except AccessDenied:
                return True
            return False

        wait_until(is_denied)


def test_a_tokens_file_that_breaks_changes_nothing_and_counts(node: GuardedNode, tokens: Path) -> None:
    broken = tokens.with_suffix(".new")
    broken.write_text("tokens: [{name: broken}]")
    broken.replace(tokens)  # at once, and without a hang-up: so it is read once, when the node sees that it changed
    wait_until(lambda: "former tokens stay in force" in node.log)
    with node.http() as http:
        body = http.request("GET", "/metrics", headers=bearer(READER))[2]
    assert b'tierline_node_failed_reloads_total{file="tokens"} 1.0' in body


@pytest.mark.parametrize("anonymous", ["", "anonymous: {lmcache: [read]}\n"])
def test_a_node_that_others_could_reach_does_not_start_unprotected(
    tmp_path: Path, tokens: Path, anonymous: str
) -> None:
    tokens.write_text(TOKENS + anonymous)
    settings = {"TIERLINE_NODE_TOKENS_FILE": str(tokens)} if anonymous else {}
    refused = subprocess.run(
        [sys.executable, "-m", "tierline", "node", "--host", "0.0.0.0", "--port", str(free_port())],
        env={**os.environ, **settings, "TIERLINE_NODE_SHARED_MEMORY_DIRECTORY": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 2
    assert "can be reached from other machines" in refused.stderr
    assert not list(tmp_path.glob("shared_memory*"))


def test_a_node_that_others_can_reach_starts_in_a_network_that_is_trusted(tmp_path: Path) -> None:
    NodeProcess(tmp_path, host="0.0.0.0", trusted_network="true").close()


def test_a_node_tells_how_its_segment_lies_in_memory(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, shared_memory_group=os.getgid(), shared_memory_mode="0660", huge_pages="true")
    try:
        found = node.stats["segment"]
        assert set(found) >= {"huge_bytes", "numa_bytes"}
        assert node.segment.stat().st_mode & 0o777 == 0o660
    finally:
        node.close()


def test_leases_are_counted_by_token_and_not_by_what_their_holders_call_themselves(
    tmp_path: Path, tokens: Path
) -> None:
    node = GuardedNode(tmp_path, tokens_file=tokens, max_leases_per_client=2)
    try:
        path = "/v1/kv/b/k/leases?ttl_s=30"
        with node.http() as http:
            assert http.request("PUT", "/v1/kv/b/k", b"content", bearer(ENGINE))[0] == 200
            names = ["one", "two", "three"]
            asked = [
                http.request("POST", path, b"", f"{bearer(READER)}X-Tierline-Client: {name}\r\n") for name in names
            ]
            assert [status for status, _, _ in asked] == [200, 200, 429]
            assert b"token:reader" in asked[2][2]
            assert http.request("POST", path, b"", bearer(ENGINE))[0] == 200
    finally:
        node.close()


def test_names_of_others_are_seen_by_who_has_a_right_on_every_bucket(node: GuardedNode) -> None:
    def seen(token: str) -> tuple[bool, bool, bool, bool]:
        with node.http() as http:
            text = http.request("GET", "/metrics", headers=bearer(token))[2]
            stats = json.loads(http.request("GET", "/v1/stats", headers=bearer(token))[2])
        assert b"tierline_node_capacity_bytes" in text
        assert stats["store"]["objects"] == 1
        clients = [client["client"] for client in stats["socket"]["connections"]]
        return b"merger-2026" in text, bool(stats["segments"]), clients == ["engine-7"], "merger" in json.dumps(stats)

    with node.connect(writer=True, token=ENGINE, client="engine-7") as engine:
        store(engine, "k", b"x", bucket="merger-2026")
        assert seen(READER) == seen(OPERATOR) == (True, True, True, False)
        assert seen(TENANT) == (False, False, False, False)
