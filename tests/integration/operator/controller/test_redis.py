"""A Redis of the operator's own on a real API: workers keep theirs until all of them have the one that succeeds it."""

from dataclasses import replace
from typing import Any

import pytest
from tests.integration.operator.controller.operators import (
    DEPLOYMENTS,
    MERGE,
    PLANNER,
    RESOURCES,
    SERVICES,
    cannot_pull,
    condition,
    eventually,
    names_at,
    operator,
    resource,
    roll_out,
)
from tests.kube import Api, Cluster

from tierline.operator.controller import reconciling
from tierline.operator.controller.reconciling import SHARED_KEY
from tierline.operator.controller.server import OperatorServer
from tierline.operator.manifests import desired
from tierline.operator.manifests.redis import NAME
from tierline.operator.names import FIELD_MANAGER, MANAGED_BY, OWNER_UID, USES_REDIS

WITH_REDIS = replace(PLANNER, shared=desired.shared)
CACHED: dict[str, Any] = {"kvCacheSpec": {"enableL2Cache": True, "l2CacheSpec": {"l2CacheBackend": "redis"}}}
POLICIES = "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies"
OTHER_CACHE = {"spec": {"worker": {"image": "engine:2"}}}
SAME_CACHE = {"spec": {"worker": {"resources": {"requests": {"cpu": "2"}}}, "replicas": 2}}


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciling, "SUCCEEDED_SECONDS", 0.1)


async def test_a_redis_goes_once_its_successors_workers_are_all_available_and_no_pod_uses_it(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with operator(cluster, namespace, WITH_REDIS) as server:
        before = await served(api, namespace)
        await eventually(lambda: knows_a_pod(server))
        await api.ask("PATCH", f"{RESOURCES.format(namespace)}/demo", OTHER_CACHE, MERGE)
        await has(api, namespace, 2)
        await looked_at(server)
        assert before in await redis(api, namespace)
        await available(api, namespace)
        await looked_at(server)
        assert before in await redis(api, namespace)
        await api.delete_pod(namespace, "demo-1")
        await has(api, namespace, 1)
        assert await redis(api, namespace) != [before]
        for path in (SERVICES, POLICIES):
            listed = await names_at(api, path.format(namespace))
            assert [each for each in listed if each.startswith(NAME)] == await redis(api, namespace)


async def test_what_changes_nothing_about_the_cache_keeps_the_redis_as_it_runs(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with operator(cluster, namespace, WITH_REDIS, redis_image="valkey:8"):
        before = await served(api, namespace)
        path = f"{DEPLOYMENTS.format(namespace)}/{before}"
        runs = await api.ask("GET", path)
    async with operator(cluster, namespace, WITH_REDIS, redis_image="valkey:9") as server:
        await api.ask("PATCH", f"{RESOURCES.format(namespace)}/demo", SAME_CACHE, MERGE)
        await eventually(lambda: is_observed(api, namespace))
        await looked_at(server)
        assert await redis(api, namespace) == [before]
        assert (await api.ask("GET", path))["spec"] == runs["spec"]
    async with operator(cluster, namespace, WITH_REDIS, redis_image="valkey:9", worker_updates="at-once"):
        await eventually(lambda: runs_image(api, path, "valkey:9"))


async def test_a_wrong_image_is_told_of_and_goes_with_the_setting_that_names_another(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with operator(cluster, namespace, WITH_REDIS, redis_image="registry/typo:1"):
        await api.ask("POST", RESOURCES.format(namespace), resource(**CACHED))
        await has(api, namespace, 1)
        [name] = await redis(api, namespace)
        await cannot_pull(api, namespace, name, "redis")
        found = await eventually(lambda: condition_with(api, namespace, "registry/typo:1"))
        assert "image registry/typo:1 comes from the operator's setting redis_image" in found["message"]
    async with operator(cluster, namespace, WITH_REDIS, redis_image="valkey:8"):
        await eventually(lambda: runs_image(api, f"{DEPLOYMENTS.format(namespace)}/{name}", "valkey:8"))


async def condition_with(api: Api, namespace: str, text: str) -> dict[str, Any] | None:
    """Return how the cache stands, once that is told with a text."""
    found = await condition(api, namespace, "demo", "CacheReady")
    return found if text in found.get("message", "") else None


async def served(api: Api, namespace: str) -> str:
    """Have an endpoint that serves with a pod; return which Redis that uses."""
    made = await api.ask("POST", RESOURCES.format(namespace), resource(**CACHED))
    await has(api, namespace, 1)
    [name] = await redis(api, namespace)
    await available(api, namespace)
    labels = {MANAGED_BY: FIELD_MANAGER, OWNER_UID: made["metadata"]["uid"], USES_REDIS: name}
    await api.create_pod(namespace, "demo-1", 1, labels=labels)
    return name


async def available(api: Api, namespace: str) -> None:
    """Have all workers be there and available."""
    await eventually(lambda: is_observed(api, namespace))
    await roll_out(api, namespace, "demo")


async def redis(api: Api, namespace: str) -> list[str]:
    return [each for each in await names_at(api, DEPLOYMENTS.format(namespace)) if each.startswith(NAME)]


async def has(api: Api, namespace: str, count: int) -> None:
    async def holds() -> bool:
        return len(await redis(api, namespace)) == count

    await eventually(holds)


async def is_observed(api: Api, namespace: str) -> bool:
    found = await api.ask("GET", f"{RESOURCES.format(namespace)}/demo")
    return bool(found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"])


async def runs_image(api: Api, path: str, image: str) -> bool:
    found = await api.ask("GET", path)
    return bool(found["spec"]["template"]["spec"]["containers"][0]["image"] == image)


def knows_a_pod(server: OperatorServer) -> bool:
    return server.loop is not None and any(server.loop.children.all("Pod"))


async def looked_at(server: OperatorServer) -> None:
    """Wait until what endpoints share was looked at, twice, for the first look may have begun before."""
    loop = await eventually(lambda: server.loop)
    before = loop.looks["", "done"]
    loop.queue.add(SHARED_KEY)
    await eventually(lambda: loop.looks["", "done"] > before)
    loop.queue.add(SHARED_KEY)
    await eventually(lambda: loop.looks["", "done"] > before + 1)
