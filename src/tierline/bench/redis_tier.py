"""Ways to fetch from Redis into pages: our reader in threads, redis-py with hiredis in threads, the same on the loop.

Run as ``python -m tierline.bench.redis_tier``; it starts a ``redis-server`` of its own. Each way fetches the same
objects, four at once, and sums them; taken in turns, and the median of the rounds is printed.
"""

import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import NamedTuple

import redis
import redis.asyncio
import xxhash

from tierline.bench.limits import resident
from tierline.bench.programs import Program, free_ports
from tierline.pool.redis import RedisSettings, RedisTier
from tierline.pool.tier import Kept, Wanted
from tierline.pool.urls import TierUrl
from tierline.store import ObjectKey

_MIB = 1024 * 1024
_SIZES_MIB = (1, 4, 16, 32)
_PARTS_MIB = (1, 4, 32)
_ALL_BYTES = 128 * _MIB
_AT_ONCE = 4
_ROUNDS = 5
_TICK_S = 0.001


class Taken(NamedTuple):
    """One round: bytes a second, processor seconds a GiB, and by how much the loop was late at worst, in seconds."""

    bytes_per_s: float
    cpu_s: float
    late_s: float


class _Fetches:
    """The same objects, stored by our tier and, whole, under plain keys."""

    def __init__(self, port: int, size: int) -> None:
        self._port = port
        self._pages = [resident(size) for _ in range(_ALL_BYTES // size)]
        self._keys = [ObjectKey("bench", str(number)) for number in range(len(self._pages))]
        self._threads = ThreadPoolExecutor(_AT_ONCE)
        self._blocking = [redis.Redis(port=port) for _ in range(_AT_ONCE)]

    async def store(self, parts: Sequence[int]) -> None:
        """Store the objects in parts of each of the sizes, and whole."""
        checksum = xxhash.xxh3_64_intdigest(self._pages[0])
        kept = [Kept(key, 0, len(page), checksum, [page]) for key, page in zip(self._keys, self._pages, strict=True)]
        for part in parts:
            tier = self._tier(part)
            await tier.start()
            assert all(await tier.store_from(kept))
            await tier.stop()
        for key, page in zip(self._keys, self._pages, strict=True):
            self._blocking[0].set(key.name, page)

    def in_parts(self, part: int) -> Callable[[], Awaitable[None]]:
        """Return what fetches by our tier."""
        tier = self._tier(part)

        async def fetch() -> None:
            found = await tier.exists(self._keys, None, 5.0)
            wanted = [Wanted(key, each, [page]) for key, each, page in zip(self._keys, found, self._pages, strict=True)]
            async with aclosing(tier.fetch_into(wanted)) as arrivals:
                assert all([arrival.checksum is not None async for arrival in arrivals])

        return fetch

    async def in_threads(self) -> None:
        """Fetch by redis-py in threads."""
        loop = asyncio.get_running_loop()

        def fetch(client: redis.Redis, start: int) -> None:
            for number in range(start, len(self._keys), _AT_ONCE):
                _take(client.get(self._keys[number].name), self._pages[number])

        each = enumerate(self._blocking)
        await asyncio.gather(*(loop.run_in_executor(self._threads, fetch, one, start) for start, one in each))

    async def on_the_loop(self) -> None:
        """Fetch by redis-py's asyncio client."""
        async with redis.asyncio.Redis(port=self._port) as client:

            async def fetch(start: int) -> None:
                for number in range(start, len(self._keys), _AT_ONCE):
                    _take(await client.get(self._keys[number].name), self._pages[number])

            await asyncio.gather(*map(fetch, range(_AT_ONCE)))

    def _tier(self, part: int) -> RedisTier:
        url = TierUrl(f"redis://127.0.0.1:{self._port}?streams={_AT_ONCE}&part={part}&prefix=part{part}")
        return RedisTier(RedisSettings.from_url(url))


def _take(content: bytes, page: memoryview) -> None:
    page[:] = content
    xxhash.xxh3_64_intdigest(page)


async def _taken(fetch: Callable[[], Awaitable[None]]) -> Taken:
    late = [0.0]

    async def tick() -> None:
        while True:
            due = time.perf_counter() + _TICK_S
            await asyncio.sleep(_TICK_S)
            late.append(time.perf_counter() - due)

    ticking = asyncio.create_task(tick())
    cpu, started = time.process_time(), time.perf_counter()
    await fetch()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    ticking.cancel()
    return Taken(_ALL_BYTES / seconds, cpu * 1024 * _MIB / _ALL_BYTES, max(late))


async def _measure(port: int, size: int) -> None:
    fetches = _Fetches(port, size)
    parts = sorted({min(part * _MIB, size) for part in _PARTS_MIB})
    await fetches.store(parts)
    ways: dict[str, Callable[[], Awaitable[None]]] = {
        **{f"our reader, parts of {part // _MIB} MiB": fetches.in_parts(part) for part in parts},
        "redis-py, threads": fetches.in_threads,
        "redis-py, asyncio": fetches.on_the_loop,
    }
    rounds: dict[str, list[Taken]] = {way: [] for way in ways}
    for _ in range(_ROUNDS):
        for way, fetch in ways.items():
            rounds[way].append(await _taken(fetch))
    for way, taken in rounds.items():
        middle = Taken(*(statistics.median(values) for values in zip(*taken, strict=True)))
        figures = f"{middle.bytes_per_s / 1e9:.2f} GB/s | {middle.cpu_s * 1000:.0f} | {middle.late_s * 1000:.1f} ms"
        sys.stdout.write(f"| {size // _MIB} MiB | {way} | {figures} |\n")


def _answers(port: int) -> bool:
    with redis.Redis(port=port) as client, contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


def main() -> None:
    """Print the table."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
        argv += ["--save", "", "--appendonly", "no"]
        with Program(argv, Path(folder) / "log", lambda: _answers(port)):
            sys.stdout.write(
                "| objects | way | fetched | CPU-ms a GiB | loop late by at most |\n|---|---|---|---|---|\n"
            )
            with redis.Redis(port=port) as client:
                for size_mib in _SIZES_MIB:
                    client.flushall()
                    asyncio.run(_measure(port, size_mib * _MIB))


if __name__ == "__main__":
    main()
