"""A prompt sent to replicas: what they say of who had it, and what goes wrong."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tierline.connectors.vllm.launch import REPORT
from tierline.errors import EngineError, UsageError
from tierline.stack.asking import Asked, ask
from tierline.stack.running import RunningChild, RunningNode, RunningReplica, RunningStack

LOG = Path("log")


class Served:
    """Replicas and a node store that answer as told."""

    def __init__(self, answers: list[Any], commits: list[int]) -> None:
        self.answers = answers
        self.commits = commits
        self.asked: list[Any] = []

    async def complete(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        answer = self.answers.pop(0)
        return web.json_response(answer) if isinstance(answer, dict) else web.Response(status=answer, text="no")

    async def stats(self, request: web.Request) -> web.Response:
        commits = self.commits.pop(0) if len(self.commits) > 1 else self.commits[0]
        return web.json_response({"store": {"commits": commits}})


@asynccontextmanager
async def running(served: Served) -> AsyncIterator[RunningStack]:
    app = web.Application()
    app.router.add_post("/v1/completions", served.complete)
    app.router.add_get("/v1/stats", served.stats)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield RunningStack(
            pid=1,
            control=Path("control"),
            model="m",
            model_folder=None,
            engine="vllm",
            strategy="prefixaware",
            connector="tierline",
            has_dev_mode=False,
            cache_bytes=1,
            router=RunningChild("router", url, 1, LOG),
            nodes=[RunningNode("node-1", url, 1, LOG, Path("socket"))],
            caches=[],
            replicas=[RunningReplica(f"replica-{number}", url, 1, LOG, f"node-{number}") for number in (1, 2)],
        )
    finally:
        await runner.cleanup()


def completion(cached: int, report: dict[str, Any] | None = None) -> dict[str, Any]:
    usage = {"prompt_tokens": 700, "prompt_tokens_details": {"cached_tokens": cached}}
    return {"usage": usage, "kv_transfer_params": None if report is None else {REPORT: report}}


async def asked(stack: RunningStack, *replicas: int) -> list[Asked]:
    return [each async for each in ask(stack, "a prompt", replicas)]


async def test_a_replica_is_asked_who_had_the_prompt_and_says_so() -> None:
    loaded = {"node": 256, "tieredstorage:node-1": 256}
    served = Served(
        [
            completion(0, {"engine": 0, "node": "", "loaded": {}}),
            completion(512, {"engine": 0, "node": "n", "loaded": loaded}),
        ],
        [4],
    )
    async with running(served) as stack:
        first, second = await asked(stack, 1, 2)
    assert [request["kv_transfer_params"] for request in served.asked] == [{REPORT: True}] * 2
    assert (first.replica, first.node, first.loaded_tokens, first.cached_tokens) == ("replica-1", "node-1", {}, 0)
    assert (second.replica, second.node, second.loaded_tokens) == ("replica-2", "node-2", loaded)
    assert (second.prompt_tokens, second.engine_tokens, second.cached_tokens) == (700, 0, 512)


async def test_a_replica_that_does_not_say_is_not_guessed_about() -> None:
    async with running(Served([completion(512)], [4])) as stack:
        (answer,) = await asked(stack, 1)
    assert (answer.loaded_tokens, answer.cached_tokens) == (None, 512)


async def test_the_next_replica_is_asked_when_the_node_stores_take_in_nothing_more() -> None:
    served = Served([completion(0), completion(0)], [1, 2, 3, 3])
    async with running(served) as stack:
        await asked(stack, 1, 2)
    assert served.commits == [3]


async def test_a_replica_that_refuses_is_named() -> None:
    async with running(Served([500], [4])) as stack:
        with pytest.raises(EngineError, match="replica-2 answered 500: no"):
            await asked(stack, 2)
        with pytest.raises(UsageError, match="--replica: got 3; allowed: 1 to 2"):
            await asked(stack, 3)
