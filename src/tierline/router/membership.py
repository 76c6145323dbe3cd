"""Endpoints come and go while requests run: what each brings with it begins here, and ends here.

An endpoint that was added is offered to strategies. One that *drains* is offered to none, and removed when its last
request has ended. One that was *removed* is in no list; its requests still end by themselves, and only then is its
position another's, so whatever these report is never taken for a report on somebody else.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Protocol

from tierline import logs
from tierline.errors import EndpointConflict
from tierline.router.choosing import Choosing
from tierline.router.endpoints import Endpoint, Endpoints
from tierline.router.proxy.upstream import UpstreamPool
from tierline.router.specs import EndpointSpec

log = logs.get(__name__)


class Companion(Protocol):
    """Does something for each endpoint as long as it is here."""

    def joined(self, endpoint: Endpoint) -> None:
        """It was added."""

    def left(self, endpoint: Endpoint) -> None:
        """It was removed; requests that it has may still run."""


class Membership:
    """Changes the set of endpoints.

    Invariants: ``pools`` has one for each endpoint that was added and not released. ``_leaving`` are those that were
    removed and not released.

    Parameters
    ----------
    endpoints
        The set.
    choosing
        Forgets an endpoint that is removed, and again, before its position is another's, what was reported since.
    pools
        Of connections, by :attr:`Endpoint.position`.
    build_pool
        Makes one.
    clock
        The router's.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        choosing: Choosing,
        pools: dict[int, UpstreamPool],
        build_pool: Callable[[Endpoint], UpstreamPool],
        clock: Callable[[], float],
    ) -> None:
        self._endpoints = endpoints
        self._choosing = choosing
        self._pools = pools
        self._build_pool = build_pool
        self._clock = clock
        self._wanted: dict[str, dict[str, EndpointSpec]] = {}
        self._leaving: list[Endpoint] = []
        self.companions: list[Companion] = []
        self.wanted_anew: Callable[[str], None] = _nobody
        """Called with the URL of an endpoint of which a source says something else than before."""

    # One by one -------------------------------------------------------------------------------------------------------

    def add(self, spec: EndpointSpec, source: str) -> Endpoint:
        """Add an endpoint, from now on; one that drains serves again.

        Raises
        ------
        EndpointConflict
            It is there already and does not drain, or there are as many as there can be.
        """
        return self._add(spec, source, self._clock())

    def _add(self, spec: EndpointSpec, source: str, joined_at: float) -> Endpoint:
        known = self._endpoints.find(spec.url)
        if known is not None and known.is_draining:
            known.is_draining = False
            self._apply(known, spec, source)
            log.info("endpoint serves again", endpoint=known.url, source=source)
            return known
        endpoint = self._endpoints.add(spec, source=source, joined_at=joined_at)
        self._pools[endpoint.position] = self._build_pool(endpoint)
        for companion in self.companions:
            companion.joined(endpoint)
        log.info("endpoint added", endpoint=endpoint.url, source=source)
        return endpoint

    def _apply(self, endpoint: Endpoint, spec: EndpointSpec, source: str) -> None:
        if (endpoint.kv_events, endpoint.node_events) == (spec.kv_events, spec.node_events):
            endpoint.apply(spec, source)
            return
        for companion in self.companions:  # who listens there begins anew
            companion.left(endpoint)
        endpoint.apply(spec, source)
        for companion in self.companions:
            companion.joined(endpoint)

    def drain(self, endpoint: Endpoint) -> None:
        """Let it have no new requests; it is removed when those that it has are over."""
        if not endpoint.is_draining:
            endpoint.is_draining = True
            log.info("endpoint drains", endpoint=endpoint.url, running=endpoint.own_inflight)

    def remove(self, endpoint: Endpoint) -> None:
        """Take it out of the set at once; requests that it has come to their end all the same."""
        self._endpoints.remove(endpoint)
        for companion in self.companions:
            companion.left(endpoint)
        self._choosing.forget(endpoint)
        self._pools[endpoint.position].close()
        self._leaving.append(endpoint)
        log.info("endpoint removed", endpoint=endpoint.url, running=endpoint.own_inflight)

    def sweep(self) -> None:
        """Remove the drained and release the removed whose requests are over."""
        for endpoint in self._endpoints.all:
            if endpoint.is_draining and not endpoint.own_inflight:
                self.remove(endpoint)
        for endpoint in [endpoint for endpoint in self._leaving if not endpoint.own_inflight]:
            self._leaving.remove(endpoint)
            self._choosing.forget(endpoint)
            self._pools.pop(endpoint.position).close()
            self._endpoints.release(endpoint)

    # As a source wants them -------------------------------------------------------------------------------------------

    def follow(self, source: str, specs: Sequence[EndpointSpec], *, from_start: bool = False) -> None:
        """Bring the set to what ``source`` wants now.

        Only what changed since the source was followed last is done: what an operator drained or removed stays so while
        its entry stays the same. An endpoint that another source named first is left to that.

        Parameters
        ----------
        source
            Who wants them; its former wishes are those of that name.
        specs
            All that it wants.
        from_start
            They are not new, only the router is.
        """
        before, wanted = self._wanted.get(source, {}), {spec.url: spec for spec in specs}
        self._wanted[source] = wanted
        for url in before.keys() - wanted.keys():
            endpoint = self._endpoints.find(url)
            if endpoint is not None and endpoint.source == source:
                self.drain(endpoint)
        for url, spec in wanted.items():
            if before.get(url) != spec:
                if not from_start:
                    self.wanted_anew(url)
                self._want(spec, source, -inf if from_start else self._clock())

    def _want(self, spec: EndpointSpec, source: str, joined_at: float) -> None:
        known = self._endpoints.find(spec.url)
        if known is not None and known.source == source and not known.is_draining:
            self._apply(known, spec, source)
            log.info("endpoint changed", endpoint=known.url, source=source)
            return
        try:
            self._add(spec, source, joined_at)
        except EndpointConflict as error:
            log.warning("endpoint is wanted and cannot be added", endpoint=spec.url, source=source, why=str(error))


def _nobody(url: str) -> None:
    """Where an operator's word is in no other process."""
