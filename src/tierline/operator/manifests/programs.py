"""Containers that run programs of ours: how they are told things, what they may do, and where they listen.

They listen at the pod's own address and not at every one, so that several pods can be on one machine without networks
of their own.
"""

from collections.abc import Mapping
from typing import Any

from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.names import COLLECTOR_PORT

COLLECTOR = "metrics-collector"
COLLECTOR_PORT_NAME = "collector"
"""By which PodMonitors find it."""
NOBODY = 65532


def field(name: str, path: str) -> dict[str, Any]:
    """Return a variable with a field of the pod, such as ``status.podIP``; those that refer to it come behind it."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


POD_IP = field("POD_IP", "status.podIP")
PLACE = (field("POD_NAME", "metadata.name"), field("NODE_NAME", "spec.nodeName"))
"""What :func:`dimensions` refer to."""


def settings(program: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
    """Return settings of a program as the variables that it reads; what is ``None`` is left out."""
    return [
        {"name": f"TIERLINE_{program}_{key}".upper(), "value": _text(value)}
        for key, value in values.items()
        if value is not None
    ]


def restricted() -> dict[str, Any]:
    """Return what a container may do that needs nothing of its machine: Kubernetes' profile *restricted*."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": NOBODY,
        "runAsGroup": NOBODY,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def as_root() -> dict[str, Any]:
    """Return what a container may do that writes to folders of its machine, which are root's, and nothing beyond."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsUser": 0,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def collector(
    endpoint: Endpoint,
    config: OperatorConfig,
    targets: Mapping[str, str],
    *,
    container_type: str,
    instance_type: str = "",
) -> dict[str, Any]:
    """Return the container that gathers the metrics of a pod's others at one place, with HyperPod's dimensions.

    Parameters
    ----------
    endpoint, config
        Whose pod it is.
    targets
        URLs of pages of metrics in the pod, by the name of who shows them.
    container_type
        What the pod's first container is, for dimension ``model_container_type``.
    instance_type
        Of its machine, where it is known; a field of the pod does not say it.
    """
    return {
        "name": COLLECTOR,
        "image": config.image,
        "command": ["tierline", "collector"],
        "args": [
            "--host=$(POD_IP)",
            f"--port={COLLECTOR_PORT}",
            *(f"--target={name}={url}" for name, url in targets.items()),
            f"--interval-s={scrape_seconds(endpoint)}",
            *dimensions(endpoint, config, container_type=container_type, instance_type=instance_type),
        ],
        "env": [POD_IP, *PLACE],
        "ports": [{"name": COLLECTOR_PORT_NAME, "containerPort": COLLECTOR_PORT}],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": restricted(),
    }


def dimensions(
    endpoint: Endpoint, config: OperatorConfig, *, container_type: str, instance_type: str = ""
) -> list[str]:
    """Return flags of a program that labels metrics with where it runs; it has the variables :data:`PLACE`."""
    spec = endpoint.spec
    said = {
        "cluster-name": config.cluster_name,
        "model-name": spec.model_name,
        "model-version": spec.model_version,
        "resource-name": endpoint.name,
        "resource-type": "jumpstart" if endpoint.kind == "JumpStartModel" else "inference-endpoint",
        "namespace": endpoint.namespace,
        "pod-name": "$(POD_NAME)",
        "node-name": "$(NODE_NAME)",
        "instance-type": instance_type,
        "container-type": container_type,
    }
    return [f"--{name}={value}" for name, value in said.items() if value]


def scrape_seconds(endpoint: Endpoint) -> int:
    """Return how far apart metrics are gathered."""
    metrics = endpoint.spec.metrics
    return 15 if metrics is None else metrics.metrics_scrape_interval_seconds


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
