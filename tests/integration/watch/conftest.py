"""Everything that is watched, once for all tests here, with something of everything having happened."""

from collections.abc import Iterator

import pytest
from tests.watched_stack import WatchedStack, watched_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedStack]:
    with watched_stack(tmp_path_factory.mktemp("watched")) as stack:
        stack.traffic()
        yield stack
