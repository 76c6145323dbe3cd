"""LMCache's own L2 adapter and ours beside each other on one node store: leases a request, and how long requests take.

Run it where LMCache and torch are installed: ``python benchmarks/lmcache_adapters.py``. The objects are those of
Llama-3.1-8B's shape in small: 32 chunks of 2.8 MiB; every figure is a median over 30 requests, in milliseconds.
"""

import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.config import get_l2_adapter_config_class
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

PORT = 29_200
SEGMENT = "tierline-benchmark-lmcache"
OBJECT_BYTES = 2_949_120
CHUNKS = 32
REQUESTS = 30
OURS = {"module_path": "tierline.connectors.lmcache", "class_name": "TierlineL2Adapter"}
SPECS: dict[str, dict[str, Any]] = {
    "LMCache's own": {
        "type": "sagemaker-hyperpod",
        "url": f"sagemaker-hyperpod://127.0.0.1:{PORT}",
        "shared_memory_name": SEGMENT,
    },
    "ours": {"type": "plugin", **OURS, "adapter_params": {"url": f"tierline://127.0.0.1:{PORT}"}},
    "ours, by GET": {
        "type": "plugin",
        **OURS,
        "adapter_params": {"url": f"tierline://127.0.0.1:{PORT}", "shared_memory_name": None},
    },
}


def main() -> None:
    """Print a table."""
    socket = Path(tempfile.mkdtemp()) / "node.sock"
    node = [sys.executable, "-m", "tierline", "node", "--port", str(PORT), "--socket", str(socket)]
    process = subprocess.Popen([*node, "--capacity", "512MiB", "--shared-memory-name", SEGMENT, "--log-level", "error"])
    try:
        while not _is_ready():
            time.sleep(0.1)
        columns = "| adapter | store | lookup, cold | lookup, warm | lookup, load, unlock | leases a request |"
        lines = [columns, "|---|---|---|---|---|---|"]
        for name, spec in SPECS.items():
            config = get_l2_adapter_config_class(spec["type"]).from_dict(spec)
            lines.append(f"| {name} | {' | '.join(measure(create_l2_adapter(config), name))} |")
    finally:
        process.terminate()
        process.wait()
        for path in Path("/dev/shm").glob(f"{SEGMENT}*"):  # noqa: S108
            path.unlink()
    print("\n".join(lines))  # noqa: T201


def _is_ready() -> bool:
    try:
        return bool(_get("/readyz"))
    except OSError:
        return False


def _get(path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}") as reply:
        content: bytes = reply.read()
        return content


def measure(adapter: Any, name: str) -> list[str]:
    """Return one row's figures."""
    keys = _keys_of(name)
    memories = [_memory() for _ in keys]
    look_up_cold = [
        _timed(lambda number=number: _look_up(adapter, _keys_of(f"{name} {number}"))) for number in range(REQUESTS)
    ]
    stores = []
    for number in range(3):
        fresh = _keys_of(f"{name} stored {number}") if number else keys
        stores.append(_timed(lambda fresh=fresh: _store(adapter, fresh, memories)))
    look_up_warm, whole = [], []
    hits = msgspec.json.decode(_get("/v1/stats"))["store"]["hits"]
    before = leases_given()
    for _ in range(REQUESTS):
        look_up_warm.append(_timed(lambda: _look_up(adapter, keys)))
        adapter.submit_unlock(keys)
        whole.append(_timed(lambda: _request(adapter, keys, memories)))
    leases = (leases_given() - before) / (2 * REQUESTS)
    assert name.endswith("GET") or msgspec.json.decode(_get("/v1/stats"))["store"]["hits"] > hits
    adapter.close()
    times = [statistics.median(each) for each in (stores, look_up_cold, look_up_warm, whole)]
    return [*(f"{1000 * each:.1f}" for each in times), f"{leases:.0f}"]


def leases_given() -> float:
    """Return how many requests for leases the node has answered, over HTTP and over its socket."""
    leases = ('verb="PrefixLease"', 'route="AcquireLease"')
    lines = [line for line in _get("/metrics").decode().splitlines() if "_requests_total{" in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines if any(lease in line for lease in leases))


def _request(adapter: Any, keys: list[ObjectKey], memories: list[TensorMemoryObj]) -> None:
    _look_up(adapter, keys)
    task = adapter.submit_load_task(keys, memories)
    _await_signal(adapter.get_load_event_fd())
    assert adapter.query_load_result(task).popcount() == len(keys)
    adapter.submit_unlock(keys)


def _look_up(adapter: Any, keys: list[ObjectKey]) -> None:
    task = adapter.submit_lookup_and_lock_task(keys, {})
    _await_signal(adapter.get_lookup_and_lock_event_fd())
    assert adapter.query_lookup_and_lock_result(task) is not None


def _store(adapter: Any, keys: list[ObjectKey], memories: list[TensorMemoryObj]) -> None:
    task = adapter.submit_store_task(keys, memories)
    _await_signal(adapter.get_store_event_fd())
    assert adapter.pop_completed_store_tasks()[task].is_successful()


def _await_signal(descriptor: int) -> None:
    select.select([descriptor], [], [])
    os.eventfd_read(descriptor)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _keys_of(name: str) -> list[ObjectKey]:
    return [ObjectKey(f"{name} {number}".encode(), "org/model", 1) for number in range(CHUNKS)]


def _memory() -> TensorMemoryObj:
    raw = torch.randint(0, 256, (OBJECT_BYTES,), dtype=torch.uint8)
    shape = torch.Size([OBJECT_BYTES])
    return TensorMemoryObj(
        raw, MemoryObjMetadata(shape, torch.uint8, 0, OBJECT_BYTES, 1, fmt=MemoryFormat.BINARY), None
    )


if __name__ == "__main__":
    main()
