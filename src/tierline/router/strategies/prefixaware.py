"""Prefix affinity by one cost: the prefill work in front of a request on an endpoint, its own included, in seconds.

    cost(e) = (tokens queued on e + tokens of this prompt that e does not hold) / speed of e

The least cost wins. So a request stays with the endpoint that holds its prefix until the queue there costs more than
the cache saves, and no longer; there is no threshold to tune. Three rules around it:

- **Bounded load**: an endpoint with more requests in flight than 1.25 times the mean is not a candidate.
- **Templates**: a block at which many recent prompts part ways (a system prompt that everybody has) ends a *template*,
  which every endpoint will hold soon; up to there a match counts for nothing, on nobody.
- **Ties** go to the endpoint with fewer requests, then by rendezvous hashing of the first block behind the template,
  so that routers which share no state agree on where a new prefix goes.
"""

from collections import Counter, deque
from collections.abc import Sequence

from tierline.router.endpoints import Endpoint
from tierline.router.index import PrefixIndex
from tierline.router.prompt import BLOCK_BYTES, BYTES_PER_TOKEN
from tierline.router.strategies.base import Decision, RoutingRequest, Weighed, load_bounds, rendezvous, share

BLOCK_TOKENS = BLOCK_BYTES // BYTES_PER_TOKEN
SAME_SPEED = 0.7
"""An endpoint at least this fast, as a share of the fastest, counts as equally fast: what is measured scatters, and
small differences would draw all new prompts to one endpoint."""
TEMPLATE_PARTINGS = 16
TEMPLATE_WINDOW = 32
"""A template ends where 16 of the last 32 prompts *per endpoint* parted from what was known: half of one endpoint's
share of the traffic. A conversation parts from the known once at each of its turns, each time at another block."""


class PrefixAware:
    """The default strategy.

    Parameters
    ----------
    endpoints
        How many there are at least.
    index_bytes
        Memory for the index.
    """

    name = "prefixaware"

    def __init__(self, endpoints: int, index_bytes: int) -> None:
        self.index = PrefixIndex(endpoints, index_bytes)
        self._templates = _Templates()

    def choose(self, request: RoutingRequest, endpoints: Sequence[Endpoint]) -> Decision:
        """See :class:`~tierline.router.strategies.base.Strategy`."""
        blocks, prompt_tokens = request.blocks, request.prompt_tokens
        steps = self.index.match(blocks)
        template = self._templates.depth(blocks)
        bounds = load_bounds(endpoints, request.now)
        fastest = max([endpoint.prefill_rate or 0.0 for endpoint in endpoints])

        best: list[tuple[Endpoint, int]] = []
        best_cost: tuple[float, int] | None = None
        deepest = 0
        weighed: list[Weighed] = []
        for endpoint, bound in zip(endpoints, bounds, strict=True):
            depth = _depth(steps, endpoint.bit) if steps else 0
            if depth > deepest:
                deepest = depth
            if endpoint.inflight > bound:
                weighed.append((endpoint, None, depth))
                continue
            uncached = prompt_tokens - (depth if depth > template else template) * BLOCK_TOKENS
            cost = (_seconds(endpoint.queued_tokens + uncached, endpoint, fastest), endpoint.inflight)
            weighed.append((endpoint, cost[0], depth))
            if best_cost is None or cost < best_cost:
                best, best_cost = [(endpoint, depth)], cost
            elif cost == best_cost:
                best.append((endpoint, depth))

        endpoint, depth = best[0]
        if len(best) > 1:
            key = blocks[template] if template < len(blocks) else request.prompt_hash
            endpoint, depth = max(best, key=lambda tied: rendezvous(key, tied[0], share(tied[0], request.now)))
        return Decision(
            endpoint,
            _reason(depth, deepest, template, len(blocks)),
            total_blocks=len(blocks),
            matched_blocks=depth,
            best_blocks=deepest,
            uncached_tokens=prompt_tokens - depth * BLOCK_TOKENS,
            predicted_cached_tokens=depth * BLOCK_TOKENS,
            weighed=weighed,
        )

    def placed(self, request: RoutingRequest, decision: Decision) -> None:
        """Expect the endpoint to hold the prompt from now on: requests behind this one should follow it."""
        blocks = request.blocks
        if blocks:
            window = TEMPLATE_WINDOW * self.index.endpoints
            self._templates.parted(blocks, decision.best_blocks, request.prompt_hash, window)
            self.index.place(decision.endpoint.position, blocks)

    def withdrawn(self, request: RoutingRequest, decision: Decision) -> None:
        """Expect the endpoint to hold no more of the prompt than before."""
        self.index.withdraw(decision.endpoint.position, request.blocks[decision.matched_blocks :])

    def forget(self, endpoint: Endpoint) -> None:
        """See :class:`~tierline.router.strategies.base.Strategy`."""
        self.index.forget(endpoint.position)


class _Templates:
    """Ends of prefixes that many prompts share. Invariant: ``_counts`` counts what is in ``_recent``."""

    def __init__(self) -> None:
        self._last_prompt = 0
        self._recent: deque[tuple[int, int]] = deque()
        self._counts: Counter[tuple[int, int]] = Counter()
        self._templates: dict[tuple[int, int], None] = {}

    def parted(self, blocks: Sequence[int], depth: int, prompt_hash: int, window: int) -> None:
        """A prompt was known up to ``depth`` blocks and went its own way from there; a repeated prompt did not.

        Of all, the last ``window`` are remembered.
        """
        if prompt_hash == self._last_prompt:
            return
        self._last_prompt = prompt_hash
        parting = (depth, blocks[depth - 1] if depth else 0)
        self._recent.append(parting)
        self._counts[parting] += 1
        if depth and self._counts[parting] >= TEMPLATE_PARTINGS:
            self._templates[parting] = None
        while len(self._recent) > window:
            oldest = self._recent.popleft()
            self._counts[oldest] -= 1
            if self._counts[oldest] < TEMPLATE_PARTINGS:
                self._templates.pop(oldest, None)
            if not self._counts[oldest]:
                del self._counts[oldest]

    def depth(self, blocks: Sequence[int]) -> int:
        """Return how many leading blocks belong to a template. There are at most two templates per endpoint."""
        deepest = 0
        for depth, block in self._templates:
            if deepest < depth <= len(blocks) and blocks[depth - 1] == block:
                deepest = depth
        return deepest


def _depth(steps: Sequence[tuple[int, int]], bit: int) -> int:
    for depth, mask in steps:
        if mask & bit:
            return depth
    return 0


def _seconds(tokens: int, endpoint: Endpoint, fastest: float) -> float:
    rate = endpoint.prefill_rate
    if rate is None or rate >= SAME_SPEED * fastest:
        rate = fastest or 1.0  # before anything was measured, all are alike
    return tokens / rate


def _reason(depth: int, deepest: int, template: int, total: int) -> str:
    if not total:
        return "no-prompt"
    if depth > template:
        return "prefix" if depth == deepest else "spill"
    if deepest > template:
        return "spill"
    return "template" if template else "cold"
