"""What stays as it is while it runs: node stores have the size that their segments were made with, a Redis its image.

A store that starts with another size refuses the segment that the one before has left, for engines may have it mapped:
the first pod that is rolled would never run, and its machine's engines had no second level. A Redis that starts anew is
empty, and an operator that comes with a newer image is no reason to lose what it holds. One that cannot be started
holds nothing.
"""

import copy
from collections.abc import Mapping
from typing import Any

from tierline import logs
from tierline.operator.controller.kinds import Reference, reference
from tierline.operator.controller.live import Live
from tierline.operator.controller.workloads import redis_pods, troubles
from tierline.operator.manifests.machines import Machines
from tierline.operator.manifests.manifest import Manifest
from tierline.operator.manifests.node_stores import memory_request
from tierline.operator.manifests.store_removal import settings_of
from tierline.operator.settled import PODS, read_pods

log = logs.get(__name__)

CAPACITY = "TIERLINE_NODE_CAPACITY"


def held(manifest: Manifest, live: Mapping[str, Any] | None) -> Manifest:
    """Return node stores as they are wanted, in the size of those that run, or of those that are being removed."""
    wanted = copy.deepcopy(manifest)
    present, said = _capacity(live or {}), _capacity(wanted)
    if present is None or said is None or present["value"] == said["value"]:
        return manifest
    log.warning(
        "node stores keep their size until what they left is removed", size=present["value"], wanted=said["value"]
    )
    said["value"] = present["value"]
    for container in wanted["spec"]["template"]["spec"]["containers"]:
        container["resources"]["requests"]["memory"] = memory_request(present["value"])
    return wanted


def grown(manifest: Manifest, live: Mapping[str, Any]) -> Manifest:
    """Return node stores as they are wanted, on all machines that they are on, too."""
    machines = Machines.of(manifest) | Machines.of(live)
    wanted = copy.deepcopy(manifest)
    pod = wanted["spec"]["template"]["spec"]
    pod["affinity"] = {key: value for key, value in pod.get("affinity", {}).items() if key != "nodeAffinity"}
    pod["affinity"] |= machines.node_affinity()
    return wanted


def with_the_image_of(manifest: Manifest, shared: Mapping[Reference, Live]) -> Manifest:
    """Return a Redis as it is wanted, of the image that the one of its name runs; any other manifest as it is.

    Parameters
    ----------
    manifest
        As it is wanted.
    shared
        What endpoints share, as it was seen.
    """
    live = shared.get(reference(manifest))
    annotations = (live.metadata.annotations or {}) if live is not None else {}
    image = read_pods(annotations.get(PODS)).image
    if manifest["kind"] != "Deployment" or not image or (live is not None and _cannot_start(live, shared)):
        return manifest
    wanted = copy.deepcopy(manifest)
    wanted["metadata"]["annotations"][PODS] = annotations[PODS]
    for container in wanted["spec"]["template"]["spec"]["containers"]:
        container["image"] = image
    return wanted


def _cannot_start(live: Live, shared: Mapping[Reference, Live]) -> bool:
    """Whether no pod of a Redis is ready, and something keeps one from being started."""
    if (live.status or {}).get("readyReplicas"):
        return False
    reason, _ = troubles(redis_pods(live.metadata.name, shared))
    return bool(reason)


def _capacity(daemon_set: Mapping[str, Any]) -> dict[str, Any] | None:
    variables = settings_of(daemon_set) if daemon_set.get("kind") == "DaemonSet" else ()
    return next((each for each in variables if each["name"] == CAPACITY and "value" in each), None)
