"""Redis servers of Debian's package for tests: alone, as a cluster, behind sentinels, with TLS."""

import contextlib
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis
from tests.ports import free_port, free_ports

from tierline.bench.programs import Program

BINARY = shutil.which("redis-server")
READY_WITHIN_S = 90.0
"""For a program to start: Python's take seconds, and many on a slow machine."""
needs_redis = pytest.mark.skipif(BINARY is None, reason="redis-server is not installed")


def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give servers that are well the time that a machine needs which stands still for seconds."""
    monkeypatch.setattr("tierline.pool.redis.servers._STEP_S", 60.0)
    monkeypatch.setattr("tierline.pool.redis.tier._BOOKKEEPING_S", 60.0)


def listens(port: int, address: str = "127.0.0.1") -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection((address, port), timeout=2.0):
        return True
    return False


def server(folder: Path, port: int, *arguments: str) -> Program:
    """Start a server without persistence."""
    assert BINARY is not None
    own = folder / f"redis-{port}"
    own.mkdir(exist_ok=True)
    argv = [BINARY, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(own), "--save", "", "--appendonly", "no"]
    awaited = int(arguments[arguments.index("--tls-port") + 1]) if "--tls-port" in arguments else port
    return Program([*argv, *arguments], own / "log", lambda: listens(awaited), READY_WITHIN_S)


@contextmanager
def one(folder: Path, *arguments: str) -> Iterator[int]:
    port = free_port()
    with server(folder, port, *arguments):
        yield port


@contextmanager
def cluster(folder: Path) -> Iterator[Sequence[int]]:
    """Three primaries that share all slots."""
    ports = free_ports(3)
    with ExitStack() as stack:
        nodes = []
        for port in ports:
            bus = str(port + 1)
            stack.enter_context(
                server(
                    folder,
                    port,
                    "--cluster-enabled",
                    "yes",
                    "--cluster-port",
                    bus,
                    "--cluster-node-timeout",
                    "1000",
                    "--cluster-require-full-coverage",
                    "no",
                )
            )
            nodes.append(stack.enter_context(redis.Redis(port=port)))
        bounds = [0, 5461, 10923, 16384]
        for number, node in enumerate(nodes):
            node.execute_command("CLUSTER ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            node.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for port in ports[1:]:
            nodes[0].execute_command("CLUSTER MEET", "127.0.0.1", port, port + 1)
        until(lambda: all(b"cluster_state:ok" in _raw_info(node) for node in nodes))
        until(lambda: all(len(node.execute_command("CLUSTER SLOTS")) == 3 for node in nodes))
        for node in nodes:  # they are one now: nobody who stands still for seconds is taken for dead
            node.config_set("cluster-node-timeout", 60_000)
        yield ports


@contextmanager
def sentinel(folder: Path) -> Iterator[tuple[int, Sequence[Program], Sequence[int]]]:
    """A master named ``main``, a replica of it and a sentinel that decides alone; yields its port, and the servers.

    It takes a master for dead after a minute, until a test says otherwise.
    """
    assert BINARY is not None
    watch, master, replica = free_ports(3)
    configuration = folder / "sentinel.conf"
    configuration.write_text(
        f"port {watch}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor main 127.0.0.1 {master} 1\n"
        "sentinel down-after-milliseconds main 60000\nsentinel failover-timeout main 2000\n"
    )
    with (
        server(folder, master) as first,
        server(folder, replica, "--replicaof", f"127.0.0.1 {master}") as second,
        redis.Redis(port=replica) as asked,
    ):
        until(lambda: asked.info("replication")["master_link_status"] == "up")
        argv = [BINARY, str(configuration), "--sentinel"]
        with (
            Program(argv, folder / "sentinel.log", lambda: listens(watch), READY_WITHIN_S),
            redis.Redis(port=watch) as observer,
        ):
            until(lambda: observer.sentinel_masters()["main"]["num-slaves"] == 1)
            yield watch, (first, second), (master, replica)


def until(holds: "object", within_s: float = 60.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + within_s
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it never held"
        time.sleep(0.05)


def _raw_info(node: "redis.Redis") -> bytes:
    answer = node.execute_command("CLUSTER INFO")
    return (
        answer if isinstance(answer, bytes) else "".join(f"{key}:{value}\n" for key, value in answer.items()).encode()
    )
