"""Command lines of replicas, and the machine's answers that they depend on."""

import itertools
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tierline.configuration import load
from tierline.errors import ConfigurationError, EnvironmentTooSmall, UsageError
from tierline.stack import engines, lmcache, machine, model
from tierline.stack.config import UpConfig
from tierline.stack.plan import make_plan


def vllm_command(**changes: Any) -> engines.EngineCommand:
    settings: dict[str, Any] = {
        "model": Path("/models/m"),
        "served_name": "m",
        "port": 8001,
        "threads": 1,
        "kv_cache_bytes": 1024**3,
        "kv_transfer": None,
        "kv_events": None,
        "dtype": "float32",
        "dev_mode": False,
        "arguments": [],
    }
    return engines.vllm_cpu_command(**{**settings, **changes})


def value_after(flag: str, argv: list[str]) -> str:
    return argv[argv.index(flag) + 1]


def values_after(flag: str, argv: list[str]) -> list[str]:
    return [value for given, value in itertools.pairwise(argv) if given == flag]


def test_a_replica_is_joined_by_one_flag_alone() -> None:
    with_cache = vllm_command(kv_transfer={"kv_role": "kv_both"}).argv
    assert json.loads(value_after("--kv-transfer-config", with_cache)) == {"kv_role": "kv_both"}
    without = [part for part in with_cache if part not in with_cache[with_cache.index("--kv-transfer-config") :]]
    assert vllm_command().argv == without


def test_a_replica_publishes_kv_events_where_it_is_told() -> None:
    events = engines.EventAddresses("ipc:///run/a.events", "ipc:///run/a.replay")
    assert json.loads(value_after("--kv-events-config", vllm_command(kv_events=events).argv)) == {
        "enable_kv_cache_events": True,
        "endpoint": "ipc:///run/a.events",
        "replay_endpoint": "ipc:///run/a.replay",
    }
    assert value_after(
        "--kv-events-endpoint", engines.simulated_command(model="m", port=1, store=None, kv_events=events).argv
    ) == ("ipc:///run/a.events")


def test_the_engine_s_cache_is_rounded_up_to_whole_gibibytes() -> None:
    assert vllm_command(kv_cache_bytes=1024**3 + 1).environment["VLLM_CPU_KVCACHE_SPACE"] == "2"


def test_development_routes_are_opened_only_on_request() -> None:
    assert "VLLM_SERVER_DEV_MODE" not in vllm_command().environment
    assert vllm_command(dev_mode=True).environment["VLLM_SERVER_DEV_MODE"] == "1"


def test_a_replica_reports_to_nobody_and_listens_on_loopback() -> None:
    command = vllm_command()
    assert value_after("--host", command.argv) == "127.0.0.1"
    assert {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}.items() <= command.environment.items()


def test_the_user_s_arguments_come_last() -> None:
    assert vllm_command(arguments=["--dtype=bfloat16"]).argv[-1] == "--dtype=bfloat16"


@pytest.mark.parametrize("replicas", [1, 2, 64])
def test_replicas_share_the_processors_and_take_the_next_free_ports(replicas: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = machine.free_ports_after("127.0.0.1", port - 1, replicas, reserved={port + 1})
    assert len(set(ports)) == replicas
    assert not {port, port + 1} & set(ports)
    assert min(ports) > port


def test_a_port_that_someone_listens_on_is_refused_by_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentTooSmall, match=f"--port: port {port} on 127.0.0.1 is in use"):
            machine.require_port("127.0.0.1", port, "--port")


def test_memory_that_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(EnvironmentTooSmall, match=r"two replicas need about 1024TiB, .* are available; lower"):
        machine.require_memory(2**50, "two replicas")


def test_a_cgroup_s_limits_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    (tmp_path / "memory.stat").write_text("anon 700\nfile 1300\nshmem 300\ninactive_file 600\nactive_file 400\n")
    assert (machine.usable_cpus(), machine.available_memory_bytes()) == (1, 4000)  # cached files can be dropped


def test_a_cgroup_without_limits_leaves_the_machine_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (machine.usable_cpus(), machine.available_memory_bytes() > 2**20)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("2000\n")
    (tmp_path / "memory.stat").write_text("inactive_file 600\n")
    assert (machine.usable_cpus(), machine.available_memory_bytes() > 2**20) == unlimited


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--model: .* a local Hugging Face model folder"):
        model.local_model(str(tmp_path))


def test_the_default_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "tierline" / "models" / "SmolLM2-135M-Instruct"
    folder.mkdir(parents=True)
    said: list[str] = []
    assert model.prepare_default_model(said.append) == folder
    assert said == []


