"""Continuous batching in steps, as vLLM schedules: FIFO admission, chunked prefill beside decoding; no clock, no I/O.

A step costs its prompt tokens over the prefill rate, and one decode interval if any request decodes; so prefill
delays whoever decodes beside it. Simplified: a request holds the blocks of its whole answer from the start, so there
is no preemption.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tierline.stack.simulated_engine.cache import BLOCK_TOKENS, Holding, PrefixCache, block_hashes


@dataclass(slots=True, eq=False)
class Request:
    """One request inside the engine.

    Parameters
    ----------
    prompt
        Token ids.
    answer
        What will be generated, one token a step.
    finish_reason
        What the response says about the answer's end.
    salt
        Keeps tenants apart: only equal salts share blocks.
    adapter
        Computes other keys and values than the model and other adapters do: no block is shared with these.
    fetched
        Tokens at the prompt's beginning that others have computed, and that are there at once.
    loaded
        Which of them were loaded from node stores, by who had them.
    """

    prompt: list[int]
    answer: list[int]
    finish_reason: Literal["stop", "length"] = "length"
    salt: str = ""
    adapter: str = ""
    fetched: int = 0
    loaded: Mapping[str, int] = field(default_factory=dict)
    computed: int = 0
    cached: int = 0
    external: int = 0
    generated: int = 0
    holding: Holding | None = None
    prompt_hashes: list[int] = field(default_factory=list)

    @property
    def is_prefilling(self) -> bool:
        """Part of the prompt is still to be computed."""
        return self.computed < len(self.prompt)

    @property
    def is_finished(self) -> bool:
        """The whole answer was generated."""
        return self.generated == len(self.answer)

    @property
    def blocks(self) -> int:
        """Blocks that prompt and answer fill."""
        return -(-(len(self.prompt) + len(self.answer)) // BLOCK_TOKENS)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step computes, as ``(request, tokens)``, and how long the modelled hardware takes for it."""

    work: list[tuple[Request, int]]
    admitted: list[Request]
    duration_s: float


class Scheduler:
    """Decides the steps; :meth:`plan` and :meth:`complete` alternate."""

    def __init__(
        self,
        cache: PrefixCache,
        *,
        prefill_rate: float,
        decode_rate: float,
        max_num_seqs: int,
        max_num_batched_tokens: int,
    ) -> None:
        self.cache = cache
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._prefill_rate = prefill_rate
        self._decode_rate = decode_rate
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens

    def add(self, request: Request) -> None:
        """Queue a request; it must fit into the cache."""
        request.prompt_hashes = block_hashes(request.prompt, request.salt, request.adapter)
        self.waiting.append(request)

    def abort(self, request: Request) -> None:
        """Forget a request, wherever it is; its computed blocks stay in the cache."""
        if request in self.running:
            self._finish(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def plan(self) -> Step | None:
        """Admit what fits and return the next step; ``None`` when there is nothing to do."""
        decoding = [request for request in self.running if not request.is_prefilling][: self._max_num_batched_tokens]
        work = [(request, 1) for request in decoding]
        room = self._max_num_batched_tokens - len(work)
        prefill_tokens = 0
        admitted: list[Request] = []
        prefilling = deque(request for request in self.running if request.is_prefilling)
        while room and (prefilling or self._admit_next(prefilling, admitted)):
            request = prefilling.popleft()
            tokens = min(room - prefill_tokens, len(request.prompt) - request.computed)
            work.append((request, tokens))
            prefill_tokens += tokens
            if prefill_tokens == room:
                break
        if not work:
            return None
        duration_s = prefill_tokens / self._prefill_rate + (1 / self._decode_rate if decoding else 0)
        return Step(work, admitted, duration_s)

    def complete(self, step: Step) -> list[Request]:
        """Account for a step that was computed; return the requests that got their next token."""
        advanced = []
        for request, tokens in step.work:
            if request.holding is None:  # aborted while the step ran
                continue
            self._name_full_blocks(request, request.computed + tokens)
            request.computed += tokens
            if not request.is_prefilling:
                request.generated += 1
                advanced.append(request)
                if request.is_finished:
                    self._finish(request)
        return advanced

    def _admit_next(self, prefilling: deque[Request], admitted: list[Request]) -> bool:
        if not self.waiting or len(self.running) >= self._max_num_seqs:
            return False
        request = self.waiting[0]
        # At least one token is computed, as in vLLM: its logits begin the answer.
        usable = request.prompt_hashes[: (len(request.prompt) - 1) // BLOCK_TOKENS]
        matched = self.cache.match(usable)
        request.holding = self.cache.hold(usable[:matched], request.blocks - matched)
        if request.holding is None:
            return False
        request.cached = request.computed = matched * BLOCK_TOKENS
        if request.fetched > request.cached:
            self._name_full_blocks(request, request.fetched)
            request.external = request.fetched - request.cached
            request.cached = request.computed = request.fetched
        self.waiting.popleft()
        for requests in (self.running, admitted, prefilling):
            requests.append(request)
        return True

    def _name_full_blocks(self, request: Request, computed: int) -> None:
        assert request.holding is not None
        first, last = len(request.holding.named), computed // BLOCK_TOKENS
        if first == last:
            return
        tokens: Sequence[int] = request.prompt
        hashes = request.prompt_hashes
        if computed > len(request.prompt):
            tokens = request.prompt + request.answer[: computed - len(request.prompt)]
            hashes = block_hashes(tokens, request.salt, request.adapter)
        self.cache.name(
            request.holding,
            hashes[first:last],
            tokens[first * BLOCK_TOKENS : last * BLOCK_TOKENS],
            request.salt,
            request.adapter,
        )

    def _finish(self, request: Request) -> None:
        assert request.holding is not None
        self.running.remove(request)
        self.cache.release(request.holding)
        request.holding = None
