"""Operators for tests: the real loop on a real API, with a small idea of what endpoints are made of."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tests.kube import Api, Cluster

from tierline.kube.cluster import connected_cluster
from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.kinds import POD, children
from tierline.operator.controller.planning import Plan, Planner
from tierline.operator.controller.server import OperatorServer, running
from tierline.operator.crds import KINDS
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.accounts import RBAC
from tierline.operator.manifests.desired import owner_labels, owner_reference
from tierline.operator.manifests.manifest import Made, Manifest, with_metadata
from tierline.operator.manifests.rights import cluster_rules, namespace_rules
from tierline.operator.manifests.secrets import KeptSecret, random_tokens
from tierline.operator.names import API_VERSION, FIELD_MANAGER, MANAGED_BY
from tierline.operator.resources.inference_endpoint_config import InferenceEndpointConfigSpec

CRDS = sorted((Path(__file__).parents[4] / "deploy/crds").glob("*.yaml"))
RESOURCES = f"/apis/{API_VERSION}/namespaces/{{}}/inferenceendpointconfigs"
_ROLES = f"/apis/{RBAC}/v1"
DEPLOYMENTS, DAEMON_SETS = (f"/apis/apps/v1/namespaces/{{}}/{kind}" for kind in ("deployments", "daemonsets"))
SERVICES, CONFIG_MAPS, SECRETS = (f"/api/v1/namespaces/{{}}/{kind}" for kind in ("services", "configmaps", "secrets"))
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"


async def install(api: Api) -> None:
    """Make the API know the resources, where it does not yet."""
    kinds = {kind.kind for kind in KINDS}
    if await are_served(api, API_VERSION, kinds):
        return
    for file in CRDS:
        crd = yaml.safe_load(file.read_text())
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
        await api.ask("PATCH", f"{path}?fieldManager=tests&force=true", crd, APPLY)
    await eventually(lambda: are_served(api, API_VERSION, kinds))


async def limited(cluster: Cluster, api: Api, namespace: str) -> Path:
    """Return a way to the API as an account that has the operator's rights and no others."""
    name = f"operator-{namespace}"
    account = [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]
    within = f"{_ROLES}/namespaces/{namespace}"
    await api.ask("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})
    for path, kind, rules in (
        (_ROLES, "ClusterRole", cluster_rules(namespace)),
        (within, "Role", namespace_rules()),
    ):
        await api.ask("POST", f"{path}/{kind.lower()}s", {"metadata": {"name": name}, "rules": rules})
        reference = {"apiGroup": RBAC, "kind": kind, "name": name}
        binding = {"metadata": {"name": name}, "roleRef": reference, "subjects": account}
        await api.ask("POST", f"{path}/{kind.lower()}bindings", binding)
    await eventually(lambda: _is_in_force(api, f"system:serviceaccount:{namespace}:{name}", namespace))
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
    issued = await api.ask("POST", path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}})
    return cluster.kubeconfig(f"limited-{namespace}", token=issued["status"]["token"])


