"""A fleet of modelled engines behind a strategy, in virtual time: who served what, from which cache, and when.

The strategy and the endpoints are the router's own objects, told what the router tells them: when a request is sent,
when its first token comes, when it ends. What an engine holds, the strategy has to guess, as in the router; only
``kvaware`` gets each engine's KV events, at once and all of them.
"""

import heapq
import itertools
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from math import inf
from typing import NamedTuple, Protocol

from tierline.bench.engine_model import Below, BlockCache, CacheListener, Engine, EngineModel, Job
from tierline.bench.routing_loads import Arrival
from tierline.bench.traces import BLOCK_TOKENS, Request, Trace
from tierline.router.endpoints import Endpoint
from tierline.router.events.decoding import BlockRemoved, BlockStored, Event, EventBatch
from tierline.router.events.index import SourceBlocks
from tierline.router.events.keys import PromptTokens
from tierline.router.events.source import EventSource, SourceState
from tierline.router.strategies.base import Decision, RoutingRequest, Strategy
from tierline.router.strategies.kvaware import KvAware

LOAD = 0.8
"""Of what the engines could do if they had one cache of all their memory; less for those that hit less."""
_DECODED_TOGETHER = 32
"""Sequences that share a step, to say what a token of an answer costs."""


class Setting(NamedTuple):
    """One size of the caches, and the pace at which requests come."""

    percent: int
    blocks: int
    """Room of one engine."""
    one_cache: int
    """Hits of one cache of all engines' memory."""
    time_scale: float
    caveat: str = ""
    """What a reader must know where the engines have more room than ``percent``."""

    @classmethod
    def of(cls, trace: Trace, percent: int, endpoints: int, model: EngineModel) -> "Setting":
        """Return the setting in which the engines have room for so much of a trace's footprint."""
        requests = trace.requests
        largest = max(len(request.blocks) for request in requests)
        asked, least = trace.footprint * percent // 100 // endpoints, 2 * largest
        blocks = max(asked, least)
        hits = one_cache_hits(requests, blocks * endpoints)
        prefill_s = (trace.blocks - hits) * BLOCK_TOKENS / model.prefill_tokens_per_s
        token_s = model.sequence_s + model.step_s / _DECODED_TOGETHER
        decode_s = sum(request.output_tokens for request in requests) * token_s
        lasts_s = max(requests[-1].at_s - requests[0].at_s, 1.0)
        room = f"{trace.name}, {percent} %: room for two of the largest prompts in each engine, which is "
        room += f"{100 * blocks * endpoints / trace.footprint:.0f} % of the footprint."
        time_scale = (prefill_s + decode_s) / endpoints / LOAD / lasts_s
        return cls(percent, blocks, hits, time_scale, room if asked < least else "")


class Served(NamedTuple):
    """A request that was served, and by which endpoint."""

    job: Job
    position: int


class Scaler(Protocol):
    """Says how many endpoints there should be.

    Attributes
    ----------
    every_s
        Between two looks.
    start_s
        From being wanted until an endpoint serves.
    """

    every_s: float
    start_s: float

    def wanted(self, now_s: float, under_way: int, replicas: int) -> int:
        """Return how many, where there are so many, those that start among them, and so many requests under way."""


