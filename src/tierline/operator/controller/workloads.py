"""How far a Deployment's rollout has come, and what holds its pods back. Pure functions of what was seen."""

from collections.abc import Iterable, Mapping
from typing import Any

from tierline.operator.controller.conditions import WORKERS, Condition
from tierline.operator.controller.kinds import POD, Reference
from tierline.operator.controller.live import Live
from tierline.operator.manifests import redis
from tierline.operator.manifests.cache_settings import CONNECTOR
from tierline.operator.manifests.programs import COLLECTOR
from tierline.operator.manifests.router import ROUTER_CONTAINER
from tierline.operator.manifests.sidecars import PROXY
from tierline.operator.names import APP, COMPONENT, INSTANCE, prefetch_name
from tierline.operator.settled import PODS

_STARTING = frozenset({"ContainerCreating", "PodInitializing"})
"""Reasons to wait that are none to worry."""
_UNPULLED = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_NO_PROGRAM = frozenset({"StartError", "ContainerCannotRun"})
"""How containers end whose image has not what they are to run."""
_COUNTS = ("replicas", "updatedReplicas", "availableReplicas")
_STATUSES = ("initContainerStatuses", "containerStatuses")
_MOST_TROUBLES = 3


def rollout(kind: str, name: str, live: Live | None, pods: Iterable[Live]) -> Condition:
    """Return how a Deployment stands: true once all pods have the newest template and are available.

    Parameters
    ----------
    kind
        Of the condition.
    name
        Of the Deployment.
    live
        As it was seen; ``None``: it is not there.
    pods
        Its own.
    """
    if live is None:
        return Condition(kind, "False", "NotMade", f"there is no Deployment {name} yet")
    status = live.status or {}
    wanted = 1 if live.replicas is None else live.replicas
    there, updated, available = _counts(live)
    if status.get("observedGeneration", 0) < live.metadata.generation:
        return Condition(kind, "False", "RollingOut", f"Deployment {name} has a new template that nobody has seen yet")
    if updated >= wanted and available >= wanted and there <= wanted:
        if wanted == 0:
            return Condition(kind, "True", "ScaledToZero", f"Deployment {name} is to have no pods")
        return Condition(kind, "True", "Available", f"Deployment {name}: {available} of {wanted} available")
    message = f"Deployment {name}: {updated} of {wanted} up to date, {available} available"
    if there > updated:
        message += f", {there - updated} of the former template left"
    failures = [
        str(each.get("message") or each.get("reason", ""))
        for each in status.get("conditions", ())
        if each.get("type") == "ReplicaFailure" and each.get("status") == "True"
    ]
    pods = list(pods)
    trouble, texts = troubles(pods)
    if failures or trouble:
        reason = trouble or "ReplicaFailure"
        texts = [message, *failures, *texts, *image_remedies(pods, name if kind == WORKERS else "")]
        return Condition(kind, "False", reason, "; ".join(texts), is_trouble=True)
    return Condition(kind, "False", "RollingOut", message)


def newest_is_available(live: Live) -> bool:
    """Whether a pod of a Deployment's newest template is available: more are than pods of former ones are left."""
    there, updated, available = _counts(live)
    return available > there - updated


def is_replaced(live: Live) -> bool:
    """Whether a Deployment has pods of its newest template alone, and one of them works, where it is to have any.

    Others may wait for machines: an autoscaler wants more than there is room for.
    """
    there, updated, _ = _counts(live)
    is_seen = (live.status or {}).get("observedGeneration", 0) >= live.metadata.generation
    return is_seen and there <= updated and (live.replicas == 0 or newest_is_available(live))


def _counts(live: Live) -> tuple[int, int, int]:
    """Return how many pods a Deployment has, how many of them are of its newest template, and how many available."""
    there, updated, available = ((live.status or {}).get(key, 0) for key in _COUNTS)
    return there, updated, available


