"""Session affinity: rendezvous hashing of the session's name, within a bound on load. Nothing is remembered."""

from collections.abc import Sequence

import xxhash

from tierline.router.endpoints import Endpoint
from tierline.router.strategies.base import Decision, RoutingRequest, load_bound, rendezvous


class SessionAffinity:
    """The same session goes to the same endpoint, in every router, until that endpoint has too much to do."""

    name = "session"

    def choose(self, request: RoutingRequest, endpoints: Sequence[Endpoint]) -> Decision:
        """See :class:`~tierline.router.strategies.base.Strategy`."""
        if not request.session:
            return Decision(min(endpoints, key=lambda endpoint: endpoint.inflight), "no-session")
        key = xxhash.xxh3_64_intdigest(request.session, xxhash.xxh3_64_intdigest(request.model.encode()))
        ranked = sorted(endpoints, key=lambda endpoint: rendezvous(key, endpoint), reverse=True)
        bound = load_bound(endpoints)
        for endpoint in ranked:
            if endpoint.inflight <= bound:
                return Decision(endpoint, "session" if endpoint is ranked[0] else "spill")
        raise AssertionError("no endpoint is below 1.25 times the mean")

    def placed(self, request: RoutingRequest, decision: Decision) -> None:
        """Nothing is remembered."""

    def withdrawn(self, request: RoutingRequest, decision: Decision) -> None:
        """Nothing is remembered."""

    def forget(self, endpoint: Endpoint) -> None:
        """Nothing is remembered."""
