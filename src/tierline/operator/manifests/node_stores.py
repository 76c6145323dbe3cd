"""Node stores: one on every machine where an endpoint that caches in them may run, all of them one pool.

They are the operator's and not an endpoint's: in its namespace, there as long as any endpoint wants them. On the
host's network, since engines find the store of their machine by its address, and one store reaches another without
the detour of an overlay.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from tierline.errors import ConfigurationError
from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests import annotations, programs
from tierline.operator.manifests.accounts import account
from tierline.operator.manifests.machines import Machines, machines_of
from tierline.operator.manifests.manifest import Made, Manifest, Notice
from tierline.operator.manifests.monitoring import MONITORING, scrape_annotations, service_monitor
from tierline.operator.manifests.scheduling import labels_of
from tierline.operator.manifests.secrets import TOKEN, KeptSecret, random_tokens
from tierline.operator.manifests.sizes import binary_quantity, wanted_instance_types
from tierline.operator.names import APP, COMPONENT, NODE_PORT, TRANSFER_PORT
from tierline.store.eviction import POLICIES

NAME = "tierline-node"
POOL_SECRET = "tierline-pool"  # noqa: S105  (the name of a Secret)
SOCKET_FOLDER = "/run/tierline"
"""On the machine: engines with our connector mount it and connect to ``node.sock`` in it."""
EVENTS_PORT = 5560
"""Where a store says what it holds, and at the next port what it said before; routers with ``kvaware`` listen."""
LABELS = {APP: NAME}
"""Of the stores' pods."""
# The segment outlives the pod, and the next one adopts it.
VOLUMES: tuple[dict[str, Any], ...] = (
    {"name": "shared-memory", "hostPath": {"path": "/dev/shm"}},  # noqa: S108
    {"name": "socket", "hostPath": {"path": SOCKET_FOLDER, "type": "DirectoryOrCreate"}},
)
"""What of its machine a store writes to."""
MOUNTS = (
    {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
    {"name": "socket", "mountPath": SOCKET_FOLDER},
)
_POOL_FOLDER = "/etc/tierline/pool"
_DRAIN_S = 20
_OWN_BYTES = 1024**3


def wants_store(endpoint: Endpoint, config: OperatorConfig) -> bool:
    """Whether an endpoint's workers cache in the store of their machine."""
    cache = endpoint.spec.kv_cache_spec
    if cache is None:
        return False
    if (endpoint.annotation("connector") or config.connector) == "tierline":
        return cache.enable_l1_cache or cache.enable_l2_cache
    backend = cache.l2_cache_spec.l2_cache_backend if cache.l2_cache_spec is not None else None
    return cache.enable_l2_cache and (backend or "").lower() == "tieredstorage"


def node_stores(endpoints: Sequence[Endpoint], capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return the DaemonSet, its headless Service and its account, if any of the endpoints wants them."""
    wanting = [endpoint for endpoint in endpoints if wants_store(endpoint, config)]
    if not wanting:
        return Made()
    rules = [{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}]
    capacity, eviction, notices = _agreed(wanting, config)
    manifests = [
        *account(NAME, config.namespace, config.namespace, rules),
        _service(config),
        _daemon_set(config, capacity, eviction, _machines(wanting)),
    ]
    if capabilities.serves(MONITORING, "ServiceMonitor"):
        manifests.append(service_monitor(NAME, config.namespace, LABELS, "http"))
    return Made(tuple(manifests), notices)


def memory_request(capacity: str) -> str:
    """Return what the scheduler is asked for: the store's own memory, and what it holds where that is said in bytes.

    A share differs from machine to machine, and a DaemonSet's pods cannot.
    """
    return binary_quantity(_OWN_BYTES + (int(capacity) if capacity.isdecimal() else 0))


def pool_secret(config: OperatorConfig) -> KeptSecret:
    """Return the Secret that the stores of the pool know each other by."""
    return KeptSecret(namespace=config.namespace, name=POOL_SECRET, make=random_tokens(TOKEN))


def _agreed(wanting: Sequence[Endpoint], config: OperatorConfig) -> tuple[str, str | None, tuple[Notice, ...]]:
    """Return capacity and eviction of the one store that all have: the largest, and the first in the alphabet."""
    sizes = [size for endpoint in wanting if (size := annotations.size(endpoint, "l2-size")) is not None]
    capacity = str(max(sizes)) if sizes else f"{config.node_share_percent}%"
    policies = sorted({policy for endpoint in wanting if (policy := _policy(endpoint)) is not None})
    notices: tuple[Notice, ...] = ()
    if len(policies) > 1:
        notices = (
            Notice(
                "CacheReady",
                "EvictionDisputed",
                f"endpoints that share the node stores ask for {' and '.join(policies)}; {policies[0]} is in force",
            ),
        )
    return capacity, policies[0] if policies else None, notices


def _policy(endpoint: Endpoint) -> str | None:
    policy = endpoint.annotation("eviction-policy")
    if policy is not None and policy not in POLICIES:
        raise ConfigurationError(annotations.path("eviction-policy"), policy, ", ".join(POLICIES))
    return policy


def _machines(wanting: Iterable[Endpoint]) -> Machines:
    """Return the machines that endpoints ask for: all of them where one of them may be anywhere."""
    machines = Machines()
    for endpoint in wanting:
        machines |= machines_of(label for name in wanted_instance_types(endpoint) for label in labels_of(name))
    return machines


def _service(config: OperatorConfig) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": config.namespace, "labels": LABELS},
        "spec": {
            "clusterIP": "None",
            "selector": LABELS,
            "ports": [
                {"name": "transfer", "port": TRANSFER_PORT, "protocol": "TCP"},
                {"name": "http", "port": NODE_PORT, "protocol": "TCP"},
            ],
        },
    }


def _daemon_set(config: OperatorConfig, capacity: str, eviction: str | None, machines: Machines) -> Manifest:
    pod: dict[str, Any] = {
        "serviceAccountName": NAME,
        "enableServiceLinks": False,  # a Service's name must not become a setting
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "terminationGracePeriodSeconds": _DRAIN_S + 40,
        # GPUs' machines are tainted so that nobody else gets there.
        "tolerations": [{"operator": "Exists"}],
        "containers": [_container(config, capacity, eviction)],
        "volumes": [
            *VOLUMES,
            {"name": "pool", "secret": {"secretName": POOL_SECRET, "defaultMode": 0o400}},
        ],
    }
    if config.node_priority_class:
        # Its pages in /dev/shm count for it, far beyond what it asks for, and ending it would not even free them.
        pod["priorityClassName"] = config.node_priority_class
    if affinity := machines.node_affinity():
        pod["affinity"] = affinity
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": NAME, "namespace": config.namespace, "labels": LABELS},
        "spec": {
            "selector": {"matchLabels": LABELS},
            # A machine's engines have no cache while its node starts.
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {
                "metadata": {
                    "labels": {**LABELS, COMPONENT: "node-store"},
                    "annotations": scrape_annotations(NODE_PORT),
                },
                "spec": pod,
            },
        },
    }


def _container(config: OperatorConfig, capacity: str, eviction: str | None) -> dict[str, Any]:
    values = {
        # Who starts again is who it was, and has its part of the directory again.
        "node_name": "$(NODE_NAME)",
        "host": "$(NODE_IP)",
        "port": NODE_PORT,
        "trusted_network": True,
        "socket": f"{SOCKET_FOLDER}/node.sock",
        "shared_memory_name": config.segment_name,
        "capacity": capacity,
        "eviction": eviction,
        "transfer_address": f"$(NODE_IP):{TRANSFER_PORT}",
        "pool_token_file": f"{_POOL_FOLDER}/{TOKEN}",
        "peers_kubernetes": f"{config.namespace}/{NAME}",
        "kv_events": f"tcp://$(NODE_IP):{EVENTS_PORT}",
        "drain_s": _DRAIN_S,
        "log_format": "json",
    }
    return {
        "name": "node",
        "image": config.image,
        "command": ["tierline", "node"],
        "env": [
            programs.field("NODE_IP", "status.hostIP"),
            programs.field("NODE_NAME", "spec.nodeName"),
            *programs.settings("node", values),
        ],
        "ports": [
            {"name": "http", "containerPort": NODE_PORT, "hostPort": NODE_PORT},
            {"name": "transfer", "containerPort": TRANSFER_PORT, "hostPort": TRANSFER_PORT},
            {"name": "events", "containerPort": EVENTS_PORT, "hostPort": EVENTS_PORT},
            {"name": "replays", "containerPort": EVENTS_PORT + 1, "hostPort": EVENTS_PORT + 1},
        ],
        # One that drains is not ready any more, and a member only until this says so: later than drain_s.
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": NODE_PORT},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
            "failureThreshold": _DRAIN_S,
        },
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": NODE_PORT},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "resources": {"requests": {"cpu": "1", "memory": memory_request(capacity)}},
        "securityContext": programs.as_root(),
        "volumeMounts": [
            *MOUNTS,
            {"name": "pool", "mountPath": _POOL_FOLDER, "readOnly": True},
        ],
    }
