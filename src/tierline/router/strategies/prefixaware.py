"""Prefix affinity by one cost: the prefill work in front of a request on an endpoint, its own included, in seconds.

    cost(e) = (tokens queued on e + 8 * tokens of this prompt that e does not hold) / speed of e

The least cost wins. So a request stays with the endpoint that holds its prefix until the queue there costs more than
the cache saves. What it computes anew costs others too: each token keeps waiting all who come behind it, and a second
copy takes the place of something else. Hence the factor. Four rules around it:

- **Capacity**: of an endpoint no more is believed than what waits there and what its engine's cache can hold, what was
  used last.
- **Bounded load**: an endpoint where more prefill work waits than 1.25 times the mean, and five seconds, is not a
  candidate; nor is one where more requests decode than 1.25 times the mean, and 32.
- **Templates**: a block at which half of all new prompts part ways (a system prompt that everybody has) ends a
  *template*, which every endpoint will hold soon; up to there a match counts for nothing, on nobody.
- **Ties** go to the endpoint with fewer requests, then by rendezvous hashing of the first block behind the template,
  so that routers which share no state agree on where a new prefix goes.
"""

from collections import Counter, deque
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from tierline.router.depths import grain_of
from tierline.router.endpoints import Endpoint
from tierline.router.index import PrefixIndex
from tierline.router.prompt import BLOCK_BYTES, BYTES_PER_TOKEN
from tierline.router.strategies.base import (
    APPROXIMATE,
    Decision,
    Held,
    RoutingRequest,
    Weighing,
    Witness,
    rendezvous,
    shares_of,
    within_bounds,
)

BLOCK_TOKENS = BLOCK_BYTES // BYTES_PER_TOKEN
_NOTHING: Held = (0, 0, 0)
SAME_SPEED = 0.7
"""An endpoint at least this fast, as a share of the fastest, counts as equally fast: what is measured scatters, and
small differences would draw all new prompts to one endpoint."""
RECOMPUTING = 8.0
"""What a token costs that is computed though another endpoint has it, in tokens that wait. Replays of a chat trace
(docs/routing.md): at 1, two thirds of what one large cache would hit, at 8 seven eighths, and beyond only a longer
tail of times to first token."""
TEMPLATE_PARTINGS = 16
TEMPLATE_SHARE = 0.5
TEMPLATE_WINDOW = 64
"""A template ends where half of the beginnings among the last 64 prompts *per endpoint* parted, 16 of them at least. A
prompt that goes on where an earlier one ended is no beginning: it parts from the known where nobody else does."""


class Holding(NamedTuple):
    """What one endpoint is known to hold of a prompt."""

    depth: int
    saved: int
    predicted: int
    """As in :data:`Held`."""
    remembered: int
    """Leading blocks that were sent there before and are still remembered."""
    by_tier: Sequence[int] = ()
    """What is read by tier, the fastest first; empty where it is guessed."""
    confidence: str = APPROXIMATE
    """As of a :class:`~tierline.router.strategies.base.Decision`."""


_Parting = tuple[int, int]
"""How many blocks of a prompt were known, and the last of them."""


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
        self.witness: Witness | None = None
        self._templates = _Templates()

    def choose(self, request: RoutingRequest, endpoints: Sequence[Endpoint]) -> Decision:
        """See :class:`~tierline.router.strategies.base.Strategy`."""
        blocks = request.blocks
        prompt_tokens = request.prompt_tokens
        held = self.held(request, endpoints)
        template = self._templates.depth(blocks)
        template_tokens = template * request.block_tokens
        waiting = [endpoint.queued_tokens and endpoint.waiting_tokens(request.now) for endpoint in endpoints]
        speeds = _speeds(endpoints)
        shares = shares_of(endpoints, request.now)
        is_within = within_bounds(endpoints, waiting, speeds, shares)
        uncached = [prompt_tokens - (saved if saved > template_tokens else template_tokens) for _, saved, _ in held]
        # In seconds; what waits at an endpoint that starts counts for more.
        costs = [
            ((tokens and tokens * endpoint.weight / part) + RECOMPUTING * computed) / (speed or endpoint.weight)
            if is_candidate
            else inf
            for endpoint, is_candidate, tokens, computed, speed, part in zip(
                endpoints, is_within, waiting, uncached, speeds, shares, strict=True
            )
        ]
        least = min(costs)
        best = [endpoint for endpoint, cost in zip(endpoints, costs, strict=True) if cost == least]
        if len(best) > 1:
            fewest = min([tied.inflight for tied in best])
            best = [tied for tied in best if tied.inflight == fewest]
        endpoint = best[0]
        if len(best) > 1:
            key = blocks[template] if template < len(blocks) else request.prompt_hash
            endpoint = rendezvous(key, best, request.now)
        there = self.view(request, endpoint, endpoints)
        deepest = max(there.matched_blocks, max([depth for depth, _, _ in held]))
        reason = _reason(there.matched_blocks, deepest, template, len(blocks))
        weighed = Weighing(tuple(endpoints), is_within, waiting, uncached, speeds, held)
        return there._replace(reason=reason, best_blocks=deepest, weighed=weighed)

    def view(self, request: RoutingRequest, endpoint: Endpoint, endpoints: Sequence[Endpoint]) -> Decision:
        """Return what is known of a prompt at one of ``endpoints``, whoever chose it."""
        there = self.held_by(request, endpoint, endpoints)
        return Decision(
            endpoint,
            "",
            total_blocks=len(request.blocks),
            matched_blocks=there.depth,
            uncached_tokens=request.prompt_tokens - there.saved,
            predicted_cached_tokens=there.predicted,
            predicted_by_tier=there.by_tier,
            confidence=there.confidence if request.blocks or request.tokens is not None else "",
            remembered_blocks=there.remembered,
        )

    def held(self, request: RoutingRequest, endpoints: Sequence[Endpoint]) -> list[Held]:
        """Return what each of ``endpoints`` holds of the prompt, or less by a small part of it."""
        blocks = request.blocks
        depths = self.index.match(blocks, grain=grain_of(len(blocks)))
        if not depths:
            return [_NOTHING] * len(endpoints)
        size, depth_of = request.block_tokens, depths.get
        by_depth = {depth: (depth, depth * size, depth * size) for depth in {0, *depths.values()}}
        return [by_depth[depth_of(endpoint.position, 0)] for endpoint in endpoints]

    def held_by(
        self,
        request: RoutingRequest,
        endpoint: Endpoint,
        endpoints: Sequence[Endpoint],  # noqa: ARG002  (for who has more to ask than the index)
    ) -> Holding:
        """Return exactly what one of ``endpoints`` is believed to hold of the prompt."""
        depth = self.index.known(request.blocks, endpoint.bit)
        return Holding(depth, depth * request.block_tokens, depth * request.block_tokens, depth)

    def placed(self, request: RoutingRequest, decision: Decision) -> None:
        """Expect the endpoint to hold the prompt from now on: requests behind this one should follow it."""
        blocks = request.blocks
        if blocks:
            window = TEMPLATE_WINDOW * self.index.endpoints
            self._templates.parted(blocks, self.index.known(blocks), request.prompt_hash, window)
            self.learn_placed(decision.endpoint, blocks)
            if self.witness is not None:
                self.witness.placed(decision.endpoint, blocks)

    def withdrawn(self, request: RoutingRequest, decision: Decision) -> None:
        """Expect the endpoint to hold no more of the prompt than before."""
        blocks = request.blocks[decision.remembered_blocks :]
        self.learn_withdrawn(decision.endpoint, blocks)
        if self.witness is not None and blocks:
            self.witness.withdrawn(decision.endpoint, blocks)

    def learn_placed(self, endpoint: Endpoint, blocks: Sequence[int]) -> None:
        """A prompt with these blocks went there; whoever sent it."""
        self.index.place(endpoint.position, blocks, _capacity(endpoint))

    def learn_withdrawn(self, endpoint: Endpoint, blocks: Sequence[int]) -> None:
        """These blocks were not served there after all."""
        self.index.withdraw(endpoint.position, blocks)

    def forget(self, endpoint: Endpoint) -> None:
        """See :class:`~tierline.router.strategies.base.Strategy`."""
        self.index.forget(endpoint.position)


