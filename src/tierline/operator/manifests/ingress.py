"""The Ingress of an endpoint, with what the controller of its class must be told for streams that last minutes."""

import json
from typing import Any

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.certificates import certificate_secret_name, domain_name, has_certificate
from tierline.operator.manifests.entrance import ALB_CONTROLLER, NGINX_CONTROLLER, entrance, entrance_notices, paths
from tierline.operator.manifests.manifest import Made, Notice
from tierline.operator.manifests.routing import entrance_namespace, is_routed
from tierline.operator.names import ROUTING_SERVICE_PORT, ingress_name, routing_service_name
from tierline.operator.settled import CONTROLLER, Entrance

_VERSION = "networking.k8s.io/v1"
_OF_CONTROLLERS = "ingress.kubernetes.io"
"""Annotations of the resource whose prefix is this, or ends in it, are for the controller, and win against ours."""
_ALB = "alb.ingress.kubernetes.io/"
_NGINX = "nginx.ingress.kubernetes.io/"
_IDLE_SECONDS = 600
_LARGEST_BODY = "64m"


def ingress(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return the Ingress, where clients come in by one, and a notice where they do not come in at all."""
    way = entrance(endpoint, capabilities)
    remarks = entrance_notices(endpoint, capabilities)
    if isinstance(way, Notice) or way.kind != "ingress":
        return Made(notices=remarks)
    annotations, notices = _annotations(endpoint, way)
    service = {
        "name": routing_service_name(endpoint.name, endpoint.namespace),
        "port": {"number": ROUTING_SERVICE_PORT},
    }
    host = domain_name(endpoint)
    rule: dict[str, Any] = {"host": host} if host else {}
    rule["http"] = {
        "paths": [{"path": path, "pathType": "Prefix", "backend": {"service": service}} for path in paths(endpoint)]
    }
    spec: dict[str, Any] = {"ingressClassName": way.name, "rules": [rule]}
    if has_certificate(endpoint) and way.controller != ALB_CONTROLLER:
        secret = certificate_secret_name(endpoint)
        spec["tls"] = [{**({"hosts": [host]} if host else {}), "secretName": secret}]
    manifest = {
        "apiVersion": _VERSION,
        "kind": "Ingress",
        "metadata": {
            "name": ingress_name(endpoint.name, endpoint.namespace, is_routed=is_routed(endpoint)),
            "namespace": entrance_namespace(endpoint, config),
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": spec,
    }
    return Made((manifest,), notices + remarks)


def _annotations(endpoint: Endpoint, way: Entrance) -> tuple[dict[str, str], tuple[Notice, ...]]:
    notices: tuple[Notice, ...] = ()
    ours: dict[str, str] = {}
    if way.controller == ALB_CONTROLLER:
        ours, notices = _load_balancer(endpoint)
    elif way.controller == NGINX_CONTROLLER:
        ours = {
            f"{_NGINX}proxy-body-size": _LARGEST_BODY,
            f"{_NGINX}proxy-buffering": "off",
            f"{_NGINX}proxy-read-timeout": str(_idle_seconds(endpoint)),
            f"{_NGINX}proxy-send-timeout": str(_idle_seconds(endpoint)),
        }
    theirs = {
        key: value
        for key, value in endpoint.annotations.items()
        if (prefix := key.partition("/")[0]) == _OF_CONTROLLERS or prefix.endswith(f".{_OF_CONTROLLERS}")
    }
    standing = {CONTROLLER: way.controller} if way.controller else {}
    return dict(sorted((ours | theirs | standing).items())), notices


def _load_balancer(endpoint: Endpoint) -> tuple[dict[str, str], tuple[Notice, ...]]:
    """Return what AWS's controller makes an Application Load Balancer of, as HyperPod's operator asks for one."""
    spec = endpoint.spec
    custom = spec.tls_config.custom_certificate_config if spec.tls_config is not None else None
    balancer = spec.load_balancer
    algorithm = balancer.routing_algorithm if balancer is not None else "least_outstanding_requests"
    listeners = [{"HTTPS": 443}] if custom is not None else [{"HTTP": 80}]
    attributes = {"idle_timeout.timeout_seconds": str(_idle_seconds(endpoint))}
    capture = spec.data_capture
    if capture is not None and capture.load_balancer is not None and capture.load_balancer.enabled and capture.s3_uri:
        bucket, _, prefix = capture.s3_uri.removeprefix("s3://").partition("/")
        attributes |= {"access_logs.s3.enabled": "true", "access_logs.s3.bucket": bucket}
        if prefix.strip("/"):
            attributes["access_logs.s3.prefix"] = prefix.strip("/")
    said = {
        "scheme": "internal",
        "target-type": "ip",
        "listen-ports": json.dumps(listeners, separators=(",", ":")),
        "backend-protocol": "HTTP",
        "healthcheck-protocol": "HTTP",
        "healthcheck-path": balancer.health_check_path if balancer is not None else "/ping",
        "healthcheck-interval-seconds": "15",
        "target-group-attributes": f"load_balancing.algorithm.type={algorithm}",
        "load-balancer-attributes": _pairs(attributes),
    }
    if custom is not None:
        said["certificate-arn"] = custom.acm_arn
    if spec.tags:
        said["tags"] = _pairs({tag.name: tag.value for tag in spec.tags})
    notices: tuple[Notice, ...] = ()
    if has_certificate(endpoint) and custom is None:
        message = (
            "an Application Load Balancer shows certificates of AWS Certificate Manager only: it listens on port 80; "
            "set tlsConfig.customCertificateConfig, or another class by annotation tierline.ai/ingress-class"
        )
        notices = (Notice("TLSReady", "NeedsCertificateManager", message),)
    return {f"{_ALB}{key}": value for key, value in said.items()}, notices


def _idle_seconds(endpoint: Endpoint) -> int:
    balancer = endpoint.spec.load_balancer
    return (balancer.idle_timeout_seconds if balancer is not None else None) or _IDLE_SECONDS


def _pairs(values: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in values.items())
