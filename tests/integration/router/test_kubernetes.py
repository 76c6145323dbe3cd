"""A Kubernetes cluster as the source of endpoints: against a real API, cut off and brought back."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from tests.integration.router.backend import (
    DONE,
    EVENT,
    STREAM_HEAD,
    Backend,
    Behaviour,
    Received,
    answering,
    backends,
    chat,
    chunk,
    client,
    router,
    until,
    until_models_are_known,
    whole,
)
from tests.kube import TOKEN, Api, Cluster, gate, running_cluster
from tests.ports import free_port

from tierline.errors import UsageError
from tierline.router.config import RouterConfig
from tierline.router.discovery.kubernetes import ROUTABLE
from tierline.router.server import RouterServer, start

RBAC = Path(__file__).parents[3] / "deploy/router-rbac.yaml"
GATE_RBAC = RBAC.with_name("router-readiness-gate.yaml")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("kube")) as cluster:
        yield cluster


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[Api]:
    async with cluster.connected() as api:
        yield api


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierline.kube.api.BACKOFF_SECONDS", (0.05,))
    monkeypatch.setattr("tierline.router.discovery.kubernetes.FIRST_SET_SECONDS", 60.0)


def urls(server: RouterServer) -> list[str]:
    return sorted(endpoint.url for endpoint in server.services.endpoints.all if not endpoint.is_draining)


def local(*listed: int) -> list[str]:
    return sorted(f"http://127.0.0.1:{port}" for port in listed)


def counted(server: RouterServer, name: str) -> float:
    page = server.services.metrics.exposition()[0].decode()
    return next(float(line.split()[1]) for line in page.splitlines() if line.startswith(f"tierline_router_{name} "))


async def test_pods_serve_while_they_are_ready_and_drain_when_they_leave(cluster: Cluster, api: Api) -> None:
    namespace = await api.new_namespace()
    step = asyncio.Event()

    async def stream(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(EVENT))
        await step.wait()
        writer.write(chunk(DONE) + b"0\r\n\r\n")

    async with backends(stream, answering(whole())) as (first, second):
        await api.create_pod(namespace, "first", first.port)
        await api.create_pod(namespace, "other", 1, labels={"app": "other"})
        await api.create_pod(namespace, "second", second.port, is_ready=False)
        kubeconfig = cluster.kubeconfig("config")
        async with (
            router(kubernetes_pods=(f"{namespace}:app=vllm",), kubeconfig=kubeconfig) as server,
            client(server) as peer,
        ):
            assert urls(server) == local(first.port)
            assert server.services.endpoints.all[0].source == f"kubernetes {namespace}:app=vllm"
            await peer.send(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}")
            await until(lambda: len(first.requests) == 1)
            await api.set_conditions(namespace, "second", Ready=True)
            await until(lambda: urls(server) == local(first.port, second.port))
            await api.delete_pod(namespace, "first")
            await until(lambda: urls(server) == local(second.port))
            async with client(server) as other:
                assert (await other.ask(chat())).fields["x-tierline-endpoint"] == second.url
            step.set()
            assert (await peer.answer()).body.endswith(DONE)
            await until(lambda: len(server.services.endpoints.all) == 1)
            await api.set_conditions(namespace, "second", Ready=False)
            await until(lambda: urls(server) == [])


async def test_a_condition_takes_a_pod_out_of_the_traffic_and_lets_it_in_again(cluster: Cluster, api: Api) -> None:
    namespace = await api.new_namespace()
    await api.create_pod(namespace, "a", 8001)
    async with router(kubernetes_pods=(f"{namespace}:app=vllm",), kubeconfig=cluster.kubeconfig("config")) as server:
        assert urls(server) == local(8001)
        await api.set_conditions(namespace, "a", **{"Ready": True, "tierline.ai/routable": False})
        await until(lambda: urls(server) == [])
        await api.set_conditions(namespace, "a", **{"Ready": True, "tierline.ai/routable": True})
        await until(lambda: urls(server) == local(8001))


async def test_a_pod_whose_readiness_waits_for_the_router_is_let_in_once_it_is_healthy(
    cluster: Cluster, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = await api.new_namespace()
    await use_account_of_a_pod(cluster, api, namespace, tmp_path, monkeypatch, RBAC, GATE_RBAC)
    async with backends(answering(whole())) as (backend,):
        for name, port in (("good", backend.port), ("down", free_port())):
            await api.create_pod(namespace, name, port, is_ready=False, gates=["tierline.ai/routable"])
            await api.set_conditions(namespace, name, ContainersReady=True, Ready=False)
        async with router(
            kubernetes_pods=(f"{namespace}:app=vllm",), kubernetes_readiness_gate=True, health_interval_s=0.1
        ) as server:
            assert len(urls(server)) == 2
            async with asyncio.timeout(60):
                while (await api.conditions(namespace, "good")).get(ROUTABLE) != "True":  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert "tierline.ai/routable" not in await api.conditions(namespace, "down")
            taken_out = {"ContainersReady": True, "Ready": False, "tierline.ai/routable": False}
            await api.set_conditions(namespace, "good", **taken_out)
            await until(lambda: urls(server) == [url for url in urls(server) if url != backend.url])
            await asyncio.sleep(1.0)
            assert (await api.conditions(namespace, "good"))["tierline.ai/routable"] == "False", "it was meant"


async def test_annotations_are_followed_and_a_wrong_one_changes_nothing(cluster: Cluster, api: Api) -> None:
    namespace = await api.new_namespace()
    await api.create_pod(namespace, "a", 8001, annotations={"tierline.ai/weight": "2", "tierline.ai/roles": "prefill"})
    async with router(kubernetes_pods=(f"{namespace}:app=vllm",), kubeconfig=cluster.kubeconfig("config")) as server:
        endpoint = server.services.endpoints.all[0]
        assert (endpoint.weight, endpoint.roles) == (2.0, frozenset({"prefill"}))
        await api.annotate(namespace, "a", weight="3")
        await until(lambda: endpoint.weight == 3.0)
        await api.annotate(namespace, "a", weight="many")
        await until(lambda: counted(server, "kubernetes_failures_total") == 1)
        await api.create_pod(namespace, "b", 8002)
        await until(lambda: urls(server) == local(8001, 8002))
        assert endpoint.weight == 3.0


async def test_while_pods_roll_to_other_weights_each_is_handed_only_what_its_own_computed(
    cluster: Cluster, api: Api
) -> None:
    namespace = await api.new_namespace()

    def prefilling(weights: str) -> Behaviour:
        return answering(whole(body=json.dumps({"choices": [], "kv_transfer_params": {"of": weights}}).encode()))

    def handed(backend: Backend) -> set[str | None]:
        bodies = [json.loads(received.body) for received in backend.requests]
        return {body.get("kv_transfer_params", {"of": None})["of"] for body in bodies}

    async with backends(prefilling("a"), prefilling("b"), prefilling("c"), *[answering(whole())] * 4) as (
        pa,
        pb,
        moving,
        da,
        db,
        unsure,
        unsaid,
    ):
        pods = {
            "pa": (pa, "prefill", "a"),
            "pb": (pb, "prefill", "b"),
            "moving": (moving, "prefill", "own"),
            "da": (da, "decode", "a"),
            "db": (db, "decode", "b"),
            "unsure": (unsure, "decode", "own"),
            "unsaid": (unsaid, "decode", None),
        }
        for name, (backend, role, weights) in pods.items():
            said = {"tierline.ai/roles": role} | ({"tierline.ai/weights": weights} if weights is not None else {})
            await api.create_pod(namespace, name, backend.port, annotations=said)
        async with (
            router(
                kubernetes_pods=(f"{namespace}:app=vllm",),
                kubeconfig=cluster.kubeconfig("config"),
                strategy="roundrobin",
                prefill_threshold=0,
            ) as server,
            client(server) as peer,
        ):
            await until_models_are_known(server)
            assert {(await peer.ask(chat())).status for _ in range(8)} == {200}
            assert [handed(each) for each in (da, db, unsure, unsaid)] == [{"a"}, {"b"}, {None}, {None}]
            await api.delete_pod(namespace, "pb")
            await until(lambda: pb.url not in urls(server))
            db.requests.clear()
            assert {(await peer.ask(chat())).status for _ in range(8)} == {200}
            assert handed(db) == {None}, "those that are left are of other weights"
            assert handed(da) == {"a"}
            assert 'prefill_fallbacks_total{reason="weights"}' in server.services.metrics.exposition()[0].decode()
            assert not moving.requests


async def test_the_ready_endpoints_of_a_service_are_followed(cluster: Cluster, api: Api) -> None:
    namespace = await api.new_namespace()
    ports = [{"name": "metrics", "port": 9}, {"name": "http", "port": 8000}]

    def listed(**ready: bool) -> list[dict[str, Any]]:
        return [
            {"addresses": [f"10.9.8.{number[1:]}"], "conditions": {"ready": value}} for number, value in ready.items()
        ]

    await api.put_slice(namespace, "vllm-1", "vllm", listed(n1=True, n2=False), ports)
    await api.put_slice(namespace, "other-1", "other", listed(n9=True), ports)
    async with router(
        kubernetes_services=(f"{namespace}/vllm",), kubeconfig=cluster.kubeconfig("config"), health_interval_s=60
    ) as server:
        assert urls(server) == ["http://10.9.8.1:8000"]
        await api.put_slice(namespace, "vllm-2", "vllm", listed(n3=True), ports)
        await until(lambda: urls(server) == ["http://10.9.8.1:8000", "http://10.9.8.3:8000"])
        await api.put_slice(namespace, "vllm-1", "vllm", listed(n1=False, n2=True), ports)
        await until(lambda: urls(server) == ["http://10.9.8.2:8000", "http://10.9.8.3:8000"])


async def test_while_the_api_is_away_the_last_set_stays_and_what_changed_is_caught_up_with(
    cluster: Cluster, api: Api
) -> None:
    namespace = await api.new_namespace()
    await api.create_pod(namespace, "a", 8001)
    await api.create_pod(namespace, "b", 8002)
    async with (
        gate(cluster) as standing,
        router(
            kubernetes_pods=(f"{namespace}:app=vllm",), kubeconfig=cluster.kubeconfig("gated", port=standing.port)
        ) as server,
    ):
        assert urls(server) == local(8001, 8002)
        assert counted(server, "kubernetes_sources_behind") == 0
        standing.cut()
        await api.delete_pod(namespace, "a")
        await api.create_pod(namespace, "c", 8003)
        await until(lambda: counted(server, "kubernetes_failures_total") >= 3)
        assert urls(server) == local(8001, 8002)
        assert counted(server, "kubernetes_sources_behind") == 1
        standing.is_open = True
        await until(lambda: urls(server) == local(8002, 8003))
        assert counted(server, "kubernetes_sources_behind") == 0


async def test_history_that_the_api_has_forgotten_is_no_failure(
    cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tierline.kube.api.WATCH_SECONDS", 1)
    namespace, elsewhere = await api.new_namespace(), await api.new_namespace()
    await api.create_pod(namespace, "a", 8001)
    printed = ""

    def begins_anew() -> bool:
        nonlocal printed
        printed += "".join(capsys.readouterr())
        return "too far behind" in printed

    async with router(kubernetes_pods=(f"{namespace}:app=vllm",), kubeconfig=cluster.kubeconfig("config")) as server:
        await api.create_pod(elsewhere, "x", 1)
        await asyncio.to_thread(cluster.compact)
        await until(begins_anew)
        await api.create_pod(namespace, "b", 8002)
        await until(lambda: urls(server) == local(8001, 8002))
        assert counted(server, "kubernetes_failures_total") == 0


async def test_a_router_starts_without_the_api_and_has_the_endpoints_when_it_answers(
    cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierline.router.discovery.kubernetes.FIRST_SET_SECONDS", 0.1)
    namespace = await api.new_namespace()
    await api.create_pod(namespace, "a", 8001)
    async with gate(cluster) as standing:
        standing.is_open = False
        async with router(
            "http://127.0.0.1:9",
            kubernetes_pods=(f"{namespace}:app=vllm",),
            kubeconfig=cluster.kubeconfig("gated", port=standing.port),
        ) as server:
            assert urls(server) == local(9)
            standing.is_open = True
            await until(lambda: urls(server) == local(9, 8001))


async def test_a_way_to_the_cluster_that_changes_is_read_again(
    cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierline.router.discovery.kubernetes.FIRST_SET_SECONDS", 0.1)
    namespace = await api.new_namespace()
    await api.create_pod(namespace, "a", 8001)
    file = cluster.kubeconfig("changing", token="unknown")
    async with router(kubernetes_pods=(f"{namespace}:app=vllm",), kubeconfig=file) as server:
        await until(lambda: counted(server, "kubernetes_failures_total") >= 2)
        assert urls(server) == []
        cluster.kubeconfig("changing", token=TOKEN)
        await until(lambda: urls(server) == local(8001))


async def use_account_of_a_pod(
    cluster: Cluster, api: Api, namespace: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *manifests: Path
) -> None:
    """Have a router find the API as it does in a pod, with the rights of some manifests."""
    plurals = {"ServiceAccount": "api/v1", "Role": "apis/rbac.authorization.k8s.io/v1"}
    plurals["RoleBinding"] = plurals["Role"]
    for content in (content for manifest in manifests for content in yaml.safe_load_all(manifest.read_text())):
        for subject in content.get("subjects", ()):
            subject["namespace"] = namespace  # as kubectl apply --namespace has it for accounts
        path = f"/{plurals[content['kind']]}/namespaces/{namespace}/{content['kind'].lower()}s"
        await api.ask("POST", path, content)
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/tierline-router/token"
    answer = await api.ask("POST", path, {"spec": {"expirationSeconds": 3600}})
    (folder / "token").write_text(answer["status"]["token"])
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster.port))
    account = "kubernetes_asyncio.config.incluster_config.SERVICE"
    monkeypatch.setattr(f"{account}_TOKEN_FILENAME", str(folder / "token"))
    monkeypatch.setattr(f"{account}_CERT_FILENAME", str(cluster.authority))


async def test_the_rights_of_the_manifest_are_enough_for_a_pod_s_own_account(
    cluster: Cluster, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = await api.new_namespace()
    await use_account_of_a_pod(cluster, api, namespace, tmp_path, monkeypatch, RBAC)
    await api.create_pod(namespace, "a", 8001)
    await api.put_slice(namespace, "s", "vllm", [{"addresses": ["10.9.8.1"]}], [{"port": 8000}])
    settings = {"kubernetes_pods": (f"{namespace}:app=vllm",), "kubernetes_services": (f"{namespace}/vllm",)}
    async with router(**settings, health_interval_s=60) as server:
        assert urls(server) == ["http://10.9.8.1:8000", *local(8001)]
        await api.create_pod(namespace, "b", 8002)
        await until(lambda: urls(server) == ["http://10.9.8.1:8000", *local(8001, 8002)])


async def test_a_newer_api_is_asked_in_its_own_version(tmp_path: Path) -> None:
    """Servers since 1.25 have EndpointSlices in ``v1`` only, and say who is about to leave."""
    changed = asyncio.Event()

    def item(version: str, **conditions: bool) -> dict[str, Any]:
        return {
            "metadata": {"name": "s", "uid": "u", "resourceVersion": version},
            "endpoints": [{"addresses": ["10.9.8.1"], "conditions": {"ready": True, **conditions}}],
            "ports": [{"name": "", "port": 8000}],
        }

    async def answer(http: web.Request) -> web.StreamResponse:
        assert http.query["labelSelector"] == "kubernetes.io/service-name=vllm"
        if "watch" not in http.query:
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": [item("1")]})
        response = web.StreamResponse()
        await response.prepare(http)
        await changed.wait()
        lines = json.dumps({"type": "MODIFIED", "object": item("2", terminating=True)}).encode() + b"\n"
        for piece in (lines[:20], lines[20:]):
            await response.write(piece)
            await asyncio.sleep(0.01)
        await asyncio.Event().wait()
        return response

    app = web.Application()
    app.add_routes([web.get("/apis/discovery.k8s.io/v1/namespaces/ns/endpointslices", answer)])
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    file = tmp_path / "config"
    file.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "a", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}],
                "users": [{"name": "a", "user": {}}],
                "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
                "current-context": "a",
            }
        )
    )
    try:
        async with router(kubernetes_services=("ns/vllm",), kubeconfig=file, health_interval_s=60) as server:
            assert urls(server) == ["http://10.9.8.1:8000"]
            changed.set()
            await until(lambda: urls(server) == [])
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("content", [None, "no: kubeconfig", "{"])
async def test_without_a_way_to_a_cluster_the_router_does_not_start(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "config"
    if content is not None:
        file.write_text(content)
    config = RouterConfig.model_validate({"port": 0, "kubernetes_pods": ("ns:app=vllm",), "kubeconfig": file})
    with pytest.raises(UsageError, match="no way to a Kubernetes API"):
        await start(config)
