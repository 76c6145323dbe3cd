"""What a client measures of one chat request, and the documents it asks about, against the simulated engine."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tierline.bench.chat import Chat, common_prefix, token_split
from tierline.bench.documents import write_document
from tierline.bench.rows import NO_TOKENS, TokenSplit
from tierline.errors import EngineError
from tierline.stack.simulated_engine.config import SimulatedEngineConfig
from tierline.stack.simulated_engine.server import make_app

MODEL = "simulated-model"

# What vLLM 0.32 exposes, shortened.
EXPOSITION = """\
# TYPE vllm:prompt_tokens_by_source_total counter
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 40.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_cache_hit"} 128.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="external_kv_transfer"} 768.0
vllm:prompt_tokens_by_source_created{engine="0",model_name="m",source="local_compute"} 1.7e+09
# TYPE vllm:prompt_tokens_cached_by_source_total counter
vllm:prompt_tokens_cached_by_source_total{engine="0",model_name="m",source="device"} 128.0
vllm:prompt_tokens_cached_by_source_total{engine="0",model_name="m",source="host"} 512.0
vllm:prompt_tokens_cached_by_source_total{engine="0",model_name="m",source="p2p"} 256.0
"""


@pytest.fixture
async def engine() -> AsyncIterator[str]:
    config = SimulatedEngineConfig(model=MODEL, prefill_rate=20_000.0, decode_rate=1000.0)
    async with TestServer(make_app(config)) as server:
        yield str(server.make_url("")).rstrip("/")


@pytest.fixture
async def chat() -> AsyncIterator[Chat]:
    async with aiohttp.ClientSession() as http:
        yield Chat(http, MODEL, answer_tokens=3)


def test_prompt_tokens_are_split_by_who_answered_them() -> None:
    assert token_split(EXPOSITION) == TokenSplit(engine_cache=128, node_store=512, other_node=256, computed=40)
    assert token_split("") == NO_TOKENS


async def test_an_answer_has_its_length_its_tokens_and_a_time_to_first_token(engine: str, chat: Chat) -> None:
    answer = await chat.ask(engine, "What does the pump read?")
    assert len(answer.tokens) == 3
    assert 0 < answer.ttft_s <= answer.duration_s
    assert answer.prompt_tokens > 0
    assert answer.endpoint == ""


async def test_the_event_that_opens_a_chat_is_not_its_first_token(engine: str, chat: Chat) -> None:
    slow = SimulatedEngineConfig(model=MODEL, prefill_rate=1000.0)
    async with TestServer(make_app(slow)) as server:
        answer = await chat.ask(str(server.make_url("")).rstrip("/"), "word " * 200)
    assert answer.ttft_s > 0.1  # the modelled prefill of 250 tokens; the role comes at once


async def test_counters_tell_cold_from_the_engines_own_cache_and_from_an_emptied_one(engine: str, chat: Chat) -> None:
    document = await write_document(chat, engine, prefix_tokens=256, questions=1)
    splits = []
    for forgets in (False, False, True):
        if forgets:
            await chat.forget_prefixes(engine)
        before = await chat.split([engine])
        answer = await chat.ask(engine, document.prompt(0))
        splits.append(await chat.split_after([engine], before, answer.prompt_tokens))
    assert [split.engine_cache >= 240 for split in splits] == [False, True, False]
    assert {split.total for split in splits} == {answer.prompt_tokens}


async def test_documents_share_at_least_the_prefix_asked_for_and_hardly_more(engine: str, chat: Chat) -> None:
    document = await write_document(chat, engine, prefix_tokens=300, questions=2)
    tokens = [await chat.token_ids(engine, document.prompt(question)) for question in range(2)]
    shared = common_prefix(*tokens)
    assert 300 <= document.prefix_tokens <= shared
    assert document.prefix_tokens < 310


async def test_no_two_documents_share_a_block(engine: str, chat: Chat) -> None:
    first, second = [await write_document(chat, engine, prefix_tokens=64, questions=1) for _ in range(2)]
    tokens = [await chat.token_ids(engine, document.prompt(0)) for document in (first, second)]
    assert common_prefix(*tokens) < 16


async def test_a_server_that_refuses_is_reported_with_what_it_said(engine: str) -> None:
    async with aiohttp.ClientSession() as http:
        with pytest.raises(EngineError, match=r"404.*another-model"):
            await Chat(http, "another-model", answer_tokens=1).ask(engine, "Hello")


async def test_a_stream_without_text_is_an_error_not_a_sample(chat: Chat) -> None:
    async def answer_nothing(_: web.Request) -> web.Response:
        return web.Response(text='data: {"choices": []}\n\ndata: [DONE]\n\n', content_type="text/event-stream")

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", answer_nothing)])
    async with TestServer(app) as server:
        with pytest.raises(EngineError, match="without any text"):
            await chat.ask(str(server.make_url("")).rstrip("/"), "Hello")
