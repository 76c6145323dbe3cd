"""A router in processes of its own, as ``tierline router`` starts it."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.router.backend import Backend, Client, client, request_bytes


@dataclass
class RouterProcess:
    """The program, its port, and what it logs."""

    process: asyncio.subprocess.Process
    port: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def workers(self) -> list[int]:
        """Process ids of the workers that run, in the order in which they were started."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def events(self, event: str) -> int:
        return sum(entry.get("event") == event for entry in self.log)

    async def follow(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(json.loads(line) if line.startswith(b"{") else {"text": line.decode()})
            if self.log[-1].get("event") == "router is ready":
                self.port = int(self.log[-1]["url"].rpartition(":")[2])


def command(*endpoints: Backend | str, **options: object) -> list[str]:
    """Return the command line; options are spelled like the flags, with underscores."""
    urls = [endpoint if isinstance(endpoint, str) else endpoint.url for endpoint in endpoints]
    given = {"port": 0, "workers": 2, "log_format": "json"} | options
    flags = [("--endpoint", url) for url in urls]
    for name, value in given.items():
        values = value if isinstance(value, list) else [value]
        flags += [(f"--{name.replace('_', '-')}", str(each)) for each in values]
    return [sys.executable, "-m", "tierline", "router", *(part for flag in flags for part in flag)]


@contextlib.asynccontextmanager
async def started(
    *endpoints: Backend | str, settings: dict[str, object] | None = None, **options: object
) -> AsyncIterator[RouterProcess]:
    """Run a router; ``settings`` are those that have no flag."""
    environment = {f"TIERLINE_ROUTER_{name.upper()}": str(value) for name, value in (settings or {}).items()}
    process = await asyncio.create_subprocess_exec(
        *command(*endpoints, **options),
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"TIERLINE_ROUTER_SHUTDOWN_TIMEOUT_S": "0"} | environment,
    )
    running = RouterProcess(process)
    following = asyncio.create_task(running.follow())
    try:
        async with asyncio.timeout(100):  # two programs after each other, each with all of its imports
            while not running.port and not following.done():  # noqa: ASYNC110  (another program's state)
                await asyncio.sleep(0.01)
        assert running.port, running.log
        yield running
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()
        await following


@contextlib.asynccontextmanager
async def clients(running: RouterProcess, count: int = 16) -> AsyncIterator[list[Client]]:
    """Connections to a router; of 16 to two workers all are one worker's once in 32,768 times."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(client(running)) for _ in range(count)]


async def ask(peer: Client, path: str, method: str = "GET", body: bytes = b"") -> tuple[int, Any]:
    """Ask what only programs on this machine may."""
    await peer.send(request_bytes(body, method=method, path=path).replace(b"host: router", b"host: localhost"))
    answer = await peer.answer()
    return answer.status, json.loads(answer.body)


async def metric(peer: Client, name: str) -> float:
    """Return the sum of all samples of that name."""
    await peer.send(request_bytes(method="GET", path="/metrics"))
    lines = (await peer.answer()).body.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].partition(" ")[0] == name)


async def until_metric(peer: Client, name: str, wanted: float) -> None:
    """Wait until that is the sum: a worker that does not answer in good time is told of as it was before."""
    async with asyncio.timeout(60):
        while await metric(peer, name) != wanted:  # noqa: ASYNC110  (another program's state)
            await asyncio.sleep(0.05)
