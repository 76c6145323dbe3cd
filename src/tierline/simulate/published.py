"""``prefixaware`` as vLLM's production-stack publishes it, to compare ours with: follow the longest known prefix.

A trie says which endpoints were sent each prefix. Of the endpoints at the end of the longest match that a candidate
shares in, one is drawn; the prompt is put into the trie for it. Nothing is forgotten, and load is not looked at. So
does vllm-project/production-stack at commit 35e4ad3 (src/vllm_router/prefix/hashtrie.py, routing_logic.py); there a
chunk is 128 characters, here it is a block of ours. Our hashes are chained, so that a dict is enough for a trie.
"""

import random
from collections import defaultdict
from collections.abc import Sequence

from tierline.router.endpoints import Endpoint
from tierline.router.strategies.base import Decision, RoutingRequest


class PublishedPrefixAware:
    """That strategy; ``seed`` is of the draws."""

    name = "production-stack"

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._sent: dict[int, int] = defaultdict(int)
        """Of each prefix, the bits of endpoints that got it."""

    def choose(self, request: RoutingRequest, endpoints: Sequence[Endpoint]) -> Decision:
        """See :class:`~tierline.router.strategies.base.Strategy`."""
        candidates = sum(endpoint.bit for endpoint in endpoints)
        depth = 0
        for block in request.blocks:
            shared = self._sent.get(block, 0) & candidates
            if not shared:
                break
            candidates = shared
            depth += 1
        drawn = self._dice.choice([endpoint for endpoint in endpoints if endpoint.bit & candidates])
        held = depth * request.block_tokens
        return Decision(
            drawn,
            "prefix" if depth else "cold",
            total_blocks=len(request.blocks),
            matched_blocks=depth,
            best_blocks=depth,
            uncached_tokens=request.prompt_tokens - held,
            predicted_cached_tokens=held,
        )

    def placed(self, request: RoutingRequest, decision: Decision) -> None:
        """See :class:`~tierline.router.strategies.base.Strategy`."""
        for block in request.blocks:
            self._sent[block] |= decision.endpoint.bit

    def withdrawn(self, request: RoutingRequest, decision: Decision) -> None:
        """Keep what was put into the trie, as it does."""

    def forget(self, endpoint: Endpoint) -> None:
        """Keep it, too."""
