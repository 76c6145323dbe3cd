"""The OpenAI surface as the official client sees it: what it sends and reads, how it leaves, and what it raises."""

import asyncio
import json
from typing import Any

import openai
import pytest
from tests.integration.router.backend import (
    DONE,
    STREAM_HEAD,
    Backend,
    Received,
    answering,
    backends,
    chunk,
    router,
    until,
    until_models_are_known,
    whole,
)

from tierline.router.server import RouterServer

MESSAGES: Any = [{"role": "user", "content": "hi"}]
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def event(**more: object) -> bytes:
    choices = [{"index": 0, "delta": {"role": "assistant", "content": "Grüße 👋"}, "finish_reason": None}]
    return b"data: " + json.dumps({"id": "c", "model": "m", "choices": choices} | more).encode() + b"\n\n"


def asynchronous(server: RouterServer, **more: Any) -> openai.AsyncOpenAI:
    settings: dict[str, Any] = {"api_key": "none", "max_retries": 0} | more
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", **settings)


def blocking(server: RouterServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)


async def endless(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD)
    while not reader.at_eof():
        writer.write(chunk(event()))
        await writer.drain()
        await asyncio.sleep(0.005)


async def is_free(server: RouterServer) -> None:
    """The endpoint has been told that nobody waits any more."""
    await until(lambda: 'aborts_total{side="client"} 1.0' in server.services.metrics.exposition()[0].decode())
    assert server.services.endpoints.all[0].inflight == 0


# What goes through ----------------------------------------------------------------------------------------------------


async def test_a_stream_with_its_usage_arrives_event_by_event() -> None:
    told = chunk(event()) + chunk(event(choices=[], usage=USAGE)) + chunk(DONE) + b"0\r\n\r\n"
    async with (
        backends(answering(STREAM_HEAD + told)) as (backend,),
        router(backend) as server,
        asynchronous(server) as ai,
    ):
        stream = await ai.chat.completions.create(
            model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        events = [one async for one in stream]
    assert events[0].choices[0].delta.content == "Grüße 👋"
    assert events[1].usage is not None
    assert events[1].usage.total_tokens == 7
    assert json.loads(backend.requests[0].body)["stream_options"] == {"include_usage": True}


async def test_what_only_the_engine_knows_reaches_it_and_its_answer_comes_back() -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    answer = {
        "id": "c",
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}],
        "usage": USAGE,
        "kv_transfer_params": {"block": 1},
    }
    async with (
        backends(answering(whole(body=json.dumps(answer).encode()))) as (backend,),
        router(backend) as server,
        asynchronous(server) as ai,
    ):
        raw = await ai.chat.completions.with_raw_response.create(
            model="m",
            messages=MESSAGES,
            tools=tools,
            extra_body={"top_k": 3, "chat_template_kwargs": {"thinking": False}},
            extra_headers={"X-Request-Id": "mine"},
        )
        parsed = raw.parse()
    sent = json.loads(backend.requests[0].body)
    assert (sent["tools"], sent["top_k"], sent["chat_template_kwargs"]) == (tools, 3, {"thinking": False})
    assert (raw.headers["x-request-id"], raw.headers["x-tierline-endpoint"]) == ("mine", backend.url)
    assert parsed.model_extra == {"kv_transfer_params": {"block": 1}}


async def test_embeddings_and_responses_go_through() -> None:
    vectors = whole(body=b'{"object":"list","model":"m","data":[{"object":"embedding","index":0,"embedding":[0.5]}]}')
    async with backends(answering(vectors)) as (backend,), router(backend) as server, asynchronous(server) as ai:
        found = await ai.embeddings.create(model="m", input="x", encoding_format="float")
        backend.behave = answering(whole(body=b'{"id":"r","object":"response","output":[],"model":"m"}'))
        response = await ai.responses.create(model="m", input="x")
    assert found.data[0].embedding == [0.5]
    assert response.id == "r"
    assert [request.first_line.split()[1] for request in backend.requests] == [b"/v1/embeddings", b"/v1/responses"]


