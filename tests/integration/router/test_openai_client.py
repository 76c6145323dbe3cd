"""The official OpenAI client through the router, in front of simulated engines and of the program as users start it."""

import asyncio
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import openai
import pytest
from tests.ports import free_port

MODEL = "simulated-model"
DOCUMENT = "the quick brown fox jumps over the lazy dog " * 40


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.1)


class Stack:
    """Two simulated engines and a router, as processes."""

    def __init__(self) -> None:
        self.ports = [free_port() for _ in range(2)]
        self.processes = [self._engine(port) for port in self.ports]
        self.port = free_port()
        endpoints = [part for port in self.ports for part in ("--endpoint", f"http://127.0.0.1:{port}")]
        self.router = self._start("router", "--port", str(self.port), *endpoints)
        self.processes.append(self.router)
        for port in (*self.ports, self.port):
            wait_for(f"http://127.0.0.1:{port}/health")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(timeout=30)

    def _engine(self, port: int) -> "subprocess.Popen[bytes]":
        return self._start("simulate-engine", "--port", str(port), "--prefill-rate", "100000", "--decode-rate", "500")

    def _start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-m", "tierline", *arguments], stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    stack = Stack()
    try:
        yield stack
    finally:
        stack.stop()


def test_the_blocking_client_lists_models_chats_and_completes(stack: Stack) -> None:
    with openai.OpenAI(base_url=stack.url, api_key="none", max_retries=0) as ai:
        assert [model.id for model in ai.models.list()] == [MODEL]
        chat = ai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=4)
        completion = ai.completions.create(model=MODEL, prompt="hello", max_tokens=4)
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            ai.completions.create(model="missing", prompt="hello")
    assert chat.choices[0].finish_reason == "length"
    assert completion.choices[0].text


def test_the_blocking_client_streams(stack: Stack) -> None:
    with openai.OpenAI(base_url=stack.url, api_key="none", max_retries=0) as ai:
        stream = ai.completions.create(model=MODEL, prompt="hello", max_tokens=8, stream=True)
        assert "".join(event.choices[0].text for event in stream)


async def test_the_asyncio_client_streams_many_at_once(stack: Stack) -> None:
    async with openai.AsyncOpenAI(base_url=stack.url, api_key="none", max_retries=0) as ai:

        async def ask(number: int) -> int:
            stream = await ai.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": f"question {number}"}], max_tokens=8, stream=True
            )
            return len([event async for event in stream])

        events = await asyncio.gather(*(ask(number) for number in range(16)))
    assert min(events) >= 8


async def test_a_repeated_document_is_a_hit_in_the_engines_own_cache(stack: Stack) -> None:
    async with openai.AsyncOpenAI(base_url=stack.url, api_key="none", max_retries=0) as ai:
        cached = []
        for question in ("who?", "what?", "why?"):
            raw = await ai.chat.completions.with_raw_response.create(
                model=MODEL, messages=[{"role": "user", "content": DOCUMENT + question}], max_tokens=2
            )
            usage = raw.parse().usage
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            assert raw.headers["x-tierline-confidence"] == "approximate"
            cached.append((raw.headers["x-tierline-reason"], bool(usage.prompt_tokens_details.cached_tokens)))
    assert cached == [("cold", False), ("prefix", True), ("prefix", True)]


async def test_an_engine_killed_under_load_costs_only_the_streams_that_had_begun(stack: Stack) -> None:
    broken = whole = 0
    async with openai.AsyncOpenAI(base_url=stack.url, api_key="none", max_retries=0) as ai:

        async def ask(number: int) -> None:
            nonlocal broken, whole
            for turn in range(4):
                stream = await ai.completions.create(model=MODEL, prompt=f"{number} {turn}", max_tokens=16, stream=True)
                try:
                    async for _ in stream:
                        pass
                    whole += 1
                except openai.APIError:
                    broken += 1

        asking = [asyncio.create_task(ask(number)) for number in range(12)]
        while whole < 12:  # noqa: ASYNC110  (progress of other tasks)
            await asyncio.sleep(0.01)
        stack.processes[0].kill()
        await asyncio.gather(*asking)
    assert whole + broken == 48
    assert broken <= 12
