"""Everything that is watched, as programs on one machine: for tests of what the programs say of themselves.

Two node stores that are one pool, an engine with each, the proxy in front of one engine, a controller, a router that
listens to events itself, a router of two workers that asks the controller, and a collector.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.integration.node.processes import NodeProcess
from tests.ports import free_ports

MODEL = "simulated-model"
READY_WITHIN_S = 200.0
DIMENSIONS = {"cluster_name": "here", "resource_name": "demo", "namespace": "default", "pod_name": "demo-0"}


class WatchedStack:
    """The programs that run, and where their pages are.

    Parameters
    ----------
    folder
        For logs, sockets and configurations.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._numbers = itertools.count()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.pages: dict[str, list[str]] = {}
        """URLs of ``/metrics`` by the program, as the catalogue calls it."""
        ports = iter(free_ports(11))
        port_of = [next(ports) for _ in range(2)]
        places = [f"node-{number}=127.0.0.1:{next(ports)}" for number in range(2)]
        events = [f"ipc://{folder}/node-{number}" for number in range(2)]
        secret = folder / "pool.token"
        secret.write_text("a secret of this pool alone")
        nodes = [
            self._node(
                node_name=place.partition("=")[0],
                transfer_address=place.partition("=")[2],
                peers=",".join(places),
                pool_token_file=secret,
                kv_events=address,
            )
            for place, address in zip(places, events, strict=True)
        ]
        engines = [f"http://127.0.0.1:{port}" for port in port_of]
        for number, (port, node) in enumerate(zip(port_of, nodes, strict=True)):
            self._start(
                "simulate-engine",
                f"{engines[number]}/metrics",
                {
                    "port": port,
                    "model": MODEL,
                    "prefill_rate": 1e5,
                    "decode_rate": 1000,
                    "cache_blocks": 300,
                    "store": node.url,
                    "kv_events_endpoint": f"ipc://{folder}/engine-{number}",
                },
            )
        proxy, proxy_page = next(ports), next(ports)
        self._start(
            "proxy",
            f"http://127.0.0.1:{proxy_page}/metrics",
            {
                "port": proxy,
                "metrics_port": proxy_page,
                "upstream": engines[0],
                "max_concurrent_requests": 8,
                "capture_uri": f"file://{folder}/captured",
                **DIMENSIONS,
            },
        )
        self.engines = (f"http://127.0.0.1:{proxy}", engines[1])
        """Where clients reach them."""
        kv_events = [f"{url}=ipc://{folder}/engine-{number}" for number, url in enumerate(self.engines)]
        node_events = [f"{url}={where}?replay={where}.replay" for url, where in zip(self.engines, events, strict=True)]
        self.router = self._router(next(ports), kv_events=kv_events, node_events=node_events)
        page = next(ports)
        self._start(
            "controller",
            f"http://127.0.0.1:{page}/metrics",
            {
                "endpoints": self.engines,
                "kv_events": kv_events,
                "http": f"127.0.0.1:{page}",
                "listen": [f"unix:{folder}/controller"],
            },
        )
        self.asking_router = self._router(next(ports), controller=f"unix:{folder}/controller", workers=2)
        port = next(ports)
        self._start(
            "collector",
            f"http://127.0.0.1:{port}/metrics",
            {
                "targets": [f"reverse-proxy={self.pages['tierline proxy'][0]}"],
                "port": port,
                "interval_s": 1,
                **DIMENSIONS,
            },
        )
        try:
            self._until_all_answer()
        except BaseException:
            self.close()
            raise

    def ask(self, url: str, prompt: list[int] | str, **more: Any) -> None:
        """Have a prompt answered to its end."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 4, **more}
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()

    def traffic(self) -> None:
        """Have something of everything happen that metrics tell of, each time anew: cold, warm, from elsewhere."""
        usage = {"stream": True, "stream_options": {"include_usage": True}}
        for _ in range(2):
            number = next(self._numbers)
            prompt = [1000 * number + each for each in range(1000)]
            self.ask(self.engines[0], prompt)
            self.ask(self.engines[1], prompt)
            for router in (self.router, self.asking_router):
                self.ask(router, prompt)
                self.ask(router, [*prompt, *range(100)], **usage)
                self.ask(router, f"question {number} about a text that everybody has " * 20, **usage)

    def page(self, url: str) -> str:
        """Return what a program says."""
        with urllib.request.urlopen(url, timeout=30) as answer:
            content: bytes = answer.read()
            return content.decode()

    def close(self) -> None:
        """End all programs."""
        self._stack.close()

    def _node(self, **settings: Any) -> NodeProcess:
        node = NodeProcess(self._folder, capacity="64MiB", **settings)
        self._stack.callback(node.close)
        self.pages.setdefault("tierline node", []).append(f"{node.url}/metrics")
        return node

    def _router(self, port: int, **settings: object) -> str:
        url = f"http://127.0.0.1:{port}"
        common = {"port": port, "endpoints": self.engines, "strategy": "kvaware", "health_interval_s": 0.2}
        self._start("router", f"{url}/metrics", {**common, **settings})
        return url

    def _start(self, program: str, page: str, settings: dict[str, object]) -> None:
        name = f"{program}-{len(self.pages.get(f'tierline {program}', []))}"
        config, log = self._folder / f"{name}.json", self._folder / f"{name}.log"
        config.write_text(json.dumps(settings))
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tierline", program, "--config", str(config)],
                stdout=output,
                stderr=output,
                env={**os.environ, "TIERLINE_ROUTER_SHUTDOWN_TIMEOUT_S": "0"},
            )
        self._stack.callback(_end, process)
        self._processes.append(process)
        self.pages.setdefault(f"tierline {program}", []).append(page)

    def _until_all_answer(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        for url in [url for urls in self.pages.values() for url in urls]:
            while not self._answers(url):
                assert time.monotonic() < deadline, f"{url} does not answer\n{self._logs}"
                time.sleep(0.1)
        assert all(process.poll() is None for process in self._processes), self._logs

    @property
    def _logs(self) -> str:
        return "\n".join(log.read_text()[-2000:] for log in self._folder.glob("*.log"))

    def _answers(self, url: str) -> bool:
        try:
            return bool(self.page(url))
        except OSError:
            return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def watched_stack(folder: Path) -> Iterator[WatchedStack]:
    """Run everything for the time of a ``with`` block."""
    stack = WatchedStack(folder)
    try:
        yield stack
    finally:
        stack.close()
