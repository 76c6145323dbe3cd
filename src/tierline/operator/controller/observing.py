"""From what was seen of an endpoint's children to its conditions. Pure functions."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tierline.operator import names
from tierline.operator.controller import conditions
from tierline.operator.controller.conditions import Condition, Truth
from tierline.operator.controller.kinds import POD, Reference, reference
from tierline.operator.controller.live import Live
from tierline.operator.controller.workloads import image_remedies, init_troubles, redis_pods, rollout, troubles
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests import node_stores
from tierline.operator.manifests.certificates import AUTHORITY_SECRET, certificate_secret_name
from tierline.operator.manifests.manifest import Made, Notice
from tierline.operator.manifests.redis import redis_name, wants_redis

_ROUTER = "router"
"""As :data:`~tierline.operator.names.COMPONENT` on the router's pods and children."""
_ASPECTS = {
    "PersistentVolume": conditions.MODEL_SOURCE,
    "PersistentVolumeClaim": conditions.MODEL_SOURCE,
    "Service": conditions.SERVICE,
    "Ingress": conditions.INGRESS,
    "Gateway": conditions.INGRESS,
    "HTTPRoute": conditions.INGRESS,
    "Issuer": conditions.TLS,
    "Certificate": conditions.TLS,
    "HorizontalPodAutoscaler": conditions.AUTOSCALING,
    "ScaledObject": conditions.AUTOSCALING,
    "TriggerAuthentication": conditions.AUTOSCALING,
    "ServiceMonitor": conditions.METRICS,
    "PodMonitor": conditions.METRICS,
    "NetworkPolicy": conditions.PROTECTION,
    "PodDisruptionBudget": conditions.PROTECTION,
}
"""Which condition tells of a kind of children; :data:`~.conditions.WORKERS` of those that are not here."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What is known of an endpoint at a moment.

    Parameters
    ----------
    endpoint
        What it is to be.
    made
        What it is made of.
    live
        What of that was seen, and what else is its own.
    shared
        What was seen of what endpoints share.
    failures
        Children that could not be written, and why.
    """

    endpoint: Endpoint
    made: Made
    live: Mapping[Reference, Live]
    shared: Mapping[Reference, Live] = field(default_factory=dict)
    failures: Mapping[Reference, str] = field(default_factory=dict)

    def pods(self, *, of_router: bool) -> list[Live]:
        """Return the pods of the router, or those of the workers."""
        return [
            live
            for found, live in self.live.items()
            if found.kind == POD and ((live.metadata.labels or {}).get(names.COMPONENT) == _ROUTER) is of_router
        ]

    def of_kind(self, *kinds: str) -> list[Reference]:
        """Return what of certain kinds the endpoint is made of."""
        return [each for each in map(reference, self.made.manifests) if each.kind in kinds]


def workers_of(endpoint: Endpoint) -> list[Reference]:
    """Return the Deployments of the workers: one, or those of prefill and of decode."""
    name = endpoint.name
    both = [names.prefill_name(name), names.decode_name(name)]
    listed = both if endpoint.spec.pd_spec is not None else [names.worker_name(name)]
    return [Reference("Deployment", endpoint.namespace, each) for each in listed]


def observe(seen: Observation) -> list[Condition]:
    """Return the conditions of an endpoint whose resource is valid, but for those that only the resource decides."""
    notices: dict[str, list[Notice]] = defaultdict(list)
    for notice in seen.made.notices:
        notices[notice.condition].append(notice)
    failed: dict[str, list[str]] = defaultdict(list)
    for child, why in seen.failures.items():
        is_of_certificate = child.kind == "Secret" and child.name in (
            AUTHORITY_SECRET,
            certificate_secret_name(seen.endpoint),
        )
        failed[conditions.TLS if is_of_certificate else _aspect(child, seen.endpoint)].append(why)
    found = {condition.type: condition for condition in _of_children(seen)}
    for kind, texts in failed.items():
        found[kind] = Condition(kind, "False", "Refused", "; ".join(texts), is_trouble=True)
    for kind, said in notices.items():
        texts = [notice.message for notice in said]
        if kind in found:
            known = found[kind]
            message = "; ".join(text for text in (known.message, *texts) if text)
            found[kind] = Condition(kind, known.status, known.reason, message, known.is_trouble)
        else:
            found[kind] = Condition(kind, "False", said[0].reason, "; ".join(texts), is_trouble=True)
    return list(found.values())


