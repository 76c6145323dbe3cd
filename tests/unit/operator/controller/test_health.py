"""What makes an operator unhealthy, on a simulated clock: what does not move, and not what only takes long."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Histogram
from tests.integration.operator.controller.operators import PLANNER

from tierline.duties import Duties
from tierline.errors import ClusterUnavailable
from tierline.kube.api import KubernetesApi, Watched
from tierline.kube.cluster import Cluster
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.discovering import Discovery
from tierline.operator.controller.health import STUCK_SECONDS, stuck
from tierline.operator.controller.leading import Leadership
from tierline.operator.controller.live import Live
from tierline.operator.controller.looping import Loop
from tierline.operator.controller.queue import Queue
from tierline.operator.controller.reconciling import Key
from tierline.operator.controller.server import DUTIES

KEY = Key("InferenceEndpointConfig", "default", "demo")
LONG = STUCK_SECONDS - 1.0


class SimulatedClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class SimulatedApi:
    """Is away: each request fails after all but the longest time that is allowed."""

    configuration = SimpleNamespace(host="https://simulated")

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock

    async def call_api(self, *_: object, **__: object) -> Any:
        self._clock.now += LONG
        raise aiohttp.ClientError("nobody is there")


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@contextlib.asynccontextmanager
async def running(task: Any) -> AsyncIterator[None]:
    started = asyncio.ensure_future(task)
    yield
    started.cancel()
    await asyncio.wait([started])


def watch(clock: SimulatedClock) -> Watched[Live]:
    return Watched("Pod", Live, "", lambda _: None, clock=clock)


async def test_a_look_of_many_slow_steps_is_well_and_one_that_waits_for_ever_is_not(clock: SimulatedClock) -> None:
    api, seconds = SimulatedApi(clock), Histogram("look_seconds", "…", registry=CollectorRegistry())
    loop = Loop(cast("KubernetesApi", None), api, PLANNER, OperatorConfig(), "me", Duties(DUTIES), seconds, Discovery())
    loop.queue = Queue(clock)
    asked = asyncio.Event()

    async def look(key: Key) -> float | None:
        for _step in range(5):
            with contextlib.suppress(ClusterUnavailable):
                await loop.events._cluster.ask("GET", "/")
            assert loop.stuck == ""
        asked.set()
        await asyncio.Event().wait()
        return None

    loop.reconciler.reconcile = look  # type: ignore[method-assign]
    loop.queue.add(KEY)
    async with running(loop._work()):
        await asked.wait()
        assert loop.stuck == ""
        clock.now += STUCK_SECONDS + 1.0
        assert "a look at a resource has taken no step for 121 s" in loop.stuck


@pytest.mark.parametrize(("workers", "is_stuck"), [(2, True), (1, False)], ids=["a free worker", "none is free"])
async def test_what_is_due_and_nobody_takes_is_stuck_unless_all_workers_are_busy(
    clock: SimulatedClock, workers: int, is_stuck: bool
) -> None:
    queue: Queue[object] = Queue(clock)
    queue.add("busy")
    await queue.take()
    queue.add("waiting")
    clock.now += LONG
    queue.stirred("busy")
    assert not stuck(queue, workers, [], [])
    clock.now += LONG
    queue.stirred("busy")
    assert bool(stuck(queue, workers, [], [])) is is_stuck


async def test_a_watch_is_well_while_requests_fail_and_stuck_once_nothing_is_tried(clock: SimulatedClock) -> None:
    queue: Queue[object] = Queue(clock)
    watched = watch(clock)
    for _ in range(3):
        clock.now += LONG
        async with running(watched.failed("the API is away")):
            await asyncio.sleep(0)
        assert not stuck(queue, 1, [watched], [])
    clock.now += STUCK_SECONDS + 1.0
    assert stuck(queue, 1, [watched], []) == "the watch of Pod has taken no step for 121 s"


def test_what_is_followed_no_more_is_told_at_once(clock: SimulatedClock) -> None:
    assert stuck(Queue(clock), 1, [], ["Pod default"]) == "nobody follows Pod default any more"


async def test_who_asks_for_the_lease_is_well_also_where_he_does_not_get_it(clock: SimulatedClock) -> None:
    leadership = Leadership(Cluster(SimulatedApi(clock), "me"), "system", clock)

    async def work() -> None:
        raise AssertionError("the Lease cannot be had")

    async with running(leadership.lead(work)):
        await asyncio.sleep(0)
        assert leadership.failures == 1
        assert leadership.still_s == LONG
        clock.now += 1000.0
        assert leadership.still_s > STUCK_SECONDS
