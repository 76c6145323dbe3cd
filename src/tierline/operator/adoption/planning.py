"""What would be taken over from HyperPod's operator: every object that is there, and what becomes of it.

An object of the name that ours would have is ours afterwards; what only HyperPod's operator has, such as routers in its
namespace, stays until somebody sweeps it up; what only ours has, ours makes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from tierline.errors import ClusterRefused
from tierline.kube.cluster import Cluster, Kind, Object
from tierline.operator import crds, names
from tierline.operator.capabilities import Capabilities
from tierline.operator.catalogue import Catalogue
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.kinds import POD, Reference, Served, children, reference
from tierline.operator.endpoint import Endpoint
from tierline.operator.intake import endpoint_of
from tierline.operator.manifests.desired import desired, kept_secrets
from tierline.operator.preflight.facts import SHARED_NAME, operator_of

Fate = Literal["take over", "replace", "leave", "ours"]
_ENDPOINTS = ("InferenceEndpointConfig", "JumpStartModel")
_WEBHOOKS = ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration")
_DAEMON = ("aws-hyperpod", "app=ai-toolkit")
"""Namespace and labels of HyperPod's own daemon of the nodes."""


@dataclass(frozen=True)
class Child:
    """An object of an endpoint that is there.

    Parameters
    ----------
    reference, kind, content
        Which, and as it is.
    fate
        ``take over``: ours from then on, as it is; ``replace``: what cannot be changed of it is otherwise with ours, so
        that it stays until it is asked to be made anew; ``leave``: only HyperPod's operator wants it; ``ours`` now.
    why
        Of a replacement: what cannot be changed.
    """

    reference: Reference
    kind: Kind
    content: Object
    fate: Fate
    why: str = ""


@dataclass(frozen=True)
class EndpointPlan:
    """What becomes of one endpoint.

    Parameters
    ----------
    endpoint, kind, resource
        It, and its resource as it is.
    children
        What is there of it.
    finalizers
        Of its resource: those that only HyperPod's operator would ever remove.
    """

    endpoint: Endpoint
    kind: Kind
    resource: Object
    children: tuple[Child, ...]
    finalizers: tuple[str, ...]

    def of(self, fate: Fate) -> list[Child]:
        """Return the children with a fate."""
        return [child for child in self.children if child.fate == fate]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What becomes of all endpoints of a cluster.

    Parameters
    ----------
    endpoints
        Each.
    operators
        Deployments of HyperPod's operator that run, or bear the name that ours has.
    accounts
        ServiceAccounts of theirs that bear the name that ours has.
    webhooks
        Configurations of admission webhooks that it answers; without it, nothing could be written.
    definitions
        CustomResourceDefinitions that it converts; without it, nothing could be read.
    problems
        Why an endpoint cannot be taken over; nothing is, while there are any.
    remarks
        What else is to be known.
    is_ours_ready
        An operator of ours runs.
    """

    endpoints: tuple[EndpointPlan, ...] = ()
    operators: tuple[Object, ...] = ()
    accounts: tuple[Object, ...] = ()
    webhooks: tuple[tuple[Kind, Object], ...] = ()
    definitions: tuple[Object, ...] = ()
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = field(default=())
    is_ours_ready: bool = False

    @property
    def is_theirs_running(self) -> bool:
        """Whether HyperPod's operator may still write."""
        return any(each["spec"].get("replicas", 1) for each in self.operators)

    def of(self, fate: Fate) -> list[Child]:
        """Return the children of all endpoints with a fate."""
        return [child for each in self.endpoints for child in each.of(fate)]


async def plan(
    cluster: Cluster, served: Served, capabilities: Capabilities, config: OperatorConfig, catalogue: Catalogue
) -> Plan:
    """Look what is there, and what would become of it.

    Raises
    ------
    ClusterRefused, ClusterUnavailable
        The API does not let us look, or says nothing.
    """
    endpoints, problems = [], []
    listing = _Listing(cluster)
    for name in _ENDPOINTS:
        kind = served.get((names.API_VERSION, name))
        for resource in await cluster.list(kind) if kind is not None else ():
            endpoint, verdict = endpoint_of(resource, catalogue)
            metadata = resource["metadata"]
            if endpoint is None or kind is None:
                said = "; ".join(map(str, verdict.errors))
                problems.append(f"{name} {metadata['namespace']}/{metadata['name']}: {said}")
                continue
            endpoints.append(
                await _of_endpoint(cluster, served, listing, endpoint, kind, resource, capabilities, config)
            )
    deployments = await cluster.list(served["apps/v1", "Deployment"], config.namespace)
    found = [(each, operator) for each in deployments if (operator := operator_of(each)) is not None]
    theirs = [
        each
        for each, operator in found
        if operator.is_hyperpods and (operator.replicas or operator.name == SHARED_NAME)
    ]
    is_in_the_way = any(each["metadata"]["name"] == SHARED_NAME for each in theirs)
    account = (
        await cluster.get(served["v1", "ServiceAccount"], config.namespace, SHARED_NAME) if is_in_the_way else None
    )
    definitions = await cluster.list(served["apiextensions.k8s.io/v1", "CustomResourceDefinition"])
    daemons = await cluster.list(served["v1", "Pod"], _DAEMON[0], labels=_DAEMON[1])
    remarks = []
    if daemons:
        remarks.append(
            f"HyperPod's daemon runs on {len(daemons)} nodes and holds port {names.NODE_PORT} and the segment "
            f"{config.segment_name}: remove it from a node before ours can start there"
        )
    remarks += _releases(definitions)
    return Plan(
        endpoints=tuple(endpoints),
        operators=tuple(theirs),
        accounts=() if account is None else (account,),
        webhooks=tuple(await _webhooks(cluster, served, config.namespace)),
        definitions=tuple(each for each in definitions if _is_converted(each)),
        problems=tuple(problems),
        remarks=tuple(remarks),
        is_ours_ready=any(not operator.is_hyperpods and operator.ready for _, operator in found),
    )


