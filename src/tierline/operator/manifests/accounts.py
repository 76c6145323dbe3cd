"""Accounts and their rights: each program may ask the API for what it cannot do without, and where it needs it.

Workers ask nothing and have no account of ours. A router looks at the pods of its endpoint's namespace and lets them
in. A node store looks who the other ones are.
"""

from collections.abc import Sequence

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.manifest import Made, Manifest
from tierline.operator.manifests.routing import is_routed, router_namespaces
from tierline.operator.names import router_name

RBAC = "rbac.authorization.k8s.io"


def accounts(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return the router's account: where it is, with rights where its endpoint is."""
    if not is_routed(endpoint):
        return Made()
    name = router_name(endpoint.name, endpoint.namespace)
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        # Readiness gates: a worker is ready once the router can reach it.
        {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]},
    ]
    namespace, *former = router_namespaces(endpoint, config)
    return Made(tuple(account(name, namespace, endpoint.namespace, rules, former)))


def account(
    name: str, namespace: str, object_namespace: str, rules: list[dict[str, list[str]]], former: Sequence[str] = ()
) -> list[Manifest]:
    """Return a ServiceAccount of ``namespace`` with rights on objects of ``object_namespace``.

    Those of its name in ``former`` namespaces, which are there already, keep the same rights.
    """
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}},
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "Role",
            "metadata": {"name": name, "namespace": object_namespace},
            "rules": rules,
        },
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": object_namespace},
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": each} for each in (namespace, *former)],
        },
    ]
