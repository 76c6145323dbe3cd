"""NetworkPolicies: workers are reached through their router, and tell each other what they like.

Prometheus may be anywhere, so ports that only show metrics are open. Node stores are on the host's network, where no
policy holds.
"""

from typing import Any

from tierline.operator.capabilities import NAMED_NAMESPACES, NAMESPACE_NAME, Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests import annotations
from tierline.operator.manifests.manifest import Made, Manifest
from tierline.operator.manifests.routing import (
    GOSSIP_PORT,
    entrance_namespace,
    is_routed,
    router_namespaces,
    router_selector,
    worker_selector,
)
from tierline.operator.names import (
    COLLECTOR_PORT,
    PROXY_METRICS_PORT,
    PROXY_PORT,
    ROUTER_PORT,
    router_name,
    worker_name,
)

KV_EVENTS_PORT, KV_REPLAY_PORT = 5557, 5558
"""Where vLLM publishes events of its blocks, which only routers are to read: prompts' tokens are in them."""


def network_policies(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return the policies, unless annotation ``network-policies`` says ``false``."""
    if not annotations.switch(endpoint, "network-policies", default=True):
        return Made()
    policies = [_of_workers(endpoint, capabilities, config)]
    if is_routed(endpoint):
        policies.append(_of_router(endpoint, config))
    return Made(tuple(policies))


def _of_workers(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Manifest:
    requests: dict[str, Any] = {"ports": _ports(PROXY_PORT)}
    if is_routed(endpoint):
        selector = router_selector(endpoint)
        routers = [_peer(selector, endpoint.namespace, home) for home in router_namespaces(endpoint, config)]
        for router in routers:
            if "namespaceSelector" in router and capabilities.version < NAMED_NAMESPACES:
                router["namespaceSelector"] = {}  # by its labels in any namespace: one cannot be told from the others
        requests = {
            "from": routers,
            "ports": _ports(PROXY_PORT, KV_EVENTS_PORT, KV_REPLAY_PORT),
        }
    among_themselves = {"from": [_peer(worker_selector(endpoint), endpoint.namespace, endpoint.namespace)]}
    metrics = {"ports": _ports(PROXY_METRICS_PORT, COLLECTOR_PORT)}
    rules = [requests, among_themselves, metrics]
    invocations = endpoint.spec.worker.model_invocation_port
    if invocations.name == "grpc":  # which the proxy does not pass on: clients come to the engine's own port
        rules.append({"ports": _ports(invocations.container_port)})
    return _policy(worker_name(endpoint.name), endpoint.namespace, worker_selector(endpoint), rules)


def _of_router(endpoint: Endpoint, config: OperatorConfig) -> Manifest:
    namespace = entrance_namespace(endpoint, config)
    gossip = {"from": [_peer(router_selector(endpoint), namespace, namespace)], "ports": _ports(GOSSIP_PORT)}
    return _policy(
        router_name(endpoint.name, endpoint.namespace),
        namespace,
        router_selector(endpoint),
        [{"ports": _ports(ROUTER_PORT, COLLECTOR_PORT)}, gossip],
    )


def _policy(name: str, namespace: str, labels: dict[str, str], ingress: list[dict[str, Any]]) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": {"matchLabels": labels}, "policyTypes": ["Ingress"], "ingress": ingress},
    }


def _peer(labels: dict[str, str], namespace: str, home: str) -> dict[str, Any]:
    """Return pods with ``labels`` in ``home``, as a policy in ``namespace`` names them."""
    peer: dict[str, Any] = {"podSelector": {"matchLabels": labels}}
    if home != namespace:
        peer["namespaceSelector"] = {"matchLabels": {NAMESPACE_NAME: home}}
    return peer


def _ports(*ports: int) -> list[dict[str, Any]]:
    return [{"port": port, "protocol": "TCP"} for port in ports]
