"""Where a worker's cache is, read from its arguments and variables as the pod has them."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from tierline.operator.endpoints.flushing import (
    Cache,
    Flushed,
    buckets_of,
    cache_of,
    joined,
    port_of_engine,
    router_port,
)
from tierline.operator.endpoints.pods import Container, ContainerPort, EnvironmentVariable, Metadata, Pod, PodSpec

GOLDEN = Path(__file__).parents[3] / "golden/operator"

LMCACHE = ["--kv-transfer-config", '{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_both"}']
TIERLINE = '--kv-transfer-config={"kv_connector": "TierlineConnector", "kv_connector_extra_config": {%s}}'
DAEMON = {"LMCACHE_REMOTE_URL": "sagemaker-hyperpod://$(NODE_IP):9200"}


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], {}, Cache(frozenset(), is_kept_by_lmcache=False)),
        (LMCACHE, {}, Cache(frozenset(), is_kept_by_lmcache=True)),
        (LMCACHE, DAEMON, Cache(frozenset({"lmcache"}), is_kept_by_lmcache=True)),
        (LMCACHE, {**DAEMON, "LMCACHE_LOCAL_CPU": "False"}, Cache(frozenset({"lmcache"}), is_kept_by_lmcache=False)),
        (
            LMCACHE,
            {**DAEMON, "LMCACHE_EXTRA_CONFIG": '{"sagemaker_hyperpod_bucket": "team-a"}'},
            Cache(frozenset({"team-a"}), is_kept_by_lmcache=True),
        ),
        (
            LMCACHE,
            {"LMCACHE_REMOTE_URL": "redis://user:secret@r:6379"},
            Cache(frozenset(), is_kept_by_lmcache=True, elsewhere="redis://r:6379"),
        ),
        ([TIERLINE % ""], {}, Cache(frozenset({"vllm"}), is_kept_by_lmcache=False)),
        ([TIERLINE % '"tierline.bucket": "b"'], {}, Cache(frozenset({"b"}), is_kept_by_lmcache=False)),
    ],
)
def test_buckets_and_lmcache_s_own_memory_are_read_from_a_worker(
    arguments: list[str], environment: dict[str, str], expected: Cache
) -> None:
    env = [EnvironmentVariable(name, value) for name, value in environment.items()]
    assert cache_of(Container("demo", args=arguments, env=env)) == expected


def test_a_bucket_that_is_a_pods_alone_is_found_by_its_uid() -> None:
    extra = EnvironmentVariable("LMCACHE_EXTRA_CONFIG", '{"sagemaker_hyperpod_bucket": "b-$(TIERLINE_POD_UID)"}')
    env = [*(EnvironmentVariable(name, value) for name, value in DAEMON.items()), extra]
    spec = PodSpec(containers=[Container("demo", args=LMCACHE, env=env)])

    pods = [Pod(Metadata(name, uid=f"uid-{name}"), spec) for name in ("first", "second")]

    assert buckets_of(pods) == {"b-uid-first", "b-uid-second"}


def golden(file: str, kind: str, name: str = "") -> Any:
    objects = yaml.safe_load_all((GOLDEN / f"{file}.yaml").read_text())
    return next(each for each in objects if each.get("kind") == kind and name in ("", each["metadata"]["name"]))


def test_our_own_policies_let_an_engine_be_asked_where_there_is_no_router() -> None:
    template = golden("workers/document", "Deployment")["spec"]["template"]["spec"]
    port = port_of_engine(Pod(Metadata("demo"), msgspec.convert(template, PodSpec)))
    rules = golden("network-policies/unrouted", "NetworkPolicy")["spec"]["ingress"]
    assert {"port": port, "protocol": "TCP"} in [each for rule in rules if "from" not in rule for each in rule["ports"]]


def test_our_own_policies_let_a_router_be_asked() -> None:
    template = golden("router/default", "Deployment")["spec"]["template"]["spec"]
    port = router_port(Pod(Metadata("router"), msgspec.convert(template, PodSpec)))
    rules = golden("network-policies/routed", "NetworkPolicy", "demo-default-router")["spec"]["ingress"]
    assert {"port": port, "protocol": "TCP"} in [each for rule in rules if "from" not in rule for each in rule["ports"]]


def test_an_engine_without_a_proxy_is_asked_at_its_own_port() -> None:
    bare = Pod(Metadata("demo"), PodSpec(containers=[Container("demo", ports=[ContainerPort(8000)])]))
    assert port_of_engine(bare) == 8000
    assert port_of_engine(Pod(Metadata("demo"), PodSpec(containers=[Container("demo")]))) is None


def test_of_two_rounds_the_second_says_whether_a_store_is_empty() -> None:
    first = [Flushed("node store", "a", is_empty=True, objects=5), Flushed("engine", "w", is_empty=True)]
    second = [Flushed("node store", "a", is_empty=False, objects=1, why="away")]
    assert joined(first, second) == [Flushed("node store", "a", is_empty=False, objects=6, why="away"), first[1]]
