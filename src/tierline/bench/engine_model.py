"""A model of an inference engine in virtual time: steps of batched prefill and decode, and a prefix cache of blocks.

What is modelled is what routing and tiers can change. An engine works in steps. A step takes a fixed time, a time for
each prompt token that it computes and for each token that this one attends to, and a time for each sequence that it
decodes and for what that one attends to (chunked prefill, as in vLLM's V1 scheduler): so prompts wait for prompts, and
decoding is slowed by both. The KV of running requests is held in the cache; what is free there holds the prefixes of
earlier ones, and the one used longest ago goes, its end first. What the cache lacks may be *below*, in tiers, and is
loaded while others run. What is not modelled: preemption, and answers becoming part of a cached prefix.

Runs of like steps are taken at once, so the cost is a few operations a request and not one a step.
"""

import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, log, sqrt
from typing import Protocol

from tierline.bench.traces import BLOCK_TOKENS

GAP_GRAIN = 0.01
"""Times between tokens are counted in classes, each so much wider than the one before it."""


@dataclass(frozen=True)
class EngineModel:
    """How fast an engine is and what fits into it; by default about an 8B model on a large GPU."""

    prefill_tokens_per_s: float = 20_000.0
    step_s: float = 0.008
    """Of each step."""
    sequence_s: float = 0.0001
    """Of a step, for each sequence that is decoded in it."""
    step_tokens: int = 2_048
    sequences: int = 256
    attention_s: float = 0.0
    """Of a step, for each token before each prompt token that it computes."""
    decode_step_s: float = 0.0
    """Of a step in which anything is decoded."""
    context_s: float = 0.0
    """Of a step, for each token that a decoded sequence has by then."""
    prompts_a_step: int = 1
    """How many prompts may share one, where there is room for the next one behind the end of the first."""

    def prefill_s(self, tokens: int, before: int) -> float:
        """Return what computing tokens of a prompt adds to a step, where so many come before them."""
        return tokens / self.prefill_tokens_per_s + self.attention_s * tokens * (before + tokens / 2)

    def decode_s(self, sequences: int, context: int) -> float:
        """Return what decoding adds to a step, of so many sequences with so many tokens together."""
        return self.decode_step_s + self.sequence_s * sequences + self.context_s * context if sequences else 0.0


class CacheListener(Protocol):
    """Is told what becomes of a cache's blocks, as an engine's KV events tell it."""

    def stored(self, parent: int | None, blocks: Sequence[int]) -> None:
        """A run of blocks behind ``parent``, or at the start of a prompt, is here now."""

    def removed(self, block: int) -> None:
        """A block is gone."""


class BlockCache:
    """Blocks of prompts: held by running requests, or free to go, the one used longest ago first.

    Invariant: a block is in ``_held`` or in ``_free``, and all of them with the anonymous ones are at most ``blocks``,
    but for a request that runs alone and is larger than the cache.

    Attributes
    ----------
    listener
        Who is told what becomes of blocks.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._held: dict[int, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict()
        self._anonymous = 0
        self.listener: CacheListener | None = None

    def match(self, blocks: Sequence[int]) -> int:
        """Return how many leading blocks are here."""
        held, free = self._held, self._free
        for depth, block in enumerate(blocks):
            if block not in held and block not in free:
                return depth
        return len(blocks)

    def has_room(self, blocks: Sequence[int], anonymous: int) -> bool:
        """Whether a request fits beside those that run, or none runs."""
        if not self._held:
            return True
        new = sum(block not in self._held for block in blocks)
        return len(self._held) + self._anonymous + new + anonymous <= self.blocks

    def hold(self, blocks: Sequence[int], anonymous: int) -> None:
        """Hold a request's blocks, and so many without a name for its answer."""
        if self.listener is not None:
            self._tell_stored(self.listener, blocks)
        for block in blocks:
            self._free.pop(block, None)
            self._held[block] = self._held.get(block, 0) + 1
        self._anonymous += anonymous
        self._evict()

    def release(self, blocks: Sequence[int], anonymous: int) -> None:
        """Let go of a request's blocks; its last one will be the first to go."""
        self._anonymous -= anonymous
        for block in reversed(blocks):
            left = self._held[block] - 1
            if left:
                self._held[block] = left
            else:
                del self._held[block]
                self._free[block] = None
        self._evict()

    def _evict(self) -> None:
        while self._free and len(self._held) + self._anonymous + len(self._free) > self.blocks:
            block, _ = self._free.popitem(last=False)
            if self.listener is not None:
                self.listener.removed(block)

    def _tell_stored(self, listener: CacheListener, blocks: Sequence[int]) -> None:
        start: int | None = None
        for place, block in enumerate(blocks):
            if block in self._held or block in self._free:
                if start is not None:
                    listener.stored(blocks[start - 1] if start else None, blocks[start:place])
                start = None
            elif start is None:
                start = place
        if start is not None:
            listener.stored(blocks[start - 1] if start else None, blocks[start:])


