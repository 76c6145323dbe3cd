"""Emptying the caches of an endpoint: what its engines keep, and its buckets in the node stores.

Rule: what cannot be emptied is said, with the reason; nobody is told that a cache is empty that may not be. Engines
are asked after the stores, so that none reads back what it had, and the stores a second time, for what was on its way.
Where there is a router it asks the engines: the operator's own NetworkPolicies let nobody else do so.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tierline import logs
from tierline.errors import ClusterRefused, ClusterUnavailable, EngineError
from tierline.kube.cluster import Cluster, Kind, behind_pod
from tierline.operator import names
from tierline.operator.controller.keeping import content_of
from tierline.operator.endpoints.phases import is_serving
from tierline.operator.endpoints.pods import Container, Pod, read_pods
from tierline.operator.endpoints.standing import POD, pods_of, resource_kinds
from tierline.operator.manifests import node_stores
from tierline.operator.manifests.buckets import POD_UID
from tierline.operator.manifests.router import ADMIN_TOKEN
from tierline.operator.manifests.sidecars import PROXY, PROXY_PORT_NAME
from tierline.router.admin.access import ADMIN_TOKEN_FIELD
from tierline.router.admin.documents import CacheReset, CacheResetList
from tierline.router.admin.resets import RESET, answered, refused

log = logs.get(__name__)

DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments", is_namespaced=True)
RESTARTED = "kubectl.kubernetes.io/restartedAt"
"""Of a pod template: who changes it has all pods replaced, as ``kubectl rollout restart`` does."""

ENGINE, _STORE = "engine", "node store"
_FLUSH_S = 600.0
_POLL_S = 1.0
_LMCACHE_BUCKET, _TIERLINE_BUCKET = "lmcache", "vllm"
"""Where LMCache's connector and ours keep what they store, unless they are told otherwise."""
_OURS = "sagemaker-hyperpod://"


@dataclass(frozen=True)
class Flushed:
    """What became of one cache.

    Parameters
    ----------
    what
        ``engine``, ``node store`` or ``other store``.
    pod
        Where it is; of another store, its address.
    is_empty
        It certainly has nothing left from before.
    objects
        How many objects went; ``None`` where that is not said.
    why
        Why it may not be empty.
    """

    what: str
    pod: str
    is_empty: bool
    objects: int | None = None
    why: str = ""


class _Removed(msgspec.Struct):
    removed: int = 0


class _DeploymentState(msgspec.Struct, rename="camel"):
    replicas: int = 0
    updated_replicas: int = 0
    available_replicas: int = 0
    observed_generation: int = 0


class _DeploymentMetadata(msgspec.Struct):
    generation: int = 1


class _DeploymentObject(msgspec.Struct):
    metadata: _DeploymentMetadata
    status: _DeploymentState


@dataclass(frozen=True)
class Cache:
    """What an engine keeps beside its own blocks.

    Parameters
    ----------
    buckets
        In the node store of its machine.
    is_kept_by_lmcache
        LMCache has memory in the engine's process, which no request to the engine empties.
    elsewhere
        Scheme and host of another store, such as Redis.
    """

    buckets: frozenset[str]
    is_kept_by_lmcache: bool
    elsewhere: str = ""


def cache_of(container: Container) -> Cache:
    """Read from a worker's arguments and variables what it caches where."""
    environment = {each.name: each.value for each in container.env}
    words = [*container.command, *container.args]
    connectors = [_json(word) for word in words if "kv_connector" in word]
    buckets: set[str] = set()
    is_lmcache = "LMCACHE_REMOTE_URL" in environment or "LMCACHE_CONFIG_FILE" in environment
    for connector in connectors:
        name = str(connector.get("kv_connector", ""))
        extra = connector.get("kv_connector_extra_config") or {}
        if name.startswith("Tierline"):
            buckets.add(str(extra.get("tierline.bucket", _TIERLINE_BUCKET)))
        is_lmcache = is_lmcache or name.startswith("LMCache")
    remote, elsewhere = environment.get("LMCACHE_REMOTE_URL", ""), ""
    if remote.startswith(_OURS):
        extra = _json(environment.get("LMCACHE_EXTRA_CONFIG", ""))
        buckets.add(str(extra.get("sagemaker_hyperpod_bucket", _LMCACHE_BUCKET)))
    elif remote:
        scheme, _, rest = remote.partition("://")
        elsewhere = f"{scheme}://{rest.rpartition('@')[2]}"  # without a password
    has_memory = environment.get("LMCACHE_LOCAL_CPU", "True").lower() not in ("false", "0")
    return Cache(frozenset(buckets), is_lmcache and has_memory, elsewhere)


