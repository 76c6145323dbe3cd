"""Transfers between nodes whose other end evicts, lies, dawdles, is cut off or goes: right bytes, or none in time."""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import pytest
from tests.clocks import ManualClock
from tests.integration.pool.doors import ASKER, open_door, until
from tests.integration.pool.holders import (
    MIB,
    PATIENT,
    Holder,
    content_of,
    expect,
    fetch_all,
    open_holder,
    open_transfers,
)

from tierline.errors import NoSpace
from tierline.pool.connecting import connect_bulk
from tierline.pool.handshake import Credentials, Hello
from tierline.pool.members import Member
from tierline.pool.receiving import Expected
from tierline.pool.sending import SendingLimits
from tierline.store import ObjectKey, StoreLimits
from tierline.wire.framing import FrameDecoder, encode_frame
from tierline.wire.transfers import HEAD_BYTES, Asked, BulkRequest, Fetch, ObjectHead, Outcome, Received, unpack_head

IMPATIENT = SendingLimits(lease_s=2.0, patience_s=0.4, slowest_bytes_per_s=1e9, idle_s=0.2)


async def connected(member: Member) -> socket.socket:
    """A receiver that does what a test says."""
    return (await asyncio.to_thread(connect_bulk, member, ASKER, Credentials(), 60.0)).sock


def ask(sock: socket.socket, number: int, *expected: Expected) -> None:
    asked = [Asked(one.key.bucket, one.key.name, one.size, one.checksum) for one in expected]
    sock.sendall(encode_frame(Fetch(number, asked)))


