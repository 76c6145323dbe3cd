"""All that an endpoint is made of, and what all endpoints share: the one place that knows every kind of child.

Every object says whose it is by the label :data:`~tierline.operator.names.OWNER_UID`, by which what is wanted no more
is found; those beside their endpoint also by an owner reference, so that they go with it even without an operator.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests import certificates
from tierline.operator.manifests.accounts import accounts
from tierline.operator.manifests.autoscaling import autoscaling
from tierline.operator.manifests.disruption import disruption
from tierline.operator.manifests.gateway import gateway
from tierline.operator.manifests.ingress import ingress
from tierline.operator.manifests.machines import Machines
from tierline.operator.manifests.manifest import Made, Manifest, with_metadata
from tierline.operator.manifests.monitoring import monitoring
from tierline.operator.manifests.network_policies import network_policies
from tierline.operator.manifests.node_stores import node_stores, pool_secret, wants_store
from tierline.operator.manifests.redis import redis
from tierline.operator.manifests.router import router, router_secret
from tierline.operator.manifests.routing import is_routed
from tierline.operator.manifests.routing_service import routing_service
from tierline.operator.manifests.secrets import KeptSecret
from tierline.operator.manifests.sources import model_source
from tierline.operator.manifests.store_removal import store_removal
from tierline.operator.manifests.workers import workers
from tierline.operator.names import API_VERSION, FIELD_MANAGER, INSTANCE, MANAGED_BY, OWNER_UID

_CHILDREN: tuple[Callable[[Endpoint, Capabilities, OperatorConfig], Made], ...] = (
    model_source,
    accounts,
    network_policies,
    routing_service,
    router,
    workers,
    certificates.certificates,
    ingress,
    gateway,
    autoscaling,
    monitoring,
    disruption,
)
"""In the order in which they are applied: what pods need before them."""
_SHARED: tuple[Callable[[Sequence[Endpoint], Capabilities, OperatorConfig], Made], ...] = (node_stores, redis)
_SHARED_LABELS = {MANAGED_BY: FIELD_MANAGER}
_MAKES_PODS = ("Deployment", "DaemonSet", "StatefulSet")


def desired(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return all of an endpoint's own objects.

    Raises
    ------
    ConfigurationError
        An annotation says what is not allowed.
    """
    made = Made()
    for child in _CHILDREN:
        made += child(endpoint, capabilities, config)
    shared((endpoint,), capabilities, config)  # what it says wrongly of what is shared is its own mistake
    return Made(tuple(_owned(manifest, endpoint) for manifest in made.manifests), made.notices)


def shared(endpoints: Sequence[Endpoint], capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return what is there once, as long as any of the endpoints wants it; it is in the operator's namespace.

    Raises
    ------
    ConfigurationError
        An annotation says what is not allowed.
    """
    made = Made()
    for child in _SHARED:
        made += child(endpoints, capabilities, config)
    return Made(tuple(_labelled(manifest, _SHARED_LABELS) for manifest in made.manifests), made.notices)


def removal(
    config: OperatorConfig,
    machines: Machines,
    settings: Sequence[Mapping[str, Any]],
    since: str | None,
    capabilities: Capabilities,
) -> Manifest:
    """Return what removes from machines what node stores have left there; parameters as of :func:`store_removal`."""
    return _labelled(store_removal(config, machines, settings, since, capabilities), _SHARED_LABELS)


def kept_secrets(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> tuple[KeptSecret, ...]:
    """Return the Secrets that must be there before an endpoint's objects, each behind the one that signs it.

    Those of ``config.namespace`` that are not the endpoint's own are shared: they stay when it goes.
    """
    return (
        *((router_secret(endpoint, config),) if is_routed(endpoint) else ()),
        *certificates.kept_secrets(endpoint, capabilities, config),
    )


def shared_secrets(
    endpoints: Sequence[Endpoint], capabilities: Capabilities, config: OperatorConfig
) -> tuple[KeptSecret, ...]:
    """Return the Secrets that must be there before what endpoints share."""
    return (pool_secret(config),) if any(wants_store(endpoint, config) for endpoint in endpoints) else ()


def owner_labels(endpoint: Endpoint) -> dict[str, str]:
    """Return the labels that say of an object whose it is."""
    return {OWNER_UID: endpoint.uid, MANAGED_BY: FIELD_MANAGER, INSTANCE: endpoint.name}


def owner_reference(endpoint: Endpoint) -> dict[str, object]:
    """Return what says so to the cluster, of an object in the endpoint's namespace."""
    return {
        "apiVersion": API_VERSION,
        "kind": endpoint.kind,
        "name": endpoint.name,
        "uid": endpoint.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _owned(manifest: Manifest, endpoint: Endpoint) -> Manifest:
    owned = _labelled(manifest, owner_labels(endpoint))
    if owned["metadata"].get("namespace") == endpoint.namespace:
        owned["metadata"]["ownerReferences"] = [owner_reference(endpoint)]
    return owned


def _labelled(manifest: Manifest, labels: dict[str, str]) -> Manifest:
    """Return a manifest with labels, also on the pods that it makes: what holds them back is told of their owner."""
    labelled = with_metadata(manifest, labels=labels, annotations={})
    if manifest["kind"] not in _MAKES_PODS:
        return labelled
    template = with_metadata({"metadata": {}, **manifest["spec"]["template"]}, labels=labels, annotations={})
    return {**labelled, "spec": {**manifest["spec"], "template": template}}
