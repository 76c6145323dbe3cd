"""What is looked up of a cluster before endpoints are deployed to it; nothing is changed, and nothing judged."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product

from tierline.errors import ClusterRefused
from tierline.kube.cluster import Cluster, Kind, Object
from tierline.operator import crds, names
from tierline.operator.manifests.rights import REGISTRATION, cluster_rules
from tierline.operator.preflight import versions

REVIEW = Kind("authorization.k8s.io/v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", is_namespaced=False)
_RBAC = "rbac.authorization.k8s.io"
MADE_IN_THE_CLUSTER = (
    (REGISTRATION, "mutatingwebhookconfigurations"),
    (REGISTRATION, "validatingwebhookconfigurations"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    (_RBAC, "clusterroles"),
    (_RBAC, "clusterrolebindings"),
)
MADE_IN_ITS_NAMESPACE = (
    ("", "configmaps"),
    ("", "secrets"),  # Helm's record
    ("", "serviceaccounts"),
    ("", "services"),
    ("apps", "deployments"),
    ("networking.k8s.io", "networkpolicies"),
    (_RBAC, "rolebindings"),
    (_RBAC, "roles"),
)
"""Group and plural of what an installation makes."""
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
POD_SECURITY = "pod-security.kubernetes.io/enforce"
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
SHARED_NAME = "hyperpod-inference-operator-controller-manager"
"""Deployment of HyperPod's operator as its Helm chart makes it, and of ours: clients look for it."""
_HYPERPOD = (SHARED_NAME, "hyperpod-inference-controller-manager")
"""Deployments of HyperPod's operator, of its Helm chart and its add-on."""
_GPU = ("nvidia.com/", "amd.com/gpu", "gpu.intel.com/", "aws.amazon.com/neuron")


@dataclass(frozen=True)
class Operator:
    """A Deployment of an operator.

    Parameters
    ----------
    name
        Of the Deployment.
    is_hyperpods
        It is HyperPod's and not ours.
    replicas, ready
        How many are wanted, and are there.
    """

    name: str
    is_hyperpods: bool
    replicas: int
    ready: int


