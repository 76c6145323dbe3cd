"""Endpoints that fail in every way at once, under load: who could be served is, by an answer of its own, once."""

import asyncio
import json
from collections import Counter

from tests.integration.router.backend import (
    DONE,
    STREAM_HEAD,
    Backend,
    Behaviour,
    Received,
    answering,
    answering_then_closing,
    backends,
    chat,
    chunk,
    client,
    router,
    until,
    until_models_are_known,
    whole,
)

EVENTS = 5


def content_of(request: Received) -> str:
    content: str = json.loads(request.body)["messages"][0]["content"]
    return content


def event(content: str, number: int) -> bytes:
    return b"data: " + json.dumps({"echo": content, "event": number}).encode() + b"\n\n"


def echoing(pause_s: float = 0.0, breaks_after: int = EVENTS) -> Behaviour:
    """Stream what was asked, event by event; a connection that breaks does so between two events."""

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        content = content_of(request)
        if not json.loads(request.body)["stream"]:
            writer.write(whole(body=content.encode()))
            return
        writer.write(STREAM_HEAD)
        for number in range(breaks_after):
            writer.write(chunk(event(content, number)))
            await asyncio.sleep(pause_s)
        if breaks_after < EVENTS:
            await writer.drain()
            writer.close()
            return
        writer.write(chunk(DONE) + b"0\r\n\r\n")

    return behave


def breaking(streams: int) -> Behaviour:
    """Break off so many streams, and no more: each client that meets one leaves."""
    to_break = iter(range(streams))

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        breaks = json.loads(request.body)["stream"] and next(to_break, None) is not None
        await echoing(breaks_after=2 if breaks else EVENTS)(request, reader, writer)

    return behave


async def lying(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Announce more than is said, or less."""
    if json.loads(request.body)["stream"]:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        await writer.drain()
        writer.close()
    else:
        writer.write(whole(body=content_of(request).encode()) + whole(body=b"an answer that nobody asked for"))


async def test_whatever_endpoints_do_at_once_every_client_gets_its_own_answer_once() -> None:
    dying, outcomes = Backend(), Counter[str]()
    await dying.start()
    dying.behave = dying.hanging
    faults = [answering_then_closing(b""), answering(whole(503)), lying, breaking(streams=24)]
    async with (
        backends(*faults, echoing(), echoing(pause_s=0.003)) as endpoints,
        router(dying, *endpoints, strategy="leastload", retries=6, health_interval_s=1000) as server,
    ):
        await until_models_are_known(server)

        async def ask(name: int) -> None:
            async with client(server) as peer:
                for number in range(20):
                    content, is_stream = f"{name}/{number}", bool(number % 2)
                    answer = await peer.ask(chat(content, stream=is_stream))
                    assert answer.status == 200
                    if not is_stream:
                        assert answer.body == content.encode()
                        continue
                    *events, last = filter(None, answer.body.split(b"\n\n"))
                    assert events == [event(content, number).rstrip() for number in range(len(events))]
                    is_whole = last + b"\n\n" == DONE
                    assert len(events) == (EVENTS if is_whole else 2)
                    assert is_whole or json.loads(last.removeprefix(b"data: "))["error"]["type"] == "upstream_error"
                    outcomes["whole" if is_whole else "broken"] += 1
                    if not is_whole:  # what broke in its middle ends its connection
                        return

        asking = [asyncio.create_task(ask(name)) for name in range(48)]
        await until(lambda: len(dying.requests) > 0)
        await dying.kill()  # with requests in hand that it has never answered
        async with asyncio.timeout(60):
            await asyncio.gather(*asking)
        assert [endpoint.inflight for endpoint in server.services.endpoints.all] == [0] * 7
        assert server.services.held_bytes == 0
    assert all(backend.requests for backend in endpoints), "every endpoint had its part"
    assert outcomes["whole"] > outcomes["broken"] > 0
