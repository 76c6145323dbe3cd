"""``tierline up`` with two real vLLM replicas: a prefix computed by one is a hit on the other, also after restarts."""

import asyncio
import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.e2e.node_stores import LOADS_ALWAYS
from tests.e2e.stacks import running_up
from tests.ports import free_ports

from tierline.connectors.vllm.launch import kv_transfer_config
from tierline.node.config import default_socket_path
from tierline.prefix import CHUNK_TOKENS
from tierline.router.config import RouterConfig
from tierline.router.server import running
from tierline.stack.running import RunningStack, restart_replica
from tierline.tracing.reading import read_traces

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

TRACES = "traces.jsonl"
DOCUMENT = "".join(f"Line {number}: item {number} has colour {number * 7 % 13}. " for number in range(40))


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningStack]:
    """Run ``tierline up`` with the default model; every process ends with the test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for program in ("NODE", "ROUTER"):
        monkeypatch.setenv(f"TIERLINE_{program}_TRACES_FILE", str(tmp_path / TRACES))
    port, node_port = free_ports(2)
    # A machine that runs tests may be too busy to look a prefix up, to store one or to load one in the usual time.
    transfer = kv_transfer_config(default_socket_path(node_port), lookup_budget_ms=20_000)
    extra = {"tierline.traces_file": str(tmp_path / TRACES), "tierline.load_factor": LOADS_ALWAYS}
    transfer["kv_connector_extra_config"] |= extra  # type: ignore[operator]
    arguments = ["--node-port", str(node_port), "--cache-size", "256MiB", "--strategy", "kvaware"]
    arguments += ["--engine-argument", f"--kv-transfer-config={json.dumps(transfer)}"]
    with running_up(port, arguments, tmp_path / "output") as ready:
        yield ready


def ask(url: str, stack: RunningStack) -> tuple[str, int]:
    """Return the answer to a question on the document, and how many tokens of the prompt were not computed."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        answer = client.completions.create(model=str(stack.model), prompt=DOCUMENT, max_tokens=8, temperature=0)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    return answer.choices[0].text, answer.usage.prompt_tokens_details.cached_tokens or 0


