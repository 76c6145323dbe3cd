"""Several hosts that load one server: they start together, at the time that all were given."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestServer

from tierline.bench.serving.client import Target
from tierline.bench.serving.results import Result, Settings, encode, merge
from tierline.bench.serving.running import Run, run
from tierline.stack.simulated_engine.config import SimulatedEngineConfig
from tierline.stack.simulated_engine.server import make_app

MODEL = "simulated-model"


@pytest.fixture
async def engine() -> AsyncIterator[str]:
    config = SimulatedEngineConfig(model=MODEL, prefill_rate=50_000.0, decode_rate=1000.0, cache_blocks=20_000)
    async with TestServer(make_app(config)) as server:
        yield str(server.make_url("")).rstrip("/")


def host(engine: str, share: str, start_at_s: float, warmups: int = 0) -> Run:
    return Run(
        settings=Settings(
            base_url=engine,
            endpoint="/v1/chat/completions",
            model=MODEL,
            workload="independent",
            input_len=200,
            output_len=2,
            turns=1,
            prefixes=1,
            requests=8,
            max_concurrency=2,
            warmups=warmups,
            share=share,
        ),
        target=Target(base_url=engine, model=MODEL),
        salt="hosts",
        start_at_s=start_at_s,
    )


async def ran_together(engine: str) -> tuple[float, list[Result]]:
    """Run two hosts, with more time to get ready where the machine is too busy for less."""
    for ready_within_s in (3, 10, 30):
        start_at_s = time.time() + ready_within_s
        results = await asyncio.gather(*(run(host(engine, share, start_at_s)) for share in ("1/2", "2/2")))
        if not any("after --start-at" in note for result in results for note in result.notes):
            break
    return start_at_s, results


async def test_hosts_start_together_when_they_were_told_to(engine: str) -> None:
    start_at_s, results = await ran_together(engine)

    assert [result.started_s for result in results] == [start_at_s, start_at_s]
    merged = json.loads(encode(merge(results)))
    assert sorted(record["index"] for record in merged["records"]) == list(range(8))
    assert merged["started_s"] == start_at_s


async def test_a_host_that_is_ready_too_late_says_so(engine: str) -> None:
    start_at_s = time.time()

    result = await run(host(engine, "1/2", start_at_s))

    assert result.started_s > start_at_s
    assert any(re.match(r"Begun .* s after --start-at", note) for note in result.notes)