def troubles(pods: Iterable[Live]) -> tuple[str, list[str]]:
    """Return what keeps pods from starting: a reason, empty for none, and a few of the texts."""
    found: dict[str, str] = {}
    for pod in pods:
        for reason, text in _of_pod(pod.metadata.name, pod.status or {}):
            found.setdefault(text, reason)
    return next(iter(found.values()), ""), list(found)[:_MOST_TROUBLES]


def init_troubles(pods: Iterable[Live]) -> tuple[str, list[str]]:
    """Return the same of init containers alone, which fetch models and write what engines read."""
    found = [
        each
        for pod in pods
        for each in container_troubles(pod.metadata.name, (pod.status or {}).get("initContainerStatuses", ()))
    ]
    return next((reason for reason, _ in found), ""), [text for _, text in found][:_MOST_TROUBLES]


def redis_pods(name: str, shared: Mapping[Reference, Live]) -> list[Live]:
    """Return the pods of the Redis of a name."""
    pods = (live for found, live in shared.items() if found.kind == POD)
    return [pod for pod in pods if (pod.metadata.labels or {}).get(APP) == name]


def unstarted_images(pods: Iterable[Live]) -> set[str]:
    """Return which settings of the operator name an image that a container waits for without ever having run.

    One that ran and ended is none: what runs beside it is not to be replaced for that.
    """
    return {setting for setting, container in _waiting(pods) if not _has_run(container)}


def _has_run(container: Mapping[str, Any]) -> bool:
    last = container.get("lastState", {}).get("terminated", {})
    return last.get("reason") not in _NO_PROGRAM if last else bool(container.get("restartCount"))


def image_remedies(pods: Iterable[Live], settled: str = "") -> list[str]:
    """Return what to do about images of ours that cannot be pulled.

    Parameters
    ----------
    pods
        Of a Deployment.
    settled
        Its name, where its pods stay with an image that runs, whichever the setting names; see :mod:`.settling`.
    """
    kept = f" (where some run already, after `kubectl annotate deployment {settled} {PODS}-`)" if settled else ""
    found = {
        setting: container.get("image", "")
        for setting, container in _waiting(pods)
        if container["state"]["waiting"]["reason"] in _UNPULLED
    }
    return [
        f"image {image} comes from the operator's setting {setting}: once that names another, pods get it{kept}"
        for setting, image in found.items()
    ]


def _waiting(pods: Iterable[Live]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yield each container of ours that cannot be started now, with the setting that names its image."""
    for pod in pods:
        settings = _image_settings(pod.metadata.labels or {})
        for key in _STATUSES:
            for container in (pod.status or {}).get(key, ()):
                reason = container.get("state", {}).get("waiting", {}).get("reason", "")
                setting = settings.get(container.get("name", ""))
                if setting is not None and reason and reason not in _STARTING:
                    yield setting, container


def _image_settings(labels: Mapping[str, str]) -> dict[str, str]:
    """Return for a pod's containers of ours which setting of the operator names their image."""
    match labels.get(COMPONENT):
        case "worker":
            fetch = prefetch_name(labels.get(INSTANCE, ""))
            return {PROXY: "image", COLLECTOR: "image", fetch: "image", CONNECTOR: "connector_image"}
        case "router":
            return {ROUTER_CONTAINER: "image", COLLECTOR: "image"}
        case "redis":
            return {redis.CONTAINER: "redis_image"}
    return {}


def _of_pod(name: str, status: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for condition in status.get("conditions", ()):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield condition.get("reason", "Unschedulable"), f"pod {name}: {condition.get('message', '')}"
    for key in _STATUSES:
        yield from container_troubles(name, status.get(key, ()))


def container_troubles(pod: str, statuses: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    """Yield a reason and a text for each container of a pod that cannot be started."""
    for container in statuses:
        waiting = container.get("state", {}).get("waiting", {})
        reason = waiting.get("reason", "")
        if not reason or reason in _STARTING:
            continue
        last = container.get("lastState", {}).get("terminated", {})
        ended = f" (it ended last with {last.get('reason', '')} {last.get('exitCode', '')})" if last else ""
        message = f": {waiting['message']}" if waiting.get("message") else ""
        yield reason, f"container {container.get('name')} of pod {pod} waits, {reason}{message}{ended}"
