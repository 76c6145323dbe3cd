"""The simulated engine's HTTP face: the OpenAI API and vLLM's own routes over one modelled engine.

Each response carries ``x-tierline-simulated: true``. A client that goes away aborts its request.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import msgspec
from aiohttp import web

from tierline import logs
from tierline.connectors.vllm.launch import REPORT
from tierline.stack.simulated_engine import tokens
from tierline.stack.simulated_engine.cache import BLOCK_TOKENS, PrefixCache, block_hashes
from tierline.stack.simulated_engine.config import SimulatedEngineConfig
from tierline.stack.simulated_engine.kv_events import EventBatch, Publisher, ZmqPublisher
from tierline.stack.simulated_engine.metrics import EngineMetrics
from tierline.stack.simulated_engine.scheduler import Request, Scheduler
from tierline.stack.simulated_engine.sharing import SharedPrefixes
from tierline.tracing.context import Origin, working_for

NATURAL_ANSWER_TOKENS = 64
"""Where an answer ends by itself, unless the request sets ``ignore_eos``."""

_MAX_BODY_BYTES = 64 * 1024 * 1024
_COMPLETION_DEFAULT_TOKENS = 16


class StreamOptions(msgspec.Struct):
    """``stream_options`` of OpenAI."""

    include_usage: bool = False


class Transfer(msgspec.Struct):
    """``kv_transfer_params`` of vLLM's NIXL connector and of ours, as far as this engine acts on them."""

    do_remote_prefill: bool = False
    do_remote_decode: bool = False
    tierline_report: bool = False


class GenerationRequest(msgspec.Struct, kw_only=True):
    """Fields that chat and completion requests share; others are accepted and change nothing."""

    model: str
    n: int = 1
    max_tokens: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    cache_salt: str | None = None
    kv_transfer_params: Transfer | None = None


class TextPart(msgspec.Struct):
    """A part of a message's content."""

    type: str
    text: str = ""


class Message(msgspec.Struct):
    """A message of a chat."""

    role: str
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """All text of the message."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(GenerationRequest, kw_only=True):
    """Body of ``/v1/chat/completions``."""

    messages: list[Message]
    max_completion_tokens: int | None = None


class CompletionRequest(GenerationRequest, kw_only=True):
    """Body of ``/v1/completions``."""

    prompt: str | list[int]


class TokenizeRequest(msgspec.Struct):
    """Body of ``/tokenize``."""

    prompt: str | None = None
    messages: list[Message] | None = None


class DetokenizeRequest(msgspec.Struct):
    """Body of ``/detokenize``."""

    tokens: list[int]


@dataclass
class Shape:
    """How one response looks on the wire, as a chat or as a completion."""

    request_id: str
    model: str
    is_chat: bool
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, reason: str, usage: dict[str, Any]) -> dict[str, Any]:
        """The response of a request that does not stream."""
        content = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": reason}
        return {**self._envelope(""), "choices": [choice], "usage": usage}

    def chunk(self, text: str, reason: str | None) -> dict[str, Any]:
        """One token of a stream."""
        content = {"delta": {"content": text}} if self.is_chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": reason}
        return {**self._envelope(".chunk"), "choices": [choice]}

    def opening(self) -> dict[str, Any]:
        """The first chunk of a streamed chat: a role and no text."""
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return {**self._envelope(".chunk"), "choices": [choice]}

    def closing(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The chunk that ``include_usage`` asks for."""
        return {**self._envelope(".chunk"), "choices": [], "usage": usage}

    def _envelope(self, chunk: str) -> dict[str, Any]:
        kind = f"chat.completion{chunk}" if self.is_chat else "text_completion"
        return {"id": self.request_id, "object": kind, "created": self.created, "model": self.model}


