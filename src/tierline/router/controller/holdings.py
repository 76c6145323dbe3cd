"""What a controller knows: its endpoints, who wants them, and how much of a prompt each holds. No sockets of routers.

An endpoint is listened to as long as anybody wants it: the command line, a file, or a router. Where several name
different addresses of events for one, the first who did decides, until he wants it no more.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tierline import logs
from tierline.errors import WireError
from tierline.router.depths import Depths as IndexDepths
from tierline.router.events.addresses import parse_addresses
from tierline.router.events.index import BlockIndex, Tier
from tierline.router.events.lmcache import LmcacheInstance, LmcacheInstances
from tierline.router.events.messages import (
    KEY_BYTES,
    OWN_SCHEME,
    Chain,
    Depths,
    Lookup,
    Placed,
    SourceDepths,
    Withdrawn,
    unpack_keys,
)
from tierline.router.events.source import EventSource
from tierline.router.events.subscriber import EventSubscriptions
from tierline.router.specs import MAX_ENDPOINTS, EndpointSpec

log = logs.get(__name__)

EXPECTED_KEYS = 65_536
"""Of one prompt; a million tokens in blocks of 16."""
_NOTHING = [0] * len(Tier)


class Lmcache(NamedTuple):
    """What LMCache's workers hold, and how they name it."""

    instances: LmcacheInstances
    scheme: str
    chunk_tokens: int


class Holdings:
    """The endpoints and their sources.

    Invariant: an endpoint is in ``sources`` exactly when somebody wants it, with the address in ``_followed``.

    Parameters
    ----------
    budget_bytes
        Memory for the index.
    wall_clock
        Seconds since 1970, to which events' timestamps are compared.
    clock
        Monotonic, for what is expected.

    Attributes
    ----------
    lookups
        Counter: sources that were asked about, by how far each could be believed.
    lmcache
        Set where LMCache's workers are listened to.
    """

    def __init__(self, budget_bytes: int, wall_clock: Callable[[], float], clock: Callable[[], float]) -> None:
        self.index = BlockIndex(budget_bytes)
        self.subscriptions = EventSubscriptions(self.index, wall_clock)
        self.sources: dict[str, Sequence[EventSource]] = {}
        self.lookups: Counter[str] = Counter()
        self.lmcache: Lmcache | None = None
        self._clock = clock
        self._wanted: dict[str, dict[str, str]] = {}
        self._followed: dict[str, str] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop listening."""
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self.subscriptions.close()

    # Endpoints --------------------------------------------------------------------------------------------------------

    def follow(self, source: str, specs: Sequence[EndpointSpec], *, from_start: bool = False) -> None:  # noqa: ARG002
        """Listen to the endpoints that ``source`` wants now, and to those of others no less."""
        for spec in specs:
            if spec.kv_events is None:
                log.warning("endpoint has no kv_events: nothing can be said of it", endpoint=spec.url)
        self.want(source, {spec.url: spec.kv_events for spec in specs if spec.kv_events is not None})

    def want(self, who: str, addresses: Mapping[str, str]) -> None:
        """Have the endpoints that ``who`` wants be these.

        Parameters
        ----------
        addresses
            Where they publish KV events, by their URL.
        """
        if addresses:
            self._wanted[who] = dict(addresses)
        else:
            self._wanted.pop(who, None)
        wanted: dict[str, str] = {}
        for of_one in self._wanted.values():
            for url, address in of_one.items():
                wanted.setdefault(url, address)
        for url, address in list(self._followed.items()):
            if wanted.get(url) != address:
                self._leave(url)
        for url, address in wanted.items():
            if url not in self._followed:
                self._join(url, address)

    def _join(self, url: str, address: str) -> None:
        if len(self._followed) >= MAX_ENDPOINTS:
            log.warning("endpoint is wanted and cannot be listened to: too many", endpoint=url, most=MAX_ENDPOINTS)
            return
        self._followed[url] = address
        self.sources[url] = self.subscriptions.add(url, parse_addresses(address))
        log.info("endpoint is listened to", endpoint=url, ranks=len(self.sources[url]))

    def _leave(self, url: str) -> None:
        del self._followed[url], self.sources[url]
        task = asyncio.get_running_loop().create_task(self.subscriptions.remove(url))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        log.info("endpoint is listened to no more", endpoint=url)

    # Answering --------------------------------------------------------------------------------------------------------

    def answer(self, lookup: Lookup) -> Depths:
        """Return what the endpoints of a lookup hold.

        Raises
        ------
        WireError
            The lookup cannot be one.
        """
        return Depths(lookup.id, _Answer(self, lookup).endpoints())

    def expect(self, placed: Placed) -> None:
        """Count with a prompt's blocks that are on their way to be computed."""
        source = self._only_source(placed.endpoint, placed.chain)
        if source is not None:
            now = self._clock()
            source.blocks.expect(_keys(placed.chain)[:EXPECTED_KEYS], now, now + placed.lasts_s)

    def unexpect(self, withdrawn: Withdrawn) -> None:
        """Count with them no more."""
        source = self._only_source(withdrawn.endpoint, withdrawn.chain)
        if source is not None:
            source.blocks.expected.withdraw(_keys(withdrawn.chain)[:EXPECTED_KEYS])

    def now(self) -> float:
        """What is expected until later counts."""
        return self._clock()

    def _only_source(self, url: str, chain: Chain) -> EventSource | None:
        """Return the source that the blocks of a chain belong to; of several ranks nobody knows which gets them."""
        sources = self.sources.get(url, ())
        if len(sources) != 1 or (OWN_SCHEME, sources[0].blocks.block_tokens) != (chain.scheme, chain.block_tokens):
            return None
        return sources[0]