async def workers_of(cluster: Cluster, namespace: str, name: str) -> list[Pod]:
    """Return the workers of an endpoint that are to stay."""
    workers, _ = await pods_of(cluster, namespace, name, namespace)
    return [pod for pod in workers if pod.metadata.deletion_timestamp is None]


def buckets_of(workers: Sequence[Pod]) -> frozenset[str]:
    """Return the buckets that workers keep their cache in."""
    return frozenset(
        bucket.replace(f"$({POD_UID})", pod.metadata.uid)
        for pod in workers
        for bucket in cache_of(pod.spec.containers[0]).buckets
    )


async def buckets_of_endpoints(cluster: Cluster) -> dict[tuple[str, str], frozenset[str]]:
    """Return by namespace and name in which buckets each endpoint's workers keep their cache, those to come too."""
    made = {(each["metadata"]["namespace"], each["metadata"]["name"]): each for each in await cluster.list(DEPLOYMENT)}
    found = {}
    for kind in await resource_kinds(cluster):
        for resource in await cluster.list(kind):
            namespace, name = resource["metadata"]["namespace"], resource["metadata"]["name"]
            deployments = [made.get((namespace, each)) for each in _deployments(name)]
            containers = [each["spec"]["template"]["spec"]["containers"][0] for each in deployments if each is not None]
            caches = [cache_of(msgspec.convert(each, Container)) for each in containers]
            # One with a variable in its name is each pod's own, and only the pod says which.
            found[namespace, name] = frozenset(each for cache in caches for each in cache.buckets if "$(" not in each)
    return found


def _deployments(name: str) -> tuple[str, ...]:
    return names.worker_name(name), names.prefill_name(name), names.decode_name(name)


def not_ours(workers: Sequence[Pod]) -> list[Flushed]:
    """Return the stores of others that workers cache in, which stay as they are."""
    places = sorted({cache_of(pod.spec.containers[0]).elsewhere for pod in workers} - {""})
    return [
        Flushed("other store", place, is_empty=False, why="it is not a node store; empty it there") for place in places
    ]


async def flush_stores(cluster: Cluster, system_namespace: str, buckets: frozenset[str]) -> list[Flushed]:
    """Remove all objects of some buckets from every node store."""
    stores = (
        read_pods(await cluster.list(POD, system_namespace, labels=f"{names.APP}={node_stores.NAME}"))
        if buckets
        else []
    )
    return [await _flush_store(cluster, pod, buckets) for pod in stores]


def joined(first: Sequence[Flushed], again: Sequence[Flushed]) -> list[Flushed]:
    """Return two rounds as one: what the second says of a store, with the objects of both."""
    later = {each.pod: each for each in again if each.what == _STORE}
    found = []
    for each in first:
        second = later.get(each.pod) if each.what == _STORE else None
        found.append(each if second is None else replace(second, objects=(each.objects or 0) + (second.objects or 0)))
    return found


def port_of_engine(pod: Pod) -> int | None:
    """Return where an engine is asked: by the proxy beside it, where there is one; ``None`` where nothing says.

    The operator's own NetworkPolicies leave the proxy's port open to all who ask, if there is no router for them.
    """
    beside = (each for each in pod.spec.containers if each.name == PROXY)
    ports = [port.container_port for each in beside for port in each.ports if port.name == PROXY_PORT_NAME]
    ports += [port.container_port for port in pod.spec.containers[0].ports]
    return ports[0] if ports else None


def router_port(router: Pod) -> int:
    """Return where a router is asked; the operator's own NetworkPolicies leave it open to all."""
    ports = router.spec.containers[0].ports
    return next((port.container_port for port in ports), names.ROUTER_PORT)


async def flush_engines(
    cluster: Cluster, workers: Sequence[Pod], routers: Sequence[Pod], router_name: str
) -> list[Flushed]:
    """Have engines forget what they have.

    Parameters
    ----------
    workers
        Whose first containers they are.
    routers
        Any of them that serves asks the engines; where none does, or may be asked, they are asked themselves.
    router_name
        Of the Secret with the token of their ``/admin``.
    """
    by_address: dict[str, CacheReset] | None = None
    for router in filter(is_serving, routers):
        by_address = await _ask_router(cluster, router, router_name)
        if by_address is not None:
            break
    return list(await asyncio.gather(*(_flush_engine(cluster, pod, by_address) for pod in workers)))


