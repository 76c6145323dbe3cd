"""The router of an endpoint: its Deployment, and the Service by which several routers find each other."""

from dataclasses import dataclass
from typing import Any

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests import annotations, programs
from tierline.operator.manifests.autoscaling import is_scaled
from tierline.operator.manifests.manifest import Made, Manifest, Notice
from tierline.operator.manifests.monitoring import scrape_annotations, shows_metrics
from tierline.operator.manifests.routing import (
    GOSSIP_PORT,
    entrance_namespace,
    has_several_routers,
    is_routed,
    router_labels,
    router_replicas,
    router_selector,
    worker_selector,
)
from tierline.operator.manifests.secrets import KeptSecret, random_tokens
from tierline.operator.names import COLLECTOR_PORT, PROXY_PORT, ROUTER_PORT, router_name, within
from tierline.router.paths import is_free

ROUTER_CONTAINER = "router-container"
ADMIN_TOKEN, GOSSIP_SECRET = "admin-token", "gossip-secret"
_SECRETS = "/etc/tierline/secrets"
API_KEYS = "keys.yaml"
"""Key of the Secret that annotation ``api-keys`` names."""
_API_KEYS_FOLDER, _ENGINE_KEY_FOLDER = "/etc/tierline/api-keys", "/etc/tierline/engine-key"
_ENGINE_KEY = "VLLM_API_KEY"
ENDING_SECONDS = 600
"""A router that stops ends the answers that it has begun, which takes as long as the longest of them."""
_LEAVING_SECONDS = ENDING_SECONDS + 30


def router(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return the Deployment, for an endpoint that has a router."""
    if not is_routed(endpoint):
        return Made()
    several = (_peers(endpoint, config),) if has_several_routers(endpoint) else ()
    keys = _keys(endpoint, config)
    return Made((*several, _deployment(endpoint, config, keys)), keys.notices)


def router_secret(endpoint: Endpoint, config: OperatorConfig) -> KeptSecret:
    """Return the Secret with the token of the router's ``/admin``, and what its replicas know each other by."""
    return KeptSecret(
        namespace=entrance_namespace(endpoint, config),
        name=router_name(endpoint.name, endpoint.namespace),
        make=random_tokens(ADMIN_TOKEN, GOSSIP_SECRET),
    )


@dataclass(frozen=True)
class _Keys:
    """What a router asks clients for, and shows to engines."""

    settings: dict[str, object]
    volumes: tuple[dict[str, Any], ...] = ()
    mounts: tuple[dict[str, Any], ...] = ()
    notices: tuple[Notice, ...] = ()


def _keys(endpoint: Endpoint, config: OperatorConfig) -> _Keys:
    """Return what annotation ``api-keys`` makes of the router.

    Without it, what clients show goes on to the engine, and nothing is to be done. With it, it does not: then the
    router shows the engine's own key, from the Secret that the engine has it from.
    """
    secret = endpoint.annotation("api-keys")
    if secret is None:
        return _Keys({})
    keys = _Keys(
        {"api_keys_file": f"{_API_KEYS_FOLDER}/{API_KEYS}"},
        ({"name": "api-keys", "secret": {"secretName": secret, "defaultMode": 0o440}},),
        ({"name": "api-keys", "mountPath": _API_KEYS_FOLDER, "readOnly": True},),
    )
    variables = {variable.name: variable for variable in endpoint.spec.worker.environment_variables or ()}
    variable = variables.get(_ENGINE_KEY)
    if variable is None:
        return keys
    reference = variable.value_from.secret_key_ref if variable.value_from is not None else None
    if reference is None or entrance_namespace(endpoint, config) != endpoint.namespace:
        message = f"{_ENGINE_KEY} must be of a Secret in the router's namespace, for the router shows it to the engine"
        return _Keys(keys.settings, keys.volumes, keys.mounts, (Notice("RouterReady", "EngineKeyOutOfReach", message),))
    items = [{"key": reference.key, "path": "key"}]
    source = {"secretName": reference.name, "items": items, "defaultMode": 0o440}
    return _Keys(
        {**keys.settings, "endpoint_api_key_file": f"{_ENGINE_KEY_FOLDER}/key"},
        (*keys.volumes, {"name": "engine-key", "secret": source}),
        (*keys.mounts, {"name": "engine-key", "mountPath": _ENGINE_KEY_FOLDER, "readOnly": True}),
    )


def _deployment(endpoint: Endpoint, config: OperatorConfig, keys: _Keys) -> Manifest:
    name, spec = router_name(endpoint.name, endpoint.namespace), endpoint.spec
    routing = spec.intelligent_routing_spec
    containers = [_container(endpoint, config, keys)]
    if shows_metrics(endpoint):
        targets = {"router": f"http://$(POD_IP):{ROUTER_PORT}/metrics"}
        containers.append(programs.collector(endpoint, config, targets, container_type="router"))
    scrape = scrape_annotations(COLLECTOR_PORT) if shows_metrics(endpoint) else {}
    deployment: dict[str, Any] = {
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        # Routers get ready with the first worker: it is theirs to take long, and the endpoint has its deadline.
        "progressDeadlineSeconds": max(600, spec.max_deploy_time_in_seconds),
        "selector": {"matchLabels": router_selector(endpoint)},
        "template": {
            "metadata": {"labels": router_labels(endpoint), **({"annotations": scrape} if scrape else {})},
            "spec": {
                "serviceAccountName": name,
                "enableServiceLinks": False,  # a Service's name must not become a setting
                "terminationGracePeriodSeconds": _LEAVING_SECONDS,
                "containers": containers,
                "volumes": [
                    {"name": "secrets", "secret": {"secretName": name, "defaultMode": 0o440}},
                    {"name": "tmp", "emptyDir": {}},
                    *keys.volumes,
                ],
                "securityContext": {"fsGroup": programs.NOBODY},
            },
        },
    }
    if not (routing is not None and is_scaled(routing.auto_scaling_spec, endpoint, config)):
        deployment = {"replicas": router_replicas(endpoint), **deployment}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": entrance_namespace(endpoint, config),
            "labels": router_labels(endpoint),
        },
        "spec": deployment,
    }


