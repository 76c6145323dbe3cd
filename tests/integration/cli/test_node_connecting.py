"""How the commands of `tierline node` reach a node, and what they say when they cannot: one line, never a traceback."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.cli.conftest import Command
from tests.integration.node.processes import NodeProcess
from tests.integration.node.test_tls import AUTHORITY, TlsNode, write_certificate
from tests.ports import free_port

TOKENS = """
tokens:
  - {name: operator, token: operator-0123456789, rights: {"*": [read, write, admin]}}
  - {name: reader, token: reader-0123456789, rights: {"b": [read]}}
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node that asks for tokens."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "tokens.yaml").write_text(TOKENS)
    (folder / "tokens.yaml").chmod(0o600)
    process = NodeProcess(folder, tokens_file=folder / "tokens.yaml")
    yield process
    process.close()


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsNode]:
    """A node that speaks TLS; its authority is in ``ca.pem`` beside its socket."""
    folder = tmp_path_factory.mktemp("encrypted")
    AUTHORITY.cert_pem.write_to_path(folder / "ca.pem")
    process = TlsNode(folder, **write_certificate(folder))
    yield process
    process.close()


def test_a_node_that_is_down_is_one_line_with_its_address(run: Command) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = run("status", "--url", url)
    assert (done.status, done.output) == (1, "")
    assert done.errors == (
        f"tierline: {url}: no node store answers there (Connection refused); is `tierline node` running?\n"
    )


@pytest.mark.parametrize("url", ["127.0.0.1:9200", "http://", "ftp://node", "http://node:x", "http://a:b@node"])
def test_an_address_that_is_none_is_a_user_s_mistake(run: Command, url: str) -> None:
    done = run("status", "--url", url)
    assert done.status == 2
    assert done.errors == f"tierline: url: got {url!r}; allowed: http://HOST:PORT or https://HOST:PORT\n"


def test_the_address_comes_from_the_environment_too(
    run: Command, node: NodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIERLINE_NODE_URL", node.url)
    assert run("status", "--json").document["segment"]["path"] == str(node.segment)


def test_options_of_serving_are_not_taken_for_the_address(run: Command) -> None:
    done = run("--port", "9300", "status")
    assert (done.status, done.errors) == (2, "tierline: --port: is for serving; `tierline node status` takes --url\n")


def test_without_a_token_the_node_s_words_and_where_one_is_given(run: Command, guarded: NodeProcess) -> None:
    done = run("status", "--url", guarded.url)
    assert done.status == 2
    assert done.errors.startswith(f"tierline: {guarded.url}: ")
    assert done.errors.endswith("; tokens are taken from --token-file and TIERLINE_NODE_TOKEN\n")
    assert done.errors.count("\n") == 1


def test_a_token_is_read_from_a_file_or_the_environment(
    run: Command, guarded: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("operator-0123456789\n")
    assert run("status", "--url", guarded.url, "--token-file", str(tmp_path / "token")).status == 0
    monkeypatch.setenv("TIERLINE_NODE_TOKEN", "operator-0123456789")
    assert run("status", "--url", guarded.url).status == 0
    assert run("status", "--url", guarded.url, "--token-file", str(tmp_path / "token")).status == 2


def test_a_token_whose_rights_do_not_suffice_is_not_echoed(run: Command, guarded: NodeProcess) -> None:
    done = run("rm", "b", "k", "--url", guarded.url, "--token", "reader-0123456789")
    assert done.status == 2
    assert done.errors.startswith(f"tierline: {guarded.url}: ")
    assert "reader-0123456789" not in done.errors + done.output


def test_a_reader_s_token_sees_all_of_the_live_view_but_the_buckets(run: Command, guarded: NodeProcess) -> None:
    live = ("top", "--once", "--interval", "0.1", "--url", guarded.url)
    assert "buckets are shown to tokens with the right admin" in run(*live, "--token", "reader-0123456789").output
    assert "BUSIEST BUCKETS" in run(*live, "--token", "operator-0123456789").output
    assert run(*live).status == 2


def test_a_token_that_no_header_can_hold_is_refused_and_not_echoed(run: Command, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first\nsecond")
    done = run("status", "--token-file", str(tmp_path / "token"))
    assert (done.status, done.errors) == (2, "tierline: token: allowed: printable ASCII without spaces, on one line\n")
    assert run("status", "--token-file", str(tmp_path / "none")).errors == (
        f"tierline: --token-file: cannot read {tmp_path / 'none'}: No such file or directory\n"
    )


def test_a_certificate_is_trusted_where_its_authority_is_named(run: Command, encrypted: TlsNode) -> None:
    distrusted = run("status", "--url", encrypted.url)
    trusted = run("status", "--url", encrypted.url, "--ca", str(encrypted.socket.parent / "ca.pem"))
    assert distrusted.status == 2
    assert distrusted.errors.startswith(f"tierline: {encrypted.url}: its certificate is not trusted: ")
    assert (trusted.status, trusted.errors) == (0, "")


def test_a_node_that_asks_for_certificates_gets_the_one_that_is_named(run: Command, tmp_path: Path) -> None:
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    AUTHORITY.issue_cert("operator").private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
    node = TlsNode(tmp_path, **write_certificate(tmp_path), tls_client_ca=tmp_path / "ca.pem")
    try:
        ask = ("status", "--url", node.url, "--ca", str(tmp_path / "ca.pem"))
        assert run(*ask, "--certificate", str(tmp_path / "own.pem")).status == 0
        anonymous = run(*ask)
    finally:
        node.close()
    assert anonymous.status in (1, 2)
    assert anonymous.errors.count("\n") == 1


def test_a_file_that_holds_no_certificates_is_named(run: Command, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    done = run("status", "--url", "https://127.0.0.1:9200", "--ca", str(tmp_path / "ca.pem"))
    assert done.status == 2
    assert done.errors.startswith(f"tierline: ca: cannot take certificates from {tmp_path / 'ca.pem'}: ")


def test_http_spoken_to_a_tls_port_says_so(run: Command, encrypted: TlsNode) -> None:
    done = run("status", "--url", encrypted.url.replace("https:", "http:"))
    assert done.status == 1
    assert done.errors.endswith("; if it speaks TLS, its address is an https:// one\n")


def test_a_node_with_too_many_connections_says_when_to_try_again(run: Command, tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, max_connections=1, max_connections_per_address=1)
    try:
        with node.http() as idle:
            assert idle.request("GET", "/healthz")[0] == 200
            done = run("status", "--url", node.url)
    finally:
        node.close()
    assert done.status == 1
    assert done.errors.endswith("; try again in 1 s\n")
