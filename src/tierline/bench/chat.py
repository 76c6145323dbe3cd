"""One chat request as a client sees it: when the first text came, which tokens, and what the counters say about it.

Time to first token is the time from sending the request to the first event *with text*; the role-only event that
servers send first does not count. An answer that is all special tokens has no text: then its first token counts.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tierline.bench.rows import NO_TOKENS, TokenSplit
from tierline.errors import EngineError

REQUEST_TIMEOUT_SECONDS = 300.0
_COUNTERS_SETTLE_SECONDS = 3.0
_BY_SOURCE = "vllm:prompt_tokens_by_source_total"
_CACHED_BY_SOURCE = "vllm:prompt_tokens_cached_by_source_total"


@dataclass(frozen=True)
class Answer:
    """What came back.

    Parameters
    ----------
    ttft_s
        Time to first token.
    duration_s
        Time to the end of the stream.
    tokens
        The answer's token ids; its pieces of text where the engine does not tell ids.
    logprobs
        Log probability of each token; empty where the engine does not tell.
    prompt_tokens, cached_tokens
        What ``usage`` says.
    endpoint
        The router's ``x-tierline-endpoint``; empty when the replica was asked directly.
    """

    ttft_s: float
    duration_s: float
    tokens: tuple[int | str, ...]
    logprobs: tuple[float, ...]
    prompt_tokens: int
    cached_tokens: int
    endpoint: str


class Chat:
    """A client of one or several servers that serve one model.

    Parameters
    ----------
    http
        Session to use; closed by whoever opened it.
    model
        The ``model`` of requests.
    answer_tokens
        Length of every answer: the end-of-sequence token is ignored, so that all rows decode the same number.
    """

    def __init__(self, http: aiohttp.ClientSession, model: str, answer_tokens: int) -> None:
        self._http = http
        self._model = model
        self._answer_tokens = answer_tokens

    async def ask(self, url: str, prompt: str) -> Answer:
        """Ask one question and stream the answer.

        Raises
        ------
        EngineError
            When the server refuses, or the stream ends without text.
        """
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
            "max_tokens": self._answer_tokens,
            "ignore_eos": True,
            "logprobs": True,
            "return_token_ids": True,
        }
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
        sent = time.perf_counter()
        async with self._http.post(f"{url}/v1/chat/completions", json=body, timeout=timeout) as response:
            if response.status != 200:
                raise EngineError(f"{url} answered {response.status}: {(await response.text())[:300]}")
            first_text: float | None = None
            first_token: float | None = None
            tokens: list[int | str] = []
            logprobs: list[float] = []
            usage: dict[str, Any] = {}
            async for event in _events(response):
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    text = choice["delta"].get("content") or ""
                    if text and first_text is None:
                        first_text = time.perf_counter()
                    if choice.get("token_ids") and first_token is None:
                        first_token = time.perf_counter()
                    tokens.extend(choice.get("token_ids") or ([text] if text else []))
                    logprobs.extend(entry["logprob"] for entry in (choice.get("logprobs") or {}).get("content") or ())
            ended = time.perf_counter()
            endpoint = response.headers.get("x-tierline-endpoint", "")
        first = first_token if first_text is None else first_text
        if first is None:
            raise EngineError(f"{url} ended a stream without any text")
        details = usage.get("prompt_tokens_details") or {}
        return Answer(
            ttft_s=first - sent,
            duration_s=ended - sent,
            tokens=tuple(tokens),
            logprobs=tuple(logprobs),
            prompt_tokens=int(usage.get("prompt_tokens", 0)),
            cached_tokens=int(details.get("cached_tokens") or 0),
            endpoint=endpoint,
        )

    async def token_ids(self, url: str, prompt: str) -> list[int]:
        """Return the tokens of the whole prompt, the chat template's included.

        Raises
        ------
        EngineError
            When the server does not tokenize.
        """
        body = {"model": self._model, "messages": [{"role": "user", "content": prompt}]}
        async with self._http.post(f"{url}/tokenize", json=body) as response:
            if response.status != 200:
                raise EngineError(f"{url}/tokenize answered {response.status}: {(await response.text())[:300]}")
            tokens: list[int] = (await response.json())["tokens"]
            return tokens

    async def forget_prefixes(self, url: str) -> None:
        """Empty the prefix cache of the engine itself; the node store keeps what it has.

        Raises
        ------
        EngineError
            When the engine does not let go within a few seconds.
        """
        for _ in range(50):
            async with self._http.post(f"{url}/reset_prefix_cache") as response:
                if response.status != 200:
                    raise EngineError(f"{url}/reset_prefix_cache answered {response.status}")
                # vLLM answers with a body only where it can fail, while blocks are still held.
                content = await response.read()
                if not content or json.loads(content).get("success", True):
                    return
            await asyncio.sleep(0.1)
        raise EngineError(f"{url} kept its prefix cache: blocks are still held")

    async def split_after(self, urls: Iterable[str], before: TokenSplit, prompt_tokens: int) -> TokenSplit:
        """Return who answered a request's prompt tokens, once the engines' counters have seen all of them."""
        urls = list(urls)
        deadline = time.monotonic() + _COUNTERS_SETTLE_SECONDS
        while True:
            split = await self.split(urls) - before
            if split.total >= prompt_tokens or time.monotonic() > deadline:
                return split
            await asyncio.sleep(0.02)

    async def split(self, urls: Iterable[str]) -> TokenSplit:
        """Return who answered all prompt tokens since the engines were started, summed over engines.

        Raises
        ------
        EngineError
            When one does not answer with metrics.
        """
        total = NO_TOKENS
        for url in urls:
            async with self._http.get(f"{url}/metrics") as response:
                if response.status != 200:
                    raise EngineError(f"{url}/metrics answered {response.status}")
                try:
                    total += token_split(await response.text())
                except ValueError as error:
                    raise EngineError(f"{url}/metrics answered no metrics: {error}") from error
        return total


def token_split(exposition: str) -> TokenSplit:
    """Read from vLLM's ``/metrics`` who answered the prompt tokens.

    ``vllm:prompt_tokens_by_source`` says what was computed, what the engine's own prefix cache had and what came
    through the connector; ``vllm:prompt_tokens_cached_by_source`` says how much of the latter another node had.
    """
    counted: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name in (_BY_SOURCE, _CACHED_BY_SOURCE):
                counted[sample.name, sample.labels["source"]] += int(sample.value)
    other_node = counted[_CACHED_BY_SOURCE, "p2p"]
    return TokenSplit(
        engine_cache=counted[_BY_SOURCE, "local_cache_hit"],
        node_store=counted[_BY_SOURCE, "external_kv_transfer"] - other_node,
        other_node=other_node,
        computed=counted[_BY_SOURCE, "local_compute"],
    )


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many leading tokens are equal."""
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON of each server-sent event, as soon as its line is there."""
    async for line in response.content:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            yield json.loads(line[6:])
