"""A router with its page, before simulated engines that share node stores: what it is tested and shown with."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.integration.node.processes import NodeProcess
from tests.ports import free_ports

READY_WITHIN_S = 120.0


class DashboardStack:
    """The programs that run.

    Attributes
    ----------
    url, port
        The router's.
    engines
        URLs, in their order.
    model
        What is served.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: str,
        engines: int = 2,
        nodes: int = 1,
        capacity: str = "64MiB",
        adapters: Sequence[str] = (),
        engine: dict[str, object] | None = None,
        **router: object,
    ) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self.model = model
        try:
            self.nodes = [
                NodeProcess(folder, capacity=capacity, node_name=f"node-{number + 1}") for number in range(nodes)
            ]
            for node in self.nodes:
                self._stack.callback(node.close)
            self.port, *ports = free_ports(engines + 1)
            self.url = f"http://127.0.0.1:{self.port}"
            self.engines = [f"http://127.0.0.1:{port}" for port in ports]
            self.processes = [
                self._start(
                    "simulate-engine",
                    port=port,
                    model=model,
                    adapters=adapters,
                    store=self.nodes[number % nodes].url,
                    **(engine or {}),
                )
                for number, port in enumerate(ports)
            ]
            settings = {
                "dashboard": True,
                "dashboard_stores": [node.url for node in self.nodes],
                "health_interval_s": 0.2,
                "shutdown_timeout_s": 30,
                **router,
            }
            self._routed = {model, *adapters}
            self._router_settings = {"port": self.port, "endpoints": self.engines, **settings}
            self.start_router()
        except BaseException:
            self.close()
            raise

    @property
    def models(self) -> set[str]:
        """What the router serves; nothing as long as it does not answer."""
        with contextlib.suppress(OSError):
            return {card["id"] for card in json.loads(self.get("/v1/models")[1])["data"]}
        return set()

    def get(self, path: str, **fields: str) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and fields of an answer of the router."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=fields)
            answer = connection.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}

    def snapshot(self) -> dict[str, Any]:
        """Return the first snapshot of the page's stream."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", "/dashboard/events")
            answer = connection.getresponse()
            while not (line := answer.readline()).startswith(b"data: "):
                assert line, "the stream ended"
            found: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
            return found

    def chat(self, messages: Sequence[dict[str, str]], *, model: str = "", max_tokens: int = 8) -> str:
        """Have a chat go on; see :func:`chat`."""
        return chat(self.url, model or self.model, messages, max_tokens)

    def until(self, condition: Callable[[], bool]) -> None:
        """Until something is so."""
        deadline = time.monotonic() + READY_WITHIN_S
        while not condition():
            assert time.monotonic() < deadline, self._logs
            assert self.router.poll() is None, self._logs
            time.sleep(0.05)

    def start_router(self) -> None:
        """Start it, or start it again after :meth:`stop_router`, and wait until it serves."""
        self.router = self._start("router", **self._router_settings)
        self.until(lambda: self.models == self._routed)

    def stop_router(self) -> None:
        """Have it end, in order."""
        _end(self.router)

    def close(self) -> None:
        """End all programs."""
        self._stack.close()

    @property
    def _logs(self) -> str:
        return "\n".join(log.read_text()[-2000:] for log in self._folder.glob("*.log"))

    def _start(self, program: str, **settings: object) -> "subprocess.Popen[bytes]":
        name = f"{program}-{settings['port']}"
        config, log = self._folder / f"{name}.json", self._folder / f"{name}.log"
        config.write_text(json.dumps(settings))
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tierline", program, "--config", str(config)],
                stdout=output,
                stderr=output,
                env=dict(os.environ),
            )
        self._stack.callback(_end, process)
        return process


def chat(url: str, model: str, messages: Sequence[dict[str, str]], max_tokens: int) -> str:
    """Have a chat go on, by a stream that is read to its end; return what was answered."""
    body: dict[str, Any] = {
        "model": model,
        "messages": list(messages),
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        events = connection.getresponse().read().decode().split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    return "".join(choice["delta"]["content"] for chunk in chunks for choice in chunk["choices"])


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def dashboard_stack(folder: Path, **settings: Any) -> Iterator[DashboardStack]:
    """Run the programs for the time of a ``with`` block."""
    stack = DashboardStack(folder, **settings)
    try:
        yield stack
    finally:
        stack.close()
