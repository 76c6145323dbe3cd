"""From a request to the tokens of its prompt, by a ladder: the first rung that holds gives them, within 20 ms.

1. *ids*: the request has them.
2. *cache*: the same prompt was asked for lately.
3. *local*: a tokenizer and chat template of this router's own, in a thread (:mod:`.tokenizer`).
4. *engine*: an endpoint's ``/tokenize``, which knows what its template does with tools and settings; for what that does
   not take, the same request's ``/render``, where vLLM (from 0.32 on) is started with ``--enable-scale-out``.

Past that the router gives up and routes by what it knows approximately; the answer, when it comes, is for the next
request with this prompt. The event loop never waits, and equal prompts that come at once are asked for once. What has
no tokens that would name its blocks is not asked for at all: images, embeddings, several prompts in one request.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import aiohttp
import msgspec
import xxhash

from tierline import logs
from tierline.router.endpointkeys import EndpointKeys
from tierline.router.endpoints import Endpoints
from tierline.router.events.keys import PromptTokens, token_bytes
from tierline.router.http.splicing import UNREADABLE
from tierline.router.strategies.base import RoutingRequest
from tierline.router.tls import EndpointTls
from tierline.router.tokenizer import Chat, LocalTokenizer

log = logs.get(__name__)

TOKENIZED = frozenset({"chat", "completions", "invocations"})
"""Routes whose prompts ``/tokenize`` knows; those of ``/v1/responses`` an engine writes otherwise."""
BUDGET_SECONDS = 0.02
ANSWER_SECONDS = 2.0
"""How long an endpoint may take to tokenize, for the sake of later requests."""
SEARCHES_AT_ONCE = 64
"""Prompts that are asked for at the same time; beyond it the router gives up at once."""
CACHE_BYTES = 64 * 1024**2
_ENTRY_BYTES = 300  # of the containers around one entry of the cache


class Question(NamedTuple):
    """A prompt whose tokens are not known yet."""

    digest: bytes
    model: str | None
    salt: str
    text: str | None
    """Of a completion."""
    chat: Chat | None
    """What a template can write by itself; ``None`` where the engine must."""
    asked: dict[str, dict[str, msgspec.Raw]]
    """Bodies for the engine by path; the next path is for an engine that has not the one before."""


class TokenLadder:
    """Finds the tokens of prompts.

    Parameters
    ----------
    endpoints
        Who may be asked.
    tokenizers
        Of this router's own, by the name of a model.
    tls
        For endpoints that speak it.
    keys
        For endpoints that ask for one.
    budget_s
        How long a request waits.
    cache_bytes
        Memory for the tokens of prompts seen lately.

    Attributes
    ----------
    rungs
        Counter: requests by the rung that gave their tokens.
    given_up
        Counter: requests without tokens, by the reason.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        tokenizers: Mapping[str, LocalTokenizer],
        *,
        tls: EndpointTls,
        keys: EndpointKeys,
        budget_s: float = BUDGET_SECONDS,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.rungs: Counter[str] = Counter()
        self.given_up: Counter[str] = Counter()
        self._endpoints = endpoints
        self._tokenizers = tokenizers
        self._tls = tls
        self._keys = keys
        self._budget_s = budget_s
        self._cache = _TokenCache(cache_bytes)
        self._searches: dict[bytes, asyncio.Task[str]] = {}
        self._threads = ThreadPoolExecutor(1, "tokenizer") if tokenizers else None
        self._session: aiohttp.ClientSession | None = None

    @property
    def tokenized(self) -> Counter[str]:
        """Tokens that this router's own tokenizers gave: ``known`` from chats that began alike, and ``new``."""
        counts = Counter({"known": 0, "new": 0})
        for tokenizer in self._tokenizers.values():
            counts.update(tokenizer.tokenized)
        return counts

    async def close(self) -> None:
        """End all searches."""
        searches = list(self._searches.values())
        for search in searches:
            search.cancel()
        await asyncio.gather(*searches, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def at_once(self, routing: RoutingRequest, body: bytes) -> Question | None:
        """Give the request its tokens if they are at hand; return the question that :meth:`climb` takes otherwise.

        ``None`` also for what has no tokens: there is nothing to wait for.
        """
        try:
            found = _read(body, routing.salt)
        except (*UNREADABLE, OverflowError):
            found = "unreadable"
        if isinstance(found, str):
            self.given_up[found] += 1
            return None
        if isinstance(found, PromptTokens):
            self._give(routing, found, "ids")
            return None
        known = self._cache.get(found.digest)
        if known is None:
            return found
        self._give(routing, PromptTokens(known, found.salt), "cache")
        return None

    async def climb(self, routing: RoutingRequest, question: Question) -> None:
        """Give the request its tokens if they can be had in time."""
        search = self._searches.get(question.digest)
        if search is None:
            if len(self._searches) >= SEARCHES_AT_ONCE:
                self.given_up["busy"] += 1
                return
            search = asyncio.create_task(self._search(question))
            self._searches[question.digest] = search
            search.add_done_callback(lambda search: self._ended(question, search))
        done, _ = await asyncio.wait({search}, timeout=self._budget_s)
        known = self._cache.get(question.digest)
        if known is not None:
            self._give(routing, PromptTokens(known, question.salt), search.result() if done else "cache")
        else:
            self.given_up["refused" if done else "late"] += 1

    def _ended(self, question: Question, search: asyncio.Task[str]) -> None:
        del self._searches[question.digest]
        if not search.cancelled() and (error := search.exception()) is not None:
            log.error("tokens cannot be found", model=question.model, exc_info=error)

    def _give(self, routing: RoutingRequest, tokens: PromptTokens, rung: str) -> None:
        self.rungs[rung] += 1
        routing.tokens = tokens

    async def _search(self, question: Question) -> str:
        """Find tokens for the cache; return the rung."""
        tokenizer = self._tokenizers.get(question.model or "")
        if tokenizer is not None and self._threads is not None:
            loop = asyncio.get_running_loop()
            raw = await loop.run_in_executor(self._threads, tokenizer.tokens, question.text, question.chat)
            if raw is not None:
                self._cache.put(question.digest, raw)
                return "local"
        for path, body in question.asked.items():
            raw = await self._ask_engine(question.model, path, body)
            if raw is not None:
                self._cache.put(question.digest, raw)
                break
        return "engine"

    async def _ask_engine(self, model: str | None, path: str, body: dict[str, msgspec.Raw]) -> bytes | None:
        endpoints = [endpoint for endpoint in self._endpoints.serving(model) if endpoint.is_up]
        if not endpoints:
            return None
        endpoint = min(endpoints, key=lambda endpoint: endpoint.inflight)
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS))
        try:
            async with self._session.post(
                endpoint.url + path,
                data=msgspec.json.encode(body),
                headers={"content-type": "application/json", **self._keys.fields(endpoint)},
                ssl=self._tls.context if endpoint.is_encrypted else True,
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    return None
                answer = _decode_answer(await response.read())
                return token_bytes(answer.tokens or answer.token_ids) or None
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError, OverflowError) as error:
            log.debug("an endpoint does not tokenize", endpoint=endpoint.url, why=str(error) or type(error).__name__)
            return None


