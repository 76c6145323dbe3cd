"""PodDisruptionBudgets: draining machines takes one worker, and one router, of an endpoint at a time."""

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.manifest import Made, Manifest, Notice
from tierline.operator.manifests.routing import entrance_namespace, is_routed, router_selector, worker_selector
from tierline.operator.names import ROLE, decode_name, prefill_name, router_name, worker_name


def disruption(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return a budget for each Deployment.

    They say how many may be away, not how many must stay: an endpoint of one worker can be drained too, which else
    would hold up the upgrade of its machine for ever.
    """
    version = capabilities.newest("PodDisruptionBudget", "policy/v1", "policy/v1beta1")
    if version is None:
        return Made(
            notices=(
                Notice(
                    "WorkersReady",
                    "NoDisruptionBudgets",
                    "the cluster has no PodDisruptionBudget: draining machines may take all workers at once",
                ),
            )
        )
    workers, namespace = worker_selector(endpoint), endpoint.namespace
    if endpoint.spec.pd_spec is None:
        budgets = [_budget(version, worker_name(endpoint.name), namespace, workers)]
    else:
        budgets = [
            _budget(version, prefill_name(endpoint.name), namespace, {**workers, ROLE: "prefill"}),
            _budget(version, decode_name(endpoint.name), namespace, {**workers, ROLE: "decode"}),
        ]
    if is_routed(endpoint):
        name = router_name(endpoint.name, endpoint.namespace)
        budgets.append(_budget(version, name, entrance_namespace(endpoint, config), router_selector(endpoint)))
    return Made(tuple(budgets))


def _budget(version: str, name: str, namespace: str, labels: dict[str, str]) -> Manifest:
    return {
        "apiVersion": version,
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}},
    }
