"""Somebody else's choices, one request after the other: what a router chose elsewhere is repeated and not judged."""

from collections.abc import Iterable, Sequence

from tierline.router.endpoints import Endpoint
from tierline.router.strategies.base import Decision, RoutingRequest


class Prescribed:
    """That strategy; ``positions`` are of the endpoints, of each request in the order of coming."""

    name = "prescribed"

    def __init__(self, positions: Iterable[int]) -> None:
        self._positions = iter(positions)

    def choose(self, request: RoutingRequest, endpoints: Sequence[Endpoint]) -> Decision:  # noqa: ARG002
        """See :class:`~tierline.router.strategies.base.Strategy`; requests are asked about once each, as they come."""
        return Decision(endpoints[next(self._positions)], "prescribed")

    def placed(self, request: RoutingRequest, decision: Decision) -> None:
        """Nothing follows from it."""

    def withdrawn(self, request: RoutingRequest, decision: Decision) -> None:
        """Nothing follows from it."""

    def forget(self, endpoint: Endpoint) -> None:
        """Nothing was remembered."""