class _TokenCache:
    """Tokens of prompts, least recently used last. Invariant: ``_bytes`` is what its entries count for."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()

    def get(self, digest: bytes) -> bytes | None:
        known = self._entries.get(digest)
        if known is not None:
            self._entries.move_to_end(digest)
        return known

    def put(self, digest: bytes, raw: bytes) -> None:
        if digest in self._entries or len(raw) + _ENTRY_BYTES > self._size_bytes:
            return
        self._entries[digest] = raw
        self._bytes += len(raw) + _ENTRY_BYTES
        while self._bytes > self._size_bytes:
            self._bytes -= len(self._entries.popitem(last=False)[1]) + _ENTRY_BYTES


# Reading requests -----------------------------------------------------------------------------------------------------


class _Asked(msgspec.Struct, gc=False):
    """What decides a prompt's tokens; all other fields are skipped unread."""

    model: str | None = None
    prompt: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    prompt_embeds: msgspec.Raw = msgspec.Raw()
    truncate_prompt_tokens: msgspec.Raw = msgspec.Raw()
    add_special_tokens: msgspec.Raw = msgspec.Raw()
    add_generation_prompt: msgspec.Raw = msgspec.Raw()
    continue_final_message: msgspec.Raw = msgspec.Raw()
    chat_template: msgspec.Raw = msgspec.Raw()
    chat_template_kwargs: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    tool_choice: msgspec.Raw = msgspec.Raw()
    documents: msgspec.Raw = msgspec.Raw()
    reasoning_effort: msgspec.Raw = msgspec.Raw()
    response_format: msgspec.Raw = msgspec.Raw()


class _Part(msgspec.Struct, gc=False):
    type: str = "text"


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str | list[_Part | str] | None = None


class _Answer(msgspec.Struct, gc=False):
    tokens: list[int] = []
    token_ids: list[int] = []
    """As ``/render`` calls them."""


