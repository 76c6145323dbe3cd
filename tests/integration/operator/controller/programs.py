"""The operator as it is installed, as a process of its own, and resources for it; what it has written is its count."""

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from tests.integration.operator.controller.operators import RESOURCES, resource
from tests.kube import Api
from tests.ports import free_port

ROUTED: dict[str, Any] = {
    "kvCacheSpec": {"enableL2Cache": True, "l2CacheSpec": {"l2CacheBackend": "tieredstorage"}},
    "intelligentRoutingSpec": {"enabled": True},
    "tlsConfig": {"tlsCertificateOutputS3Uri": "s3://bucket/certs/"},
    "modelSourceConfig": {
        "modelSourceType": "s3",
        "modelLocation": "models/toy",
        "s3Storage": {"bucketName": "bucket", "region": "us-west-2"},
    },
}
"""Of an endpoint with about all that one has: some 15 objects of its own."""
_WRITES = ("tierline_operator_child_writes_total", "tierline_operator_status_writes_total")


class Program:
    """An operator that runs; made by :func:`program`."""

    def __init__(self, pid: int, url: str) -> None:
        self.pid = pid
        self._url = url

    async def metrics(self) -> dict[str, float]:
        """Return its metrics, by name and labels."""
        async with aiohttp.ClientSession() as session, session.get(f"{self._url}/metrics") as answer:
            page = await answer.text()
        return {
            key: float(value)
            for key, _, value in (line.rpartition(" ") for line in page.splitlines())
            if key.startswith("tierline")
        }

    async def writes(self) -> float:
        """Return how often it has written children and statuses."""
        return sum(value for key, value in (await self.metrics()).items() if key.startswith(_WRITES))

    async def settled(self) -> float:
        """Return how much was written, once nothing more is, and nobody looks at anything."""
        former, quiet = -1.0, 0
        while quiet < 10:  # for longer than an API server may keep to itself what has changed
            await asyncio.sleep(0.5)
            current, is_idle = await self.writes(), not (await self.metrics())["tierline_operator_working_resources"]
            quiet, former = quiet + 1 if current == former and is_idle else 0, current
        return former

    def largest_memory(self) -> int:
        """Return the most bytes of memory that it has had."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024


@contextlib.asynccontextmanager
async def program(kubeconfig: Path, namespace: str) -> AsyncIterator[Program]:
    """Run the operator for the time of a ``with`` block; it ends in good order."""
    port = free_port()
    command = [sys.executable, "-m", "tierline", "operator", "run", "--kubeconfig", str(kubeconfig)]
    options = ["--namespace", namespace, "--http", f"127.0.0.1:{port}", "--log-level", "warning"]
    process = await asyncio.create_subprocess_exec(*command, *options)
    try:
        yield Program(process.pid, f"http://127.0.0.1:{port}")
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def apply_many(api: Api, namespace: str, count: int) -> None:
    """Ask for so many endpoints."""
    for number in range(count):
        await api.ask("POST", RESOURCES.format(namespace), resource(f"e{number}", **ROUTED))


async def all_have_status(api: Api, namespace: str) -> bool:
    """Whether each resource was looked at to the end."""
    listed = (await api.ask("GET", RESOURCES.format(namespace)))["items"]
    return all(each.get("status", {}).get("conditions") for each in listed)
