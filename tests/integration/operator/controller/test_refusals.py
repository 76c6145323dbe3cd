"""An API that refuses, is silent, or breaks off: endpoints come out as they are to be, and serve all along."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import pytest
from tests.endpoints import SPEC
from tests.integration.operator.controller.operators import (
    DEPLOYMENTS,
    RESOURCES,
    Kinds,
    condition,
    eventually,
    operator,
    resource,
    roll_out,
    state,
)
from tests.kube import Api, Cluster
from tests.reading_gate import Answer, Asked, ReadingGate, Rule, half_a_body, reading_gate, says, silence

from tierline.operator.config import OperatorConfig
from tierline.operator.controller.planning import planner
from tierline.operator.controller.server import OperatorServer
from tierline.operator.names import OWNER_UID

pytestmark = pytest.mark.timeout(600)

WITHIN_SECONDS = 240.0
PASSING: dict[str, Answer] = {
    "conflict": says(409, "Conflict"),
    "throttled": says(429, "TooManyRequests", Retry_After="1"),
    "broken": says(500, "InternalError"),
    "away": says(503, "ServiceUnavailable"),
    "silent": silence,
    "cut": half_a_body,
}
ASKED = {
    "resource": ("GET", "/inferenceendpointconfigs/"),
    "secret": ("POST", "/secrets"),
    "policy": ("PATCH", "/networkpolicies/"),
    "workers": ("PATCH", "/deployments/"),
    "status": ("PUT", "/status"),
}
REFUSED = [
    (what, how)
    for first, what in enumerate(ASKED)
    for how in [*PASSING, *PASSING][first : first + 3]  # each of them in every way would take four times as long
]
NOT_NEEDED = {
    "policy": "/apis/networking.k8s.io/v1/namespaces/{0}/networkpolicies/{1}",
    "budget": "/apis/policy/v1beta1/namespaces/{0}/poddisruptionbudgets/{1}",
    "certificate": "/api/v1/namespaces/{0}/secrets/{1}-{0}-tls",
}
ANSWERS = {**PASSING, "forbidden": says(403, "Forbidden")}
MISSING = [
    *(("policy", how) for how in ANSWERS),
    ("budget", "broken"),
    ("certificate", "away"),
    ("certificate", "forbidden"),
]


@pytest.fixture(autouse=True)
def impatient(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have tests cross what takes minutes: time-outs, what no watch has shown, and the next look at what is well."""
    monkeypatch.setattr("tierline.kube.cluster.ANSWER_SECONDS", 2.0)
    monkeypatch.setattr("tierline.operator.controller.queue.FIRST_RETRY_SECONDS", 0.1)
    monkeypatch.setattr("tierline.operator.controller.children.UNSEEN_SECONDS", 1.0)
    monkeypatch.setattr("tierline.operator.controller.looping.RESYNC_SECONDS", 1.0)


def about(name: str, method: str, path: str, answer: Answer, times: int) -> Rule:
    """Answer the first requests of a kind that are about an object, by its path or by what is sent."""

    def wants(asked: Asked) -> bool:
        is_named = name in asked.path or f'"{name}'.encode() in asked.body
        return asked.method == method and path in asked.path and "watch=true" not in asked.path and is_named

    return Rule(wants, answer, times)


@asynccontextmanager
async def gated(
    cluster: Cluster, namespace: str, rules: list[Rule]
) -> AsyncIterator[tuple[OperatorServer, ReadingGate]]:
    """Run an operator whose requests pass a gate."""
    async with reading_gate(cluster, rules) as gate:
        kubeconfig = cluster.kubeconfig(f"gate-{namespace}", port=gate.port)
        async with operator(cluster, namespace, planner(OperatorConfig()), kubeconfig=kubeconfig, lease_s=60) as server:
            yield server, gate


async def complete(api: Api, namespace: str, name: str) -> None:
    """Have an endpoint's pods be there, and wait until it is ready."""
    deployments = DEPLOYMENTS.format(namespace)
    for deployment in (name, f"{name}-{namespace}-router"):
        await eventually(lambda: is_there(api, f"{deployments}/{deployment}"), timeout_s=WITHIN_SECONDS)  # noqa: B023
        await roll_out(api, namespace, deployment)
    await eventually(lambda: is_complete(api, namespace, name), timeout_s=WITHIN_SECONDS)


async def is_there(api: Api, path: str) -> bool:
    async with api.session.get(path) as answer:
        return answer.status == 200


async def is_complete(api: Api, namespace: str, name: str) -> bool:
    return await state(api, namespace, name) == "DeploymentComplete"