class Fleet:
    """Endpoints with an engine each.

    Endpoints that a scaler adds begin with empty caches. One that it takes away gets no more requests, and ends with
    those that it has; its place may be another's then.

    Parameters
    ----------
    strategy
        Chooses; it is this fleet's alone.
    endpoints
        How many.
    blocks
        Room of each engine's cache, in blocks of the trace.
    model
        Of each engine.
    block_tokens
        Of each of these.
    below
        What is below each engine's cache, made for one of them after the other, with whom to tell what its host's
        memory holds, and what of that all endpoints reach; ``None``: nothing.
    scaler
        Adds endpoints and takes them away; ``None``: there are always ``endpoints``.
    gone
        Told of the place of each endpoint that has ended.

    Attributes
    ----------
    engines
        All that there have been, in the order of their coming.
    counts
        When there were how many that serve.
    """

    def __init__(
        self,
        strategy: Strategy,
        endpoints: int,
        blocks: int,
        model: EngineModel,
        below: Callable[[int, CacheListener | None, CacheListener | None], Below] | None = None,
        block_tokens: int = BLOCK_TOKENS,
        scaler: Scaler | None = None,
        gone: Callable[[int], None] | None = None,
    ) -> None:
        self._strategy = strategy
        self._blocks, self._block_tokens = blocks, block_tokens
        self._model = model
        self._below = below
        self._scaler = scaler
        self._gone = gone
        self._open: dict[Job, tuple[Decision, int, Arrival]] = {}
        self._tells = isinstance(strategy, KvAware)
        self.engines: list[Engine] = []
        self.counts: list[tuple[float, int]] = [(0.0, endpoints)]
        self._engine_at: dict[int, Engine] = {}
        self._leaving: set[int] = set()
        self._starting: deque[float] = deque()
        """When those serve that were wanted and do not yet, the next one first."""
        self._looks_s = inf if scaler is None else scaler.every_s
        self._endpoints = [self._new_endpoint() for _ in range(endpoints)]
        self._wakes: list[tuple[float, int]] = []
        """Heap of when an engine has to be looked at, and which; an entry that is not its next one is out of date."""

    def serve(
        self,
        arrivals: Iterable[Arrival],
        time_scale: float = 1.0,
        *,
        next_of: Callable[[Job, Arrival], Arrival | None] | None = None,
    ) -> list[Served]:
        """Serve requests; return them in the order in which they came.

        Parameters
        ----------
        arrivals
            In the order of their time.
        time_scale
            Their times are multiplied by it.
        next_of
            What a client sends once its request has ended: not before that, and its time is not scaled.
        """
        served: list[Served] = []
        following: list[tuple[float, int, Arrival]] = []  # when, tie, what
        ties = itertools.count()
        arriving = iter(arrivals)
        coming = next(arriving, None)
        while True:
            coming_s = inf if coming is None else coming.request.at_s * time_scale
            following_s = following[0][0] if following else inf
            at_s = min(coming_s, following_s)
            wakes_s = self._wakes[0][0] if self._wakes else inf
            if (scales_s := self._scales_s()) <= min(at_s, wakes_s) < inf:
                self._scale(scales_s)
            elif self._wakes and wakes_s <= at_s:
                for job, arrival in self._wake():
                    if next_of is not None and (after := next_of(job, arrival)) is not None:
                        heapq.heappush(following, (after.request.at_s, next(ties), after))
            elif coming is not None and coming_s <= following_s:
                served.append(self._submit(coming, at_s))
                coming = next(arriving, None)
            elif following:
                served.append(self._submit(heapq.heappop(following)[2], at_s))
            else:
                return served

    def _submit(self, arrival: Arrival, now: float) -> Served:
        request = RoutingRequest.of_blocks(arrival.hashes, session=arrival.session, now=now)
        if self._tells:
            request.tokens = PromptTokens(
                b"".join(_tokens_of(block, self._block_tokens) for block in arrival.request.blocks)
            )
        decision = self._strategy.choose(request, self._endpoints)
        self._strategy.placed(request, decision)
        endpoint, prompt = decision.endpoint, arrival.request
        job = Job(
            now,
            prompt.blocks,
            len(prompt.blocks) * self._block_tokens,
            prompt.output_tokens,
            block_tokens=self._block_tokens,
            session=arrival.session,
        )
        self._open[job] = decision, endpoint.begin(decision.uncached_tokens, now), arrival
        engine = self._engine_at[endpoint.position]
        before_s = engine.next_at_s
        engine.submit(job)
        if engine.next_at_s != before_s:
            heapq.heappush(self._wakes, (engine.next_at_s, endpoint.position))
        return Served(job, endpoint.position)

    def _wake(self) -> Sequence[tuple[Job, Arrival]]:
        """Let the engine work whose turn is next, and tell its endpoint; return what has ended."""
        at_s, position = heapq.heappop(self._wakes)
        engine = self._engine_at.get(position)
        if engine is None or engine.next_at_s != at_s:
            return ()
        ended = []
        for job in engine.wake():
            decision, tokens_before, arrival = self._open[job]
            endpoint = decision.endpoint
            if job.ended_at_s == inf:
                seconds = job.first_token_at_s - job.at_s
                endpoint.answered(decision.uncached_tokens, tokens_before, seconds, job.first_token_at_s)
            else:
                endpoint.end(0)
                endpoint.cache_told(decision.predicted_cached_tokens, job.cached_tokens)
                del self._open[job]
                ended.append((job, arrival))
                if position in self._leaving and not endpoint.inflight:
                    self._end(endpoint)
        if engine.next_at_s < inf:
            heapq.heappush(self._wakes, (engine.next_at_s, position))
        return ended

    def _scales_s(self) -> float:
        """Return when somebody looks at the load next, or an endpoint comes."""
        return min(self._looks_s, self._starting[0]) if self._starting else self._looks_s

    def _scale(self, now: float) -> None:
        """Let those come whose time it is; look, and do what the scaler wants."""
        while self._starting and self._starting[0] <= now:
            self._starting.popleft()
            endpoint = self._new_endpoint()
            endpoint.cold_since = now
            self._endpoints.append(endpoint)
        if self._scaler is not None and self._looks_s <= now:
            self._looks_s += self._scaler.every_s
            there = len(self._endpoints) + len(self._starting)
            wanted = self._scaler.wanted(now, len(self._open), there)
            self._starting.extend([now + self._scaler.start_s] * (wanted - there))
            for _ in range(there - wanted):  # those that do not serve yet first, then the latest
                if self._starting:
                    self._starting.pop()
                else:
                    self._take_away(self._endpoints.pop())
        if self.counts[-1][1] != len(self._endpoints):
            self.counts.append((now, len(self._endpoints)))

    def _new_endpoint(self) -> Endpoint:
        """Return one with an empty engine, at the lowest place that nobody has."""
        position = next(place for place in itertools.count() if place not in self._engine_at)
        endpoint = Endpoint(f"http://engine-{position}:8000", position)
        endpoint.capacity_blocks, endpoint.block_tokens = self._blocks, self._block_tokens
        source: SourceBlocks | None = None
        if isinstance(self._strategy, KvAware):
            events = EventSource(self._strategy.blocks.open(), has_replay=False, clock=_no_clock)
            events.state = SourceState.EXACT
            self._strategy.sources[endpoint.url] = [events]
            source = events.blocks
        host = _Events(source, self._block_tokens, "CPU") if source is not None else None
        shared = _Events(source, self._block_tokens, "CPU", "REMOTE") if source is not None else None
        below = self._below(position, host, shared) if self._below is not None else None
        engine = self._engine_at[position] = Engine(self._model, self._blocks, below)
        engine.cache.listener = _Events(source, self._block_tokens) if source is not None else None
        self.engines.append(engine)
        return endpoint

    def _take_away(self, endpoint: Endpoint) -> None:
        self._strategy.forget(endpoint)
        self._leaving.add(endpoint.position)
        if not endpoint.inflight:
            self._end(endpoint)

    def _end(self, endpoint: Endpoint) -> None:
        """Its last request has ended: nothing is left of it."""
        position = endpoint.position
        self._leaving.discard(position)
        engine = self._engine_at.pop(position)
        engine.cache.listener = None
        if isinstance(self._strategy, KvAware):
            for events in self._strategy.sources.pop(endpoint.url, ()):
                self._strategy.blocks.close(events.blocks)
        if self._gone is not None:
            self._gone(position)


