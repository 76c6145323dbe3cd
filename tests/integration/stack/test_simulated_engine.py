"""The simulated engine as clients and routers see it: OpenAI's client, vLLM's metrics, KV events on ZMQ."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import openai
import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from tests.integration.node.processes import NodeProcess, load, store

from tierline.prefix import PrefixIdentity, Shard, block_chain, object_name
from tierline.stack.simulated_engine.cache import block_hashes

MODEL = "simulated-model"
DOCUMENT = "the quick brown fox jumps over the lazy dog " * 20
FAST = ("--prefill-rate", "1000000", "--decode-rate", "1000")
Start = Callable[..., str]


def client_of(url: str) -> Any:  # its overloads do not take what a dictionary holds
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


async def metrics(url: str) -> list[Sample]:
    """Return all samples of one moment."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as response:
        text = await response.text()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


async def metric(url: str, name: str, **labels: str) -> float:
    return sum(
        sample.value for sample in await metrics(url) if sample.name == name and labels.items() <= sample.labels.items()
    )


async def until(url: str, **values: float) -> None:
    """Wait until some of vLLM's metrics have these values at one moment."""
    wanted = {f"vllm:{name}": value for name, value in values.items()}
    async with asyncio.timeout(60):
        while {each.name: each.value for each in await metrics(url) if each.name in wanted} != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_repeated_prompt_is_answered_alike_and_mostly_from_the_cache(simulated_engine: Start) -> None:
    async with client_of(simulated_engine(*FAST)) as client:
        ask = {"model": MODEL, "messages": [{"role": "user", "content": DOCUMENT}], "max_tokens": 6}
        cold = await client.chat.completions.create(**ask)
        warm = await client.chat.completions.create(**ask)
    assert cold.choices[0].message == warm.choices[0].message
    assert cold.choices[0].finish_reason == "length"
    assert cold.usage.prompt_tokens_details.cached_tokens == 0
    assert warm.usage.prompt_tokens - warm.usage.prompt_tokens_details.cached_tokens <= 16
    assert warm.usage.completion_tokens == 6


async def test_a_stream_has_the_same_text_as_the_whole_and_ends_with_usage(simulated_engine: Start) -> None:
    async with client_of(simulated_engine(*FAST)) as client:
        ask = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
        whole = await client.chat.completions.create(**ask)
        stream = await client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )


async def test_a_stream_says_nothing_before_its_first_token_is_computed(simulated_engine: Start) -> None:
    async with client_of(simulated_engine("--prefill-rate", "500", "--decode-rate", "1000")) as client:
        began = time.monotonic()
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": DOCUMENT}],
            max_tokens=2,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [(time.monotonic() - began, chunk) async for chunk in stream]
    assert chunks[0][0] >= chunks[-1][1].usage.prompt_tokens / 500
    assert chunks[0][1].choices[0].delta.role == "assistant"


async def test_a_prompt_that_is_wholly_cached_has_a_first_token_too(simulated_engine: Start) -> None:
    url = simulated_engine(*FAST)
    async with client_of(url) as client:
        for _ in range(2):
            answer = await client.completions.create(model=MODEL, prompt=list(range(64)), max_tokens=2)
    assert answer.usage.prompt_tokens_details.cached_tokens == 48  # as in vLLM, the last block is computed
    assert await metric(url, "vllm:time_to_first_token_seconds_count") == 2
    assert await metric(url, "vllm:prompt_tokens_by_source_total") == 128


async def test_every_response_says_that_it_is_simulated(simulated_engine: Start) -> None:
    url = simulated_engine(*FAST)
    async with aiohttp.ClientSession() as http:
        for method, path, body in (
            ("GET", "/health", None),
            ("GET", "/v1/models", None),
            ("GET", "/metrics", None),
            ("GET", "/nothing-here", None),
            ("POST", "/v1/completions", {"model": "another", "prompt": "x"}),
            ("POST", "/v1/completions", {"model": MODEL, "prompt": "x", "stream": True}),
        ):
            async with http.request(method, url + path, json=body) as response:
                assert response.headers["x-tierline-simulated"] == "true", path


async def test_a_completion_takes_token_ids_and_they_can_be_read_back(simulated_engine: Start) -> None:
    url = simulated_engine(*FAST)
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{url}/tokenize", json={"prompt": DOCUMENT}) as response:
            ids = (await response.json())["tokens"]
        async with http.post(f"{url}/detokenize", json={"tokens": ids}) as response:
            assert (await response.json())["prompt"] == DOCUMENT
    async with client_of(url) as client:
        by_text = await client.completions.create(model=MODEL, prompt=DOCUMENT)
        by_ids = await client.completions.create(model=MODEL, prompt=ids)
    assert by_text.choices[0].text == by_ids.choices[0].text


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"model": "another"}, 404),
        ({"prompt": ""}, 400),
        ({"n": 2}, 400),
        ({"max_tokens": 10**6, "extra_body": {"ignore_eos": True}}, 400),
        ({"prompt": ["one", "two"]}, 400),
    ],
)
async def test_what_it_cannot_do_is_an_error_in_openai_s_shape(
    simulated_engine: Start, change: dict[str, object], status: int
) -> None:
    async with client_of(simulated_engine(*FAST)) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.completions.create(**{"model": MODEL, "prompt": "x", **change})
    assert caught.value.status_code == status
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["code"] == status


