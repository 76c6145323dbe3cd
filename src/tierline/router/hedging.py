"""When a request without an answer is sent to a second endpoint too, and how many may be. Pure: told of times.

A hedge buys the tail of the times to first byte with work done twice (Dean and Barroso, "The Tail at Scale", 2013), so
it comes late, and it has a budget: a fleet that is slow because it is full would be made fuller.
"""

from collections import deque
from collections.abc import Hashable
from math import inf

from tierline.router.budget import Budget

P95 = "p95"
KEPT = 512
"""Times remembered of a kind of request."""
LEARNT = 100
"""Fewer times than this say nothing of their 95th percentile."""
_AGED = 32
"""Times after which the percentile is found anew."""
RESERVE = 10.0


class Hedging:
    """What is known for it.

    Parameters
    ----------
    after
        Seconds without a byte of answer, or :data:`P95`: the 95th percentile of what requests of the kind took.
    share
        Of the requests, those that may be hedged; and :data:`RESERVE` more.
    """

    def __init__(self, after: str, share: float) -> None:
        self._after_s = None if after == P95 else float(after)
        self.budget = Budget(earned=share, reserve=RESERVE)
        self._times: dict[Hashable, _Times] = {}

    def delay_s(self, kind: Hashable) -> float:
        """Return after how many seconds a request of this kind may be hedged; infinite: not known yet."""
        if self._after_s is not None:
            return self._after_s
        times = self._times.get(kind)
        return inf if times is None else times.p95_s

    def answered(self, kind: Hashable, seconds: float) -> None:
        """The first byte of a good answer came so long after its request was sent."""
        if self._after_s is None:
            self._times.setdefault(kind, _Times()).add(seconds)


class _Times:
    """The latest times of one kind of request. Invariant: ``p95_s`` is of at most :data:`_AGED` times ago."""

    __slots__ = ("_latest", "_unseen", "p95_s")

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=KEPT)
        self._unseen = 0
        self.p95_s = inf

    def add(self, seconds: float) -> None:
        self._latest.append(seconds)
        self._unseen += 1
        if len(self._latest) >= LEARNT and (self._unseen >= _AGED or self.p95_s == inf):
            self._unseen = 0
            self.p95_s = sorted(self._latest)[int(0.95 * len(self._latest))]
