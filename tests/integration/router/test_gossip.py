"""Routers over real sockets that tell each other what they do; those that are none, or lie, are not listened to."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from tests.integration.router.backend import until
from tests.ports import free_port, free_ports

from tierline.router.gossip import following, telling
from tierline.router.gossip.following import Following
from tierline.router.gossip.sealing import HELLO_BYTES, JOIN_BYTES, WELCOME_BYTES, Follower, Sealer, Teller
from tierline.router.gossip.telling import Telling
from tierline.router.workers import messages
from tierline.router.workers.board import Load
from tierline.router.workers.messages import Kind, Knowledge, LoadEntry, Loads, Placed

SECRET = b"a secret of some length"


@dataclass
class Replica:
    """What a router has of other routers."""

    name: bytes
    loads: list[Load] = field(default_factory=list)
    recent: list[bytes] = field(default_factory=list)
    seen: list[Load] = field(default_factory=list)
    learnt: list[bytes] = field(default_factory=list)

    def follow(self, *ports: int, lookup: tuple[str, int] | None = None, secret: bytes = SECRET) -> Following:
        addresses = [("127.0.0.1", port) for port in ports]
        return Following(secret, self.name, addresses, lookup, self._changed, self.learnt.append)

    def tell(self, secret: bytes = SECRET) -> Telling:
        return Telling(secret, self.name, lambda: self.loads, lambda: self.recent)

    def _changed(self, loads: list[Load]) -> None:
        self.seen = loads


@contextlib.asynccontextmanager
async def told(teller: Telling, port: int) -> AsyncIterator[Telling]:
    await teller.start("127.0.0.1", port)
    try:
        yield teller
    finally:
        await teller.stop()


@contextlib.asynccontextmanager
async def followed(follower: Following) -> AsyncIterator[Following]:
    follower.start()
    try:
        yield follower
    finally:
        await follower.stop()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "RETRY_SECONDS", (0.05,))
    monkeypatch.setattr(following, "RESOLVED_EVERY_S", 0.1)
    monkeypatch.setattr(following, "SILENT_SECONDS", 60.0)


def knowledge(*blocks: bytes) -> bytes:
    return messages.encode(Knowledge(7, [Placed(9, block) for block in blocks], []))


FIRST, SECOND = knowledge(b"12345678"), knowledge(b"87654321")


async def test_loads_and_placements_are_told_and_what_was_known_before_to_who_comes_later() -> None:
    one, other = Replica(b"1" * 16, [Load(5, 2, 20)], [FIRST]), Replica(b"2" * 16)
    port = free_port()
    async with told(one.tell(), port) as teller, followed(other.follow(port)) as follower:
        await until(lambda: other.seen == [Load(5, 2, 20)] and other.learnt == [FIRST])
        teller.tell(SECOND)
        one.loads = [Load(5, 1, 10), Load(6, 0, 0)]
        await until(lambda: other.seen == [Load(5, 1, 10)] and other.learnt == [FIRST, SECOND])
        assert follower.followed == 1
    assert other.seen == [], "who is not listened to has nothing"
    assert teller.refused == follower.refused == 0


async def test_of_several_one_is_asked_what_was_and_the_loads_of_all_are_added_up() -> None:
    ports = free_ports(2)
    ones = [Replica(bytes([number]) * 16, [Load(5, number, 10)], [FIRST]) for number in (1, 2)]
    other = Replica(b"o" * 16)
    async with (
        told(ones[0].tell(), ports[0]),
        told(ones[1].tell(), ports[1]),
        followed(other.follow(*ports)),
    ):
        await until(lambda: other.seen == [Load(5, 3, 20)] and bool(other.learnt))
        await asyncio.sleep(0.1)
        assert other.learnt == [FIRST]


async def test_a_router_that_is_gone_has_nothing_and_is_listened_to_again_when_it_is_back() -> None:
    one, other, port = Replica(b"1" * 16, [Load(5, 2, 20)]), Replica(b"2" * 16), free_port()
    async with followed(other.follow(port)):
        for _ in range(2):
            async with told(one.tell(), port):
                await until(lambda: other.seen == [Load(5, 2, 20)])
            await until(lambda: other.seen == [])


async def test_a_router_that_says_nothing_any_more_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(telling, "STILL_HERE_SECONDS", 1000.0)
    one, other, port = Replica(b"1" * 16, [Load(5, 2, 20)]), Replica(b"2" * 16), free_port()
    async with told(one.tell(), port), followed(other.follow(port)):
        await until(lambda: other.seen == [Load(5, 2, 20)])
        await until(lambda: other.seen == [])


async def test_a_router_listens_neither_to_itself_nor_twice_to_another() -> None:
    one, other, port = Replica(b"1" * 16, [Load(5, 2, 20)]), Replica(b"2" * 16), free_port()
    async with (
        told(one.tell(), port),
        followed(one.follow(port, lookup=("localhost", port))) as itself,
        followed(other.follow(port, lookup=("localhost", port))) as follower,
    ):
        await until(lambda: other.seen == [Load(5, 2, 20)])
        await asyncio.sleep(0.3)
        assert (itself.followed, follower.followed) == (0, 1)
        assert other.seen == [Load(5, 2, 20)]
        assert itself.refused == follower.refused == 0


async def test_who_does_not_know_the_secret_is_told_nothing_and_not_listened_to() -> None:
    one, other, port = Replica(b"1" * 16, [Load(5, 2, 20)], [FIRST]), Replica(b"2" * 16), free_port()
    async with told(one.tell(), port) as teller, followed(other.follow(port, secret=b"guessed")) as follower:
        await until(lambda: follower.refused > 1)
        assert (other.seen, other.learnt, follower.followed) == ([], [], 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 10)
        assert await reader.read() == b""
        writer.close()
        await until(lambda: teller.refused >= 1)


@pytest.mark.parametrize(
    "nonsense",
    [
        (Kind.LOADS, b"\xc1"),
        (Kind.LOADS, messages.encode(Loads([LoadEntry(5, 1, 1), LoadEntry(5, 2, 2)]))),
        (Kind.KNOWLEDGE, knowledge(b"1234567")),
        (Kind.ASK, b""),
    ],
)
async def test_nonsense_ends_the_connection_is_counted_and_changes_nothing(nonsense: tuple[Kind, bytes]) -> None:
    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        teller = Teller(SECRET, b"l" * 16)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            writer.write(teller.welcome(await reader.readexactly(HELLO_BYTES)))
            _, sealer = teller.join(await reader.readexactly(JOIN_BYTES))
            writer.write(sealer.sealed(Kind.LOADS, messages.encode(Loads([LoadEntry(5, 1, 1)]))))
            writer.write(sealer.sealed(*nonsense) + Sealer(b"other").sealed(Kind.KNOWLEDGE, FIRST))
            await reader.read()
        writer.close()

    other, port = Replica(b"2" * 16), free_port()
    server = await asyncio.start_server(lie, "127.0.0.1", port)
    async with server, followed(other.follow(port)) as follower:
        await until(lambda: follower.refused >= 2)
        await until(lambda: follower.followed == 0)
        assert (other.seen, other.learnt) == ([], [])


async def test_a_follower_that_does_not_keep_up_is_told_less_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "BYTES_PER_SECOND", 4096)
    one, other, port = Replica(b"1" * 16), Replica(b"2" * 16), free_port()
    async with told(one.tell(), port) as teller, followed(other.follow(port)) as follower:
        await until(lambda: follower.followed == 1)
        large = knowledge(bytes(8 * 100))
        for _ in range(100):
            teller.tell(large)
        assert teller.untold > 50
        await until(lambda: len(other.learnt) == 100 - teller.untold)


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a process that is killed does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def test_telling_a_router_that_was_killed_just_now_raises_nothing_where_it_is_told_from() -> None:
    class Worker(asyncio.Protocol):
        """What comes from a worker is told on from here; what is raised here would end its connection."""

        def data_received(self, data: bytes) -> None:
            try:
                teller.tell(FIRST)
            except RuntimeError as error:
                raised.append(error)

    one, port = Replica(b"1" * 16), free_port()
    raised: list[RuntimeError] = []
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    await asyncio.get_running_loop().create_unix_connection(Worker, sock=ours)
    with theirs:
        async with told(one.tell(), port) as teller:
            for _ in range(10):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                beginning = Follower(SECRET, b"2" * 16)
                writer.write(beginning.hello())
                _, answer, _ = beginning.join(await reader.readexactly(WELCOME_BYTES), wants_recent=False)
                writer.write(answer)
                await reader.readexactly(1)
                reset(writer)
                for _ in range(20):
                    theirs.send(b"x")
                    await asyncio.sleep(0)
    assert raised == []


async def test_connections_of_who_does_not_know_the_secret_are_logged_once_a_minute(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, port = Replica(b"1" * 16), free_port()
    async with told(one.tell(), port) as teller:
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"x" * HELLO_BYTES)
            assert await reader.read() == b""
            writer.close()
        await until(lambda: teller.refused == 20)
    assert "".join(capsys.readouterr()).count("is refused") == 1
