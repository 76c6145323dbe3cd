"""Session affinity: rendezvous hashing of the session's name, within a bound on load.

A session that had to leave its endpoint stays where it went, for that is where its KV is now; the bound moves it again
only when it must. Which sessions these are is all that is remembered, and of so many: those used longest ago go home.
"""

from collections import OrderedDict
from collections.abc import Sequence

import xxhash

from tierline.router.endpoints import Endpoint
from tierline.router.strategies.base import Decision, RoutingRequest, Witness, load_bounds, rendezvous
from tierline.router.strategies.leastload import LeastLoad

SPILLS_MAX = 65_536
"""Sessions remembered away from home; at most 14 MB."""


class SessionAffinity:
    """The same session goes to the same endpoint, in every router, until that endpoint has too much to do.

    Invariant: ``_spills`` holds sessions whose last request was placed elsewhere than the home they had then, with the
    URL of that place, in the order of their use.
    """

    name = "session"

    def __init__(self) -> None:
        self._spills: OrderedDict[int, str] = OrderedDict()
        self._without_session = LeastLoad()
        self.witness: Witness | None = None

    def choose(self, request: RoutingRequest, endpoints: Sequence[Endpoint]) -> Decision:
        """See :class:`~tierline.router.strategies.base.Strategy`."""
        if not request.session:
            return self._without_session.choose(request, endpoints)._replace(reason="no-session")
        key, now = _key(request), request.now
        bounds = load_bounds(endpoints, now)
        within = [e for e, bound in zip(endpoints, bounds, strict=True) if e.inflight <= bound]
        stays_at = self._spills.get(key)
        if stays_at is not None:
            for endpoint in within:
                if endpoint.url == stays_at:
                    return Decision(endpoint, "spilled")
        home = rendezvous(key, endpoints, now)
        if home in within:
            return Decision(home, "session")
        return Decision(rendezvous(key, within, now), "spill")

    def placed(self, request: RoutingRequest, decision: Decision) -> None:
        """Remember where a session went that is not at home."""
        if not request.session:
            self._without_session.placed(request, decision)
            return
        request.places = (*request.places, decision)
        self._is_at(_key(request), decision)

    def _is_at(self, key: int, decision: Decision) -> None:
        away = None if decision.reason == "session" else decision.endpoint
        if self.witness is not None and (away is not None or key in self._spills):
            self.witness.spilled(key, away)
        self.learn_spilled(key, away)

    def learn_spilled(self, session: int, endpoint: Endpoint | None) -> None:
        """A session is at an endpoint that is not its home, or (``None``) at home again; whoever sent it there."""
        if endpoint is None:
            self._spills.pop(session, None)
            return
        self._spills[session] = endpoint.url
        self._spills.move_to_end(session)
        if len(self._spills) > SPILLS_MAX:
            self._spills.popitem(last=False)

    def withdrawn(self, request: RoutingRequest, decision: Decision) -> None:
        """The session left nothing there; it is where else the same request was sent, if it was."""
        if not request.session:
            return
        request.places = tuple(place for place in request.places if place.endpoint is not decision.endpoint)
        key = _key(request)
        if self._spills.get(key) != (None if decision.reason == "session" else decision.endpoint.url):
            return  # a later request has gone elsewhere
        if request.places:
            self._is_at(key, request.places[-1])
        elif key in self._spills:
            if self.witness is not None:
                self.witness.spilled(key, None)
            del self._spills[key]

    def forget(self, endpoint: Endpoint) -> None:
        """Sessions that spilled there find another place as soon as it is not offered; if it is, it serves again."""
        self._without_session.forget(endpoint)


def _key(request: RoutingRequest) -> int:
    return xxhash.xxh3_64_intdigest(request.session, xxhash.xxh3_64_intdigest(request.model.encode()))
