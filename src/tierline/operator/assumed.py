"""Clusters that nobody asks: what one has by its version, and by what was installed in it, for ``render`` and tests."""

from collections.abc import Collection

from tierline.errors import ConfigurationError
from tierline.operator.capabilities import Capabilities
from tierline.operator.manifests.autoscaling import KEDA
from tierline.operator.manifests.certificates import CERT_MANAGER
from tierline.operator.manifests.entrance import ALB_CONTROLLER, GATEWAY, NGINX_CONTROLLER
from tierline.operator.manifests.monitoring import MONITORING

LATEST = (1, 34)
_BY_VERSION: tuple[tuple[str, str, tuple[int, int], tuple[int, int] | None], ...] = (
    ("policy/v1beta1", "PodDisruptionBudget", (1, 5), (1, 24)),
    ("policy/v1", "PodDisruptionBudget", (1, 21), None),
    ("autoscaling/v2beta2", "HorizontalPodAutoscaler", (1, 12), (1, 25)),
    ("autoscaling/v2", "HorizontalPodAutoscaler", (1, 23), None),
    ("networking.k8s.io/v1", "Ingress", (1, 19), None),
    ("networking.k8s.io/v1", "NetworkPolicy", (1, 7), None),
)
"""Kinds that are not in every version, with the first and the last that has them, if there is one."""
_KINDS = {
    "cert-manager": {(CERT_MANAGER, kind) for kind in ("Certificate", "Issuer", "ClusterIssuer")},
    "gateway": {(GATEWAY, kind) for kind in ("Gateway", "GatewayClass", "HTTPRoute")},
    "keda": {(KEDA, kind) for kind in ("ScaledObject", "TriggerAuthentication")},
    "prometheus": {(MONITORING, kind) for kind in ("PodMonitor", "ServiceMonitor")},
}
_INGRESS_CLASSES = {"alb": ("alb", ALB_CONTROLLER), "nginx": ("nginx", NGINX_CONTROLLER)}
_CSI_DRIVERS = {"s3-csi": "s3.csi.aws.com", "fsx-csi": "fsx.csi.aws.com"}
ADDITIONS = (*_INGRESS_CLASSES, *_KINDS, *_CSI_DRIVERS)
"""What may be installed in a cluster, as far as it makes a difference."""


def cluster(additions: Collection[str] = (), version: tuple[int, int] = LATEST) -> Capabilities:
    """Return what a cluster has.

    Raises
    ------
    ConfigurationError
        One of ``additions`` is none of :data:`ADDITIONS`.
    """
    if unknown := [name for name in additions if name not in ADDITIONS]:
        raise ConfigurationError("--with", unknown[0], ", ".join(ADDITIONS))
    kinds = {
        (group, kind)
        for group, kind, first, last in _BY_VERSION
        if first <= version and (last is None or version <= last)
    }
    return Capabilities(
        version=version,
        kinds=frozenset(kinds.union(*(_KINDS[name] for name in additions if name in _KINDS))),
        ingress_classes=tuple(_INGRESS_CLASSES[name] for name in additions if name in _INGRESS_CLASSES),
        gateway_classes=("default",) if "gateway" in additions else (),
        csi_drivers=frozenset(_CSI_DRIVERS[name] for name in additions if name in _CSI_DRIVERS),
    )
