"""The router's tests run on the event loop that the router runs on."""

from collections.abc import Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], uvloop.Loop]] | None:
    return {"uvloop": uvloop.new_event_loop} if item.path.name.startswith("test_router_") else None
