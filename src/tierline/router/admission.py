"""Who runs now, who waits, and who is turned away. Pure: no clock of its own, no sockets; told of ends, it calls back.

Tickets wait in *flows*, one for each tenant and lane (the endpoints that can serve them). Of the flows whose lane has
room, those of the best priority go first, and among them deficit round robin takes turns (Shreedhar and Varghese,
"Efficient Fair Queuing using Deficit Round Robin", 1995): each turn is worth the same number of prompt tokens, so a
tenant with many or long prompts delays its own. A full queue turns away whoever has the most waiting, for a queue that
one tenant could fill would shut out the others.
"""

from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum, auto
from math import ceil

QUANTUM_TOKENS = 1024
"""What a flow may take in one turn. Smaller ones are fairer over short times; a longer prompt just waits for more."""
_PACE_WEIGHT = 0.2
_RETRY_AFTER_MAX_S = 60


@dataclass(eq=False, slots=True)
class Ticket:
    """One request that wants to run.

    Parameters
    ----------
    tenant
        Whose it is; empty where nobody is told apart.
    lane
        What it needs; :class:`Admission` is told how to see whether there is room.
    priority
        The lowest goes first.
    cost
        Prompt tokens, estimated; at least 1.
    run, turn_away
        Called when a ticket that waited may run; when it has to leave the queue for another one.
    """

    tenant: str
    lane: Hashable
    priority: int
    cost: int
    run: Callable[[], None]
    turn_away: Callable[[], None]
    is_waiting: bool = False


class Verdict(Enum):
    """What becomes of a ticket that comes in."""

    RUNS = auto()
    WAITS = auto()
    REFUSED = auto()


@dataclass(eq=False, slots=True)
class _Flow:
    lane: Hashable
    tickets: deque[Ticket] = field(default_factory=deque)
    deficit: int = 0
    has_turn: bool = False
    """Has had this turn's quantum."""


