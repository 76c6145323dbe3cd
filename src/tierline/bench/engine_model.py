"""A model of an inference engine in virtual time: steps of batched prefill and decode, and a prefix cache of blocks.

What is modelled is what routing can change. An engine works in steps. A step takes a fixed time, a time for each prompt
token that it computes and a time for each sequence that it decodes (chunked prefill, as in vLLM's V1 scheduler): so
prompts wait for prompts, and decoding is slowed by both. The KV of running requests is held in the cache; what is free
there holds the prefixes of earlier ones, and the one used longest ago goes, its end first. What is not modelled:
attention's growth with length, preemption, and answers becoming part of a cached prefix.

Runs of equal steps are taken at once, so the cost is a few operations a request and not one a step.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

from tierline.bench.traces import BLOCK_TOKENS


@dataclass(frozen=True)
class EngineModel:
    """How fast an engine is and what fits into it; by default about an 8B model on a large GPU."""

    prefill_tokens_per_s: float = 20_000.0
    step_s: float = 0.008
    sequence_s: float = 0.0001
    """Of a step, for each sequence that is decoded in it."""
    step_tokens: int = 2_048
    sequences: int = 256


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
    cached_tokens: int = 0
    admitted_at_s: float = inf
    first_token_at_s: float = inf
    ended_at_s: float = inf

    @property
    def answer_blocks(self) -> int:
        """Blocks that its answer takes."""
        return -(-self.output_tokens // BLOCK_TOKENS)

    @property
    def uncached_tokens(self) -> int:
        """Prompt tokens that were computed."""
        return self.prompt_tokens - self.cached_tokens


class Engine:
    """One engine.

    Invariant: its state is that at ``_now``, the end of its last step; no later event was told.
    """

    def __init__(self, model: EngineModel, blocks: int) -> None:
        self.cache = BlockCache(blocks)
        self._model = model
        self._now = 0.0
        self._steps = 0
        self._waiting: deque[Job] = deque()
        self._prefilling: Job | None = None
        self._prefill_left = 0
        self._decoding: list[tuple[int, int, Job]] = []
        """Heap of the step after which a job ends, and a number that breaks ties."""
        self._number = 0

    def submit(self, job: Job) -> None:
        """Take a request; jobs come in the order of their time."""
        self._waiting.append(job)

    def advance(self, until_s: float) -> Iterator[Job]:
        """Work until then; yield jobs as their first token comes, and again as they end, in the order of time."""
        model, decoding = self._model, self._decoding
        while True:
            self._admit()
            if self._prefilling is None and not decoding:
                if not self._waiting or self._waiting[0].at_s > until_s:
                    return
                self._now = self._waiting[0].at_s
                continue
            chunk = 0
            steps = decoding[0][0] - self._steps if decoding else 1
            if self._prefilling is not None:
                chunk = min(self._prefill_left, max(1, model.step_tokens - len(decoding)))
                whole = self._prefill_left // chunk
                steps = min(steps, whole) if decoding else whole
            step_s = model.step_s + chunk / model.prefill_tokens_per_s + len(decoding) * model.sequence_s
            # A job may come in the midst of a run of steps: it is looked at after the step in which it came.
            if self._prefilling is None and self._waiting and self._waiting[0].at_s > self._now:
                steps = min(steps, max(1, int((self._waiting[0].at_s - self._now) / step_s) + 1))
            steps = min(steps, int((until_s - self._now) / step_s)) if until_s < inf else steps
            if steps <= 0:
                return
            self._now += steps * step_s
            self._steps += steps
            if self._prefilling is not None:
                self._prefill_left -= steps * chunk
            yield from self._finished()

    def _admit(self) -> None:
        if self._prefilling is not None or not self._waiting or len(self._decoding) >= self._model.sequences:
            return
        job = self._waiting[0]
        if job.at_s > self._now or not self.cache.has_room(job.blocks, job.answer_blocks):
            return
        self._waiting.popleft()
        job.cached_blocks = self.cache.match(job.blocks)
        # A model must compute one token at least to say what comes next.
        job.cached_tokens = min(job.cached_blocks * BLOCK_TOKENS, job.prompt_tokens - 1)
        job.admitted_at_s = self._now
        self.cache.hold(job.blocks, job.answer_blocks)
        self._prefilling, self._prefill_left = job, job.uncached_tokens

    def _finished(self) -> Iterator[Job]:
        while self._decoding and self._decoding[0][0] <= self._steps:
            job = heapq.heappop(self._decoding)[2]
            yield self._ended(job)
        if self._prefilling is not None and self._prefill_left == 0:
            job, self._prefilling = self._prefilling, None
            job.first_token_at_s = self._now
            yield job
            if job.output_tokens > 1:
                self._number += 1
                heapq.heappush(self._decoding, (self._steps + job.output_tokens - 1, self._number, job))
            else:
                yield self._ended(job)

    def _ended(self, job: Job) -> Job:
        self.cache.release(job.blocks, job.answer_blocks)
        job.ended_at_s = self._now
        return job
