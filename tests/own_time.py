"""An event loop with a time of its own: when all wait for timers, it is at once the time of the first of them.

What runs on it takes exactly as long as it says that it sleeps, however busy the machine is. Clients and servers on it
talk over UNIX sockets: what one has sent there is at the other before the loop looks whether anybody waits for it.
"""

import asyncio
import contextlib
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import aiohttp
import pytest
from aiohttp import web

T = TypeVar("T")


class _Selector(selectors.EpollSelector):
    """Tells of what is ready; where nothing is, and it may wait for a time only, that has passed."""

    passes: Callable[[float], None]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(None if timeout is None else 0)
        if timeout is not None and not ready:
            self.passes(timeout)
        return ready


class _Loop(asyncio.SelectorEventLoop):
    """The loop; its time begins at 0."""

    def __init__(self) -> None:
        self._now_s = 0.0
        selector = _Selector()
        selector.passes = self._pass
        super().__init__(selector)

    def time(self) -> float:
        return self._now_s

    def _pass(self, seconds: float) -> None:
        self._now_s += seconds


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, as ``asyncio.run`` does."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)


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
