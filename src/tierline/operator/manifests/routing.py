"""Whether an endpoint has a router, where that is, and how many of it there may be: what several manifests go by."""

from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests import annotations
from tierline.operator.names import APP, COMPONENT, INSTANCE, PROXY_PORT, ROUTER_PORT, router_name, worker_name

GOSSIP_PORT = 8100
"""Where the routers of one endpoint tell each other what they do."""
MOST_REPLICAS = 100


def is_routed(endpoint: Endpoint) -> bool:
    """Whether a router is between clients and workers; with prefill and decode apart there always is one."""
    return endpoint.spec.pd_spec is not None or routing_is_enabled(endpoint)


def routing_is_enabled(endpoint: Endpoint) -> bool:
    """Whether the endpoint asks for a router by itself, which it does from its beginning or never."""
    routing = endpoint.spec.intelligent_routing_spec
    return routing is not None and routing.enabled


def entrance_namespace(endpoint: Endpoint, config: OperatorConfig) -> str:
    """Return where the router is, and with it the Service and the Ingress that lead to it."""
    return config.namespace if is_routed(endpoint) and config.router_placement == "system" else endpoint.namespace


def router_namespaces(endpoint: Endpoint, config: OperatorConfig) -> tuple[str, ...]:
    """Return where routers are that are let in: the wanted one first, then any that it succeeds, until it is gone."""
    return (entrance_namespace(endpoint, config), *endpoint.settled.former_router_namespaces)


def entrance_selector(endpoint: Endpoint) -> dict[str, str]:
    """Return the labels of the pods that clients are led to: routers, or where there are none, workers."""
    return router_selector(endpoint) if is_routed(endpoint) else worker_selector(endpoint)


def entrance_port(endpoint: Endpoint) -> int:
    """Return the port of those pods."""
    return ROUTER_PORT if is_routed(endpoint) else PROXY_PORT


def router_selector(endpoint: Endpoint) -> dict[str, str]:
    """Return the labels by which the pods of the router are known."""
    return {APP: router_name(endpoint.name, endpoint.namespace)}


def router_labels(endpoint: Endpoint) -> dict[str, str]:
    """Return the labels of those pods."""
    return {**router_selector(endpoint), COMPONENT: "router"}


def worker_selector(endpoint: Endpoint) -> dict[str, str]:
    """Return the labels by which the pods of all workers are known, whatever their role.

    ``app`` alone, by which ``hyp`` and their Deployment know them, may be on pods of other people's too.
    """
    return {APP: worker_name(endpoint.name), COMPONENT: "worker", INSTANCE: endpoint.name}


def router_replicas(endpoint: Endpoint) -> int:
    """Return how many routers there are while no autoscaler says otherwise."""
    return annotations.number(endpoint, "router-replicas", 1, least=1, most=MOST_REPLICAS)


def has_several_routers(endpoint: Endpoint) -> bool:
    """Whether there may be more than one router at a time, which then tell each other what they do."""
    routing = endpoint.spec.intelligent_routing_spec
    scaling = routing.auto_scaling_spec if routing is not None else None
    return router_replicas(endpoint) > 1 or (scaling is not None and scaling.max_replica_count > 1)
