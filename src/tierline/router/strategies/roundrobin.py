"""Round robin in the ratio of the endpoints' weights, the turns of each spread evenly over the round.

Stride scheduling (Waldspurger and Weihl, 1995): an endpoint's next turn is due ``1 / weight`` after its last one, on a
clock that stands where the latest turn was due; the one that is due first has the turn. So a change of the set or of a
weight neither restarts the round nor lets anyone make up for turns that it was not there to take.
"""

from collections.abc import Sequence

from tierline.router.endpoints import Endpoint
from tierline.router.strategies.base import Decision, RoutingRequest, share


class RoundRobin:
    """Turns by weight.

    Invariants: ``_clock`` never goes back, and no endpoint that was offered each time is due before it.
    ``_last_turns`` holds, for each endpoint that had a turn, a different number, later is larger: it breaks ties.

    ``choose`` writes down when an endpoint that it did not know is due. That changes no choice: asked again, it finds
    the same.
    """

    name = "roundrobin"

    def __init__(self) -> None:
        self._clock = 0.0
        self._turns = 0
        self._latest: Endpoint | None = None
        """Who had the last turn."""
        self._last_turns: dict[str, int] = {}
        self._due: dict[str, float] = {}

    def choose(self, request: RoutingRequest, endpoints: Sequence[Endpoint]) -> Decision:
        """See :class:`~tierline.router.strategies.base.Strategy`."""
        if not self._is_up(endpoints):
            self._bring_up(endpoints, request.now)
        due, last_turns = self._due, self._last_turns
        chosen = endpoints[0]
        earliest = due[chosen.url]
        for endpoint in endpoints:
            at = due[endpoint.url]
            if at < earliest or (at == earliest and last_turns.get(endpoint.url, 0) < last_turns.get(chosen.url, 0)):
                chosen, earliest = endpoint, at
        return Decision(chosen, "turn")

    def placed(self, request: RoutingRequest, decision: Decision) -> None:
        """Count the turn."""
        endpoint = decision.endpoint
        self._latest = endpoint
        self._turns += 1
        self._last_turns[endpoint.url] = self._turns
        self._clock = self._due.get(endpoint.url, self._clock)
        self._due[endpoint.url] = self._clock + 1 / share(endpoint, request.now)

    def withdrawn(self, request: RoutingRequest, decision: Decision) -> None:
        """A turn taken is taken, whatever became of the request."""

    def forget(self, endpoint: Endpoint) -> None:
        """An endpoint that comes back is a new one."""
        self._due.pop(endpoint.url, None)
        self._last_turns.pop(endpoint.url, None)

    def _is_up(self, endpoints: Sequence[Endpoint]) -> bool:
        """Whether all are known and due in the future, and nobody was away: as nearly always."""
        due, clock = self._due, self._clock
        for endpoint in endpoints:
            at = due.get(endpoint.url)
            if at is None or at < clock:
                return False
        return self._latest in endpoints

    def _bring_up(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """Let nobody be due in the past.

        Endpoints that were all away (of a model that nobody asked for meanwhile) come back as they stood against each
        other; one that was away while others had turns comes back as a new one.
        """
        due = self._due
        latest = max((due.get(e.url, 0.0) - 1 / share(e, now) for e in endpoints), default=0.0)
        behind = self._clock - latest
        for endpoint in endpoints:
            step = 1 / share(endpoint, now)
            at = due.get(endpoint.url)
            if at is not None and behind > 0:
                at += behind
            if at is None or at < self._clock:
                at = self._clock + step / 2
            due[endpoint.url] = at