class Admission:
    """The requests that run and those that wait.

    Invariants: with a limit, ``running`` is never above it. At most ``max_queued`` tickets wait, besides those that ran
    already and came back. After :meth:`enter`, :meth:`leave` and :meth:`pump`, no ticket waits that could run.

    Parameters
    ----------
    max_inflight
        Tickets that may run at once; 0 for any number.
    max_queued
        Tickets that may wait.
    has_room
        Whether a ticket of a lane could run, as far as others than ``max_inflight`` have a say.
    has_place
        Whether one more may run of ``max_inflight``, given how many do here; ``None`` where none run elsewhere.
    """

    def __init__(
        self,
        max_inflight: int,
        max_queued: int,
        has_room: Callable[[Hashable], bool],
        has_place: Callable[[int, int], bool] | None = None,
    ) -> None:
        self.running = 0
        self.waiting = 0
        self._max_inflight = max_inflight
        self._max_queued = max_queued
        self._has_room = has_room
        self._has_place_with_others = has_place
        self._levels: dict[int, dict[tuple[str, Hashable], _Flow]] = {}
        """By priority; the order of a level's flows is the order of their turns."""
        self._by_tenant: Counter[str] = Counter()
        self._is_pumping = False
        self._left_at: float | None = None
        self._pace_s = 0.0

    def enter(self, ticket: Ticket, *, comes_back: bool = False) -> Verdict:
        """A ticket wants to run.

        Parameters
        ----------
        comes_back
            It ran, and :meth:`leave` was called for it; it is not refused.
        """
        if self.waiting:
            self.pump()
        if self._has_place and self._has_room(ticket.lane):  # and nobody waits who could have it
            self.running += 1
            return Verdict.RUNS
        if not comes_back and self.waiting >= self._max_queued and not self._displaces(ticket):
            return Verdict.REFUSED
        self._put(ticket)
        return Verdict.WAITS

    def leave(self, now: float) -> None:
        """A ticket that ran is done; who can run now does. Call it once what the ticket had is free again."""
        self.running -= 1
        if self.waiting and self._left_at is not None:
            self._pace_s += _PACE_WEIGHT * (now - self._left_at - self._pace_s)
        self._left_at = now if self.waiting else None
        self.pump()

    def withdraw(self, ticket: Ticket) -> None:
        """A ticket that waits does so no longer."""
        flow = self._levels[ticket.priority][ticket.tenant, ticket.lane]
        flow.tickets.remove(ticket)
        self._taken(ticket, flow)

    def pump(self) -> None:
        """Let run who can; called too when endpoints come, or have become free without :meth:`leave`."""
        if self._is_pumping:  # by a ticket that has just been let run: the loop below sees to the rest
            return
        self._is_pumping = True
        try:
            full: set[Hashable] = set()
            while self.waiting and self._has_place and (ticket := self._next(full)) is not None:
                self.running += 1
                ticket.run()
        finally:
            self._is_pumping = False

    def retry_after_s(self) -> int:
        """Return in how many seconds a ticket that came now would run, as things go; from 1 to 60."""
        return min(max(ceil(self._pace_s * (self.waiting + 1)), 1), _RETRY_AFTER_MAX_S)

    def waiting_for(self) -> dict[Hashable, int]:
        """Return how many wait, by lane."""
        waiting: Counter[Hashable] = Counter()
        for flows in self._levels.values():
            for flow in flows.values():
                waiting[flow.lane] += len(flow.tickets)
        return waiting

    @property
    def _has_place(self) -> bool:
        if not self._max_inflight:
            return True
        if self._has_place_with_others is not None:
            return self._has_place_with_others(self._max_inflight, self.running)
        return self.running < self._max_inflight

    # The queue --------------------------------------------------------------------------------------------------------

    def _put(self, ticket: Ticket) -> None:
        flows = self._levels.setdefault(ticket.priority, {})
        key = ticket.tenant, ticket.lane
        flow = flows.get(key)
        if flow is None:
            flow = flows[key] = _Flow(ticket.lane)
        flow.tickets.append(ticket)
        ticket.is_waiting = True
        self.waiting += 1
        self._by_tenant[ticket.tenant] += 1

    def _taken(self, ticket: Ticket, flow: _Flow) -> None:
        """A ticket is no longer in its flow's queue; a flow without tickets has no claims left."""
        ticket.is_waiting = False
        self.waiting -= 1
        self._by_tenant[ticket.tenant] -= 1
        if not self._by_tenant[ticket.tenant]:
            del self._by_tenant[ticket.tenant]
        if not flow.tickets:
            flows = self._levels[ticket.priority]
            del flows[ticket.tenant, ticket.lane]
            if not flows:
                del self._levels[ticket.priority]

    def _next(self, full: set[Hashable]) -> Ticket | None:
        """Take the ticket whose turn it is out of the queue; ``full`` remembers the lanes without room."""
        for priority in sorted(self._levels):
            flows = self._levels[priority]
            ready = [key for key, flow in flows.items() if self._is_open(flow.lane, full)]
            if ready:
                key = _next_turn(flows, ready)
                flow = flows[key]
                ticket = flow.tickets.popleft()
                flow.deficit -= ticket.cost
                self._taken(ticket, flow)
                return ticket
        return None

    def _is_open(self, lane: Hashable, full: set[Hashable]) -> bool:
        if lane in full:
            return False
        if self._has_room(lane):
            return True
        full.add(lane)
        return False

    def _displaces(self, ticket: Ticket) -> bool:
        """Whether somebody had to leave the full queue for ``ticket``.

        The one who came last, of the tenant with the most waiting, among those of the worst priority: where that is
        worse than the ticket's, or the tenant would still have as many waiting as the ticket's.
        """
        if not self._levels:
            return False
        worst = max(self._levels)
        if worst < ticket.priority:
            return False
        flows = self._levels[worst].items()
        key, flow = max(flows, key=lambda item: (self._by_tenant[item[0][0]], len(item[1].tickets)))
        if worst == ticket.priority and self._by_tenant[key[0]] <= self._by_tenant[ticket.tenant] + 1:
            return False
        displaced = flow.tickets.pop()
        self._taken(displaced, flow)
        displaced.turn_away()
        return True


def _next_turn(flows: dict[tuple[str, Hashable], _Flow], ready: list[tuple[str, Hashable]]) -> tuple[str, Hashable]:
    """Return whose turn it is; that flow's deficit covers its first ticket, and it comes first in ``flows`` or ready.

    One round gives each ready flow its quantum. Where nobody's covers the first ticket after it, the rounds until
    somebody's does are given at once.
    """
    while True:
        for key in ready:
            flow = flows[key]
            if not flow.has_turn:
                flow.deficit += QUANTUM_TOKENS
                flow.has_turn = True
            if flow.deficit >= flow.tickets[0].cost:
                return key
            flow.has_turn = False
            flows[key] = flows.pop(key)  # to the end
        rounds = min(ceil((flows[key].tickets[0].cost - flows[key].deficit) / QUANTUM_TOKENS) for key in ready)
        for key in ready:
            flows[key].deficit += (rounds - 1) * QUANTUM_TOKENS