async def restart_workers(cluster: Cluster, namespace: str, name: str, *, timeout_s: float) -> list[str]:
    """Have all workers replaced, as fast as their Deployments' strategy allows; returns the Deployments.

    Raises
    ------
    EngineError
        The new ones are not all there in time.
    """
    deployments = [each for each in _deployments(name) if await cluster.get(DEPLOYMENT, namespace, each) is not None]
    stamp = {"spec": {"template": {"metadata": {"annotations": {RESTARTED: datetime.now(UTC).isoformat()}}}}}
    for deployment in deployments:
        await cluster.merge(DEPLOYMENT, namespace, deployment, stamp)
    try:
        async with asyncio.timeout(timeout_s):
            while not all([await _is_rolled_out(cluster, namespace, each) for each in deployments]):  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise EngineError(
            f"the workers of {name} were not all replaced in {timeout_s:g} s; they still are being: "
            f"`tierline endpoint status {name} --wait`"
        ) from None
    return deployments


async def _is_rolled_out(cluster: Cluster, namespace: str, name: str) -> bool:
    try:
        found = await cluster.get(DEPLOYMENT, namespace, name)
    except ClusterUnavailable:
        return False  # nobody can tell now
    if found is None:
        return True
    deployment = msgspec.convert(found, _DeploymentObject)
    status = deployment.status
    return (
        status.observed_generation >= deployment.metadata.generation
        and status.replicas == status.updated_replicas == status.available_replicas
    )


async def _flush_store(cluster: Cluster, pod: Pod, buckets: frozenset[str]) -> Flushed:
    removed = 0
    try:
        for bucket in sorted(buckets):
            path = behind_pod(pod.metadata.namespace, pod.metadata.name, _port(pod), f"v1/kv/{bucket}?flush")
            async with cluster.answer("DELETE", path, silence_s=_FLUSH_S) as reply:
                removed += msgspec.json.decode(await reply.read(), type=_Removed).removed
    except (ClusterRefused, ClusterUnavailable, msgspec.DecodeError) as error:
        return Flushed(_STORE, pod.metadata.name, is_empty=False, objects=removed, why=str(error))
    return Flushed(_STORE, pod.metadata.name, is_empty=True, objects=removed)


async def _ask_router(cluster: Cluster, router: Pod, secret: str) -> dict[str, CacheReset] | None:
    """Return what a router says of the engines, by their pods' addresses; ``None`` where it cannot be asked."""
    namespace = router.metadata.namespace
    path = behind_pod(namespace, router.metadata.name, router_port(router), "admin/endpoints/reset")
    try:
        token = (await content_of(cluster, namespace, secret)).get(ADMIN_TOKEN, b"").decode(errors="replace").strip()
        fields = ((ADMIN_TOKEN_FIELD, token),)
        async with cluster.answer("POST", path, headers=fields, silence_s=_FLUSH_S) as reply:
            said = msgspec.json.decode(await reply.read(), type=CacheResetList)
    except (ClusterRefused, ClusterUnavailable, msgspec.DecodeError) as error:
        log.warning("the router cannot be asked to have its engines emptied", pod=router.metadata.name, why=str(error))
        return None
    return {urlsplit(each.url).hostname or "": each for each in said.endpoints}


async def _flush_engine(cluster: Cluster, pod: Pod, by_address: Mapping[str, CacheReset] | None) -> Flushed:
    name, container = pod.metadata.name, pod.spec.containers[0]
    if not is_serving(pod):
        return Flushed(ENGINE, name, is_empty=False, why="it does not serve, so that it cannot be asked")
    if by_address is None:
        found = await _ask_engine(cluster, pod)
    else:
        unknown = CacheReset(url="", is_empty=False, why="the router does not know it")
        found = by_address.get(pod.status.pod_ip, unknown)
    if found.is_empty and cache_of(container).is_kept_by_lmcache:
        why = "its own blocks are forgotten, but not what LMCache keeps in its process"
        return Flushed(ENGINE, name, is_empty=False, why=why)
    return Flushed(ENGINE, name, is_empty=found.is_empty, why=found.why)


async def _ask_engine(cluster: Cluster, pod: Pod) -> CacheReset:
    port = port_of_engine(pod)
    if port is None:
        return CacheReset(url="", is_empty=False, why="its container names no port")
    path = behind_pod(pod.metadata.namespace, pod.metadata.name, port, RESET)
    try:
        async with cluster.answer("POST", path, silence_s=_FLUSH_S) as reply:
            return answered(path, await reply.read())
    except ClusterRefused as refusal:
        return refused(path, refusal.status, str(refusal))
    except ClusterUnavailable as error:
        return CacheReset(url=path, is_empty=False, why=str(error))


def _port(store: Pod) -> int:
    ports = store.spec.containers[0].ports
    return next((port.container_port for port in ports if port.name == "http"), names.NODE_PORT)


def _json(text: str) -> dict[str, Any]:
    """Return the JSON object in a word such as ``--kv-transfer-config={…}``; empty where there is none."""
    try:
        found = json.loads(text[text.index("{") :])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
