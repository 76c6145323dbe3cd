"""LMCache's two stock clients, unchanged, against a real node.

Beside vLLM, whose dependencies they need: ``pip install 'tierline[lmcache-cpu]'``, ``pip install --no-deps lmcache``.
"""

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults.metrics import metric
from tests.integration.node.processes import MIB, NodeProcess, head, wait_until

IN_PROCESS_CLIENT = Path(__file__).with_name("inprocess_client.py")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lmcache") is None or importlib.util.find_spec("torch") is None,
    reason="lmcache is not installed, or torch is not: make .venv/lmcache.stamp .venv/engine.stamp",
)


@pytest.fixture
async def client(node: NodeProcess) -> AsyncIterator[Any]:
    from lmcache.v1.distributed.l2_adapters.sagemaker_hyperpod_client import SageMakerHyperPodClient

    client = SageMakerHyperPodClient(
        f"sagemaker-hyperpod://127.0.0.1:{node.port}",
        shared_memory_name=node.segment_name,
        timeout_ms=60_000,
        lease_wait_timeout_ms=30_000,
    )
    yield client
    assert client.report_status()["consecutive_http_failures"] == 0
    await client.close()


async def read(client: Any, key: str) -> bytes | None:
    lease = await client.acquire_lease(key)
    if lease is None:
        return None
    content = bytearray(lease.size)
    assert client.copy_from_lease(lease, memoryview(content))
    assert await client.release_lease(lease)
    return bytes(content)


async def test_the_multiprocess_client_reads_what_it_put(client: Any) -> None:
    content = os.urandom(2_949_120)
    assert await client.put("org/model@00000000@0@c0ffee@salt%1", memoryview(content))
    assert await read(client, "org/model@00000000@0@c0ffee@salt%1") == content


async def test_the_multiprocess_client_takes_an_object_that_is_there_for_stored(node: NodeProcess, client: Any) -> None:
    assert await client.put("twice", memoryview(b"first"))
    commits = node.stats["store"]["commits"]
    assert await client.put("twice", memoryview(os.urandom(8 * MIB)))
    assert node.stats["store"]["commits"] == commits
    assert await read(client, "twice") == b"first"


async def test_the_multiprocess_client_takes_an_absent_object_for_a_miss(client: Any) -> None:
    assert await client.acquire_lease("absent") is None


async def test_the_multiprocess_client_may_release_twice_and_what_it_never_had(client: Any) -> None:
    await client.put("released", memoryview(b"x"))
    lease = await client.acquire_lease("released")
    assert await client.release_lease(lease)
    assert await client.release_lease(lease)


async def test_the_multiprocess_client_works_with_many_objects_at_once(client: Any) -> None:
    contents = {f"burst/{number}": os.urandom(300_000 + number) for number in range(64)}
    assert all(await asyncio.gather(*(client.put(key, memoryview(value)) for key, value in contents.items())))
    assert await asyncio.gather(*(read(client, key) for key in contents)) == list(contents.values())


async def test_the_multiprocess_client_waits_for_an_object_being_written(node: NodeProcess, client: Any) -> None:
    content = os.urandom(MIB)
    with node.http() as writer:
        writer.send(head("PUT", "/v1/kv/lmcache/slow", MIB) + content[:1000])
        await asyncio.to_thread(wait_until, lambda: node.stats["store"]["slots"] == 1)
        reading = asyncio.create_task(read(client, "slow"))
        await asyncio.to_thread(wait_until, lambda: metric(node, 'tierline_node_waiting{kind="reader"}') == 1)
        writer.send(content[1000:])
        assert await reading == content


async def test_the_in_process_client_works_and_its_exit_does_not_cost_the_segment(
    node: NodeProcess, client: Any
) -> None:
    inode = node.segment.stat().st_ino
    finished = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(IN_PROCESS_CLIENT), str(node.port), node.segment_name],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    [line] = [line for line in finished.stdout.splitlines() if line.startswith("RESULT ")]
    result = json.loads(line.removeprefix("RESULT "))
    assert (result["found"], result["equal"]) == (8, [True] * 8 + [False])
    assert (result["stats"]["put_success"], result["stats"]["put_failure"]) == (16, 0)
    assert result["stats"]["lease_release_failed"] == 0
    if sys.version_info < (3, 13):
        await asyncio.to_thread(wait_until, lambda: node.stats["segment"]["relinks"] >= 1)
    assert node.segment.stat().st_ino == inode
    assert await read(client, "org/model@1@0@3@bfloat16") is not None
