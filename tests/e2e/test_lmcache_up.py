"""vLLM and LMCache, both stock, on the node store: what one start stored is a hit for the next, with equal answers."""

import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.stacks import running_up
from tests.ports import free_ports

from tierline.prefix import CHUNK_TOKENS
from tierline.stack.model import prepare_default_model
from tierline.stack.running import RunningStack, restart_replica

pytest.importorskip("vllm")
pytest.importorskip("lmcache")

from transformers import AutoTokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

T = TypeVar("T")

CONNECTORS = ("lmcache", "lmcache-plugin")
PROMPTS = 3
PROMPT_TOKENS = 2 * CHUNK_TOKENS + 20
GENERATED = 16
LICENSE = Path(__file__).parents[2] / "LICENSE"


@pytest.fixture
def stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, RunningStack]]:
    """Run ``tierline up`` with each connector, side by side, with one replica; every process ends with the test.

    An engine starts on one processor, mostly, and so each has its own: two would not wait for each other.
    """
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # the first logprobs otherwise compile an operator for 13 to 31 s
    processors = sorted(os.sched_getaffinity(0))
    ports = free_ports(2 * len(CONNECTORS))

    def start(number: int) -> RunningStack:
        os.sched_setaffinity(0, processors[number :: len(CONNECTORS)] or processors)  # of this thread, and its children
        port, node_port = ports[2 * number : 2 * number + 2]
        arguments = ["--node-port", str(node_port), "--cache-size", "256MiB", "--replicas", "1"]
        arguments += ["--connector", CONNECTORS[number], "--lmcache-size", "256MiB"]
        return running.enter_context(running_up(port, arguments, tmp_path / CONNECTORS[number]))

    with ExitStack() as running:
        with ThreadPoolExecutor(len(CONNECTORS)) as pool:
            started = pool.map(start, range(len(CONNECTORS)))
        yield dict(zip(CONNECTORS, started, strict=True))
    for port in ports[::2]:
        assert not list(Path("/dev/shm").glob(f"*tierline-up-{port}*"))


def test_what_was_stored_before_vllm_and_lmcache_were_restarted_is_a_hit_with_equal_answers(
    stacks: dict[str, RunningStack],
) -> None:
    text = AutoTokenizer.from_pretrained(prepare_default_model(print))(LICENSE.read_text())["input_ids"]
    prompts = [text[150 * start :][:PROMPT_TOKENS] for start in range(PROMPTS)]

    def answers(stack: RunningStack) -> list[tuple[list[int], list[float]]]:
        return [answer(stack, prompt) for prompt in prompts]

    cold = of_each(stacks, answers)
    assert of_each(stacks, external_hits) == dict.fromkeys(stacks, 0)
    wait_until(stacks, lambda counters: counters["objects"] >= PROMPTS * 2)  # stored off the critical path
    before = of_each(stacks, node_counters)

    of_each(stacks, lambda stack: restart_replica(stack, 0))
    warm = of_each(stacks, answers)

    for connector in stacks:
        for (tokens, logprobs), (cold_tokens, cold_logprobs) in zip(warm[connector], cold[connector], strict=True):
            assert tokens == cold_tokens, connector
            assert logprobs == pytest.approx(cold_logprobs, abs=1e-3), connector
    assert of_each(stacks, external_hits) == dict.fromkeys(stacks, PROMPTS * 2 * CHUNK_TOKENS)
    for connector, after in of_each(stacks, node_counters).items():
        assert after["hits"] - before[connector]["hits"] >= PROMPTS * 2, connector
        assert after["commits"] == PROMPTS * 2, connector
    wait_until(stacks, lambda counters: counters["leases"] == 0)


def of_each(stacks: dict[str, RunningStack], ask: Callable[[RunningStack], T]) -> dict[str, T]:
    """Ask all at once."""
    with ThreadPoolExecutor(len(stacks)) as pool:
        return dict(zip(stacks, pool.map(ask, stacks.values()), strict=True))


def answer(stack: RunningStack, prompt: list[int]) -> tuple[list[int], list[float]]:
    """Return what the replica generated for a prompt: token ids, and their logprobs."""
    question = {"model": stack.model, "prompt": prompt, "max_tokens": GENERATED, "temperature": 0, "logprobs": 0}
    reply = fetch(f"{stack.replicas[0].url}/v1/completions", {**question, "return_token_ids": True})
    [choice] = json.loads(reply)["choices"]
    assert len(choice["token_ids"]) == GENERATED
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


def external_hits(stack: RunningStack) -> float:
    """Return vLLM's own count of the prompt tokens that its connector brought."""
    families = text_string_to_metric_families(fetch(f"{stack.replicas[0].url}/metrics").decode())
    [hits] = [family for family in families if family.name == "vllm:external_prefix_cache_hits"]
    return sum(sample.value for sample in hits.samples if sample.name.endswith("_total"))


def node_counters(stack: RunningStack) -> dict[str, Any]:
    assert stack.node is not None
    counters: dict[str, Any] = json.loads(fetch(f"{stack.node.url}/v1/stats"))["store"]
    return counters


def wait_until(stacks: dict[str, RunningStack], condition: Callable[[dict[str, Any]], bool]) -> None:
    """Return once the counters of all node stores say so."""
    deadline = time.monotonic() + 60
    while not all(condition(counters) for counters in of_each(stacks, node_counters).values()):
        assert time.monotonic() < deadline, of_each(stacks, node_counters)
        time.sleep(0.1)


def fetch(url: str, question: dict[str, object] | None = None) -> bytes:
    body = json.dumps(question).encode() if question else None
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as reply:
        content: bytes = reply.read()
        return content
