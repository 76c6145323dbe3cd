"""The routers that are measured, ours and PyPI's: how each is started in front of some engines, or why it is missing.

A peer is what its users get from ``pip install`` with default settings, but for the policy and quieter logs.
"""

import importlib.metadata
import importlib.util
import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tierline.bench.programs import Program, answers, free_ports, tierline
from tierline.errors import UsageError

BENCH_KEY = secrets.token_hex(16)
"""API key of the benchmark's requests: checked by our routers where they are told to, passed over by the others."""


@dataclass(frozen=True)
class Peer:
    """A router on PyPI that is started as ``python -m MODULE.launch_router``."""

    package: str
    module: str
    log_level: str

    @property
    def why_missing(self) -> str | None:
        """Why it cannot be measured; ``None`` where it can."""
        if importlib.util.find_spec(self.module) is None:
            return "not installed (pip install 'tierline[bench]', where its wheel is built for this machine)"
        return None

    @property
    def version(self) -> str:
        """The version that is installed."""
        return importlib.metadata.version(self.package)


VLLM_ROUTER = Peer("vllm-router", "vllm_router", "warning")
SGLANG_ROUTER = Peer("sglang-router", "sglang_router", "warn")
PEERS = (VLLM_ROUTER, SGLANG_ROUTER)


@dataclass(frozen=True)
class Running:
    """A router that runs."""

    name: str
    port: int
    program: Program
    metrics_url: str


def start_ours(
    name: str, strategy: str, engines: Sequence[str], folder: Path, more: Mapping[str, object] | None = None
) -> Running:
    """Start our router.

    Parameters
    ----------
    name
        What its rows call it.
    strategy, engines
        How it chooses among which URLs.
    folder
        Takes its configuration and its log.
    more
        Further keys of its configuration.
    """
    (port,) = free_ports(1)
    config = folder / f"{_file_name(name)}.json"
    keys = {"port": port, "strategy": strategy, "endpoints": list(engines), "log_level": "warning", **(more or {})}
    config.write_text(json.dumps(keys))
    url = f"http://127.0.0.1:{port}"
    program = Program(
        tierline("router", "--config", str(config)),
        folder / f"{_file_name(name)}.log",
        lambda: answers(f"{url}/health"),
    )
    return Running(name, port, program, f"{url}/metrics")


def everything_on(folder: Path) -> dict[str, object]:
    """Return the configuration that asks for API keys with rates, and limits and counts whatever can be."""
    keys = folder / "keys.json"
    tenant = {"name": "bench", "token": BENCH_KEY, "requests_per_s": 1e6, "tokens_per_min": 10**12}
    others = [{"name": f"tenant {number}", "token": secrets.token_hex(16)} for number in range(100)]
    keys.write_text(json.dumps({"keys": [tenant, *others]}))
    limits = {"max_inflight": 2048, "max_inflight_per_endpoint": 1024, "max_queued": 1024}
    return {"api_keys_file": str(keys), **limits}


def start_peer(name: str, peer: Peer, policy: str, engines: Sequence[str], folder: Path) -> Running:
    """Start a router of PyPI.

    Raises
    ------
    UsageError
        When it is not installed.
    """
    if peer.why_missing is not None:
        raise UsageError(f"{peer.package}: {peer.why_missing}")
    port, metrics_port = free_ports(2)
    argv = [
        *(sys.executable, "-m", f"{peer.module}.launch_router", "--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", *engines, "--policy", policy, "--log-level", peer.log_level),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)),
    ]
    url = f"http://127.0.0.1:{port}"
    # sglang-router is healthy before it knows its workers, and lists the models of those it knows.
    program = Program(
        argv, folder / f"{_file_name(name)}.log", lambda: answers(f"{url}/health") and answers(f"{url}/v1/models")
    )
    return Running(name, port, program, f"http://127.0.0.1:{metrics_port}/metrics")


def _file_name(name: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in name)
