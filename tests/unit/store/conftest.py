"""A real segment in a directory of its own in shared memory, and a clock that moves when a test says so."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.clocks import ManualClock

from tierline.store import PAGE_BYTES, Store

PAGES = 64


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="tierline-test-", dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def open_store(shared_memory: Path, clock: ManualClock) -> Iterator[Callable[..., Store]]:
    """Open the store of this test, again if need be: the one before is then closed."""
    opened: list[Store] = []

    def open_(pages: int = PAGES, **options: Any) -> Store:
        while opened:
            opened.pop().close()
        opened.append(Store.open(shared_memory, "segment", (pages + 1) * PAGE_BYTES, clock=clock, **options))
        return opened[-1]

    yield open_
    while opened:
        opened.pop().close()


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store()