@dataclass(frozen=True)
class InstalledResource:
    """A CustomResourceDefinition of ours, or HyperPod's of the same name.

    Parameters
    ----------
    name
        Of the kind.
    served, stored
        Versions that are served, and that objects may be stored in.
    converter
        Service that converts between them; empty for none.
    count
        How many objects there are.
    """

    name: str
    served: tuple[str, ...]
    stored: tuple[str, ...]
    converter: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a cluster has.

    Parameters
    ----------
    server
        Address of its API.
    version
        As it says, such as ``1.34``.
    kinds
        All that are served, as API version and name.
    resources
        Those of HyperPod's group that are installed.
    system_namespace, has_system_namespace
        Where the operator is to be, and whether that is there.
    operators
        Deployments there that are operators.
    pod_security
        Of namespaces that forbid something to pods: what they say.
    endpoint_namespaces
        Namespaces that have endpoints.
    nodes, ipv6_nodes
        How many there are that take pods, and of them those whose address is one of IPv6.
    instance_types, architectures, accelerators
        How many nodes are of a type, and how many of each accelerator they offer.
    memory_bytes
        Of the smallest and of the largest node.
    ingress_classes, gateway_classes, csi_drivers, storage_classes
        Names, of Ingress classes with their controllers; of storage, which is the default.
    refused_rights
        What an installation needs and whoever asks may not do.
    additions
        Versions of programs that are no part of Kubernetes, by name, as their resource definitions say.
    endpoints
        Resources of the cluster's endpoints, as they are.
    """

    server: str
    version: str
    kinds: frozenset[tuple[str, str]]
    resources: tuple[InstalledResource, ...] = ()
    system_namespace: str
    has_system_namespace: bool = False
    operators: tuple[Operator, ...] = ()
    pod_security: Mapping[str, str] = field(default_factory=dict)
    endpoint_namespaces: tuple[str, ...] = ()
    nodes: int = 0
    ipv6_nodes: int = 0
    instance_types: Mapping[str, int] = field(default_factory=dict)
    architectures: Mapping[str, int] = field(default_factory=dict)
    accelerators: Mapping[str, int] = field(default_factory=dict)
    memory_bytes: tuple[int, int] | None = None
    ingress_classes: tuple[tuple[str, str], ...] = ()
    gateway_classes: tuple[str, ...] = ()
    csi_drivers: tuple[str, ...] = ()
    storage_classes: Mapping[str, bool] = field(default_factory=dict)
    refused_rights: tuple[str, ...] = ()
    additions: Mapping[str, str] = field(default_factory=dict)
    endpoints: tuple[Object, ...] = ()

    def newest(self, kind: str, *api_versions: str) -> str | None:
        """Return the first of ``api_versions`` that serves ``kind``."""
        return next((version for version in api_versions if (version, kind) in self.kinds), None)


async def gather(cluster: Cluster, system_namespace: str) -> Facts:
    """Look what a cluster has."""
    kinds = await cluster.kinds()

    async def all_of(name: str, *api_versions: str, namespace: str | None = None) -> list[Object]:
        kind = next((kinds[version, name] for version in api_versions if (version, name) in kinds), None)
        try:
            return await cluster.list(kind, namespace) if kind is not None else []
        except ClusterRefused as refusal:
            if refusal.reason == "Forbidden":  # then it is as if there were none, and the rights say so
                return []
            raise

    said = await cluster.ask("GET", "/version")
    namespaces = {
        each["metadata"]["name"]: each["metadata"].get("labels", {}) for each in await all_of("Namespace", "v1")
    }
    nodes = [each for each in await all_of("Node", "v1") if not each.get("spec", {}).get("unschedulable")]
    memory = sorted(_bytes(each["status"].get("allocatable", {}).get("memory", "0")) for each in nodes)
    resources = {kind.kind: await all_of(kind.kind, names.API_VERSION) for kind in crds.KINDS}
    definitions = await all_of("CustomResourceDefinition", "apiextensions.k8s.io/v1")
    deployments = await all_of("Deployment", "apps/v1", namespace=system_namespace)
    ingress = await all_of("IngressClass", "networking.k8s.io/v1", "networking.k8s.io/v1beta1")
    gateways = await all_of("GatewayClass", "gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1")
    storage = await all_of("StorageClass", "storage.k8s.io/v1")
    return Facts(
        server=cluster.server,
        version=f"{said.get('major') or '?'}.{said.get('minor') or '?'}",
        kinds=frozenset(kinds),
        resources=tuple(
            _installed(each, len(resources[each["spec"]["names"]["kind"]]))
            for each in definitions
            if each["metadata"]["name"] in {kind.crd_name for kind in crds.KINDS}
        ),
        system_namespace=system_namespace,
        has_system_namespace=system_namespace in namespaces,
        operators=tuple(found for each in deployments if (found := operator_of(each)) is not None),
        pod_security={name: labels[POD_SECURITY] for name, labels in namespaces.items() if POD_SECURITY in labels},
        endpoint_namespaces=tuple(
            sorted({each["metadata"]["namespace"] for found in resources.values() for each in found})
        ),
        nodes=len(nodes),
        ipv6_nodes=sum(_is_ipv6(each) for each in nodes),
        instance_types=_counted(each["metadata"].get("labels", {}).get(INSTANCE_TYPE) for each in nodes),
        architectures=_counted(each["status"].get("nodeInfo", {}).get("architecture") for each in nodes),
        accelerators=_accelerators(nodes),
        memory_bytes=(memory[0], memory[-1]) if memory else None,
        ingress_classes=tuple(
            (each["metadata"]["name"], each.get("spec", {}).get("controller", "")) for each in ingress
        ),
        gateway_classes=tuple(each["metadata"]["name"] for each in gateways),
        csi_drivers=tuple(each["metadata"]["name"] for each in await all_of("CSIDriver", "storage.k8s.io/v1")),
        storage_classes={
            each["metadata"]["name"]: each["metadata"].get("annotations", {}).get(_DEFAULT_CLASS) == "true"
            for each in storage
        },
        additions=dict(told for each in definitions if (told := versions.of_definition(each)) is not None),
        endpoints=tuple(each for found in resources.values() for each in found),
        refused_rights=await _refused(cluster, system_namespace, has_namespace=system_namespace in namespaces),
    )


async def _refused(cluster: Cluster, namespace: str, *, has_namespace: bool) -> tuple[str, ...]:
    """Return what of an installation whoever asks may not do, rights that he would hand on without having them too."""
    asked = {f"create {plural}": ("create", group, plural, "") for group, plural in MADE_IN_THE_CLUSTER}
    if not has_namespace:
        asked["create namespaces"] = ("create", "", "namespaces", "")
    for group, plural in MADE_IN_ITS_NAMESPACE:
        asked[f"create {plural} in {namespace}"] = ("create", group, plural, namespace)
    refused = [what for what, right in asked.items() if not await _may(cluster, *right)]
    if await _may(cluster, "escalate", _RBAC, "clusterroles"):
        return tuple(refused)
    lacking = [
        f"{verb} {plural}"
        for rule in cluster_rules(namespace)
        for group, plural, verb, name in product(
            rule["apiGroups"], rule["resources"], rule["verbs"], rule.get("resourceNames", [""])
        )
        if not await _may(cluster, verb, group, plural, name=name)
    ]
    if lacking:
        refused.append(f"hand on what the operator needs (escalate clusterroles, or have it yourself: {lacking[0]}, …)")
    return tuple(refused)


async def _may(cluster: Cluster, verb: str, group: str, plural: str, namespace: str = "", name: str = "") -> bool:
    resource, _, part = plural.partition("/")
    place = {"namespace": namespace, "name": name}
    asked = {"verb": verb, "group": group, "resource": resource, "subresource": part, **place}
    review = {
        "apiVersion": REVIEW.api_version,
        "kind": REVIEW.name,
        "metadata": {},
        "spec": {"resourceAttributes": asked},
    }
    return bool((await cluster.create(REVIEW, review))["status"]["allowed"])


def _installed(definition: Object, count: int) -> InstalledResource:
    spec = definition["spec"]
    service = spec.get("conversion", {}).get("webhook", {}).get("clientConfig", {}).get("service", {})
    return InstalledResource(
        name=spec["names"]["kind"],
        served=tuple(version["name"] for version in spec["versions"] if version["served"]),
        stored=tuple(definition.get("status", {}).get("storedVersions", ())),
        converter=f"{service['namespace']}/{service['name']}" if service else "",
        count=count,
    )


def operator_of(deployment: Object) -> Operator | None:
    """Return which operator a Deployment is; ``None`` for none."""
    name = deployment["metadata"]["name"]
    containers = deployment["spec"]["template"]["spec"]["containers"]
    words = [word for each in containers for word in (*each.get("command", ()), *each.get("args", ()))]
    is_hyperpods = name in _HYPERPOD and "tierline" not in words
    if not is_hyperpods and not ("tierline" in words and "operator" in words):
        return None
    return Operator(
        name, is_hyperpods, deployment["spec"].get("replicas", 1), deployment.get("status", {}).get("readyReplicas", 0)
    )


def _counted(values: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(value for value in values if value))


def _is_ipv6(node: Object) -> bool:
    """Whether pods learn an IPv6 address of their node, as they do of themselves."""
    addresses = [each["address"] for each in node["status"].get("addresses", ()) if each["type"] == "InternalIP"]
    return ":" in "".join(addresses[:1])


def _accelerators(nodes: list[Object]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for node in nodes:
        for name, quantity in node["status"].get("allocatable", {}).items():
            if name.startswith(_GPU) and str(quantity).isdigit():
                found[name] += int(quantity)
    return {name: count for name, count in found.items() if count}


_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def _bytes(quantity: str) -> int:
    for unit, size in _UNITS.items():
        if quantity.endswith(unit):
            return int(float(quantity.removesuffix(unit)) * size)
    return int(float(quantity)) if quantity.replace(".", "", 1).isdigit() else 0
