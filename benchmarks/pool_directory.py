"""What a pool's directory costs: memory and time of an entry, of a member that comes, of what is announced and asked.

Run ``python benchmarks/pool_directory.py 1000000``. One process and one thread are both sides of each conversation,
over a pair of real sockets. Processor time, so that other programs count little; what is asked is latency, too.
"""
# ruff: noqa: T201

import asyncio
import os
import random
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from tierline.duties import Duties
from tierline.pool.answering import Answering
from tierline.pool.connecting import ControlConnection
from tierline.pool.directory import ENTRY_BYTES, Directory
from tierline.pool.handshake import Hello
from tierline.pool.homes import Homes
from tierline.pool.local import LocalObject, LocalState, Offered
from tierline.pool.members import Member
from tierline.pool.peers import Peer
from tierline.store import ObjectKey, Store
from tierline.wire.pool import SLOTS, ObjectHeld

HOME, MEMBER = Hello("home", 1, "pool"), Hello("member", 2, "pool")
ANNOUNCED, ASKED = 7, 8
ROUNDS = 200


class NoObjects:
    """A node that holds nothing: :class:`~tierline.pool.local.Local`."""

    def objects(self, cursor: str) -> tuple[Sequence[LocalObject], str]:  # noqa: ARG002
        """Return none."""
        return [], ""

    def mark_copied(self, key: ObjectKey, is_copied: bool) -> None:
        """Do nothing."""

    async def keep(self, offered: Sequence[Offered]) -> Sequence[bool]:
        """Keep nothing."""
        return [False] * len(offered)

    def store_of(self, bucket: str) -> Store | None:
        """Return none."""

    def suspect(self, key: ObjectKey) -> None:
        """Do nothing."""

    def state(self) -> LocalState:
        """Return nothing much."""
        return LocalState(0, 0, 0)


def main(objects: int) -> None:
    """Print all tables."""
    entries(objects)
    homes()
    uvloop.run(conversations())


def entries(objects: int) -> None:
    """Print what an entry takes."""
    directory = Directory(max_bytes=1 << 40)
    round_ = directory.begin("member", 1)
    digests = [random.randbytes(16) for _ in range(objects)]
    places = [random.randrange(SLOTS) for _ in range(objects)]
    before, began = resident(), time.process_time()
    for place, digest in zip(places, digests, strict=True):
        directory.add(round_, place, bytes(bytearray(digest)), 2**21, 2**63)
    added = (time.process_time() - began) / objects
    memory = (resident() - before) / objects
    began = time.process_time()
    for place, digest in zip(places, digests, strict=True):
        directory.locate(place, [digest], "asker")
    located = (time.process_time() - began) / objects
    directory.drop("member")
    began = time.process_time()
    for _ in directory.sweep():
        pass
    swept = (time.process_time() - began) / objects
    print(f"{objects} objects with one holder, of one member")
    print(f"  memory      {memory:6.0f} bytes an object, taken to be {ENTRY_BYTES}")
    print(f"  add         {added * 1e6:6.2f} µs")
    print(f"  locate      {located * 1e6:6.2f} µs")
    print(f"  sweep       {swept * 1e6:6.2f} µs")


def homes() -> None:
    """Print what a member that comes, or goes, costs every other one."""
    print("a member comes, and goes")
    for members in (8, 64, 512):
        known = Homes("node-0")
        for number in range(1, members):
            known.join(f"node-{number}")
        began = time.process_time()
        won = len(known.join("the one"))
        first = time.process_time() - began
        began = time.process_time()
        known.leave("the one")
        left = time.process_time() - began
        began = time.process_time()
        known.join("the one")
        again = time.process_time() - began
        print(
            f"  {members:4} members {won:5} slots move; comes {first * 1e3:5.2f} ms, goes {left * 1e3:5.2f} ms, "
            f"comes again {again * 1e3:5.2f} ms"
        )


async def conversations() -> None:
    """Print what announcing and asking cost, both sides together."""
    directory = Directory()
    answering = Answering(HOME, directory, NoObjects(), lambda: 0, lambda _: None, Duties(()))
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=there)
    serving = asyncio.create_task(answering.serve(reader, writer, MEMBER))
    peer = Peer(
        Member("", "home", 1), ControlConnection(*await asyncio.open_connection(sock=here), HOME), lambda _: None
    )
    running = asyncio.create_task(peer.run())
    other = directory.begin("other", 3)

    held = [ObjectHeld(ANNOUNCED, random.randbytes(16), 2**21, 2**63) for _ in range(512 * ROUNDS)]
    began = time.process_time()
    for start in range(0, len(held), 512):
        await peer.announce(held[start : start + 512], [], 10.0)
    announced = (time.process_time() - began) / len(held)
    print(f"announcing, 512 objects a message: {announced * 1e6:.2f} µs an object")

    for one in held[:4096]:
        directory.add(other, ASKED, one.digest, one.size, one.checksum)
    print("asking for a prefix, from the question to the answer")
    for keys in (1, 32, 256, 2048):
        asked = [one.digest for one in held[:keys]]
        taken = []
        began = time.process_time()
        for _ in range(ROUNDS):
            at = time.perf_counter()
            assert len(await peer.lookup(ASKED, asked, 10.0)) == keys
            taken.append(time.perf_counter() - at)
        used = (time.process_time() - began) / ROUNDS
        print(f"  {keys:5} objects {statistics.median(taken) * 1e6:7.0f} µs, processor {used * 1e6:7.0f} µs")
    taken = []
    for _ in range(ROUNDS // 4):
        at = time.perf_counter()
        await asyncio.gather(*(peer.lookup(ASKED, [one.digest], 10.0) for one in held[:256]))
        taken.append(time.perf_counter() - at)
    print(f"    256 by 256 askers, in one message: {statistics.median(taken) * 1e6:.0f} µs for all of them")
    peer.end()
    await asyncio.gather(running, serving, return_exceptions=True)


def resident() -> int:
    """Return this process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
