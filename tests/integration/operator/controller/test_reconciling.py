"""A resource and its children on a real API: made, kept, changed, said, and gone."""

import asyncio
from typing import Any

import pytest
from tests.integration.operator.controller.operators import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    MERGE,
    RESOURCES,
    SECRETS,
    SERVICES,
    condition,
    eventually,
    names_at,
    operator,
    resource,
    roll_out,
    state,
    versions,
)
from tests.kube import Api, Cluster

from tierline.operator.controller.server import OperatorServer
from tierline.operator.names import FINALIZER


async def test_a_resource_becomes_its_children_and_is_ready_once_they_are(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with operator(cluster, namespace):
        await api.ask("POST", RESOURCES.format(namespace), resource(replicas=2))
        await is_in(api, namespace, "DeploymentInProgress")
        assert await names_at(api, DEPLOYMENTS.format(namespace)) == ["demo"]
        assert await names_at(api, SERVICES.format(namespace)) == ["demo-service"]
        assert await names_at(api, SECRETS.format(namespace)) == ["demo-token"]
        assert (await condition(api, namespace, "demo", "Ready"))["status"] == "False"
        await roll_out(api, namespace, "demo", available=1)
        await says(api, namespace, "WorkersReady", "1 available")
        assert await state(api, namespace, "demo") == "DeploymentInProgress"
        await roll_out(api, namespace, "demo")
        await is_in(api, namespace, "DeploymentComplete")
        status = (await get(api, namespace))["status"]
        assert status["replicas"] == 2
        assert status["deploymentStatus"]["status"]["availableReplicas"] == 2
        assert status["selector"] == "app=demo"
        assert (await condition(api, namespace, "demo", "Ready"))["status"] == "True"
        await eventually(lambda: events(api, namespace, "Ready is so"))


async def test_a_child_that_somebody_changes_or_deletes_is_as_it_was_again(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with operator(cluster, namespace) as server:
        await api.ask("POST", RESOURCES.format(namespace), resource())
        await is_in(api, namespace, "DeploymentInProgress")
        before = (await deployment(api, namespace))["metadata"]["uid"]
        image = {"spec": {"template": {"spec": {"containers": [{"name": "demo", "image": "other:2"}]}}}}
        theirs = {"metadata": {"annotations": {"team": "a"}}, **image}
        path = f"{DEPLOYMENTS.format(namespace)}/demo"
        await api.ask("PATCH", path, theirs, "application/strategic-merge-patch+json")
        await eventually(lambda: has_image(api, namespace, "engine:1"))
        assert (await deployment(api, namespace))["metadata"]["annotations"]["team"] == "a", "it is nobody's but theirs"
        await api.ask("DELETE", path)
        await eventually(lambda: exists(api, path))
        assert (await deployment(api, namespace))["metadata"]["uid"] != before
        assert current(server).children.reasserted == 1


async def test_nothing_is_written_while_nothing_changes(cluster: Cluster, api: Api, namespace: str) -> None:
    async with operator(cluster, namespace) as server:
        for name in ("a", "b"):
            await api.ask("POST", RESOURCES.format(namespace), resource(name))
            await is_in(api, namespace, "DeploymentInProgress", name)
        await roll_out(api, namespace, "a")
        await is_in(api, namespace, "DeploymentComplete", "a")
        await is_idle(server)
        before = await all_versions(api, namespace)
        looks = looked(server)
        for key in [*current(server).reconciler.endpoints]:
            current(server).queue.add(key)
        await eventually(lambda: looked(server) >= looks + 2)
        await is_idle(server)
        assert await all_versions(api, namespace) == before


async def test_a_successor_writes_everything_once_and_changes_nothing(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with operator(cluster, namespace) as server:
        await api.ask("POST", RESOURCES.format(namespace), resource())
        await is_in(api, namespace, "DeploymentInProgress")
        await is_idle(server)
    before = await all_versions(api, namespace)
    async with operator(cluster, namespace) as server:
        await eventually(lambda: server.loop is not None and looked(server) >= 1)
        await is_idle(server)
        assert await all_versions(api, namespace) == before


async def test_an_object_of_somebody_else_is_left_alone_and_told_of(cluster: Cluster, api: Api, namespace: str) -> None:
    theirs = {"metadata": {"name": "demo-service"}, "spec": {"ports": [{"port": 9}]}}
    await api.ask("POST", SERVICES.format(namespace), theirs)
    async with operator(cluster, namespace):
        await api.ask("POST", RESOURCES.format(namespace), resource())
        await says(api, namespace, "ServiceReady", "tierline operator adopt")
        assert (await condition(api, namespace, "demo", "ServiceReady"))["status"] == "False"
        assert await names_at(api, DEPLOYMENTS.format(namespace)) == ["demo"]
        await api.ask("DELETE", f"{SERVICES.format(namespace)}/demo-service")
        await says(api, namespace, "ServiceReady", "Service", status="True")


async def test_a_name_that_somebody_else_has_taken_since_is_his(cluster: Cluster, api: Api, namespace: str) -> None:
    path = f"{SERVICES.format(namespace)}/demo-service"
    async with operator(cluster, namespace):
        await api.ask("POST", RESOURCES.format(namespace), resource())
        await eventually(lambda: state(api, namespace, "demo"))
        await patch(api, namespace, {"metadata": {"annotations": {"tierline.ai/pause": "true"}}})
        await eventually(lambda: condition(api, namespace, "demo", "Paused"))
        await api.ask("DELETE", path)
        theirs = {"metadata": {"name": "demo-service"}, "spec": {"ports": [{"port": 1234}]}}
        await api.ask("POST", SERVICES.format(namespace), theirs)
        await patch(api, namespace, {"metadata": {"annotations": {"tierline.ai/pause": None}}})
        await says(api, namespace, "ServiceReady", "nobody's that this operator knows", status="False")
        assert (await api.ask("GET", path))["spec"]["ports"][0]["port"] == 1234


async def test_what_others_make_of_a_child_and_label_like_it_stays(cluster: Cluster, api: Api, namespace: str) -> None:
    config_maps = CONFIG_MAPS.format(namespace)
    async with operator(cluster, namespace):
        await api.ask("POST", RESOURCES.format(namespace), resource())
        await eventually(lambda: state(api, namespace, "demo"))
        labels = (await deployment(api, namespace))["metadata"]["labels"]  # as KEDA gives its autoscalers
        await api.ask("POST", f"{config_maps}?fieldManager=keda", {"metadata": {"name": "theirs", "labels": labels}})
        await patch(api, namespace, {"spec": {"replicas": 2}})
        await eventually(lambda: has_replicas(api, namespace, 2))
        await is_observed(api, namespace, 2)
        assert "theirs" in await names_at(api, config_maps)


async def test_what_is_wanted_no_more_is_deleted(cluster: Cluster, api: Api, namespace: str) -> None:
    async with operator(cluster, namespace):
        wanted = resource()
        wanted["metadata"]["annotations"] = {"tierline.ai/outside": "1"}
        await api.ask("POST", RESOURCES.format(namespace), wanted)
        path = f"{CONFIG_MAPS.format(namespace)}/demo-outside"
        await eventually(lambda: exists(api, path))
        await patch(api, namespace, {"metadata": {"annotations": {"tierline.ai/outside": None}}})
        await eventually(lambda: is_gone(api, path))
        assert await names_at(api, DEPLOYMENTS.format(namespace)) == ["demo"]


async def test_what_no_owner_reference_reaches_goes_before_the_resource(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    system = await api.new_namespace()
    async with operator(cluster, namespace, namespace=system):
        wanted = resource()
        wanted["metadata"]["annotations"] = {"tierline.ai/outside": "1"}
        await api.ask("POST", RESOURCES.format(namespace), wanted)
        outside, shared = (f"{CONFIG_MAPS.format(system)}/{name}" for name in ("demo-outside", "shared"))
        await eventually(lambda: exists(api, outside))
        await eventually(lambda: exists(api, shared))
        assert (await get(api, namespace))["metadata"]["finalizers"] == [FINALIZER]
        await api.ask("DELETE", f"{RESOURCES.format(namespace)}/demo")
        await eventually(lambda: is_gone(api, f"{RESOURCES.format(namespace)}/demo"))
        assert await is_gone(api, outside)
        await eventually(lambda: is_gone(api, shared))


async def test_children_of_a_paused_resource_stay_as_they_are(cluster: Cluster, api: Api, namespace: str) -> None:
    async with operator(cluster, namespace):
        await api.ask("POST", RESOURCES.format(namespace), resource())
        await is_in(api, namespace, "DeploymentInProgress")
        await patch(api, namespace, {"metadata": {"annotations": {"tierline.ai/pause": "true"}}})
        await says(api, namespace, "Paused", "nothing is changed", status="True")
        await patch(api, namespace, {"spec": {"worker": {"image": "engine:2"}}})
        await roll_out(api, namespace, "demo")
        await is_in(api, namespace, "DeploymentComplete")
        assert await has_image(api, namespace, "engine:1")
        await patch(api, namespace, {"metadata": {"annotations": {"tierline.ai/pause": None}}})
        await eventually(lambda: has_image(api, namespace, "engine:2"))
        await eventually(lambda: lacks(api, namespace, "Paused"))


async def test_a_resource_that_asks_for_what_cannot_be_keeps_what_it_has(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with operator(cluster, namespace):
        await api.ask("POST", RESOURCES.format(namespace), resource())
        await is_in(api, namespace, "DeploymentInProgress")
        shared = f"{CONFIG_MAPS.format(namespace)}/shared"
        await eventually(lambda: exists(api, shared))
        await patch(api, namespace, {"spec": {"modelName": "wrong", "worker": {"image": "engine:2"}}})
        await is_in(api, namespace, "DeploymentFailed")
        assert "spec.modelName" in (await condition(api, namespace, "demo", "Validated"))["message"]
        assert await has_image(api, namespace, "engine:1")
        assert await exists(api, shared)
        await patch(api, namespace, {"spec": {"modelName": "toy"}})
        await is_in(api, namespace, "DeploymentInProgress")
        await eventually(lambda: has_image(api, namespace, "engine:2"))


async def test_a_deployment_that_takes_too_long_has_failed_until_it_is_ready(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with operator(cluster, namespace):
        await api.ask("POST", RESOURCES.format(namespace), resource(maxDeployTimeInSeconds=1))
        await is_in(api, namespace, "DeploymentFailed")
        assert (await condition(api, namespace, "demo", "Ready"))["reason"] == "DeadlineExceeded"
        await roll_out(api, namespace, "demo")
        await is_in(api, namespace, "DeploymentComplete")


async def test_a_change_is_in_progress_until_the_new_pods_are_there(cluster: Cluster, api: Api, namespace: str) -> None:
    async with operator(cluster, namespace):
        await api.ask("POST", RESOURCES.format(namespace), resource())
        await is_in(api, namespace, "DeploymentInProgress")
        await roll_out(api, namespace, "demo")
        await is_in(api, namespace, "DeploymentComplete")
        await patch(api, namespace, {"spec": {"worker": {"image": "engine:2"}}})
        await is_in(api, namespace, "DeploymentInProgress")
        assert (await get(api, namespace))["status"]["observedGeneration"] == 2
        await roll_out(api, namespace, "demo")
        await is_in(api, namespace, "DeploymentComplete")


async def test_an_autoscalers_replicas_are_left_to_it(cluster: Cluster, api: Api, namespace: str) -> None:
    async with operator(cluster, namespace) as server:
        await api.ask("POST", RESOURCES.format(namespace), resource(replicas=3))
        await is_in(api, namespace, "DeploymentInProgress")
        await patch(api, namespace, {"spec": {"autoScalingSpec": {"minReplicaCount": 1}}})
        await is_observed(api, namespace, 2)
        assert (await deployment(api, namespace))["spec"]["replicas"] == 3, "as many as there were"
        await api.ask("PATCH", f"{DEPLOYMENTS.format(namespace)}/demo", {"spec": {"replicas": 7}}, MERGE)
        await patch(api, namespace, {"spec": {"worker": {"image": "engine:2"}}})
        await eventually(lambda: has_image(api, namespace, "engine:2"))
        await is_idle(server)
        assert (await deployment(api, namespace))["spec"]["replicas"] == 7
        await patch(api, namespace, {"spec": {"autoScalingSpec": None}})
        await eventually(lambda: has_replicas(api, namespace, 3))


async def test_a_pod_that_cannot_start_is_told_of(cluster: Cluster, api: Api, namespace: str) -> None:
    async with operator(cluster, namespace):
        await api.ask("POST", RESOURCES.format(namespace), resource())
        await is_in(api, namespace, "DeploymentInProgress")
        await roll_out(api, namespace, "demo", available=0)
        labels = (await deployment(api, namespace))["metadata"]["labels"]
        await api.create_pod(namespace, "demo-x", 1, labels=labels, is_ready=False)
        waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
        container = {"name": "c", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
        statuses = [{**container, "state": {"waiting": waiting}}]
        await api.set_status(namespace, "demo-x", containerStatuses=statuses)
        await says(api, namespace, "WorkersReady", "no such image")
        assert (await condition(api, namespace, "demo", "Ready"))["reason"] == "ImagePullBackOff"
        await eventually(lambda: events(api, namespace, "no such image"))


@pytest.mark.parametrize("unknown", ["status", "conditions"])
async def test_what_somebody_else_writes_into_the_status_is_written_over(
    cluster: Cluster, api: Api, namespace: str, unknown: str
) -> None:
    async with operator(cluster, namespace) as server:
        await api.ask("POST", RESOURCES.format(namespace), resource())
        await is_in(api, namespace, "DeploymentInProgress")
        await is_idle(server)
        theirs: dict[str, Any] = {"state": "DeploymentComplete"} if unknown == "status" else {"conditions": []}
        await api.ask("PATCH", f"{RESOURCES.format(namespace)}/demo/status", {"status": theirs}, MERGE)
        await is_in(api, namespace, "DeploymentInProgress")
        await eventually(lambda: condition(api, namespace, "demo", "Ready"))


# What is looked at ----------------------------------------------------------------------------------------------------


async def get(api: Api, namespace: str, name: str = "demo") -> dict[str, Any]:
    found: dict[str, Any] = await api.ask("GET", f"{RESOURCES.format(namespace)}/{name}")
    return found


async def patch(api: Api, namespace: str, change: dict[str, Any]) -> None:
    await api.ask("PATCH", f"{RESOURCES.format(namespace)}/demo", change, MERGE)


async def deployment(api: Api, namespace: str) -> dict[str, Any]:
    found: dict[str, Any] = await api.ask("GET", f"{DEPLOYMENTS.format(namespace)}/demo")
    return found


async def is_in(api: Api, namespace: str, wanted: str, name: str = "demo") -> None:
    async def holds() -> bool:
        return await state(api, namespace, name) == wanted

    await eventually(holds)


async def is_observed(api: Api, namespace: str, generation: int) -> None:
    async def holds() -> bool:
        return bool((await get(api, namespace))["status"]["observedGeneration"] == generation)

    await eventually(holds)


async def says(api: Api, namespace: str, kind: str, text: str, *, status: str | None = None) -> None:
    async def holds() -> bool:
        found = await condition(api, namespace, "demo", kind)
        return text in found.get("message", "") and status in (None, found["status"])

    await eventually(holds)


async def lacks(api: Api, namespace: str, kind: str) -> bool:
    return not await condition(api, namespace, "demo", kind)


async def has_image(api: Api, namespace: str, image: str) -> bool:
    template = (await deployment(api, namespace))["spec"]["template"]
    return bool(template["spec"]["containers"][0]["image"] == image)


async def has_replicas(api: Api, namespace: str, replicas: int) -> bool:
    return bool((await deployment(api, namespace))["spec"]["replicas"] == replicas)


async def exists(api: Api, path: str) -> bool:
    async with api.session.get(path) as answer:
        return answer.status == 200


async def is_gone(api: Api, path: str) -> bool:
    async with api.session.get(path) as answer:
        return answer.status == 404


async def events(api: Api, namespace: str, text: str) -> list[str]:
    listed = (await api.ask("GET", f"/api/v1/namespaces/{namespace}/events"))["items"]
    return [each["message"] for each in listed if text in each["message"]]


async def all_versions(api: Api, namespace: str) -> dict[str, dict[str, str]]:
    paths = [path.format(namespace) for path in (RESOURCES, DEPLOYMENTS, SERVICES, SECRETS, CONFIG_MAPS)]
    paths.append(f"/api/v1/namespaces/{namespace}/events")
    return {path: versions((await api.ask("GET", path))["items"]) for path in paths}


def current(server: OperatorServer) -> Any:
    assert server.loop is not None
    return server.loop


def looked(server: OperatorServer) -> int:
    return int(sum(current(server).looks.values()))


async def is_idle(server: OperatorServer) -> None:
    """Wait until nobody looks at anything any more, for a while."""
    quiet = 0
    while quiet < 10:
        before = looked(server)
        await asyncio.sleep(0.1)
        quiet = quiet + 1 if looked(server) == before and not current(server).queue.at_work else 0
