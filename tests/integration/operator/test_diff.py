"""``tierline operator diff`` beside a real API: it sees what would be otherwise, and changes nothing."""

import asyncio
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.endpoints import SPEC
from tests.integration.operator.controller.operators import APPLY, RESOURCES, install
from tests.kube import Cluster, running_cluster

from tierline.kube.cluster import connected_cluster
from tierline.operator import catalogue
from tierline.operator.comparing import Difference, compare, seen
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.discovering import discover
from tierline.operator.names import API_VERSION, FIELD_MANAGER
from tierline.operator.rendering import endpoints_of, render

CONFIG = OperatorConfig(namespace="default")


def resource(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "InferenceEndpointConfig",
        "metadata": {"name": "demo", "namespace": "default"},
        "spec": {**SPEC, **(changes or {})},
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("kube")) as started:
        yield started


@pytest.fixture(scope="module")
def kubeconfig(server: Cluster) -> Path:
    return server.kubeconfig("diff.yaml")


async def differences(
    kubeconfig: Path, changes: Mapping[str, Any] | None = None, config: OperatorConfig = CONFIG
) -> list[Difference]:
    endpoints, _ = endpoints_of([resource(changes)], catalogue.read(None))
    async with connected_cluster(kubeconfig, FIELD_MANAGER) as cluster:
        capabilities, served = await discover(cluster)
        known = [await seen(cluster, endpoint) for endpoint in endpoints]
        return await compare(cluster, served, known, capabilities, config)


@pytest.fixture
async def made(server: Cluster, kubeconfig: Path) -> None:
    """An endpoint in the cluster, with all that it is made of."""
    async with server.connected() as api:
        await install(api)
        for name in ("default", "hyperpod-inference-system"):
            async with api.session.post("/api/v1/namespaces", json={"metadata": {"name": name}}):
                pass
        path = f"{RESOURCES.format('default')}/demo?fieldManager=tests&force=true"
        await api.ask("PATCH", path, resource(), APPLY)
    endpoints, _ = endpoints_of([resource()], catalogue.read(None))
    async with connected_cluster(kubeconfig, FIELD_MANAGER) as cluster:
        capabilities, served = await discover(cluster)
        known = [await seen(cluster, endpoint) for endpoint in endpoints]
        for manifest in render(known, capabilities, CONFIG).manifests:
            await cluster.apply(served[manifest["apiVersion"], manifest["kind"]], manifest)


async def run(kubeconfig: Path, changes: Mapping[str, Any] | None = None) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tierline", "operator", "diff", "-", "--kubeconfig", str(kubeconfig)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(yaml.safe_dump(resource(changes)).encode())
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


@pytest.mark.usefixtures("made")
async def test_what_is_as_it_should_be_is_not_told_of(kubeconfig: Path) -> None:
    assert await differences(kubeconfig) == []


@pytest.mark.usefixtures("made")
async def test_another_strategy_is_another_router_and_nothing_else(kubeconfig: Path) -> None:
    found = await differences(kubeconfig, {"intelligentRoutingSpec": {"enabled": True, "routingStrategy": "session"}})
    assert [str(each.object) for each in found] == ["Deployment default/demo-default-router"]
    changed = [line.strip() for line in found[0].lines if line[0] in "+-" and not line.startswith(("---", "+++"))]
    assert changed == ["-          value: prefixaware", "+          value: session"]


@pytest.mark.usefixtures("made")
async def test_an_upgrade_that_waits_for_other_changes_leaves_workers_as_they_are(kubeconfig: Path) -> None:
    workers = "Deployment default/demo"
    upgraded = CONFIG.model_copy(update={"image": "ours:2"})
    found = {str(each.object) for each in await differences(kubeconfig, config=upgraded)}
    assert "Deployment default/demo-default-router" in found
    assert workers not in found
    at_once = upgraded.model_copy(update={"worker_updates": "at-once"})
    assert workers in {str(each.object) for each in await differences(kubeconfig, config=at_once)}


@pytest.mark.usefixtures("made")
async def test_what_would_go_and_what_would_come_are_told_of(kubeconfig: Path) -> None:
    found = await differences(kubeconfig, {"intelligentRoutingSpec": {"enabled": False}})
    gone = {str(each.object) for each in found if each.lines[1].startswith("+++ /dev/null")}
    assert {"Deployment default/demo-default-router", "Role default/demo-default-router"} <= gone
    assert "Deployment default/demo" not in gone


@pytest.mark.usefixtures("made")
async def test_looking_changes_nothing(kubeconfig: Path) -> None:
    await differences(kubeconfig, {"replicas": 7})
    assert await differences(kubeconfig) == []


@pytest.mark.usefixtures("made")
async def test_the_exit_status_says_whether_something_would_be_otherwise(kubeconfig: Path) -> None:
    # The operator's own namespace is another one by default, where nothing is yet.
    status, output, errors = await run(kubeconfig, {"replicas": 7})
    assert status == 1, errors
    assert "--- cluster/Deployment/default/demo\n+++ wanted/Deployment/default/demo\n" in output
    assert "--- /dev/null\n+++ wanted/DaemonSet/hyperpod-inference-system/tierline-node\n" in output
    status, output, errors = await run(kubeconfig, {"replicas": "many"})
    assert (status, output) == (2, "")
    assert "spec.replicas" in errors
