"""The chart on a real API server, by Helm's own library: installed, changed, removed; its kinds and rights in force."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.integration.operator.controller.operators import DEPLOYMENTS, RESOURCES, eventually, names_at, resource
from tests.kube import Api, Cluster, running_cluster
from tests.ports import free_port

from tierline.configuration import load
from tierline.operator import admission
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.planning import planner
from tierline.operator.controller.server import running
from tierline.operator.crds import KINDS
from tierline.operator.manifests.rights import REGISTRATION

helm = pytest.importorskip("helm_python")

CHART = Path(__file__).parents[3] / "deploy/chart"
NAME = "hyperpod-inference-operator-controller-manager"
NAMESPACE = "hyperpod-inference-system"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ASKED = [f"/apis/admissionregistration.k8s.io/v1/{kind}webhookconfigurations" for kind in ("mutating", "validating")]
ROLES = "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles"
TRIGGER = {"prometheusTrigger": {"query": "vector(1)", "targetValue": 2, "serverAddress": "http://prometheus"}}
ENDPOINT = {
    "intelligentRoutingSpec": {"enabled": True},
    "kvCacheSpec": {"enableL2Cache": True, "l2CacheSpec": {"l2CacheBackend": "tieredstorage"}},
    "autoScalingSpec": TRIGGER,
    "kubernetes": {"volumes": [{"name": "weights", "emptyDir": {}}]},
}
WRONG = ENDPOINT | {"instanceType": "ml.g5.24xlarge", "instanceTypes": ["ml.g5.24xlarge"]}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("kube")) as cluster:
        yield cluster


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[Api]:
    async with cluster.connected() as api:
        yield api


@pytest.fixture
async def release(cluster: Cluster) -> AsyncIterator["Release"]:
    with helm.Config(kubeconfig_path=cluster.kubeconfig("helm.yaml"), namespace=NAMESPACE) as config:
        yield Release(config)
        await asyncio.to_thread(config.uninstall, "tierline", ignore_not_found=True)


class Release:
    """What `helm` does, beside the loop."""

    def __init__(self, config: Any) -> None:
        self._config = config

    async def install(self, values: dict[str, Any]) -> None:
        await asyncio.to_thread(self._config.install, CHART, "tierline", values, create_namespace=True)

    async def upgrade(self, values: dict[str, Any]) -> None:
        await asyncio.to_thread(self._config.upgrade, CHART, "tierline", values)

    async def uninstall(self) -> None:
        await asyncio.to_thread(self._config.uninstall, "tierline")


async def crds(api: Api) -> set[str]:
    return {item["metadata"]["name"] for item in (await api.ask("GET", CRDS))["items"]}


async def allowed(api: Api, namespace: str, group: str, kind: str, verb: str, name: str = "") -> bool:
    """Whether the operator's account may do something."""
    attributes = {"namespace": namespace, "group": group, "resource": kind, "verb": verb, "name": name}
    asked = {"spec": {"user": f"system:serviceaccount:{NAMESPACE}:{NAME}", "resourceAttributes": attributes}}
    answer = await api.ask("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", asked)
    return bool(answer["status"]["allowed"])


async def test_the_operator_is_installed_changed_and_removed_and_its_kinds_stay(release: Release, api: Api) -> None:
    await release.install({})
    path = f"{DEPLOYMENTS.format(NAMESPACE)}/{NAME}"
    installed = await api.ask("GET", path)
    assert await crds(api) == {kind.crd_name for kind in KINDS}

    await release.upgrade({"replicas": 2, "settings": {"node_share_percent": 30}})
    changed = await api.ask("GET", path)
    assert (installed["spec"]["replicas"], changed["spec"]["replicas"]) == (1, 2)
    annotations = [each["spec"]["template"]["metadata"]["annotations"] for each in (installed, changed)]
    assert annotations[0] != annotations[1]

    await release.uninstall()
    assert await names_at(api, DEPLOYMENTS.format(NAMESPACE)) == []
    assert await crds(api) == {kind.crd_name for kind in KINDS}
    await release.install({})  # what was left is taken over


