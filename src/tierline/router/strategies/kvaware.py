"""Prefix affinity by what engines say that they hold: the cost of ``prefixaware``, with its depths from KV events.

For each endpoint and each request the best that is known counts: where all of an endpoint's sources are *exact*, their
index; where one is *degraded*, which makes the index a lower bound, the longer of index and guess; else, or when the
prompt's tokens are not known, the guess of ``prefixaware``, which goes on learning all the while.

Two rules beside it:

- **A tier costs what reading from it costs**: a block saves its tokens times its tier's weight. Blocks count up to the
  first that no tier has; one behind a block of a slower tier counts as that tier's.
- **Sent is expected**: blocks of a prompt that was just sent count as held there for two seconds, or until its events
  say so. Requests with a new prefix that come at once would part otherwise.

What is known comes from this process's own index, or, where another process has it, with the request (``told``).

An engine of several data-parallel ranks chooses one by itself: the mean over its ranks is what to expect.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from tierline.router.depths import Depths, grain_of
from tierline.router.endpoints import Endpoint, parent_of
from tierline.router.events.index import BlockIndex, Tier
from tierline.router.events.source import EventSource
from tierline.router.strategies.base import Decision, Found, RoutingRequest
from tierline.router.strategies.prefixaware import Held, PrefixAware

TIER_WEIGHTS: Mapping[Tier, float] = {Tier.GPU: 1.0, Tier.HOST: 0.8, Tier.STORAGE: 0.3, Tier.SHARED: 0.6}
_SLOWER = tuple(TIER_WEIGHTS)[1:]
EXPECTED_SECONDS = 2.0
KV_INDEX_BYTES = 512 * 1024**2
"""Room for 950,000 blocks at worst, 2.5 million typically."""


class KvAware(PrefixAware):
    """Routes by an exact index where there is one.

    Parameters
    ----------
    endpoints, index_bytes
        As for :class:`~tierline.router.strategies.prefixaware.PrefixAware`.
    kv_index_bytes
        Memory for the exact index.

    Attributes
    ----------
    lookups
        Counter: endpoints weighed, by what was known of each: ``exact``, ``bound``, ``approximate``.
    """

    name = "kvaware"

    def __init__(self, endpoints: int, index_bytes: int, kv_index_bytes: int) -> None:
        super().__init__(endpoints, index_bytes)
        self.blocks = BlockIndex(kv_index_bytes)
        self.sources: dict[str, Sequence[EventSource]] = {}
        """By the URL of the endpoint that they tell about."""
        self.lookups: Counter[str] = Counter()

    def share_index_of(self, other: "KvAware") -> None:
        """Read what another one is told: which blocks engines have is the same for every strategy."""
        self.blocks, self.sources, self.lookups = other.blocks, other.sources, other.lookups

    def held(self, request: RoutingRequest, endpoints: Sequence[Endpoint]) -> list[Held]:
        """See :class:`~tierline.router.strategies.prefixaware.PrefixAware`."""
        guesses = super().held(request, endpoints)
        if request.tokens is None:
            self.lookups["approximate"] += len(endpoints)
            return guesses
        lookup = request.told or _Lookup(self.blocks, request, endpoints, self.sources)
        held, exact, bounds = [], 0, 0
        block_tokens, total = request.block_tokens, len(request.blocks)
        for endpoint, guess in zip(endpoints, guesses, strict=True):
            found = lookup.found(endpoint) if is_explained(request.model, endpoint) else None
            if found is None:
                held.append(guess)
                continue
            saved, predicted, is_exact = found
            depth = predicted // block_tokens
            if is_exact:
                exact += 1
            else:
                bounds += 1
                if saved < guess[1]:
                    held.append(guess)
                    continue
            held.append((depth if depth < total else total, saved, predicted))
        self.lookups["exact"] += exact
        self.lookups["bound"] += bounds
        self.lookups["approximate"] += len(endpoints) - exact - bounds
        return held

    def held_by(self, request: RoutingRequest, endpoint: Endpoint, endpoints: Sequence[Endpoint]) -> Held:
        """See :class:`~tierline.router.strategies.prefixaware.PrefixAware`."""
        guess = super().held_by(request, endpoint, endpoints)
        if request.tokens is None or not is_explained(request.model, endpoint):
            return guess
        lookup = request.told or _Lookup(self.blocks, request, endpoints, self.sources, only=endpoint)
        found = lookup.found(endpoint)
        if found is None:
            return guess
        saved, predicted, is_exact = found
        if not is_exact and saved < guess[1]:
            return guess
        return min(len(request.blocks), predicted // request.block_tokens), saved, predicted

    def placed(self, request: RoutingRequest, decision: Decision) -> None:
        """Expect the endpoint to hold the prompt from now on."""
        super().placed(request, decision)
        if request.told is not None:
            request.told.placed(decision.endpoint)
        sources = self.sources.get(decision.endpoint.url, ())
        if request.tokens is None or not is_explained(request.model, decision.endpoint):
            return
        if len(sources) != 1:  # of several ranks nobody knows which one gets it
            return
        blocks = sources[0].blocks
        if blocks.block_tokens is not None:
            keys = request.tokens.keys(blocks.block_tokens, adapter_of(request.model, decision.endpoint))
            blocks.expect(keys, request.now, request.now + EXPECTED_SECONDS)

    def withdrawn(self, request: RoutingRequest, decision: Decision) -> None:
        """Expect the endpoint to hold no more of the prompt than before."""
        super().withdrawn(request, decision)
        if request.told is not None:
            request.told.withdrawn(decision.endpoint)
        for source in self.sources.get(decision.endpoint.url, ()):
            size = source.blocks.block_tokens
            if request.tokens is not None and size is not None:
                source.blocks.unexpect(request.tokens.keys(size, adapter_of(request.model, decision.endpoint)))

    def forget(self, endpoint: Endpoint) -> None:
        """Forget what was guessed. What was told stays: sources notice themselves when an engine is another one."""
        super().forget(endpoint)
        for source in self.sources.get(endpoint.url, ()):
            source.blocks.expected.clear()


class _Lookup:
    """One request's questions to the index. What endpoints with equal blocks have in common is asked for once.

    Parameters
    ----------
    index
        The index.
    request
        With its tokens.
    endpoints
        The candidates.
    sources
        By the URL of the endpoint that they tell about.
    only
        The one that is asked about, and then exactly; without it, all, and up to a small part of the prompt.
    """

    def __init__(
        self,
        index: BlockIndex,
        request: RoutingRequest,
        endpoints: Sequence[Endpoint],
        sources: Mapping[str, Sequence[EventSource]],
        *,
        only: Endpoint | None = None,
    ) -> None:
        self._sources = sources
        self._index = index
        self._request = request
        self._model = request.model
        self._reach = _bits(endpoints, sources) if only is None or index.masks[Tier.SHARED] else 0
        self._bits = self._reach if only is None else _bits((only,), sources)
        self._is_coarse = only is None
        self._chains: dict[tuple[int, str | None], tuple[list[int], int, list[Depths]]] = {}

    def found(self, endpoint: Endpoint) -> Found | None:
        """Return what an endpoint has of the prompt; ``None`` where nobody can tell."""
        sources = self._sources.get(endpoint.url)
        if not sources:
            return None
        is_exact = True
        saved = 0.0
        predicted = 0
        adapter = adapter_of(self._model, endpoint)
        for source in sources:
            if not source.is_exact:
                if not source.is_telling:
                    return None
                is_exact = False
            blocks = source.blocks
            size = blocks.block_tokens
            if size is None:  # it holds nothing yet, and never said how large its blocks are
                continue
            keys, grain, depths = self._chains.get((size, adapter)) or self._ask(size, adapter)
            depth = depths[0].get(blocks.bit, 0)  # the engine's own cache
            if blocks.expected:
                start = depth + grain - 1 if depth else 0  # it holds no more than that
                run = blocks.expected_run(keys, start, self._request.now)
                depth = start + run if run else depth
            saved += depth * size
            if depths[-1] is not depths[0]:
                for tier in _SLOWER:
                    deeper = depths[tier].get(blocks.bit, 0)
                    if deeper > depth:
                        saved += (deeper - depth) * size * TIER_WEIGHTS[tier]
                        depth = deeper
            predicted += depth * size
        if len(sources) > 1:
            return int(saved / len(sources)), predicted // len(sources), is_exact
        return int(saved), predicted, is_exact

    def _ask(self, size: int, adapter: str | None) -> tuple[list[int], int, list[Depths]]:
        assert self._request.tokens is not None
        keys = self._request.tokens.keys(size, adapter)
        grain = grain_of(len(keys)) if self._is_coarse else 1
        depths = self._index.match(keys, self._reach, self._bits, grain)
        found = self._chains[size, adapter] = keys, grain, depths
        return found


def _bits(endpoints: Sequence[Endpoint], sources: Mapping[str, Sequence[EventSource]]) -> int:
    bits = 0
    for endpoint in endpoints:
        for source in sources.get(endpoint.url, ()):
            bits |= source.blocks.bit
    return bits


def weigh(ranks: Sequence[Sequence[int]], *, is_exact: bool) -> Found:
    """Return what an engine has of a prompt.

    Parameters
    ----------
    ranks
        For each of its data-parallel ranks, for each tier, how many leading tokens it has there or in a faster one.
    is_exact
        Whether that is all.
    """
    saved, predicted = 0.0, 0
    for reached in ranks:
        depth = 0
        for tier, weight in TIER_WEIGHTS.items():
            if reached[tier] > depth:
                saved += (reached[tier] - depth) * weight
                depth = reached[tier]
        predicted += depth
    return int(saved / len(ranks)), predicted // len(ranks), is_exact


def is_explained(model: str, endpoint: Endpoint) -> bool:
    """Return whether it is known if a name means an endpoint's model or an adapter.

    Not so where an operator named the models and the endpoint has not described this one: an adapter taken for its
    model would be expected to find the model's blocks.
    """
    return not endpoint.models_are_given or not model or model in endpoint.model_cards


def adapter_of(model: str, endpoint: Endpoint) -> str | None:
    """Return the adapter that a model's name means at an endpoint: vLLM's cards of adapters name what they adapt."""
    card = endpoint.model_cards.get(model)
    return None if card is None or parent_of(card) is None else model