def _aspect(child: Reference, endpoint: Endpoint) -> str:
    # Not by how a name ends: that of workers may end so, and one that was too long does not.
    router = names.router_name(endpoint.name, endpoint.namespace)
    if child.kind in ("Deployment", "Secret") and child.name == router:
        return conditions.ROUTER
    return _ASPECTS.get(child.kind, conditions.WORKERS)


def _of_children(seen: Observation) -> Iterator[Condition]:
    pods = seen.pods(of_router=False)
    workers = [rollout(conditions.WORKERS, ref.name, seen.live.get(ref), pods) for ref in workers_of(seen.endpoint)]
    yield _model_source(seen, pods)
    yield _worst(workers)
    routers = [each for each in seen.of_kind("Deployment") if _aspect(each, seen.endpoint) == conditions.ROUTER]
    yield from (
        rollout(conditions.ROUTER, each.name, seen.live.get(each), seen.pods(of_router=True)) for each in routers
    )
    yield from _cache(seen)
    yield _services(seen)
    if entrances := seen.of_kind("Ingress", "Gateway"):
        yield _entrance(seen, entrances)
    yield from _by_conditions(seen, conditions.TLS, {"Certificate": "Ready"})
    yield from _by_conditions(
        seen, conditions.AUTOSCALING, {"ScaledObject": "Ready", "HorizontalPodAutoscaler": "ScalingActive"}
    )
    yield _metrics(seen)


def _worst(found: list[Condition]) -> Condition:
    lacking = [each for each in found if each.status != "True"]
    if not lacking:
        return Condition(found[0].type, "True", found[0].reason, "; ".join(each.message for each in found))
    first = next((each for each in lacking if each.is_trouble), lacking[0])
    message = "; ".join(each.message for each in lacking)
    return Condition(first.type, "False", first.reason, message, first.is_trouble)


def _model_source(seen: Observation, pods: list[Live]) -> Condition:
    kind = conditions.MODEL_SOURCE
    for claim in seen.of_kind("PersistentVolumeClaim"):
        phase = _status(seen.live, claim).get("phase", "Pending")
        if phase != "Bound":
            return Condition(kind, "False", "VolumeNotBound", f"{claim} is {phase}")
    reason, texts = init_troubles(pods)
    if reason:
        remedies = image_remedies(pods, workers_of(seen.endpoint)[0].name)
        return Condition(kind, "False", reason, "; ".join([*texts, *remedies]), is_trouble=True)
    if any(_status(seen.live, each).get("availableReplicas") for each in workers_of(seen.endpoint)):
        return Condition(kind, "True", "Loaded", "workers serve the model")
    if any(_has_begun(pod) for pod in pods):
        return Condition(kind, "True", "Fetched", "what workers read is there")
    return Condition(kind, "Unknown", "NotReadYet", "no worker has come to read the model")


def _has_begun(pod: Live) -> bool:
    """Whether the containers of a pod run, and so volumes are mounted and init containers done."""
    statuses = (pod.status or {}).get("containerStatuses", ())
    return any("running" in each.get("state", {}) or each.get("restartCount", 0) for each in statuses)


def _cache(seen: Observation) -> Iterator[Condition]:
    cache = seen.endpoint.spec.kv_cache_spec
    if cache is None:
        return
    kind = conditions.CACHE
    backend = (cache.l2_cache_spec.l2_cache_backend or "").lower() if cache.l2_cache_spec is not None else ""
    if not cache.enable_l2_cache:
        where = "in the memory of each worker" if cache.enable_l1_cache else "on the accelerator alone"
        yield Condition(kind, "True", "Local", f"keys and values are kept {where}")
    elif backend == "tieredstorage":
        yield _node_stores(seen)
    elif cache.l2_cache_spec is not None and cache.l2_cache_spec.l2_cache_local_url:
        yield Condition(kind, "True", "Given", "the second level is where l2CacheLocalUrl says; nobody looks there")
    elif not wants_redis(seen.endpoint):
        yield Condition(kind, "False", "NoRedis", "no Redis is made")
    else:
        name = redis_name(seen.endpoint)
        own = [each for each in seen.shared if each.kind == "Deployment" and each.name == name]
        is_ready = any(_status(seen.shared, each).get("readyReplicas") for each in own)
        if is_ready:
            yield Condition(kind, "True", "Redis", f"Redis {name} is ready")
            return
        pods = redis_pods(name, seen.shared)
        reason, texts = troubles(pods)
        message = "; ".join([f"Redis {name} is not ready yet", *texts, *image_remedies(pods)])
        yield Condition(kind, "False", reason or "Redis", message, is_trouble=bool(reason))


