"""Fuzz targets of transfers between nodes: what a receiver may ask of a holder, and what a holder may answer.

``fetches``: bytes of a bulk connection behind its handshake. ``arrivals``: bytes that come back on one. ``handshakes``:
bytes of a connection from its first on, as its door and as its caller read them.
"""

import asyncio
import contextlib
import socket

import xxhash
from tests.fuzz.world import KNOWN, new_node, require_every_page_counted

from tierline.errors import AccessDenied, WireError
from tierline.pool.handshake import (
    GREETING_BYTES,
    Credentials,
    Hello,
    Purpose,
    Steps,
    answer,
    call,
    greet,
    parse_greeting,
)
from tierline.pool.members import Member
from tierline.pool.receiving import Expected, ReceivingLimits, Transfers, _Link
from tierline.pool.sending import Sender, SendingLimits
from tierline.store import ObjectKey
from tierline.wire.transfers import HEAD_BYTES, Outcome, unpack_head

PEER = Hello("fuzz", 1, "pool")
PATIENCE_S = 5.0
TOKEN = b"a token of some length"
SIZE = 64
CONTENT = bytes(range(SIZE))


def fetches(data: bytes) -> None:
    """Whatever is asked for: the answer is whole objects as they are stored, and nothing stays leased."""
    asyncio.run(_fetches_run(data))


async def _fetches_run(data: bytes) -> None:
    async with new_node() as node:
        store = node.service.store
        sender = Sender(
            asyncio.get_running_loop(),
            lambda bucket: store if bucket == "b" else None,
            lambda key: None,
            SendingLimits(patience_s=PATIENCE_S),
        )
        ours, theirs = socket.socketpair()
        with ours, theirs:
            received = asyncio.create_task(asyncio.to_thread(_receive_all, ours))
            serving = asyncio.create_task(asyncio.to_thread(_serve, sender, theirs))
            await asyncio.to_thread(_say, ours, data)
            await serving
            _require_objects(await received)
        await asyncio.sleep(0)
        assert (sender.active, store.stats().leases) == (0, 0)
        sender.close()
        require_every_page_counted(store)


def _serve(sender: Sender, sock: socket.socket) -> None:
    sender.serve(sock, PEER)
    sock.shutdown(socket.SHUT_RDWR)


def _say(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # it has heard enough
        sock.sendall(data[:7])
        sock.sendall(data[7:])
        sock.shutdown(socket.SHUT_WR)


def _receive_all(sock: socket.socket) -> bytes:
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while part := sock.recv(65536):
            received += part
    return bytes(received)


def _require_objects(received: bytes) -> None:
    known = {xxhash.xxh3_64_intdigest(content): content for content in KNOWN.values()}
    while received:
        head, received = unpack_head(received[:HEAD_BYTES]), received[HEAD_BYTES:]
        if head.outcome is Outcome.SENT:
            assert received[: head.size] == known[head.checksum]
            received = received[head.size :]


def arrivals(data: bytes) -> None:
    """Whatever a holder answers: what arrives is what was expected, and nothing is written beside its pages."""
    asyncio.run(_arrivals_run(data))


async def _arrivals_run(data: bytes) -> None:
    pages = memoryview(bytearray(3 * SIZE))
    wanted = [
        Expected(ObjectKey("b", "first"), SIZE, xxhash.xxh3_64_intdigest(CONTENT), [pages[:10], pages[10:SIZE]]),
        Expected(ObjectKey("b", "second"), SIZE, xxhash.xxh3_64_intdigest(CONTENT), [pages[2 * SIZE :]]),
    ]
    member = Member("holder", "127.0.0.1", 1)
    transfers = Transfers(PEER, Credentials(), ReceivingLimits(silence_s=PATIENCE_S))
    ours, theirs = socket.socketpair()
    transfers.keep(member, _Link(ours, PEER))
    with theirs:
        saying = asyncio.create_task(asyncio.to_thread(_answer, theirs, data))
        found = [arrival async for arrival in transfers.fetch(member, wanted, PATIENCE_S)]
        await transfers.close()
        await saying
    assert sorted(arrival.index for arrival in found) == [0, 1]
    assert bytes(pages[SIZE : 2 * SIZE]) == bytes(SIZE)
    for arrival in found:
        if arrival.checksum is not None:
            assert arrival.checksum == wanted[arrival.index].checksum
            assert b"".join(wanted[arrival.index].views) == CONTENT


def _answer(sock: socket.socket, data: bytes) -> None:
    """Wait for the question, and say what is said to it."""
    sock.recv(65536)
    _say(sock, data)
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass


def handshakes(data: bytes) -> None:
    """Whatever is said by who does not know the token: nobody is let in, and nobody lets himself be let in."""
    greeting = greet(Purpose.BULK, is_tls=False)
    with contextlib.suppress(WireError):
        parse_greeting(data[:GREETING_BYTES].ljust(GREETING_BYTES), is_tls=False)
    for steps in (call(greeting, PEER, TOKEN), answer(greeting, PEER, TOKEN, lambda hello: "")):
        _feed(steps, data[GREETING_BYTES:])


def _feed(steps: Steps, data: bytes) -> None:
    try:
        wish = next(steps)
        while isinstance(wish, bytes) or len(data) >= wish:
            if isinstance(wish, bytes):
                wish = next(steps)
            else:
                part, data = data[:wish], data[wish:]
                wish = steps.send(part)
    except (AccessDenied, WireError):
        return
    except StopIteration:
        raise AssertionError("somebody without the token was taken for a member") from None
    finally:
        steps.close()
