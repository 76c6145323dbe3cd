"""A fleet of modelled engines behind a strategy, in virtual time: who served what, from which cache, and when.

The strategy and the endpoints are the router's own objects, told what the router tells them: when a request is sent,
when its first token comes, when it ends. What an engine holds, the strategy has to guess, as in the router.
"""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from tierline.bench.engine_model import BlockCache, Engine, EngineModel, Job
from tierline.bench.routing_loads import Arrival
from tierline.bench.traces import BLOCK_TOKENS, Request
from tierline.router.endpoints import Endpoint
from tierline.router.strategies.base import Decision, RoutingRequest, Strategy


class Served(NamedTuple):
    """A request that was served, and by which endpoint."""

    job: Job
    position: int


class Fleet:
    """Endpoints with an engine each.

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
    """

    def __init__(self, strategy: Strategy, endpoints: int, blocks: int, model: EngineModel) -> None:
        self._strategy = strategy
        self._engines = [Engine(model, blocks) for _ in range(endpoints)]
        self._endpoints = [Endpoint(f"http://engine-{position}:8000", position) for position in range(endpoints)]
        for endpoint in self._endpoints:
            endpoint.capacity_blocks, endpoint.block_tokens = blocks, BLOCK_TOKENS
        self._open: dict[Job, tuple[Decision, int]] = {}

    def serve(self, arrivals: Sequence[Arrival], time_scale: float) -> list[Served]:
        """Serve a trace with its times multiplied by ``time_scale``; return its requests in their order."""
        served = []
        for arrival in arrivals:
            now = arrival.request.at_s * time_scale
            self._advance(now)
            request = RoutingRequest.of_blocks(arrival.hashes, session=arrival.session, now=now)
            decision = self._strategy.choose(request, self._endpoints)
            self._strategy.placed(request, decision)
            endpoint, prompt = decision.endpoint, arrival.request
            job = Job(now, prompt.blocks, len(prompt.blocks) * BLOCK_TOKENS, prompt.output_tokens)
            self._open[job] = decision, endpoint.begin(decision.uncached_tokens, now)
            self._engines[endpoint.position].submit(job)
            served.append(Served(job, endpoint.position))
        self._advance(inf)
        return served

    def _advance(self, until_s: float) -> None:
        for engine in self._engines:
            for job in engine.advance(until_s):
                decision, tokens_before = self._open[job]
                endpoint = decision.endpoint
                if job.ended_at_s == inf:
                    seconds = job.first_token_at_s - job.at_s
                    endpoint.answered(decision.uncached_tokens, tokens_before, seconds, job.first_token_at_s)
                else:
                    endpoint.end(0)
                    endpoint.cache_told(decision.predicted_cached_tokens, job.cached_tokens)
                    del self._open[job]


def one_cache_hits(requests: Sequence[Request], blocks: int) -> int:
    """Return how many blocks hit in one least recently used cache with all of the fleet's memory."""
    cache, hits = BlockCache(blocks), 0
    for request in requests:
        hits += cache.match(request.blocks)
        cache.hold(request.blocks, 0)
        cache.release(request.blocks, 0)
    return hits