def receive(sock: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = sock.recv(length - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def fill(holder: Holder, objects: int = 60) -> None:
    """Write so many objects of 1 MiB into a store; for one of 24 MiB they are all that can be there."""
    holder.store.expire()
    for number in range(objects):
        with contextlib.suppress(NoSpace):
            holder.put(f"filler-{random.getrandbits(64)}", bytes([number]) * MIB)


# What the holder does -------------------------------------------------------------------------------------------------


async def test_a_holder_that_has_to_evict_while_it_sends_evicts_something_else() -> None:
    async with open_holder(capacity=24 * MIB) as holder:
        content = random.randbytes(12 * MIB)
        expected = holder.put("object", content)
        with await connected(holder.member) as sock:
            ask(sock, 0, expected)
            head = unpack_head(await asyncio.to_thread(receive, sock, HEAD_BYTES))
            assert (head.outcome, head.size, head.checksum) == (Outcome.SENT, expected.size, expected.checksum)
            fill(holder)  # most of the object is not even in the socket yet
            assert await asyncio.to_thread(receive, sock, expected.size) == content
            assert holder.leases == 1  # sent, and not yet received for all that the holder knows
            fill(holder)
            assert holder.store.is_stored(expected.key)
            sock.sendall(encode_frame(Received(0, [])))
            await until(lambda: holder.leases == 0)

            def is_gone() -> bool:
                fill(holder)
                return not holder.store.is_stored(expected.key)

            await until(is_gone)


async def test_an_object_that_changes_on_its_way_does_not_come_and_its_holder_hears_of_it() -> None:
    async with open_holder() as holder, open_transfers() as transfers, open_holder() as other:
        content = random.randbytes(4 * MIB)
        [before, expected, behind] = [holder.put(name, content) for name in ("before", "object", "behind")]
        other.put("object", content)
        found = holder.store.lease(expected.key, "test", 60.0)
        assert found is not None
        holder.store.views(found[1].extents)[0][:1] = bytes([content[0] ^ 1])
        holder.store.release(found[0])
        arrivals = await fetch_all(transfers, holder.member, [before, expected, behind])
        assert [arrival.checksum for arrival in arrivals] == [before.checksum, None, behind.checksum]
        assert transfers.failures == {"checksum": 1}
        await until(lambda: holder.suspected == [expected.key])
        [arrival] = await fetch_all(transfers, other.member, [expected])
        assert arrival.checksum == expected.checksum
        assert content_of(expected) == content


async def test_an_object_that_goes_before_its_turn_is_missing() -> None:
    async with open_holder() as holder, open_transfers() as transfers:
        expected = holder.put_some(1000, 1000)
        holder.store.delete(expected[0].key)
        arrivals = await fetch_all(transfers, holder.member, expected)
        assert [arrival.checksum for arrival in arrivals] == [None, expected[1].checksum]


async def test_a_holder_that_may_lease_no_more_says_so() -> None:
    limits = StoreLimits(grace_s=0, quarantine_s=0, max_leases_per_holder=1)
    async with open_holder(store_limits=limits) as holder, open_transfers() as transfers:
        expected = holder.put_some(1000, 1000)
        arrivals = await fetch_all(transfers, holder.member, expected)
        assert [arrival.checksum for arrival in arrivals] == [expected[0].checksum, None]
        assert transfers.failures == {"busy": 1}


# What lies between ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def cut_off(member: Member, after_bytes: int) -> AsyncIterator[Member]:
    """A way to a member on which so many bytes come back, and then nothing more."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(*member.address)

        async def forth() -> None:
            while data := await reader.read(65536):
                there[1].write(data)

        forward = asyncio.create_task(forth())
        left = after_bytes
        while left and (data := await there[0].read(min(left, 65536))):
            writer.write(data)
            await writer.drain()
            left -= len(data)
        forward.cancel()
        writer.close()
        there[1].close()

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    try:
        yield Member("", *server.sockets[0].getsockname())
    finally:
        server.close()


async def test_a_connection_that_is_cut_in_the_middle_of_an_object_costs_that_object_and_those_behind_it() -> None:
    async with open_holder() as holder, open_transfers() as transfers:
        expected = holder.put_some(MIB, MIB, MIB)
        async with cut_off(holder.member, 3 * MIB // 2) as member:
            arrivals = await fetch_all(transfers, member, expected)
        assert [arrival.checksum for arrival in arrivals] == [expected[0].checksum, None, None]
        assert transfers.failures == {"broken": 2}
        await until(lambda: holder.leases == 0)
        arrivals = await fetch_all(transfers, holder.member, expected)  # the next holder, say
        assert all(arrival.checksum is not None for arrival in arrivals)


# Holders that are none ------------------------------------------------------------------------------------------------

Lie = Callable[[socket.socket, Fetch], Iterator[bytes]]


@contextlib.asynccontextmanager
async def liar(lie: Lie) -> AsyncIterator[Member]:
    """A member that answers each fetch with what ``lie`` yields."""

    def serve(sock: socket.socket, peer: Hello) -> None:
        decoder: FrameDecoder[BulkRequest] = FrameDecoder(BulkRequest)  # type: ignore[arg-type]
        with contextlib.suppress(OSError):
            while data := sock.recv(65536):
                for message in decoder.feed(data):
                    if isinstance(message, Fetch):
                        for answer in lie(sock, message):
                            sock.sendall(answer)

    async with open_door(Credentials(), serve_bulk=serve) as at:
        yield at.member


def larger(_: socket.socket, fetch: Fetch) -> Iterator[bytes]:
    size = fetch.objects[0].size + 4096
    yield ObjectHead(fetch.number, 0, Outcome.SENT, size, fetch.objects[0].checksum).pack() + b"x" * size


def endless(_: socket.socket, fetch: Fetch) -> Iterator[bytes]:
    yield ObjectHead(fetch.number, 0, Outcome.SENT, 2**63, fetch.objects[0].checksum).pack()
    while True:
        yield b"x" * 65536


def smaller(_: socket.socket, fetch: Fetch) -> Iterator[bytes]:
    size = fetch.objects[0].size - 1
    yield ObjectHead(fetch.number, 0, Outcome.SENT, size, fetch.objects[0].checksum).pack() + b"x" * size


def too_much(_: socket.socket, fetch: Fetch) -> Iterator[bytes]:
    asked = fetch.objects[0]
    yield ObjectHead(fetch.number, 0, Outcome.SENT, asked.size, asked.checksum).pack() + b"x" * (asked.size + 99)


def another(_: socket.socket, fetch: Fetch) -> Iterator[bytes]:
    yield ObjectHead(fetch.number, 1, Outcome.SENT, fetch.objects[1].size, fetch.objects[1].checksum).pack()


def garbage(_: socket.socket, fetch: Fetch) -> Iterator[bytes]:
    yield random.randbytes(4096)


def nothing(sock: socket.socket, fetch: Fetch) -> Iterator[bytes]:
    sock.close()
    yield from ()


@pytest.mark.parametrize("lie", [larger, endless, smaller, too_much, another, garbage, nothing])
async def test_a_member_that_lies_gives_nothing_and_nothing_is_written_behind_the_pages(lie: Lie) -> None:
    pages = memoryview(bytearray(4 * 4096))
    expected = [
        expect("first", 4096, 1)._replace(views=[pages[4096 : 2 * 4096]]),
        expect("second", 4096, 2)._replace(views=[pages[3 * 4096 :]]),
    ]
    async with liar(lie) as member, open_transfers() as transfers:
        arrivals = await fetch_all(transfers, member, expected, 5.0)
    assert [arrival.checksum for arrival in arrivals] == [None, None]
    assert bytes(pages[:4096]) == bytes(pages[2 * 4096 : 3 * 4096]) == bytes(4096)


async def test_a_member_that_falls_silent_is_given_up_before_the_time_is_over() -> None:
    def silent(_: socket.socket, __: Fetch) -> Iterator[bytes]:
        yield from ()

    async with liar(silent) as member, open_transfers(limits=replace(PATIENT, silence_s=0.1)) as transfers:
        async with asyncio.timeout(60):
            arrivals = await fetch_all(transfers, member, [expect("object", 1000, 1)], 600.0)
        assert arrivals[0].checksum is None
        assert transfers.failures == {"silent": 1}
        assert transfers.seconds(member, 1000) is not None  # whoever asks next knows that it is slow


async def test_a_member_that_drips_has_the_time_that_was_given_and_no_more() -> None:
    def drip(sock: socket.socket, fetch: Fetch) -> Iterator[bytes]:
        asked = fetch.objects[0]
        yield ObjectHead(fetch.number, 0, Outcome.SENT, asked.size, asked.checksum).pack()
        while True:
            time.sleep(0.02)
            yield b"x"

    expected = expect("object", MIB, 1)
    async with liar(drip) as member, open_transfers() as transfers:
        async with asyncio.timeout(60):
            arrivals = await fetch_all(transfers, member, [expected], 0.3)
        before = content_of(expected)
        await asyncio.sleep(0.1)
        assert arrivals[0].checksum is None
        assert content_of(expected) == before
        assert transfers.failures == {"late": 1}


async def test_a_host_that_does_not_answer_is_waited_for_as_long_as_was_given() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        async with open_transfers() as transfers, asyncio.timeout(60):
            member = Member("deaf", *deaf.getsockname())
            arrivals = await fetch_all(transfers, member, [expect("object", 1000, 1)], 0.2)
        assert (arrivals, transfers.failures) == ([(0, None, "deaf")], {"late": 1})


# What the receiver does -----------------------------------------------------------------------------------------------


async def test_a_receiver_that_is_gone_leaves_no_lease() -> None:
    async with open_holder() as holder:
        expected = holder.put_some(8 * MIB, 8 * MIB)
        sock = await connected(holder.member)
        ask(sock, 0, *expected)
        await until(lambda: holder.leases == 2)
        sock.close()
        await until(lambda: holder.leases == 0 and holder.door.inside.total() == 0)
        assert holder.sender.active == 0


@pytest.mark.parametrize("reads", [True, False])
async def test_a_receiver_that_takes_nothing_or_says_nothing_is_dropped(reads: bool) -> None:
    clock = ManualClock()
    async with open_holder(limits=IMPATIENT, clock=clock) as holder:
        expected = holder.put("object", bytes(16 * MIB))
        with await connected(holder.member) as sock:
            ask(sock, 0, expected)
            await asyncio.to_thread(receive, sock, HEAD_BYTES + expected.size * reads)
            clock.advance(1.0)
            await until(lambda: holder.sender.dropped == 1)
            await until(lambda: holder.leases == 0 and holder.door.inside.total() == 0)


async def test_a_receiver_that_asks_for_nothing_is_let_go() -> None:
    async with open_holder(limits=IMPATIENT) as holder:
        with await connected(holder.member) as sock:
            assert await asyncio.to_thread(sock.recv, 1) == b""
            await until(lambda: holder.door.inside.total() == 0)
            assert holder.sender.dropped == 0


@pytest.mark.parametrize(("asked_s", "given_s"), [(2.0, 60.0), (60.0, 2.0)])
async def test_a_receiver_that_is_slow_but_not_too_slow_gets_its_object_however_short_a_lease_is(
    asked_s: float, given_s: float
) -> None:
    clock, limits = ManualClock(), SendingLimits(lease_s=asked_s, patience_s=60.0)
    store_limits = StoreLimits(grace_s=0, quarantine_s=0, max_ttl_s=given_s)
    async with open_holder(capacity=24 * MIB, limits=limits, store_limits=store_limits, clock=clock) as holder:
        content = random.randbytes(12 * MIB)
        expected = holder.put("object", content)
        with await connected(holder.member) as sock:
            ask(sock, 0, expected)
            await asyncio.to_thread(receive, sock, HEAD_BYTES)
            received = b""
            for _ in range(6):
                clock.advance(1.0)
                await until(lambda: [lease.expires_in_s for lease in holder.store.leases().leases] == [2.0])
                fill(holder)
                received += await asyncio.to_thread(receive, sock, expected.size // 6)
            assert received == content
            assert holder.leases == 1
        await until(lambda: holder.leases == 0)


@pytest.mark.parametrize(
    "requests",
    [
        [Fetch(1, [Asked("b", "object-0", 1000, 1)])],
        [Received(0, [])],
        [Fetch(number, [Asked("b", "object-0", 1000, 1)]) for number in range(9)],
        [b"\xff" * 64],
    ],
)
async def test_requests_out_of_turn_end_the_connection(requests: list[BulkRequest | bytes]) -> None:
    async with open_holder() as holder:
        holder.put_some(1000)
        with await connected(holder.member) as sock:
            sock.sendall(b"".join(one if isinstance(one, bytes) else encode_frame(one) for one in requests))
            await until(lambda: holder.door.inside.total() == 0 and holder.sender.dropped == 1)
            assert holder.leases == 0


async def test_places_that_a_receiver_complains_of_and_never_asked_for_mean_nothing() -> None:
    async with open_holder() as holder:
        [expected] = holder.put_some(1000)
        with await connected(holder.member) as sock:
            ask(sock, 0, expected, expect("nowhere", 10, 1))
            await asyncio.to_thread(receive, sock, 2 * HEAD_BYTES + expected.size)
            sock.sendall(encode_frame(Received(0, [1, 5, 2**40])))
            await until(lambda: holder.leases == 0)
            assert holder.suspected == []
        assert holder.store.is_stored(ObjectKey("b", "object-0"))