_decode_asked = msgspec.json.Decoder(_Asked).decode
_decode_messages = msgspec.json.Decoder(list[_Message]).decode
_decode_prompt = msgspec.json.Decoder(str | list[str | int | list[int]]).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking"})
_NULL = (b"", b"null")
_SETTINGS = ("add_special_tokens", "add_generation_prompt", "continue_final_message", "chat_template",
             "chat_template_kwargs", "tools")  # fmt: skip
"""Of a chat, what ``/tokenize`` takes, too."""
_BEYOND_TOKENIZE = ("documents", "reasoning_effort", "tool_choice", "response_format")
"""Of a chat, what may change its prompt and ``/tokenize`` does not take."""
_BESIDE_TEMPLATES = frozenset({"tool_choice", "response_format"})
"""Of these, what vLLM gives to no Jinja template: an engine without ``/render`` is asked without it."""
TOKENIZE, RENDER = "/tokenize", "/v1/chat/completions/render"


def _read(body: bytes, salt: str) -> Question | PromptTokens | str:
    """Return the question that a body asks, its tokens where it has them, or why there are none."""
    asked = _decode_asked(body)
    if not _is_absent(asked.prompt_embeds):
        return "embeddings"
    if not _is_absent(asked.truncate_prompt_tokens):
        return "truncated"
    if not _is_absent(asked.messages):
        return _read_chat(asked, salt)
    if _is_absent(asked.prompt):
        return "no-prompt"
    prompt = _decode_prompt(asked.prompt)
    if isinstance(prompt, list):
        if len(prompt) == 1 and not isinstance(prompt[0], int):
            prompt = prompt[0]
        elif not prompt or not all(isinstance(item, int) for item in prompt):
            return "several-prompts"
    if isinstance(prompt, list):
        return PromptTokens(prompt, salt)
    settings = {"add_special_tokens": asked.add_special_tokens} if asked.add_special_tokens else {}
    return _question(asked, salt, {"prompt": asked.prompt, **settings}, None if settings else prompt, None)


def _read_chat(asked: _Asked, salt: str) -> Question | str:
    messages = _decode_messages(asked.messages)
    for message in messages:
        for part in message.content if isinstance(message.content, list) else ():
            if isinstance(part, _Part) and part.type not in _TEXT_PARTS:
                return "images"
    settings = {name: raw for name in _SETTINGS if not _is_absent(raw := getattr(asked, name))}
    beyond = {name: raw for name in _BEYOND_TOKENIZE if not _is_absent(raw := getattr(asked, name))}
    if "tools" not in settings or bytes(asked.tool_choice) == b'"auto"':
        beyond.pop("tool_choice", None)
    is_plain = not settings and beyond.keys() <= _BESIDE_TEMPLATES
    question = _question(
        asked,
        salt,
        {"messages": asked.messages, **settings, **beyond},
        None,
        _plain_chat(asked.messages) if is_plain else None,
    )
    if not beyond:
        return question
    (body,) = question.asked.values()
    bodies = {RENDER: body}
    # Whether tools are in a prompt that may not call them is a setting of the engine.
    if "reasoning_effort" not in beyond and bytes(asked.tool_choice) != b'"none"':
        bodies[TOKENIZE] = {name: raw for name, raw in body.items() if name not in beyond}
        if "documents" in beyond:
            bodies[TOKENIZE]["chat_template_kwargs"] = _with_documents(asked)
    return question._replace(asked=bodies)


def _with_documents(asked: _Asked) -> msgspec.Raw:
    """Return a template's settings with the documents, of which vLLM makes one of them."""
    settings: dict[str, msgspec.Raw] = {}
    if not _is_absent(asked.chat_template_kwargs):
        settings = msgspec.json.decode(asked.chat_template_kwargs, type=dict[str, msgspec.Raw])
    return msgspec.Raw(msgspec.json.encode({**settings, "documents": asked.documents}))


def _plain_chat(raw: msgspec.Raw) -> Chat | None:
    """Return messages that are a role and a text, and nothing else: every engine hands these to its template alike."""
    try:
        return msgspec.json.decode(raw, type=Chat)
    except msgspec.ValidationError:
        return None


def _question(asked: _Asked, salt: str, body: dict[str, msgspec.Raw], text: str | None, chat: Chat | None) -> Question:
    if asked.model is not None:
        body["model"] = msgspec.Raw(msgspec.json.encode(asked.model))
    digest = xxhash.xxh3_128()
    for name, raw in body.items():
        digest.update(f"{name}\0{memoryview(raw).nbytes}\0".encode())
        digest.update(raw)
    return Question(digest.digest(), asked.model, salt, text, chat, {TOKENIZE: body})


def _is_absent(raw: msgspec.Raw) -> bool:
    view = memoryview(raw)
    return len(view) <= 4 and bytes(view) in _NULL
