"""LMCache's settings of our client, beside those of its own: same inputs, same results, same words where it refuses."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tierline.connectors.lmcache import settings

DEFAULTS = {
    "bucket": "lmcache",
    "shared_memory_name": "shared_memory",
    "max_concurrent_requests": 100,
    "max_connections": 256,
    "max_connections_per_host": 128,
    "timeout_ms": 5000,
    "lease_ttl_s": 30.0,
    "put_stream_chunk_bytes": 65536,
    "max_lease_size_mb": None,
}
NUMBERS = [name for name in DEFAULTS if name not in ("bucket", "shared_memory_name")]
WRONG: list[Any] = [0, -1, "0", "-2.5", "many", [], {}, float("nan")]
RIGHT: list[Any] = [1, "7", 100, 1e6, True]


def outcome(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the class and the words of what it raises."""
    try:
        return call()
    except (ValueError, AssertionError) as error:
        return type(error), str(error)


def of_stock(extra_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what LMCache's own adapter gives its connector."""
    connector = pytest.importorskip("lmcache.v1.storage_backend.connector.sagemaker_hyperpod_connector")
    adapter = pytest.importorskip("lmcache.v1.storage_backend.connector.sagemaker_hyperpod_adapter")
    monkeypatch.setattr(connector, "SageMakerHyperPodConnector", lambda **arguments: arguments)
    context = SimpleNamespace(
        config=SimpleNamespace(extra_config=extra_config), loop=1, local_cpu_backend=1, url="sagemaker-hyperpod://h:1"
    )
    return outcome(lambda: adapter.SageMakerHyperPodConnectorAdapter().create_connector(context))


def of_ours(extra_config: dict[str, Any]) -> Any:
    return outcome(lambda: settings.read_extra_config(extra_config, "tierline://h:1"))


def test_an_empty_configuration_means_what_it_means_in_lmcache(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, stock = of_ours({}), of_stock({}, monkeypatch)
    assert ours.urls == (stock["sagemaker_hyperpod_url"],)
    assert {name: getattr(ours, name) for name in DEFAULTS} == DEFAULTS
    assert {name: stock[name] for name in DEFAULTS if name != "bucket"} | {"bucket": stock["bucket_name"]} == DEFAULTS


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [*WRONG, *RIGHT], ids=repr)
def test_a_number_is_taken_or_refused_as_lmcache_does_and_named(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"sagemaker_hyperpod_{name}"
    ours, stock = of_ours({key: value}), of_stock({key: value}, monkeypatch)
    if isinstance(stock, tuple):
        assert ours == stock
        assert key in ours[1]
    elif stock[name] == stock[name]:
        # LMCache's connector, not its adapter, raises what is too low to its floor.
        floors = {"timeout_ms": 100, "put_stream_chunk_bytes": 1024}
        assert getattr(ours, name) == max(stock[name], floors.get(name, stock[name]))


def test_no_name_of_shared_memory_reads_by_get() -> None:
    assert of_ours({"sagemaker_hyperpod_shared_memory_name": None}).shared_memory_name is None


@pytest.mark.parametrize(
    ("url", "use_https", "parsed"),
    [
        ("tierline://127.0.0.1:9200", False, "http://127.0.0.1:9200"),
        ("tierline://127.0.0.1:9200", True, "https://127.0.0.1:9200"),
        ("tierline://http://node:9200", True, "http://node:9200"),
        ("tierline://https://node:9200", False, "https://node:9200"),
        ("tierline://$NODE_IP:9200", False, "http://10.1.2.3:9200"),
        ("tierline://${NODE_IP}:9200", False, "http://10.1.2.3:9200"),
        ("tierline://$ABSENT:9200", False, "http://$ABSENT:9200"),
    ],
)
def test_urls_are_read_as_lmcache_reads_its_own(
    url: str, use_https: bool, parsed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_IP", "10.1.2.3")
    assert settings.parse_url(url, use_https) == parsed
    stock = pytest.importorskip("lmcache.v1.storage_backend.connector.sagemaker_hyperpod_adapter")
    theirs = url.replace("tierline://", "sagemaker-hyperpod://")
    assert stock.SageMakerHyperPodConnectorAdapter._parse_url(theirs, use_https) == parsed
    assert settings.parse_url(theirs, use_https) == parsed


@pytest.mark.parametrize("url", ["", "tierline://"])
def test_a_url_without_a_host_is_refused(url: str) -> None:
    with pytest.raises(AssertionError, match=r"must not be empty|must contain host"):
        settings.parse_url(url, use_https=False)


def test_several_node_stores_are_divided_by_commas() -> None:
    assert settings.split_urls(settings.parse_url("tierline://a:1, b:2/,https://c:3", False)) == (
        "http://a:1",
        "http://b:2",
        "https://c:3",
    )
    for wrong in ("tierline://a:1,,b:2", "tierline://a:1,a:1"):
        with pytest.raises(ValueError, match="url must include a host for each node store"):
            settings.split_urls(settings.parse_url(wrong, False))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"url": ""},
        {"url": 5},
        {"url": "redis://h:1"},
        {"url": "sagemaker-hyperpod://"},
        {"use_https": "yes"},
        {"bucket": ""},
        {"bucket": 7},
        {"shared_memory_name": ""},
        {"max_lease_size_mb": 0},
        {"max_lease_size_mb": True},
        {"max_lease_size_mb": 1.5},
        {"lease_ttl_ms": 30_000.0},
        {"lease_wait_timeout_ms": True},
        {"timeout_ms": 0},
        {"max_connections": "256"},
        {"max_concurrent_requests": -1, "bucket": "other"},
    ],
    ids=repr,
)
def test_the_parameters_of_the_multiprocess_mode_are_taken_or_refused_as_lmcache_does(changes: dict[str, Any]) -> None:
    stock = pytest.importorskip("lmcache.v1.distributed.l2_adapters.sagemaker_hyperpod_l2_adapter")
    params = {"url": "sagemaker-hyperpod://h:1", **changes}
    theirs = outcome(lambda: stock.SageMakerHyperPodL2AdapterConfig.from_dict(params))
    ours = outcome(lambda: settings.read_adapter_params(params))
    if isinstance(theirs, tuple):
        assert ours[0] in (ValueError, AssertionError)
        if "url" not in theirs[1]:
            assert ours == theirs
        return
    assert (ours.bucket, ours.timeout_ms, ours.max_lease_size_mb) == (
        theirs.bucket,
        theirs.timeout_ms,
        theirs.max_lease_size_mb,
    )
    assert (ours.lookup_timeout_ms, ours.lease_ttl_s * 1000) == (theirs.lease_wait_timeout_ms, theirs.lease_ttl_ms)


def test_every_setting_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "lmcache.md").read_text()
    for name in DEFAULTS:
        assert f"`sagemaker_hyperpod_{name}`" in page
    for key in ("use_https", "socket", "token", "ca_file", "url", "lease_wait_timeout_ms"):
        assert f"{key}`" in page


def test_authorities_that_cannot_be_read_are_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("not a certificate")
    for name in ("no.pem", "absent.pem"):
        with pytest.raises(ValueError, match=rf"ca_file '.*{name}'"):
            settings.read_extra_config({"tierline_ca_file": str(tmp_path / name)}, "tierline://https://a:1")


def test_one_socket_is_not_taken_for_two_node_stores() -> None:
    with pytest.raises(ValueError, match=r"one socket, '/run/node\.sock', for 2 node stores"):
        settings.read_adapter_params({"url": "tierline://a:1,b:2", "socket": "/run/node.sock"})
