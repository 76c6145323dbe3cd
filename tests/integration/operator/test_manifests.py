"""All that endpoints are made of, applied to a real API: it takes every field, and a second time changes nothing."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.endpoints import endpoint
from tests.kube import Api, Cluster, running_cluster
from tests.unit.operator.manifests.test_workers import CASES, NAMES

from tierline.operator.assumed import cluster
from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.desired import desired, shared
from tierline.operator.manifests.manifest import Manifest
from tierline.operator.manifests.sources import model_source
from tierline.operator.manifests.workers import workers

PLURALS = {"NetworkPolicy": "networkpolicies", "Ingress": "ingresses"}
HAS = cluster(["nginx"], version=(1, 20))
QUERY = {"prometheusTrigger": {"query": "vector(1)", "targetValue": 2}}
ROUTED = {"enabled": True, "autoScalingSpec": QUERY}
REDIS = {"enableL2Cache": True, "l2CacheSpec": {"l2CacheBackend": "redis"}}
WANTED = [
    endpoint(),
    endpoint({"intelligentRoutingSpec": None, "autoScalingSpec": QUERY, "kvCacheSpec": REDIS}, name="alone"),
    endpoint(
        {"pdSpec": {"prefillSpec": {}, "decodingSpec": {}}, "intelligentRoutingSpec": ROUTED},
        annotations={"router-replicas": "2", "api-keys": "clients", "dashboard": "true"},
        name="pairs",
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("kube")) as started:
        yield started


@pytest.fixture
async def api(server: Cluster) -> AsyncIterator[Api]:
    async with server.connected() as connected:
        listed = await connected.ask("GET", "/api/v1/namespaces")
        missing = {"default", OperatorConfig().namespace} - {each["metadata"]["name"] for each in listed["items"]}
        for name in missing:
            await connected.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        yield connected


def path(manifest: Manifest) -> str:
    version, metadata = manifest["apiVersion"], manifest["metadata"]
    root = "/api/v1" if version == "v1" else f"/apis/{version}"
    plural = PLURALS.get(manifest["kind"], f"{manifest['kind'].lower()}s")
    place = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""  # volumes are the cluster's
    return f"{root}{place}/{plural}/{metadata['name']}"


async def apply(api: Api, manifest: Manifest) -> dict[str, Any]:
    query = "?fieldManager=tests&force=true"
    applied: dict[str, Any] = await api.ask("PATCH", path(manifest) + query, manifest, "application/apply-patch+yaml")
    return applied


def is_said(wanted: object, found: object) -> bool:
    """Whether all of ``wanted`` is in ``found``, which may have more."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(is_said(value, found.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(is_said, wanted, found))
    return wanted == found


@pytest.mark.parametrize("placement", ["endpoint", "system"])
@pytest.mark.parametrize("wanted", WANTED, ids=lambda wanted: wanted.name)
async def test_what_an_endpoint_is_made_of_is_taken_and_stays_as_it_is(
    api: Api, wanted: Endpoint, placement: Any
) -> None:
    config = OperatorConfig(router_placement=placement, prometheus_address="http://prometheus:9090")
    made = desired(wanted, HAS, config) + shared([wanted], HAS, config)
    first = [await apply(api, manifest) for manifest in made.manifests]
    for manifest, applied in zip(made.manifests, first, strict=True):
        assert is_said(manifest, applied | {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"]}), applied
    second = [await apply(api, manifest) for manifest in made.manifests]
    versions = [[each["metadata"]["resourceVersion"] for each in applied] for applied in (first, second)]
    assert versions[0] == versions[1]


@pytest.mark.parametrize(("name", "wanted", "has", "config"), CASES, ids=NAMES)
async def test_workers_of_every_kind_are_taken_and_stay_as_they_are(
    api: Api, name: str, wanted: Endpoint, has: Capabilities, config: OperatorConfig
) -> None:
    made = (model_source(wanted, has, config) + workers(wanted, has, config)).manifests
    objects = [
        {**each, "metadata": {**each["metadata"], "name": f"{name}-{each['metadata']['name']}"}} for each in made
    ]
    # The second time writes once more to volumes and claims: what the server added when they were made.
    _, second, third = [[await apply(api, each) for each in objects] for _ in range(3)]
    versions = [[each["metadata"]["resourceVersion"] for each in applied] for applied in (second, third)]
    assert versions[0] == versions[1]