@pytest.mark.parametrize("is_everywhere", [True, False])
async def test_its_rights_are_enough_for_the_operator_and_reach_no_further(
    is_everywhere: bool, release: Release, cluster: Cluster, api: Api, tmp_path: Path
) -> None:
    team = await api.new_namespace()
    watched: dict[str, Any] = {} if is_everywhere else {"watchedNamespaces": [team]}
    await release.install(watched)
    token = await api.ask("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{NAME}/token", {"spec": {}})
    settings = await api.ask("GET", f"/api/v1/namespaces/{NAMESPACE}/configmaps/tierline-operator")
    (tmp_path / "operator.yaml").write_text(settings["data"]["operator.yaml"])
    kubeconfig = cluster.kubeconfig(f"{team}.yaml", token=token["status"]["token"])
    address = f"127.0.0.1:{free_port()}"
    flags = {"kubeconfig": kubeconfig, "http": "", "webhook": address, "webhook_address": f"https://{address}"}
    config = load(OperatorConfig, tmp_path / "operator.yaml", flags)
    await eventually(partial(_has_rights, api, team))

    async with running(config, planner(config)) as server:
        await api.ask("POST", RESOURCES.format(team), resource("demo", **ENDPOINT))
        wanted = {"demo", f"demo-{team}-router"}
        await eventually(lambda: _has(api, DEPLOYMENTS.format(team), wanted))
        await eventually(lambda: _has(api, ROLES.format(team), {f"demo-{team}-router"}))
        stores = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets"
        await eventually(lambda: _has(api, stores, {"tierline-node"}))
        found = await eventually(lambda: _status(api, f"{RESOURCES.format(team)}/demo"))
        assert "forbidden" not in str(found)
        for path in ASKED:
            # What Helm made is completed by the operator, and stays Helm's to take away.
            assert await eventually(partial(_trusted, api, f"{path}/{admission.configuration_name(NAMESPACE)}"))
        await release.upgrade({"replicas": 2, **watched})
        for path in ASKED:
            assert await _trusted(api, f"{path}/{admission.configuration_name(NAMESPACE)}")
        # A Service leads nowhere here, where no machine has rules for it.
        for path in ASKED:
            place = "/webhooks/0/clientConfig"
            asked = [
                {"op": "remove", "path": f"{place}/service"},
                {"op": "add", "path": f"{place}/url", "value": f"https://{address}{admission.PATH}"},
            ]
            name = admission.configuration_name(NAMESPACE)
            await api.ask("PATCH", f"{path}/{name}", asked, "application/json-patch+json")
        await eventually(partial(_is_refused, api, f"{RESOURCES.format(team)}?dryRun=All", resource("wrong", **WRONG)))
        assert server.loop is not None
        assert server.loop.watch_failures == 0

    await release.uninstall()
    for path in ASKED:
        assert await names_at(api, path) == []
    await eventually(partial(_has_rights, api, team, of=0))
    await release.install(watched)
    await eventually(partial(_has_rights, api, team))
    assert not await allowed(api, team, "", "pods", "delete")
    assert not await allowed(api, "", "rbac.authorization.k8s.io", "clusterroles", "create")
    for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        assert await allowed(api, "", REGISTRATION, kind, "patch", admission.configuration_name(NAMESPACE))
        assert not await allowed(api, "", REGISTRATION, kind, "patch", admission.configuration_name("another"))
        assert not await allowed(api, "", REGISTRATION, kind, "create")
    assert await allowed(api, "another", "apps", "deployments", "patch") == is_everywhere


async def _has_rights(api: Api, team: str, of: int = 4) -> bool:
    """Whether so many of the rights that the operator works by are in force; the API server learns of them later."""
    return of == sum(
        [
            await allowed(api, "", "", "nodes", "list"),
            await allowed(api, NAMESPACE, "coordination.k8s.io", "leases", "get"),
            await allowed(api, NAMESPACE, "apps", "deployments", "patch"),
            await allowed(api, team, "apps", "deployments", "patch"),
        ]
    )


async def _trusted(api: Api, path: str) -> bool:
    """Whether it is known by which authority the operator's certificate is signed."""
    configuration = await api.ask("GET", path)
    [webhook] = configuration["webhooks"]
    assert configuration["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"
    assert webhook["clientConfig"]["service"]["namespace"] == NAMESPACE
    return "caBundle" in webhook["clientConfig"]


async def _is_refused(api: Api, path: str, wrong: dict[str, Any]) -> bool:
    async with api.session.post(path, json=wrong) as answer:
        message = (await answer.json()).get("message", "")
        return answer.status == 422 and "denied the request" in message and "spec.instanceTypes" in message


async def _has(api: Api, path: str, wanted: set[str]) -> bool:
    return wanted <= set(await names_at(api, path))


async def _status(api: Api, path: str) -> Any:
    return (await api.ask("GET", path)).get("status", {}).get("conditions")