class _Answer:
    """The answer to one lookup. Each chain is followed through the index once, for all endpoints that it is for."""

    def __init__(self, holdings: Holdings, lookup: Lookup) -> None:
        self._holdings = holdings
        self._lookup = lookup
        self._reach = 0
        for endpoint in lookup.endpoints:
            for source in holdings.sources.get(endpoint, ()):
                self._reach |= source.blocks.bit
        self._cuts: dict[tuple[str, int | None], list[int]] = {}
        for place, chain in enumerate(lookup.chains):
            self._cuts.setdefault((chain.scheme, chain.block_tokens), []).append(place)
        self._keys: dict[int, list[int]] = {}
        self._found: dict[int, tuple[list[int], list[IndexDepths]]] = {}

    def endpoints(self) -> list[list[SourceDepths]]:
        """Return what each holds."""
        sources_of, lookups, lmcache = self._holdings.sources, self._holdings.lookups, self._holdings.lmcache
        answers = []
        for place, endpoint in enumerate(self._lookup.endpoints):
            found = [self._of_source(place, source) for source in sources_of.get(endpoint, ())]
            if lmcache is not None and (instance := lmcache.instances.by_endpoint.get(endpoint)) is not None:
                found.append(self._of_instance(place, instance, lmcache))
            for answer in found:
                lookups[answer.state.value] += 1
            answers.append(found)
        return answers

    def _of_source(self, endpoint: int, source: EventSource) -> SourceDepths:
        blocks, standing = source.blocks, source.standing
        chain = self._chain_for(endpoint, OWN_SCHEME, blocks.block_tokens)
        if chain < 0 or not source.is_telling:
            return SourceDepths(standing, OWN_SCHEME, blocks.block_tokens, chain, _NOTHING)
        keys, found = self._found.get(chain) or self._follow(chain)
        depth = found[Tier.GPU].get(blocks.slot, 0)
        if blocks.expected:
            depth += blocks.expected.run(keys, depth, self._holdings.now())
        tiers = [max(depth, in_tier.get(blocks.slot, 0)) for in_tier in found]
        return SourceDepths(standing, OWN_SCHEME, blocks.block_tokens, chain, tiers)

    def _of_instance(self, endpoint: int, instance: LmcacheInstance, lmcache: Lmcache) -> SourceDepths:
        chain = self._chain_for(endpoint, lmcache.scheme, lmcache.chunk_tokens)
        tiers = _NOTHING if chain < 0 else instance.depths(self._keys_of(chain))
        standing = instance.standing(self._holdings.now())
        return SourceDepths(standing, lmcache.scheme, lmcache.chunk_tokens, chain, tiers)

    def _chain_for(self, endpoint: int, scheme: str, block_tokens: int | None) -> int:
        """Return which of the chains is of a source's cut and for its endpoint; -1 for none."""
        for place in self._cuts.get((scheme, block_tokens), ()):
            endpoints = self._lookup.chains[place].endpoints
            if not endpoints or endpoint in endpoints:
                return place
        return -1

    def _keys_of(self, place: int) -> list[int]:
        keys = self._keys.get(place)
        if keys is None:
            keys = self._keys[place] = _keys(self._lookup.chains[place])
        return keys

    def _follow(self, place: int) -> tuple[list[int], list[IndexDepths]]:
        keys = self._keys_of(place)
        found = self._found[place] = keys, self._holdings.index.match(keys, self._reach, self._reach)
        return found


def _keys(chain: Chain) -> list[int]:
    if len(chain.keys) % KEY_BYTES:
        raise WireError("a chain that ends within a key")
    return unpack_keys(chain.keys)
