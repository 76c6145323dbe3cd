"""Who may be sent now: a pure account of what was sent and answered, told the time by its caller.

Invariants: never more than the allowed number in flight; a request goes only after the one it waits for was answered;
what waits for a request that failed is never sent. In a closed loop the first in the plan goes first, in an open loop
the one that came first. How late a send is counts from when it could first have gone: its arrival, the answer it waited
for, or the place that became free, whichever came last. So a slow server makes queues, and only a slow client is late.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tierline.bench.serving.plan import Planned


@dataclass(frozen=True)
class Ready:
    """A request to send now.

    Parameters
    ----------
    planned
        The request.
    due_s
        When it could first have gone.
    queued_s
        How long it waited for a place since it had come; 0 in a closed loop.
    """

    planned: Planned
    due_s: float
    queued_s: float


class Sending:
    """The order in which a plan is sent.

    Parameters
    ----------
    plan
        Its requests.
    concurrency
        How many may be in flight; ``None``: any number.
    ramp_s
        Over how long places open, one after the other.
    duration_s
        After which nothing is sent any more.
    """

    def __init__(
        self,
        plan: Sequence[Planned],
        concurrency: int | None = None,
        ramp_s: float = 0.0,
        duration_s: float = math.inf,
    ) -> None:
        self._concurrency = concurrency
        self._ramp_s = ramp_s
        self._duration_s = duration_s
        self._in_flight = 0
        self._room_since_s = 0.0
        self._ready: list[tuple[float, int, Planned]] = []
        self._waiting: dict[int, list[Planned]] = defaultdict(list)
        self._ready_at: dict[int, float] = {}
        indices = {planned.index for planned in plan}
        for planned in plan:
            if planned.after in indices and planned.after is not None:
                self._waiting[planned.after].append(planned)
            else:
                self._add(planned, 0.0)

    @property
    def in_flight(self) -> int:
        """Requests that were sent and not answered."""
        return self._in_flight

    def is_over(self, now_s: float) -> bool:
        """Whether nothing is in flight and nothing will be sent."""
        return self._in_flight == 0 and (not self._ready or now_s >= self._duration_s)

    def upcoming(self, count: int) -> list[Planned]:
        """Return the requests that go next, as things stand."""
        return [planned for _, _, planned in heapq.nsmallest(count, self._ready)]

    def take(self, now_s: float) -> Ready | float:
        """Return a request to send now, or in how many seconds to ask again; infinity: after the next answer."""
        if not self._ready or now_s >= self._duration_s:
            return math.inf
        opens_s = self._opens_s()
        if opens_s > now_s:
            return opens_s - now_s
        at_s, _, planned = self._ready[0]
        if at_s > now_s:
            return at_s - now_s
        heapq.heappop(self._ready)
        came_s = self._ready_at.pop(planned.index)
        due_s = max(came_s, self._room_since_s, opens_s)
        self._in_flight += 1
        return Ready(planned, due_s, due_s - came_s if planned.at_s is not None else 0.0)

    def answered(self, planned: Planned, now_s: float, *, is_good: bool) -> Iterable[Planned]:
        """Account for an answer; return the requests that will now never be sent."""
        # What goes next could have gone when a place opened by itself, or now, and not when an earlier one had opened.
        self._room_since_s = max(self._room_since_s, min(now_s, self._opens_s()))
        self._in_flight -= 1
        freed = self._waiting.pop(planned.index, [])
        if is_good:
            for each in freed:
                self._add(each, now_s)
            return []
        lost = list(freed)
        for each in lost:  # and what waits for these, which the loop reaches as well
            lost += self._waiting.pop(each.index, [])
        return lost

    def _add(self, planned: Planned, now_s: float) -> None:
        came_s = max(planned.at_s or 0.0, now_s)
        self._ready_at[planned.index] = came_s
        # Without times of their own the plan's order holds.
        order_s = came_s if planned.at_s is not None else 0.0
        heapq.heappush(self._ready, (order_s, planned.index, planned))

    def _opens_s(self) -> float:
        """When the next place opens: now, at a time of the ramp, or with an answer."""
        if self._concurrency is None:
            return 0.0
        if self._in_flight >= self._concurrency:
            return math.inf
        return self._ramp_s * self._in_flight / self._concurrency
