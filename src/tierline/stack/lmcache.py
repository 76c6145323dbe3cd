"""How LMCache is started beside a replica: the command line of its server, and what vLLM is told to reach it.

Each replica has a server of its own, as each model instance of a HyperPod cluster has an L1 of its own: what replicas
share is the node store, and a replica that is restarted starts without anything that only it remembered.
"""

import importlib.util
import json
import sys
from collections.abc import Mapping

from tierline.errors import UsageError
from tierline.prefix import CHUNK_TOKENS
from tierline.stack.engines import ENGINE_HOST, EngineCommand

SERVER_OVERHEAD_BYTES = 320 * 1024**2
"""What ``lmcache server`` takes besides its own cache: a Python process with torch."""

VLLM_ARGUMENTS = ("--disable-hybrid-kv-cache-manager",)
"""What vLLM needs beside ``--kv-transfer-config``: transfers driven by the engine, the only kind on CPUs, know no
groups of layers."""

MEMORY_PREFIX = "lmcache_l1_pool_"
"""What LMCache puts before the name of its cache in /dev/shm."""

_MODULES = ("lmcache", "sortedcontainers", "opentelemetry.exporter.prometheus")
_GIB = 1024**3
_LEASE_WAIT_MS = 250


def require_lmcache() -> None:
    """Raise :class:`UsageError` where LMCache, or what its server imports, is not installed; does not import it."""
    missing = [module for module in _MODULES if not _is_installed(module)]
    if missing:
        raise UsageError(
            f"--connector: {', '.join(missing)} cannot be imported in this environment; beside CUDA, "
            "pip install 'tierline[lmcache]'; on CPUs, where lmcache's own requirements do not fit, "
            "pip install 'tierline[lmcache-cpu]' and pip install --no-deps 'lmcache>=0.5.6,<0.6'"
        )


def stock_l2_adapter(node_url: str, segment: str) -> dict[str, object]:
    """Return ``--l2-adapter`` for LMCache's own client of the node store."""
    return {
        "type": "sagemaker-hyperpod",
        "url": node_url.replace("http://", "sagemaker-hyperpod://"),
        "shared_memory_name": segment,
        "lease_wait_timeout_ms": _LEASE_WAIT_MS,
    }


def plugin_l2_adapter(node_url: str) -> dict[str, object]:
    """Return ``--l2-adapter`` for our client of the node store, :mod:`tierline.connectors.lmcache`."""
    return {
        "type": "plugin",
        "module_path": "tierline.connectors.lmcache",
        "class_name": "TierlineL2Adapter",
        "config_class_name": "TierlineL2AdapterConfig",
        "adapter_params": {"url": node_url.replace("http://", "tierline://")},
    }


def server_command(
    *, port: int, http_port: int, memory_name: str, size_bytes: int, l2_adapter: Mapping[str, object]
) -> EngineCommand:
    """Return how to start ``lmcache server``.

    Parameters
    ----------
    port
        Where engines reach it, on loopback.
    http_port
        Where its health, status and metrics are, on loopback.
    memory_name
        Name of its cache in /dev/shm, which the engine maps.
    size_bytes
        Size of that cache, LMCache's L1.
    l2_adapter
        Value of ``--l2-adapter``.
    """
    argv = [
        *(sys.executable, "-m", "lmcache.cli.main", "server", "--chunk-size", str(CHUNK_TOKENS)),
        *("--host", ENGINE_HOST, "--port", str(port), "--http-host", ENGINE_HOST, "--http-port", str(http_port)),
        *("--l1-size-gb", str(size_bytes / _GIB), "--no-l1-use-lazy", "--eviction-policy", "LRU"),
        *("--supported-transfer-mode", "engine_driven", "--shm-name", memory_name),
        *("--l2-adapter", json.dumps(l2_adapter)),
    ]
    return EngineCommand(argv, {"DO_NOT_TRACK": "1", "LMCACHE_DISABLE_BANNER": "1"})


def kv_transfer_config(port: int) -> dict[str, object]:
    """Return vLLM's ``--kv-transfer-config`` for the server on ``port``."""
    return {
        "kv_connector": "LMCacheMPConnector",
        "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",  # vLLM's default fails the request
        "kv_connector_extra_config": {"lmcache.mp.host": f"tcp://{ENGINE_HOST}", "lmcache.mp.port": port},
    }


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False
