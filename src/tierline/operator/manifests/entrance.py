"""By which way clients come in from outside: an Ingress, a Gateway, or none; and what both lead to.

In this order: what annotations name; what is there already; an Application Load Balancer, as HyperPod makes; a Gateway,
where the cluster has one class of them; the only class of Ingresses, or the one that is marked as the default. Where
there are several and none is named, nobody guesses.
"""

from collections.abc import Mapping
from dataclasses import replace

from tierline.errors import ConfigurationError
from tierline.operator.capabilities import Capabilities
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests import annotations
from tierline.operator.manifests.manifest import Notice
from tierline.operator.settled import Entrance

ALB_CONTROLLER = "ingress.k8s.aws/alb"
NGINX_CONTROLLER = "k8s.io/ingress-nginx"
GATEWAY = "gateway.networking.k8s.io/v1"
NO_CLASS = "none"
"""What annotation ``ingress-class`` says where nobody outside the cluster is to come in."""
_API_PATHS = ("/v1", "/invocations", "/endpoints", "/ping")
"""What clients of OpenAI's and of SageMaker's API ask for. Not ``/metrics`` and ``/admin``."""


def entrance(endpoint: Endpoint, capabilities: Capabilities) -> Entrance | Notice:
    """Return the way in, or why there is none."""
    controllers = dict(capabilities.ingress_classes)
    standing = endpoint.settled.entrance
    has_gateways = capabilities.serves(GATEWAY, "HTTPRoute") and capabilities.serves(GATEWAY, "Gateway")
    if (named := endpoint.annotation("ingress-class")) is not None:
        if named == NO_CLASS:
            return Notice("IngressReady", "NotWanted", "annotation tierline.ai/ingress-class says none")
        return Entrance("ingress", named, _controller(named, standing, controllers))
    if (gateway := endpoint.annotation("gateway")) is not None:
        if not all(gateway.partition("/")):
            raise ConfigurationError(annotations.path("gateway"), gateway, "NAMESPACE/NAME of a Gateway")
        return Entrance("route", gateway)
    if (gateway_class := endpoint.annotation("gateway-class")) is not None:
        return Entrance("gateway", gateway_class)
    if standing is not None and (standing.kind == "ingress" or has_gateways):
        return replace(standing, controller=_controller(standing.name, standing, controllers))
    balancers = [name for name, controller in capabilities.ingress_classes if controller == ALB_CONTROLLER]
    default = capabilities.default_ingress_class
    if balancers:
        return Entrance("ingress", default if default in balancers else balancers[0], ALB_CONTROLLER)
    if has_gateways and len(capabilities.gateway_classes) == 1:
        return Entrance("gateway", capabilities.gateway_classes[0])
    if default in controllers or len(controllers) == 1:
        name = default if default in controllers else next(iter(controllers))
        return Entrance("ingress", name, controllers[name])
    if controllers or (has_gateways and capabilities.gateway_classes):
        names = ", ".join([*sorted(controllers), *capabilities.gateway_classes])
        message = (
            f"the cluster has {names}: name one by annotation tierline.ai/ingress-class or gateway-class, or mark an "
            "IngressClass as the default"
        )
        return Notice("IngressReady", "SeveralClasses", message)
    return Notice(
        "IngressReady",
        "NoIngressClass",
        "the cluster has neither an IngressClass nor a GatewayClass: clients come in by the Service only",
    )


def _controller(name: str, standing: Entrance | None, controllers: Mapping[str, str]) -> str:
    """Return who serves a class; of one that is gone, who did."""
    known = standing.controller if standing is not None and standing.name == name else ""
    return controllers.get(name, known)


def entrance_notices(endpoint: Endpoint, capabilities: Capabilities) -> tuple[Notice, ...]:
    """Return what is to be said of the way in: why there is none, or that its class is gone."""
    way = entrance(endpoint, capabilities)
    if isinstance(way, Notice):
        return (way,)
    classes = dict(capabilities.ingress_classes) if way.kind == "ingress" else capabilities.gateway_classes
    standing = endpoint.settled.entrance
    if standing is None or (way.kind, way.name) != (standing.kind, standing.name) or way.name in classes:
        return ()
    kind = "IngressClass" if way.kind == "ingress" else "GatewayClass"
    message = (
        f"the cluster has no {kind} {way.name} any more; what was made for it stays. Deleted, it is made anew by what "
        "there is then"
    )
    return (Notice("IngressReady", "ClassGone", message),)


def paths(endpoint: Endpoint) -> list[str]:
    """Return the beginnings of the paths that clients from outside may ask for."""
    invocation = "/" + endpoint.spec.invocation_endpoint.strip("/")
    is_covered = any(invocation == path or invocation.startswith(f"{path}/") for path in _API_PATHS)
    return [*([] if is_covered else [invocation]), *_API_PATHS]
