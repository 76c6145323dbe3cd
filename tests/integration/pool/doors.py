"""Doors on the loopback interface for tests, and certificates for their nodes."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from tierline.certificates import MutualCertificate
from tierline.pool.handshake import Credentials, Hello
from tierline.pool.listening import Door, DoorLimits, ServeBulk, bind_door
from tierline.pool.members import Member

TOKEN = b"a token of some length"
HOLDER, ASKER = Hello("holder", 1, "pool"), Hello("asker", 2, "pool")
PATIENT = DoorLimits(handshake_s=60.0)
"""For tests in which everybody who comes is well: a machine that stands still for seconds turns nobody away."""


@dataclass
class Guests:
    """What came in: control connections are sent back what they send, bulk connections too."""

    seen: list[Hello] = field(default_factory=list)
    gone: int = 0

    async def control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Hello) -> None:
        self.seen.append(peer)
        try:
            while data := await reader.read(1024):
                writer.write(data)
                await writer.drain()
        finally:
            self.gone += 1

    def bulk(self, sock: socket.socket, peer: Hello) -> None:
        self.seen.append(peer)
        try:
            while data := sock.recv(1024):
                sock.sendall(data)
        finally:
            self.gone += 1


@dataclass
class OpenDoor:
    door: Door
    member: Member
    guests: Guests
    serving: asyncio.Task[None]


@contextlib.asynccontextmanager
async def open_door(
    credentials: Credentials,
    own: Hello = HOLDER,
    limits: DoorLimits = PATIENT,
    serve_bulk: ServeBulk | None = None,
) -> AsyncIterator[OpenDoor]:
    """A door that serves for the length of the block, and whose connections have ended behind it."""
    sock, guests = bind_door("127.0.0.1", 0, credentials), Guests()
    member = Member("", "127.0.0.1", sock.getsockname()[1])
    door = Door(sock, own, credentials, guests.control, serve_bulk or guests.bulk, limits)
    door.listen()
    serving = asyncio.create_task(door.serve())
    try:
        yield OpenDoor(door, member, guests, serving)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        assert door.inside.total() == 0


def certificate(folder: Path, authority: trustme.CA, *names: str) -> MutualCertificate:
    """A certificate for these names, whose peers must show one of the same authority."""
    issued = authority.issue_cert(*names)
    stem = names[0].replace("*", "_")
    chain, key, authorities = folder / f"{stem}.pem", folder / f"{stem}.key", folder / f"{stem}-ca.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(authorities)
    return MutualCertificate(chain, key, authorities, option="pool_tls")


async def until(condition: object, within_s: float = 60.0) -> None:
    """Wait for a condition, called again and again."""
    assert callable(condition)
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
