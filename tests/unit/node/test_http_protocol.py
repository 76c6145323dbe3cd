"""One HTTP connection, called as asyncio calls it: what an end in the wrong moment leaves behind."""

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path

from tierline.node.access import Access, Grant
from tierline.node.http_protocol import HttpConnection, HttpLimits
from tierline.node.metrics import NodeMetrics
from tierline.node.segments import Segments
from tierline.node.service import NodeService
from tierline.node.turns import ReceivingTurns
from tierline.node.upload import RECEIVE_BYTES
from tierline.store import ObjectKey, Store, StoreLimits

CAPACITY = 4 * 1024 * 1024


class Recorder(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__({"socket": self})
        self.sent = b""
        self.is_aborted = False
        self.after_write: Callable[[], None] = lambda: None
        self.wakes_at = 1
        self._is_reading = True

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        self.wakes_at = value

    def is_reading(self) -> bool:
        return self._is_reading

    def is_closing(self) -> bool:
        return False

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data
        self.after_write()

    def abort(self) -> None:
        self.is_aborted = True

    def get_write_buffer_size(self) -> int:
        return len(self.sent)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class NoPages:
    def stats(self, grant: Grant) -> bytes:
        return b"{}"

    def cluster(self) -> bytes:
        return b"{}"

    def metrics(self, grant: Grant) -> tuple[bytes, str]:
        return b"", ""


def connect(service: NodeService) -> tuple[HttpConnection, Recorder]:
    limits = HttpLimits(
        max_head_bytes=16384,
        max_object_bytes=CAPACITY,
        max_discarded_bytes=CAPACITY,
        slowest_bytes_per_s=1024,
        keep_alive_s=10,
        head_timeout_s=10,
        body_timeout_s=10,
    )
    metrics = NodeMetrics(service, lambda: (0, 0), dict, float)
    connection = HttpConnection(
        Segments.only(service),
        limits,
        metrics,
        Access(None),
        NoPages(),
        memoryview(bytearray(65536)),
        ReceivingTurns(),
        set(),
        "",
        lambda: None,
    )
    transport = Recorder()
    connection.connection_made(transport)
    return connection, transport


def receive(connection: HttpConnection, data: bytes) -> None:
    connection.get_buffer(-1)[: len(data)] = data
    connection.buffer_updated(len(data))


async def test_a_lease_whose_client_goes_before_it_was_verified_ends_with_the_connection(shared_memory: Path) -> None:
    former = NodeService(Store.open(shared_memory, "segment", CAPACITY, clock=time.monotonic))
    owner = former.new_owner()
    slot = former.write(ObjectKey("b", "adopted"), 1000, owner)
    former.commit(slot.id, owner, 0, ObjectKey("b", "adopted"), 1000)
    former.stop_verifying()
    former.close()
    service = NodeService(Store.open(shared_memory, "segment", CAPACITY, clock=time.monotonic))
    connection, transport = connect(service)

    receive(connection, b"POST /v1/kv/b/adopted/leases?ttl_s=30 HTTP/1.1\r\n\r\n")
    assert service.store.stats().leases == 1
    connection.connection_lost(None)  # before the task that verifies has taken its first step

    assert (service.store.stats().leases, transport.sent) == (0, b"")
    await asyncio.sleep(0)
    service.stop_verifying()
    service.close()


async def test_a_fast_sender_lets_others_receive_after_each_filled_read(service: NodeService) -> None:
    connection, transport = connect(service)
    size = 3 * RECEIVE_BYTES
    receive(connection, b"PUT /v1/kv/b/large HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size)

    assert transport.wakes_at == RECEIVE_BYTES
    receive(connection, bytes(RECEIVE_BYTES))
    assert not transport.is_reading()
    await asyncio.sleep(0)
    assert transport.is_reading()

    while connection.is_writing:
        receive(connection, bytes(RECEIVE_BYTES))
        await asyncio.sleep(0)
    assert transport.sent.startswith(b"HTTP/1.1 200 ")
    assert transport.is_reading()
    assert transport.wakes_at == 1


async def test_the_end_of_a_body_is_heard_of_byte_by_byte(service: NodeService) -> None:
    connection, transport = connect(service)
    receive(connection, b"PUT /v1/kv/b/large HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (RECEIVE_BYTES + 10))
    receive(connection, bytes(11))
    assert transport.wakes_at == 1
    receive(connection, b"PUT /v1/kv/b/small HTTP/1.1\r\nContent-Length: 1000\r\n\r\n")
    assert transport.wakes_at == 1


async def test_a_body_that_seems_to_have_stopped_is_heard_of_byte_by_byte_before_it_is_given_up(
    service: NodeService,
) -> None:
    connection, transport = connect(service)
    receive(connection, b"PUT /v1/kv/b/large HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (2 * RECEIVE_BYTES))
    connection.enforce_deadline(time.monotonic() + 11)
    assert (transport.wakes_at, transport.sent) == (1, b"")
    connection.enforce_deadline(time.monotonic() + 20)
    assert transport.sent.startswith(b"HTTP/1.1 408 ")


HEAD = b"GET /healthz HTTP/1.1\r\n\r\n"


async def test_others_have_their_turn_between_requests_that_came_at_once(service: NodeService) -> None:
    connection, transport = connect(service)
    receive(connection, HEAD * 100 + HEAD[:10])
    answered = []
    for _ in range(100):
        answered.append(transport.sent.count(b"HTTP/1.1 200 "))
        assert not transport.is_reading()
        await asyncio.sleep(0)
    assert answered == list(range(1, 101))
    assert transport.is_reading()
    receive(connection, HEAD[10:])
    assert transport.sent.count(b"HTTP/1.1 200 ") == 101


async def test_who_does_not_take_a_reply_is_made_no_other_and_is_given_up_in_time(service: NodeService) -> None:
    connection, transport = connect(service)
    transport.after_write = connection.pause_writing
    receive(connection, HEAD * 100)
    for _ in range(10):
        await asyncio.sleep(0)
    assert transport.sent.count(b"HTTP/1.1 200 ") == 1
    assert not transport.is_reading()

    before = time.monotonic()
    connection.resume_writing()
    for _ in range(10):
        await asyncio.sleep(0)
    assert transport.sent.count(b"HTTP/1.1 200 ") == 2

    connection.enforce_deadline(before + 9)
    assert not transport.is_aborted
    connection.enforce_deadline(time.monotonic() + 12)
    assert transport.is_aborted


async def test_a_few_empty_lines_before_a_request_are_ignored_and_many_are_refused(service: NodeService) -> None:
    connection, transport = connect(service)
    receive(connection, b"\r\n\r\n" + HEAD)
    assert transport.sent.startswith(b"HTTP/1.1 200 ")

    transport.sent = b""
    await asyncio.sleep(0)  # a request that took long has ended the connection's turn
    for _ in range(5):
        receive(connection, b"\r\n")
    assert transport.sent.startswith(b"HTTP/1.1 400 ")
    assert b"Connection: close" in transport.sent


async def test_a_refusal_behind_a_body_in_two_pieces_is_answered_like_any(shared_memory: Path) -> None:
    service = NodeService(
        Store.open(shared_memory, "segment", CAPACITY, clock=time.monotonic, limits=StoreLimits(max_leases=0))
    )
    owner = service.new_owner()
    slot = service.write(ObjectKey("b", "k"), 1000, owner)
    service.commit(slot.id, owner, 0, ObjectKey("b", "k"), 1000)
    connection, transport = connect(service)

    receive(connection, b"POST /v1/kv/b/k/leases?ttl_s=9 HTTP/1.1\r\nContent-Length: 2\r\n\r\n")
    receive(connection, b"{}")

    assert transport.sent.startswith(b"HTTP/1.1 429 ")
    service.stop_verifying()
    service.close()