def test_what_one_replica_computed_is_a_hit_on_the_other_and_after_both_were_restarted(
    stack: RunningStack, tmp_path: Path
) -> None:
    first, second = (replica.url for replica in stack.replicas)
    text, computed_before = ask(first, stack)
    assert computed_before == 0
    wait_until_stored(stack)

    assert ask(second, stack) == (text, 2 * CHUNK_TOKENS)

    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda index: restart_replica(stack, index), range(2)))
    wait_until_exact(stack)
    with openai.OpenAI(base_url=f"{stack.router.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        text_of: Any = {"model": str(stack.model), "max_tokens": 1}
        # As ids: a busy machine may be too slow to say in time what the tokens of a text are.
        answer = client.completions.with_raw_response.create(prompt=ids_of(DOCUMENT, first, stack), **text_of)
        assert predicted_and_cached(answer) == (2 * CHUNK_TOKENS, 2 * CHUNK_TOKENS)
        assert answer.headers["x-tierline-predicted-by-tier"] == f"host={2 * CHUNK_TOKENS}"
        assert sum(loaded_from_host(url) for url in (first, second)) == 2 * CHUNK_TOKENS
    wait_until_traced(tmp_path / TRACES, answer.headers["x-request-id"])
    for url in (first, second, stack.router.url):
        through, cached = ask(url, stack)
        assert through == text
        assert cached >= 2 * CHUNK_TOKENS

    with openai.OpenAI(base_url=f"{stack.router.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        complete: Any = client.completions.with_raw_response.create
        chat: Any = client.chat.completions.with_raw_response.create
        until_foreseen(partial(complete, prompt=DOCUMENT, **text_of), 2 * CHUNK_TOKENS)
        assert predicted_and_cached(complete(prompt=[7] * 300, **text_of)) == (0, 0)
        until_foreseen(partial(complete, prompt=[7] * 300, **text_of), CHUNK_TOKENS)
        messages: Any = [{"role": "user", "content": DOCUMENT[:1500]}]
        until_foreseen(partial(chat, messages=messages, **text_of), CHUNK_TOKENS)

    prefill, decode = asyncio.run(computed_by_one_and_decoded_by_the_other(stack, tmp_path))
    assert prefill == stack.replicas[0].url
    assert decode == 2 * CHUNK_TOKENS


def wait_until_traced(file: Path, request_id: str) -> None:
    """Wait until the spans of a request that loaded its prompt are written: by router, connector and node store."""
    expected = {
        ("tierline-router", "POST /v1/completions"),
        ("tierline-connector", "lookup"),
        ("tierline-connector", "copy"),
        ("tierline-node", "prefix lease"),
    }
    deadline = time.monotonic() + 60
    while True:
        traces = [trace for trace in read_traces([file]).traces if trace.is_called(request_id)]
        found = {(span.service, span.name) for trace in traces for span in trace.spans}
        if expected <= found:
            assert len(traces) == 1
            assert len(traces[0].roots()) == 1
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


async def computed_by_one_and_decoded_by_the_other(stack: RunningStack, folder: Path) -> tuple[str, int]:
    """Return which replica a router had compute a new prompt, and how much of it the other one need not compute."""
    file = folder / "endpoints.json"
    roles = zip(stack.replicas, ("prefill", "decode"), strict=True)
    file.write_text(json.dumps([{"url": replica.url, "roles": [role]} for replica, role in roles]))
    config = RouterConfig(port=0, endpoints_file=file, prefill_threshold=2 * CHUNK_TOKENS)
    async with (
        running(config) as router,
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{router.port}/v1", api_key="none", timeout=300) as client,
    ):
        answer = await client.completions.with_raw_response.create(
            model=str(stack.model), prompt=[11] * (2 * CHUNK_TOKENS + 20), max_tokens=2
        )
    usage = answer.parse().usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    return answer.headers["x-tierline-prefill-endpoint"], usage.prompt_tokens_details.cached_tokens or 0


def predicted_and_cached(answer: Any) -> tuple[int, int]:
    """Return what the router expected to be read from a cache, and what vLLM says was."""
    usage = answer.parse().usage
    return int(answer.headers["x-tierline-predicted-cached-tokens"]), usage.prompt_tokens_details.cached_tokens or 0


def until_foreseen(ask: Callable[[], Any], least: int) -> None:
    """Ask until the router expects what is read from a cache, so much at least: its tokens and events are under way."""
    deadline = time.monotonic() + 60
    while True:
        predicted, cached = predicted_and_cached(ask())
        if predicted == cached >= least:
            return
        assert time.monotonic() < deadline, (predicted, cached)
        time.sleep(0.2)


def wait_until_exact(stack: RunningStack) -> None:
    """Return once the router has heard all that both replicas and the store hold; they were restarted meanwhile."""
    while True:
        page = metrics_of(stack.router.url)
        exact = re.findall(r'^tierline_router_kv_(source|store)_state{.*state="exact".*} 1.0', page, re.MULTILINE)
        engines = re.findall(r"^tierline_router_kv_store_engines{.*} 2.0", page, re.MULTILINE)
        if sorted(exact) == ["source", "source", "store"] and engines:
            return
        time.sleep(0.1)


def ids_of(text: str, url: str, stack: RunningStack) -> list[int]:
    """Return the tokens of a text, as a replica says."""
    body = json.dumps({"model": str(stack.model), "prompt": text}).encode()
    question = urllib.request.Request(f"{url}/tokenize", body, {"content-type": "application/json"})
    with urllib.request.urlopen(question, timeout=60) as response:
        ids: list[int] = json.load(response)["tokens"]
    return ids


def loaded_from_host(url: str) -> float:
    """Return how many tokens of prompts a replica has loaded from the node store, as vLLM counts them."""
    counts = re.findall(
        r'^vllm:prompt_tokens_cached_by_source_total{.*source="host".*} (.+)', metrics_of(url), re.MULTILINE
    )
    return sum(map(float, counts))


def metrics_of(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        page: str = response.read().decode()
    return page


def wait_until_stored(stack: RunningStack) -> None:
    """Return once the node store holds the document's chunks; they are stored off the critical path."""
    assert stack.node is not None
    while True:
        with urllib.request.urlopen(f"{stack.node.url}/v1/stats", timeout=10) as response:
            if json.load(response)["store"]["objects"] >= 2:
                return
        time.sleep(0.1)
