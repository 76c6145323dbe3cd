"""A node with a certificate: PUTs into the segment and replies out of it, encrypted; renewal; clients' certificates."""

import asyncio
import importlib.util
import os
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.integration.node.processes import MIB, WITHIN_S, HttpClient, NodeProcess, head, wait_until
from tests.ports import free_port

AUTHORITY = trustme.CA()


def write_certificate(folder: Path) -> dict[str, Any]:
    """Put a new certificate, with its key, into ``folder``; returns the node's settings."""
    issued = AUTHORITY.issue_cert("127.0.0.1", "localhost")
    replace(folder / "node.pem", issued.private_key_and_cert_chain_pem.bytes())
    return {"tls_certificate": folder / "node.pem", "tls_key": folder / "node.pem"}


def replace(file: Path, content: bytes) -> None:
    """Write a file at once, as who renews certificates does: a node that looks at it meanwhile reads no half of it."""
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.replace(file)


def client_context(issued: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    if issued is not None:
        issued.configure_cert(context)
    return context


class TlsNode(NodeProcess):
    context = client_context(AUTHORITY.issue_cert("client"))

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=WITHIN_S, context=self.context) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except urllib.error.URLError as error:
            raise OSError(str(error.reason)) from error

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def metric(self, name: str) -> float:
        lines = self.get("/metrics")[1].decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def http(self, context: ssl.SSLContext | None = None) -> HttpClient:
        client = HttpClient(self.port)
        client.socket = (context or self.context).wrap_socket(client.socket, server_hostname="127.0.0.1")
        return client


StartNode = Callable[..., TlsNode]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartNode]:
    started: list[TlsNode] = []

    def start(**settings: Any) -> TlsNode:
        started.append(TlsNode(tmp_path, **write_certificate(tmp_path), **settings))
        return started[-1]

    yield start
    for node in started:
        node.close()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_objects_go_in_and_out_encrypted(start: StartNode, loop: str) -> None:
    node = start(event_loop=loop)
    content = os.urandom(8 * MIB + 13)
    with node.http() as http:
        assert http.request("PUT", "/v1/kv/b/k", content)[0] == 200
        assert http.request("PUT", "/v1/kv/b/k", content)[0] == 409
        assert http.request("POST", "/v1/kv/b/k/leases?timeout_ms=1&ttl_s=1")[0] == 200
        http.send(head("GET", "/v1/kv/b/k", 0) + head("HEAD", "/v1/kv/b/k", 0) + head("GET", "/healthz", 0))
        assert http.receive()[2] == content
        assert http.receive(has_body=False)[1]["content-length"] == str(len(content))
        assert http.receive()[2] == b"ok\n"
        http.send(b"nonsense\r\n\r\n")
        assert http.receive()[0] == 400
        assert http.is_closed_by_peer()


def test_a_put_that_ends_half_way_is_undone(start: StartNode) -> None:
    node = start()
    with node.http() as http:
        http.send(head("PUT", "/v1/kv/b/half", 4 * MIB) + bytes(MIB))
        wait_until(lambda: node.stats["store"]["slots"] == 1)
    wait_until(lambda: node.stats["store"]["slots"] == 0)


def test_a_reader_that_pauses_gets_all_of_its_object_in_the_end(start: StartNode) -> None:
    node = start()
    content = os.urandom(16 * MIB)
    with node.http() as http:
        http.request("PUT", "/v1/kv/b/k", content)
        http.send(head("GET", "/v1/kv/b/k", 0))
        wait_until(lambda: node.stats["store"]["leases"] == 1)
        assert http.receive()[2] == content
    wait_until(lambda: node.stats["store"]["leases"] == 0)


