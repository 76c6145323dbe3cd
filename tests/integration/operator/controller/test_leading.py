"""Several operators, of which one acts, and an API that is away: whoever acts goes on where things stand."""

import asyncio
import contextlib
import time
from typing import Any

import aiohttp
from tests.integration.operator.controller.operators import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    MERGE,
    RESOURCES,
    eventually,
    names_at,
    operator,
    resource,
    roll_out,
    state,
)
from tests.kube import Api, Cluster, gate

from tierline.duties import Duties
from tierline.errors import ClusterUnavailable
from tierline.kube.api import KubernetesApi
from tierline.kube.cluster import Cluster as Asked
from tierline.operator.controller.leading import Leadership, Terms
from tierline.operator.controller.server import OperatorServer

LEASE = "/apis/coordination.k8s.io/v1/namespaces/{}/leases/tierline-operator"


async def test_one_of_two_operators_acts_and_the_other_takes_over_at_once_when_it_stops(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with contextlib.AsyncExitStack() as first_runs, operator(cluster, namespace, lease_s=60) as second:
        await eventually(lambda: second.loop is not None)
        first = await first_runs.enter_async_context(operator(cluster, namespace, lease_s=60))
        await api.ask("POST", RESOURCES.format(namespace), resource("a"))
        await eventually(lambda: state(api, namespace, "a"))
        assert first.loop is None
        assert await says(first, "/readyz") == (200, "ok, another operator leads\n")
        assert (await says(second, "/healthz"))[0] == 200
        await second.stop()
        # Its Lease would have been valid for a minute.
        await eventually(lambda: first.loop is not None)
        await api.ask("POST", RESOURCES.format(namespace), resource("b"))
        await eventually(lambda: state(api, namespace, "b"))
        lease = await api.ask("GET", LEASE.format(namespace))
        assert lease["spec"]["holderIdentity"] == first.leadership.identity
        assert lease["spec"]["leaseTransitions"] == 2


async def test_a_leader_that_is_cut_off_stops_and_another_takes_over(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with gate(cluster) as before_first:
        kubeconfig = cluster.kubeconfig("gate", port=before_first.port)
        async with operator(cluster, namespace, kubeconfig=kubeconfig, lease_s=1.5) as first:
            await eventually(lambda: first.loop is not None)
            async with operator(cluster, namespace) as second:
                before_first.cut()
                await eventually(lambda: first.loop is None)
                await eventually(lambda: second.loop is not None)
                await api.ask("POST", RESOURCES.format(namespace), resource())
                await eventually(lambda: state(api, namespace, "demo"))
                before_first.is_open = True
                await asyncio.sleep(1.0)
                assert first.loop is None, "the other one leads"


async def test_a_leader_whose_work_fails_leaves_the_lease_to_another(cluster: Cluster, namespace: str) -> None:
    async def fails() -> None:
        has_led.set()
        raise ClusterUnavailable("nothing can be listed")

    async def goes_on() -> None:
        leads.set()
        await asyncio.Event().wait()

    has_led, leads, terms = asyncio.Event(), asyncio.Event(), Terms(valid_s=60.0, renew_within_s=40.0, every_s=0.2)
    async with KubernetesApi(cluster.kubeconfig("everything")).connected() as connected:
        first, second = (Leadership(Asked(connected, "tests"), namespace, time.monotonic, terms) for _ in range(2))
        duties = Duties(["leading"])
        failing = asyncio.create_task(duties.keep_up("leading", lambda: first.lead(fails)))
        await asyncio.wait_for(has_led.wait(), 60)
        other = asyncio.create_task(second.lead(goes_on))
        await asyncio.wait_for(leads.wait(), 60)
        await eventually(lambda: duties.failures["leading"])  # counted behind the Lease's being left
        assert not first.is_leader
        for task in (failing, other):
            task.cancel()
        await asyncio.wait({failing, other})


async def test_an_api_that_is_away_for_a_while_is_followed_again(cluster: Cluster, api: Api, namespace: str) -> None:
    async with (
        gate(cluster) as before,
        operator(cluster, namespace, kubeconfig=cluster.kubeconfig("gate", port=before.port), lease_s=30) as server,
    ):
        await api.ask("POST", RESOURCES.format(namespace), resource())
        await eventually(lambda: state(api, namespace, "demo"))
        before.cut()
        await api.ask("DELETE", f"{DEPLOYMENTS.format(namespace)}/demo")
        await api.ask("PATCH", f"{RESOURCES.format(namespace)}/demo", {"spec": {"replicas": 3}}, MERGE)
        await asyncio.sleep(0.5)
        before.is_open = True
        await eventually(lambda: names_at(api, DEPLOYMENTS.format(namespace)))
        assert (await api.ask("GET", f"{DEPLOYMENTS.format(namespace)}/demo"))["spec"]["replicas"] == 3
        cluster.compact()  # history is forgotten: watches have to list again
        await roll_out(api, namespace, "demo")
        await eventually(lambda: is_complete(api, namespace))
        assert server.loop is not None, "it kept the Lease"


async def test_an_api_server_that_is_started_anew_finds_everything_kept_and_is_followed_again(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    resources, deployments = RESOURCES.format(namespace), DEPLOYMENTS.format(namespace)
    async with operator(cluster, namespace, lease_s=600) as server:
        await api.ask("POST", resources, resource())
        await eventually(lambda: state(api, namespace, "demo"))
        await eventually(lambda: names_at(api, CONFIG_MAPS.format(namespace)))
        before = [(await api.ask("GET", path))["items"] for path in (deployments, CONFIG_MAPS.format(namespace))]
        loop = server.loop
        assert loop is not None
        await asyncio.to_thread(cluster.stop)
        for key in list(loop.reconciler.endpoints):
            loop.queue.add(key)  # it is looked at while nobody answers, and while the API does not know all kinds yet
        await asyncio.sleep(1.0)
        await asyncio.to_thread(cluster.start)
        await api.ask("PATCH", f"{resources}/demo", {"spec": {"replicas": 3}}, MERGE)
        await eventually(lambda: has_replicas(api, namespace, 3), timeout_s=60.0)
        after = [(await api.ask("GET", path))["items"] for path in (deployments, CONFIG_MAPS.format(namespace))]
        assert [uids(each) for each in after] == [uids(each) for each in before], "nothing was deleted and made again"
        await roll_out(api, namespace, "demo")
        await eventually(lambda: is_complete(api, namespace))
        assert server.loop is loop, "it kept the Lease"


def uids(objects: list[dict[str, Any]]) -> dict[str, str]:
    return {each["metadata"]["name"]: each["metadata"]["uid"] for each in objects}


async def has_replicas(api: Api, namespace: str, replicas: int) -> bool:
    found = await api.ask("GET", f"{DEPLOYMENTS.format(namespace)}/demo")
    return bool(found["spec"]["replicas"] == replicas)


async def is_complete(api: Api, namespace: str) -> bool:
    return await state(api, namespace, "demo") == "DeploymentComplete"


async def says(server: OperatorServer, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{server.http}{path}") as answer:
        return answer.status, await answer.text()
