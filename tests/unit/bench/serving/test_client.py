"""What a client makes of what servers send: whole answers of the simulated engine, and every way of going wrong."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.ports import free_port

from tierline.bench.serving.client import COMPLETIONS, Reply, Target, ask, encode_body
from tierline.bench.serving.loading import Assignment, Loader
from tierline.bench.serving.records import NOT_SENT, Record
from tierline.bench.serving.sending import Ready, Sending
from tierline.bench.serving.text import Lengths
from tierline.bench.serving.workloads import Shape, plan
from tierline.stack.simulated_engine.config import SimulatedEngineConfig
from tierline.stack.simulated_engine.server import make_app

MODEL = "simulated-model"
MESSAGES = [{"role": "user", "content": "What does the pump read?"}]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
WORD = b'data: {"choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{"content":"end"},"finish_reason":"length"}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":70,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":64}}}\n\n'
)
DONE = b"data: [DONE]\n\n"


@pytest.fixture
async def engine() -> AsyncIterator[str]:
    config = SimulatedEngineConfig(model=MODEL, prefill_rate=50_000.0, decode_rate=1000.0, cache_blocks=20_000)
    async with TestServer(make_app(config)) as server:
        yield str(server.make_url("")).rstrip("/")


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


def stream_of(*parts: bytes, breaks: bool = False) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        if breaks:
            assert request.transport is not None
            request.transport.abort()
        return response

    return handler


async def asked(url: str, **target: object) -> Reply:
    wanted = msgspec.structs.replace(Target(base_url=url, model=MODEL), **target)
    async with aiohttp.ClientSession() as http:
        return await ask(http, wanted, encode_body(wanted, MESSAGES, 4))


async def answer_of(handler: Handler, **target: object) -> Reply:
    async with serving(handler) as url:
        return await asked(url, **target)


async def test_a_whole_answer_has_its_times_its_tokens_and_says_that_it_is_simulated(engine: str) -> None:
    reply = await asked(engine)

    assert (reply.error, reply.output_tokens, reply.is_simulated) == ("", 4, True)
    assert reply.ttft_s is not None
    assert 0 < reply.ttft_s <= reply.latency_s
    assert len(reply.gaps_s) == 3
    assert reply.ttft_s + sum(reply.gaps_s) <= reply.latency_s
    assert reply.prompt_tokens
    assert reply.cached_tokens == 0


async def test_completions_are_asked_with_one_prompt(engine: str) -> None:
    reply = await asked(engine, endpoint=COMPLETIONS)

    assert (reply.error, reply.output_tokens) == ("", 4)


async def test_the_first_token_comes_with_the_first_event_that_has_content() -> None:
    role_sent = 0.0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal role_sent
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b": a comment\n\n" + ROLE + b'data: {"choices":[]}\n\n')
        role_sent = time.perf_counter()
        await asyncio.sleep(0.2)
        await response.write(WORD + LAST + USAGE + DONE)
        return response

    reply = await answer_of(handler)

    assert reply.error == ""
    assert reply.ttft_s is not None
    assert reply.ttft_s >= 0.2
    assert (reply.prompt_tokens, reply.output_tokens, reply.cached_tokens) == (70, 2, 64)


async def test_events_in_pieces_and_reasoning_are_read() -> None:
    reasoning = b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\r\n\r\n'

    reply = await answer_of(stream_of(ROLE[:20], ROLE[20:] + reasoning[:9], reasoning[9:], LAST, DONE))

    assert (reply.error, reply.text, len(reply.gaps_s)) == ("", "hmend", 1)
    assert reply.output_tokens is None


def told(content: str, *tokens: str) -> bytes:
    """Return an event with a text and the tokens that it is of."""
    near = [{"logprob": -0.25}, {"logprob": -1.5}]
    said = {"content": [{"token": token, "top_logprobs": near} for token in tokens]}
    return b"data: " + msgspec.json.encode({"choices": [{"delta": {"content": content}, "logprobs": said}]}) + b"\n\n"


@pytest.mark.parametrize(
    "events",
    [
        (told("It", "It"), told("", "<|im_end|>"), told("\n", "\n")),
        (told("It", "It"), told("\n", "<|im_end|>", "\n")),
    ],
    ids=["an event each", "two in one event"],
)
async def test_tokens_without_text_are_kept_however_a_server_puts_them_into_events(events: Sequence[bytes]) -> None:
    reply = await answer_of(stream_of(ROLE, *events, USAGE, DONE), keeps_answers=True)

    assert (reply.tokens, reply.margins) == (["It", "<|im_end|>", "\n"], [1.25] * 3)
    assert len(reply.gaps_s) == 1, "a time is of text that came"


async def test_a_line_longer_than_readers_like_is_read() -> None:
    long = msgspec.json.encode({"choices": [{"delta": {"content": "x" * 300_000}, "finish_reason": "stop"}]})

    reply = await answer_of(stream_of(b"data: " + long + b"\n\n", DONE))

    assert (reply.error, len(reply.text)) == ("", 300_000)


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_a_refusal_is_told_by_its_status(status: int) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, text="no")

    reply = await answer_of(handler)

    assert (reply.error, reply.detail, reply.ttft_s) == (f"HTTP {status}", "no", None)


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (stream_of(ROLE, WORD), "ended early"),
        (stream_of(ROLE, WORD, breaks=True), "connection broken"),
        (stream_of(), "ended early"),
        (stream_of(ROLE, DONE), "no content"),
        (stream_of(ROLE, b'data: {"error":{"message":"out of memory"}}\n\n', DONE), "error event"),
        (stream_of(ROLE, b"data: {nonsense}\n\n", DONE), "unreadable event"),
        (stream_of(ROLE, b'data: {"choices":7}\n\n', DONE), "unreadable event"),
    ],
    ids=["no end", "broken", "nothing", "no text", "error", "no JSON", "another shape"],
)
async def test_every_way_of_going_wrong_has_its_name(handler: Handler, error: str) -> None:
    assert (await answer_of(handler)).error == error


async def test_a_server_that_says_nothing_in_time_is_a_timeout_and_one_that_is_not_there_cannot_be_connected() -> None:
    async def handler(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    assert (await answer_of(handler, timeout_s=0.3)).error == "timeout"
    assert (await asked(f"http://127.0.0.1:{free_port()}")).error == "cannot connect"


class Clock:
    """Time that stands still until somebody moves it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def load(
    url: str, name: str, requests: int, clock: Callable[[], float] = time.monotonic, **assignment: object
) -> list[Record]:
    records: list[Record] = []
    planned = plan(name, Shape(requests=requests, input_tokens=800, output_tokens=4, turns=4))
    whole = Assignment(
        target=Target(base_url=url, model=MODEL), plan=planned, salt="s", lengths=Lengths(1.3), concurrency=4
    )
    await Loader(msgspec.structs.replace(whole, **assignment), records.append, clock).run(clock())
    return records