class SimulatedEngine:
    """Runs the scheduler's steps in real time and hands tokens to whoever waits for them.

    Attributes
    ----------
    shared
        Where it shares prefixes with other engines; ``None``: nowhere.
    """

    def __init__(self, config: SimulatedEngineConfig, publisher: Publisher | None = None) -> None:
        self.cache = PrefixCache(config.cache_blocks)
        self.scheduler = Scheduler(
            self.cache,
            prefill_rate=config.prefill_rate,
            decode_rate=config.decode_rate,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
        )
        self.metrics = EngineMetrics(config.model, self.scheduler)
        self.max_model_len = config.cache_blocks * BLOCK_TOKENS
        self.shared: SharedPrefixes | None = None
        self._publisher = publisher
        self._arrivals: dict[Request, float] = {}
        self._tokens: dict[Request, asyncio.Queue[int]] = {}
        self._keeping: set[asyncio.Task[None]] = set()
        self._work = asyncio.Event()

    async def run(self) -> None:
        """Compute steps until cancelled."""
        now = asyncio.get_running_loop().time
        end = now()
        while True:
            step = self.scheduler.plan()
            self._publish_events()
            if step is None:
                self._work.clear()
                await self._work.wait()
                end = now()
                continue
            for request in step.admitted:
                self.metrics.admitted(request, now() - self._arrivals[request])
            # Against the planned end, so that what the event loop adds to one step is not added to the next.
            end += step.duration_s
            await asyncio.sleep(end - now())
            for request in self.scheduler.complete(step):
                self._tokens[request].put_nowait(request.answer[request.generated - 1])
            self._publish_events()

    async def generate(self, request: Request) -> AsyncGenerator[int, None]:
        """Yield the answer's tokens as they are computed; closing the iterator aborts the request."""
        now = asyncio.get_running_loop().time
        arrived = last = now()
        queue: asyncio.Queue[int] = asyncio.Queue()
        self._arrivals[request], self._tokens[request] = arrived, queue
        reason = "abort"
        try:
            await self._fetch(request)
            self.scheduler.add(request)
            self._work.set()
            keeping = None
            for index in range(len(request.answer)):
                token = await queue.get()
                if index:
                    self.metrics.next_token(now() - last)
                else:
                    self.metrics.first_token(request, now() - arrived)
                    keeping = self._keep(request)
                last = now()
                yield token
            reason = request.finish_reason
            if keeping is not None:  # who has the whole answer finds the prompt at every engine
                await keeping
        finally:
            self.scheduler.abort(request)
            del self._arrivals[request], self._tokens[request]
            self.metrics.finished(reason, now() - arrived)

    async def _fetch(self, request: Request) -> None:
        if self.shared is None or request.fetched:
            return
        known = self.cache.match(block_hashes(request.prompt, request.salt, request.adapter)) * BLOCK_TOKENS
        prefix = await self.shared.find(request.prompt, known, request.salt, request.adapter)
        request.fetched, request.loaded = prefix.tokens, prefix.loaded

    def _keep(self, request: Request) -> asyncio.Task[None] | None:
        if self.shared is None:
            return None
        keeping = asyncio.create_task(self.shared.keep(request.prompt, request.fetched, request.salt, request.adapter))
        self._keeping.add(keeping)
        keeping.add_done_callback(self._keeping.discard)
        return keeping

    async def close(self) -> None:
        """Wait for what is being shared, and end the connections."""
        await asyncio.gather(*self._keeping, return_exceptions=True)
        if self.shared is not None:
            await self.shared.close()

    def _publish_events(self) -> None:
        if self._publisher is not None and self.cache.events:
            self._publisher.publish(EventBatch(time.time(), self.cache.events, data_parallel_rank=0))
        self.cache.events = []


