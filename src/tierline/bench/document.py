"""``tierline bench document``: time to first token of a long document, cold and warm in each place its KV can be.

A document of 2,048 tokens is asked about on two replicas of a running stack: cold, on the replica that computed it,
on the other one, with the engine's own prefix cache emptied, and after a restart of the replicas. Then questions on
several documents go through routers, with the cache on and off. Every row splits its prompt tokens by who answered,
from the engines' counters, and the answers are compared: tokens and log probabilities. One request runs at a time.
"""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp

from tierline.bench.chat import Answer, Chat
from tierline.bench.documents import Document, write_document
from tierline.bench.programs import Program, answers, command_line, free_ports, tierline
from tierline.bench.registry import BenchOptions, Findings, Say
from tierline.bench.rows import TokenSplit
from tierline.bench.states import COLD, EMPTIED, OTHER_REPLICA, RESTARTED, SAME_REPLICA, States
from tierline.errors import EngineError, TierlineError, UsageError
from tierline.stack.running import RunningStack, find_stack, restart_replica

BUDGET_SECONDS = 15 * 60
DEFAULT_PORT = 8000

STRATEGIES = ("prefixaware", "roundrobin")

_FEWEST_SAMPLES = 3
_RESTARTS_SECONDS = 150.0
"""Two restarts of vLLM and the start of the stack without a cache, roughly, on two cores."""
_STORED_WITHIN_SECONDS = 5.0
_STORE_PAUSE_SECONDS = 0.2
_START_SECONDS = 900.0
_FLOAT32 = ("float32", "float")
_STORE_SHARE = 0.8
"""Of the node store that documents may fill: what was asked about early must still be there after the restart."""


@dataclass(frozen=True)
class _Effort:
    """How much is measured."""

    prefix_tokens: int
    answer_tokens: int
    routed_documents: int
    routed_questions: int
    uncached_documents: int


_FULL = _Effort(prefix_tokens=2048, answer_tokens=16, routed_documents=5, routed_questions=4, uncached_documents=3)
_QUICK = _Effort(prefix_tokens=512, answer_tokens=4, routed_documents=3, routed_questions=2, uncached_documents=1)


class _Stored(NamedTuple):
    """What the node store says it has taken and has."""

    commits: int
    used_bytes: int


def measure(options: BenchOptions, say: Say) -> Findings:
    """Measure against a running stack, or one that is started here, and return the rows.

    Raises
    ------
    UsageError
        When ``options.url`` is not the router of a stack that runs on this machine, or the stack cannot be measured.
    TierlineError
        When a stack cannot be started or a request fails.
    """
    return asyncio.run(_measure(options, say))


def computes_float32(command: Sequence[str]) -> bool:
    """Say whether a vLLM command line asks for float32. The last ``--dtype`` wins; ``auto`` never means float32."""
    chosen = ""
    for option, following in zip(command, [*command[1:], ""], strict=True):
        name, _, value = option.partition("=")
        if name == "--dtype":
            chosen = value or following
    return chosen in _FLOAT32


async def _measure(options: BenchOptions, say: Say) -> Findings:
    effort = _QUICK if options.quick else _FULL
    samples = 2 if options.quick else options.samples
    deadline = time.monotonic() + BUDGET_SECONDS
    async with aiohttp.ClientSession() as http:
        async with _stack_with_cache(options, say) as stack:
            in_float32 = all(computes_float32(command_line(replica.pid)) for replica in stack.replicas)
            states = States("simulated: " if stack.engine == "simulated" else "", in_float32=in_float32)
            run = _Run(Chat(http, str(stack.model), effort.answer_tokens), http, stack, states, effort, say)
            await run.warm_up()
            documents = await run.ask_replicas(samples, deadline)
            await run.ask_after_restart(documents)
            for strategy in STRATEGIES:
                async with _router(stack, strategy, say) as url:
                    await run.ask_router(url, f"{strategy}, cache on")
        await _measure_without_cache(http, stack, states, effort, say)
    rows = states.rows()
    notes = [*_notes(stack, effort, in_float32=in_float32), *states.reasons()]
    return Findings(rows, notes, [states.table(rows)], states.chart())


