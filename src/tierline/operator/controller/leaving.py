"""Machines that node stores have left: what they left there in memory goes, before it is forgotten that they were.

Rule: which machines those are is read from the cluster, of the stores and of the pods that remove; what removes is
written before stores go, so that an operator which takes over between any two writes goes on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.controller import status
from tierline.operator.controller.kinds import Reference, reference
from tierline.operator.manifests import node_stores
from tierline.operator.manifests.desired import removal
from tierline.operator.manifests.machines import Machines
from tierline.operator.manifests.manifest import Manifest
from tierline.operator.manifests.store_removal import SINCE, settings_of

REMOVAL_SECONDS = 900.0
"""So long, machines are waited for: for an image, for a store that ends, for one that is away."""


@dataclass(frozen=True)
class Leaving:
    """What stores have left, and where.

    Parameters
    ----------
    manifest
        The DaemonSet that removes it.
    left_s
        Until it is given up, which counts from when the stores are to be gone; not more than 0: it is late.
    """

    manifest: Manifest
    left_s: float


def leaving(
    stores: Mapping[str, Any] | None,
    removing: Mapping[str, Any] | None,
    wanted: Iterable[Manifest],
    config: OperatorConfig,
    capabilities: Capabilities,
    now: datetime,
) -> Leaving | None:
    """Return what is to be removed; ``None``: nothing is left.

    Parameters
    ----------
    stores, removing
        The DaemonSets of the stores and of what removes, as the cluster has them.
    wanted
        All that endpoints share, the stores among it.
    config
        The operator's.
    capabilities
        What the cluster has.
    now
        The time.
    """
    keeping = next((Machines.of(each) for each in wanted if reference(each) == _stores(config)), Machines())
    going = Machines.of(stores) - keeping if stores is not None else Machines()
    known = Machines.of(removing) if removing is not None else Machines()
    machines = known - keeping | going
    present = stores or removing
    if not machines or present is None:
        return None
    if going:
        return Leaving(removal(config, machines, settings_of(present), None, capabilities), REMOVAL_SECONDS)
    assert removing is not None
    if machines == known and _is_done(removing):
        return None
    since = (removing["metadata"].get("annotations") or {}).get(SINCE) or status.stamp(now)
    left_s = REMOVAL_SECONDS - status.seconds_since(since, now)
    return Leaving(removal(config, machines, settings_of(present), since, capabilities), left_s)


def _stores(config: OperatorConfig) -> Reference:
    return Reference("DaemonSet", config.namespace, node_stores.NAME)


def unfinished(pods: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the machines of those pods of a DaemonSet that are not ready."""
    return sorted(
        _machine(pod)
        for pod in pods
        if not any(
            each["type"] == "Ready" and each["status"] == "True"
            for each in pod.get("status", {}).get("conditions") or ()
        )
    )


def _machine(pod: Mapping[str, Any]) -> str:
    """Return the machine of a pod, or where it has no place there yet, the one that it is meant for."""
    spec = pod["spec"]
    if spec.get("nodeName"):
        return str(spec["nodeName"])
    match (spec.get("affinity") or {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution"):
        case {"nodeSelectorTerms": [{"matchFields": [{"values": [str(name)]}]}]}:
            return name
    return f"that of pod {pod['metadata']['name']}"


def _is_done(daemon_set: Mapping[str, Any]) -> bool:
    said = daemon_set.get("status") or {}
    wanted = said.get("desiredNumberScheduled", 0)
    is_seen: bool = said.get("observedGeneration", 0) >= daemon_set["metadata"]["generation"]
    is_ready: bool = min(said.get("updatedNumberScheduled", 0), said.get("numberAvailable", 0)) >= wanted
    return is_seen and is_ready
