"""Objects of a former process: compared with their checksums before HTTP hands them out, and readers wait no longer."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import xxhash
from tests.clocks import ManualClock
from tests.unit.node.test_http_protocol import CAPACITY, Recorder, connect, receive

from tierline.node import service as service_module
from tierline.node.service import NodeService
from tierline.store import ObjectKey, Store

NAMES = [f"k{number}" for number in range(6)]


class Comparisons:
    """The thread's work: goes on when it is let, and notes what it was about."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun: list[int] = []

    def checksum(self, views: Sequence[memoryview]) -> int:
        self.begun.append(sum(view.nbytes for view in views))
        assert self.go_on.wait(20)
        return xxhash.xxh3_64(b"".join(views)).intdigest()


@pytest.fixture
def comparisons(monkeypatch: pytest.MonkeyPatch) -> Iterator[Comparisons]:
    made = Comparisons()
    monkeypatch.setattr(service_module, "_checksum", made.checksum)
    yield made
    made.go_on.set()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def service(shared_memory: Path, comparisons: Comparisons, clock: ManualClock) -> Iterator[NodeService]:
    """A node that has adopted objects of 1,000 bytes, 1,001 bytes and so on."""
    former = Store.open(shared_memory, "segment", CAPACITY, clock=clock)
    maker = NodeService(former)
    owner = maker.new_owner()
    for number, name in enumerate(NAMES):
        slot = maker.write(ObjectKey("b", name), 1000 + number, owner)
        content = bytes([number]) * slot.size
        for view in former.views(slot.extents):
            view[:] = content
            view.release()
        maker.commit(slot.id, owner, xxhash.xxh3_64(content).intdigest(), ObjectKey("b", name), slot.size)
    maker.stop_verifying()
    maker.close()
    service = NodeService(Store.open(shared_memory, "segment", CAPACITY, clock=clock))
    yield service
    comparisons.go_on.set()
    service.stop_verifying()
    service.close()


async def reply(transport: Recorder) -> tuple[int, bytes]:
    deadline = time.monotonic() + 20
    while b"\r\n\r\n" not in transport.sent:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    head, _, body = transport.sent.partition(b"\r\n\r\n")
    transport.sent = b""
    return int(head.split()[1]), body


async def begin(comparisons: Comparisons) -> None:
    """Wait until the thread has something to compare."""
    async with asyncio.timeout(20):
        while not comparisons.begun:  # noqa: ASYNC110  (a thread's)
            await asyncio.sleep(0.005)


def ask(names: list[str], timeout_ms: int = 0, group_size: int = 1) -> bytes:
    body = json.dumps({"names": names, "timeout_ms": timeout_ms, "group_size": group_size}).encode()
    return b"POST /v1/kv/b/leases HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def test_a_reader_waits_no_longer_than_it_says_and_the_comparison_goes_on(
    service: NodeService, comparisons: Comparisons
) -> None:
    connection, transport = connect(service)
    request = b"POST /v1/kv/b/k0/leases?timeout_ms=50&ttl_s=30 HTTP/1.1\r\n\r\n"
    receive(connection, request)
    assert (await reply(transport))[0] == 504
    assert service.store.stats().leases == 1  # the node's own
    comparisons.go_on.set()
    receive(connection, request.replace(b"50", b"20000"))
    assert (await reply(transport))[0] == 200
    assert comparisons.begun == [1000]


async def test_a_lease_that_is_handed_out_after_a_comparison_lives_for_its_time(
    service: NodeService, comparisons: Comparisons, clock: ManualClock
) -> None:
    connection, transport = connect(service)
    receive(connection, b"POST /v1/kv/b/k0/leases?ttl_s=0.2 HTTP/1.1\r\n\r\n")
    await begin(comparisons)
    clock.advance(1)
    service.expire()
    assert service.store.stats().leases_expired == 1
    comparisons.go_on.set()
    status, body = await reply(transport)
    assert status == 200
    assert json.loads(body)["id"] in {lease.id for lease in service.store.leases().leases}


async def test_a_prefix_over_http_ends_before_what_could_not_be_compared_in_time(
    service: NodeService, comparisons: Comparisons
) -> None:
    connection, transport = connect(service)
    receive(connection, ask(NAMES[:2], timeout_ms=50))
    status, body = await reply(transport)
    assert (status, json.loads(body)["objects"]) == (200, [])
    comparisons.go_on.set()
    receive(connection, ask(NAMES[:2], timeout_ms=20_000))
    assert [leased["size"] for leased in json.loads((await reply(transport))[1])["objects"]] == [1000, 1001]


async def test_a_prefix_over_http_ends_before_the_group_with_an_object_that_does_not_match(
    service: NodeService, comparisons: Comparisons
) -> None:
    found = service.store.lease(ObjectKey("b", "k3"), "spoiler", 1)
    assert found is not None
    [view] = service.store.views(found[1].extents)
    view[:4] = b"lies"
    view.release()
    comparisons.go_on.set()
    connection, transport = connect(service)
    receive(connection, ask(NAMES, group_size=2))
    assert [leased["size"] for leased in json.loads((await reply(transport))[1])["objects"]] == [1000, 1001]


async def test_who_waits_for_a_comparison_has_at_most_one_in_the_background_before_it(
    service: NodeService, comparisons: Comparisons
) -> None:
    for name in NAMES[:4]:
        found = service.store.lease(ObjectKey("b", name), "reader", 10)
        assert found is not None
        service.verify_later(found[1])
    connection, transport = connect(service)
    await begin(comparisons)
    receive(connection, b"POST /v1/kv/b/k5/leases?ttl_s=30 HTTP/1.1\r\n\r\n")
    for _ in range(10):  # so many turns of the loop, and it stands in the thread's line
        await asyncio.sleep(0)
    comparisons.go_on.set()
    assert (await reply(transport))[0] == 200
    assert comparisons.begun.index(1005) <= 1


async def test_a_lease_that_waited_for_a_comparison_is_one_use(service: NodeService, comparisons: Comparisons) -> None:
    comparisons.go_on.set()
    connection, transport = connect(service)
    receive(connection, b"POST /v1/kv/b/k0/leases?ttl_s=30 HTTP/1.1\r\n\r\n")
    assert (await reply(transport))[0] == 200
    assert (service.store.stats().hits, service.store.stats().hit_bytes) == (1, 1000)


async def test_a_reply_that_waited_for_a_comparison_has_all_its_time_under_its_lease(
    service: NodeService, comparisons: Comparisons, clock: ManualClock
) -> None:
    connection, transport = connect(service)
    left_s: list[float] = []
    transport.after_write = lambda: left_s.extend(lease.expires_in_s for lease in service.store.leases().leases)
    receive(connection, b"GET /v1/kv/b/k0 HTTP/1.1\r\n\r\n")
    await begin(comparisons)
    clock.advance(1)
    comparisons.go_on.set()
    assert (await reply(transport))[0] == 200
    assert left_s[0] == service.store.limits.max_ttl_s
