"""How an endpoint stands: its resource's conditions, its pods' phases, and what keeps it from serving."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from tierline.errors import ClusterRefused, UsageError
from tierline.kube.cluster import Cluster, Kind, Object
from tierline.operator import names
from tierline.operator.endpoints.phases import Phase, is_serving, phases
from tierline.operator.endpoints.pods import Condition, Event, Pod, read_events, read_pods
from tierline.operator.endpoints.troubles import Trouble, crashed_containers, troubles

KINDS = ("InferenceEndpointConfig", "JumpStartModel")
POD, EVENT = Kind("v1", "Pod", "pods", is_namespaced=True), Kind("v1", "Event", "events", is_namespaced=True)
_LOG_LINES = 60
_UNSEEN_SECONDS = 10.0
"""From a change of a resource until an operator that runs has certainly said something of it."""
_COMPLETE, _FAILED = "DeploymentComplete", "DeploymentFailed"


class _DeploymentStatus(msgspec.Struct, rename="camel"):
    message: str = ""


class _Status(msgspec.Struct, rename="camel"):
    state: str = ""
    conditions: list[Condition] = []
    deployment_status: _DeploymentStatus | None = None
    observed_generation: int | None = None


class _ResourceMetadata(msgspec.Struct, rename="camel"):
    name: str
    namespace: str
    uid: str = ""
    generation: int = 1
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None


class _Resource(msgspec.Struct):
    kind: str
    metadata: _ResourceMetadata
    status: _Status = msgspec.field(default_factory=_Status)


@dataclass(frozen=True)
class PodStanding:
    """How one pod stands.

    Parameters
    ----------
    name, namespace, node
        Of the pod, and of the cluster's node that it is on.
    role
        ``worker``, ``prefill``, ``decode`` or ``router``.
    phases
        What it has been through.
    is_serving
        It is ready, and to stay.
    is_ending
        It is being deleted.
    troubles
        What keeps it from serving.
    """

    name: str
    namespace: str
    role: str
    node: str
    phases: tuple[Phase, ...]
    is_serving: bool
    is_ending: bool = False
    troubles: tuple[Trouble, ...] = ()


@dataclass(frozen=True)
class Standing:
    """How an endpoint stands.

    Parameters
    ----------
    kind, name, namespace
        Of its resource.
    state
        As HyperPod's clients show it, such as ``DeploymentInProgress``; empty: no operator has said anything.
    is_ready
        The condition ``Ready`` is true of what was asked for last; of an operator that sets none, the deployment is
        complete.
    is_failed
        The operator has given up on it, or refuses it.
    conditions
        As the operator set them.
    pods
        Workers, then routers.
    troubles
        Of the resource itself.
    """

    kind: str
    name: str
    namespace: str
    state: str
    is_ready: bool
    is_failed: bool
    conditions: tuple[Condition, ...]
    pods: tuple[PodStanding, ...]
    troubles: tuple[Trouble, ...] = field(default=())


async def resource_kinds(cluster: Cluster) -> list[Kind]:
    """Return the kinds of resources that endpoints are asked for with.

    Raises
    ------
    UsageError
        The cluster does not have them.
    """
    found = [await cluster.kind(names.API_VERSION, kind) for kind in KINDS]
    served = [kind for kind in found if kind is not None]
    if not served:
        raise UsageError(
            f"the cluster has no {KINDS[0]}: install the resources with "
            "`tierline operator crds | kubectl apply --server-side -f -`"
        )
    return served


async def find_resource(cluster: Cluster, namespace: str, name: str) -> tuple[Kind, Object]:
    """Return an endpoint's resource, of whichever kind.

    Raises
    ------
    UsageError
        There is none of that name.
    """
    for kind in await resource_kinds(cluster):
        found = await cluster.get(kind, namespace, name)
        if found is not None:
            return kind, found
    raise UsageError(f"no endpoint {name} in namespace {namespace}; --namespace names another one")


async def pods_of(cluster: Cluster, namespace: str, name: str, system_namespace: str) -> tuple[list[Pod], list[Pod]]:
    """Return the workers and the routers of an endpoint."""
    workers = read_pods(await cluster.list(POD, namespace, labels=f"{names.APP}={name}"))
    labels = f"{names.APP}={names.router_name(name, namespace)}"
    routers: list[Object] = []
    for place in dict.fromkeys((namespace, system_namespace)):
        routers += await cluster.list(POD, place, labels=labels)
    return workers, read_pods(routers)


async def standing(
    cluster: Cluster, namespace: str, name: str, *, system_namespace: str, now: datetime | None = None
) -> Standing:
    """Look how an endpoint stands.

    Raises
    ------
    UsageError
        There is none of that name.
    """
    _, found = await find_resource(cluster, namespace, name)
    resource = msgspec.convert(found, _Resource)
    workers, routers = await pods_of(cluster, namespace, name, system_namespace)
    at = now or datetime.now(UTC)
    pods = [await _look(cluster, pod, pod.metadata.labels.get(names.ROLE, "worker"), at) for pod in workers]
    pods += [await _look(cluster, pod, "router", at) for pod in routers]
    status = resource.status
    return Standing(
        kind=resource.kind,
        name=name,
        namespace=namespace,
        state=status.state,
        is_ready=_is_ready(resource),
        is_failed=_is_failed(resource),
        conditions=tuple(status.conditions),
        pods=tuple(pods),
        troubles=tuple(_of_resource(resource, pods, at)),
    )


def _says(resource: _Resource, kind: str, status: str) -> bool:
    """Whether a condition says so of what was asked for last."""
    return any(
        each.type == kind
        and each.status == status
        and (each.observed_generation is None or each.observed_generation >= resource.metadata.generation)
        for each in resource.status.conditions
    )


def _is_failed(resource: _Resource) -> bool:
    """Whether what was asked for last has failed; of an operator that does not say of what it speaks, of that."""
    seen = resource.status.observed_generation
    is_of_this = seen is None or seen >= resource.metadata.generation
    return (is_of_this and resource.status.state == _FAILED) or _says(resource, "Validated", "False")


def _is_ready(resource: _Resource) -> bool:
    if resource.metadata.deletion_timestamp is not None:
        return False
    if any(each.type == "Ready" for each in resource.status.conditions):
        return _says(resource, "Ready", "True")
    return resource.status.state == _COMPLETE


async def _look(cluster: Cluster, pod: Pod, role: str, now: datetime) -> PodStanding:
    went = phases(pod, now)
    serving = is_serving(pod)
    found: Sequence[Trouble] = ()
    if not serving and pod.metadata.deletion_timestamp is None and went:
        events, logs = await asyncio.gather(_events(cluster, pod), _logs(cluster, pod))
        found = troubles(pod, went[-1], events, logs)
    return PodStanding(
        name=pod.metadata.name,
        namespace=pod.metadata.namespace,
        role=role,
        node=pod.spec.node_name,
        phases=tuple(went),
        is_serving=serving,
        is_ending=pod.metadata.deletion_timestamp is not None,
        troubles=tuple(found),
    )


async def _events(cluster: Cluster, pod: Pod) -> list[Event]:
    selector = f"involvedObject.uid={pod.metadata.uid}"
    return read_events(await cluster.list(EVENT, pod.metadata.namespace, fields=selector))


async def _logs(cluster: Cluster, pod: Pod) -> dict[str, str]:
    """Return the last words of containers that ended; those that cannot be had are left out."""
    found: dict[str, str] = {}
    for container in crashed_containers(pod):
        try:
            found[container.name] = await cluster.log(
                pod.metadata.namespace,
                pod.metadata.name,
                container.name,
                lines=_LOG_LINES,
                of_previous=container.state.terminated is None,
            )
        except ClusterRefused:
            continue  # its node is away, or the log is gone; what the status says stays
    return found


def _of_resource(resource: _Resource, pods: Sequence[PodStanding], now: datetime) -> list[Trouble]:
    status, metadata = resource.status, resource.metadata
    if metadata.deletion_timestamp is not None:
        return [Trouble("Deleting", "it is being deleted", is_passing=True)]
    age = (now - (metadata.creation_timestamp or now)).total_seconds()
    if not status.state and not status.conditions:
        if age < _UNSEEN_SECONDS:
            return [Trouble("NotSeen", "no operator has said anything of it yet", is_passing=True)]
        return [
            Trouble(
                "NoOperator",
                f"no operator has said anything of it in {age:.0f} s",
                "see whether one runs and watches this namespace: `tierline operator preflight`",
            )
        ]
    if _is_ready(resource):
        return []  # what it does without is among its conditions
    found = [
        Trouble(each.reason or each.type, f"{each.type}: {each.message or each.reason or 'it is not so'}")
        for each in status.conditions
        if each.status == "False" and each.type not in ("Ready", "Unsupported") and each.message
    ]
    if not found and not pods:
        said = status.deployment_status.message if status.deployment_status is not None else ""
        found = [Trouble("NoPods", "it has no pods yet", said=said, is_passing=not _is_failed(resource))]
    return found
