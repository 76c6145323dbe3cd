"""The proxy and the collector as programs: they listen, stop in order, and say what must be changed first."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tests.integration.router.backend import Backend, answering, backends, chat, client, until, whole
from tests.integration.router.test_admission import Gate
from tests.ports import free_port, free_ports


@dataclass
class Started:
    process: asyncio.subprocess.Process
    port: int


@contextlib.asynccontextmanager
async def started(program: str, *arguments: str, port: int, ready: str) -> AsyncIterator[Started]:
    argv = [sys.executable, "-m", "tierline", program, *arguments, "--port", str(port), "--log-format", "json"]
    process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            while json.loads(await process.stderr.readline())["event"] != ready:
                pass
        yield Started(process, port)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def proxy_of(model: Backend, port: int, metrics_port: int) -> "contextlib.AbstractAsyncContextManager[Started]":
    arguments = ("--upstream", model.url, "--metrics-port", str(metrics_port))
    return started("proxy", *arguments, port=port, ready="proxy is ready")


async def test_a_proxy_that_is_told_to_end_lets_the_running_request_end_first() -> None:
    gate = Gate()
    port, metrics_port = free_ports(2)
    async with backends(gate) as (model,), proxy_of(model, port, metrics_port) as proxy:
        async with client(proxy) as peer:
            asking = asyncio.create_task(peer.ask(chat()))
            await until(lambda: len(gate.waiting) == 1)
            proxy.process.send_signal(signal.SIGTERM)
            await until_refused(port)
            gate.open()
            answer = await asking
        assert (answer.status, answer.fields["connection"]) == (200, "close")
        assert await asyncio.wait_for(proxy.process.wait(), 60) == 0


async def until_refused(port: int) -> None:
    """Wait until nobody listens on a port any more."""
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.02)


async def test_a_collector_serves_and_ends() -> None:
    async with backends(answering(whole())) as (model,):
        target = f"model-container={model.url}/metrics"
        async with started("collector", "--target", target, port=free_port(), ready="collector is ready") as collector:
            async with client(collector) as peer:
                assert (await peer.ask(method="GET", path="/metrics")).status == 200
            collector.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(collector.process.wait(), 60) == 0


async def test_a_port_that_somebody_has_is_said_in_a_line() -> None:
    async with backends(answering(whole())) as (model,):
        for program, flags in (
            ("proxy", ["--upstream", model.url, "--metrics-port", "0"]),
            ("collector", ["--target", f"a={model.url}/metrics"]),
        ):
            argv = [sys.executable, "-m", "tierline", program, *flags, "--port", str(model.port)]
            done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, check=False, timeout=60)
            assert done.returncode == 2
            last = done.stderr.splitlines()[-1].decode()
            assert last.startswith(f"tierline: cannot listen on 127.0.0.1:{model.port}: ")
