"""A Kubernetes API that knows our resources.

One serves all whose operators keep to a namespace of their own; a module that changes what the API serves, or has an
operator follow all namespaces, has one of its own.
"""

from collections.abc import AsyncIterator, Iterator

import pytest
from tests.integration.operator.controller.operators import install
from tests.kube import Api, Cluster, running_cluster


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("kube")) as cluster:
        yield cluster


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[Api]:
    async with cluster.connected() as api:
        await install(api)
        yield api


@pytest.fixture
async def namespace(api: Api) -> str:
    return await api.new_namespace()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierline.kube.api.BACKOFF_SECONDS", (0.05,))
