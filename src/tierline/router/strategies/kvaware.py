"""Prefix affinity by what engines say that they hold: the cost of ``prefixaware``, with its depths from KV events.

For each endpoint and each request the best that is known counts: where all of an endpoint's sources are *exact*, their
index; where one is *degraded*, which makes the index a lower bound, the longer of index and guess; else, or when the
prompt's tokens are not known, the guess of ``prefixaware``, which goes on learning all the while.

Two rules beside it:

- **A tier costs what reading from it costs**: a block saves its tokens times its tier's weight. Blocks count up to the
  first that no tier has; one behind a block of a slower tier counts as that tier's. What the store of an endpoint's
  node holds (:mod:`~tierline.router.events.stored`), as far as it goes beyond all that, is read from the host's memory;
  what other stores of its pool hold beyond that costs what shared storage costs.
- **Sent is expected**: blocks of a prompt that was just sent count as held there until it should be computed, by what
  waits there, and two seconds more, or until its events say so. Requests with a new prefix that come at once would part
  otherwise, and under load all that come while the first of them waits.

What is known comes from this process's own index, or, where another process has it, with the request (``told``).

An engine of several data-parallel ranks chooses one by itself: the mean over its ranks is what to expect.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from tierline.router.depths import Depths, grain_of
from tierline.router.endpoints import Endpoint, parent_of
from tierline.router.events.index import BlockIndex, SourceBlocks, Tier
from tierline.router.events.keys import PromptTokens
from tierline.router.events.source import EventSource
from tierline.router.events.stored import StoreBlocks, StoreIndex, StoreLookup
from tierline.router.strategies.base import APPROXIMATE, BOUND, EXACT, Decision, Found, Held, RoutingRequest
from tierline.router.strategies.prefixaware import Holding, PrefixAware

TIER_WEIGHTS: Mapping[Tier, float] = {Tier.GPU: 1.0, Tier.HOST: 0.8, Tier.STORAGE: 0.3, Tier.SHARED: 0.6}
"""What a token saves that is read from a tier: 1 less what reading it takes, in times of computing it. For a model of
70B parameters (320 KiB a token) on eight GPUs computing is as fast as reading 7 GB/s: so 35 GB/s of the host's memory
save 0.8, 18 GB/s of a network 0.6, 10 GB/s of disks 0.3."""
USUAL_WEIGHTS = tuple(TIER_WEIGHTS[tier] for tier in Tier)
_WEIGHTS_ALLOWED = "gpu=1, host=0.8, shared=0.6, storage=0.3 or the like, each from 0 to 1"
_SLOWER = tuple(TIER_WEIGHTS)[1:]
_NOTHING_SLOWER = (0,) * len(_SLOWER)
STORES_SHARE = 8
"""The index of node stores may use so much less than that of engines: its blocks are 16 times as long."""
EXPECTED_SECONDS = 2.0
EXPECTED_AT_MOST_SECONDS = 60.0
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
    predicted
        Counter: tokens that were to be read for prompts that were sent, by tier.
    weights
        What a token saves that is read from a tier, by tier.
    measured
        The tiers for which what a store's engines measured counts more than :attr:`weights`.
    """

    name = "kvaware"

    def __init__(self, endpoints: int, index_bytes: int, kv_index_bytes: int) -> None:
        super().__init__(endpoints, index_bytes)
        self.blocks = BlockIndex(kv_index_bytes)
        self.sources: dict[str, Sequence[EventSource]] = {}
        """By the URL of the endpoint that they tell about."""
        self.stored = StoreIndex(kv_index_bytes // STORES_SHARE)
        self.stores: dict[str, EventSource[StoreBlocks]] = {}
        """By the URL of the endpoint whose engine reads the store."""
        self.lookups: Counter[str] = Counter()
        self.predicted: Counter[Tier] = Counter(dict.fromkeys(Tier, 0))
        self.weights: Sequence[float] = USUAL_WEIGHTS
        self.measured: frozenset[Tier] = frozenset({Tier.HOST, Tier.SHARED})

    def share_index_of(self, other: "KvAware") -> None:
        """Read what another one is told: which blocks engines have is the same for every strategy."""
        self.blocks, self.sources, self.lookups = other.blocks, other.sources, other.lookups
        self.stored, self.stores, self.predicted = other.stored, other.stores, other.predicted

    def held(self, request: RoutingRequest, endpoints: Sequence[Endpoint]) -> list[Held]:
        """See :class:`~tierline.router.strategies.prefixaware.PrefixAware`."""
        if request.tokens is None:
            self.lookups[APPROXIMATE] += len(endpoints)
            return super().held(request, endpoints)
        lookup = request.told or _Lookup(self.blocks, request, endpoints, self.sources, self.weights)
        held: list[Held] = []
        guesses: list[Held] = []  # made once one is needed: not where all sources are exact
        exact = bounds = 0
        total = len(request.blocks)  # asked for first, for only then their tokens are known
        model, block_tokens = request.model, request.block_tokens or 1
        for place, endpoint in enumerate(endpoints):
            found = lookup.found(endpoint) if is_explained(model, endpoint) else None
            if found is None:
                guesses = guesses or super().held(request, endpoints)
                held.append(guesses[place])
                continue
            saved, predicted, is_exact, _ = found
            if is_exact:
                exact += 1
            else:
                bounds += 1
                guesses = guesses or super().held(request, endpoints)
                if saved < guesses[place][1]:
                    held.append(guesses[place])
                    continue
            depth = predicted // block_tokens
            held.append((depth if depth < total else total, saved, predicted))
        self.lookups[EXACT] += exact
        self.lookups[BOUND] += bounds
        self.lookups[APPROXIMATE] += len(endpoints) - exact - bounds
        if not self.stores:
            return held
        stores = self._ask_stores(request.tokens)
        return [
            self._with_store(request, endpoint, stores, Holding(*of_engine, remembered=0))[:3]
            for endpoint, of_engine in zip(endpoints, held, strict=True)
        ]

    def held_by(self, request: RoutingRequest, endpoint: Endpoint, endpoints: Sequence[Endpoint]) -> Holding:
        """See :class:`~tierline.router.strategies.prefixaware.PrefixAware`."""
        held = super().held_by(request, endpoint, endpoints)
        if request.tokens is None or not is_explained(request.model, endpoint):
            return held
        lookup = request.told or _Lookup(self.blocks, request, endpoints, self.sources, self.weights, only=endpoint)
        found = lookup.found(endpoint)
        if found is not None and (found[2] or found[0] >= held.saved):
            saved, predicted, is_exact, tiers = found
            held = Holding(
                min(len(request.blocks), predicted // (request.block_tokens or 1)),
                saved,
                predicted,
                held.remembered,
                tiers or (predicted, *_NOTHING_SLOWER),
                EXACT if is_exact else BOUND,
            )
        return self._with_store(request, endpoint, self._ask_stores(request.tokens), held)

    def known(self, request: RoutingRequest, endpoint: Endpoint) -> str:
        """Return what an endpoint's caches are judged by for this request."""
        return self.held_by(request, endpoint, (endpoint,)).confidence

    def _ask_stores(self, tokens: PromptTokens) -> StoreLookup:
        """Return a request's questions to the node stores, and to pools of those that are sure of what they hold."""
        pools: dict[str, int] = {}
        for source in self.stores.values():
            if (pool := source.blocks.pool) and source.is_telling:
                pools[pool] = pools.get(pool, 0) | source.blocks.bit
        return StoreLookup(self.stored, tokens, pools)

    def _with_store(self, request: RoutingRequest, endpoint: Endpoint, stores: StoreLookup, held: Holding) -> Holding:
        """Return what an endpoint holds together with the store of its node, and with the pool that this is in."""
        source = self.stores.get(endpoint.url)
        if source is None or not source.is_telling or not is_explained(request.model, endpoint):
            return held
        saved, predicted = held.saved, held.predicted
        own, pooled = stores.held_tokens(source.blocks, endpoint.models, adapter_of(request.model, endpoint))
        if own <= predicted and pooled <= predicted:
            return held
        tiers = list(held.by_tier or (predicted, *_NOTHING_SLOWER))
        for tier, tokens in ((Tier.HOST, own), (Tier.SHARED, pooled)):
            if tokens > predicted:
                tiers[tier] += tokens - predicted
                measured = source.blocks.saves.get(tier.name.lower()) if tier in self.measured else None
                saved += int((tokens - predicted) * (self.weights[tier] if measured is None else measured))
                predicted = tokens
        return held._replace(
            depth=min(len(request.blocks), predicted // (request.block_tokens or 1)),
            saved=saved,
            predicted=predicted,
            by_tier=tiers,
            # It was told to be there, whatever else the engine has.
            confidence=held.confidence if held.confidence == EXACT and source.is_exact else BOUND,
        )

    def placed(self, request: RoutingRequest, decision: Decision) -> None:
        """Expect the endpoint to hold the prompt from now on."""
        super().placed(request, decision)
        for tier, tokens in zip(Tier, decision.predicted_by_tier, strict=False):
            self.predicted[tier] += tokens
        if request.tokens is None or not is_explained(request.model, decision.endpoint):
            return
        lasts_s = _computed_in_s(request, decision)
        if request.told is not None:
            request.told.placed(decision.endpoint, lasts_s)
        for blocks, keys in self._expecting(request, request.tokens, decision.endpoint):
            blocks.expect(keys, request.now, request.now + lasts_s)

    def withdrawn(self, request: RoutingRequest, decision: Decision) -> None:
        """Expect the endpoint to hold no more of the prompt than before."""
        super().withdrawn(request, decision)
        if request.tokens is None or not is_explained(request.model, decision.endpoint):
            return
        if request.told is not None:
            request.told.withdrawn(decision.endpoint)
        for blocks, keys in self._expecting(request, request.tokens, decision.endpoint):
            blocks.expected.withdraw(keys)

    def _expecting(
        self, request: RoutingRequest, tokens: PromptTokens, endpoint: Endpoint
    ) -> Iterator[tuple[SourceBlocks, list[int]]]:
        """Yield where a prompt is expected, and as which blocks; of several ranks nobody knows which one gets it."""
        sources = self.sources.get(endpoint.url, ())
        if len(sources) == 1 and (size := sources[0].blocks.block_tokens) is not None:
            yield sources[0].blocks, tokens.keys(size, adapter_of(request.model, endpoint))

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
    weights
        Of the tiers.
    only
        The one that is asked about, and then exactly; without it, all, and up to a small part of the prompt.
    """

    def __init__(
        self,
        index: BlockIndex,
        request: RoutingRequest,
        endpoints: Sequence[Endpoint],
        sources: Mapping[str, Sequence[EventSource]],
        weights: Sequence[float],
        *,
        only: Endpoint | None = None,
    ) -> None:
        self._sources = sources
        self._weights = weights
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
        slower: list[int] = []
        adapter = adapter_of(self._model, endpoint) if endpoint.model_cards else None
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
            depth = depths[0].get(blocks.slot, 0)  # the engine's own cache
            if blocks.expected:
                start = depth + grain - 1 if depth else 0  # it holds no more than that
                run = blocks.expected.run(keys, start, self._request.now)
                depth = start + run if run else depth
            saved += depth * size * self._weights[0]
            if depths[-1] is not depths[0]:
                slower = slower or [0] * len(Tier)
                for tier in _SLOWER:
                    deeper = depths[tier].get(blocks.slot, 0)
                    if deeper > depth:
                        saved += (deeper - depth) * size * self._weights[tier]
                        slower[tier] += (deeper - depth) * size
                        depth = deeper
            predicted += depth * size
        if len(sources) == 1 and not slower:  # as nearly all engines, with no mean to take
            return int(saved), predicted, is_exact, ()
        return _mean(saved, predicted, slower, len(sources), is_exact=is_exact)

    def _ask(self, size: int, adapter: str | None) -> tuple[list[int], int, list[Depths]]:
        assert self._request.tokens is not None
        keys = self._request.tokens.keys(size, adapter)
        grain = grain_of(len(keys)) if self._is_coarse else 1
        depths = self._index.match(keys, self._reach, self._bits, grain)
        found = self._chains[size, adapter] = keys, grain, depths
        return found


def _computed_in_s(request: RoutingRequest, decision: Decision) -> float:
    """Return how long a prompt that is sent now is expected where it goes."""
    endpoint = decision.endpoint
    speed = endpoint.prefill_rate
    if speed is None:
        return EXPECTED_SECONDS
    waits_s = (endpoint.waiting_tokens(request.now) + decision.uncached_tokens) / speed
    return min(waits_s + EXPECTED_SECONDS, EXPECTED_AT_MOST_SECONDS)


def _bits(endpoints: Sequence[Endpoint], sources: Mapping[str, Sequence[EventSource]]) -> int:
    bits = 0
    for endpoint in endpoints:
        for source in sources.get(endpoint.url, ()):
            bits |= source.blocks.bit
    return bits


def _mean(saved: float, predicted: int, slower: list[int], ranks: int, *, is_exact: bool) -> Found:
    """Return what each of so many ranks has on average; ``slower`` is by tier, without what the fastest has."""
    predicted //= ranks
    if not slower:
        return int(saved / ranks), predicted, is_exact, ()
    tiers = [tokens // ranks for tokens in slower]
    tiers[0] = predicted - sum(tiers)
    return int(saved / ranks), predicted, is_exact, tiers


def weigh(ranks: Sequence[Sequence[int]], weights: Sequence[float], *, is_exact: bool) -> Found:
    """Return what an engine has of a prompt.

    Parameters
    ----------
    ranks
        For each of its data-parallel ranks, for each tier, how many leading tokens it has there or in a faster one.
    weights
        Of the tiers.
    is_exact
        Whether that is all.
    """
    saved, predicted = 0.0, 0
    slower = [0] * len(Tier)
    for reached in ranks:
        depth = 0
        for tier in Tier:
            if reached[tier] > depth:
                saved += (reached[tier] - depth) * weights[tier]
                slower[tier] += (reached[tier] - depth) if tier else 0
                depth = reached[tier]
        predicted += depth
    return _mean(saved, predicted, slower, len(ranks), is_exact=is_exact)


def measured_of(entries: Sequence[str]) -> frozenset[Tier]:
    """Return the tiers whose weights ``entries`` leave to what engines measure.

    >>> sorted(tier.name for tier in measured_of(["host=0.9"]))
    ['SHARED']
    """
    return frozenset({Tier.HOST, Tier.SHARED}) - {Tier[entry.partition("=")[0].upper()] for entry in entries}


def weights_of(entries: Sequence[str]) -> tuple[float, ...]:
    """Return the weights of all tiers, with those that ``TIER=WEIGHT`` says in place of the usual ones.

    Raises
    ------
    ValueError
        Saying what is allowed.

    >>> weights_of(["host=0.9"])
    (1.0, 0.9, 0.3, 0.6)
    """
    weights = dict(TIER_WEIGHTS)
    for entry in entries:
        name, _, weight = entry.partition("=")
        try:
            weights[Tier[name.upper()]] = float(weight)
        except (KeyError, ValueError):
            raise ValueError(_WEIGHTS_ALLOWED) from None
    if not all(0 <= weight <= 1 for weight in weights.values()):
        raise ValueError(_WEIGHTS_ALLOWED)
    return tuple(weights[tier] for tier in Tier)


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