async def test_a_blocking_client_streams_and_lists_models() -> None:
    told = answering(STREAM_HEAD + chunk(event()) * 3 + chunk(DONE) + b"0\r\n\r\n")
    async with backends(told) as (backend,), router(backend) as server:
        await until_models_are_known(server)

        def ask() -> tuple[list[str], str, int]:
            with blocking(server) as ai:
                models = [model.id for model in ai.models.list()]
                stream = ai.chat.completions.create(model="m", messages=MESSAGES, stream=True)
                return models, ai.models.retrieve("m").id, len(list(stream))

        assert await asyncio.to_thread(ask) == (["m"], "m", 3)


# Leaving --------------------------------------------------------------------------------------------------------------


async def test_a_stream_that_is_closed_early_ends_at_the_endpoint() -> None:
    async with backends(endless) as (backend,), router(backend) as server, asynchronous(server) as ai:
        stream = await ai.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await is_free(server)


async def test_a_blocking_stream_that_is_closed_early_ends_at_the_endpoint() -> None:
    async with backends(endless) as (backend,), router(backend) as server:

        def ask() -> None:
            with (
                blocking(server) as ai,
                ai.chat.completions.create(model="m", messages=MESSAGES, stream=True) as stream,
            ):
                next(iter(stream))

        await asyncio.to_thread(ask)
        await is_free(server)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_request_that_is_cancelled_before_its_answer_ends_at_the_endpoint(is_stream: bool) -> None:
    backend = Backend()
    backend.behave = backend.hanging
    await backend.start()
    async with router(backend) as server, asynchronous(server) as ai:
        asking = asyncio.create_task(ai.chat.completions.create(model="m", messages=MESSAGES, stream=is_stream))
        await until(lambda: len(backend.requests) == 1)
        asking.cancel()
        async with asyncio.timeout(60):
            await backend.left.wait()
        await is_free(server)
    await backend.kill()


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_whose_patience_ends_frees_the_endpoint(is_stream: bool) -> None:
    impatient = openai.Timeout(60, read=1)  # to connect it has all the time it needs
    backend = Backend()
    backend.behave = backend.hanging
    await backend.start()
    async with router(backend) as server, asynchronous(server, timeout=impatient) as ai:
        with pytest.raises(openai.APITimeoutError):
            await ai.completions.create(model="m", prompt="p", stream=is_stream)
        await is_free(server)
    await backend.kill()


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("is_stream", [True, False])
async def test_an_endpoints_error_is_raised_as_it_was_said(
    status: int, error: type[openai.APIStatusError], is_stream: bool
) -> None:
    said = b'{"error":{"message":"said so","type":"t","param":"prompt","code":"c"}}'
    async with (
        backends(answering(whole(status, said))) as (backend,),
        router(backend) as server,
        asynchronous(server) as ai,
    ):
        with pytest.raises(error, match="said so") as caught:
            await ai.completions.create(model="m", prompt="p", stream=is_stream)
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (status, "c", "prompt")
    assert caught.value.request_id == backend.requests[-1].fields[b"x-request-id"].decode()


async def test_the_routers_own_errors_are_raised_with_their_code() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, asynchronous(server) as ai:
        await until_models_are_known(server)
        with pytest.raises(openai.NotFoundError) as missing:
            await ai.completions.create(model="missing", prompt="p")
        with pytest.raises(openai.BadRequestError) as malformed:
            await ai.completions.create(model=7, prompt="p")  # type: ignore[call-overload]
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert malformed.value.code == "invalid_json"
    async with router("http://127.0.0.1:9") as server, asynchronous(server) as ai:
        with pytest.raises(openai.InternalServerError, match="No endpoint"):
            await ai.completions.create(model="m", prompt="p")


async def test_the_client_comes_again_when_it_is_told_to_and_is_served() -> None:
    """Its own retries follow the ``Retry-After`` of a router that has no place."""
    step = asyncio.Event()

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"first" in request.body:
            await step.wait()
        writer.write(whole(body=b'{"id":"c","object":"text_completion","choices":[]}'))

    async with (
        backends(behave) as (backend,),
        router(backend, max_inflight=1) as server,
        asynchronous(server, max_retries=2) as ai,
    ):
        first = asyncio.create_task(ai.completions.create(model="m", prompt="first"))
        await until(lambda: len(backend.requests) == 1)
        second = asyncio.create_task(ai.completions.create(model="m", prompt="second"))
        await until(lambda: server.services.metrics.limits_reached["queue_full"] == 1)
        step.set()
        assert (await first).id == (await second).id == "c"
    assert len(backend.requests) == 2