async def _is_in_force(api: Api, user: str, namespace: str) -> bool:
    """Whether the API server, which learns of rights a moment after they are given, lets an account do its work."""
    of_the_cluster = {"verb": "list", "resource": "nodes"}
    of_the_namespace = {"verb": "get", "group": "coordination.k8s.io", "resource": "leases", "namespace": namespace}
    for asked in (of_the_cluster, of_the_namespace):
        body = {"spec": {"user": user, "resourceAttributes": asked}}
        answer = await api.ask("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
        if not answer["status"]["allowed"]:
            return False
    return True


async def are_served(api: Api, version: str, kinds: set[str]) -> bool:
    """Whether who asks which kinds there are is told of these, which is later than that they are there."""
    groups = (await api.ask("GET", "/apis"))["groups"]
    if version not in [each["groupVersion"] for group in groups for each in group["versions"]]:
        return False
    async with api.session.get(f"/apis/{version}") as answer:  # which is no JSON while nobody serves it
        return answer.status == 200 and kinds <= {each["kind"] for each in (await answer.json())["resources"]}


async def eventually(holds: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait for something to be so; return what it is then."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = holds()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.05)


def resource(name: str = "demo", **spec: Any) -> dict[str, Any]:
    """Return an endpoint as a user asks for it."""
    return {
        "apiVersion": API_VERSION,
        "kind": "InferenceEndpointConfig",
        "metadata": {"name": name},
        "spec": {
            "modelName": "toy",
            "modelSourceConfig": {"modelSourceType": "kubernetesVolume"},
            "worker": {
                "image": "engine:1",
                "modelInvocationPort": {"containerPort": 8000},
                "modelVolumeMount": {"name": "weights"},
                "resources": {},
            },
            **spec,
        },
    }


def plan(given: Mapping[str, Any]) -> Plan:
    """Return what a resource asks for; a model called ``wrong`` cannot be had."""
    spec = InferenceEndpointConfigSpec.model_validate(given["spec"])
    if spec.model_name == "wrong":
        return Plan(None, problems=("spec.modelName: got 'wrong'; allowed: any other name",))
    metadata = given["metadata"]
    endpoint = Endpoint(
        kind=given["kind"],
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        annotations=metadata.get("annotations", {}),
        spec=spec,
    )
    unsupported = ("spec.dnsConfig",) if spec.dns_config is not None else ()
    return Plan(endpoint, unsupported=unsupported)


def desired(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return a Deployment and a Service, and in the operator's namespace a ConfigMap."""
    listed = [_service(endpoint), _deployment(endpoint)]
    if endpoint.annotation("outside"):
        metadata = {"name": f"{endpoint.name}-outside", "namespace": config.namespace}
        listed.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "b"}})
    owned = [with_metadata(each, labels=owner_labels(endpoint), annotations={}) for each in listed]
    for each in owned:
        if each["metadata"]["namespace"] == endpoint.namespace:
            each["metadata"]["ownerReferences"] = [owner_reference(endpoint)]
    return Made(tuple(owned))


def _service(endpoint: Endpoint) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{endpoint.name}-service", "namespace": endpoint.namespace},
        "spec": {"selector": {"app": endpoint.name}, "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
    }