async def test_the_metrics_tell_where_prompt_tokens_came_from(simulated_engine: Start) -> None:
    url = simulated_engine(*FAST, "--cache-blocks", "512")
    async with client_of(url) as client:
        answers = [await client.completions.create(model=MODEL, prompt=DOCUMENT, max_tokens=3) for _ in range(2)]
    cached = answers[1].usage.prompt_tokens_details.cached_tokens
    prompt = answers[1].usage.prompt_tokens
    by_source = "vllm:prompt_tokens_by_source_total"
    assert await metric(url, by_source, source="local_cache_hit") == cached
    assert await metric(url, by_source, source="local_compute") == 2 * prompt - cached
    assert await metric(url, "vllm:prefix_cache_queries_total", model_name=MODEL, engine="0") == 2 * prompt
    assert await metric(url, "vllm:prefix_cache_hits_total") == cached
    assert await metric(url, "vllm:generation_tokens_total") == 6
    assert await metric(url, "vllm:time_to_first_token_seconds_count") == 2
    assert await metric(url, "vllm:cache_config_info", block_size="16", num_gpu_blocks="512") == 1


async def test_a_client_that_goes_away_ends_its_request(simulated_engine: Start) -> None:
    url = simulated_engine("--decode-rate", "1")
    ask = {"model": MODEL, "prompt": DOCUMENT, "max_tokens": 1000, "ignore_eos": True}
    async with aiohttp.ClientSession() as http:
        for stream in (True, False):
            request = asyncio.create_task(http.post(f"{url}/v1/completions", json={**ask, "stream": stream}))
            await until(url, num_requests_running=1)
            if request.done():
                request.result().close()
            request.cancel()
            await until(url, num_requests_running=0)
    assert await metric(url, "vllm:request_success_total", finished_reason="abort") == 2
    assert await metric(url, "vllm:kv_cache_usage_perc") == 0


async def test_more_requests_than_it_takes_wait_in_line(simulated_engine: Start) -> None:
    url = simulated_engine("--max-num-seqs", "2", "--decode-rate", "1")
    async with client_of(url) as client:
        requests = [
            asyncio.create_task(client.completions.create(model=MODEL, prompt=f"{number}", max_tokens=64))
            for number in range(5)
        ]
        await until(url, num_requests_waiting=3, num_requests_running=2)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)


async def test_its_cache_can_be_emptied(simulated_engine: Start) -> None:
    url = simulated_engine(*FAST)
    async with client_of(url) as client, aiohttp.ClientSession() as http:
        await client.completions.create(model=MODEL, prompt=DOCUMENT)
        async with http.post(f"{url}/reset_prefix_cache") as response:
            assert await response.json() == {"success": True}
        again = await client.completions.create(model=MODEL, prompt=DOCUMENT)
    assert again.usage.prompt_tokens_details.cached_tokens == 0


async def test_kv_events_carry_the_tokens_of_each_new_block(simulated_engine: Start, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    url = simulated_engine(*FAST, "--cache-blocks", "1024", "--kv-events-endpoint", endpoint)
    context = zmq.Context()
    with context, context.socket(zmq.SUB) as subscriber:
        subscriber.setsockopt(zmq.LINGER, 0)
        subscriber.subscribe(b"")
        subscriber.connect(endpoint)
        prompts: list[list[int]] = []
        async with client_of(url) as client:
            while not subscriber.poll(300):  # a subscription that is under way misses what is sent
                prompts.append([len(prompts), *range(1, 100)])
                await client.completions.create(model=MODEL, prompt=prompts[-1], max_tokens=1)
        topic, sequence, payload = subscriber.recv_multipart()
    timestamp, (stored,), rank = msgspec.msgpack.decode(payload)
    prompt = prompts[int.from_bytes(sequence, "big")]
    assert (topic, timestamp > 0, rank) == (b"", True, 0)
    assert stored == {
        "type": "BlockStored",
        "block_hashes": block_hashes(prompt[:96]),
        "parent_block_hash": None,
        "token_ids": prompt[:96],
        "block_size": 16,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None] * 6,
        "group_idx": 0,
    }


