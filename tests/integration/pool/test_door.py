"""Nodes that belong to a pool come in at each other's doors; whoever does not has no turn and costs seconds at most."""

import asyncio
import contextlib
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from tests.integration.pool.doors import ASKER, HOLDER, PATIENT, TOKEN, certificate, open_door, until
from tests.ports import free_port

from tierline.errors import AccessDenied, ConfigurationError, EnvironmentTooSmall, NodeUnavailable, UsageError
from tierline.pool.connecting import connect_bulk, connect_control
from tierline.pool.handshake import Credentials, Hello, Purpose, greet
from tierline.pool.listening import DoorLimits, bind_door
from tierline.pool.members import Member

WITHIN_S = 60.0
OPEN, WITH_TOKEN = Credentials(), Credentials(TOKEN)
AUTHORITY = trustme.CA()


async def bulk(member: Member, credentials: Credentials, own: Hello = ASKER) -> socket.socket:
    connection = await asyncio.to_thread(connect_bulk, member, own, credentials, WITHIN_S)
    assert connection.peer == HOLDER
    return connection.sock


def exchange(sock: socket.socket, data: bytes) -> bytes:
    sock.sendall(data)
    return sock.recv(len(data))


@pytest.fixture(params=["open", "token", "tls", "tls and token"])
def credentials(request: pytest.FixtureRequest, tmp_path: Path) -> Credentials:
    shown = certificate(tmp_path, AUTHORITY, "127.0.0.1") if "tls" in request.param else None
    return Credentials(TOKEN if "token" in request.param else b"", shown)


async def test_members_come_in_for_control_and_for_bulk_through_one_port(credentials: Credentials) -> None:
    async with open_door(credentials) as at:
        reader, writer, peer = await connect_control(at.member, ASKER, credentials, WITHIN_S)
        sock = await bulk(at.member, credentials)
        writer.write(b"control")
        assert (await reader.readexactly(7), peer) == (b"control", HOLDER)
        assert await asyncio.to_thread(exchange, sock, b"bulk") == b"bulk"
        assert at.guests.seen == [ASKER, ASKER]
        assert at.door.inside == {Purpose.CONTROL: 1, Purpose.BULK: 1}
        writer.close()
        sock.close()
        await until(lambda: at.door.inside.total() == 0)
        assert (at.guests.gone, at.door.refused) == (2, 0)


async def test_a_door_that_closes_ends_who_is_inside_also_who_is_silent(credentials: Credentials) -> None:
    async with open_door(credentials) as at:
        reader, writer, _ = await connect_control(at.member, ASKER, credentials, WITHIN_S)
        sock = await bulk(at.member, credentials)
        at.serving.cancel()
        await asyncio.wait([at.serving])
        assert at.guests.gone == 2
        with contextlib.suppress(ConnectionError):
            assert await reader.read(1) == b""
        with contextlib.suppress(OSError):
            assert await asyncio.to_thread(sock.recv, 1) == b""
        writer.close()
        sock.close()


@pytest.mark.parametrize(
    ("doors", "callers"), [(WITH_TOKEN, Credentials(b"another token, as long")), (WITH_TOKEN, OPEN), (OPEN, WITH_TOKEN)]
)
async def test_who_does_not_know_the_token_is_not_let_in(doors: Credentials, callers: Credentials) -> None:
    async with open_door(doors) as at:
        with pytest.raises(AccessDenied, match="does not know this pool's token"):
            await connect_control(at.member, ASKER, callers, WITHIN_S)
        with pytest.raises(AccessDenied, match="does not know this pool's token"):
            await bulk(at.member, callers)
        await until(lambda: at.door.refused == 2)
        assert at.guests.seen == []


async def test_a_node_of_another_pool_is_not_let_in() -> None:
    async with open_door(WITH_TOKEN) as at:
        with pytest.raises(AccessDenied, match="belongs to pool 'pool', and node asker to 'another'"):
            await connect_control(at.member, Hello("asker", 2, "another"), WITH_TOKEN, WITHIN_S)


