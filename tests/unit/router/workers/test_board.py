"""Loads over several processes: what each counts, what all see, and who may have a place that came free."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tierline.router.endpoints import Endpoint
from tierline.router.specs import MAX_ENDPOINTS, EndpointSpec
from tierline.router.workers.board import Board, Load, endpoint_key
from tierline.router.workers.endpoints import SharedEndpoint, SharedEndpoints

URLS = [f"http://e{number}:1" for number in range(4)]


class World(NamedTuple):
    board: Board
    workers: list[SharedEndpoints]


@pytest.fixture
def world() -> Iterator[World]:
    board = Board.create(2)
    workers = [SharedEndpoints(board, index) for index in range(2)]
    for worker, urls in zip(workers, (URLS[:2], URLS[1::-1]), strict=True):  # at different places
        for url in urls:
            worker.add(EndpointSpec(url=url), source="flags")
    yield World(board, workers)
    board.close()


def at(worker: SharedEndpoints, url: str) -> SharedEndpoint:
    endpoint = worker.find(url)
    assert isinstance(endpoint, SharedEndpoint)
    return endpoint


def test_what_one_worker_sends_another_sees_wherever_the_endpoint_stands_there(world: World) -> None:
    first, second = world.workers
    at(first, URLS[0]).begin(100, 0.0)
    at(first, URLS[0]).begin(50, 0.0)
    second.candidates(None, 0.0)
    seen = at(second, URLS[0])
    assert (seen.inflight, seen.queued_tokens, seen.own_inflight, seen.own_queued_tokens) == (2, 150, 0, 0)
    at(first, URLS[0]).answered(100, 100, None, 0.0)
    at(first, URLS[0]).end(0)
    second.refresh()
    assert (seen.inflight, seen.queued_tokens) == (1, 50)
    assert at(second, URLS[1]).inflight == 0


def test_the_queue_in_front_of_a_request_is_that_of_all_workers(world: World) -> None:
    first, second = world.workers
    at(first, URLS[0]).begin(100, 0.0)
    second.refresh()
    assert at(second, URLS[0]).begin(10, 0.0) == 110


def test_the_requests_of_a_worker_that_died_are_gone(world: World) -> None:
    first, second = world.workers
    at(first, URLS[0]).begin(100, 0.0)
    second.refresh()
    world.board.rows[0].clear()
    second.refresh()
    assert at(second, URLS[0]).inflight == 0
    assert world.board.totals() == [Load(endpoint_key(url), 0, 0) for url in URLS[1::-1]]


def test_what_other_routers_have_counts_too_and_can_be_replaced(world: World) -> None:
    worker = world.workers[1]
    world.board.elsewhere.show([Load(endpoint_key(URLS[0]), 3, 30), Load(endpoint_key("http://unknown"), 9, 9)])
    worker.refresh()
    assert (at(worker, URLS[0]).inflight, at(worker, URLS[0]).queued_tokens) == (3, 30)
    assert not worker.has_place(12, 0), "a limit on all requests counts those at endpoints that are unknown here"
    world.board.elsewhere.show([Load(endpoint_key(URLS[1]), 1, 10)])
    worker.refresh()
    assert [at(worker, url).inflight for url in URLS[:2]] == [0, 1]


def test_a_slot_that_is_another_endpoints_now_says_nothing_of_the_former(world: World) -> None:
    first, second = world.workers
    gone = at(first, URLS[0])
    gone.begin(100, 0.0)
    second.refresh()
    gone.end(100)
    first.remove(gone)
    first.release(gone)
    first.add(EndpointSpec(url=URLS[2]), source="flags")
    at(first, URLS[2]).begin(7, 0.0)
    second.refresh()
    assert at(second, URLS[0]).inflight == 0
    second.add(EndpointSpec(url=URLS[2]), source="flags")
    second.refresh()
    assert at(second, URLS[2]).queued_tokens == 7


def test_an_endpoint_that_was_added_again_before_its_requests_were_over_counts_with_both_its_slots(
    world: World,
) -> None:
    first, second = world.workers
    former = at(first, URLS[0])
    former.begin(0, 0.0)
    first.remove(former)  # its request runs on
    first.add(EndpointSpec(url=URLS[0]), source="flags")
    again = at(first, URLS[0])
    again.begin(0, 0.0)
    again.show_waiting(1)
    second.refresh()
    assert at(second, URLS[0]).inflight == 2
    assert at(second, URLS[0]).waiting_least == 2


def test_more_endpoints_elsewhere_than_slots_are_cut_off(world: World) -> None:
    world.board.elsewhere.show([Load(number + 1, 1, 1) for number in range(MAX_ENDPOINTS + 5)])
    assert len(list(world.board.elsewhere.loads())) == MAX_ENDPOINTS


# Limits ---------------------------------------------------------------------------------------------------------------


def test_a_limit_of_an_endpoint_holds_over_all_workers(world: World) -> None:
    first, second = world.workers
    for _ in range(3):
        at(first, URLS[0]).begin(0, 0.0)
    second.refresh()
    assert at(second, URLS[0]).has_room(4)
    assert not at(second, URLS[0]).has_room(3)


def test_a_worker_with_its_share_leaves_a_free_place_to_one_that_waits_and_has_less(world: World) -> None:
    first, second = world.workers
    busy, waiting = at(first, URLS[0]), at(second, URLS[0])
    for _ in range(3):
        busy.begin(0, 0.0)
    waiting.show_waiting(5)
    first.refresh()
    second.refresh()
    assert (busy.has_room(4), waiting.has_room(4)) == (False, True)
    waiting.begin(0, 0.0)
    busy.end(0)
    waiting.begin(0, 0.0)
    busy.end(0)
    first.refresh()
    second.refresh()
    assert (busy.has_room(4), waiting.has_room(4)) == (True, True), "who has less than its share need not stand back"
    waiting.show_waiting(0)
    busy.begin(0, 0.0)
    first.refresh()
    assert busy.has_room(5), "nobody waits"


def test_the_same_holds_for_a_limit_on_all_requests(world: World) -> None:
    first, second = world.workers
    for _ in range(3):
        at(first, URLS[0]).begin(0, 0.0)
    second.show_waiting(1)
    assert (first.has_place(4, 3), second.has_place(4, 0)) == (False, True)
    second.show_waiting(0)
    assert (first.has_place(4, 3), first.has_place(3, 3)) == (True, False)


# Properties -----------------------------------------------------------------------------------------------------------


class BoardMachine(RuleBasedStateMachine):
    """Three workers do anything; the model is one list of requests."""

    def __init__(self) -> None:
        super().__init__()
        self.board = Board.create(3)
        self.workers = [SharedEndpoints(self.board, index) for index in range(3)]
        self.running: list[tuple[int, Endpoint, int]] = []

    def teardown(self) -> None:
        self.board.close()

    @rule(worker=st.integers(0, 2), url=st.sampled_from(URLS))
    def add(self, worker: int, url: str) -> None:
        if self.workers[worker].find(url) is None:
            self.workers[worker].add(EndpointSpec(url=url), source="flags")

    @rule(worker=st.integers(0, 2), url=st.sampled_from(URLS))
    def remove(self, worker: int, url: str) -> None:
        endpoint = self.workers[worker].find(url)
        if endpoint is not None and not endpoint.own_inflight:
            self.workers[worker].remove(endpoint)
            self.workers[worker].release(endpoint)

    @rule(worker=st.integers(0, 2), url=st.sampled_from(URLS), tokens=st.integers(0, 1000))
    def begin(self, worker: int, url: str, tokens: int) -> None:
        endpoint = self.workers[worker].find(url)
        if endpoint is not None:
            endpoint.begin(tokens, 0.0)
            self.running.append((worker, endpoint, tokens))

    @rule(which=st.integers(0, 100))
    def end(self, which: int) -> None:
        if self.running:
            _, endpoint, tokens = self.running.pop(which % len(self.running))
            endpoint.end(tokens)

    @rule(worker=st.integers(0, 2))
    def die(self, worker: int) -> None:
        self.board.rows[worker].clear()
        self.running = [entry for entry in self.running if entry[0] != worker]
        self.workers[worker] = SharedEndpoints(self.board, worker)

    @invariant()
    def every_worker_sees_the_sum(self) -> None:
        for worker in self.workers:
            worker.refresh()
            for endpoint in worker.all:
                expected = [tokens for _, at, tokens in self.running if at.url == endpoint.url]
                assert (endpoint.inflight, endpoint.queued_tokens) == (len(expected), sum(expected))
            total = len(self.running)
            own = sum(endpoint.own_inflight for endpoint in worker.all)
            assert worker.has_place(total + 1, own)
            assert not worker.has_place(total, own)


TestBoard = BoardMachine.TestCase
TestBoard.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