@pytest.mark.vllm
def test_vllm_itself_reads_our_kv_events() -> None:
    kv_events = pytest.importorskip("vllm.distributed.kv_events")
    from tierline.stack.simulated_engine.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, EventBatch

    events = [
        BlockStored([1, 2], 7, [5] * 32, 16, None, "GPU", None, [("salt",), None], 0),
        BlockRemoved([1], "GPU", 0),
        AllBlocksCleared(),
    ]
    payload = msgspec.msgpack.encode(EventBatch(1.5, events, 0))
    read = msgspec.msgpack.decode(payload, type=kv_events.KVEventBatch)
    assert read == kv_events.KVEventBatch(
        ts=1.5,
        data_parallel_rank=0,
        events=[
            kv_events.BlockStored([1, 2], 7, [5] * 32, 16, None, "GPU", None, [("salt",), None], 0),
            kv_events.BlockRemoved([1], "GPU", 0),
            kv_events.AllBlocksCleared(),
        ],
    )


async def test_a_prompt_that_one_engine_computed_is_found_in_the_node_store_by_another(
    simulated_engine: Start, tmp_path: Path
) -> None:
    node = NodeProcess(tmp_path)
    try:
        first = simulated_engine(*FAST, "--store", node.url)
        second = simulated_engine(*FAST, "--store", node.url.replace("http", "sagemaker-hyperpod"))
        ask: dict[str, Any] = {"model": MODEL, "prompt": list(range(1000)), "max_tokens": 2}
        async with client_of(first) as one, client_of(second) as other:
            computed = await one.completions.create(**ask)
            found = await other.completions.create(**ask)
            own = await other.completions.create(**ask)
            salted = await other.completions.create(**ask, extra_body={"cache_salt": "another tenant"})
        assert found.choices == computed.choices
        cached = [each.usage.prompt_tokens_details.cached_tokens for each in (computed, found, own, salted)]
        assert cached == [0, 3 * 256, 62 * 16, 0]
        by_source = "vllm:prompt_tokens_by_source_total"
        assert await metric(second, by_source, source="external_kv_transfer") == 3 * 256
        assert await metric(second, "vllm:external_prefix_cache_hits_total") == 3 * 256
        assert await metric(second, "vllm:prefix_cache_hits_total") == cached[2]
    finally:
        node.close()


async def test_what_is_not_what_was_stored_is_computed(simulated_engine: Start, tmp_path: Path) -> None:
    node = NodeProcess(tmp_path)
    try:
        ask: dict[str, Any] = {"model": MODEL, "prompt": list(range(1000)), "max_tokens": 2}
        async with client_of(simulated_engine(*FAST, "--store", node.url)) as one:
            await one.completions.create(**ask)
        with node.connect(writer=True) as client:
            root = PrefixIdentity(model=f"simulated {MODEL}").root()
            shard = Shard(kv_dtype="simulated", layout="simulated-1")
            first, second, _ = (object_name(key, shard) for key in block_chain(root, ask["prompt"]))
            content = load(client, first, "lmcache")
            assert content is not None
            assert client.delete("lmcache", [second]) == 1
            store(client, second, content, "lmcache")
        async with client_of(simulated_engine(*FAST, "--store", node.url)) as other:
            found = await other.completions.create(**ask)
        assert found.usage.prompt_tokens_details.cached_tokens == 256
    finally:
        node.close()


async def test_a_node_store_that_is_away_is_a_miss(simulated_engine: Start, free_port: Callable[[], int]) -> None:
    async with client_of(simulated_engine(*FAST, "--store", f"http://127.0.0.1:{free_port()}")) as client:
        answer = await client.completions.create(model=MODEL, prompt=list(range(1000)), max_tokens=2)
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_one_engine_computes_a_prompt_and_another_takes_it_over(simulated_engine: Start) -> None:
    prefill, decode = simulated_engine(*FAST), simulated_engine(*FAST)
    ask: dict[str, Any] = {"model": MODEL, "prompt": DOCUMENT, "max_tokens": 6}
    async with client_of(prefill) as first, client_of(decode) as second:
        alone = await first.completions.create(**ask)
        computed = await first.completions.create(
            **ask | {"max_tokens": 1}, extra_body={"kv_transfer_params": {"do_remote_decode": True}}
        )
        handed = {"kv_transfer_params": computed.kv_transfer_params}
        taken_over = await second.completions.create(**ask, extra_body=handed)
        again = await second.completions.create(**ask)
    assert getattr(alone, "kv_transfer_params", None) is None
    assert taken_over.choices == alone.choices
    assert taken_over.usage.prompt_tokens_details.cached_tokens == taken_over.usage.prompt_tokens - 1
    assert again.usage.prompt_tokens - again.usage.prompt_tokens_details.cached_tokens <= 16, "its own cache has it now"