class _Templates:
    """Ends of prefixes that many new prompts share.

    Invariants: ``_counts`` counts what is in ``_recent``; ``_continuations`` are those that parted, behind something
    that is known, where no other did; ``_frequent`` are the counts that may make a template.
    """

    def __init__(self) -> None:
        self._last_prompt = 0
        self._recent: deque[_Parting] = deque()
        self._counts: Counter[_Parting] = Counter()
        self._continuations = 0
        self._frequent: dict[_Parting, int] = {}

    def parted(self, blocks: Sequence[int], depth: int, prompt_hash: int, window: int) -> None:
        """A prompt was known up to ``depth`` blocks and went its own way from there; a repeated prompt did not.

        Of all, the last ``window`` are remembered.
        """
        if prompt_hash == self._last_prompt:
            return
        self._last_prompt = prompt_hash
        parting = (depth, blocks[depth - 1] if depth else 0)
        self._recent.append(parting)
        self._count(parting, 1)
        while len(self._recent) > window:
            self._count(self._recent.popleft(), -1)

    def depth(self, blocks: Sequence[int]) -> int:
        """Return how many leading blocks belong to a template. There are at most four candidates per endpoint."""
        deepest = 0
        least = TEMPLATE_SHARE * (len(self._recent) - self._continuations)
        for (depth, block), count in self._frequent.items():
            if count >= least and deepest < depth <= len(blocks) and blocks[depth - 1] == block:
                deepest = depth
        return deepest

    def _count(self, parting: _Parting, change: int) -> None:
        before = self._counts[parting]
        count = before + change
        if count:
            self._counts[parting] = count
        else:
            del self._counts[parting]
        depth = parting[0]
        if depth:
            self._continuations += (count == 1) - (before == 1)
            if count >= TEMPLATE_PARTINGS:
                self._frequent[parting] = count
            else:
                self._frequent.pop(parting, None)


def _speeds(endpoints: Sequence[Endpoint]) -> list[float]:
    """Return the tokens that each computes in a second; 0 for all where no stream has shown it of any."""
    rates = [endpoint.prefill_rate for endpoint in endpoints]
    fastest = max([rate or 0.0 for rate in rates])
    as_fast = SAME_SPEED * fastest
    return [
        fastest * endpoint.weight
        if rate is None
        else fastest
        if rate >= as_fast
        else rate  # what was measured says more
        for endpoint, rate in zip(endpoints, rates, strict=True)
    ]


def _capacity(endpoint: Endpoint) -> int | None:
    """Return how many blocks are to be remembered of the endpoint, where its engine says how much it holds.

    What waits there is remembered from when it was sent, and has displaced nothing yet.
    """
    if endpoint.capacity_blocks is None or endpoint.block_tokens is None:
        return None
    return (endpoint.capacity_blocks * endpoint.block_tokens + endpoint.queued_tokens) // BLOCK_TOKENS


def _reason(depth: int, deepest: int, template: int, total: int) -> str:
    if not total:
        return "no-prompt"
    if depth > template:
        return "prefix" if depth == deepest else "spill"
    if deepest > template:
        return "spill"
    return "template" if template else "cold"
