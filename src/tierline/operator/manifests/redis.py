"""Redis of the operator's own, for endpoints that ask for one as their L2 and name none: one for each of their caches.

Redis is one space of keys, and LMCache's keys do not say of which model they are, so that no two caches can be in one.
Its name says what it holds and how large it is: what changes neither keeps it, and what does has another one beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests import annotations, programs
from tierline.operator.manifests.buckets import digest, is_pinned
from tierline.operator.manifests.manifest import Made, Manifest
from tierline.operator.manifests.sizes import binary_quantity
from tierline.operator.names import APP, COMPONENT, INSTANCE, REDIS_OF
from tierline.operator.settled import PODS, Pods

NAME = "tierline-redis"
CONTAINER = "redis"
PORT = 6379
DEFAULT_BYTES = 8 * 1024**3


def wants_redis(endpoint: Endpoint) -> bool:
    """Whether an endpoint caches in Redis, leaves it to us which, and has pods that can have one cache."""
    cache = endpoint.spec.kv_cache_spec
    if cache is None or not cache.enable_l2_cache or cache.l2_cache_spec is None or not is_pinned(endpoint):
        return False
    l2 = cache.l2_cache_spec
    return (l2.l2_cache_backend or "").lower() == "redis" and not l2.l2_cache_local_url


def redis_name(endpoint: Endpoint) -> str:
    """Return the name of its objects: another one, and so an empty one, as soon as the cache means something else.

    So it is with another size: one that is made anew in its place would be empty for all workers at once.

    Raises
    ------
    ConfigurationError
        Annotation ``l2-size`` is no size.
    """
    name, size_bytes = f"{NAME}-{digest(endpoint)}", _size_bytes(endpoint)
    return name if size_bytes == DEFAULT_BYTES else f"{name}-{size_bytes}"


def redis_url(endpoint: Endpoint, config: OperatorConfig) -> str:
    """Return where an endpoint's is."""
    return f"redis://{redis_name(endpoint)}.{config.namespace}.svc:{PORT}"


def redis(endpoints: Sequence[Endpoint], capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return Deployment, Service and NetworkPolicy for each of the endpoints that wants them.

    What it holds can be computed again: nothing is written to disks, and what was used least goes when it is full.
    """
    made = Made()
    for endpoint in endpoints:
        if wants_redis(endpoint):
            server = _Server(
                name=redis_name(endpoint),
                endpoint=endpoint,
                size_bytes=_size_bytes(endpoint),
                config=config,
            )
            made += Made((_service(server), _deployment(server), _network_policy(server)))
    return made


def _size_bytes(endpoint: Endpoint) -> int:
    return annotations.size(endpoint, "l2-size") or DEFAULT_BYTES


@dataclass(frozen=True)
class _Server:
    """The Redis of one endpoint's cache."""

    name: str
    endpoint: Endpoint
    size_bytes: int
    config: OperatorConfig

    @property
    def labels(self) -> dict[str, str]:
        return {APP: self.name}

    @property
    def metadata(self) -> dict[str, Any]:
        labels = {**self.labels, REDIS_OF: self.endpoint.uid}
        return {"name": self.name, "namespace": self.config.namespace, "labels": labels}


def _service(server: _Server) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": server.metadata,
        "spec": {"selector": server.labels, "ports": [{"name": "redis", "port": PORT, "protocol": "TCP"}]},
    }


def _deployment(server: _Server) -> Manifest:
    container = {
        "name": CONTAINER,
        "image": server.config.redis_image,
        "args": [
            "--bind",
            "$(POD_IP)",
            "--port",
            str(PORT),
            "--protected-mode",
            "no",  # the NetworkPolicy says who connects
            "--save",
            "",
            "--appendonly",
            "no",
            "--maxmemory",
            str(server.size_bytes),
            "--maxmemory-policy",
            "allkeys-lru",
        ],
        "env": [programs.POD_IP],
        "ports": [{"name": "redis", "containerPort": PORT}],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 5, "timeoutSeconds": 5},
        "livenessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        # What a full Redis takes beside its values: buffers of clients, and holes between them.
        "resources": {"requests": {"cpu": "500m", "memory": binary_quantity(server.size_bytes * 5 // 4)}},
        "securityContext": programs.restricted(),
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**server.metadata, "annotations": {PODS: Pods(image=server.config.redis_image).text()}},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": server.labels},
            "template": {
                "metadata": {"labels": {**server.labels, COMPONENT: "redis"}},
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "containers": [container],
                    "volumes": [{"name": "data", "emptyDir": {}}],
                },
            },
        },
    }


def _network_policy(server: _Server) -> Manifest:
    # Of any namespace: those that can be named by a label have it since Kubernetes 1.21 only.
    labels = {COMPONENT: "worker", INSTANCE: server.endpoint.name}
    workers = {"namespaceSelector": {}, "podSelector": {"matchLabels": labels}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": server.metadata,
        "spec": {
            "podSelector": {"matchLabels": server.labels},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [workers], "ports": [{"port": PORT, "protocol": "TCP"}]}],
        },
    }
