"""Mooncake Store as a tier, for clusters with a network of its kind: it moves bytes from and to our pages by itself.

The node's segments are registered as its memory, so that a transfer, by RDMA too, ends in the very pages that readers
lease; a header goes before each object's bytes, from and to a small memory of its own. Rule: a call of Mooncake's
cannot be interrupted; whoever closes a fetch waits for the calls that are under way, and the next are not made.
"""

import asyncio
import ctypes
import functools
import queue
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

from mooncake.store import MooncakeDistributedStore

from tierline.breaker import Breaker
from tierline.loading import Speed
from tierline.pool.failures import Failures
from tierline.pool.header import HEADER_BYTES, Header
from tierline.pool.tier import Arrival, Found, Kept, Wanted
from tierline.pool.transfers import Batch, Transfers, checksum_of, leading, seconds_for, timed
from tierline.pool.urls import Address, TierUrl, byte_size, whole, word
from tierline.store import ObjectKey

FULL_PAUSE_S = 10.0
"""How long nothing is written to a pool that had no room."""

_PORT = 50_051
_EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104  (refused, not bound)
_PEER_TO_PEER = "P2PHANDSHAKE"
_CONNECT_S = 1.0
_SET_UP_AGAIN_S = 5.0
_SET_UP_WITHIN_S = 5.0
_COPIES_BYTES = 16 * 1024 * 1024
"""Mooncake's memory for what it copies; nothing of ours goes through it, and it wants some."""

_MIB = 1024 * 1024
_MOST_RUN_BYTES, _MOST_RUN_OBJECTS = 16 * _MIB, 16
_MOST_STREAMS = 16
_HEADER_CELL_BYTES = 64
_HEADER_CELLS = 2 * _MOST_STREAMS * _MOST_RUN_OBJECTS
_LOOKUP_THREADS = 4
_NOT_FOUND, _NO_ROOM, _UNREACHABLE = -704, -200, -900


@dataclass(frozen=True)
class MooncakeSettings:
    """How Mooncake is reached.

    Parameters
    ----------
    shown
        Its URL.
    master
        Where its master listens.
    metadata
        Where its clients find each other: ``P2PHANDSHAKE``, or the URL of a metadata server.
    protocol, device
        Of its transfers: ``tcp``, ``rdma``, ``efa`` and what else it was built with; the network device, or any.
    host
        How others reach this machine.
    lend_bytes
        Memory of this machine that it may fill; 0: only others lend.
    prefix
        Of all keys.
    streams
        Calls under way at once, for reading and again for writing.
    """

    shown: str
    master: Address
    metadata: str
    protocol: str
    device: str
    host: str
    lend_bytes: int
    prefix: str
    streams: int

    @classmethod
    def from_url(cls, url: TierUrl, host: str) -> Self:
        """Return what ``mooncake://MASTER:PORT`` says.

        Raises
        ------
        ConfigurationError
            Something in it is not allowed.
        """
        (master,) = url.addresses(_PORT)[:1]
        settings = cls(
            shown=url.shown,
            master=master,
            metadata=url.take("metadata", str, _PEER_TO_PEER),
            protocol=url.take("protocol", word, "tcp"),
            device=url.take("device", str, ""),
            host=url.take("host", str, host),
            lend_bytes=url.take("lend", byte_size(0, 2**50), 0),
            prefix=url.take("prefix", word, "tierline"),
            streams=url.take("streams", whole(1, _MOST_STREAMS), 2),
        )
        url.require_all_taken()
        if settings.host in _EVERY_ADDRESS:
            raise url.refused(
                "host=ADDRESS, as others reach this machine, for the node listens on all of its addresses"
            )
        if url.path.strip("/") or url.username or "," in url.host:
            raise url.refused("mooncake://MASTER:PORT, of one master, without a path")
        return settings


