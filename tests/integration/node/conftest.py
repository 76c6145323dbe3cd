from collections.abc import Iterator

import pytest
from tests.integration.node.processes import HttpClient, NodeProcess


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """One node for the tests of a module: each uses keys of its own."""
    process = NodeProcess(tmp_path_factory.mktemp("node"), grace_s=0, max_object="32MiB")
    yield process
    process.close()


@pytest.fixture
def http(node: NodeProcess) -> Iterator[HttpClient]:
    with node.http() as client:
        yield client
