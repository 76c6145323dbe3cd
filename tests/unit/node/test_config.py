"""Settings of the node: bounds, defaults, and that the documentation has them all."""

import grp
import os
from pathlib import Path

import pytest

from tierline.configuration import load
from tierline.errors import ConfigurationError
from tierline.node.config import NodeConfig
from tierline.node.memory import total_memory_bytes
from tierline.store import BucketRules, Quota

DOCUMENT = Path(__file__).parents[3] / "docs" / "node.md"


@pytest.mark.parametrize("key", sorted(NodeConfig.model_fields))
def test_every_setting_has_its_entry_in_the_documentation(key: str) -> None:
    assert f"| `{key}` |" in DOCUMENT.read_text()


def test_the_node_listens_on_this_machine_only_unless_told_otherwise() -> None:
    assert NodeConfig().host == "127.0.0.1"


def test_a_socket_is_named_after_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert NodeConfig(port=9300).socket_path() == Path("/run/user/1/tierline-9300.sock")
    assert NodeConfig(socket=Path("/x.sock")).socket_path() == Path("/x.sock")


@pytest.mark.parametrize(("given", "mode"), [("0640", 0o640), ("0o600", 0o600), ("666", 0o666), (0o644, 0o644)])
def test_a_file_mode_is_octal_where_it_is_text(given: object, mode: int) -> None:
    assert load(NodeConfig, None, {"shared_memory_mode": given}).shared_memory_mode == mode


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shared_memory_mode", "0999"),
        ("shared_memory_mode", 0o1777),
        ("shared_memory_name", "../etc/passwd"),
        ("capacity", "64KiB"),
        ("keep_alive_s", 30),
        ("eviction", "random"),
        ("port", 0),
        ("max_ttl_s", 0),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_its_flag(key: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"--{key.replace('_', '-')}"):
        load(NodeConfig, None, {key: value})


def test_a_capacity_may_be_a_share_of_the_machines_memory() -> None:
    share = load(NodeConfig, None, {"capacity": "20%"}).capacity
    assert share == pytest.approx(total_memory_bytes() * 0.2, abs=1)


@pytest.mark.parametrize("capacity", ["0%", "101%", "-1%", "x%", "%", "5MB"])
def test_a_capacity_that_is_neither_a_size_nor_a_share_is_refused(capacity: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--capacity: got .* or a share of this machine's memory such as 20%"):
        load(NodeConfig, None, {"capacity": capacity})


HYPERPOD = {
    "daemon.toml": """
        [server]
        address = "[::]:9300"
        [cache]
        capacity = "1GiB"
        shared_memory_name = "ai_toolkit_cache"
        [transfer]
        address = "10.0.0.7:9240"
        """,
    "daemon.yaml": """
        server: {address: "[::]:9300"}
        cache: {capacity: 1GiB, shared_memory_name: ai_toolkit_cache}
        transfer: {address: "10.0.0.7:9240"}
        """,
}


@pytest.mark.parametrize("name", HYPERPOD)
def test_a_file_of_hyperpods_daemon_is_taken(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text(HYPERPOD[name])
    config = load(NodeConfig, file, {"port": 9400}, {})
    assert (config.host, config.port) == ("::", 9400)
    assert (config.capacity, config.shared_memory_name) == (1024**3, "ai_toolkit_cache")
    assert config.transfer_address == "10.0.0.7:9240"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server: {address: localhost}", r"server\.address: got 'localhost'; allowed: an address and a port"),
        ("server: {address: '::1:9200'}", r"server\.address: got '::1:9200'; allowed: an address and a port"),
        ("server: {address: 'a:0'}", r"server\.address: got 0; allowed: greater than"),
        ("server: {port: 9200}", r"server\.port: got 9200; allowed: the keys address of server"),
        ("transfer: {address: 9240}", r"transfer\.address: got 9240; allowed: a valid string"),
        ("transfer_address: x", "transfer_address: got 'x'; allowed: an address and a port"),
        ("cache: {capacity: 5MB}", r"cache\.capacity: got '5MB'; allowed: a size such as"),
        ("cache: {capacity: 1GiB}\ncapacity: 2GiB", r"capacity: got '2GiB'; allowed: capacity once, and .*cache\.cap"),
        ("cache: 5", "cache: got 5; allowed: the keys"),
        ("shared_memory_group: no-such-group", "got 'no-such-group'; allowed: a group of this machine"),
        ("numa_node: -1", "numa_node: got -1; allowed: greater than or equal to 0"),
        ("tls_key: /key", "tls_key: got '/key'; allowed: this key together with tls_certificate"),
        ("tls_certificate: /certificate", "--tls-key: got None; allowed: a PEM file, for tls_certificate is set"),
        ("buckets: {b: {hard_bytes: 1MB}}", r"buckets\[b\]\[hard_bytes\]: got '1MB'; allowed: a size such as"),
        (
            "buckets: {b: {soft_bytes: 2KiB, hard_bytes: 1KiB}}",
            r"\[hard_bytes\]: got '1KiB'; allowed: no less than the s",
        ),
        ("buckets: {b: {tenant: {bytes: 1}}}", r"buckets\[b\]\[tenant\]\[bytes\]: got 1; allowed: "),
        ("buckets: {'b*': {ttl_s: 1}}", r"allowed: the name of one bucket, or \*"),
        ("buckets: {b: {ttl_s: 0}}", r"buckets\[b\]\[ttl_s\]: got 0; allowed: greater than 0"),
        ("buckets: text", "buckets: got 'text'; allowed: a table in a file, or JSON"),
        ("peers: [a]", r"peers: got \['a'\]; allowed: HOST:PORT or NAME=HOST:PORT"),
        ("peers_kubernetes: pods", "peers_kubernetes: got 'pods'; allowed: NAMESPACE/NAME"),
        ("peers_etcd: 'e:1'", "peers_etcd: got 'e:1'; allowed: http://HOST:PORT"),
        ("peers_kubernetes: ns/store", "allowed: this key together with transfer_address"),
        (
            "transfer_address: a:1\npeers_kubernetes: n/s\npeers_etcd: 'http://e:1'",
            "peers_etcd: got 'http://e:1'; allowed: one of peers, peers_kubernetes and peers_etcd",
        ),
        ("max_head: 4KiB", "max_head: got '4KiB'; allowed: greater than or equal to 8192"),
    ],
)
def test_a_wrong_value_of_a_file_is_named_as_it_was_written(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "node.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load(NodeConfig, file, {}, {})


def test_a_group_may_be_named() -> None:
    name = grp.getgrgid(os.getgid()).gr_name
    assert load(NodeConfig, None, {"shared_memory_group": name}).shared_memory_group == os.getgid()
    assert load(NodeConfig, None, {"shared_memory_group": "0"}).shared_memory_group == 0


def test_quotas_are_read_for_buckets_their_tenants_and_all_others() -> None:
    text = '{"vllm": {"soft_bytes": "1KiB", "tenant": {"hard_objects": 7}, "ttl_s": 60}, "*": {"hard_bytes": "2KiB"}}'
    config = load(NodeConfig, None, {}, {"TIERLINE_NODE_BUCKETS": text})
    tenant = Quota(hard_objects=7)
    assert config.bucket_rules() == {"vllm": BucketRules(Quota(soft_bytes=1024), tenant, 60.0)}
    assert config.default_rules() == BucketRules(Quota(hard_bytes=2048))
    assert NodeConfig().default_rules() == BucketRules()