@pytest.mark.parametrize("name", ["documents", "chats", "agents", "templates"])
async def test_cold_requests_find_nothing_and_warm_ones_find_their_prefix(engine: str, name: str) -> None:
    records = await load(engine, name, 16)

    assert len(records) == 16
    assert all(record.is_good for record in records)
    for record in records:
        assert record.cached_tokens is not None
        assert record.prompt_tokens is not None
        if record.is_cold:
            assert record.cached_tokens < 0.6 * record.prompt_tokens
        else:
            assert record.cached_tokens > 0.4 * record.prompt_tokens
    first = [record for record in records if record.index == 0]
    assert first[0].cached_tokens == 0


async def test_a_chat_sends_what_was_answered() -> None:
    bodies = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        return await stream_of(ROLE, WORD, LAST, USAGE, DONE)(request)

    async with serving(handler) as url:
        records = await load(url, "chats", 4, concurrency=1)

    assert [len(body["messages"]) for body in bodies] == [1, 3, 5, 7]
    assert bodies[1]["messages"][0] == bodies[0]["messages"][0]
    assert bodies[1]["messages"][1] == {"role": "assistant", "content": "word end"}
    assert all(body["stream"] and body["ignore_eos"] and body["max_tokens"] == 4 for body in bodies)
    assert [record.cached_tokens for record in records] == [64] * 4


async def test_what_waits_for_a_failed_request_is_recorded_and_not_sent() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=500)

    async with serving(handler) as url:
        records = await load(url, "documents", 8)

    assert sorted(record.error for record in records) == ["HTTP 500"] * 2 + [NOT_SENT] * 6


async def test_never_more_requests_are_in_flight_than_allowed_and_those_of_the_ramp_do_not_count() -> None:
    now = most = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return await stream_of(LAST, USAGE, DONE)(request)

    async with serving(handler) as url:
        records = await load(url, "independent", 40, concurrency=3, ramp_s=0.1)

    assert most <= 3
    assert len(records) == 40
    assert all(record.is_measured == (record.sent_s >= 0.1) for record in records)


async def test_who_waits_for_the_last_answers_does_not_ask_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for = arrived = 0
    clock, are_both_there = Clock(), asyncio.Event()
    take = Sending.take

    def counted(sending: Sending, now_s: float) -> Ready | float:
        nonlocal asked_for
        asked_for += 1
        return take(sending, now_s)

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal arrived
        arrived += 1
        if arrived == 2:
            clock.now_s = 0.5  # from now on nothing is sent
            are_both_there.set()
        await are_both_there.wait()
        await asyncio.sleep(0.7)
        return await stream_of(LAST, USAGE, DONE)(request)

    monkeypatch.setattr(Sending, "take", counted)
    async with serving(handler) as url:
        records = await load(url, "independent", 500, clock, concurrency=2, duration_s=0.4)

    assert [record.error for record in records] == ["", ""]
    assert asked_for < 20


async def test_nothing_is_sent_after_the_duration() -> None:
    clock = Clock()

    async def handler(request: web.Request) -> web.StreamResponse:
        clock.now_s += 0.25
        return await stream_of(LAST, USAGE, DONE)(request)

    async with serving(handler) as url:
        records = await load(url, "independent", 500, clock, concurrency=1, duration_s=1.0)

    assert [record.sent_s for record in records] == [0.0, 0.25, 0.5, 0.75]
