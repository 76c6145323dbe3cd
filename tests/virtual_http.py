"""Servers and their clients in virtual time (:mod:`tests.unit.node.virtual_time`): both take as long as they sleep.

They talk over UNIX sockets. What one has sent there is at the other before the loop looks whether anybody waits for it,
so that no time passes while it is under way.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web


@contextlib.asynccontextmanager
async def serving(app: web.Application, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """Serve an app, whatever URL is asked, to the sessions that are opened meanwhile; yield a URL."""
    path = str(folder / "server.sock")
    runner = web.AppRunner(app)
    await runner.setup()
    session = aiohttp.ClientSession
    try:
        await web.UnixSite(runner, path).start()
        with monkeypatch.context() as patched:
            patched.setattr(aiohttp, "ClientSession", lambda: session(connector=aiohttp.UnixConnector(path)))
            yield "http://served-here"
    finally:
        await runner.cleanup()


def tell_time(monkeypatch: pytest.MonkeyPatch, *modules: Any) -> None:
    """Have modules that measure with :mod:`time` measure by the loop that they run on."""

    def now() -> float:
        return asyncio.get_running_loop().time()

    for module in modules:
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=now, monotonic=now))
