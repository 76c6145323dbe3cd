"""Admission: limits are kept, nobody waits who could run, shares are fair in tokens, a flood hurts its sender alone."""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tierline.router.admission import QUANTUM_TOKENS, Admission, Ticket, Verdict


@dataclass
class World:
    """Lanes with room, and what became of each ticket."""

    max_inflight: int = 0
    max_queued: int = 100
    room: dict[Hashable, int] = field(default_factory=dict)
    ran: list[Ticket] = field(default_factory=list)
    turned_away: list[Ticket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.admission = Admission(self.max_inflight, self.max_queued, lambda lane: self.room.get(lane, 1) > 0)

    def ticket(self, tenant: str = "t", lane: str = "m", priority: int = 0, cost: int = 1) -> Ticket:
        def run() -> None:
            self.started(ticket)

        ticket = Ticket(tenant, lane, priority, cost, run, lambda: self.turned_away.append(ticket))
        return ticket

    def started(self, ticket: Ticket) -> None:
        self.ran.append(ticket)
        if ticket.lane in self.room:
            self.room[ticket.lane] -= 1

    def enter(self, *args: object, **kwargs: object) -> tuple[Ticket, Verdict]:
        ticket = self.ticket(*args, **kwargs)  # type: ignore[arg-type]
        verdict = self.admission.enter(ticket)
        if verdict is Verdict.RUNS:
            self.started(ticket)
        return ticket, verdict

    def leave(self, ticket: Ticket) -> None:
        if ticket.lane in self.room:
            self.room[ticket.lane] += 1
        self.admission.leave(now=0.0)


def test_without_limits_everybody_runs() -> None:
    world = World(max_queued=0)
    assert {world.enter()[1] for _ in range(100)} == {Verdict.RUNS}


def test_above_the_limit_tickets_wait_and_above_the_queue_they_are_refused() -> None:
    world = World(max_inflight=1, max_queued=2)
    verdicts = [world.enter()[1] for _ in range(4)]
    assert verdicts == [Verdict.RUNS, Verdict.WAITS, Verdict.WAITS, Verdict.REFUSED]


def test_a_lane_without_room_holds_up_nobody_elses() -> None:
    world = World(room={"full": 0})
    assert world.enter(lane="full")[1] is Verdict.WAITS
    assert world.enter(lane="free")[1] is Verdict.RUNS


def test_the_best_priority_runs_first_and_within_it_who_came_first() -> None:
    world = World(max_inflight=1)
    first, _ = world.enter()
    waiting = [world.enter(priority=priority)[0] for priority in (5, 0, -1, 0)]
    last = first
    for _ in waiting:
        world.leave(last)
        last = world.ran[-1]
    assert [ticket.priority for ticket in world.ran[1:]] == [-1, 0, 0, 5]
    assert world.ran[2:4] == [waiting[1], waiting[3]]


def test_tenants_get_equal_shares_of_prompt_tokens_whatever_their_number_and_length() -> None:
    """Twenty long prompts of one tenant, many short ones of another, some of a third: equal while all have some."""
    world = World(max_inflight=1, max_queued=10_000)
    runs, _ = world.enter()
    costs = {"long": 8000, "short": 100, "middle": 1500}
    for tenant, cost in costs.items():
        for _ in range(160_000 // cost):
            world.enter(tenant, cost=cost)
    served = Counter[str]()
    while len(world.ran) == 1 or all(world.admission._by_tenant[tenant] for tenant in costs):
        world.leave(runs)
        runs = world.ran[-1]
        served[runs.tenant] += runs.cost
        assert max(served.values()) - min(served[t] for t in costs) <= 2 * (QUANTUM_TOKENS + max(costs.values()))
    assert min(served.values()) > 100_000


def test_a_tenant_that_fills_the_queue_shuts_out_nobody() -> None:
    world = World(max_inflight=1, max_queued=4)
    world.enter("flood")
    flood = [world.enter("flood")[0] for _ in range(4)]
    assert world.enter("flood")[1] is Verdict.REFUSED
    assert [world.enter("calm")[1] for _ in range(3)] == [Verdict.WAITS, Verdict.WAITS, Verdict.REFUSED]
    assert world.turned_away == [flood[3], flood[2]]


def test_a_better_priority_displaces_a_worse_one_and_never_the_other_way() -> None:
    world = World(max_inflight=1, max_queued=1)
    world.enter()
    batch, _ = world.enter(priority=9)
    assert world.enter(priority=1)[1] is Verdict.WAITS
    assert world.turned_away == [batch]
    assert world.enter(priority=2)[1] is Verdict.REFUSED


def test_what_comes_back_is_not_refused() -> None:
    world = World(max_inflight=1, max_queued=0)
    world.enter()
    assert world.admission.enter(world.ticket(), comes_back=True) is Verdict.WAITS


def test_a_thousand_that_end_as_they_start_do_not_nest() -> None:
    world = World(max_inflight=1, max_queued=2000)
    first, _ = world.enter()
    for _ in range(1000):
        ticket = world.ticket()
        ticket.run = lambda: world.admission.leave(0.0)
        world.admission.enter(ticket)
    world.leave(first)
    assert (world.admission.running, world.admission.waiting) == (0, 0)


def test_the_wait_that_is_told_follows_the_pace_of_the_queue() -> None:
    world = World(max_inflight=1)
    for _ in range(60):
        world.enter()
    assert world.admission.retry_after_s() == 1
    for number in range(50):
        world.admission.leave(now=float(number))
    assert world.admission.retry_after_s() == pytest.approx(10, abs=2)


TENANTS, LANES = st.sampled_from("abc"), st.sampled_from("xyz")


class AdmissionModel(RuleBasedStateMachine):
    """Against plain lists: who runs, who waits, and that the two rules hold after every step."""

    @initialize(
        max_inflight=st.integers(0, 4),
        max_queued=st.integers(0, 6),
        room=st.fixed_dictionaries({"x": st.integers(1, 3), "y": st.integers(1, 3), "z": st.integers(1, 3)}),
    )
    def begin(self, max_inflight: int, max_queued: int, room: dict[Hashable, int]) -> None:
        self.world = World(max_inflight, max_queued, room)
        self.waiting: list[Ticket] = []
        self.ended: set[int] = set()

    @rule(tenant=TENANTS, lane=LANES, priority=st.integers(-1, 1), cost=st.integers(1, 5 * QUANTUM_TOKENS))
    def enter(self, tenant: str, lane: str, priority: int, cost: int) -> None:
        ticket, verdict = self.world.enter(tenant, lane, priority, cost)
        assert (verdict is Verdict.WAITS) == ticket.is_waiting
        if verdict is Verdict.REFUSED:
            assert self.world.admission.waiting >= self.world.max_queued
        elif verdict is Verdict.WAITS:
            self.waiting.append(ticket)

    @rule(number=st.integers(0, 100))
    def leave(self, number: int) -> None:
        if running := self.running:
            ticket = running[number % len(running)]
            self.ended.add(id(ticket))
            self.world.leave(ticket)

    @rule(number=st.integers(0, 100))
    def withdraw(self, number: int) -> None:
        if waiting := [ticket for ticket in self.waiting if ticket.is_waiting]:
            self.world.admission.withdraw(waiting[number % len(waiting)])

    @rule(lane=LANES)
    def room_comes(self, lane: str) -> None:
        self.world.room[lane] += 1
        self.world.admission.pump()

    @property
    def running(self) -> list[Ticket]:
        return [ticket for ticket in self.world.ran if id(ticket) not in self.ended]

    @invariant()
    def limits_are_kept_and_nobody_waits_who_could_run(self) -> None:
        admission = self.world.admission
        waiting = [ticket for ticket in self.waiting if ticket.is_waiting]
        assert admission.running == len(self.running)
        assert admission.waiting == len(waiting) <= self.world.max_queued
        assert not self.world.max_inflight or admission.running <= self.world.max_inflight
        if not self.world.max_inflight or admission.running < self.world.max_inflight:
            assert all(self.world.room[ticket.lane] <= 0 for ticket in waiting)
        assert all(not ticket.is_waiting for ticket in self.world.turned_away)
        assert sum(admission._by_tenant.values()) == len(waiting)


TestAdmissionModel = AdmissionModel.TestCase
