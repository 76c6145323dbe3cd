"""What the operator itself may do: to make, change, follow and delete what endpoints are made of, and no more.

No verb and no resource is ``*``. What routers and node stores may do is among it, for nobody can hand on a right that
he does not have. Secrets of all namespaces are: pods of an endpoint mount those of theirs.
"""

from collections.abc import Sequence

from tierline.operator import admission
from tierline.operator.manifests.accounts import RBAC
from tierline.operator.names import GROUP

Rule = dict[str, list[str]]

_LOOKS = ["get", "list", "watch"]
_MAKES = ["create", "delete", "get", "list", "patch", "update", "watch"]
_RESOURCES = ("inferenceendpointconfigs", "jumpstartmodels", "sagemakerendpointregistrations")
_MADE: dict[str, tuple[str, ...]] = {
    "": (
        "configmaps",
        "persistentvolumeclaims",
        "persistentvolumes",
        "secrets",
        "serviceaccounts",
        "services",
    ),
    "apps": ("daemonsets", "deployments", "statefulsets"),
    "autoscaling": ("horizontalpodautoscalers",),
    "cert-manager.io": ("certificates", "issuers"),
    "gateway.networking.k8s.io": ("gateways", "httproutes"),
    "keda.sh": ("scaledobjects", "triggerauthentications"),
    "monitoring.coreos.com": ("podmonitors", "servicemonitors"),
    "networking.k8s.io": ("ingresses", "networkpolicies"),
    "policy": ("poddisruptionbudgets",),
    RBAC: ("rolebindings", "roles"),
}
"""Kinds that endpoints are made of, by group."""
REGISTRATION = "admissionregistration.k8s.io"
_ASKING = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
"""What makes the API server ask the operator's webhook."""
_LOOKED_AT: dict[str, tuple[str, ...]] = {
    "": ("nodes", "pods"),
    "apps": ("replicasets",),
    "discovery.k8s.io": ("endpointslices",),
    "gateway.networking.k8s.io": ("gatewayclasses",),
    "networking.k8s.io": ("ingressclasses",),
    "storage.k8s.io": ("csidrivers",),
}


def cluster_rules(namespace: str) -> list[Rule]:
    """Return what the ClusterRole of an operator in a namespace allows; bound to others one by one, it does for those.

    Of what makes the API server ask it may change its own alone, for who changes others' rules the cluster.
    """
    own = {"resourceNames": [admission.configuration_name(namespace)]}
    return [
        _rule(GROUP, _RESOURCES, _MAKES),
        _rule(GROUP, [f"{name}/status" for name in _RESOURCES], ["get", "patch", "update"]),
        _rule(GROUP, [f"{name}/finalizers" for name in _RESOURCES], ["update"]),
        *(_rule(group, names, _MAKES) for group, names in _MADE.items()),
        *(_rule(group, names, _LOOKS) for group, names in _LOOKED_AT.items()),
        _rule("", ["pods/status"], ["patch"]),  # a router's
        _rule("", ["events"], ["create", "patch"]),
        {**_rule(REGISTRATION, _ASKING, ["get", "patch"]), **own},
    ]


def namespace_rules() -> list[Rule]:
    """Return what the operator's Role in its own namespace allows: to lead."""
    return [_rule("coordination.k8s.io", ["leases"], ["create", "get", "list", "patch", "update", "watch"])]


def _rule(group: str, resources: Sequence[str], verbs: Sequence[str]) -> Rule:
    return {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}
