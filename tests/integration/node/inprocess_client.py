"""Drives LMCache's real in-process connector and prints what happened as JSON; a program of its own, for on
Python up to 3.12 its exit unlinks the segment. Usage: inprocess_client.py PORT SEGMENT
"""

import asyncio
import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.connector.sagemaker_hyperpod_connector import SageMakerHyperPodConnector

OBJECTS = 8
CHUNK_TOKENS = 64
SHAPE = torch.Size([2, 4, CHUNK_TOKENS, 256])


def allocate(shape: torch.Size, dtype: torch.dtype, fmt: MemoryFormat) -> TensorMemoryObj:
    raw = torch.zeros(shape.numel() * dtype.itemsize, dtype=torch.uint8)
    return TensorMemoryObj(raw, MemoryObjMetadata(shape, dtype, 0, raw.numel(), 1, fmt=fmt), None)


def content(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    size = SHAPE.numel() * torch.bfloat16.itemsize
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)


def key_of(number: int) -> CacheEngineKey:
    return CacheEngineKey("org/model", 1, 0, number, torch.bfloat16)


async def main(port: str, segment: str) -> dict[str, Any]:
    shape = (4, 2, CHUNK_TOKENS, 2, 128)
    metadata = LMCacheMetadata("org/model", 1, 1, 0, 0, torch.bfloat16, shape, chunk_size=CHUNK_TOKENS)
    backend = SimpleNamespace(
        config=SimpleNamespace(extra_config=None, use_layerwise=False), metadata=metadata, allocate=allocate
    )
    connector = SageMakerHyperPodConnector(
        sagemaker_hyperpod_url=f"http://127.0.0.1:{port}",
        loop=asyncio.get_running_loop(),
        local_cpu_backend=backend,
        bucket_name="lmcache",
        shared_memory_name=segment,
        max_concurrent_requests=100,
        max_connections=256,
        max_connections_per_host=128,
        timeout_ms=60_000,
        lease_ttl_s=30.0,
    )
    keys = [key_of(number) for number in range(OBJECTS)]
    objects = [allocate(SHAPE, torch.bfloat16, MemoryFormat.KV_2LTD) for _ in keys]
    for number, memory in enumerate(objects):
        memory.raw_data.copy_(content(number))
    await connector.batched_put(keys, objects)
    await connector.batched_put(keys, objects)
    result: dict[str, Any] = {"found": await connector.batched_async_contains("lookup", [*keys, key_of(OBJECTS)])}
    got = await connector.batched_get([*keys, key_of(OBJECTS)])
    result["equal"] = [
        memory is not None and torch.equal(memory.raw_data, content(number)) for number, memory in enumerate(got)
    ]
    result["stats"] = dict(connector.stats)
    connector.pq_executor.shutdown = connector.pq_executor.shutdown_async  # close() awaits what it returns
    await connector.close()
    return result


print("RESULT " + json.dumps(asyncio.run(main(*sys.argv[1:]))))  # noqa: T201
