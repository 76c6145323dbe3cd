"""Listens to each endpoint's KV events as long as the endpoint is here, and shows in the metrics how that stands."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tierline import logs
from tierline.metrics import families
from tierline.router.endpoints import Endpoint
from tierline.router.events.addresses import parse_addresses
from tierline.router.events.source import EventSource, SourceState
from tierline.router.events.subscriber import EventSubscriptions

if TYPE_CHECKING:
    from tierline.router.strategies.kvaware import KvAware
    from tierline.router.tokens import TokenLadder

log = logs.get(__name__)

_PREFIX = "tierline_router_kv"


class EventFollower(Collector):
    """A companion of the set of endpoints (:class:`~tierline.router.membership.Companion`) for a strategy.

    An endpoint without an address of events is routed to by the approximate index; that is said once, when it joins,
    where the strategy is every model's.
    """

    def __init__(
        self, strategy: "KvAware", ladder: "TokenLadder", subscriptions: EventSubscriptions, *, is_for_all: bool = True
    ) -> None:
        self._strategy = strategy
        self._ladder = ladder
        self._subscriptions = subscriptions
        self._is_for_all = is_for_all
        self._ending: set[asyncio.Task[None]] = set()

    def joined(self, endpoint: Endpoint) -> None:
        """Subscribe."""
        if endpoint.kv_events is None:
            if self._is_for_all:
                log.warning("endpoint has no kv_events: what it holds is guessed", endpoint=endpoint.url)
            return
        sources = self._subscriptions.add(endpoint.url, parse_addresses(endpoint.kv_events))
        self._strategy.sources[endpoint.url] = sources

    def left(self, endpoint: Endpoint) -> None:
        """Forget all that was told."""
        if self._strategy.sources.pop(endpoint.url, None) is not None:
            task = asyncio.get_running_loop().create_task(self._subscriptions.remove(endpoint.url))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End all subscriptions."""
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self._subscriptions.close()

    def collect(self) -> Iterable[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        yield from source_families(_PREFIX, self._strategy.sources, self._subscriptions)
        yield families.gauge(f"{_PREFIX}_index_bytes", self._strategy.blocks.size_bytes)
        yield from routing_families(self._strategy, self._ladder)


def source_families(
    prefix: str, sources_of: Mapping[str, Sequence[EventSource]], subscriptions: EventSubscriptions
) -> Iterator[Metric]:
    """Yield how each source stands.

    Parameters
    ----------
    prefix
        Of the metrics' names.
    sources_of
        By endpoint.
    subscriptions
        Which feed them.
    """
    sources = [
        (endpoint, str(rank), source)
        for endpoint, of_endpoint in sources_of.items()
        for rank, source in enumerate(of_endpoint)
    ]
    state = families.gauges(f"{prefix}_source_state", {})
    for endpoint, rank, source in sources:
        for candidate in SourceState:
            state.add_metric((endpoint, rank, candidate.value), source.state is candidate)
    yield state
    blocks = families.gauges(f"{prefix}_source_blocks", {})
    waiting = families.gauges(f"{prefix}_source_waiting_blocks", {})
    lag = families.gauges(f"{prefix}_event_lag_seconds", {})
    events = families.counters(f"{prefix}_events_total", {})
    for endpoint, rank, source in sources:
        blocks.add_metric((endpoint, rank), len(source.blocks))
        waiting.add_metric((endpoint, rank), source.blocks.waiting)
        lag.add_metric((endpoint, rank), source.lag_s)
        malformed = subscriptions.by_endpoint[endpoint][int(rank)].malformed
        for kind, count in _counts(source, malformed).items():
            events.add_metric((endpoint, rank, kind), count)
    yield from (blocks, waiting, lag, events)


def routing_families(strategy: "KvAware", ladder: "TokenLadder") -> Iterator[Metric]:
    """Yield how far prompts and endpoints were known when requests were routed."""
    yield families.counters(f"{_PREFIX}_lookups_total", strategy.lookups)
    predicted = {tier.name.lower(): count for tier, count in sorted(strategy.predicted.items())}
    yield families.counters(f"{_PREFIX}_predicted_tokens_total", predicted)
    yield families.counters(f"{_PREFIX}_prompts_total", ladder.rungs)
    yield families.counters(f"{_PREFIX}_local_tokens_total", ladder.tokenized)
    yield families.counters(f"{_PREFIX}_given_up_total", ladder.given_up)


def _counts(source: EventSource, malformed: int) -> dict[str, int]:
    return {
        "batch": source.messages,
        "gap": source.gaps,
        "restart": source.restarts,
        "malformed": malformed + source.unreadable,
        "unknown": source.unknown,
        "ignored": source.blocks.ignored,
        "orphan": source.blocks.orphans_dropped,
    }
