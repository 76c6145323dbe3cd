"""Pods that give machines the memory back that node stores have left: each is ready once that is done.

Two pods that keep away from each other are never on one machine: one of these starts when the store there has ended,
and the engines that have its segment in their memory; and while it is there, no store starts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import ANNOTATION_PREFIX
from tierline.operator.manifests import node_stores, programs
from tierline.operator.manifests.machines import Machines
from tierline.operator.manifests.manifest import Manifest
from tierline.operator.names import APP, COMPONENT, USES_STORE

NAME = "tierline-node-removal"
SINCE = f"{ANNOTATION_PREFIX}removal-since"
"""An annotation: since when no store is to be there any more."""
LABELS = {APP: NAME}
_SELECTS_NAMESPACES = (1, 22)
"""Since then pods keep away from those of other namespaces without a list of these."""
_KEPT = ("TIERLINE_NODE_SHARED_MEMORY_NAME", "TIERLINE_NODE_CAPACITY", "TIERLINE_NODE_SOCKET")


def store_removal(
    config: OperatorConfig,
    machines: Machines,
    settings: Sequence[Mapping[str, Any]],
    since: str | None,
    capabilities: Capabilities,
) -> Manifest:
    """Return the DaemonSet.

    Parameters
    ----------
    config
        The operator's.
    machines
        Where stores were.
    settings
        Variables that the stores had, as :func:`settings_of` reads them.
    since
        Becomes annotation :data:`SINCE`; ``None``: stores are there still.
    capabilities
        What the cluster has.
    """
    apart: list[dict[str, Any]] = [_apart_from(node_stores.LABELS)]
    if capabilities.version >= _SELECTS_NAMESPACES:
        # An engine would go on with the segment that it has, and beside a store that comes later with another one.
        apart.append(_apart_from({USES_STORE: "true"}) | {"namespaceSelector": {}})
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 1,  # what sleeps as the first process of a container hears no SIGTERM
        "tolerations": [{"operator": "Exists"}],
        "affinity": {
            **machines.node_affinity(),
            "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": apart},
        },
        "initContainers": [
            {
                "name": "remove",
                "image": config.image,
                "command": ["tierline", "node", "remove-segment"],
                "env": [dict(each) for each in settings],
                "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
                "securityContext": programs.as_root(),
                "volumeMounts": [*node_stores.MOUNTS],
            }
        ],
        "containers": [
            {
                "name": "removed",
                "image": config.image,
                "command": ["sleep", "infinity"],
                "resources": {"requests": {"cpu": "1m", "memory": "8Mi"}},
                "securityContext": programs.restricted(),
            }
        ],
        "volumes": [*node_stores.VOLUMES],
    }
    if config.node_priority_class:
        pod["priorityClassName"] = config.node_priority_class
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": NAME,
            "namespace": config.namespace,
            "labels": LABELS,
            **({"annotations": {SINCE: since}} if since is not None else {}),
        },
        "spec": {
            "selector": {"matchLabels": LABELS},
            # They have nothing to do with each other.
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}},
            "template": {"metadata": {"labels": {**LABELS, COMPONENT: "node-store-removal"}}, "spec": pod},
        },
    }


def _apart_from(labels: Mapping[str, str]) -> dict[str, Any]:
    return {"labelSelector": {"matchLabels": dict(labels)}, "topologyKey": "kubernetes.io/hostname"}


def settings_of(daemon_set: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the variables of node stores, or of the pods here, that say what stores leave on a machine."""
    pod = daemon_set["spec"]["template"]["spec"]
    containers = [*(pod.get("initContainers") or ()), *pod["containers"]]
    return [each for container in containers for each in container.get("env") or () if each["name"] in _KEPT]
