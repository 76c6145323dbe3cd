"""A Mooncake Store on loopback: its master, and a process that lends it memory."""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.integration.pool.redis_servers import READY_WITHIN_S, listens
from tests.ports import free_ports

from tierline.bench.programs import Program

_BESIDE = Path(sys.executable).with_name("mooncake_master")
MASTER = str(_BESIDE) if _BESIDE.exists() else shutil.which("mooncake_master")
LENT_BYTES = 512 * 1024 * 1024


def _missing() -> str:
    """Return why there is no Mooncake here; empty where there is."""
    try:
        import mooncake.store  # noqa: F401
    except ImportError as error:
        return f"Mooncake cannot be imported: {error}"
    return "" if MASTER else "mooncake_master is not installed"


needs_mooncake = pytest.mark.skipif(bool(_missing()), reason=_missing() or "it is there")


def master(folder: Path, port: int, metrics: int) -> Program:
    assert MASTER is not None
    argv = [MASTER, f"--rpc_port={port}", "--rpc_address=127.0.0.1", "--default_kv_lease_ttl=10000"]
    argv += ["--metrics_host=127.0.0.1", f"--metrics_port={metrics}"]
    return Program(argv, folder / f"master-{time.monotonic_ns()}.log", lambda: listens(port), READY_WITHIN_S)


def lender(folder: Path, port: int, lent: int = LENT_BYTES) -> Program:
    log = folder / f"lender-{time.monotonic_ns()}.log"
    argv = [sys.executable, str(Path(__file__).with_name("mooncake_lender.py")), str(port), str(lent)]
    return Program(argv, log, lambda: "lent" in log.read_text(errors="replace").split(), READY_WITHIN_S)


@contextmanager
def one(folder: Path, lent: int = LENT_BYTES) -> Iterator[int]:
    port, metrics = free_ports(2)
    with master(folder, port, metrics), lender(folder, port, lent):
        yield port