def _node_stores(seen: Observation) -> Condition:
    kind = conditions.CACHE
    statuses = [
        live.status or {}
        for found, live in seen.shared.items()
        if (found.kind, found.name) == ("DaemonSet", node_stores.NAME)
    ]
    wanted, ready = (sum(each.get(key, 0) for each in statuses) for key in ("desiredNumberScheduled", "numberReady"))
    message = f"{ready} of {wanted} node stores are ready"
    if wanted and ready >= wanted:
        return Condition(kind, "True", "Available", message)
    return Condition(kind, "False", "NodeStoresNotReady", message)


def _services(seen: Observation) -> Condition:
    wanted = seen.of_kind("Service")
    missing = [str(each) for each in wanted if each not in seen.live]
    if missing:
        return Condition(conditions.SERVICE, "False", "NotMade", f"not there yet: {', '.join(missing)}")
    return Condition(conditions.SERVICE, "True", "Made", ", ".join(map(str, wanted)))


def _entrance(seen: Observation, entrances: list[Reference]) -> Condition:
    for each in entrances:
        status = _status(seen.live, each)
        given = status.get("loadBalancer", {}).get("ingress") or status.get("addresses") or ()
        if addresses := [str(one.get("hostname") or one.get("ip") or one.get("value")) for one in given]:
            return Condition(conditions.INGRESS, "True", "AddressGiven", f"{each}: {', '.join(addresses)}")
    listed = ", ".join(map(str, entrances))
    return Condition(conditions.INGRESS, "False", "NoAddress", f"{listed}: no controller has given an address yet")


def _by_conditions(seen: Observation, kind: str, types: Mapping[str, str]) -> Iterator[Condition]:
    """Tell of children that have conditions of their own, by the one that says whether they work."""
    for child in seen.of_kind(*types):
        listed = _status(seen.live, child).get("conditions") or ()  # null, of an autoscaler that nobody looked at yet
        said = {each.get("type"): each for each in listed}
        own: Mapping[str, Any] = said.get(types[child.kind], {})
        status: Truth = {"True": "True", "False": "False"}.get(own.get("status", ""), "Unknown")  # type: ignore[assignment]
        reason = own.get("reason") or "NothingSaid"
        message = own.get("message") or "its controller has said nothing yet"
        yield Condition(kind, status, reason, f"{child}: {message}", is_trouble=status == "False")
        return


def _metrics(seen: Observation) -> Condition:
    metrics = seen.endpoint.spec.metrics
    if metrics is not None and not metrics.enabled:
        return Condition(conditions.METRICS, "True", "Disabled", "the resource asks for none")
    monitors = seen.of_kind("ServiceMonitor", "PodMonitor")
    if monitors:
        return Condition(conditions.METRICS, "True", "Monitored", ", ".join(map(str, monitors)))
    return Condition(conditions.METRICS, "True", "Annotated", "pods carry prometheus.io/* annotations")


def _status(live: Mapping[Reference, Live], child: Reference) -> dict[str, Any]:
    found = live.get(child)
    return (found.status or {}) if found is not None else {}


def replicas(live: Mapping[Reference, Live], workers: Iterable[Reference]) -> int:
    """Return how many workers there are."""
    return sum(_status(live, each).get("replicas", 0) for each in workers)


def deployment_status(live: Mapping[Reference, Live], workers: list[Reference]) -> dict[str, Any]:
    """Return the status of the workers' Deployment; of two, their sums."""
    statuses = [_status(live, each) for each in workers]
    if len(statuses) == 1:
        return statuses[0]
    counted = {key for status in statuses for key in status if key.endswith("eplicas")}
    return {key: sum(status.get(key, 0) for status in statuses) for key in sorted(counted)}