class _Listing:
    """Objects of a kind in a namespace, asked for once."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._known: dict[tuple[Kind, str | None], list[Object]] = {}

    async def all(self, kind: Kind, namespace: str | None) -> list[Object]:
        if (kind, namespace) not in self._known:
            self._known[kind, namespace] = await self._cluster.list(kind, namespace)
        return self._known[kind, namespace]


async def _of_endpoint(
    cluster: Cluster,
    served: Served,
    listing: _Listing,
    endpoint: Endpoint,
    kind: Kind,
    resource: Object,
    capabilities: Capabilities,
    config: OperatorConfig,
) -> EndpointPlan:
    wanted = {reference(each): each for each in desired(endpoint, capabilities, config).manifests}
    secrets = {Reference("Secret", each.namespace, each.name) for each in kept_secrets(endpoint, capabilities, config)}
    found: list[Child] = []
    for each in children(served):
        if each.name == POD:
            continue
        places = dict.fromkeys((endpoint.namespace, config.namespace)) if each.is_namespaced else {None: None}
        for place in places:
            for content in await listing.all(each, place):
                what = reference(content)
                if what in wanted:
                    found.append(await _fate(cluster, served, each, content, wanted[what], endpoint))
                elif what not in secrets and _is_theirs(content, endpoint):
                    found.append(Child(what, each, content, "leave"))
    foreign = [name for name in resource["metadata"].get("finalizers", ()) if _is_foreign(name)]
    return EndpointPlan(endpoint, kind, resource, tuple(found), tuple(foreign))


async def _fate(
    cluster: Cluster, served: Served, kind: Kind, content: Object, manifest: Object, endpoint: Endpoint
) -> Child:
    if content["metadata"].get("labels", {}).get(names.OWNER_UID) == endpoint.uid:
        return Child(reference(content), kind, content, "ours")
    try:
        await cluster.apply(served[manifest["apiVersion"], manifest["kind"]], manifest, is_trial=True)
    except ClusterRefused as refusal:
        if refusal.status != HTTPStatus.UNPROCESSABLE_ENTITY:
            raise
        return Child(reference(content), kind, content, "replace", str(refusal))
    return Child(reference(content), kind, content, "take over")


def _is_theirs(content: Object, endpoint: Endpoint) -> bool:
    """Whether an object is the endpoint's: it says so, or its name does where owner references do not reach."""
    metadata = content["metadata"]
    if metadata.get("labels", {}).get(names.MANAGED_BY) == names.FIELD_MANAGER:
        return False
    if any(owner["uid"] == endpoint.uid for owner in metadata.get("ownerReferences", ())):
        return True
    name, namespace = endpoint.name, endpoint.namespace
    known = {
        ("Deployment", names.router_name(name, namespace)),
        ("Service", names.routing_service_name(name, namespace)),
        ("Ingress", names.ingress_name(name, namespace, is_routed=True)),
    }
    return (content["kind"], metadata["name"]) in known


def _is_foreign(finalizer: str) -> bool:
    return finalizer.startswith(f"{names.GROUP}/") and finalizer != names.FINALIZER


async def _webhooks(cluster: Cluster, served: Served, namespace: str) -> list[tuple[Kind, Object]]:
    found = []
    for name in _WEBHOOKS:
        kind = served.get(("admissionregistration.k8s.io/v1", name))
        for each in await cluster.list(kind) if kind is not None else ():
            services = [hook["clientConfig"].get("service") or {} for hook in each.get("webhooks", ())]
            if kind is not None and any(
                service.get("namespace") == namespace and service.get("name", "").startswith("hyperpod-inference")
                for service in services
            ):
                found.append((kind, each))
    return found


def _releases(definitions: Sequence[Object]) -> list[str]:
    """Return of which releases of Helm the end would be the end of all endpoints."""
    names_of_ours = {kind.crd_name for kind in crds.KINDS}
    releases = set()
    for each in definitions:
        said = each["metadata"].get("annotations", {})
        if each["metadata"]["name"] in names_of_ours and said.get("helm.sh/resource-policy") != "keep":
            releases.add((said.get("meta.helm.sh/release-namespace", ""), said.get("meta.helm.sh/release-name", "")))
    return [
        f"never run `helm uninstall {name}`: it would remove the resource definitions, with them all endpoints, and "
        f"our operator, which bears the name of its own; `kubectl --namespace {namespace} delete secret "
        f"--selector owner=helm,name={name}` has Helm forget it, once no rollback is wanted any more"
        for namespace, name in sorted(releases)
        if name
    ]


def _is_converted(definition: Mapping[str, Any]) -> bool:
    is_ours = definition["metadata"]["name"] in {kind.crd_name for kind in crds.KINDS}
    return is_ours and definition["spec"].get("conversion", {}).get("strategy") == "Webhook"
