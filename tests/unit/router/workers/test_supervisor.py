"""What the supervisor makes of answers that come late, and of those of workers that died meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from tierline.router.config import RouterConfig
from tierline.router.workers import messages
from tierline.router.workers.channel import Channel
from tierline.router.workers.gathering import encode_families, families_of
from tierline.router.workers.messages import Answer, Kind, Question
from tierline.router.workers.supervisor import ANSWER_LOOK_SECONDS, ANSWER_LOOKS, Supervisor, _Seat


@dataclass(eq=False)
class SimulatedChannel(Channel):
    """To a worker that answers when the test says so."""

    sent: list[tuple[Kind, bytes]] = field(default_factory=list)

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        self.sent.append((kind, payload))

    def close(self) -> None:
        """There is nothing to close."""

    async def received(self, kind: Kind, count: int = 1) -> bytes:
        """Return what came of this kind for the ``count``-th time."""
        async with asyncio.timeout(60):
            while len(found := [payload for each, payload in self.sent if each is kind]) < count:  # noqa: ASYNC110
                await asyncio.sleep(0)
        return found[count - 1]


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    made = Supervisor(RouterConfig(port=0, workers=2, endpoints=("http://127.0.0.1:9",)))
    for seat in made.seats:
        begin(seat)
    yield made
    await made._stop_all()


def begin(seat: _Seat) -> SimulatedChannel:
    """Have a new worker in a seat, which serves."""
    channel = SimulatedChannel()
    seat.channel = channel
    seat.ready.set()
    return channel


def counted(requests: int) -> bytes:
    counter = CounterMetricFamily("tierline_router_requests", "Requests")
    counter.add_metric((), requests)
    return encode_families(families_of([counter]))


def ask(supervisor: Supervisor, seat: _Seat, requests: int) -> None:
    """Have a worker ask for the metrics of all, with its own."""
    supervisor._received(seat, Kind.ASK, messages.encode(Question(1, "metrics", counted(requests))))


async def answer(supervisor: Supervisor, seat: _Seat, requests: int, count: int = 1) -> None:
    """Have a worker answer the ``count``-th question that it was asked."""
    asked = messages.decode_question(await channel_of(seat).received(Kind.ASK, count))
    supervisor._received(seat, Kind.TELL, messages.encode(Answer(asked.id, counted(requests))))


async def told(seat: _Seat, count: int = 1) -> float:
    """Return how many requests the ``count``-th page has that a worker was told."""
    page = messages.decode_answer(await channel_of(seat).received(Kind.TELL, count)).content.decode()
    (requests,) = (
        family for family in text_string_to_metric_families(page) if family.name == "tierline_router_requests"
    )
    return requests.samples[0].value


def channel_of(seat: _Seat) -> SimulatedChannel:
    assert isinstance(seat.channel, SimulatedChannel)
    return seat.channel


@pytest.mark.parametrize("dies", ["who asked", "who answered"])
async def test_what_one_said_that_died_before_all_had_answered_is_counted_once(
    dies: str, supervisor: Supervisor
) -> None:
    doomed, other = supervisor.seats
    ask(supervisor, other, 4)
    await answer(supervisor, doomed, 3)
    assert await told(other) == 7
    if dies == "who asked":
        ask(supervisor, doomed, 3)
        await channel_of(other).received(Kind.ASK)
        supervisor._buried(doomed)
        await answer(supervisor, other, 4)
    else:
        asking = asyncio.create_task(supervisor._ask_all("metrics", b""))
        await answer(supervisor, doomed, 3, count=2)
        await channel_of(other).received(Kind.ASK)
        supervisor._buried(doomed)
        await answer(supervisor, other, 4)
        assert list(await asking) == [other.index]
    await asyncio.gather(*supervisor._tasks)
    ask(supervisor, other, 4)
    assert await told(other, count=2) == 7


async def test_a_machine_that_stood_still_has_no_workers_that_did_not_answer_in_time(supervisor: Supervisor) -> None:
    one, other = supervisor.seats
    ask(supervisor, one, 3)
    await channel_of(other).received(Kind.ASK)
    time.sleep(ANSWER_LOOKS * ANSWER_LOOK_SECONDS + 0.1)  # noqa: ASYNC251  (nothing runs meanwhile)
    for _ in range(5):
        await asyncio.sleep(0)
    await answer(supervisor, other, 4)
    assert await told(one) == 7