def make_app(config: SimulatedEngineConfig) -> web.Application:
    """Return the server of one simulated engine.

    Raises
    ------
    UsageError
        When KV events are asked for and cannot be sent.
    """
    publisher = ZmqPublisher(config.kv_events_endpoint) if config.kv_events_endpoint else None
    handlers = _Handlers(config, SimulatedEngine(config, publisher))

    async def engine_runs(_: web.Application) -> AsyncIterator[None]:
        if config.store is not None:
            handlers.engine.shared = SharedPrefixes(
                config.stores, config.model, config.store_bucket, config.store_lookup_timeout_ms
            )
        running = asyncio.create_task(handlers.engine.run())
        yield
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await handlers.engine.close()
        if publisher is not None:
            publisher.close()

    async def mark(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["x-tierline-simulated"] = "true"

    app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[_openai_errors])
    app.add_routes(
        [
            web.post("/v1/chat/completions", handlers.chat),
            web.post("/v1/completions", handlers.complete),
            web.get("/v1/models", handlers.models),
            web.post("/tokenize", handlers.tokenize),
            web.post("/detokenize", handlers.detokenize),
            web.get("/health", handlers.health),
            web.get("/metrics", handlers.exposition),
            web.post("/reset_prefix_cache", handlers.reset_prefix_cache),
        ]
    )
    app.cleanup_ctx.append(engine_runs)
    app.on_response_prepare.append(mark)
    return app


def run(config: SimulatedEngineConfig) -> None:
    """Serve until SIGINT or SIGTERM."""
    logs.configure(config.log_level, json=config.log_format == "json")
    web.run_app(
        make_app(config),
        host=config.host,
        port=config.port,
        print=None,
        access_log=None,
        handler_cancellation=True,  # a client that goes away ends its handler, and so its request
        shutdown_timeout=1.0,
    )


Body = TypeVar("Body", bound=msgspec.Struct)


