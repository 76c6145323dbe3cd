"""The ladder from a request to its tokens: each rung, the budget, and what has no tokens."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tierline.errors import UsageError
from tierline.router.endpointkeys import EndpointKeys
from tierline.router.endpoints import Endpoints
from tierline.router.events.keys import token_bytes
from tierline.router.strategies import RoutingRequest
from tierline.router.tls import EndpointTls
from tierline.router.tokenizer import LocalTokenizer, PlainMessage
from tierline.router.tokens import TokenLadder

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<assistant>"


@dataclass
class Engine:
    """Tokenizes a text to the lengths of its words, when it is let."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 200
    rendered: list[dict[str, Any]] = field(default_factory=list)
    renders: bool = True

    async def tokenize(self, http: web.Request) -> web.Response:
        body = await http.json()
        self.asked.append(body)
        await self.is_open.wait()
        text = body.get("prompt") or json.dumps(body["messages"])
        return web.json_response({"tokens": [len(word) for word in text.split()]}, status=self.status)

    async def render(self, http: web.Request) -> web.Response:
        self.rendered.append(await http.json())
        return web.json_response({"request_id": "r", "token_ids": [7, 8]}, status=200 if self.renders else 404)


@dataclass
class World:
    ladder: TokenLadder
    engine: Engine

    async def tokens(self, **body: Any) -> list[int] | None:
        """Return what the ladder finds for a request."""
        routing, encoded = RoutingRequest(), json.dumps({"model": "m", **body}).encode()
        question = self.ladder.at_once(routing, encoded)
        if question is not None:
            await self.ladder.climb(routing, question)
        return None if routing.tokens is None else list(memoryview(routing.tokens.raw).cast("I"))


