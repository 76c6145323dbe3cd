"""All children of an endpoint together: whose they are, where, and what they refer to."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.endpoints import endpoint

from tierline.configuration import load
from tierline.errors import ConfigurationError
from tierline.node.config import NodeConfig
from tierline.operator.assumed import ADDITIONS, cluster
from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.manifests.desired import desired, kept_secrets, shared, shared_secrets
from tierline.operator.names import OWNER_UID
from tierline.operator.settled import Settled
from tierline.router.config import RouterConfig

NOW = datetime(2026, 1, 2, tzinfo=UTC)
OF_WORKERS = {"app": "demo", "app.kubernetes.io/component": "worker", "app.kubernetes.io/instance": "demo"}
SYSTEM = OperatorConfig(router_placement="system")


def kinds(manifests: Any, kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def environment(manifest: dict[str, Any]) -> dict[str, str]:
    """Return the variables of the first container, with addresses in place of references."""
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    variables = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    for name, value in {"POD_IP": "10.0.0.7", "NODE_IP": "10.0.0.1", "NODE_NAME": "machine"}.items():
        variables = {key: text.replace(f"$({name})", value) for key, text in variables.items()}
    return variables


def test_every_child_says_whose_it_is() -> None:
    made = desired(endpoint(), cluster(ADDITIONS), OperatorConfig())
    assert made.manifests
    for manifest in made.manifests:
        assert manifest["metadata"]["labels"][OWNER_UID] == endpoint().uid
        if "namespace" in manifest["metadata"]:  # a PersistentVolume has none
            assert manifest["metadata"]["ownerReferences"][0]["uid"] == endpoint().uid


def selectors(value: Any, key: str = "") -> Iterator[dict[str, str]]:
    """Yield the labels by which an object selects pods."""
    if isinstance(value, list):
        for each in value:
            yield from selectors(each, key)
    elif isinstance(value, dict):
        if "app" in value and key in ("matchLabels", "selector"):
            yield value
        for name, each in value.items():
            yield from selectors(each, name)


@pytest.mark.parametrize(
    "changes", [{}, {"intelligentRoutingSpec": None}, {"pdSpec": {"prefillSpec": {}, "decodingSpec": {}}}]
)
def test_pods_of_other_people_that_are_called_like_the_endpoint_are_left_alone(changes: dict[str, Any]) -> None:
    foreign = {"app": "demo", "tier": "front"}
    made = desired(endpoint(changes), cluster(ADDITIONS), OperatorConfig())
    wanted = [each for each in made.manifests if each["kind"] != "Deployment"]  # of its own pods it is the owner too
    templates = [each["spec"]["template"] for each in made.manifests if each["kind"] == "Deployment"]
    ours = [template["metadata"]["labels"] for template in templates]

    found = list(selectors([wanted, [template["spec"] for template in templates]]))

    assert found
    assert not [each for each in found if each.items() <= foreign.items()]
    assert not [each for each in found if not any(each.items() <= labels.items() for labels in ours)]


@pytest.mark.parametrize("addition", [each for each in ADDITIONS if each != "s3-csi"])
def test_what_a_cluster_is_given_later_replaces_no_pods(addition: str) -> None:
    def templates(additions: list[str]) -> list[dict[str, Any]]:
        made = desired(endpoint(), cluster(additions), OperatorConfig())
        return [each["spec"]["template"] for each in kinds(made.manifests, "Deployment")]

    assert templates([addition]) == templates([])


def test_what_is_in_another_namespace_has_no_owner_reference() -> None:
    made = desired(endpoint(), cluster(ADDITIONS), SYSTEM)
    elsewhere = [each for each in made.manifests if each["metadata"].get("namespace") != "default"]
    assert {each["kind"] for each in elsewhere} >= {"Deployment", "Service", "ServiceAccount", "Ingress"}
    for manifest in elsewhere:
        assert "ownerReferences" not in manifest["metadata"]
        assert manifest["metadata"]["labels"][OWNER_UID] == endpoint().uid


@pytest.mark.parametrize("config", [OperatorConfig(), SYSTEM])
def test_no_two_children_are_the_same_object(config: OperatorConfig) -> None:
    pairs = endpoint({"pdSpec": {"prefillSpec": {}, "decodingSpec": {}}}, annotations={"router-replicas": "2"})
    for wanted in (endpoint(), pairs):
        made = desired(wanted, cluster(ADDITIONS), config)
        found = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in made.manifests]
        assert len(set(found)) == len(found)


def test_manifests_are_the_same_each_time() -> None:
    first, second = (desired(endpoint(), cluster(ADDITIONS), OperatorConfig()) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("annotations", [{}, {"router-replicas": "3"}])
@pytest.mark.parametrize("changes", [{}, {"loadBalancer": {"healthCheckPath": "/v1/models"}}, {"replicas": 2}])
def test_the_router_takes_what_it_is_told(changes: dict[str, Any], annotations: dict[str, str]) -> None:
    made = desired(endpoint(changes, annotations=annotations), cluster(), OperatorConfig())
    (deployment,) = [
        each for each in kinds(made.manifests, "Deployment") if each["metadata"]["name"].endswith("router")
    ]
    flag, *pods = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert flag == "--kubernetes-pods"
    config = load(RouterConfig, None, {"kubernetes_pods": pods}, environment(deployment))
    (selection,) = config.kubernetes_pods
    assert selection == f"default:{','.join(f'{key}={value}' for key, value in OF_WORKERS.items())}:9180"
    assert config.invocation_endpoint == "/v1/chat/completions"
    assert config.gossips == bool(annotations)


def test_a_node_store_takes_what_it_is_told() -> None:
    made = shared([endpoint(annotations={"l2-size": "3GiB", "eviction-policy": "lru"})], cluster(), OperatorConfig())
    (daemon_set,) = kinds(made.manifests, "DaemonSet")
    config = load(NodeConfig, None, {}, environment(daemon_set))
    assert config.capacity == 3 * 1024**3
    assert config.eviction == "lru"
    assert config.host == "10.0.0.1"
    assert config.peers_kubernetes == "hyperpod-inference-system/tierline-node"


def test_every_secret_that_pods_mount_is_kept() -> None:
    endpoints = [endpoint()]
    made = desired(endpoints[0], cluster(), OperatorConfig()) + shared(endpoints, cluster(), OperatorConfig())
    kept = {
        (secret.namespace, secret.name)
        for secret in (
            *kept_secrets(endpoints[0], cluster(), OperatorConfig()),
            *shared_secrets(endpoints, cluster(), OperatorConfig()),
        )
    }
    mounted = {
        (each["metadata"].get("namespace"), volume["secret"]["secretName"])
        for kind in ("Deployment", "DaemonSet")
        for each in kinds(made.manifests, kind)
        for volume in each["spec"]["template"]["spec"].get("volumes", [])
        if "secret" in volume
    }
    assert mounted == kept - {("hyperpod-inference-system", "tierline-authority"), ("default", "demo-default-tls")}


def test_an_endpoint_that_caches_nowhere_needs_nothing_shared() -> None:
    alone = endpoint({"kvCacheSpec": None})
    assert shared([alone], cluster(ADDITIONS), OperatorConfig()).manifests == ()
    assert shared_secrets([alone], cluster(), OperatorConfig()) == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("router-replicas", "0"),
        ("router-replicas", "two"),
        ("network-policies", "yes"),
        ("gateway", "public"),
        ("issuer", "acme"),
    ],
)
def test_an_annotation_that_says_nonsense_is_named(key: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"metadata.annotations\[tierline.ai/{key}\]: got '{value}'"):
        desired(endpoint(annotations={key: value}), cluster(ADDITIONS), OperatorConfig())


@pytest.mark.parametrize(("key", "value"), [("l2-size", "much"), ("eviction-policy", "random")])
def test_so_is_one_of_what_is_shared(key: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"metadata.annotations\[tierline.ai/{key}\]: got '{value}'"):
        desired(endpoint(annotations={key: value}), cluster(), OperatorConfig())


def test_a_random_secret_stays_once_it_is_made() -> None:
    router, *_ = kept_secrets(endpoint(), cluster(), OperatorConfig())
    made = router.make({}, {}, NOW)
    assert set(made) == {"admin-token", "gossip-secret"}
    assert router.make(made, {}, NOW) is made
    assert router.make({"admin-token": b"mine"}, {}, NOW)["admin-token"] == b"mine"


@pytest.mark.parametrize(
    ("config", "former", "version", "others"),
    [
        (OperatorConfig(), "tierline", (1, 34), {"matchLabels": {"kubernetes.io/metadata.name": "tierline"}}),
        (OperatorConfig(), "tierline", (1, 20), {}),
        (SYSTEM, "default", (1, 34), None),
    ],
)
def test_a_router_that_is_succeeded_reaches_workers_until_it_is_gone(
    config: OperatorConfig, former: str, version: tuple[int, int], others: dict[str, Any] | None
) -> None:
    moving = replace(endpoint(), settled=Settled(former_router_namespaces=(former,)))
    made = desired(moving, Capabilities(version=version), config)
    [policy] = [each for each in kinds(made.manifests, "NetworkPolicy") if each["metadata"]["name"] == "demo"]
    _, of_the_former = policy["spec"]["ingress"][0]["from"]
    assert of_the_former["podSelector"] == {"matchLabels": {"app": "demo-default-router"}}
    assert of_the_former.get("namespaceSelector") == others
    [binding] = kinds(made.manifests, "RoleBinding")
    assert former in [each["namespace"] for each in binding["subjects"]]