class MooncakeTier:
    """A client of a Mooncake Store.

    Parameters
    ----------
    settings
        How it is reached.
    segments
        Memory that all pages are of.

    Attributes
    ----------
    name
        ``mooncake``.
    failures
        What has gone wrong, by reason: ``unreachable``, ``full``, ``refused``, ``foreign``, ``wrong bytes``.
    """

    name = "mooncake"

    def __init__(
        self,
        settings: MooncakeSettings,
        segments: Sequence[memoryview],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failures = Failures(settings.shown, clock)
        self._settings = settings
        self._clock = clock
        self._segments = segments
        self._breaker = Breaker(clock)
        self._speed = Speed(clock)
        self._headers = _Headers()
        self._lookups = Transfers("mooncake-lookup", _LOOKUP_THREADS)
        self._reads = Transfers("mooncake-read", settings.streams)
        self._writes = Transfers("mooncake-write", settings.streams)
        self._store: Any = None
        self._full_until = float("-inf")
        self._setting_up: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Join the pool; where that takes long, go on with it in the background."""
        self._setting_up = asyncio.create_task(self._keep_setting_up())
        await asyncio.wait([self._setting_up], timeout=_SET_UP_WITHIN_S)

    async def stop(self) -> None:
        """End what is under way and leave the pool."""
        if self._setting_up is not None:
            self._setting_up.cancel()
            with suppress(asyncio.CancelledError):
                await self._setting_up
        for transfers in (self._lookups, self._reads, self._writes):
            await transfers.stop()
        if self._store is not None:
            await asyncio.to_thread(self._store.close)
            self._store = None

    async def exists(
        self,
        keys: Sequence[ObjectKey],
        anchor: int | None,  # noqa: ARG002  (of the interface; Mooncake has its own directory)
        within_s: float,
        group_size: int = 1,
    ) -> Sequence[Found]:
        """Ask the master, in one round trip; what is found stays for as long as Mooncake's leases last."""
        if self._store is None or not self._breaker.allows():
            return []
        sizes = await self._lookups.within(lambda: self._sizes([self._name(key) for key in keys]), within_s) or {}
        found = [None if (size := sizes.get(self._name(key))) is None else Found(size, None) for key in keys]
        return leading(found, group_size)

    def seconds(self, found: Sequence[Found]) -> float | None:
        """Return how long fetching these would take, by what was observed."""
        return seconds_for(found, self._speed)

    def fetch_into(self, wanted: Sequence[Wanted]) -> AsyncGenerator[Arrival, None]:
        """Fetch objects, begun in their order, several in a call."""
        runs = _runs([each.found.size for each in wanted])
        jobs = [functools.partial(self._get, run, [wanted[index] for index in run]) for run in runs]
        return timed(self._reads.carry(jobs), wanted, self._speed)

    async def store_from(self, kept: Sequence[Kept]) -> Sequence[bool]:
        """Store objects; what is there already is not sent."""
        stored = [False] * len(kept)
        if self._store is None or self._clock() < self._full_until or not self._breaker.allows():
            return stored
        runs = _runs([each.size for each in kept])
        jobs = [functools.partial(self._put, run, [kept[index] for index in run]) for run in runs]
        async with aclosing(self._writes.carry(jobs)) as numbers:
            async for number in numbers:
                stored[number] = True
        return stored

    async def delete(self, keys: Sequence[ObjectKey]) -> None:
        """Remove objects, also those that somebody reads: their readers check what they got."""
        if self._store is not None and self._breaker.allows():
            names = [self._name(key) for key in keys]
            await self._lookups.run(lambda: self._note(self._store.batch_remove(names, True)))

    def _sizes(self, names: Sequence[str]) -> dict[str, int]:
        """Return how long the objects of these names are, without their headers; runs in a thread."""
        described = self._store.batch_get_replica_desc(names)
        if not described:  # nothing is there, or nobody answers
            self._note(self._store.batch_is_exist(names[:1]))
            return {}
        self._breaker.succeeded()
        return {name: self._size_of(name, replicas[0]) - HEADER_BYTES for name, replicas in described.items()}

    def _size_of(self, name: str, replica: Any) -> int:
        if replica.is_memory_replica():
            return int(replica.get_memory_descriptor().buffer_descriptor.size)
        return int(self._store.get_size(name))

    def _get(self, indices: Sequence[int], wanted: Sequence[Wanted], batch: Batch[Arrival]) -> None:
        """Fetch the objects of a run; runs in a thread."""
        names = [self._name(each.key) for each in wanted]
        with self._headers.lent(len(wanted)) as cells:
            memory = [_Memory([cell, *each.views]) for cell, each in zip(cells, wanted, strict=True)]
            results = self._store.batch_get_into_multi_buffers(
                names, [each.addresses for each in memory], [each.sizes for each in memory]
            )
            headers = [Header.parse(cell) for cell in cells]
        self._note(results)
        for index, each, name, result, header in zip(indices, wanted, names, results, headers, strict=True):
            checksum = None
            if result == HEADER_BYTES + each.found.size:
                checksum = self._checked(each, header)
                if checksum is None:
                    self._store.batch_remove([name], True)
            batch.tell(Arrival(index, checksum, ""))

    def _checked(self, wanted: Wanted, header: Header | None) -> int | None:
        """Return the checksum of what came, where it is what it says."""
        if header is None or not header.is_of(wanted.key) or header.size != wanted.found.size:
            self.failures.note("foreign", "an object does not begin as it should")
            return None
        if checksum_of(wanted.views) != header.checksum:
            self.failures.note("wrong bytes", "an object is not what its checksum says")
            return None
        return header.checksum

    def _put(self, numbers: Sequence[int], kept: Sequence[Kept], batch: Batch[int]) -> None:
        """Store the objects of a run and tell those that are stored; runs in a thread."""
        with self._headers.lent(len(kept)) as cells:
            for cell, each in zip(cells, kept, strict=True):
                cell[:] = Header.of(each.key, each.size, each.checksum, slot=each.slot).pack()
            memory = [_Memory([cell, *each.views]) for cell, each in zip(cells, kept, strict=True)]
            results = self._store.batch_put_from_multi_buffers(
                [self._name(each.key) for each in kept],
                [each.addresses for each in memory],
                [each.sizes for each in memory],
            )
        self._note(results)
        for number, result in zip(numbers, results, strict=True):
            if result == 0:
                batch.tell(number)

    def _note(self, results: Sequence[int]) -> None:
        """Learn from what Mooncake answered, an error where it is negative."""
        if _UNREACHABLE in results:
            self._breaker.failed()
        else:
            self._breaker.succeeded()
        for result in results:
            if result == _UNREACHABLE:
                self.failures.note("unreachable", "its master does not answer")
            elif result == _NO_ROOM:
                self._full_until = self._clock() + FULL_PAUSE_S
                self.failures.note("full", "nobody lends it more memory")
            elif result < 0 and result != _NOT_FOUND:
                self.failures.note("refused", f"error {result}")

    def _name(self, key: ObjectKey) -> str:
        return f"{self._settings.prefix}:{key.bucket}/{key.name}"

    async def _keep_setting_up(self) -> None:
        while True:
            self._store = await self._lookups.run(self._set_up)
            if self._store is not None:
                return
            self.failures.note("unreachable", "it cannot be joined")
            await asyncio.sleep(_SET_UP_AGAIN_S)

    def _set_up(self) -> Any:
        """Return a client that has joined; ``None`` where it cannot."""
        settings = self._settings
        try:  # Mooncake itself tries for a minute and a half, and cannot be told to stop
            socket.create_connection(settings.master, _CONNECT_S).close()
        except OSError:
            return None
        store = MooncakeDistributedStore()
        status = store.setup(
            *(settings.host, settings.metadata, settings.lend_bytes, _COPIES_BYTES),
            *(settings.protocol, settings.device, str(settings.master)),
        )
        for segment in (self._headers.memory, *self._segments):
            memory = _Memory([segment])
            status = status or store.register_buffer(memory.addresses[0], memory.sizes[0])
        if status:
            store.close()
            return None
        return store


class _Headers:
    """Memory for headers on their way, a cell each."""

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(_HEADER_CELLS * _HEADER_CELL_BYTES))
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for cell in range(_HEADER_CELLS):
            self._free.put(cell)

    @contextmanager
    def lent(self, count: int) -> Iterator[list[memoryview]]:
        """Lend cells, empty; there are enough for all calls that can be under way."""
        cells = [self._free.get() for _ in range(count)]
        views = []
        for cell in cells:
            start = cell * _HEADER_CELL_BYTES
            views.append(self.memory[start : start + HEADER_BYTES])
            views[-1][:] = bytes(HEADER_BYTES)
        try:
            yield views
        finally:
            for cell in cells:
                self._free.put(cell)


class _Memory:
    """Where views lie, for as long as this object lives."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._arrays = [(ctypes.c_char * view.nbytes).from_buffer(view) for view in views]
        self.addresses = [ctypes.addressof(array) for array in self._arrays]
        self.sizes = [view.nbytes for view in views]


def _runs(sizes: Sequence[int]) -> list[list[int]]:
    """Divide objects into calls, in their order."""
    runs: list[list[int]] = []
    size = 0
    for index, each in enumerate(sizes):
        if not runs or len(runs[-1]) == _MOST_RUN_OBJECTS or size + each > _MOST_RUN_BYTES:
            runs.append([])
            size = 0
        runs[-1].append(index)
        size += each
    return runs
