"""Objects fetched from another node beside a bare ``sendfile`` to ``recv_into`` of as many bytes, over loopback.

Run ``python benchmarks/transfers.py [ROUNDS]``; needs ``trustme``. A node holds the objects, a process without any
protocol sends from a file as large, and both are asked in turn, so that a slow minute is shared: for one object at a
time, and for 256 MiB of them in one exchange. Medians of the rounds, the best of them, and processor time of both ends
for a GiB; then leases of the holder over its UNIX socket, while nothing is fetched from it and while something is.
"""
# ruff: noqa: T201

import asyncio
import contextlib
import mmap
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import trustme
import uvloop
import xxhash

from tierline.bench.programs import free_ports
from tierline.certificates import MutualCertificate
from tierline.client.blocking import NodeClient
from tierline.node.config import NodeConfig
from tierline.node.server import running_node
from tierline.pool.handshake import Credentials, Hello
from tierline.pool.listening import Door, bind_door
from tierline.pool.members import Member
from tierline.pool.receiving import Expected, Transfers
from tierline.pool.sending import Sender
from tierline.store import ObjectKey

MIB = 1024 * 1024
RUN_BYTES = 256 * MIB
SIZES = (MIB, 4 * MIB, 16 * MIB, 32 * MIB)
ROUNDS = 12
TOKEN = b"a token for this benchmark"
_REQUEST = struct.Struct("<QQ")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


# The holder -----------------------------------------------------------------------------------------------------------


