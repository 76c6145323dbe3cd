"""One cluster with an operator, machines and a model, for all tests of this folder."""

from collections.abc import AsyncIterator, Iterator

import pytest
from tests.integration.operator.apply.world import INSTANCE_TYPE, OTHER_INSTANCE_TYPE, World, running_world
from tests.kube import Api, Cluster
from tests.kubelet import Machine

GPUS_OF_TWO_WORKERS, GPUS_OF_FOUR_WORKERS = "8", "16"


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    resources = {"cpu": "96", "memory": "384Gi", "pods": "50"}
    machines = [
        Machine("gpu-1", INSTANCE_TYPE, {**resources, "nvidia.com/gpu": GPUS_OF_TWO_WORKERS}),
        Machine("gpu-2", OTHER_INSTANCE_TYPE, {**resources, "nvidia.com/gpu": GPUS_OF_FOUR_WORKERS}),
    ]
    with running_world(tmp_path_factory.mktemp("kube"), machines) as world:
        yield world


@pytest.fixture(scope="package")
def cluster(world: World) -> Cluster:
    return world.cluster


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[Api]:
    async with cluster.connected() as api:
        yield api