def _container(endpoint: Endpoint, config: OperatorConfig, keys: _Keys) -> dict[str, Any]:
    selector = ",".join(f"{label}={value}" for label, value in worker_selector(endpoint).items())
    ports = [{"name": "http", "containerPort": ROUTER_PORT}]
    if has_several_routers(endpoint):
        ports.append({"name": "gossip", "containerPort": GOSSIP_PORT})
    return {
        "name": ROUTER_CONTAINER,
        "image": config.image,
        "command": ["tierline", "router"],
        # As an argument: in a variable, commas are between several selections, and not between the labels of one.
        "args": ["--kubernetes-pods", f"{endpoint.namespace}:{selector}:{PROXY_PORT}"],
        "env": [programs.POD_IP, *programs.settings("router", _settings(endpoint, config) | keys.settings)],
        "ports": ports,
        # Ready is who has a healthy worker: a new router takes over only when it knows them.
        "readinessProbe": {
            "httpGet": {"path": "/health", "port": ROUTER_PORT},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        "livenessProbe": {
            "tcpSocket": {"port": ROUTER_PORT},
            "initialDelaySeconds": 10,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "3Gi"}},
        "securityContext": programs.restricted(),
        "volumeMounts": [
            {"name": "secrets", "mountPath": _SECRETS, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  (of the container)
            *keys.mounts,
        ],
    }


def _settings(endpoint: Endpoint, config: OperatorConfig) -> dict[str, object]:
    """Return what the router is told, by the names of its settings."""
    spec = endpoint.spec
    routing, pairs, balancer = spec.intelligent_routing_spec, spec.pd_spec, spec.load_balancer
    health_path = balancer.health_check_path if balancer is not None else "/ping"
    several = has_several_routers(endpoint)
    return {
        "host": "$(POD_IP)",
        "port": ROUTER_PORT,
        "kubernetes_readiness_gate": True,
        "strategy": routing.routing_strategy if routing is not None else None,
        "invocation_endpoint": spec.invocation_endpoint.strip("/"),
        # Where something else of the router is, such as /v1/models, it answers there without being told.
        "health_path": health_path if is_free(health_path) else None,
        "prefill_threshold": pairs.routing_threshold if pairs is not None else None,
        "admin_token_file": f"{_SECRETS}/{ADMIN_TOKEN}",
        "dashboard": annotations.switch(endpoint, "dashboard", default=False) or None,
        "gossip_listen": f"$(POD_IP):{GOSSIP_PORT}" if several else None,
        "peers_name": f"{_peers_name(endpoint)}.{entrance_namespace(endpoint, config)}.svc:{GOSSIP_PORT}"
        if several
        else None,
        "gossip_secret_file": f"{_SECRETS}/{GOSSIP_SECRET}" if several else None,
        "shutdown_timeout_s": ENDING_SECONDS,
        "log_format": "json",
    }


def _peers_name(endpoint: Endpoint) -> str:
    return within(f"{endpoint.name}-{endpoint.namespace}-router-peers")


def _peers(endpoint: Endpoint, config: OperatorConfig) -> Manifest:
    """Return the headless Service whose addresses are the routers, ready or not: who starts asks who is there."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": _peers_name(endpoint), "namespace": entrance_namespace(endpoint, config)},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": router_selector(endpoint),
            "ports": [{"name": "gossip", "port": GOSSIP_PORT, "protocol": "TCP"}],
        },
    }
