"""Giving back: every object as it was saved, without what ours made since, and HyperPod's operator at last.

Endpoints' own resources keep what their users wrote since; only what was taken from them comes back.
"""

from http import HTTPStatus

from tierline.errors import ClusterRefused, UsageError
from tierline.kube.cluster import Cluster, Kind, Object
from tierline.operator import names
from tierline.operator.admission import configuration_name
from tierline.operator.adoption.adopting import DEPLOYMENT, Told, end
from tierline.operator.adoption.backup import Backup, identity
from tierline.operator.controller.admitting import CONFIGURATIONS
from tierline.operator.controller.kinds import POD, Reference, Served, children, reference
from tierline.operator.preflight.facts import operator_of

_OF_THE_API = ("creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid")
_HOLDS_DATA = ("PersistentVolumeClaim", "PersistentVolume")
_DEFINITION = "CustomResourceDefinition"
"""With it all endpoints would go."""
_ENDPOINTS = ("InferenceEndpointConfig", "JumpStartModel")


async def restore(
    cluster: Cluster, served: Served, backup: Backup, system_namespace: str, *, timeout_s: float, told: Told
) -> None:
    """Have everything be as a backup says; of a part, only that.

    Parameters
    ----------
    timeout_s
        How long our operator may take to end; until then it would undo what is restored.
    told
        Has a sentence for each thing that was done.

    Raises
    ------
    UsageError
        The backup is of another cluster.
    ClusterUnavailable
        Our operator does not end in time.
    ClusterRefused
        The API does not let us; it may be done again.
    """
    if backup.cluster != await identity(cluster):
        raise UsageError(f"--rollback: {backup.folder} is of another cluster than {cluster.server}")
    await _end_ours(cluster, system_namespace, timeout_s, told)
    saved = {reference(each) for each in backup.objects}
    for each in backup.objects:
        if each["kind"] in _ENDPOINTS:
            await _restore_finalizers(cluster, _kind(served, each), each)
        elif not _is_operator(each):
            told(f"{reference(each)} is {await _restore(cluster, _kind(served, each), each)}")
    if backup.is_part:
        return
    for what, kind in await _made_since(cluster, served, saved, system_namespace):
        await cluster.delete(kind, what.namespace or None, what.name)
        told(f"{what} is removed")
    await _take_ours_off(cluster, served, told)
    for kind in CONFIGURATIONS.values():
        # Nobody answers it any more, and each write of a resource would wait for that.
        if await cluster.delete(kind, None, configuration_name(system_namespace)):
            told(f"{kind.name} {configuration_name(system_namespace)} is removed")
    for each in filter(_is_operator, backup.objects):
        # Whole, not its replicas: it may be gone, and ours, which clients look for by the same name, be in its place.
        told(f"{reference(each)} is {await _restore(cluster, _kind(served, each), each)}")


async def _end_ours(cluster: Cluster, namespace: str, timeout_s: float, told: Told) -> None:
    for each in await cluster.list(DEPLOYMENT, namespace):
        found = operator_of(each)
        if found is not None and not found.is_hyperpods:
            await end(cluster, each, timeout_s)
            told(f"{found.name} is scaled to 0")


async def _restore(cluster: Cluster, kind: Kind, saved: Object) -> str:
    metadata = {key: value for key, value in saved["metadata"].items() if key not in _OF_THE_API}
    wanted = {key: value for key, value in saved.items() if key != "status"} | {"metadata": metadata}
    current = await cluster.get(kind, metadata.get("namespace"), metadata["name"])
    if current is None:
        await cluster.create(kind, wanted)
        return "made again"
    version = current["metadata"]["resourceVersion"]
    try:
        await cluster.replace(kind, wanted | {"metadata": {**metadata, "resourceVersion": version}})
    except ClusterRefused as refusal:
        if refusal.status != HTTPStatus.UNPROCESSABLE_ENTITY or kind.name == _DEFINITION:
            raise
        if kind.name in _HOLDS_DATA:
            return f"left as it is, for what it holds would be lost: {refusal}"
        # Of something that cannot be changed, such as a selector: it was made anew by ours.
        await cluster.delete(kind, metadata.get("namespace"), metadata["name"])
        await cluster.create(kind, wanted)
        return "made anew"
    return "as it was"


async def _restore_finalizers(cluster: Cluster, kind: Kind, saved: Object) -> None:
    metadata = saved["metadata"]
    current = await cluster.get(kind, metadata["namespace"], metadata["name"])
    if current is None or "deletionTimestamp" in current["metadata"]:
        return  # its user has removed it since; one that is ending takes no more
    finalizers = metadata.get("finalizers", [])
    await cluster.merge(kind, metadata["namespace"], metadata["name"], {"metadata": {"finalizers": finalizers}})


async def _take_ours_off(cluster: Cluster, served: Served, told: Told) -> None:
    """Take our finalizer off every endpoint, those made since the backup too: nobody is left who would."""
    for name in _ENDPOINTS:
        kind = served.get((names.API_VERSION, name))
        for each in await cluster.list(kind) if kind is not None else ():
            metadata = each["metadata"]
            if kind is not None and names.FINALIZER in metadata.get("finalizers", ()):
                kept = [other for other in metadata["finalizers"] if other != names.FINALIZER]
                change = {"finalizers": kept}
                await cluster.merge(kind, metadata["namespace"], metadata["name"], {"metadata": change})
                told(f"{reference(each)} waits no more for {names.FINALIZER}")


async def _made_since(
    cluster: Cluster, served: Served, saved: set[Reference], namespace: str
) -> list[tuple[Reference, Kind]]:
    """Return what our operator has made: for endpoints, those made since the backup too, and for all to share."""
    found = []
    for kind in children(served):
        if kind.name == POD:
            continue
        listed = await cluster.list(kind, labels=names.OWNER_UID)
        shared = f"{names.MANAGED_BY}={names.FIELD_MANAGER},!{names.OWNER_UID}"
        listed += await cluster.list(kind, namespace, labels=shared)
        found += [(what, kind) for each in listed if (what := reference(each)) not in saved]
    return found


def _is_operator(content: Object) -> bool:
    return content["kind"] == "Deployment" and operator_of(content) is not None


def _kind(served: Served, content: Object) -> Kind:
    return served[content["apiVersion"], content["kind"]]
