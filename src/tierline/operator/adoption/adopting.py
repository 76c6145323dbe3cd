"""Taking over, step by step, each of which may be done again; and sweeping up what only HyperPod's operator wanted."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from http import HTTPStatus

from tierline.errors import ClusterRefused, ClusterUnavailable
from tierline.kube.cluster import Cluster, Kind, Object
from tierline.operator import crds, names
from tierline.operator.adoption.planning import Child, EndpointPlan, Plan
from tierline.operator.manifests.desired import owner_labels
from tierline.operator.preflight.facts import SHARED_NAME

DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments", is_namespaced=True)
_ACCOUNT = Kind("v1", "ServiceAccount", "serviceaccounts", is_namespaced=True)
POD = Kind("v1", "Pod", "pods", is_namespaced=True)
DEFINITION = Kind(
    "apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", is_namespaced=False
)
_POLL_S = 0.5
_ATTEMPTS = 10
_OF_THE_CLUSTER = ("kube-controller-manager", "kube-scheduler", "kubelet")
_TEMPLATE = ("f:spec", "f:template")
Told = Callable[[str], None]


def objects_of(plan: Plan) -> Iterator[Object]:
    """Yield all that taking over changes, in the order in which it is restored: last comes who looks after it."""
    yield from plan.definitions
    for each in plan.endpoints:
        yield each.resource
        yield from (child.content for child in each.children)
    yield from (content for _, content in plan.webhooks)
    yield from plan.accounts
    yield from plan.operators


async def adopt(cluster: Cluster, plan: Plan, *, timeout_s: float, told: Told) -> None:
    """Take over.

    Parameters
    ----------
    timeout_s
        How long HyperPod's operator may take to end.
    told
        Has a sentence for each thing that was done.

    Raises
    ------
    ClusterUnavailable
        HyperPod's operator does not end in time.
    ClusterRefused
        The API does not let us; what was done by then stays, and may be rolled back.
    """
    for definition in plan.definitions:
        await _store_anew(cluster, definition)
    for deployment in plan.operators:
        await end(cluster, deployment, timeout_s)
        told(f"{deployment['metadata']['name']} is scaled to 0")
    for kind, each in (
        *((DEPLOYMENT, each) for each in plan.operators if each["metadata"]["name"] == SHARED_NAME),
        *((_ACCOUNT, each) for each in plan.accounts),
    ):
        # Ours bears the same name, and who installs it changes nothing that others have made.
        await cluster.delete(kind, each["metadata"]["namespace"], each["metadata"]["name"])
        told(f"{kind.name} {each['metadata']['name']} is removed: ours is to bear that name")
    for kind, webhook in plan.webhooks:
        await cluster.delete(kind, None, webhook["metadata"]["name"])
        told(f"{kind.name} {webhook['metadata']['name']} is removed")
    for definition in plan.definitions:
        await _replace_definition(cluster, definition)
        told(f"CustomResourceDefinition {definition['metadata']['name']} is ours")
    for endpoint in plan.endpoints:
        await _take(cluster, endpoint, told)


async def remove(cluster: Cluster, children: Sequence[Child], told: Told) -> None:
    """Remove what nobody wants any more, or what our operator is to make anew."""
    for child in children:
        await cluster.delete(child.kind, child.reference.namespace or None, child.reference.name)
        told(f"{child.reference} is removed")


async def _take(cluster: Cluster, each: EndpointPlan, told: Told) -> None:
    for child in each.of("take over"):
        await _label(cluster, child, owner_labels(each.endpoint))
        told(f"{child.reference} is ours")
    if each.finalizers:
        metadata = each.resource["metadata"]
        await _until_unchanged(partial(_take_off, cluster, each))
        told(f"{each.kind.name} {metadata['name']} waits no more for {', '.join(each.finalizers)}")


async def _take_off(cluster: Cluster, each: EndpointPlan) -> None:
    namespace, name = each.resource["metadata"]["namespace"], each.resource["metadata"]["name"]
    current = await cluster.get(each.kind, namespace, name)
    if current is None:
        return  # removed since
    kept = [name for name in current["metadata"].get("finalizers", ()) if name not in each.finalizers]
    change = {"finalizers": kept, "resourceVersion": current["metadata"]["resourceVersion"]}
    await cluster.merge(each.kind, namespace, name, {"metadata": change})


async def _label(cluster: Cluster, child: Child, labels: dict[str, str]) -> None:
    """Say whose an object is, and that what others wrote of its pods is ours: so ours does away with what it lacks."""
    what, namespace = child.reference, child.reference.namespace or None

    async def attempt() -> None:
        current = await cluster.get(child.kind, namespace, what.name)
        if current is None:
            return  # gone since it was looked for; ours makes it
        change: Object = {"metadata": {"labels": labels}}
        fields = hand_over(current["metadata"].get("managedFields", ()))
        if fields is not None:
            version = current["metadata"]["resourceVersion"]
            change["metadata"] |= {"managedFields": fields, "resourceVersion": version}
        await cluster.merge(child.kind, namespace, what.name, change)

    await _until_unchanged(attempt)


async def _until_unchanged(attempt: Callable[[], Awaitable[None]]) -> None:
    """Read an object and write it, as often as somebody else wrote it in between, as status is of what serves."""
    for _ in range(_ATTEMPTS):
        try:
            return await attempt()
        except ClusterRefused as refusal:
            if refusal.status != HTTPStatus.CONFLICT:
                raise
    return await attempt()


def hand_over(managed: Sequence[Object]) -> list[Object] | None:
    """Return who manages which fields once our operator has all of the pod template; ``None`` where there is none.

    Containers are merged by name: of a sidecar that its former manager still has, ours could not get rid.
    """
    template: Object = {}
    kept: list[Object] = []
    api_version = ""
    for each in managed:
        fields = each.get("fieldsV1", {})
        own = fields.get(_TEMPLATE[0], {}).get(_TEMPLATE[1])
        if own is None or each["manager"] in _OF_THE_CLUSTER or each["manager"] == names.FIELD_MANAGER:
            kept.append(each)
            continue
        template = _union(template, own)
        api_version = each["apiVersion"]
        rest = {key: value for key, value in fields[_TEMPLATE[0]].items() if key != _TEMPLATE[1]}
        others = {key: value for key, value in fields.items() if key != _TEMPLATE[0]}
        left = {**others, _TEMPLATE[0]: rest} if rest else others
        if left:
            kept.append({**each, "fieldsV1": left})
    if not template:
        return None
    ours = {
        "manager": names.FIELD_MANAGER,
        "operation": "Apply",
        "apiVersion": api_version,
        "fieldsType": "FieldsV1",
        "fieldsV1": {_TEMPLATE[0]: {_TEMPLATE[1]: template}},
    }
    return [*kept, ours]


def _union(one: Object, other: Object) -> Object:
    return {
        **one,
        **{key: _union(one[key], value) if isinstance(one.get(key), dict) else value for key, value in other.items()},
    }


async def end(cluster: Cluster, deployment: Object, timeout_s: float) -> None:
    """Scale an operator to 0, and wait until the last of its pods is gone: until then it may write.

    Raises
    ------
    ClusterUnavailable
        It has pods after ``timeout_s``.
    """
    metadata = deployment["metadata"]
    await cluster.merge(DEPLOYMENT, metadata["namespace"], metadata["name"], {"spec": {"replicas": 0}})
    try:
        async with asyncio.timeout(timeout_s):
            while await _has_pods(cluster, deployment):  # noqa: ASYNC110  (what changes is in the cluster)
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise ClusterUnavailable(
            f"{metadata['name']} still has pods {timeout_s:g} s after it was scaled to 0; nothing else is changed"
        ) from None


async def _has_pods(cluster: Cluster, deployment: Object) -> bool:
    """Whether a Deployment has pods; its status counts none that is ending, though that may take half a minute."""
    metadata, wanted = deployment["metadata"], deployment["spec"]["selector"].get("matchLabels", {})
    labels = ",".join(f"{key}={value}" for key, value in wanted.items())
    owners = [
        owner
        for pod in await cluster.list(POD, metadata["namespace"], labels=labels)
        for owner in pod["metadata"].get("ownerReferences", ())
    ]
    return any(each["kind"] == "ReplicaSet" and each["name"].rpartition("-")[0] == metadata["name"] for each in owners)


async def _store_anew(cluster: Cluster, definition: Object) -> None:
    """Have every object stored in the version that stays, as long as there is somebody to convert it."""
    name = definition["metadata"]["name"]
    if definition.get("status", {}).get("storedVersions", []) in ([], [names.VERSION]):
        return
    spec = definition["spec"]
    kind = Kind(names.API_VERSION, spec["names"]["kind"], spec["names"]["plural"], is_namespaced=True)
    for each in await cluster.list(kind):
        await _until_unchanged(partial(_write_again, cluster, kind, each["metadata"]))
    said = {"status": {"storedVersions": [names.VERSION]}}
    await cluster.merge(DEFINITION, None, name, said, is_status=True)


async def _write_again(cluster: Cluster, kind: Kind, metadata: Object) -> None:
    current = await cluster.get(kind, metadata["namespace"], metadata["name"])
    if current is not None:
        # An object that is written as it is, is written in the version that is stored now.
        await cluster.replace(kind, current)


async def _replace_definition(cluster: Cluster, definition: Object) -> None:
    name = definition["metadata"]["name"]
    wanted = crds.crd(next(kind for kind in crds.KINDS if kind.crd_name == name))

    async def attempt() -> None:
        current = await cluster.get(DEFINITION, None, name)
        if current is not None:
            # Put, not applied: of a webhook that its former manager still has, ours could not get rid.
            await cluster.replace(DEFINITION, {**current, "spec": wanted["spec"]})

    await _until_unchanged(attempt)