@dataclass(eq=False, slots=True)
class Job:
    """A request in an engine, and what became of it."""

    at_s: float
    blocks: Sequence[int]
    prompt_tokens: int
    output_tokens: int
    cached_blocks: int = 0
    """Of the engine's own cache."""
    loaded_blocks: Sequence[int] = ()
    """Behind these, of each tier below, the nearest first."""
    cached_tokens: int = 0
    """Of all caches."""
    prefill_left: int = 0
    block_tokens: int = BLOCK_TOKENS
    session: bytes = b""
    """Whose it is, as routers are told."""
    admitted_at_s: float = inf
    first_token_at_s: float = inf
    ended_at_s: float = inf

    @property
    def answer_blocks(self) -> int:
        """Blocks that its answer takes."""
        return -(-self.output_tokens // self.block_tokens)

    @property
    def uncached_tokens(self) -> int:
        """Prompt tokens that were computed."""
        return self.prompt_tokens - self.cached_tokens


class Below(Protocol):
    """Where an engine looks for blocks that its own cache lacks."""

    def load(self, job: Job, start: int, now_s: float) -> tuple[Sequence[int], float]:
        """Begin to load what is worth it of a prompt from block ``start`` on.

        Returns
        -------
        blocks, ready_at_s
            How many come of each tier, the nearest first; and when the last of them is there.
        """

    def computed(self, job: Job, now_s: float) -> None:
        """All blocks of a prompt are in the engine's cache."""


@dataclass(slots=True)
class _Run:
    """Like steps in a row.

    Parameters
    ----------
    first_s, growth_s
        What the first step takes, and how much longer each takes than the one before it.
    parts
        Of each prompt in a step, how many tokens of it are computed.
    """

    steps: int
    first_s: float
    growth_s: float
    parts: Sequence[tuple[Job, int]]

    def seconds(self) -> float:
        return self.steps * self.first_s + self.growth_s * self.steps * (self.steps - 1) / 2

    def cut(self, after_s: float) -> None:
        """End with the step in which so much time has passed, if not before."""
        half = self.growth_s / 2
        if half:
            slope = self.first_s - half
            steps = (sqrt(slope * slope + 4 * half * after_s) - slope) / (2 * half)
        elif self.first_s:
            steps = after_s / self.first_s
        else:
            return
        self.steps = min(self.steps, max(1, int(steps) + 1))


class Engine:
    """One engine.

    Invariant: its state is that at ``_now``, the end of its last step; ``next_at_s`` is the end of the run of steps
    that it is in, ``inf`` where it has nothing to do. No event beyond ``_now`` was told.

    Attributes
    ----------
    gaps
        Times between a sequence's tokens: how many, by class; a class is a logarithm to the base ``1 + GAP_GRAIN``.
    """

    def __init__(self, model: EngineModel, blocks: int, below: Below | None = None) -> None:
        self.cache = BlockCache(blocks)
        self.next_at_s = inf
        self.gaps: Counter[int] = Counter()
        self._model = model
        self.below = below
        self._now = 0.0
        self._steps = 0
        self._run: _Run | None = None
        self._waiting: deque[Job] = deque()
        self._loading: list[tuple[float, int, Job]] = []
        """Heap of when a job's blocks are there."""
        self._ready_at: dict[int, float] = {}
        """Of blocks that are being loaded."""
        self._prefilling: deque[Job] = deque()
        self._decoding: list[tuple[int, int, Job]] = []
        """Heap of the step after which a job ends, and a number that breaks ties."""
        self._context = 0
        """Tokens of all that is decoded."""
        self._number = 0

    def submit(self, job: Job) -> None:
        """Take a request; jobs come in the order of their time, and none before the last event that was told."""
        self._waiting.append(job)
        if self._run is None:
            self._plan()
        elif not self._run.parts and len(self._waiting) == 1:
            self._cut_run(job.at_s)

    def advance(self, until_s: float) -> Iterator[Job]:
        """Work until then; yield jobs as their first token comes, and again as they end, in the order of time."""
        while self.next_at_s <= until_s and self.next_at_s < inf:
            yield from self.wake()

    def wake(self) -> Iterator[Job]:
        """Be at ``next_at_s``; yield jobs as their first token comes, and again as they end; take all of them."""
        self._now = self.next_at_s
        run = self._run
        if run is not None:
            self._steps += run.steps
            if self._decoding:
                decoding = len(self._decoding)
                self._context += run.steps * decoding
                # Of a run its middle stands for all: it is short, or its steps hardly differ.
                gap_s = run.first_s + run.growth_s * (run.steps - 1) / 2
                if gap_s > 0:
                    self.gaps[round(log(gap_s) / log(1 + GAP_GRAIN))] += run.steps * decoding
            for job, tokens in run.parts:
                job.prefill_left -= run.steps * tokens
            yield from self._finished()
        self._plan()

    def _plan(self) -> None:
        """Begin the next run of steps; without work, wait for what comes next."""
        model, decoding = self._model, len(self._decoding)
        while self._loading and self._loading[0][0] <= self._now:
            self._prefilling.append(self._loaded())
        self._admit()
        if not self._prefilling and not decoding:
            self._run = None
            self.next_at_s = self._comes_next_s()
            return
        room = max(1, model.step_tokens - decoding)
        parts: list[tuple[Job, int]] = []
        steps = self._decoding[0][0] - self._steps if decoding else 0
        first_s, growth_s = model.step_s + model.decode_s(decoding, self._context), model.context_s * decoding
        if self._prefilling:
            head = self._prefilling[0]
            if head.prefill_left >= room:
                whole = head.prefill_left // room
                steps = min(steps, whole) if decoding else whole
                growth_s += model.attention_s * room * room
            else:
                steps = 1
            for job in self._prefilling:
                tokens = min(room, job.prefill_left)
                parts.append((job, tokens))
                first_s += model.prefill_s(tokens, job.prompt_tokens - job.prefill_left)
                room -= tokens
                if not room or len(parts) == model.prompts_a_step:
                    break
        self._run = _Run(steps, first_s, growth_s, parts)
        self.next_at_s = self._now + self._run.seconds()
        if not parts and (comes_s := self._comes_next_s()) < self.next_at_s:
            self._cut_run(comes_s)

    def _comes_next_s(self) -> float:
        """Return when a job comes, or has been loaded, that is not here yet."""
        comes_s = self._loading[0][0] if self._loading else inf
        if self._waiting and self._waiting[0].at_s > self._now:
            comes_s = min(comes_s, self._waiting[0].at_s)
        return comes_s

    def _cut_run(self, at_s: float) -> None:
        """What comes in the midst of a run of steps is looked at after the step in which it came."""
        assert self._run is not None
        self._run.cut(at_s - self._now)
        self.next_at_s = self._now + self._run.seconds()

    def _admit(self) -> None:
        """Begin with those who wait, in their order, as long as a step has room for more of their prompts."""
        model = self._model
        room = model.step_tokens - len(self._decoding) - sum(job.prefill_left for job in self._prefilling)
        while (
            self._waiting
            and (room > 0 or not self._prefilling)
            and len(self._prefilling) < model.prompts_a_step
            and len(self._decoding) + len(self._prefilling) + len(self._loading) < model.sequences
        ):
            job = self._waiting[0]
            if job.at_s > self._now or not self.cache.has_room(job.blocks, job.answer_blocks):
                return
            self._waiting.popleft()
            ready_at_s = self._look_up(job)
            job.admitted_at_s = self._now
            self.cache.hold(job.blocks, job.answer_blocks)
            if ready_at_s > self._now:
                self._number += 1
                heapq.heappush(self._loading, (ready_at_s, self._number, job))
            else:
                self._prefilling.append(job)
                room -= job.prefill_left

    def _look_up(self, job: Job) -> float:
        """Find what caches have of a job's prompt; return when it will be in the engine's."""
        job.cached_blocks = self.cache.match(job.blocks)
        ready_at_s = self._now
        if self._ready_at:  # another job's may be on their way
            ready_at_s = max((self._ready_at.get(block, 0.0) for block in job.blocks[: job.cached_blocks]), default=0.0)
        if self.below is not None and job.cached_blocks < len(job.blocks):
            job.loaded_blocks, loaded_at_s = self.below.load(job, job.cached_blocks, self._now)
            if loaded := sum(job.loaded_blocks):
                coming = job.blocks[job.cached_blocks : job.cached_blocks + loaded]
                self._ready_at.update(dict.fromkeys(coming, loaded_at_s))
                ready_at_s = max(ready_at_s, loaded_at_s)
        # A model must compute one token at least to say what comes next.
        known = (job.cached_blocks + sum(job.loaded_blocks)) * job.block_tokens
        job.cached_tokens = min(known, job.prompt_tokens - 1)
        job.prefill_left = job.uncached_tokens
        return ready_at_s

    def _loaded(self) -> Job:
        job = heapq.heappop(self._loading)[2]
        for block in job.blocks[job.cached_blocks : job.cached_blocks + sum(job.loaded_blocks)]:
            self._ready_at.pop(block, None)
        return job

    def _finished(self) -> Iterator[Job]:
        while self._decoding and self._decoding[0][0] <= self._steps:
            job = heapq.heappop(self._decoding)[2]
            self._context -= job.prompt_tokens + job.output_tokens
            yield self._ended(job)
        while self._prefilling and not self._prefilling[0].prefill_left:
            job = self._prefilling.popleft()
            job.first_token_at_s = self._now
            if self.below is not None:
                self.below.computed(job, self._now)
            yield job
            if job.output_tokens > 1:
                self._number += 1
                self._context += job.prompt_tokens + 1
                heapq.heappush(self._decoding, (self._steps + job.output_tokens - 1, self._number, job))
            else:
                yield self._ended(job)

    def _ended(self, job: Job) -> Job:
        self.cache.release(job.blocks, job.answer_blocks)
        job.ended_at_s = self._now
        return job