class _Refusal(Exception):  # noqa: N818
    """An error in vLLM's shape."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@web.middleware
async def _openai_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except _Refusal as refusal:
        error = {"message": str(refusal), "type": refusal.kind, "param": None, "code": refusal.status}
        return web.json_response({"error": error}, status=refusal.status)


class _Handlers:
    def __init__(self, config: SimulatedEngineConfig, engine: SimulatedEngine) -> None:
        self.engine = engine
        self._model = config.model
        self._adapters = config.adapters
        self._caches_prefixes = config.enable_prefix_caching

    async def chat(self, http: web.Request) -> web.StreamResponse:
        body = await _decode(http, ChatRequest)
        prompt = tokens.encode(tokens.render_chat((message.role, message.text) for message in body.messages))
        wanted = body.max_completion_tokens or body.max_tokens
        return await self._generate(http, body, prompt, wanted, is_chat=True)

    async def complete(self, http: web.Request) -> web.StreamResponse:
        body = await _decode(http, CompletionRequest)
        prompt = tokens.encode(body.prompt) if isinstance(body.prompt, str) else body.prompt
        wanted = _COMPLETION_DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        return await self._generate(http, body, prompt, wanted, is_chat=False)

    async def models(self, _: web.Request) -> web.Response:
        about = {"object": "model", "created": int(time.time()), "owned_by": "tierline-simulated"}
        model = {"id": self._model, **about, "parent": None, "max_model_len": self.engine.max_model_len}
        adapters = [{"id": name, **about, "parent": self._model} for name in self._adapters]
        return web.json_response({"object": "list", "data": [model, *adapters]})

    async def tokenize(self, http: web.Request) -> web.Response:
        body = await _decode(http, TokenizeRequest)
        text = body.prompt or ""
        if body.messages is not None:
            text = tokens.render_chat((message.role, message.text) for message in body.messages)
        ids = tokens.encode(text)
        return web.json_response({"tokens": ids, "count": len(ids), "max_model_len": self.engine.max_model_len})

    async def detokenize(self, http: web.Request) -> web.Response:
        body = await _decode(http, DetokenizeRequest)
        return web.json_response({"prompt": tokens.decode(body.tokens)})

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def exposition(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self.engine.metrics.exposition(), headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def reset_prefix_cache(self, _: web.Request) -> web.Response:
        return web.json_response({"success": self.engine.cache.clear()})

    async def _generate(
        self, http: web.Request, body: GenerationRequest, prompt: list[int], wanted: int | None, *, is_chat: bool
    ) -> web.StreamResponse:
        request = self._admissible(body, prompt, wanted)
        # What is asked of the node store is asked for this request; tasks begun meanwhile inherit that.
        with working_for(Origin.read(http.headers.get("x-request-id", ""), http.headers.get("traceparent", ""))):
            return await self._answer(http, body, request, is_chat=is_chat)

    async def _answer(
        self, http: web.Request, body: GenerationRequest, request: Request, *, is_chat: bool
    ) -> web.StreamResponse:
        shape = Shape(f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}", body.model, is_chat)
        stream = self.engine.generate(request)
        if not body.stream:
            text = tokens.decode([token async for token in stream])
            answer = shape.whole(text, request.finish_reason, _usage(request))
            if handed := self._handed_back(body.kv_transfer_params or Transfer(), request):
                answer["kv_transfer_params"] = handed
            return web.json_response(answer)
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(http)
        generated = 0
        try:
            async for token in stream:
                if is_chat and not generated:  # as vLLM does: who takes its time for the first token's is right
                    await response.write(_event(shape.opening()))
                generated += 1
                reason = request.finish_reason if generated == len(request.answer) else None
                await response.write(_event(shape.chunk(tokens.decode([token]), reason)))
        finally:
            await stream.aclose()
        if body.stream_options is not None and body.stream_options.include_usage:
            await response.write(_event(shape.closing(_usage(request))))
        await response.write(b"data: [DONE]\n\n")
        return response

    def _handed_back(self, asked: Transfer, request: Request) -> dict[str, Any]:
        """Return what an answer says of its prompt's KV: that another engine may have it, and who had it."""
        handed: dict[str, Any] = {}
        if asked.do_remote_decode:
            handed |= {"do_remote_prefill": True, "do_remote_decode": False}
        if asked.tierline_report and self.engine.shared is not None:
            loaded = request.loaded if request.external else {}
            handed[REPORT] = {"engine": request.cached - request.external, "loaded": loaded}
        return handed

    def _admissible(self, body: GenerationRequest, prompt: list[int], wanted: int | None) -> Request:
        if body.model not in (self._model, *self._adapters):
            raise _Refusal(404, "NotFoundError", f"The model `{body.model}` does not exist.")
        if body.n != 1:
            raise _Refusal(400, "BadRequestError", "The simulated engine generates one choice (n=1).")
        if not prompt:
            raise _Refusal(400, "BadRequestError", "The prompt is empty.")
        length = NATURAL_ANSWER_TOKENS if wanted is None else wanted
        ends_by_itself = wanted is None or (length > NATURAL_ANSWER_TOKENS and not body.ignore_eos)
        if ends_by_itself:
            length = NATURAL_ANSWER_TOKENS
        if length < 1 or len(prompt) + length > self.engine.max_model_len:
            raise _Refusal(
                400,
                "BadRequestError",
                f"This model's maximum context length is {self.engine.max_model_len} tokens; the request has "
                f"{len(prompt)} prompt tokens and asks for {length}.",
            )
        reason: Literal["stop", "length"] = "stop" if ends_by_itself else "length"
        adapter = "" if body.model == self._model else body.model
        # Another engine has computed it: all of the prompt but the last token is there at once.
        is_handed_over = body.kv_transfer_params is not None and body.kv_transfer_params.do_remote_prefill
        fetched = len(prompt) - 1 if is_handed_over else 0
        # What is under a salt of its own finds nothing, and is found by nobody.
        salt = (body.cache_salt or "") if self._caches_prefixes else uuid.uuid4().hex
        return Request(prompt, tokens.answer(prompt, length), reason, salt, adapter, fetched)


async def _decode(http: web.Request, kind: type[Body]) -> Body:
    try:
        return msgspec.json.decode(await http.read(), type=kind)
    except msgspec.DecodeError as error:
        raise _Refusal(400, "BadRequestError", str(error)) from None


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def _usage(request: Request) -> dict[str, Any]:
    return {
        "prompt_tokens": len(request.prompt),
        "completion_tokens": request.generated,
        "total_tokens": len(request.prompt) + request.generated,
        "prompt_tokens_details": {"cached_tokens": request.cached},
    }
