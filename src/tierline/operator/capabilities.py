"""What a cluster has, as far as manifests depend on it; found by discovery, a value here: manifests are pure."""

from dataclasses import dataclass, field

NAMESPACE_NAME = "kubernetes.io/metadata.name"
NAMED_NAMESPACES = (1, 21)
"""Since then every namespace has its name as that label."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a cluster has.

    Parameters
    ----------
    kinds
        API versions and kinds that are served, such as ``("policy/v1", "PodDisruptionBudget")``.
    version
        Of Kubernetes, major and minor.
    ingress_classes
        Names of its IngressClasses, with the controllers that serve them.
    default_ingress_class
        The one of them that is marked so; empty where none is, or several are.
    gateway_classes
        Names of its GatewayClasses.
    csi_drivers
        Names of its CSI drivers, such as ``s3.csi.aws.com``.
    instance_types
        What ``node.kubernetes.io/instance-type`` says of its nodes.
    """

    kinds: frozenset[tuple[str, str]] = field(default_factory=frozenset)
    version: tuple[int, int] = (1, 34)
    ingress_classes: tuple[tuple[str, str], ...] = ()
    default_ingress_class: str = ""
    gateway_classes: tuple[str, ...] = ()
    csi_drivers: frozenset[str] = field(default_factory=frozenset)
    instance_types: frozenset[str] = field(default_factory=frozenset)

    def serves(self, api_version: str, kind: str) -> bool:
        """Whether objects of this kind can be written in this version."""
        return (api_version, kind) in self.kinds

    def newest(self, kind: str, *api_versions: str) -> str | None:
        """Return the first of ``api_versions`` that serves ``kind``, or ``None``."""
        return next((version for version in api_versions if self.serves(version, kind)), None)
