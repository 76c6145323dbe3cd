"""What was decided for an endpoint stays, on a real API: whatever its cluster becomes, and whichever operator runs."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from tests.endpoints import SPEC
from tests.integration.fetch.hub import hub
from tests.integration.operator.controller import operators
from tests.integration.operator.controller.operators import (
    DEPLOYMENTS,
    MERGE,
    RESOURCES,
    SECRETS,
    Kinds,
    cannot_pull,
    condition,
    names_at,
    resource,
    roll_out,
)
from tests.kube import Api, Cluster, running_cluster
from tests.ports import free_port

from tierline.operator.config import OperatorConfig
from tierline.operator.controller.discovering import DEFAULT_CLASS
from tierline.operator.controller.planning import planner
from tierline.operator.controller.server import OperatorServer
from tierline.operator.manifests.entrance import ALB_CONTROLLER
from tierline.operator.manifests.sources import S3_DRIVER
from tierline.operator.names import OWNER_UID
from tierline.operator.settled import PODS

INGRESSES = "/apis/networking.k8s.io/v1/namespaces/{}/ingresses"
CLASSES = "/apis/networking.k8s.io/v1/ingressclasses"
DRIVERS = "/apis/storage.k8s.io/v1/csidrivers"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
PLANNER = planner(OperatorConfig())
pytestmark = pytest.mark.timeout(400)
ADDED = (("podmonitors", "PodMonitor", "monitoring.coreos.com"), ("certificates", "Certificate", "cert-manager.io"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("kube")) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierline.operator.controller.looping.DISCOVERY_SECONDS", 0.1)


@pytest.fixture
async def first_class(api: Api) -> AsyncIterator[None]:
    await api.ask("POST", CLASSES, ingress_class("first", "example.com/first"))
    yield
    for path in (CLASSES, DRIVERS, CRDS):
        for name in await names_at(api, path):
            if not name.endswith("sagemaker.aws.amazon.com"):
                await api.ask("DELETE", f"{path}/{name}")


def definition(plural: str, kind: str, group: str) -> dict[str, Any]:
    """Return the definition of a kind, as far as an API takes one."""
    names = {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    spec = {"group": group, "scope": "Namespaced", "names": names, "versions": [version]}
    return {"metadata": {"name": f"{plural}.{group}"}, "spec": spec}


def ingress_class(name: str, controller: str, *, is_default: bool = False) -> dict[str, Any]:
    annotations = {DEFAULT_CLASS: "true"} if is_default else {}
    return {"metadata": {"name": name, "annotations": annotations}, "spec": {"controller": controller}}


@contextlib.asynccontextmanager
async def operator(cluster: Cluster, namespace: str, **settings: Any) -> AsyncIterator[OperatorServer]:
    """Run an operator that makes all that endpoints are made of, and leads for as long as it runs."""
    async with operators.operator(cluster, namespace, PLANNER, lease_s=15.0, **settings) as server:
        yield server


async def eventually(holds: Callable[[], Any]) -> Any:
    """Wait for something to be so, for as long as a busy machine may take."""
    return await operators.eventually(holds, 120.0)


async def deployment(api: Api, namespace: str, name: str = "demo") -> dict[str, Any]:
    found: dict[str, Any] = await api.ask("GET", f"{DEPLOYMENTS.format(namespace)}/{name}")
    return found


async def make(api: Api, namespace: str, name: str = "demo", **changes: Any) -> dict[str, Any]:
    """Have an endpoint made; return its Deployment."""
    await api.ask("POST", RESOURCES.format(namespace), resource(name, **{**SPEC, **changes}))
    await eventually(lambda: condition(api, namespace, name, "Ready"))
    return await deployment(api, namespace, name)


async def change(api: Api, namespace: str, spec: dict[str, Any]) -> None:
    """Change the endpoint, and wait until that was looked at."""
    path = f"{RESOURCES.format(namespace)}/demo"
    generation = (await api.ask("PATCH", path, {"spec": spec}, MERGE))["metadata"]["generation"]

    async def is_observed() -> bool:
        return bool((await api.ask("GET", path))["status"].get("observedGeneration") == generation)

    await eventually(is_observed)


async def knows(server: OperatorServer, holds: Callable[[Any], bool]) -> None:
    """Wait until the operator knows of the cluster what a test wants, and has looked at all that there is again."""
    loop = await eventually(lambda: server.loop)
    await eventually(lambda: holds(loop.reconciler.capabilities))
    looks = sum(loop.looks.values())
    for key in loop.reconciler.endpoints:
        loop.queue.add(key)
    await eventually(lambda: sum(loop.looks.values()) >= looks + len(loop.reconciler.endpoints))
    await eventually(lambda: not loop.queue.at_work)


def images(found: dict[str, Any]) -> set[str]:
    """Return the images of what runs beside the engine."""
    return {each["image"] for each in found["spec"]["template"]["spec"]["containers"][1:]}


def fetched(found: dict[str, Any]) -> str:
    return str(found["spec"]["template"]["spec"]["initContainers"][0]["args"][0])


@pytest.mark.usefixtures("first_class")
async def test_what_comes_to_a_cluster_and_goes_replaces_no_pods_and_takes_no_way_in(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    ingresses = INGRESSES.format(namespace)
    async with operator(cluster, namespace) as server:
        await make(api, namespace)
        [before] = (await api.ask("GET", ingresses))["items"]
        assert before["spec"]["ingressClassName"] == "first"
        await api.ask("POST", CLASSES, ingress_class("second", "example.com/second", is_default=True))
        await api.ask("POST", CLASSES, ingress_class("alb", ALB_CONTROLLER))
        await api.ask("POST", DRIVERS, {"metadata": {"name": S3_DRIVER}, "spec": {"attachRequired": False}})
        secret = await api.ask("GET", f"{SECRETS.format(namespace)}/demo-{namespace}-tls")
        for added in ADDED:
            await api.ask("POST", CRDS, definition(*added))
        await knows(server, lambda has: all(has.serves(f"{group}/v1", kind) for _, kind, group in ADDED))
        await knows(server, lambda has: has.default_ingress_class == "second" and bool(has.csi_drivers))
        await make(api, namespace, "mounted")
        volumes = await volumes_of(api, namespace)
        assert await api.ask("GET", f"{SECRETS.format(namespace)}/demo-{namespace}-tls") == secret
        kinds = [f"{CRDS}/{plural}.{group}" for plural, _, group in ADDED]
        for gone in (f"{CLASSES}/first", f"{CLASSES}/alb", f"{DRIVERS}/{S3_DRIVER}", *kinds):
            await api.ask("DELETE", gone)
        await knows(server, lambda has: has.ingress_classes == (("second", "example.com/second"),))
        await knows(
            server,
            lambda has: not has.csi_drivers and not any(has.serves(f"{group}/v1", kind) for _, kind, group in ADDED),
        )
        for name in ("demo", "mounted"):
            assert (await deployment(api, namespace, name))["metadata"]["generation"] == 1, "its pods were replaced"
        after = await api.ask("GET", f"{ingresses}/{before['metadata']['name']}")
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        assert after["spec"] == before["spec"]
        await eventually(lambda: says(api, namespace, "demo", "IngressReady", "no IngressClass first any more"))
        assert len(volumes) == 1
        assert await volumes_of(api, namespace) == volumes
        await eventually(lambda: says(api, namespace, "mounted", "ModelSourceReady", S3_DRIVER))
    async with operator(cluster, namespace) as server:
        await eventually(lambda: server.loop is not None and len(server.loop.reconciler.endpoints) == 2)
        await knows(server, lambda has: bool(has.ingress_classes))
        assert (await deployment(api, namespace))["metadata"]["generation"] == 1, "the next operator decided otherwise"
        assert await volumes_of(api, namespace) == volumes
        await api.ask("DELETE", f"{ingresses}/{before['metadata']['name']}")
        await eventually(lambda: has_class(api, namespace, before["metadata"]["name"], "second"))


async def says(api: Api, namespace: str, name: str, kind: str, text: str) -> bool:
    return text in (await condition(api, namespace, name, kind)).get("message", "")


async def volumes_of(api: Api, namespace: str) -> list[str]:
    """Return the volumes of a namespace's endpoints; they are the cluster's."""
    return [name for name in await names_at(api, "/api/v1/persistentvolumes") if name.startswith(namespace)]


async def has_class(api: Api, namespace: str, name: str, wanted: str) -> bool:
    try:
        found = await api.ask("GET", f"{INGRESSES.format(namespace)}/{name}")
    except AssertionError:
        return False
    return bool(found["spec"]["ingressClassName"] == wanted)


async def test_another_image_of_ours_comes_to_workers_when_they_are_replaced_anyway(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with operator(cluster, namespace, image="ours:1"):
        await make(api, namespace)
    async with operator(cluster, namespace, image="ours:2"):
        router = f"demo-{namespace}-router"
        await eventually(lambda: has_images(api, namespace, router, "ours:2"))
        await change(api, namespace, {"replicas": 2})
        found = await deployment(api, namespace)
        assert found["spec"]["replicas"] == 2
        assert images(found) == {"ours:1"}
        await change(api, namespace, {"worker": {"image": "vllm:2"}})
        assert images(await deployment(api, namespace)) == {"ours:2"}
    async with operator(cluster, namespace, image="ours:3", worker_updates="at-once"):
        await eventually(lambda: has_images(api, namespace, "demo", "ours:3"))


async def test_taking_the_annotation_away_updates_the_workers_of_one_endpoint(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with operator(cluster, namespace, image="ours:1"):
        await make(api, namespace)
    async with operator(cluster, namespace, image="ours:2"):
        await eventually(lambda: has_images(api, namespace, f"demo-{namespace}-router", "ours:2"))
        assert images(await deployment(api, namespace)) == {"ours:1"}
        path = f"{DEPLOYMENTS.format(namespace)}/demo"
        await api.ask("PATCH", path, {"metadata": {"annotations": {PODS: None}}}, MERGE)
        await eventually(lambda: has_images(api, namespace, "demo", "ours:2"))


async def test_an_image_of_ours_that_cannot_be_pulled_goes_with_the_setting_that_names_another(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with operator(cluster, namespace, image="registry/typo:1"):
        await make(api, namespace)
        await roll_out(api, namespace, "demo", available=0)
        await cannot_pull(api, namespace, "demo", "reverse-proxy")
        remedy = "image registry/typo:1 comes from the operator's setting image"
        await eventually(lambda: is_told(api, namespace, remedy))
    async with operator(cluster, namespace, image="ours:1"):
        await eventually(lambda: has_images(api, namespace, "demo", "ours:1"))


async def is_told(api: Api, namespace: str, text: str) -> bool:
    told = [(await condition(api, namespace, "demo", kind)).get("message", "") for kind in ("Ready", "WorkersReady")]
    return all(text in each for each in told)


async def has_images(api: Api, namespace: str, name: str, image: str) -> bool:
    try:
        found = await deployment(api, namespace, name)
    except AssertionError:
        return False
    return image in images(found)


def of_the_hub(**model: Any) -> dict[str, Any]:
    source = {"modelSourceType": "huggingface", "huggingFaceModel": {"modelId": "org/model", **model}}
    return {"modelSourceConfig": source}


async def test_all_pods_have_the_commit_that_the_main_branch_was_when_they_were_made(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    secret = {"metadata": {"name": "hub"}, "stringData": {"token": "secret\n"}}
    await api.ask("POST", SECRETS.format(namespace), secret)
    async with hub({}, token="secret") as fake, operator(cluster, namespace, hf_endpoint=fake.url):
        found = await make(api, namespace, **of_the_hub(tokenSecretRef={"name": "hub", "key": "token"}))
        assert fetched(found) == f"hf://org/model@{fake.commit}"
        assert f"--hf-endpoint={fake.url}" in found["spec"]["template"]["spec"]["initContainers"][0]["args"]
        assert "RevisionMoves" not in str(await condition(api, namespace, "demo", "CacheReady"))
        fake.commit = "b" * 40
        await change(api, namespace, {"replicas": 2})
        after = await deployment(api, namespace)
        assert after["spec"]["template"] == found["spec"]["template"], "other pods have another model"
    async with hub({}, token="secret") as other, operator(cluster, namespace, hf_endpoint=fake.url):
        assert other.asked == 0
        await change(api, namespace, {"replicas": 1})
        assert (await deployment(api, namespace))["spec"]["template"] == found["spec"]["template"]


async def test_a_change_that_replaces_pods_takes_what_the_main_branch_is_then(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with hub({}) as fake, operator(cluster, namespace, hf_endpoint=fake.url):
        first = await make(api, namespace, **of_the_hub())
        fake.commit = "b" * 40
        await change(api, namespace, {"worker": {"image": "vllm:2"}})
        second = await deployment(api, namespace)
        assert fetched(second) == f"hf://org/model@{fake.commit}"
        assert fetched(first) != fetched(second)
        assert bucket(first) != bucket(second)


def bucket(found: dict[str, Any]) -> str:
    variables = found["spec"]["template"]["spec"]["containers"][0]["env"]
    return next(str(each["value"]) for each in variables if each["name"] == "LMCACHE_EXTRA_CONFIG")


async def test_without_the_hub_each_pod_has_a_cache_of_its_own(cluster: Cluster, api: Api, namespace: str) -> None:
    async with operator(cluster, namespace, hf_endpoint=f"http://127.0.0.1:{free_port()}"):
        found = await make(api, namespace, **of_the_hub())
        assert fetched(found) == "hf://org/model@main"
        assert "$(TIERLINE_POD_UID)" in bucket(found)
        assert "the Hub did not say" in (await condition(api, namespace, "demo", "CacheReady"))["message"]


@pytest.mark.parametrize("was", [True, False])
async def test_routing_stays_as_it_was_where_no_webhook_refuses_another_and_is_told(
    cluster: Cluster, api: Api, namespace: str, was: bool
) -> None:
    def routing(is_enabled: bool) -> dict[str, Any]:
        return {"intelligentRoutingSpec": {"enabled": is_enabled}}

    async with operator(cluster, namespace):
        await make(api, namespace, **routing(was))
    kinds = await Kinds.of(cluster, api)
    uid = (await api.ask("GET", f"{RESOURCES.format(namespace)}/demo"))["metadata"]["uid"]
    made = await kinds.labelled(f"{OWNER_UID}={uid}")
    assert made
    async with operator(cluster, namespace):
        await change(api, namespace, routing(not was))
        validated = await condition(api, namespace, "demo", "Validated")
        assert await kinds.labelled(f"{OWNER_UID}={uid}") == made
        await change(api, namespace, routing(was))
        assert (await condition(api, namespace, "demo", "Validated"))["status"] == "True"
    assert (validated["status"], validated["reason"]) == ("False", "Invalid")
    assert f"spec.intelligentRoutingSpec.enabled: cannot be turned {'off' if was else 'on'}" in validated["message"]
