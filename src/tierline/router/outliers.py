"""Passes over an endpoint that fails far more often than the others do, though never often enough in a row.

Every ten seconds each endpoint's failed answers are compared with those of all others together (the two-proportion
z-test): three standard errors more is no chance, and a fifth of its answers at least must have failed, so that what is
rare stays a retry's business. Never more than a third of the endpoints, nor the last one: when many fail, the fault is
not theirs, and the others would have to bear their load.
"""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

from tierline import logs
from tierline.router.endpoints import Endpoint, Endpoints

log = logs.get(__name__)

INTERVAL_SECONDS = 10.0
EJECTION_SECONDS = 30.0
ANSWERS = 20
"""Fewer in an interval, of an endpoint or of the others, say too little."""
STANDARD_ERRORS = 3.0
FAILED_SHARE = 0.2
EJECTED_SHARE = 1 / 3


class Tally(NamedTuple):
    """Answers of one endpoint."""

    good: int
    failed: int

    @property
    def answers(self) -> int:
        """All of them."""
        return self.good + self.failed


class OutlierDetector:
    """Looks at the endpoints once an interval.

    Parameters
    ----------
    endpoints
        The set.
    now
        By the router's clock.
    """

    def __init__(self, endpoints: Endpoints, now: float) -> None:
        self._endpoints = endpoints
        self._next_look = now + INTERVAL_SECONDS
        self._before: dict[Endpoint, Tally] = {}

    def sweep(self, now: float) -> None:
        """Compare them, if it is time to."""
        if now < self._next_look:
            return
        self._next_look = now + INTERVAL_SECONDS
        totals = {endpoint: Tally(endpoint.answers_good, endpoint.answers_failed) for endpoint in self._endpoints.all}
        none = Tally(0, 0)
        tallies = {
            endpoint: Tally(total.good - before.good, total.failed - before.failed)
            for endpoint, total in totals.items()
            for before in (self._before.get(endpoint, none),)
        }
        self._before = totals
        here = [endpoint for endpoint in totals if not endpoint.is_draining]
        usable = [endpoint for endpoint in here if endpoint.is_usable(now)]
        most = min(max(1, int(len(here) * EJECTED_SHARE)), len(here) - 1)
        allowed = max(0, most - (len(here) - len(usable)))
        for endpoint in [endpoint for endpoint in outliers(list(tallies.items())) if endpoint in usable][:allowed]:
            endpoint.eject(now, EJECTION_SECONDS)
            log.warning(
                "endpoint fails more often than the others and is passed over for a while",
                endpoint=endpoint.url,
                failed=tallies[endpoint].failed,
                answers=tallies[endpoint].answers,
            )


def outliers(tallies: Sequence[tuple[Endpoint, Tally]]) -> list[Endpoint]:
    """Return the endpoints that fail far more often than all others together, the worst first."""
    good, failed = sum(tally.good for _, tally in tallies), sum(tally.failed for _, tally in tallies)
    found = []
    for endpoint, tally in tallies:
        others = Tally(good - tally.good, failed - tally.failed)
        if tally.answers < ANSWERS or others.answers < ANSWERS:
            continue
        share, pooled = tally.failed / tally.answers, failed / (good + failed)
        error = sqrt(pooled * (1 - pooled) * (1 / tally.answers + 1 / others.answers))
        if share >= FAILED_SHARE and share - others.failed / others.answers > STANDARD_ERRORS * error:
            found.append((share, endpoint))
    return [endpoint for _, endpoint in sorted(found, key=lambda pair: -pair[0])]
