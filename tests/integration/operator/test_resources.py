"""The resources on a real API server: what it takes and refuses, what ``kubectl`` shows, and the admission webhook."""

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.integration.operator.controller.operators import eventually, names_at
from tests.kube import Api, Cluster, running_cluster
from tests.ports import free_ports
from tests.unit.operator.resources import INFERENCE_ENDPOINT_CONFIG, JUMP_START_MODEL, changed

from tierline.certificates import Certificate
from tierline.operator.admission import PATH, configuration_name, configurations
from tierline.operator.catalogue import read
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.planning import planner
from tierline.operator.controller.server import running
from tierline.operator.crds import KINDS, crd
from tierline.operator.names import API_VERSION
from tierline.operator.resources.inference_endpoint_config import InferenceEndpointConfig
from tierline.operator.validation import validate
from tierline.operator.webhook import serving

PLURALS = {kind.kind: kind.plural for kind in KINDS}
PLACES = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
DEADLINE_SECONDS = 60.0
VOLUMES = [{"name": "model-weights", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "s", "secret": {"secretName": "s"}}]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("kube")) as cluster:
        yield cluster


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[Api]:
    async with cluster.connected() as api:
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        known = {item["metadata"]["name"] for item in (await api.ask("GET", path))["items"]}
        for kind in KINDS:
            if kind.crd_name not in known:
                await api.ask("POST", path, crd(kind))
            await until_served(api, f"/apis/{API_VERSION}/{kind.plural}")
        yield api


@pytest.fixture
async def namespace(api: Api) -> str:
    return await api.new_namespace()


async def until_served(api: Api, path: str) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            async with api.session.get(path) as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.05)


def path_of(resource: dict[str, Any], namespace: str, name: str = "") -> str:
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURALS[resource['kind']]}{f'/{name}' if name else ''}"


def named(resource: dict[str, Any], name: str) -> dict[str, Any]:
    return resource | {"metadata": {"name": name}}


async def sent(
    api: Api, method: str, path: str, body: object, kind: str = "application/json"
) -> tuple[int, Any, list[str]]:
    """Return status, content and warnings of an answer that may be a refusal."""
    async with api.session.request(method, path, data=json.dumps(body), headers={"content-type": kind}) as answer:
        return answer.status, await answer.json(), answer.headers.getall("warning", [])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"replicas": None, "metrics": {}, "loadBalancer": {}, "kvCacheSpec": {}},
        {"autoScalingSpec": {"prometheusTrigger": {"query": "q", "targetValue": 0.5}}},
        {"modelSourceConfig": {"modelSourceType": "kubernetesVolume"}, "kubernetes": {"volumes": VOLUMES}},
        {"worker.probes.readinessProbe": {"grpc": {"port": 8000}}, "pdSpec": {"prefillSpec": {}, "decodingSpec": {}}},
        {"lmcache": {"mode": "MultiProcess"}, "tolerations": [{"operator": "Exists"}]},
    ],
)
async def test_what_is_stored_means_what_the_models_say_of_the_file(
    api: Api, namespace: str, changes: dict[str, Any]
) -> None:
    given = named(changed(INFERENCE_ENDPOINT_CONFIG, changes), "demo")
    stored = await api.ask("POST", path_of(given, namespace), given)
    assert InferenceEndpointConfig.model_validate(stored).spec == InferenceEndpointConfig.model_validate(given).spec
    assert validate(stored).errors == validate(given).errors == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"worker.modelInvocationPort": None},
        {"intelligentRoutingSpec.routingStrategy": "prefix-aware"},
        {"replicas": "3"},
        {"instanceType": "g5.24xlarge"},
        {"worker.resources.limits": {"memory": "30 GiB"}},
        {"worker.requestLimits.maxConcurrentRequests": 0},
        {"kvCacheSpec.l2CacheSpec.l2CacheBackend": "disk"},
        {"dataCapture": {"modelPod": {"enabled": True, "captureOptions": []}}},
        {"modelSourceConfig.huggingFaceModel": {"modelId": "no-owner"}},
    ],
)
async def test_the_models_refuse_what_the_api_server_refuses(api: Api, namespace: str, changes: dict[str, Any]) -> None:
    given = named(changed(INFERENCE_ENDPOINT_CONFIG, changes), "demo")
    status, _, _ = await sent(api, "POST", path_of(given, namespace), given)
    assert status == 422
    assert validate(given).resource is None


