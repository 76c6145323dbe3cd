"""``tierline operator preflight``: against a real API, bare and with things in it."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.cli.kubernetes.conftest import SYSTEM, Command, Kube

from tierline.operator.preflight.facts import INSTANCE_TYPE


def found(run: Command, *options: str) -> dict[str, Any]:
    ended = run("operator", "preflight", "--json", *options)
    assert ended.status in (0, 2), ended.errors
    return {check["subject"]: check for check in ended.document}


@pytest.fixture
def furnished(kube: Kube) -> Iterator[None]:
    """A node with GPUs, classes, a driver, and HyperPod's operator."""
    kube.create("/api/v1/nodes", metadata={"name": "gpu", "labels": {INSTANCE_TYPE: "ml.g5.24xlarge"}}, spec={})
    allocatable = {"memory": "380Gi", "nvidia.com/gpu": "4", "cpu": "96"}
    kube.set_status("/api/v1/nodes/gpu", allocatable=allocatable, nodeInfo=node_info())
    networking, storage = "/apis/networking.k8s.io/v1/ingressclasses", "/apis/storage.k8s.io/v1/csidrivers"
    kube.create(networking, metadata={"name": "alb"}, spec={"controller": "ingress.k8s.aws/alb"})
    kube.create(storage, metadata={"name": "s3.csi.aws.com"}, spec={"attachRequired": False})
    labels = {"app": "theirs"}
    kube.create(
        f"/apis/apps/v1/namespaces/{SYSTEM}/deployments",
        metadata={"name": "hyperpod-inference-operator-controller-manager"},
        spec={
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "manager", "image": "i"}]}},
        },
    )
    yield
    for path in (
        "/api/v1/nodes/gpu",
        f"{networking}/alb",
        f"{storage}/s3.csi.aws.com",
        f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/hyperpod-inference-operator-controller-manager",
    ):
        kube.ask("DELETE", path)


def node_info() -> dict[str, str]:
    fields = (
        "machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "containerRuntimeVersion", "kubeletVersion",
        "kubeProxyVersion", "operatingSystem",
    )  # fmt: skip
    return {**dict.fromkeys(fields, "-"), "architecture": "amd64"}


def test_a_bare_cluster_has_no_nodes_and_no_operator(run: Command) -> None:
    ended = run("operator", "preflight")
    assert ended.status == 2
    assert "to be mended before endpoints are served: operator, nodes" in ended.errors
    checks = found(run)
    assert checks["InferenceEndpointConfig"]["verdict"] == "fits"
    assert checks["your rights"]["verdict"] == "fits"
    assert checks["autoscaling"]["found"].startswith("no KEDA; HorizontalPodAutoscaler (autoscaling/v2beta2)")


def test_what_a_cluster_has_is_found(run: Command, furnished: None) -> None:
    checks = found(run)
    assert checks["nodes"]["found"] == "1 (amd64), 380GiB of memory each"
    assert checks["instance types"]["found"] == "1 × ml.g5.24xlarge"
    assert checks["accelerators"]["found"] == "4 × nvidia.com/gpu"
    assert checks["way in"]["found"] == "Ingress class alb (ingress.k8s.aws/alb)"
    assert checks["models in S3"]["verdict"] == "fits"
    assert "adopt" in checks["operator"]["means"]


def test_another_namespace_of_the_operator_may_be_named(run: Command) -> None:
    assert found(run, "--system-namespace", "nowhere")["operator"]["found"] == "no namespace nowhere"


def test_who_may_make_some_of_an_installation_only_may_not_install_it(kube: Kube, run: Command) -> None:
    namespace, rbac = kube.namespace(), "/apis/rbac.authorization.k8s.io/v1"
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    kube.create(accounts, metadata={"name": "some"})
    made = (("", "secrets"), ("apps", "deployments"), (rbac.split("/")[2], "clusterroles"))
    rules = [{"apiGroups": [group], "resources": [plural], "verbs": ["create"]} for group, plural in made]
    rules.append({"apiGroups": [""], "resources": ["namespaces"], "verbs": ["list"]})
    name = {"metadata": {"name": namespace}}
    kube.create(f"{rbac}/clusterroles", **name, rules=rules)
    subjects = [{"kind": "ServiceAccount", "name": "some", "namespace": namespace}]
    role = {"apiGroup": rbac.split("/")[2], "kind": "ClusterRole", "name": namespace}
    kube.create(f"{rbac}/clusterrolebindings", **name, roleRef=role, subjects=subjects)
    token = kube.create(f"{accounts}/some/token", spec={})["status"]["token"]
    ended = run(
        "operator", "preflight", "--json", "--kubeconfig", kube.cluster.kubeconfig(f"{namespace}.yaml", token=token)
    )
    rights = next(check for check in ended.document if check["subject"] == "your rights")
    assert rights["verdict"] == "mend"
    assert "create clusterrolebindings" in rights["found"]
    assert f"create serviceaccounts in {SYSTEM}" in rights["found"]
    assert "hand on what the operator needs" in rights["found"]
    assert "deployments" not in rights["found"]