class _Run:
    """Asks the replicas of one stack, one request at a time, and books every answer under the state it met."""

    def __init__(
        self,
        chat: Chat,
        http: aiohttp.ClientSession,
        stack: RunningStack,
        states: States,
        effort: _Effort,
        say: Say,
    ) -> None:
        self._chat = chat
        self._http = http
        self._stack = stack
        self._states = states
        self._effort = effort
        self._say = say
        self._replicas = [replica.url for replica in stack.replicas]
        self._engines_store = stack.engine == "vllm"
        self._document_bytes = 0
        self._latest = ""

    async def warm_up(self) -> None:
        """Let engines compile and allocate what their first requests need; vLLM takes half a minute for it."""
        for index, url in enumerate(self._replicas, start=1):
            self._say(f"warming up replica {index}")
            for tokens in (64, self._effort.prefix_tokens // 2):
                document = await write_document(self._chat, url, tokens, 1)
                await self._chat.ask(url, document.prompt(0))

    async def ask_replicas(self, samples: int, deadline: float) -> list[Document]:
        """Ask about one new document after another in every state that needs no restart; return the documents.

        As many as ``samples``, fewer where that would leave no time until ``deadline`` for what comes after.
        """
        documents: list[Document] = []
        started = time.monotonic()
        wanted = samples
        while len(documents) < wanted:
            document = await self._new_document(questions=1)
            # Roles take turns, so that a slower replica slows all states alike.
            first = len(documents) % len(self._replicas)
            other = (first + 1) % len(self._replicas)
            before = await self._stored()
            await self._ask(COLD, first, document)
            await self._wait_until_stored(before)
            await self._ask(SAME_REPLICA, first, document)
            await self._ask(OTHER_REPLICA, other, document)
            if self._stack.has_dev_mode:
                await self._chat.forget_prefixes(self._replicas[first])
                await self._ask(EMPTIED, first, document)
            else:
                self._states.cannot(EMPTIED, "the engines run without --engine-dev-mode")
            documents.append(document)
            wanted = min(samples, self._affordable(started, len(documents), deadline))
            self._say(f"document {len(documents)} of {wanted}: {self._latest}")
        return documents

    async def ask_without_cache(self) -> None:
        """Ask about new documents on a stack whose replicas share nothing."""
        for number in range(self._effort.uncached_documents):
            document = await self._new_document(questions=1)
            first, other = number % len(self._replicas), (number + 1) % len(self._replicas)
            for state, replica in ((COLD, first), (SAME_REPLICA, first), (OTHER_REPLICA, other)):
                await self._ask(f"cache off: {state}", replica, document)
            self._say(f"cache off, document {number + 1} of {self._effort.uncached_documents}")

    async def ask_after_restart(self, documents: Sequence[Document]) -> None:
        """Restart all replicas and ask again about the latest documents, as many as the node store can still have."""
        replicas = range(len(self._replicas))
        self._say("restarting the replicas")
        try:
            await asyncio.gather(*(asyncio.to_thread(restart_replica, self._stack, index) for index in replicas))
        except EngineError as error:
            self._states.cannot(RESTARTED, str(error))
            return
        await self.warm_up()
        for number, document in enumerate(self._still_stored(documents)):
            await self._ask(RESTARTED, number % len(self._replicas), document)
        self._say(f"after the restart: {self._latest}")

    async def ask_router(self, url: str, name: str) -> None:
        """Ask several questions on several new documents through a router, question by question."""
        effort = self._effort
        documents = [await self._new_document(effort.routed_questions) for _ in range(effort.routed_documents)]
        asked_before: dict[str, str] = {}
        for question in range(effort.routed_questions):
            for document in documents:
                answer, split = await self._counted(url, document.prompt(question))
                self._book(f"{name}: all questions", document.prompt(question), answer, split)
                if question:
                    self._book(f"{name}: later questions", document.prompt(question), answer, split)
                    self._states.routed(name, to_the_same=answer.endpoint == asked_before[document.text])
                asked_before[document.text] = answer.endpoint
            self._say(f"{name}, question {question + 1} of {effort.routed_questions}: {self._latest}")

    async def _new_document(self, questions: int) -> Document:
        return await write_document(self._chat, self._replicas[0], self._effort.prefix_tokens, questions)

    async def _ask(self, state: str, replica: int, document: Document) -> None:
        answer, split = await self._counted(self._replicas[replica], document.prompt(0))
        self._book(state, document.prompt(0), answer, split)

    async def _counted(self, url: str, prompt: str) -> tuple[Answer, TokenSplit]:
        before = await self._chat.split(self._replicas)
        answer = await self._chat.ask(url, prompt)
        return answer, await self._chat.split_after(self._replicas, before, answer.prompt_tokens)

    def _book(self, name: str, prompt: str, answer: Answer, split: TokenSplit) -> None:
        self._states[name].add(prompt, answer, split)
        self._latest = f"{name} {answer.ttft_s:.2f} s"

    def _affordable(self, started: float, done: int, deadline: float) -> int:
        """Return how many documents fit, going by those that are done, when the rest is done in time as well."""
        now = time.monotonic()
        per_document = (now - started) / done + self._states[SAME_REPLICA].ttft(50)
        effort = self._effort
        cold_later = effort.routed_documents * (len(STRATEGIES) + len(self._replicas)) + 2 * effort.uncached_documents
        later = cold_later * self._states[COLD].ttft(50) + _RESTARTS_SECONDS * (self._stack.engine == "vllm")
        return max(_FEWEST_SAMPLES, done + int((deadline - now - later) / per_document))

    async def _wait_until_stored(self, before: _Stored) -> None:
        """Wait until the node store has what the engine offers; storing is off the request's path."""
        deadline = time.monotonic() + _STORED_WITHIN_SECONDS
        last, now = before, await self._stored()
        while self._engines_store and (now == before or now != last) and time.monotonic() < deadline:
            await asyncio.sleep(_STORE_PAUSE_SECONDS)
            last, now = now, await self._stored()
        self._document_bytes = max(self._document_bytes, now.used_bytes - before.used_bytes)

    async def _stored(self) -> _Stored:
        assert self._stack.node is not None
        async with self._http.get(f"{self._stack.node.url}/v1/stats") as response:
            store = (await response.json())["store"]
            return _Stored(store["commits"], store["used_bytes"])

    def _still_stored(self, documents: Sequence[Document]) -> Sequence[Document]:
        if self._document_bytes == 0:
            return documents
        return documents[-max(1, int(_STORE_SHARE * self._stack.cache_bytes / self._document_bytes)) :]


async def _measure_without_cache(
    http: aiohttp.ClientSession, stack: RunningStack, states: States, effort: _Effort, say: Say
) -> None:
    """Measure a second stack, with the same model and no node store."""
    name = "roundrobin, cache off"
    arguments = ["--engine", stack.engine, "--strategy", "roundrobin", "--no-cache"]
    if stack.model_folder is not None:
        arguments += ["--model", str(stack.model_folder)]
    try:
        async with _own_stack(arguments, say) as uncached:
            chat = Chat(http, str(uncached.model), effort.answer_tokens)
            run = _Run(chat, http, uncached, states, effort, say)
            await run.warm_up()
            await run.ask_without_cache()
            await run.ask_router(uncached.router.url, name)
    except TierlineError as error:  # what was measured before must not be lost
        states.cannot("cache off", str(error))


@contextlib.asynccontextmanager
async def _stack_with_cache(options: BenchOptions, say: Say) -> AsyncIterator[RunningStack]:
    """Yield the stack that runs here, or one of our own until the block ends."""
    port = DEFAULT_PORT if options.url is None else urlsplit(options.url).port or DEFAULT_PORT
    stack = find_stack(port)
    if stack is None and options.url is not None:
        raise UsageError(f"--url: no stack of `tierline up` has its router at {options.url} on this machine")
    if stack is not None and (options.url is not None or stack.engine == options.engine):
        _refuse_what_cannot_be_measured(stack)
        say(f"measuring the stack at {stack.router.url} (model {stack.model}, strategy {stack.strategy})")
        yield stack
        return
    async with _own_stack(["--engine", options.engine, "--strategy", "prefixaware"], say) as own:
        yield own


@contextlib.asynccontextmanager
async def _own_stack(arguments: Sequence[str], say: Say) -> AsyncIterator[RunningStack]:
    port, node_port = free_ports(2)
    argv = tierline("up", "--port", str(port), "--node-port", str(node_port), "--engine-dev-mode", *arguments)
    say(f"starting a stack: {' '.join(argv[argv.index('up') :])}")
    with tempfile.TemporaryDirectory(prefix="tierline-bench-") as folder:
        log = Path(folder) / "up.log"
        program = await asyncio.to_thread(
            Program, argv, log, lambda: find_stack(port) is not None, ready_within_s=_START_SECONDS
        )
        with program:
            stack = find_stack(port)
            assert stack is not None
            yield stack


@contextlib.asynccontextmanager
async def _router(stack: RunningStack, strategy: str, say: Say) -> AsyncIterator[str]:
    """Yield the URL of a router with this strategy: the stack's own, or one beside it."""
    if stack.strategy == strategy:
        yield stack.router.url
        return
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    endpoints = [part for replica in stack.replicas for part in ("--endpoint", replica.url)]
    argv = tierline("router", "--port", str(port), "--strategy", strategy, *endpoints)
    say(f"starting a router beside the stack's: --strategy {strategy}")
    with tempfile.TemporaryDirectory(prefix="tierline-bench-") as folder:
        program = await asyncio.to_thread(Program, argv, Path(folder) / "router.log", lambda: answers(f"{url}/health"))
        with program:
            yield url


def _refuse_what_cannot_be_measured(stack: RunningStack) -> None:
    if len(stack.replicas) < 2:
        raise UsageError(f"the stack at {stack.router.url} has fewer than two replicas of its own to compare")
    if stack.node is None:
        raise UsageError(f"the stack at {stack.router.url} runs with --no-cache: there is nothing to compare")
    if len(stack.nodes) > 1:
        raise UsageError(
            f"the stack at {stack.router.url} has {len(stack.nodes)} nodes; its rows are of one node store"
        )


def _notes(stack: RunningStack, effort: _Effort, *, in_float32: bool) -> list[str]:
    engine = "simulated engines: their figures say nothing about a real one" if stack.engine == "simulated" else "vLLM"
    with_cold = (
        ", and agree with cold ones to within rounding: the replicas compute in float32"
        if in_float32
        else "; only in float32, which the replicas do not compute in, need they agree with cold ones"
    )
    return [
        f"{len(stack.replicas)} replicas of {stack.model} ({engine}), one request at a time, streamed chat "
        f"completions of {effort.answer_tokens} tokens at temperature 0.",
        f"All questions on a document share {effort.prefix_tokens} prompt tokens or a few more; each document begins "
        "with a new salt, so its first request is cold everywhere.",
        "TTFT is what the client sees until the first event with text; tokens/s are output tokens over whole requests.",
        "Tokens by source come from the engines' counters (vllm:prompt_tokens_by_source), not from the client.",
        f"Answers from the node store must be those of the engine's own prefix hit, bit for bit{with_cold}.",
        f"Rows named after a strategy went through a router: {effort.routed_questions} questions on each of "
        f"{effort.routed_documents} new documents, question by question; the first question on a document is cold.",
    ]