async def test_a_status_is_written_apart_and_replicas_can_be_scaled(api: Api, namespace: str) -> None:
    given = named(INFERENCE_ENDPOINT_CONFIG, "demo")
    await api.ask("POST", path_of(given, namespace), given)
    path = path_of(given, namespace, "demo")
    merge = "application/merge-patch+json"
    status = {"state": "DeploymentComplete", "replicas": 1, "selector": "app=demo"}
    await api.ask("PATCH", f"{path}/status", {"status": status, "spec": {"replicas": 7}}, merge)
    await api.ask("PATCH", f"{path}/scale", {"spec": {"replicas": 3}}, merge)
    stored = await api.ask("GET", path)
    assert stored["status"] == status
    assert stored["spec"]["replicas"] == 3


async def test_kubectl_knows_short_names_and_shows_what_matters(
    api: Api, cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    given = named(INFERENCE_ENDPOINT_CONFIG, "demo")
    await api.ask("POST", path_of(given, namespace), given)
    ready = {
        "type": "Ready",
        "status": "False",
        "reason": "Starting",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    status = {"state": "DeploymentInProgress", "replicas": 1, "conditions": [ready]}
    merge = "application/merge-patch+json"
    await api.ask("PATCH", path_of(given, namespace, "demo") + "/status", {"status": status}, merge)
    kubeconfig = cluster.kubeconfig("kubectl.yaml")
    process = await asyncio.create_subprocess_exec(
        *("kubectl", "--kubeconfig", kubeconfig, "--namespace", namespace, "get", "iec"),
        stdout=asyncio.subprocess.PIPE,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
    )
    shown, _ = await process.communicate()
    heading, row = shown.decode().splitlines()
    assert heading.split() == ["NAME", "MODEL", "STATE", "READY", "REPLICAS", "AGE"]
    assert row.split()[:5] == ["demo", "Llama-3.1-8B-Instruct", "DeploymentInProgress", "False", "1"]


@contextlib.asynccontextmanager
async def reviewed(api: Api, folder: Path) -> AsyncIterator[None]:
    """Have the API server ask, and wait until it does; at the end, until it does no more."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    certificate = Certificate(folder / "certificate.pem", folder / "key.pem")
    catalogue = read(None)
    async with serving("127.0.0.1:0", lambda: certificate.context, lambda: catalogue) as address:
        trusted = base64.b64encode(authority.cert_pem.bytes()).decode()
        client = {"url": f"https://{address}{PATH}", "caBundle": trusted}
        for place, configuration in zip(PLACES, configurations(client, "test"), strict=True):
            await api.ask("POST", f"/apis/admissionregistration.k8s.io/v1/{place}", configuration)
        try:
            await until_reviewed(api, "default", is_reviewed=True)
            yield
        finally:
            for place in PLACES:
                await api.ask("DELETE", f"/apis/admissionregistration.k8s.io/v1/{place}/{configuration_name('test')}")
            await until_reviewed(api, "default", is_reviewed=False)


async def until_reviewed(api: Api, namespace: str, *, is_reviewed: bool) -> None:
    probe = named(changed(INFERENCE_ENDPOINT_CONFIG, {"worker.image": ""}), "probe")
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            status, _, _ = await sent(api, "POST", f"{path_of(probe, namespace)}?dryRun=All", probe)
            if (status == 422) == is_reviewed:
                return
            await asyncio.sleep(0.05)


async def test_the_webhook_speaks_before_the_schema_does(api: Api, namespace: str, tmp_path: Path) -> None:
    gated = changed(JUMP_START_MODEL, {"model.modelId": "meta-textgeneration-llama-3-1-8b-instruct"})
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"intelligentRoutingSpec.routingStrategy": "prefix-aware"}, "did you mean prefixaware?"),
        ({"worker.modelInvocationPort": None}, "add {containerPort: 8000, name: http}"),
        ({"instanceTypes": ["ml.g5.xlarge"]}, "cannot be beside spec.instanceType"),
    ]
    resources = [(changed(INFERENCE_ENDPOINT_CONFIG, changes), words) for changes, words in wrong]
    async with reviewed(api, tmp_path):
        for resource, words in [*resources, (gated, "spec.model.acceptEula: must be true")]:
            status, content, _ = await sent(api, "POST", path_of(resource, namespace), named(resource, "demo"))
            assert status == 422
            assert words in content["message"]


async def test_fields_without_effect_are_warnings_of_kubectl(api: Api, namespace: str, tmp_path: Path) -> None:
    changes = {"lmcache": {"mode": "MultiProcess"}, "endpointName": "e"}
    given = named(changed(INFERENCE_ENDPOINT_CONFIG, changes), "demo")
    async with reviewed(api, tmp_path):
        status, content, warnings = await sent(api, "POST", path_of(given, namespace), given)
    assert status == 201
    assert content["spec"]["lmcache"] == {"mode": "MultiProcess"}
    assert any("spec.lmcache: kept" in warning for warning in warnings)
    assert any("spec.endpointName: Amazon SageMaker" in warning for warning in warnings)


async def test_routing_cannot_be_changed_and_what_is_invalid_can_still_be_labelled(
    api: Api, namespace: str, tmp_path: Path
) -> None:
    invalid = named(changed(INFERENCE_ENDPOINT_CONFIG, {"instanceTypes": ["ml.g5.xlarge"]}), "invalid")
    demo = named(INFERENCE_ENDPOINT_CONFIG, "demo")
    for resource in (invalid, demo):
        await api.ask("POST", path_of(resource, namespace), resource)
    merge = "application/merge-patch+json"
    off = {"spec": {"intelligentRoutingSpec": {"enabled": False}}}
    label = {"metadata": {"labels": {"team": "a"}}}
    async with reviewed(api, tmp_path):
        status, content, _ = await sent(api, "PATCH", path_of(demo, namespace, "demo"), off, merge)
        labelled, _, _ = await sent(api, "PATCH", path_of(invalid, namespace, "invalid"), label, merge)
    assert status == 422
    assert "spec.intelligentRoutingSpec.enabled: cannot be turned off later" in content["message"]
    assert labelled == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_running_operator_has_itself_asked(api: Api, cluster: Cluster, namespace: str, host: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/secrets/tierline-operator-webhook"
    (port,) = free_ports(1)
    config = OperatorConfig(
        kubeconfig=cluster.kubeconfig("operator.yaml"),
        namespace=namespace,
        watched_namespaces=(namespace,),
        http="",
        webhook=f"127.0.0.1:{port}",
        webhook_address=f"https://{host}:{port}",
    )
    try:
        async with running(config, planner(config)):
            await until_reviewed(api, namespace, is_reviewed=True)
            await until_reviewed(api, "default", is_reviewed=False)
            await eventually(lambda: are_there(api, configuration_name(namespace)))  # one is enough to be asked
        secret = await api.ask("GET", path)
        assert set(secret["data"]) == {"ca.crt", "tls.crt", "tls.key"}
        async with running(config, planner(config)):  # with the certificate that is there
            await until_reviewed(api, namespace, is_reviewed=True)
        assert await api.ask("GET", path) == secret
    finally:
        for place in PLACES:
            await api.ask("DELETE", f"/apis/admissionregistration.k8s.io/v1/{place}/{configuration_name(namespace)}")
        await until_reviewed(api, namespace, is_reviewed=False)


async def are_there(api: Api, name: str) -> bool:
    listed = [await names_at(api, f"/apis/admissionregistration.k8s.io/v1/{place}") for place in PLACES]
    return all(name in found for found in listed)


async def test_a_webhook_that_is_away_stops_nobody(api: Api, namespace: str, tmp_path: Path) -> None:
    given = named(INFERENCE_ENDPOINT_CONFIG, "demo")
    nowhere = {"url": f"https://127.0.0.1:{free_ports(1)[0]}{PATH}"}
    configuration = configurations(nowhere, "test")[1]
    path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    await api.ask("POST", path, configuration)
    try:
        assert (await sent(api, "POST", path_of(given, namespace), given))[0] == 201
    finally:
        await api.ask("DELETE", f"{path}/{configuration_name('test')}")