async def test_whatever_is_refused_for_a_while_comes_out_right_and_then_nothing_is_written(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    rules = [about(f"{what}-{how}", *ASKED[what], PASSING[how], times=2) for what, how in REFUSED]
    rules.append(about("tierline-node", "PATCH", "/daemonsets/", PASSING["broken"], times=2))
    names = ["calm", *(f"{what}-{how}" for what, how in REFUSED)]
    async with gated(cluster, namespace, rules) as (server, gate):
        uids = {}
        for name in names:
            made = await api.ask("POST", RESOURCES.format(namespace), resource(name, **SPEC))
            uids[name] = made["metadata"]["uid"]
        for name in names:
            await complete(api, namespace, name)
        await eventually(lambda: all(rule.used == rule.times for rule in rules), timeout_s=WITHIN_SECONDS)
        kinds = await Kinds.of(cluster, api)
        found = {
            name: [each.replace(name, "NAME") for each in await kinds.labelled(f"{OWNER_UID}={uid}")]
            for name, uid in uids.items()
        }
        assert all(each == found["calm"] for each in found.values()), found
        await is_steady(server, gate)


async def is_steady(server: OperatorServer, gate: ReadingGate) -> None:
    """Wait until nothing is written any more, and see that it stays so while each endpoint is looked at twice more."""
    assert server.loop is not None
    looks, count = server.loop.looks, len(server.loop.reconciler.endpoints)
    before = -1
    while before != len(gate.writes):
        before, looked = len(gate.writes), looks.total()
        await eventually(lambda: looks.total() >= looked + count, timeout_s=WITHIN_SECONDS)  # noqa: B023
    await eventually(lambda: looks.total() >= looked + 3 * count, timeout_s=WITHIN_SECONDS)
    assert gate.writes[before:] == []


async def test_an_endpoint_stays_ready_while_what_it_does_not_need_cannot_be_written(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    cases = {
        f"{what}-{how}": (NOT_NEEDED[what].format(namespace, f"{what}-{how}"), ANSWERS[how]) for what, how in MISSING
    }
    path = RESOURCES.format(namespace)
    async with gated(cluster, namespace, []) as (server, gate):
        for name in cases:
            await api.ask("POST", path, resource(name, **SPEC))
        for name in cases:
            await complete(api, namespace, name)
        listed = await api.ask("GET", path)
        said: list[tuple[str, str, str]] = []
        following = asyncio.create_task(follow(api, path, listed["metadata"]["resourceVersion"], said))
        for name, (child, answer) in cases.items():
            folder = child.rpartition("/")[0]
            method = "POST" if "secrets" in folder else "PATCH"
            gate.rules.append(about(name, method, folder, answer, times=2))
            await api.ask("DELETE", child)
        for child, _ in cases.values():
            await eventually(lambda: is_there(api, child), timeout_s=WITHIN_SECONDS)  # noqa: B023
        assert all(rule.used == rule.times for rule in gate.rules)
        await is_steady(server, gate)
        following.cancel()
    for name in cases:
        assert [each for each in said if each[:2] == (name, "Ready") and each[2] != "True"] == [], name
    assert ("policy-forbidden", "ProtectionReady", "False") in said
    assert ("certificate-forbidden", "TLSReady", "False") in said
    for name, kind in (("policy-forbidden", "ProtectionReady"), ("certificate-forbidden", "TLSReady")):
        assert (await condition(api, namespace, name, kind)).get("status", "True") == "True", "it is over"


async def test_a_kind_that_is_never_answered_for_holds_back_nothing_but_itself(
    cluster: Cluster, api: Api, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierline.kube.cluster.ANSWER_SECONDS", 1.0)
    monkeypatch.setattr("tierline.operator.controller.reconciling.PATIENCE_SECONDS", 0.5)
    async with gated(cluster, namespace, [about("demo", "PATCH", "/networkpolicies/", silence, times=1_000_000)]):
        await api.ask("POST", RESOURCES.format(namespace), resource(**SPEC))
        await complete(api, namespace, "demo")
        found = await condition(api, namespace, "demo", "ProtectionReady")
        assert found["status"] == "False"
        assert "did not answer in time" in found["message"]


async def follow(api: Api, path: str, version: str, said: list[tuple[str, str, str]]) -> None:
    """Note each condition that is ever said of a resource."""
    query = f"watch=true&resourceVersion={quote(version)}"
    async with api.session.get(f"{path}?{query}", read_bufsize=2**22) as answer:
        async for line in answer.content:
            given: Any = json.loads(line)["object"]
            name, conditions = given["metadata"]["name"], given.get("status", {}).get("conditions", ())
            said += [(name, each["type"], each["status"]) for each in conditions]