@contextlib.asynccontextmanager
async def world(folder: Path | None = None, **options: Any) -> AsyncIterator[World]:
    engine = Engine()
    engine.is_open.set()
    app = web.Application()
    app.add_routes(
        [
            web.post("/tokenize", engine.tokenize),
            web.post("/v1/chat/completions/render", engine.render),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    endpoints = Endpoints([f"http://127.0.0.1:{runner.addresses[0][1]}"])
    endpoints.all[0].is_up = True
    tokenizers = {"m": LocalTokenizer(folder)} if folder is not None else {}
    # A machine that runs tests may be too busy to answer in 20 ms.
    settings: dict[str, Any] = {"budget_s": 60.0, **options}
    keys = EndpointKeys(None, endpoints)
    ladder = TokenLadder(endpoints, tokenizers, tls=EndpointTls(None, None, None), keys=keys, **settings)
    try:
        yield World(ladder, engine)
    finally:
        engine.is_open.set()
        await ladder.close()
        await runner.cleanup()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer of words, with a chat template."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[UNK]", "hello", "world", "</s>", "<user>", "<assistant>"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>", "<user>", "<assistant>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": TEMPLATE}))
    return tmp_path


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine of these tests answers when it is let; a machine that stands still meanwhile is no reason."""
    monkeypatch.setattr("tierline.router.tokens.ANSWER_SECONDS", 60.0)


async def test_ids_in_the_request_are_taken_as_they_are() -> None:
    async with world() as here:
        assert await here.tokens(prompt=[1, 2, 3]) == [1, 2, 3]
        assert await here.tokens(prompt=[[1, 2, 3]]) == [1, 2, 3]
        assert (here.engine.asked, here.ladder.rungs) == ([], {"ids": 2})


async def test_the_engine_is_asked_once_for_a_prompt_with_what_decides_its_tokens() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    ask: dict[str, Any] = {"messages": [{"role": "user", "content": "a bc"}], "tools": tools, "temperature": 0.5}
    async with world() as here:
        first = await here.tokens(**ask)
        again = await here.tokens(**ask, cache_salt="another tenant's")
        assert first == again
        assert first
        assert here.engine.asked == [{"model": "m", "messages": ask["messages"], "tools": tools}]
        assert here.ladder.rungs == {"engine": 1, "cache": 1}


async def test_equal_prompts_at_once_are_asked_for_once() -> None:
    async with world() as here:
        here.engine.is_open.clear()
        asking = [asyncio.create_task(here.tokens(prompt="a bc")) for _ in range(3)]
        await asyncio.sleep(0.1)
        here.engine.is_open.set()
        assert await asyncio.gather(*asking) == [[1, 2]] * 3
        assert len(here.engine.asked) == 1


async def test_an_answer_that_comes_late_is_for_the_next_request() -> None:
    async with world(budget_s=0.05) as here:
        here.engine.is_open.clear()
        assert await here.tokens(prompt="a bc") is None
        assert here.ladder.given_up == {"late": 1}
        here.engine.is_open.set()
        while await here.tokens(prompt="a bc") is None:  # noqa: ASYNC110  (its own timeout ends it)
            await asyncio.sleep(0.01)
        assert len(here.engine.asked) == 1


async def test_an_engine_that_refuses_leaves_a_guess() -> None:
    async with world() as here:
        here.engine.status = 404
        assert await here.tokens(prompt="a bc") is None
        assert here.ladder.given_up == {"refused": 1}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"prompt": ["a", "b"]}, "several-prompts"),
        ({"prompt": [[1], [2]]}, "several-prompts"),
        ({"prompt": [-1]}, "unreadable"),
        ({"prompt": {"a": 1}}, "unreadable"),
        ({}, "no-prompt"),
        ({"prompt": "a", "truncate_prompt_tokens": 5}, "truncated"),
        ({"prompt": "a", "prompt_embeds": "abc"}, "embeddings"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "images"),
    ],
)
async def test_what_has_no_tokens_is_not_asked_for(body: dict[str, Any], reason: str) -> None:
    async with world() as here:
        assert await here.tokens(**body) is None
        assert (here.engine.asked, here.ladder.given_up) == ([], {reason: 1})


BEYOND: list[dict[str, Any]] = [
    {"documents": [{"text": "b"}]},
    {"reasoning_effort": "low"},
    {"tools": [{}], "tool_choice": "none"},
    {"tools": [{}], "tool_choice": "required"},
    {"response_format": {"type": "json_object"}},
]


@pytest.mark.parametrize("settings", BEYOND)
async def test_what_only_a_whole_request_tells_is_asked_for_with_it(settings: dict[str, Any]) -> None:
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], **settings}
    async with world() as here:
        assert await here.tokens(**chat, temperature=0.5) == [7, 8]
        assert await here.tokens(**chat, temperature=0.7) == [7, 8]
        assert here.engine.rendered == [{"model": "m", **chat}]
        assert (here.engine.asked, here.ladder.rungs) == ([], {"engine": 1, "cache": 1})


@pytest.mark.parametrize("settings", BEYOND)
async def test_an_engine_that_renders_no_requests_is_asked_for_what_it_tokenizes(
    settings: dict[str, Any],
) -> None:
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], **settings}
    if "documents" in settings:
        chat["chat_template_kwargs"] = {"a": 1}
    async with world() as here:
        here.engine.renders = False
        tokens = await here.tokens(**chat)
        if "documents" in settings:
            assert here.engine.asked == [
                {"model": "m", "messages": chat["messages"], "chat_template_kwargs": {"a": 1, **settings}}
            ]
        elif settings.get("tool_choice") == "required" or "response_format" in settings:
            assert tokens
            assert here.engine.asked[0].keys() == {"model", "messages", *settings} - {"tool_choice", "response_format"}
        else:
            assert (tokens, here.engine.asked, here.ladder.given_up) == (None, [], {"refused": 1})


async def test_a_tool_choice_that_says_nothing_is_not_asked_about() -> None:
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}
    async with world() as here:
        await here.tokens(**chat, tool_choice="none")
        await here.tokens(**chat, tools=[{}], tool_choice="auto")
        assert (here.engine.rendered, len(here.engine.asked)) == ([], 2)


async def test_tokens_of_prompts_seen_lately_stay_within_their_memory() -> None:
    async with world(cache_bytes=700) as here:
        for text in ("a", "b", "c", "a"):
            assert await here.tokens(prompt=text) == [1]
        assert len(here.engine.asked) == 4
        assert await here.tokens(prompt="a") == [1]
        assert here.ladder.rungs["cache"] == 1


async def test_texts_and_plain_chats_need_no_engine(folder: Path) -> None:
    async with world(folder) as here:
        assert await here.tokens(prompt="hello world") == [1, 2]
        assert await here.tokens(messages=[{"role": "user", "content": "hello"}]) == [4, 1, 3, 5]
        assert (here.engine.asked, here.ladder.rungs) == ([], {"local": 2})


async def test_the_next_turn_of_a_chat_is_tokenized_from_where_it_is_new(folder: Path) -> None:
    async with world(folder) as here:
        turns: list[dict[str, str]] = []
        for text in ("hello world", "world", "hello"):
            turns.append({"role": "user", "content": text})
            whole = LocalTokenizer(folder).tokens(None, [PlainMessage(**turn) for turn in turns])
            found = await here.tokens(messages=turns)
            assert found is not None
            assert token_bytes(found) == whole
            turns.append({"role": "assistant", "content": "hello"})
        assert here.ladder.tokenized == {"known": 5 + 11, "new": 5 + 6 + 6}


async def test_what_only_the_engine_can_write_is_asked_of_it(folder: Path) -> None:
    async with world(folder) as here:
        parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
        for body in ({"messages": parts}, {"messages": [{"role": "user", "content": "a"}], "tools": [{}]}):
            assert await here.tokens(**body)
        assert await here.tokens(model="another", prompt="hello") == [5]
        assert here.ladder.rungs == {"engine": 3}


def test_a_folder_that_is_no_tokenizer_is_a_user_s_mistake(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        LocalTokenizer(tmp_path / "nothing")
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(UsageError, match="chat template"):
        LocalTokenizer(folder)


def test_a_template_that_fails_leaves_the_chat_to_the_engine(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    assert LocalTokenizer(folder).tokens(None, [PlainMessage("user", "hello")]) is None