async def hold(folder: Path, plain: int, encrypted: int) -> None:
    """Be a node with ``RUN_BYTES`` of objects of each size, that others fetch from with and without TLS."""
    http = free_ports(1)[0]
    config = NodeConfig(
        port=http,
        socket=folder / "node.sock",
        shared_memory_directory=folder,
        shared_memory_name="segment",
        capacity=len(SIZES) * RUN_BYTES + 64 * MIB,
        log_level="error",
    )
    async with running_node(config) as node:
        store, owner = node.service.store, node.service.new_owner()
        content = random.Random(1).randbytes(max(SIZES))
        for size in SIZES:
            checksum = xxhash.xxh3_64_intdigest(content[:size])
            for number in range(RUN_BYTES // size):
                slot = node.service.write(key(size, number), size, owner)
                at = 0
                for view in store.views(slot.extents):
                    view[:] = content[at : at + len(view)]
                    at += len(view)
                node.service.commit(slot.id, owner, checksum, key(size, number), size)
        sender = Sender(asyncio.get_running_loop(), lambda _: store, lambda _: None)
        doors = []
        for port, credentials in ((plain, Credentials(TOKEN)), (encrypted, with_tls(folder))):
            sock = bind_door("127.0.0.1", port, credentials)
            door = Door(sock, Hello("holder", 1, "bench"), credentials, no_control, sender.serve)
            door.listen()
            doors.append(asyncio.create_task(door.serve()))
        await asyncio.wait(doors)


async def no_control(_: asyncio.StreamReader, __: asyncio.StreamWriter, ___: Hello) -> None:
    """Nobody controls anything here."""


def key(size: int, number: int) -> ObjectKey:
    """Return the name of an object."""
    return ObjectKey("bench", f"{size}-{number}")


def with_tls(folder: Path) -> Credentials:
    """Return what both ends show."""
    certificate = MutualCertificate(folder / "node.pem", folder / "node.pem", folder / "ca.pem", option="pool_tls")
    return Credentials(TOKEN, certificate)


# The floor ------------------------------------------------------------------------------------------------------------


def send_bare(folder: Path, port: int) -> None:
    """Send as many bytes of a file as 16 bytes ask for, from where they say, and nothing else."""
    with (folder / "bare").open("rb") as file, socket.create_server(("127.0.0.1", port)) as server:
        sock, _ = server.accept()
        while request := sock.recv(_REQUEST.size):
            at, length = _REQUEST.unpack(request)
            while length:
                sent = os.sendfile(sock.fileno(), file.fileno(), at, length)
                at, length = at + sent, length - sent


class Bare:
    """Receives from :func:`send_bare`."""

    def __init__(self, port: int, pages: memoryview) -> None:
        self._sock = connected(port)
        self._pages = pages

    def fetch(self, size: int, count: int) -> None:
        """Receive so many bytes so many times, in one go."""
        self._sock.sendall(_REQUEST.pack(0, size * count))
        at = 0
        while at < size * count:
            at += self._sock.recv_into(self._pages[at : min(at + MIB, size * count)])


def connected(port: int) -> socket.socket:
    """Connect as soon as somebody listens."""
    end = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


# Measuring ------------------------------------------------------------------------------------------------------------


class Ends(NamedTuple):
    """What one way of fetching is measured by."""

    name: str
    fetch: Callable[[int, int], Awaitable[None]]
    sender: int
    """Process that sends."""


class Cost(NamedTuple):
    """What a round took, its median and the shortest."""

    seconds: float
    best_s: float
    sender_s: float
    receiver_s: float


def cpu_s(process: int) -> float:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


async def measure(ways: list[Ends], size: int, count: int, repeats: int, rounds: int) -> dict[str, Cost]:
    """Return the median time of fetching ``count`` objects together, and mean processor times, by way."""
    taken: dict[str, list[float]] = {way.name: [] for way in ways}
    used = {way.name: [0.0, 0.0] for way in ways}
    for way in ways:
        await way.fetch(size, count)
    for _ in range(rounds):
        for way in ways:
            sender, receiver = cpu_s(way.sender), time.process_time()
            for _ in range(repeats):
                start = time.perf_counter()
                await way.fetch(size, count)
                taken[way.name].append(time.perf_counter() - start)
            used[way.name][0] += cpu_s(way.sender) - sender
            used[way.name][1] += time.process_time() - receiver
    times = rounds * repeats
    return {
        name: Cost(statistics.median(taken[name]), min(taken[name]), used[name][0] / times, used[name][1] / times)
        for name in taken
    }


def fetching(transfers: Transfers, port: int, pages: memoryview) -> Callable[[int, int], Awaitable[None]]:
    """Return what fetches objects from the holder into pages."""
    member = Member("", "127.0.0.1", port)
    content = random.Random(1).randbytes(max(SIZES))
    checksums = {size: xxhash.xxh3_64_intdigest(content[:size]) for size in SIZES}

    async def fetch(size: int, count: int) -> None:
        expected = [
            Expected(key(size, number), size, checksums[size], [pages[number * size : (number + 1) * size]])
            for number in range(count)
        ]
        async for arrival in transfers.fetch(member, expected, 60.0):
            assert arrival.checksum is not None

    return fetch


@contextlib.contextmanager
def programs(folder: Path, ports: list[int]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run the holder and the floor."""
    argv = [sys.executable, __file__]
    started = [
        subprocess.Popen([*argv, "hold", str(folder), str(ports[0]), str(ports[1])]),
        subprocess.Popen([*argv, "bare", str(folder), str(ports[2])]),
    ]
    try:
        yield started
    finally:
        for program in started:
            program.kill()
            program.wait()


@contextlib.asynccontextmanager
async def transfers_with(credentials: Credentials) -> AsyncIterator[Transfers]:
    """Fetch as another node."""
    transfers = Transfers(Hello("asker", 2, "bench"), credentials)
    try:
        yield transfers
    finally:
        await transfers.close()


async def main(folder: Path, rounds: int) -> None:
    """Print a line for each size and way."""
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "node.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "bare").write_bytes(random.Random(1).randbytes(32 * MIB) * (RUN_BYTES // (32 * MIB)))
    with (folder / "pages").open("wb+") as file:
        file.truncate(RUN_BYTES)
        pages = memoryview(mmap.mmap(file.fileno(), RUN_BYTES))
    pages[:] = bytes(RUN_BYTES)
    ports = free_ports(3)
    async with transfers_with(Credentials(TOKEN)) as plain, transfers_with(with_tls(folder)) as encrypted:
        with programs(folder, ports) as (holder, floor):
            connected(ports[1]).close()  # the holder is ready
            bare = Bare(ports[2], pages)

            async def fetch_bare(size: int, count: int) -> None:
                await asyncio.to_thread(bare.fetch, size, count)

            ways = [
                Ends("bare sendfile", fetch_bare, floor.pid),
                Ends("fetch", fetching(plain, ports[0], pages), holder.pid),
                Ends("fetch, TLS", fetching(encrypted, ports[1], pages), holder.pid),
            ]
            print("objects          way              median    of bare        best   of bare   CPU-ms a GiB, both ends")
            for size in SIZES:
                for count, repeats in ((1, max(1, 32 * MIB // size)), (RUN_BYTES // size, 1)):
                    costs = await measure(ways, size, count, repeats, rounds)
                    for name, cost in costs.items():
                        what = f"{count} × {size // MIB} MiB"
                        per_gib = 1024 * MIB / (size * count)
                        print(
                            f"{what:15}  {name:13}  {size * count / cost.seconds / 1e9:5.2f} GB/s"
                            f"  {costs['bare sendfile'].seconds / cost.seconds:8.2f}"
                            f"  {size * count / cost.best_s / 1e9:5.2f} GB/s"
                            f"  {costs['bare sendfile'].best_s / cost.best_s:8.2f}"
                            f"   {cost.sender_s * per_gib * 1e3:6.0f} + {cost.receiver_s * per_gib * 1e3:.0f}"
                        )
            await measure_leases(folder, ways[1:])


async def measure_leases(folder: Path, ways: list[Ends]) -> None:
    """Print what a lease takes beside fetches."""
    print("\nlease and release of the holder, over its UNIX socket")
    for name, fetch in [("nothing else", None), *[(way.name, way.fetch) for way in ways]]:
        argv = [sys.executable, __file__, "lease", str(folder)]
        measuring = subprocess.Popen(argv, stdout=subprocess.PIPE)  # noqa: ASYNC220  (it does not block for long)
        while measuring.poll() is None:
            await (asyncio.sleep(0.1) if fetch is None else fetch(16 * MIB, 16))
        print(f"beside {name:13}  {measuring.communicate()[0].decode().strip()}")


def lease(folder: Path, seconds: float = 4.0) -> None:
    """Lease and release an object again and again, and print how long that takes."""
    taken = []
    with NodeClient(folder / "node.sock", client="bench") as client:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            start = time.perf_counter()
            found = client.prefix_lease("bench", [key(MIB, 0).name], 10.0)
            client.release(found.lease)
            taken.append(time.perf_counter() - start)
    p50, p99 = (1e3 * sorted(taken)[int(len(taken) * share)] for share in (0.5, 0.99))
    print(f"median {p50:.2f} ms   P99 {p99:.2f} ms   of {len(taken)}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["hold", folder, plain, encrypted]:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(hold(Path(folder), int(plain), int(encrypted)))
        case ["bare", folder, port]:
            send_bare(Path(folder), int(port))
        case ["lease", folder]:
            lease(Path(folder))
        case rounds:
            with (
                tempfile.TemporaryDirectory(prefix="tierline-bench-", dir="/dev/shm") as directory,
                asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
            ):
                runner.run(main(Path(directory), int(rounds[0]) if rounds else ROUNDS))
