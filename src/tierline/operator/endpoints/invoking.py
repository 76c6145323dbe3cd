"""One request to an endpoint, and what it took: the time until the first token, tokens, who answered and why."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

import msgspec

from tierline.answers import Event, Models, Usage, read_event
from tierline.errors import WireError
from tierline.operator.endpoints.reaching import Way

CHAT, COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"
_DATA, _DONE = b"data:", b"[DONE]"


@dataclass(frozen=True)
class Answered:
    """What a request took.

    Parameters
    ----------
    text
        What was generated.
    first_token_s, seconds
        Until the first token, and the end, of the answer.
    prompt_tokens, cached_tokens, completion_tokens
        As the engine counts them; ``None`` where it does not say.
    endpoint, strategy, reason
        Which replica answered, and why that one; empty where there is no router.
    """

    text: str
    first_token_s: float | None
    seconds: float
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    endpoint: str = ""
    strategy: str = ""
    reason: str = ""


async def served_model(way: Way, headers: Mapping[str, str]) -> str:
    """Return the first model that an endpoint says it serves.

    Raises
    ------
    WireError
        It names none.
    """
    async with way.answer("GET", MODELS, headers=headers) as reply:
        body = await reply.read()
    try:
        models = msgspec.json.decode(body, type=Models).data
    except msgspec.DecodeError as error:
        raise WireError(f"{MODELS}: what it answers is no list of models: {error}") from error
    if not models:
        raise WireError(f"{MODELS}: it serves no model")
    return models[0].id


def asking(model: str, prompt: str, *, is_chat: bool, max_tokens: int) -> dict[str, Any]:
    """Return the body of a request that streams."""
    question = {"messages": [{"role": "user", "content": prompt}]} if is_chat else {"prompt": prompt}
    return {
        "model": model,
        **question,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def invoke(
    way: Way, path: str, body: Mapping[str, Any], headers: Mapping[str, str], wrote: Callable[[str], None]
) -> Answered:
    """Send a request whose answer is streamed; ``wrote`` has each piece of text as it comes.

    Raises
    ------
    WireError
        The answer is none of OpenAI's streams, or breaks off with an error.
    """
    begun = monotonic()
    first: float | None = None
    pieces: list[str] = []
    usage = Usage()
    async with way.answer("POST", path, body=body, headers=headers) as reply:
        unread = b""
        async for data in reply.content.iter_any():
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                if not line.startswith(_DATA) or (event := line.removeprefix(_DATA).strip()) == _DONE:
                    continue
                chunk = _chunk(event)
                usage = chunk.usage or usage
                for text in (choice.said for choice in chunk.choices if choice.said):
                    first = monotonic() - begun if first is None else first
                    pieces.append(text)
                    wrote(text)
        served = reply.headers
    return Answered(
        text="".join(pieces),
        first_token_s=first,
        seconds=monotonic() - begun,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        endpoint=served.get("x-tierline-endpoint", ""),
        strategy=served.get("x-tierline-strategy", ""),
        reason=served.get("x-tierline-reason", ""),
    )


def path_for(body: Mapping[str, Any]) -> str:
    """Return where a body belongs."""
    return COMPLETIONS if "prompt" in body and "messages" not in body else CHAT


async def invoke_as_is(way: Way, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Any:
    """Send a body and return the JSON that is answered.

    Raises
    ------
    WireError
        The answer is no JSON.
    """
    async with way.answer("POST", path, body=body, headers=headers) as reply:
        answered = await reply.read()
    try:
        return json.loads(answered)
    except ValueError as error:
        raise WireError(
            f"{path}: what it answers is no JSON; a stream is asked for with a prompt, not --body"
        ) from error


def _chunk(event: bytes) -> Event:
    try:
        chunk = read_event(event)
    except msgspec.DecodeError as error:
        raise WireError(f"an event of the answer is none of OpenAI's: {error}") from error
    if chunk.error is not None:
        raise WireError(f"the answer broke off: {chunk.failure}")
    return chunk
