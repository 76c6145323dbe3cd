"""One prompt sent to replicas of a running stack, one after the other: who had it, which tier, which node, how long.

Requests go past the router, straight to the replicas, so that it is known who is asked.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import aiohttp
import msgspec

from tierline.connectors.vllm.launch import REPORT
from tierline.errors import EngineError, UsageError
from tierline.stack.running import RunningReplica, RunningStack

SETTLES_S = 0.5
"""What a replica computed is stored behind its answer: it is there when the node stores took in nothing for so long."""
SETTLES_WITHIN_S = 10.0
_TIMEOUT_S = 300.0


class _Details(msgspec.Struct):
    cached_tokens: int | None = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int
    prompt_tokens_details: _Details | None = None


class _Report(msgspec.Struct):
    engine: int
    loaded: dict[str, int]


class _Params(msgspec.Struct):
    tierline_report: _Report | None = None


class _Completion(msgspec.Struct):
    usage: _Usage
    kv_transfer_params: _Params | None = None


class _Stored(msgspec.Struct):
    commits: int


class _Stats(msgspec.Struct):
    store: _Stored


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one request.

    Parameters
    ----------
    replica, node
        Who was asked, and the node store that it is joined to.
    prompt_tokens
        The prompt's length.
    engine_tokens
        How many the engine's own cache had.
    loaded_tokens
        How many were loaded, by who answered: ``node`` is the node's memory, others are tiers below it and their nodes.
        ``None`` where the replica does not say.
    cached_tokens
        How many were not computed.
    seconds
        From the request to its answer of one token.
    """

    replica: str
    node: str
    prompt_tokens: int
    engine_tokens: int
    loaded_tokens: dict[str, int] | None
    cached_tokens: int
    seconds: float


async def ask(stack: RunningStack, prompt: str, replicas: Sequence[int]) -> AsyncIterator[Asked]:
    """Send a prompt to replicas, by their numbers from 1 on, and yield what became of it.

    Raises
    ------
    UsageError
        There is no such replica.
    EngineError
        A replica does not answer, or refuses the prompt.
    """
    for number in replicas:
        if not 1 <= number <= len(stack.replicas):
            raise UsageError(f"--replica: got {number}; allowed: 1 to {len(stack.replicas)}")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as http:
        for number in replicas:
            yield await _ask(http, stack, stack.replicas[number - 1], prompt)
            await _until_stored(http, stack)


async def _ask(http: aiohttp.ClientSession, stack: RunningStack, replica: RunningReplica, prompt: str) -> Asked:
    body = {"model": stack.model, "prompt": prompt, "max_tokens": 1, "kv_transfer_params": {REPORT: True}}
    started = time.monotonic()
    try:
        async with http.post(f"{replica.url}/v1/completions", json=body) as answer:
            content = await answer.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineError(
            f"{replica.name} at {replica.url} does not answer: {error or type(error).__name__}"
        ) from error
    seconds = time.monotonic() - started
    if answer.status != 200:
        raise EngineError(f"{replica.name} answered {answer.status}: {content[:500].decode(errors='replace')}")
    said = msgspec.json.decode(content, type=_Completion)
    details = said.usage.prompt_tokens_details
    report = said.kv_transfer_params.tierline_report if said.kv_transfer_params is not None else None
    return Asked(
        replica=replica.name,
        node=replica.node,
        prompt_tokens=said.usage.prompt_tokens,
        engine_tokens=report.engine if report is not None else 0,
        loaded_tokens=report.loaded if report is not None else None,
        cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
        seconds=seconds,
    )


async def _until_stored(http: aiohttp.ClientSession, stack: RunningStack) -> None:
    """Wait until the node stores take in nothing any more."""
    deadline = time.monotonic() + SETTLES_WITHIN_S
    last: list[int] | None = None
    while time.monotonic() < deadline:
        now = [await _commits(http, node.url) for node in stack.nodes]
        if now == last:
            return
        last = now
        await asyncio.sleep(SETTLES_S)


async def _commits(http: aiohttp.ClientSession, url: str) -> int:
    try:
        async with http.get(f"{url}/v1/stats") as answer:
            return msgspec.json.decode(await answer.read(), type=_Stats).store.commits
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineError(f"the node store at {url} does not answer: {error or type(error).__name__}") from error
