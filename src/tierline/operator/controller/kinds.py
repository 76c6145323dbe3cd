"""The kinds of objects that endpoints are made of: what is watched, and swept up when it is wanted no more."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tierline.kube.cluster import Kind
from tierline.operator import names

RESOURCES = ("InferenceEndpointConfig", "JumpStartModel")
"""Kinds that ask for endpoints."""
FOLLOWED = (*RESOURCES, names.REGISTRATION)
"""Kinds that have a status of ours."""
POD = "Pod"
CHILDREN: dict[str, tuple[str, ...]] = {
    "Secret": ("v1",),
    "ConfigMap": ("v1",),
    "ServiceAccount": ("v1",),
    "Service": ("v1",),
    "PersistentVolume": ("v1",),
    "PersistentVolumeClaim": ("v1",),
    "Pod": ("v1",),
    "Deployment": ("apps/v1",),
    "DaemonSet": ("apps/v1",),
    "StatefulSet": ("apps/v1",),
    "Role": ("rbac.authorization.k8s.io/v1",),
    "RoleBinding": ("rbac.authorization.k8s.io/v1",),
    "NetworkPolicy": ("networking.k8s.io/v1",),
    "Ingress": ("networking.k8s.io/v1", "networking.k8s.io/v1beta1"),
    "PodDisruptionBudget": ("policy/v1", "policy/v1beta1"),
    "HorizontalPodAutoscaler": ("autoscaling/v2", "autoscaling/v2beta2", "autoscaling/v1"),
    "ScaledObject": ("keda.sh/v1alpha1",),
    "TriggerAuthentication": ("keda.sh/v1alpha1",),
    "Gateway": ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"),
    "HTTPRoute": ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"),
    "Issuer": ("cert-manager.io/v1",),
    "Certificate": ("cert-manager.io/v1",),
    "ServiceMonitor": ("monitoring.coreos.com/v1",),
    "PodMonitor": ("monitoring.coreos.com/v1",),
}
"""Versions of each, the newest first: that one is watched, whatever version it was written in."""
_OF_THE_CLUSTER: dict[str, tuple[str, ...]] = {
    "IngressClass": ("networking.k8s.io/v1", "networking.k8s.io/v1beta1"),
    "GatewayClass": ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"),
    "CSIDriver": ("storage.k8s.io/v1",),
    "Node": ("v1",),
    "Lease": ("coordination.k8s.io/v1",),
}
KNOWN = frozenset((*FOLLOWED, *CHILDREN, *_OF_THE_CLUSTER))
Served = Mapping[tuple[str, str], Kind]


class Reference(NamedTuple):
    """Which object; the same one in every version of its kind. ``namespace`` is empty outside namespaces."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


def reference(manifest: Mapping[str, Any]) -> Reference:
    """Return which object a manifest makes."""
    metadata = manifest["metadata"]
    return Reference(manifest["kind"], metadata.get("namespace", ""), metadata["name"])


def newest(served: Served, kind: str) -> Kind | None:
    """Return one of our kinds in the newest version that is served."""
    versions = CHILDREN.get(kind) or _OF_THE_CLUSTER.get(kind) or (names.API_VERSION,)
    return next((served[version, kind] for version in versions if (version, kind) in served), None)


def children(served: Served) -> Iterable[Kind]:
    """Return the kinds that endpoints may be made of, as far as they are served."""
    return [found for kind in CHILDREN if (found := newest(served, kind)) is not None]
