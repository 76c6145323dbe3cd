"""Accounts and their rights: each program may ask the API for what it cannot do without, and where it needs it.

Workers ask nothing and have no account of ours. A router looks at the pods of its endpoint's namespace and lets them
in. A node store looks who the other ones are.
"""

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.manifest import Made, Manifest
from tierline.operator.manifests.routing import entrance_namespace, is_routed
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
    return Made(tuple(account(name, entrance_namespace(endpoint, config), endpoint.namespace, rules)))


def account(name: str, namespace: str, object_namespace: str, rules: list[dict[str, list[str]]]) -> list[Manifest]:
    """Return a ServiceAccount of ``namespace`` with rights on objects of ``object_namespace``."""
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
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        },
    ]
