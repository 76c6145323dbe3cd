"""The operator on a real API that lets it do what its rules say and nothing else."""

from typing import Any

import pytest
from tests.endpoints import SPEC
from tests.integration.operator.controller.operators import (
    DAEMON_SETS,
    DEPLOYMENTS,
    MERGE,
    RESOURCES,
    condition,
    eventually,
    limited,
    names_at,
    operator,
    report_removal,
    resource,
)
from tests.kube import Api, Cluster

from tierline.operator.config import OperatorConfig
from tierline.operator.controller.planning import planner


async def told(api: Api, namespace: str, kind: str) -> dict[str, Any]:
    return await condition(api, namespace, "demo", kind)


async def test_it_makes_changes_tells_and_takes_away_all_that_endpoints_are_made_of(
    cluster: Cluster, api: Api, namespace: str, capfd: pytest.CaptureFixture[str]
) -> None:
    kubeconfig = await limited(cluster, api, namespace)
    deployments, events = DEPLOYMENTS.format(namespace), f"/api/v1/namespaces/{namespace}/events"
    async with operator(cluster, namespace, planner(OperatorConfig()), kubeconfig=kubeconfig):
        await api.ask("POST", RESOURCES.format(namespace), resource(**SPEC))
        await eventually(lambda: told(api, namespace, "Ready"))
        router = f"demo-{namespace}-router"
        assert await names_at(api, deployments) == ["demo", router]
        daemon_sets = DAEMON_SETS.format(namespace)
        await eventually(lambda: names_at(api, daemon_sets))
        assert await eventually(lambda: names_at(api, events))
        change = {"spec": {"autoScalingSpec": None, "replicas": 2, "kvCacheSpec": {"enableL2Cache": False}}}
        await api.ask("PATCH", f"{RESOURCES.format(namespace)}/demo", change, MERGE)
        await eventually(lambda: _are(api, daemon_sets, ["tierline-node-removal"]))
        await report_removal(api, namespace, available=2)
        await eventually(lambda: _are(api, daemon_sets, []))
        await api.ask("DELETE", f"{RESOURCES.format(namespace)}/demo")
        await eventually(lambda: _are(api, RESOURCES.format(namespace), []))
    said = "".join(capfd.readouterr())
    assert "this operator leads" in said
    assert "forbidden" not in said


async def _are(api: Api, path: str, names: list[str]) -> bool:
    return await names_at(api, path) == names
