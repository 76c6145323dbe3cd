"""A service over a real store, in a directory of its own in shared memory."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tierline.node.service import NodeService
from tierline.store import Store

CAPACITY = 4 * 1024 * 1024


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
def service(shared_memory: Path) -> Iterator[NodeService]:
    service = NodeService(Store.open(shared_memory, "segment", CAPACITY, clock=time.monotonic))
    yield service
    service.stop_verifying()
    service.close()
