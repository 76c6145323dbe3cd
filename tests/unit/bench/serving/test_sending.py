"""Who may be sent when, against a server that is a list of durations: no sockets, no clock."""

import heapq
import math

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tierline.bench.serving.plan import Message, Planned
from tierline.bench.serving.sending import Ready, Sending
from tierline.bench.serving.text import Piece


def request(index: int, after: int | None = None, at_s: float | None = None) -> Planned:
    pieces = (Piece("talk", str(index), 4),)
    message = Message("user", pieces)
    return Planned(
        index=index, family="f", messages=(message,), output_tokens=1, input_tokens=4, after=after, at_s=at_s
    )


@st.composite
def plans(draw: st.DrawFn) -> list[Planned]:
    count = draw(st.integers(1, 25))
    is_open = draw(st.booleans())
    at_s, plan = 0.0, []
    for index in range(count):
        after = draw(st.none() | st.integers(0, index - 1)) if index else None
        at_s += draw(st.floats(0, 2))
        plan.append(request(index, after, at_s if is_open else None))
    return plan


@given(plans(), st.none() | st.integers(1, 5), st.floats(0, 3), st.data())
def test_a_plan_is_sent_whole_in_order_and_within_its_places(
    plan: list[Planned], places: int | None, ramp_s: float, data: st.DataObject
) -> None:
    durations = data.draw(st.lists(st.floats(0.01, 3), min_size=len(plan), max_size=len(plan)))
    fails = data.draw(st.sets(st.integers(0, len(plan) - 1)))
    sending = Sending(plan, places, ramp_s)
    now, running, sent, ended, lost = 0.0, list[tuple[float, int]](), dict[int, float](), dict[int, float](), set[int]()

    while not sending.is_over(now):
        step = sending.take(now)
        if isinstance(step, Ready):
            planned = step.planned
            assert planned.at_s is None or planned.at_s <= now
            assert planned.after is None or (planned.after in ended and planned.after not in fails)
            assert step.due_s <= now + 1e-9  # a client without delay of its own is never late
            assert now - step.due_s < 1e-6
            assert step.queued_s >= 0
            sent[planned.index] = now
            heapq.heappush(running, (now + durations[planned.index], planned.index))
            assert sending.in_flight == len(running) <= (places or math.inf)
        elif running and running[0][0] <= now + step:
            now, index = heapq.heappop(running)
            ended[index] = now
            lost |= {each.index for each in sending.answered(plan[index], now, is_good=index not in fails)}
        else:
            assert step < math.inf
            now += step

    assert sent.keys() | lost == set(range(len(plan)))
    assert not sent.keys() & lost


def test_a_place_that_an_answer_frees_while_places_still_open_makes_nobody_late() -> None:
    plan = [request(0), request(1), request(2)]
    sending = Sending(plan, concurrency=2, ramp_s=2.0)
    assert isinstance(sending.take(0.0), Ready)
    assert sending.take(0.25) == 0.75

    sending.answered(plan[0], 0.5, is_good=True)
    after_answer = sending.take(0.5)
    after_opening = sending.take(1.0)

    assert isinstance(after_answer, Ready)
    assert after_answer.due_s == 0.5
    assert isinstance(after_opening, Ready)
    assert after_opening.due_s == 1.0


def test_what_waits_for_a_request_that_failed_is_never_sent() -> None:
    plan = [request(0), request(1, after=0), request(2, after=1), request(3)]
    sending = Sending(plan, concurrency=1)
    assert isinstance(sending.take(0.0), Ready)

    lost = sending.answered(plan[0], 1.0, is_good=False)

    assert [each.index for each in lost] == [1, 2]
    step = sending.take(1.0)
    assert isinstance(step, Ready)
    assert step.planned.index == 3


def test_nothing_is_sent_after_the_duration_and_what_runs_is_waited_for() -> None:
    plan = [request(0, at_s=0.0), request(1, at_s=5.0)]
    sending = Sending(plan, duration_s=5.0)
    assert isinstance(sending.take(0.0), Ready)

    assert sending.take(5.0) == math.inf
    assert not sending.is_over(5.0)
    sending.answered(plan[0], 6.0, is_good=True)
    assert sending.is_over(6.0)


def test_waiting_for_a_place_is_the_servers_doing_and_being_slow_to_send_the_clients() -> None:
    plan = [request(0, at_s=0.0), request(1, at_s=1.0)]
    sending = Sending(plan, concurrency=1)
    assert isinstance(sending.take(0.0), Ready)
    assert sending.take(1.0) == math.inf
    sending.answered(plan[0], 4.0, is_good=True)

    step = sending.take(4.5)

    assert isinstance(step, Ready)
    assert (step.due_s, step.queued_s) == (4.0, 3.0)


def test_places_open_one_by_one_over_the_ramp() -> None:
    sending = Sending([request(index) for index in range(4)], concurrency=4, ramp_s=8.0)

    assert isinstance(sending.take(0.0), Ready)
    assert sending.take(0.0) == 2.0
    step = sending.take(2.5)
    assert isinstance(step, Ready)
    assert step.due_s == 2.0
    assert [each.index for each in sending.upcoming(5)] == [2, 3]


def test_plans_cross_processes_unchanged() -> None:
    plan = [request(0, at_s=1.5), request(1, after=0)]

    assert msgspec.json.decode(msgspec.json.encode(plan), type=list[Planned]) == plan