def test_a_renewed_certificate_is_shown_to_new_connections_and_old_ones_go_on(start: StartNode, tmp_path: Path) -> None:
    node = start()

    def shown() -> object:
        with node.http() as http:
            assert isinstance(http.socket, ssl.SSLSocket)
            certificate = http.socket.getpeercert()
            assert certificate is not None
            return certificate["serialNumber"]

    first = shown()
    with node.http() as open_before:
        write_certificate(tmp_path)
        wait_until(lambda: shown() != first)
        second = shown()
        replace(tmp_path / "node.pem", b"half a certificate")
        wait_until(lambda: node.metric('tierline_node_failed_reloads_total{file="certificate"}') == 1)
        assert shown() == second
        assert open_before.request("GET", "/healthz")[0] == 200
    assert node.metric("tierline_node_certificate_expiry_seconds") > 1e9


def test_clients_without_a_certificate_are_not_served_where_one_is_asked_for(start: StartNode, tmp_path: Path) -> None:
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    node = start(tls_client_ca=tmp_path / "ca.pem", host="0.0.0.0")
    with node.http() as http:
        assert http.request("GET", "/healthz")[0] == 200
    with pytest.raises((ssl.SSLError, ConnectionError)), node.http(client_context()) as stranger:
        stranger.request("GET", "/healthz")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        node.http(client_context(trustme.CA().issue_cert("client"))).request("GET", "/healthz")
    wait_until(lambda: node.metric("tierline_node_tls_failed_handshakes_total") >= 2)


def silent_clients(node: TlsNode) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", node.port), timeout=WITHIN_S) for _ in range(4)]


def test_a_handshake_that_never_comes_is_given_up(start: StartNode) -> None:
    node = start(head_timeout_s=1)
    silent = silent_clients(node)
    assert [client.recv(1) for client in silent] == [b""] * 4
    for client in silent:
        client.close()
    assert node.is_ready()
    wait_until(lambda: node.metric("tierline_node_tls_failed_handshakes_total") == 4)


def test_who_has_not_shaken_hands_yet_has_a_place_all_the_same(start: StartNode) -> None:
    node = start(head_timeout_s=60, max_connections=4, max_connections_per_address=4)
    silent = silent_clients(node)
    with pytest.raises((ssl.SSLError, ConnectionError, OSError)):
        node.http()
    for client in silent:
        client.close()
    wait_until(node.is_ready)
    assert node.metric('tierline_node_limits_reached_total{limit="max_connections"}') >= 1


def test_a_client_without_tls_is_closed_on(start: StartNode) -> None:
    node = start()
    with HttpClient(node.port) as plain:
        plain.send(head("GET", "/healthz", 0))
        assert plain.is_closed_by_peer()


def test_tokens_do_not_go_over_an_open_network_unencrypted(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text("tokens: [{name: engine, token: engine-0123456789}]")
    refused = subprocess.run(
        [sys.executable, "-m", "tierline", "node", "--host", "0.0.0.0", "--port", str(free_port())],
        env={**os.environ, "TIERLINE_NODE_TOKENS_FILE": str(tokens)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 2
    assert "would get tokens unencrypted" in refused.stderr


LMCACHE = """
import asyncio, os, sys
from lmcache.v1.distributed.l2_adapters.sagemaker_hyperpod_client import SageMakerHyperPodClient

async def main(port, segment):
    client = SageMakerHyperPodClient(
        f"sagemaker-hyperpod://127.0.0.1:{port}", shared_memory_name=segment, use_https=True,
        timeout_ms=60_000, lease_wait_timeout_ms=30_000,
    )
    content = os.urandom(2_949_120)
    assert await client.put("k", memoryview(content))
    lease = await client.acquire_lease("k")
    found = bytearray(lease.size)
    assert client.copy_from_lease(lease, memoryview(found)) and found == content
    assert await client.release_lease(lease)
    assert client.report_status()["consecutive_http_failures"] == 0
    await client.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.skipif(importlib.util.find_spec("lmcache") is None, reason="lmcache is not installed")
async def test_lmcaches_multiprocess_client_works_over_https(start: StartNode, tmp_path: Path) -> None:
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    node = start()
    finished = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", LMCACHE, str(node.port), node.segment_name],
        env={**os.environ, "SSL_CERT_FILE": str(tmp_path / "ca.pem")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