class _Events:
    """KV events of an engine's cache, or of what is below it, applied as they come."""

    def __init__(
        self, source: SourceBlocks, block_tokens: int, medium: str | None = None, locality: str | None = None
    ) -> None:
        self._source = source
        self._block_tokens = block_tokens
        self._medium = medium
        self._locality = locality

    def stored(self, parent: int | None, blocks: Sequence[int]) -> None:
        tokens = [token for block in blocks for token in repeat(block, self._block_tokens)]
        self._tell(
            BlockStored(list(blocks), parent, tokens, self._block_tokens, medium=self._medium, locality=self._locality)
        )

    def removed(self, block: int) -> None:
        self._tell(BlockRemoved([block], medium=self._medium, locality=self._locality))

    def _tell(self, event: Event) -> None:
        self._source.apply(EventBatch(timestamp=0.0, events=[event], rank=None, unknown=0))


def _tokens_of(block: int, count: int) -> bytes:
    """Return tokens for a block of a trace, which has none: its number, over and over."""
    return array("I", [block]).tobytes() * count


def _no_clock() -> float:
    return 0.0


def one_cache_hits(requests: Sequence[Request], blocks: int) -> int:
    """Return how many blocks hit in one least recently used cache with all of the fleet's memory."""
    cache, hits = BlockCache(blocks), 0
    for request in requests:
        hits += cache.match(request.blocks)
        cache.hold(request.blocks, 0)
        cache.release(request.blocks, 0)
    return hits


def one_cache_hits_beside(served: Sequence[Served], blocks: int) -> int:
    """Return how many blocks hit in one cache with all of the fleet's memory that also has to hold what runs.

    What ran when is taken from a replay: no way of routing brings back memory that running requests take.
    """
    cache, hits = BlockCache(blocks), 0
    moves = [(job.admitted_at_s, 1, number) for number, (job, _) in enumerate(served)]
    moves += [(job.ended_at_s, 0, number) for number, (job, _) in enumerate(served)]
    for _, is_admitted, number in sorted(moves):
        job = served[number].job
        if is_admitted:
            hits += cache.match(job.blocks)
            cache.hold(job.blocks, job.answer_blocks)
        else:
            cache.release(job.blocks, job.answer_blocks)
    return hits


def imbalances(
    work: Iterable[tuple[float, int, int]], endpoints: int, window_s: float, tokens_per_s: float
) -> list[float]:
    """Return the largest over the mean of what engines computed, for each whole window that was work for half of it.

    Parameters
    ----------
    work
        Of each request: when it came, which engine served it, how many tokens were computed.
    endpoints
        How many engines there are.
    window_s
        The last one, which is not whole, does not count.
    tokens_per_s
        What an engine can compute.
    """
    computed: dict[int, list[int]] = defaultdict(lambda: [0] * endpoints)
    for at_s, position, tokens in work:
        computed[int(at_s // window_s)][position] += tokens
    del computed[max(computed)]
    half = 0.5 * window_s * tokens_per_s * endpoints
    return [max(tokens) * len(tokens) / sum(tokens) for tokens in computed.values() if sum(tokens) >= half]
