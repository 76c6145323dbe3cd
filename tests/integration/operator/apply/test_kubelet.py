"""The kubelet of these tests runs pods as the operator's manifests need it."""

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tests.kube import Api, Cluster
from tests.kubelet import Machine, Machines, as_it_says, running_machines

pytestmark = pytest.mark.timeout(300)

WITHIN_SECONDS = 60
SERVES = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
print(*sys.argv[1:], open(sys.argv[1]).read(), open(os.environ["FILE"]).read(), flush=True)
http.server.HTTPServer((os.environ["POD_IP"], 8000), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def machines(cluster: Cluster) -> Iterator[Machines]:
    machines = [Machine(name, "ml.tests", {"pods": "9", "tests/gpu": "1"}) for name in ("one", "two")]
    with running_machines(cluster, {"image": as_it_says}, *machines) as running:
        yield running


def deployment(**container: object) -> Any:
    return {
        "metadata": {"name": "d"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "d"}},
            "template": {
                "metadata": {"labels": {"app": "d"}},
                "spec": {
                    "nodeSelector": {"node.kubernetes.io/instance-type": "ml.tests"},
                    "readinessGates": [{"conditionType": "tests/gate"}],
                    "volumes": [{"name": "made", "emptyDir": {}}, {"name": "secret", "secret": {"secretName": "s"}}],
                    "initContainers": [
                        {
                            "name": "makes", "image": "image:1", "command": ["sh", "-c", "printf made >/made/file"],
                            "volumeMounts": [{"name": "made", "mountPath": "/made"}],
                        }
                    ],
                    "containers": [
                        {
                            "name": "serves", "image": "image:1",
                            "command": [sys.executable, "-c", SERVES, "/made/file", "$(POD_IP)"],
                            "env": [
                                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                                {"name": "FILE", "value": "/etc/secret/token"},
                            ],
                            "ports": [{"name": "http", "containerPort": 8000}],
                            "readinessProbe": {"httpGet": {"port": "http", "path": "/"}},
                            "resources": {"limits": {"tests/gpu": "1"}},
                            "volumeMounts": [
                                {"name": "made", "mountPath": "/made"}, {"name": "secret", "mountPath": "/etc/secret"},
                            ],
                            **container,
                        }
                    ],
                },
            },
        },
    }  # fmt: skip


async def pods_of(api: Api, namespace: str, count: int, condition: str = "ContainersReady") -> list[Any]:
    """Wait until there are so many, all of that condition."""
    async with asyncio.timeout(WITHIN_SECONDS):
        while True:
            pods: list[Any] = (await api.ask("GET", f"/api/v1/namespaces/{namespace}/pods"))["items"]
            said = [{each["type"]: each["status"] for each in pod["status"].get("conditions", ())} for pod in pods]
            if len(pods) == count and all(each.get(condition) == "True" for each in said):
                return pods
            await asyncio.sleep(0.1)


async def test_a_deployment_s_pods_are_processes_with_addresses_of_their_own_and_go_with_it(
    api: Api, machines: Machines
) -> None:
    namespace = await api.new_namespace()
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    await api.ask("POST", path, deployment())
    secret = {"metadata": {"name": "s"}, "stringData": {"token": "hidden"}}
    await api.ask("POST", f"/api/v1/namespaces/{namespace}/secrets", secret)  # what is missing is waited for
    first, second = pods = await pods_of(api, namespace, 2)
    assert {pod["spec"]["nodeName"] for pod in pods} == {"one", "two"}
    assert first["status"]["podIP"] != second["status"]["podIP"]
    for pod in pods:
        logs = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}/log?container=serves"
        async with api.session.get(logs) as answer:
            assert (await answer.text()).splitlines()[0].endswith(f"/file {pod['status']['podIP']} made hidden")
    conditions = await api.conditions(namespace, first["metadata"]["name"])
    assert conditions["Ready"] == "False", "its gate is closed"
    for pod in pods:
        gate = {"status": {"conditions": [{"type": "tests/gate", "status": "True"}]}}
        at = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}/status"
        await api.ask("PATCH", at, gate, "application/strategic-merge-patch+json")
    await pods_of(api, namespace, 2, "Ready")
    await api.ask("DELETE", f"{path}/d", {"propagationPolicy": "Background"})
    await pods_of(api, namespace, 0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(first["status"]["podIP"], 8000)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": "nobody/knows:1"}, "ImagePullBackOff"),
        ({"command": ["sh", "-c", "exit 3"]}, "CrashLoopBackOff"),
    ],
)
async def test_what_cannot_run_says_why(api: Api, machines: Machines, change: Any, reason: str) -> None:
    namespace = await api.new_namespace()
    secret = {"metadata": {"name": "s"}, "stringData": {"token": "hidden"}}
    await api.ask("POST", f"/api/v1/namespaces/{namespace}/secrets", secret)
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    await api.ask("POST", path, deployment(**change))
    async with asyncio.timeout(WITHIN_SECONDS):
        said = ""
        while reason not in said:
            said = json.dumps(await api.ask("GET", f"/api/v1/namespaces/{namespace}/pods"))
            await asyncio.sleep(0.1)
    await api.ask("DELETE", f"{path}/d", {"propagationPolicy": "Background"})
    await pods_of(api, namespace, 0)
