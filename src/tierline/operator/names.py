"""Names, labels and ports of what an endpoint is made of; those of HyperPod's operator wherever clients know them."""

import hashlib

GROUP = "inference.sagemaker.aws.amazon.com"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "tierline-operator"
REGISTRATION = "SageMakerEndpointRegistration"
"""The kind that is kept and told of, and not acted upon."""

APP = "app"
"""``hyp`` finds the pods of an endpoint by it: on workers, the endpoint's name."""
OWNER_UID = "tierline.ai/owner-uid"
"""On every child: what is ours to delete when the endpoint no longer wants it."""
USES_STORE = "tierline.ai/uses-node-store"
"""On workers that have a node store's segment in their memory."""
USES_REDIS = "tierline.ai/uses-redis"
"""On workers whose L2 is a Redis of the operator's own: its name."""
REDIS_OF = "tierline.ai/redis-of"
"""On such a Redis, which no endpoint owns: the uid of the one that asked for it."""
COMPONENT = "app.kubernetes.io/component"
MANAGED_BY = "app.kubernetes.io/managed-by"
INSTANCE = "app.kubernetes.io/instance"
ROLE = f"{GROUP}/dpd-role"
"""Of workers with prefill and decode apart: ``prefill`` or ``decode``."""
FINALIZER = f"{GROUP}/cleanup"
"""On resources that have children in another namespace, which cannot carry an owner reference."""

NODE_PORT, TRANSFER_PORT = 9200, 9240
ROUTER_PORT, ROUTING_SERVICE_PORT = 8081, 443
PROXY_PORT, PROXY_METRICS_PORT = 9180, 9113
COLLECTOR_PORT = 9464
"""Where the collector shows what it gathered."""

LONGEST_NAME = 63
_DIGEST_LETTERS = 8


def worker_name(name: str) -> str:
    """Return the name of the Deployment of the workers, and of their first container."""
    return name


def prefill_name(name: str) -> str:
    """Return the name of the Deployment of the prefill workers."""
    return within(f"prefill-{name}")


def decode_name(name: str) -> str:
    """Return the name of the Deployment of the decode workers."""
    return within(f"decode-{name}")


def prefetch_name(name: str) -> str:
    """Return the name of the init container that copies the model, as HyperPod's operator has it."""
    return within(f"prefetch-{name}-inf")


def router_name(name: str, namespace: str) -> str:
    """Return the name of the router's Deployment, which ``hyp`` and HyperPod's documents look for."""
    return within(f"{name}-{namespace}-router")


def routing_service_name(name: str, namespace: str) -> str:
    """Return the name of the Service that clients and the Ingress talk to."""
    return within(f"{name}-{namespace}-routing-service")


def ingress_name(name: str, namespace: str, *, is_routed: bool) -> str:
    """Return the name of the Ingress."""
    return within(f"alb-{name}-{namespace}" if is_routed else f"alb-{name}")


def scaled_object_name(name: str) -> str:
    """Return the name of the autoscaler of the workers."""
    return within(f"{name}-scaled-object")


def within(name: str, longest: int = LONGEST_NAME) -> str:
    """Return ``name``, or where it is too long, its beginning and a digest of the whole."""
    if len(name) <= longest:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST_LETTERS]
    return f"{name[: longest - _DIGEST_LETTERS - 1].rstrip('-.')}-{digest}"
