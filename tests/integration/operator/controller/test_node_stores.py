"""Node stores on a real API: what they leave on machines is removed before it is forgotten where they were."""

import contextlib
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from tests.integration.operator.controller.operators import (
    DAEMON_SETS,
    MERGE,
    PLANNER,
    RESOURCES,
    condition,
    eventually,
    names_at,
    operator,
    report_removal,
    resource,
)
from tests.kube import Api, Cluster
from tests.reading_gate import Asked, Rule, reading_gate

from tierline.operator.controller import leaving, looping
from tierline.operator.controller.reconciling import PAUSE, SHARED_KEY
from tierline.operator.controller.server import OperatorServer
from tierline.operator.manifests import desired
from tierline.operator.manifests.machines import Machines
from tierline.operator.manifests.store_removal import SINCE
from tierline.operator.names import API_VERSION

WITH_STORES = replace(PLANNER, shared=desired.shared)
CACHED = {"kvCacheSpec": {"enableL2Cache": True, "l2CacheSpec": {"l2CacheBackend": "tieredstorage"}}}
STORES, REMOVAL = "tierline-node", "tierline-node-removal"


async def test_what_the_last_endpoints_stores_left_is_removed_and_then_what_removes(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with operator(cluster, namespace, WITH_STORES):
        await make(api, namespace, "demo", "ml.a")
        await has(api, namespace, STORES)
        await end(api, namespace, "demo")
        await has(api, namespace, REMOVAL)
        await eventually(lambda: is_counted(api, namespace))
        assert machines(await daemon_set(api, namespace, REMOVAL)) == {"a", "ml.a"}
        await report_removal(api, namespace, available=1)
        assert await names_at(api, DAEMON_SETS.format(namespace)) == [REMOVAL]
        await report_removal(api, namespace, available=2)
        await has(api, namespace)


async def test_machines_that_stores_leave_while_others_stay_are_emptied(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with operator(cluster, namespace, WITH_STORES):
        await make(api, namespace, "demo", "ml.a")
        await make(api, namespace, "other", "ml.b")
        await eventually(lambda: is_at(api, namespace, STORES, {"a", "ml.a", "b", "ml.b"}))
        await end(api, namespace, "demo")
        await eventually(lambda: is_at(api, namespace, STORES, {"b", "ml.b"}))
        await has(api, namespace, STORES, REMOVAL)
        assert machines(await daemon_set(api, namespace, REMOVAL)) == {"a", "ml.a"}
        await report_removal(api, namespace, available=2)
        await has(api, namespace, STORES)


async def test_a_successor_goes_on_with_what_is_to_be_removed(cluster: Cluster, api: Api, namespace: str) -> None:
    async with operator(cluster, namespace, WITH_STORES):
        await make(api, namespace, "demo", "ml.a")
        await has(api, namespace, STORES)
        await end(api, namespace, "demo")
        await has(api, namespace, REMOVAL)
    async with operator(cluster, namespace, WITH_STORES):
        await eventually(lambda: is_counted(api, namespace))
        await report_removal(api, namespace, available=2)
        await has(api, namespace)


async def test_an_endpoint_that_comes_back_meanwhile_has_its_stores_at_once(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with operator(cluster, namespace, WITH_STORES):
        await make(api, namespace, "demo", "ml.a")
        await has(api, namespace, STORES)
        await end(api, namespace, "demo")
        await has(api, namespace, REMOVAL)
        await make(api, namespace, "demo", "ml.a")
        await has(api, namespace, STORES)


async def test_an_api_that_does_not_serve_our_resources_yet_costs_no_stores(
    cluster: Cluster, api: Api, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with operator(cluster, namespace, WITH_STORES):
        await make(api, namespace, "demo", "ml.a")
        await has(api, namespace, STORES)

    async def not_found(request: web.Request, asked: Asked) -> web.StreamResponse:
        return web.Response(status=404, text="404 page not found\n")

    monkeypatch.setattr(looping, "FIRST_LOOKS_APART_SECONDS", 0.1)
    monkeypatch.setattr(looping, "DISCOVERY_SECONDS", 1.0)
    starting = Rule(
        lambda asked: asked.path.startswith(f"/apis/{API_VERSION}"), not_found, times=5
    )  # more than the looks that settle it
    async with reading_gate(cluster, [starting]) as gate:
        kubeconfig = cluster.kubeconfig("starting", port=gate.port)
        async with operator(cluster, namespace, WITH_STORES, kubeconfig=kubeconfig) as server:
            await eventually(lambda: server.loop is not None and server.loop.is_synced)
            await eventually(lambda: starting.used == 5)
            await eventually(lambda: server.loop is not None and server.loop.looks["InferenceEndpointConfig", "done"])
            await eventually(lambda: server.loop is not None and server.loop.looks["", "done"])
            assert await names_at(api, DAEMON_SETS.format(namespace)) == [STORES]
            assert not [each for each in gate.writes if each.method == "DELETE"]


async def test_machines_that_do_not_answer_are_named_when_they_are_given_up(
    cluster: Cluster, api: Api, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "REMOVAL_SECONDS", 3.0)
    async with operator(cluster, namespace, WITH_STORES):
        await make(api, namespace, "demo", "ml.a")
        await has(api, namespace, STORES)
        for name, is_ready in (("reached", True), ("away", False)):
            await api.create_pod(namespace, name, 1, labels={"app": REMOVAL}, is_ready=is_ready)
        await end(api, namespace, "demo")
        await has(api, namespace)
        listed = (await api.ask("GET", f"/api/v1/namespaces/{namespace}/events"))["items"]
        [told] = [each["message"] for each in listed if each["reason"] == "SegmentsLeft"]
        assert told.startswith("1 machine was not reached, or a store runs there: that of pod away.")


@pytest.mark.parametrize("is_restarted", [False, True], ids=["same operator", "another operator"])
async def test_a_paused_endpoint_keeps_the_stores_that_it_had_whatever_its_spec_says_meanwhile(
    cluster: Cluster, api: Api, namespace: str, is_restarted: bool
) -> None:
    async with contextlib.AsyncExitStack() as running:
        server = await running.enter_async_context(operator(cluster, namespace, WITH_STORES))
        await make(api, namespace, "demo", "ml.a")
        await make(api, namespace, "other", "ml.b")
        await eventually(lambda: is_at(api, namespace, STORES, {"a", "ml.a", "b", "ml.b"}))
        await change(api, namespace, "demo", {"metadata": {"annotations": {PAUSE: "true"}}})
        await change(api, namespace, "demo", {"spec": {"instanceType": "ml.c", "kvCacheSpec": None}})
        if is_restarted:
            await running.aclose()
            server = await running.enter_async_context(operator(cluster, namespace, WITH_STORES))
        await make(api, namespace, "third", "ml.d")
        await eventually(lambda: is_at(api, namespace, STORES, {"a", "ml.a", "b", "ml.b", "d", "ml.d"}))
        await looked_again(server)
        await has(api, namespace, STORES)
        await change(api, namespace, "demo", {"metadata": {"annotations": {PAUSE: None}}})
        await eventually(lambda: is_at(api, namespace, STORES, {"b", "ml.b", "d", "ml.d"}))


async def test_an_endpoint_that_is_paused_before_anything_was_made_of_it_has_no_stores(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with operator(cluster, namespace, WITH_STORES) as server:
        paused = resource("demo", instanceType="ml.a", **CACHED)
        paused["metadata"]["annotations"] = {PAUSE: "true"}
        await api.ask("POST", RESOURCES.format(namespace), paused)
        await make(api, namespace, "other", "ml.b")
        await eventually(lambda: is_at(api, namespace, STORES, {"b", "ml.b"}))
        await eventually(lambda: condition(api, namespace, "demo", "Paused"))
        await looked_again(server)
        assert await is_at(api, namespace, STORES, {"b", "ml.b"})
        await end(api, namespace, "other")
        await has(api, namespace, REMOVAL)


async def make(api: Api, namespace: str, name: str, instance_type: str) -> None:
    await api.ask("POST", RESOURCES.format(namespace), resource(name, instanceType=instance_type, **CACHED))


async def change(api: Api, namespace: str, name: str, change: dict[str, Any]) -> None:
    """Change a resource, and wait until that was looked at."""
    path = f"{RESOURCES.format(namespace)}/{name}"
    wanted = (await api.ask("PATCH", path, change, MERGE))["metadata"]

    async def is_told() -> bool:
        found = await api.ask("GET", path)
        is_paused = PAUSE in wanted.get("annotations", {})
        has_said = bool(await condition(api, namespace, name, "Paused")) == is_paused
        return has_said and bool(found["status"]["observedGeneration"] == wanted["generation"])

    await eventually(is_told)


async def looked_again(server: OperatorServer) -> None:
    """Wait until what endpoints share was looked at once more."""
    assert server.loop is not None
    loop, before = server.loop, server.loop.looks["", "done"]
    loop.queue.add(SHARED_KEY)
    await eventually(lambda: loop.looks["", "done"] > before)


async def end(api: Api, namespace: str, name: str) -> None:
    await api.ask("DELETE", f"{RESOURCES.format(namespace)}/{name}")


async def daemon_set(api: Api, namespace: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = await api.ask("GET", f"{DAEMON_SETS.format(namespace)}/{name}")
    return found


def machines(manifest: dict[str, Any]) -> set[str]:
    return set(Machines.of(manifest).types)


async def has(api: Api, namespace: str, *wanted: str) -> None:
    """Wait until there are these DaemonSets and no others."""

    async def holds() -> bool:
        return await names_at(api, DAEMON_SETS.format(namespace)) == sorted(wanted)

    await eventually(holds)


async def is_at(api: Api, namespace: str, name: str, types: set[str]) -> bool:
    found = await names_at(api, DAEMON_SETS.format(namespace))
    return name in found and machines(await daemon_set(api, namespace, name)) == types


async def is_counted(api: Api, namespace: str) -> bool:
    """Whether the stores are gone, and how long the rest takes is watched."""
    found = await names_at(api, DAEMON_SETS.format(namespace))
    return found == [REMOVAL] and SINCE in (await daemon_set(api, namespace, REMOVAL))["metadata"]["annotations"]
