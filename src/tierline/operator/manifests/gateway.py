"""The way in by the Gateway API: an HTTPRoute, and a Gateway of the endpoint's own where none is named."""

from typing import Any

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.certificates import certificate_secret_name, domain_name, has_certificate
from tierline.operator.manifests.entrance import GATEWAY, entrance, paths
from tierline.operator.manifests.manifest import Made, Manifest, Notice
from tierline.operator.manifests.routing import entrance_namespace
from tierline.operator.names import ROUTING_SERVICE_PORT, routing_service_name, within


def gateway(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return route and Gateway, where clients come in by one."""
    way = entrance(endpoint, capabilities)
    if isinstance(way, Notice) or way.kind == "ingress":
        return Made()
    if way.kind == "route":
        namespace, _, name = way.name.partition("/")
        return Made((_route(endpoint, config, {"namespace": namespace, "name": name}),))
    name = within(f"{endpoint.name}-{endpoint.namespace}")
    return Made((_gateway(endpoint, config, name, way.name), _route(endpoint, config, {"name": name})))


def _gateway(endpoint: Endpoint, config: OperatorConfig, name: str, gateway_class: str) -> Manifest:
    host = domain_name(endpoint)
    listener: dict[str, Any] = {"name": "http", "protocol": "HTTP", "port": 80}
    if has_certificate(endpoint):
        reference = {"kind": "Secret", "name": certificate_secret_name(endpoint)}
        tls = {"mode": "Terminate", "certificateRefs": [reference]}
        listener = {"name": "https", "protocol": "HTTPS", "port": 443, "tls": tls}
    if host:
        listener["hostname"] = host
    return {
        "apiVersion": GATEWAY,
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": entrance_namespace(endpoint, config)},
        "spec": {
            "gatewayClassName": gateway_class,
            "listeners": [{**listener, "allowedRoutes": {"namespaces": {"from": "Same"}}}],
        },
    }


def _route(endpoint: Endpoint, config: OperatorConfig, parent: dict[str, str]) -> Manifest:
    host = domain_name(endpoint)
    service = routing_service_name(endpoint.name, endpoint.namespace)
    return {
        "apiVersion": GATEWAY,
        "kind": "HTTPRoute",
        "metadata": {
            "name": within(f"{endpoint.name}-{endpoint.namespace}"),
            "namespace": entrance_namespace(endpoint, config),
        },
        "spec": {
            "parentRefs": [parent],
            **({"hostnames": [host]} if host else {}),
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": path}} for path in paths(endpoint)],
                    "backendRefs": [{"name": service, "port": ROUTING_SERVICE_PORT}],
                    # Of a whole answer: streams take as long as they take.
                    "timeouts": {"request": "0s"},
                }
            ],
        },
    }
