"""Round robin: the endpoint whose last turn is longest ago. The order outlives changes of the set."""

from collections.abc import Sequence

from tierline.router.endpoints import Endpoint
from tierline.router.strategies.base import Decision, RoutingRequest


class RoundRobin:
    """Even turns. Invariant: ``_last_turn`` holds, for each endpoint that had one, a different number, later is larger.

    Turns are counted per endpoint and not as a position in a list, so an endpoint that comes or goes, or that does not
    serve a model, neither restarts the round nor gives anyone two turns.
    """

    name = "roundrobin"

    def __init__(self) -> None:
        self._turns = 0
        self._last_turn: dict[str, int] = {}

    def choose(self, request: RoutingRequest, endpoints: Sequence[Endpoint]) -> Decision:  # noqa: ARG002
        """See :class:`~tierline.router.strategies.base.Strategy`."""
        last_turn = self._last_turn
        return Decision(min(endpoints, key=lambda endpoint: last_turn.get(endpoint.url, 0)), "turn")

    def placed(self, request: RoutingRequest, decision: Decision) -> None:  # noqa: ARG002
        """Count the turn."""
        self._turns += 1
        self._last_turn[decision.endpoint.url] = self._turns

    def withdrawn(self, request: RoutingRequest, decision: Decision) -> None:
        """A turn taken is taken, whatever became of the request."""

    def forget(self, endpoint: Endpoint) -> None:
        """A turn taken is taken, whatever became of the endpoint."""