def _deployment(endpoint: Endpoint) -> Manifest:
    is_scaled = endpoint.spec.auto_scaling_spec is not None
    template = {
        "metadata": {"labels": {"app": endpoint.name}},
        "spec": {"containers": [{"name": endpoint.name, "image": endpoint.spec.worker.image}]},
    }
    spec: dict[str, Any] = {"selector": {"matchLabels": {"app": endpoint.name}}, "template": template}
    if not is_scaled:
        spec["replicas"] = endpoint.spec.replicas
    metadata = {"name": endpoint.name, "namespace": endpoint.namespace}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def kept_secrets(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Sequence[KeptSecret]:
    """Return a Secret with a token."""
    return (KeptSecret(namespace=endpoint.namespace, name=f"{endpoint.name}-token", make=random_tokens("token")),)


def shared(endpoints: Sequence[Endpoint], capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return a ConfigMap, as long as there are endpoints."""
    if not endpoints:
        return Made()
    manifest: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "shared", "namespace": config.namespace},
        "data": {"endpoints": ",".join(sorted(each.name for each in endpoints))},
    }
    return Made((with_metadata(manifest, labels={MANAGED_BY: FIELD_MANAGER}, annotations={}),))


PLANNER = Planner(
    plan=plan,
    stands=lambda endpoint, capabilities, config: True,
    desired=desired,
    kept_secrets=kept_secrets,
    shared=shared,
    shared_secrets=lambda endpoints, capabilities, config: (),
    catalogue=lambda: None,
)


@contextlib.asynccontextmanager
async def operator(
    cluster: Cluster, served: str, planner: Planner = PLANNER, **settings: Any
) -> AsyncIterator[OperatorServer]:
    """Run an operator that keeps to a namespace, which is its own as well; it keeps its Lease on a busy machine too."""
    given = {"watched_namespaces": (served,), "kubeconfig": cluster.kubeconfig(f"config-{served}")}
    config = OperatorConfig(**{"namespace": served, "http": "127.0.0.1:0", "lease_s": 30.0, **given, **settings})
    async with running(config, planner) as server:
        yield server


async def roll_out(api: Api, namespace: str, name: str, *, available: int | None = None) -> None:
    """Say of a Deployment what a controller-manager with willing nodes would."""
    path = f"{DEPLOYMENTS.format(namespace)}/{name}"
    found = await api.ask("GET", path)
    wanted = found["spec"]["replicas"]
    ready = wanted if available is None else available
    counts = {"replicas": wanted, "updatedReplicas": wanted, "readyReplicas": ready, "availableReplicas": ready}
    status = {"observedGeneration": found["metadata"]["generation"], **counts}
    await api.ask("PATCH", f"{path}/status", {"status": status}, MERGE)


async def cannot_pull(api: Api, namespace: str, name: str, container: str) -> None:
    """Have a pod of a Deployment, and say what a kubelet would that cannot pull the image of one of its containers."""
    template = (await api.ask("GET", f"{DEPLOYMENTS.format(namespace)}/{name}"))["spec"]["template"]
    listed = [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]
    [image] = [each["image"] for each in listed if each["name"] == container]
    waiting = {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{image}"'}
    said = {"name": container, "image": image, "imageID": "", "ready": False, "restartCount": 0}
    await api.create_pod(namespace, f"{name}-x", 1, labels=template["metadata"]["labels"], is_ready=False)
    statuses = [{**said, "state": {"waiting": waiting}}]
    await api.set_status(namespace, f"{name}-x", phase="Pending", containerStatuses=statuses)


async def report_removal(api: Api, namespace: str, *, available: int) -> None:
    """Say what a controller-manager would of the DaemonSet that removes what node stores left on two machines."""
    path = f"{DAEMON_SETS.format(namespace)}/tierline-node-removal"
    generation = (await api.ask("GET", path))["metadata"]["generation"]
    counts = {"desiredNumberScheduled": 2, "currentNumberScheduled": 2, "updatedNumberScheduled": 2}
    said = {**counts, "numberMisscheduled": 0, "numberReady": available, "numberAvailable": available}
    await api.ask("PATCH", f"{path}/status", {"status": {"observedGeneration": generation, **said}}, MERGE)


async def names_at(api: Api, path: str) -> list[str]:
    """Return the names of the objects at a path."""
    return sorted(item["metadata"]["name"] for item in (await api.ask("GET", path))["items"])


async def condition(api: Api, namespace: str, name: str, kind: str) -> dict[str, Any]:
    """Return a condition of a resource; empty where it has none."""
    found = await api.ask("GET", f"{RESOURCES.format(namespace)}/{name}")
    return next((each for each in found.get("status", {}).get("conditions", ()) if each["type"] == kind), {})


async def state(api: Api, namespace: str, name: str) -> str:
    """Return the state of a resource; empty where it has none."""
    found = await api.ask("GET", f"{RESOURCES.format(namespace)}/{name}")
    return str(found.get("status", {}).get("state", ""))


def versions(objects: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the versions of objects, by name."""
    return {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in objects}


class Kinds:
    """What endpoints are made of in a cluster."""

    def __init__(self, api: Api, paths: list[str]) -> None:
        self._api = api
        self._paths = paths

    @classmethod
    async def of(cls, cluster: Cluster, api: Api) -> "Kinds":
        async with connected_cluster(cluster.kubeconfig("kinds"), "tests") as asked:
            served = await asked.kinds()
        return cls(api, [kind.path() for kind in children(served) if kind.name != POD])

    async def labelled(self, selector: str) -> dict[str, Any]:
        """Return what the operator says of all objects with certain labels."""
        found = {}
        for path in self._paths:
            for each in (await self._api.ask("GET", f"{path}?labelSelector={selector}"))["items"]:
                metadata = each["metadata"]
                found[f"{path} {metadata.get('namespace', '')}/{metadata['name']}"] = _said(each)
        return found


def _said(given: dict[str, Any]) -> Any:
    """Return what the operator says of an object, of which others say the rest; of what is secret, the names alone."""
    written = [each for each in given["metadata"]["managedFields"] if each["manager"] == FIELD_MANAGER]
    said = [_part(given, each["fieldsV1"]) for each in written]
    for each in said:
        each["data"] = sorted(each.get("data", ()))
    return said


def _part(given: Any, fields: dict[str, Any]) -> Any:
    """Return the fields of a set, as ``managedFields`` has it."""
    if not fields:
        return given
    if isinstance(given, dict):
        return {name[2:]: _part(given[name[2:]], below) for name, below in fields.items() if name.startswith("f:")}
    keys = [(json.loads(name[2:]), below) for name, below in fields.items() if name.startswith("k:")]
    return [_part(each, below) for key, below in keys for each in given if key.items() <= each.items()]
