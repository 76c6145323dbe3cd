"""The operator as it is installed: the program, with no more rights than its manifests give it, and many resources.

``benchmarks/operator_resources.py`` measures the same with 200.
"""

import asyncio
from collections.abc import Iterator

import pytest
from tests.integration.operator.controller.operators import RESOURCES, eventually, limited, versions
from tests.integration.operator.controller.programs import all_have_status, apply_many, program
from tests.kube import Api, Cluster, running_cluster

MANY = 12
LARGEST_MEMORY_BYTES = 150_000_000
FOLLOWED = [
    "/apis/apps/v1/deployments",
    "/api/v1/services",
    "/api/v1/secrets",
    "/apis/networking.k8s.io/v1/networkpolicies",
    "/apis/rbac.authorization.k8s.io/v1/roles",
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("kube")) as cluster:
        yield cluster


@pytest.mark.timeout(600)
async def test_many_resources_are_made_with_the_rights_of_the_manifest_and_then_nothing_is_written(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    await apply_many(api, namespace, MANY)
    async with program(await limited(cluster, api, namespace), namespace) as running:
        await eventually(lambda: all_have_status(api, namespace), timeout_s=500)
        written = await running.settled()
        before = [versions((await api.ask("GET", path))["items"]) for path in [*FOLLOWED, RESOURCES.format(namespace)]]
        await asyncio.sleep(3.0)
        assert [
            versions((await api.ask("GET", path))["items"]) for path in [*FOLLOWED, RESOURCES.format(namespace)]
        ] == before
        assert await running.writes() == written
        found = await running.metrics()
        assert found["tierline_operator_retries_total"] == 0, "something was refused"
        assert found["tierline_operator_failed_events_total"] == 0
        assert running.largest_memory() <= LARGEST_MEMORY_BYTES
