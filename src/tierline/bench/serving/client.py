"""One streaming request of the OpenAI API as a client sees it, every way of failing told apart.

Time to first token ends with the first event *with content*: the event that opens a chat with a role, and those with
neither text nor reasoning, do not count.
"""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from tierline.answers import Choice, Event, Usage, read_event

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

NOT_SAID = -1.0
"""For how far ahead of the next best a token was, where the server does not say."""

_MOST_OF_A_DETAIL = 200
_LONGEST_LINE = 8 * 1024 * 1024


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to ask, and how.

    Parameters
    ----------
    base_url, endpoint
        The server and the route.
    model
        ``model`` of requests.
    headers
        Sent with each request.
    extra_body
        Merged into each request's body.
    ignore_eos
        Ask for answers of exactly the length that is wanted; servers that do not know the field may refuse it.
    timeout_s
        Of a whole request.
    session_header
        Header that names what a request belongs to (a document, a chat), for routers that route by it; empty: none.
    cache_salt
        ``cache_salt`` of each request; empty: none.
    shares_nothing
        Each request has a ``cache_salt`` of its own, so that it finds nothing in any cache.
    keeps_answers
        Ask for the tokens of answers and how far ahead of the next best each was, and keep both.
    keeps_texts
        Keep what answers say.
    """

    base_url: str
    endpoint: str = CHAT
    model: str
    headers: Mapping[str, str] = {}
    extra_body: Mapping[str, Any] = {}
    ignore_eos: bool = True
    timeout_s: float = 600.0
    session_header: str = ""
    cache_salt: str = ""
    shares_nothing: bool = False
    keeps_answers: bool = False
    keeps_texts: bool = False


@dataclass
class Reply:
    """What came back; see :class:`~tierline.bench.serving.records.Record` for the fields they share."""

    latency_s: float = 0.0
    ttft_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    error: str = ""
    detail: str = ""
    endpoint: str = ""
    is_simulated: bool = False
    text: str = ""
    tokens: list[str] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)


class _Candidate(msgspec.Struct):
    logprob: float


class _Token(msgspec.Struct):
    token: str
    top_logprobs: Sequence[_Candidate] = ()

    @property
    def margin(self) -> float:
        """By how many nats the best token was ahead of the next; negative where the server does not say."""
        best = sorted((candidate.logprob for candidate in self.top_logprobs), reverse=True)
        return best[0] - best[1] if len(best) > 1 else NOT_SAID


class _Tokens(msgspec.Struct):
    content: Sequence[_Token] | None = None


def encode_body(
    target: Target, messages: Sequence[Mapping[str, str]], output_tokens: int, cache_salt: str = ""
) -> bytes:
    """Return a request's body; as a completion, what is said becomes one prompt."""
    asked: dict[str, Any] = {"messages": messages}
    if not target.endpoint.endswith("/chat/completions"):
        asked = {"prompt": "\n\n".join(message["content"] for message in messages)}
    body = {
        "model": target.model,
        **asked,
        "max_tokens": output_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"ignore_eos": True} if target.ignore_eos else {}),
        **({"cache_salt": cache_salt} if cache_salt else {}),
        **({"logprobs": True, "top_logprobs": 2} if target.keeps_answers else {}),
        **target.extra_body,
    }
    return msgspec.json.encode(body)


async def ask(
    http: aiohttp.ClientSession, target: Target, body: bytes, headers: Mapping[str, str] | None = None
) -> Reply:
    """Send a request and read its answer to the end; whatever goes wrong is in the reply, not raised."""
    reply = Reply()
    started = time.perf_counter()
    try:
        async with http.post(
            target.base_url.rstrip("/") + target.endpoint,
            data=body,
            headers={"content-type": "application/json", **target.headers, **(headers or {})},
            timeout=aiohttp.ClientTimeout(total=target.timeout_s),
        ) as response:
            reply.endpoint = response.headers.get("x-tierline-endpoint", "")
            reply.is_simulated = "x-tierline-simulated" in response.headers
            if response.status != 200:
                reply.error = f"HTTP {response.status}"
                reply.detail = (await response.text(errors="replace"))[:_MOST_OF_A_DETAIL]
            else:
                await _read(response, reply, started, keeps_tokens=target.keeps_answers)
    except TimeoutError:
        reply.error = "timeout"
    except aiohttp.ClientConnectorError as error:
        reply.error, reply.detail = "cannot connect", str(error)[:_MOST_OF_A_DETAIL]
    except (aiohttp.ClientError, ConnectionError) as error:
        reply.error, reply.detail = "connection broken", f"{error or type(error).__name__}"[:_MOST_OF_A_DETAIL]
    except (msgspec.DecodeError, ValueError) as error:
        reply.error, reply.detail = "unreadable event", str(error)[:_MOST_OF_A_DETAIL]
    reply.latency_s = time.perf_counter() - started
    return reply


async def _read(response: aiohttp.ClientResponse, reply: Reply, started: float, *, keeps_tokens: bool) -> None:
    last_s = 0.0
    is_whole = False
    text = []
    async for line in _lines(response):
        if not line.startswith(b"data:"):
            continue
        payload = line[5:].strip()
        if payload == b"[DONE]":
            is_whole = True
            break
        event = read_event(payload)
        if event.error is not None:
            reply.error, reply.detail = "error event", event.failure[:_MOST_OF_A_DETAIL]
            return
        content = "".join(choice.content for choice in event.choices)
        if content:
            now_s = time.perf_counter() - started
            if reply.ttft_s is None:
                reply.ttft_s = now_s
            else:
                reply.gaps_s.append(now_s - last_s)
            last_s = now_s
            text.append(content)
        if keeps_tokens:
            _keep_tokens(event, content, reply)
        is_whole = is_whole or any(choice.finish_reason for choice in event.choices)
        if event.usage is not None:
            _count(event.usage, reply)
    reply.text = "".join(text)
    if not is_whole:
        reply.error = "ended early"
    elif reply.ttft_s is None:
        reply.error = "no content"


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield lines as they come, however long; aiohttp's own reader stops at 128 KiB."""
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            raise ValueError(f"a line of more than {_LONGEST_LINE} bytes")
        for line in lines:
            yield line
    if rest:
        yield rest


def _keep_tokens(event: Event, content: str, reply: Reply) -> None:
    """Keep an event's tokens, also those that have no text; its text as one, where the server tells none."""
    told = [token for choice in event.choices for token in _tokens_of(choice)]
    if content and not told:
        told = [_Token(content)]
    reply.tokens += [token.token for token in told]
    reply.margins += [token.margin for token in told]


def _tokens_of(choice: Choice) -> Sequence[_Token]:
    if choice.logprobs is None:
        return ()
    return msgspec.convert(choice.logprobs, _Tokens).content or ()


def _count(usage: Usage, reply: Reply) -> None:
    reply.prompt_tokens, reply.output_tokens = usage.prompt_tokens, usage.completion_tokens
    if usage.prompt_tokens_details is not None:
        reply.cached_tokens = usage.cached_tokens