async def test_a_conversation_that_was_recorded_lets_nobody_in() -> None:
    recorded: list[bytes] = []

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand everything on between a caller and the door, and keep what the caller says."""
        door_reader, door_writer = await asyncio.open_connection(*at.member.address)

        async def answers() -> None:
            while data := await door_reader.read(4096):
                writer.write(data)

        answering = asyncio.create_task(answers())
        while data := await reader.read(4096):
            recorded.append(data)
            door_writer.write(data)
        answering.cancel()
        writer.close()
        door_writer.close()

    async with open_door(WITH_TOKEN) as at:
        between = await asyncio.start_server(record, "127.0.0.1", 0)
        thief = Member("", *between.sockets[0].getsockname())
        _, writer, _ = await connect_control(thief, ASKER, WITH_TOKEN, WITHIN_S)
        writer.close()
        await until(lambda: at.guests.gone == 1)
        between.close()
        reader, writer = await asyncio.open_connection(*at.member.address)
        writer.write(b"".join(recorded))
        await reader.read()
        writer.close()
        await until(lambda: at.door.refused == 1)
        assert len(at.guests.seen) == 1


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: node\r\n\r\n" + bytes(64), bytes(4096), b"\x16\x03\x01" + bytes(300)]
)
async def test_what_is_no_greeting_is_turned_away_at_once(data: bytes) -> None:
    async with open_door(WITH_TOKEN) as at:
        reader, writer = await asyncio.open_connection(*at.member.address)
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        await until(lambda: at.door.refused == 1)
        assert at.guests.seen == []


async def test_who_does_not_go_on_is_turned_away_and_others_come_in_meanwhile() -> None:
    beginnings = [b"T", *(greet(purpose, is_tls=False).raw for purpose in Purpose)]
    async with open_door(WITH_TOKEN, limits=DoorLimits(handshake_s=3.0)) as at:
        slow = [await asyncio.open_connection(*at.member.address) for _ in range(9)]
        for number, (_, writer) in enumerate(slow):
            writer.write(beginnings[number % 3])
        (await bulk(at.member, WITH_TOKEN)).close()
        async with asyncio.timeout(60):
            for reader, writer in slow:
                await reader.read()
                writer.close()
        await until(lambda: at.door.refused == 9)


async def test_a_caller_that_drips_is_turned_away_when_its_time_is_over() -> None:
    async with open_door(WITH_TOKEN, limits=DoorLimits(handshake_s=0.5)) as at:
        reader, writer = await asyncio.open_connection(*at.member.address)
        writer.write(greet(Purpose.BULK, is_tls=False).raw)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(60):
                while at.door.refused == 0:
                    writer.write(b"\x50\x00" if reader.at_eof() else b"\x20")
                    await asyncio.sleep(0.1)
        await until(lambda: at.door.refused == 1)
        writer.close()


async def test_of_those_whose_handshake_is_not_done_there_are_few() -> None:
    async with open_door(WITH_TOKEN, limits=replace(PATIENT, opening=3)) as at:
        slow = [await asyncio.open_connection(*at.member.address) for _ in range(3)]
        with pytest.raises(NodeUnavailable):
            await connect_control(at.member, ASKER, WITH_TOKEN, WITHIN_S)
        for _, writer in slow:
            writer.close()
        await until(lambda: at.door.refused == 4)
        (await bulk(at.member, WITH_TOKEN)).close()


async def test_one_member_too_many_hears_that_it_is() -> None:
    async with open_door(WITH_TOKEN, limits=replace(PATIENT, bulk=1)) as at:
        first = await bulk(at.member, WITH_TOKEN)
        with pytest.raises(AccessDenied, match="1 connections of this kind are open already"):
            await bulk(at.member, WITH_TOKEN)
        first.close()
        await until(lambda: at.door.inside.total() == 0)
        (await bulk(at.member, WITH_TOKEN)).close()


# TLS ------------------------------------------------------------------------------------------------------------------


async def test_one_side_with_tls_and_one_without_do_not_meet(tmp_path: Path) -> None:
    encrypted = Credentials(TOKEN, certificate(tmp_path, AUTHORITY, "127.0.0.1"))
    for doors, callers in ((encrypted, WITH_TOKEN), (WITH_TOKEN, encrypted)):
        async with open_door(doors) as at:
            with pytest.raises(NodeUnavailable):
                await connect_control(at.member, ASKER, callers, WITHIN_S)
            with pytest.raises(NodeUnavailable):
                await bulk(at.member, callers)
            assert at.guests.seen == []


async def test_certificates_of_another_authority_are_refused_by_both_sides(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    ours = Credentials(certificate=certificate(tmp_path, AUTHORITY, "127.0.0.1"))
    others = Credentials(certificate=certificate(tmp_path / "other", trustme.CA(), "127.0.0.1"))
    for doors, callers in ((ours, others), (others, ours)):
        async with open_door(doors) as at:
            with pytest.raises(NodeUnavailable, match="certificate is refused"):
                await connect_control(at.member, ASKER, callers, WITHIN_S)
            with pytest.raises(NodeUnavailable, match="certificate is refused"):
                await bulk(at.member, callers)
            assert at.guests.seen == []


async def test_a_door_whose_certificate_names_another_host_is_refused(tmp_path: Path) -> None:
    doors = Credentials(certificate=certificate(tmp_path, AUTHORITY, "elsewhere.example"))
    callers = Credentials(certificate=certificate(tmp_path, AUTHORITY, "127.0.0.1"))
    async with open_door(doors) as at:
        with pytest.raises(NodeUnavailable, match="certificate is refused"):
            await connect_control(at.member, ASKER, callers, WITHIN_S)
        with pytest.raises(NodeUnavailable, match="certificate is refused"):
            await bulk(at.member, callers)


@pytest.mark.parametrize(
    ("name", "is_let_in"), [("asker", True), ("127.0.0.1", True), ("elsewhere.example", False), ("10.0.0.1", False)]
)
async def test_a_caller_has_a_certificate_of_its_node_or_of_its_address(
    tmp_path: Path, name: str, is_let_in: bool
) -> None:
    (tmp_path / "caller").mkdir()
    doors = Credentials(certificate=certificate(tmp_path, AUTHORITY, "127.0.0.1"))
    callers = Credentials(certificate=certificate(tmp_path / "caller", AUTHORITY, name))
    async with open_door(doors) as at:
        objection = "the certificate that was shown names neither node asker nor 127.0.0.1"
        expected = contextlib.nullcontext() if is_let_in else pytest.raises(AccessDenied, match=objection)
        with expected:
            _, writer, _ = await connect_control(at.member, ASKER, callers, WITHIN_S)
            writer.close()
        with expected:
            (await bulk(at.member, callers)).close()
        await until(lambda: at.guests.seen == ([ASKER, ASKER] if is_let_in else []))


@pytest.mark.parametrize("name", ["any.pool.example", "*.pool.example"])
async def test_one_name_for_all_members_takes_the_place_of_hosts(tmp_path: Path, name: str) -> None:
    named = Credentials(TOKEN, certificate(tmp_path, AUTHORITY, name), tls_name="any.pool.example")
    async with open_door(named) as at:
        _, writer, _ = await connect_control(at.member, ASKER, named, WITHIN_S)
        (await bulk(at.member, named)).close()
        writer.close()
        other = Credentials(TOKEN, certificate(tmp_path, AUTHORITY, "127.0.0.1"), tls_name="any.pool.example")
        with pytest.raises(AccessDenied, match="names neither"):
            await bulk(at.member, other)


# Doors nobody can have ------------------------------------------------------------------------------------------------


def test_a_door_that_others_can_reach_needs_credentials_or_a_network_that_is_trusted() -> None:
    with pytest.raises(UsageError, match="would give every object to whoever connects"):
        bind_door("0.0.0.0", 0, OPEN)
    bind_door("0.0.0.0", 0, OPEN, trusted_network=True).close()
    bind_door("0.0.0.0", 0, WITH_TOKEN).close()


def test_an_address_that_cannot_be_had_is_a_mistake_of_the_user() -> None:
    with bind_door("127.0.0.1", 0, OPEN) as taken:
        taken.listen()
        with pytest.raises(EnvironmentTooSmall, match="cannot be used"):
            bind_door("127.0.0.1", taken.getsockname()[1], OPEN)
    with pytest.raises(UsageError, match="no address"):
        bind_door("no address", 1, OPEN)


async def test_a_door_that_is_closed_is_a_node_that_cannot_be_reached() -> None:
    nobody = Member("gone", "127.0.0.1", free_port())
    with pytest.raises(NodeUnavailable, match="node gone"):
        await connect_control(nobody, ASKER, OPEN, WITHIN_S)
    with pytest.raises(NodeUnavailable, match="node gone"):
        await bulk(nobody, OPEN)


async def test_a_door_that_never_answers_is_waited_for_as_long_as_was_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        member = Member("silent", *silent.getsockname())
        with pytest.raises(NodeUnavailable, match="no answer in time"):
            await connect_control(member, ASKER, WITH_TOKEN, 0.1)
        with pytest.raises(NodeUnavailable, match="no answer in time"):
            await asyncio.to_thread(connect_bulk, member, ASKER, WITH_TOKEN, 0.1)


def test_authorities_that_are_none_are_a_mistake_of_the_user(tmp_path: Path) -> None:
    shown = certificate(tmp_path, AUTHORITY, "127.0.0.1")
    (tmp_path / "127.0.0.1-ca.pem").write_text("nothing")
    with pytest.raises(ConfigurationError, match="pool_tls_ca"):
        type(shown)(*shown._files, option="pool_tls")  # type: ignore[arg-type]
