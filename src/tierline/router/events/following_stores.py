"""Listens to the node store of each endpoint that has one; endpoints of one node share what it tells."""

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tierline.metrics import families
from tierline.router.endpoints import Endpoint
from tierline.router.events.addresses import parse_addresses
from tierline.router.events.source import SourceState
from tierline.router.events.stored import StoreBlocks
from tierline.router.events.subscriber import EventSubscriptions

if TYPE_CHECKING:
    from tierline.router.strategies.kvaware import KvAware


class StoreContents(NamedTuple):
    """What a store holds, as it told."""

    standing: SourceState
    objects: dict[str, int]
    """By bucket."""


class StoreFollower(Collector):
    """A companion of the set of endpoints (:class:`~tierline.router.membership.Companion`) for a strategy.

    Invariant: an address is listened to exactly as long as it is in ``_users`` with an endpoint.

    Parameters
    ----------
    strategy
        Is shown the source of each endpoint's store.
    clock
        Wall clock.
    """

    def __init__(self, strategy: "KvAware", clock: Callable[[], float]) -> None:
        self._strategy = strategy
        self._clock = clock
        self._subscriptions: EventSubscriptions[StoreBlocks] | None = None
        self._users: dict[str, set[str]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def joined(self, endpoint: Endpoint) -> None:
        """Subscribe to its store, unless another endpoint has the same; raises ``UsageError`` without pyzmq."""
        address = endpoint.node_events
        if address is None:
            return
        if self._subscriptions is None:
            self._subscriptions = EventSubscriptions(self._strategy.stored, self._clock)
        users = self._users.setdefault(address, set())
        if not users:
            self._subscriptions.add(address, parse_addresses(address)[:1])
        users.add(endpoint.url)
        self._strategy.stores[endpoint.url] = self._subscriptions.by_endpoint[address][0].source

    def left(self, endpoint: Endpoint) -> None:
        """Forget what a store told when its last endpoint goes."""
        self._strategy.stores.pop(endpoint.url, None)
        for address, users in list(self._users.items()):
            users.discard(endpoint.url)
            if not users:
                assert self._subscriptions is not None
                del self._users[address]
                task = asyncio.get_running_loop().create_task(self._subscriptions.remove(address))
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

    def contents(self) -> dict[str, StoreContents]:
        """Return what each store holds, by its address."""
        if self._subscriptions is None:
            return {}
        sources = {address: self._subscriptions.by_endpoint[address][0].source for address in self._users}
        return {
            address: StoreContents(source.standing, source.blocks.by_bucket()) for address, source in sources.items()
        }

    async def close(self) -> None:
        """End all subscriptions."""
        await asyncio.gather(*self._ending, return_exceptions=True)
        if self._subscriptions is not None:
            await self._subscriptions.close()

    def collect(self) -> Iterable[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        state = families.gauges("tierline_router_kv_store_state", {})
        objects = families.gauges("tierline_router_kv_store_objects", {})
        engines = families.gauges("tierline_router_kv_store_engines", {})
        pool = families.gauges("tierline_router_kv_store_pool", {})
        events = families.counters("tierline_router_kv_store_events_total", {})
        for address in self._users:
            assert self._subscriptions is not None
            subscriber = self._subscriptions.by_endpoint[address][0]
            source = subscriber.source
            for candidate in SourceState:
                state.add_metric((address, candidate.value), source.state is candidate)
            objects.add_metric((address,), len(source.blocks))
            engines.add_metric((address,), source.blocks.engines)
            pool.add_metric((address, source.blocks.pool), 1)
            for kind, count in (
                ("batch", source.messages),
                ("gap", source.gaps),
                ("restart", source.restarts),
                ("malformed", subscriber.malformed + source.unreadable),
            ):
                events.add_metric((address, kind), count)
        yield from (state, objects, engines, pool, events)
        yield families.gauge("tierline_router_kv_store_index_bytes", self._strategy.stored.size_bytes)