def test_with_lmcache_each_replica_has_a_server_of_its_own_that_is_joined_to_the_node_store(tmp_path: Path) -> None:
    pytest.importorskip("lmcache")
    pytest.importorskip("vllm")
    (tmp_path / "config.json").write_text("{}")
    port, node_port = machine.free_ports_after("127.0.0.1", 20_000, 2)
    config = UpConfig(port=port, node_port=node_port, connector="lmcache", model=str(tmp_path), cache_size=2**24)
    plan = make_plan(config, say=lambda line: None)
    (store,) = plan.stores
    for cache, replica in zip(plan.caches, plan.replicas, strict=True):
        transfer = json.loads(value_after("--kv-transfer-config", replica.argv))
        assert transfer["kv_connector_extra_config"]["lmcache.mp.port"] == int(value_after("--port", cache.argv))
        adapter = json.loads(value_after("--l2-adapter", cache.argv))
        assert adapter["url"].removeprefix("sagemaker-hyperpod://") == store.url.removeprefix("http://")
        assert adapter["shared_memory_name"] == value_after("--shared-memory-name", store.argv)
    listening = [child.url.rpartition(":")[2] for child in (store, plan.router, *plan.caches, *plan.replicas)]
    listening += [value_after("--port", cache.argv) for cache in plan.caches]
    assert len(set(listening)) == len(listening)
    assert len({value_after("--shm-name", cache.argv) for cache in plan.caches}) == 2


@pytest.mark.parametrize(
    "settings", [{"cache": False}, {"engine": "simulated"}, {"endpoints": ["http://127.0.0.1:8001"]}]
)
def test_lmcache_is_refused_where_it_has_nothing_to_join(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        load(UpConfig, None, {"connector": "lmcache", **settings}, {})


def test_lmcache_that_is_not_installed_is_missed_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmcache, "_MODULES", ("absent_package", "absent_package.part"))
    with pytest.raises(UsageError, match=r"--connector: absent_package, absent_package.part .* --no-deps"):
        lmcache.require_lmcache()


def test_a_plan_of_simulated_engines_starts_what_was_asked_for() -> None:
    port, node_port = machine.free_ports_after("127.0.0.1", 20_000, 2)
    config = UpConfig(port=port, node_port=node_port, replicas=3, engine="simulated", cache_size=16 * 1024**2)
    plan = make_plan(config, say=lambda line: None)
    (store,) = plan.stores
    urls = [part for flag, part in zip(plan.router.argv, plan.router.argv[1:], strict=False) if flag == "--endpoint"]
    assert urls == [replica.url for replica in plan.replicas]
    assert len({*urls, store.url, plan.router.url}) == 5
    assert value_after("--capacity", store.argv) == str(16 * 1024**2)


def test_replicas_are_spread_over_nodes_that_know_each_other_and_share_nothing_else() -> None:
    port, node_port = machine.free_ports_after("127.0.0.1", 20_000, 2)
    config = UpConfig(
        port=port, node_port=node_port, nodes=3, replicas=4, engine="simulated", strategy="kvaware", cache_size=2**24
    )
    plan = make_plan(config, say=lambda line: None)
    assert [store.name for store in plan.stores] == ["node-1", "node-2", "node-3"]
    for flag in ("--port", "--socket", "--shared-memory-name", "--kv-events"):
        assert len({value_after(flag, store.argv) for store in plan.stores}) == 3
    nodes = [store.environment for store in plan.stores]
    assert [node["TIERLINE_NODE_NODE_NAME"] for node in nodes] == [store.name for store in plan.stores]
    addresses = {f"{node['TIERLINE_NODE_NODE_NAME']}={node['TIERLINE_NODE_TRANSFER_ADDRESS']}" for node in nodes}
    for node in nodes:
        peers = set(node["TIERLINE_NODE_PEERS"].split(","))
        assert peers == addresses - {f"{node['TIERLINE_NODE_NODE_NAME']}={node['TIERLINE_NODE_TRANSFER_ADDRESS']}"}
    assert len({node["TIERLINE_NODE_POOL_TOKEN_FILE"] for node in nodes}) == 1
    listening = {child.url for child in (plan.router, *plan.stores, *plan.replicas)}
    assert len(listening) == 8
    told = [event.partition("=") for event in values_after("--node-events", plan.router.argv)]
    assert [url for url, _, _ in told] == [replica.url for replica in plan.replicas]
    assert [address.partition("?")[0] for _, _, address in told] == [
        value_after("--kv-events", plan.stores[index].argv) for index in (0, 1, 2, 0)
    ]


@pytest.mark.parametrize(("settings", "replicas"), [({}, 2), ({"nodes": 3}, 3), ({"nodes": 3, "replicas": 1}, 1)])
def test_there_is_a_replica_for_each_node_where_nothing_else_is_said(settings: dict[str, Any], replicas: int) -> None:
    assert UpConfig(**settings).replica_count == replicas


@pytest.mark.parametrize("settings", [{"cache": False}, {"endpoints": ["http://127.0.0.1:8001"]}])
def test_several_nodes_are_refused_where_there_is_none_or_nobody_to_spread(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        load(UpConfig, None, {"nodes": 2, **settings}, {})
