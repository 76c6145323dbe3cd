"""Least load: the endpoint with the fewest requests in flight for its weight; among equals, in turns.

Prompts differ in length, so of endpoints with equally many requests the one with less prefill ahead of it is the freer.
"""

from collections.abc import Sequence

from tierline.router.endpoints import Endpoint
from tierline.router.strategies.base import Decision, RoutingRequest, shares_of
from tierline.router.strategies.roundrobin import RoundRobin


class LeastLoad:
    """The least loaded endpoint. It remembers nothing but whose turn it is."""

    name = "leastload"

    def __init__(self) -> None:
        self._turns = RoundRobin()

    def choose(self, request: RoutingRequest, endpoints: Sequence[Endpoint]) -> Decision:
        """See :class:`~tierline.router.strategies.base.Strategy`."""
        shares = shares_of(endpoints, request.now)
        loads = [(e.inflight / part, e.queued_tokens / part) for e, part in zip(endpoints, shares, strict=True)]
        least = min(loads)
        equals = [endpoint for endpoint, load in zip(endpoints, loads, strict=True) if load == least]
        return Decision(self._turns.choose(request, equals).endpoint, "least-load")

    def placed(self, request: RoutingRequest, decision: Decision) -> None:
        """Count the turn."""
        self._turns.placed(request, decision)

    def withdrawn(self, request: RoutingRequest, decision: Decision) -> None:
        """A turn taken is taken, whatever became of the request."""

    def forget(self, endpoint: Endpoint) -> None:
        """See :class:`~tierline.router.strategies.base.Strategy`."""
        self._turns.forget(endpoint)
