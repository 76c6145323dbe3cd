"""The Service that clients and the Ingress talk to: routers, or where an endpoint has none, its workers."""

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.manifest import Made
from tierline.operator.manifests.routing import entrance_namespace, entrance_port, entrance_selector
from tierline.operator.names import ROUTING_SERVICE_PORT, routing_service_name


def routing_service(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return the Service: plain HTTP, at the port where HyperPod's clients look for it."""
    return Made(
        (
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {
                    "name": routing_service_name(endpoint.name, endpoint.namespace),
                    "namespace": entrance_namespace(endpoint, config),
                },
                "spec": {
                    "type": "ClusterIP",
                    "selector": entrance_selector(endpoint),
                    "ports": [
                        {
                            "name": "http",
                            "port": ROUTING_SERVICE_PORT,
                            "protocol": "TCP",
                            "targetPort": entrance_port(endpoint),
                        }
                    ],
                },
            },
        )
    )
