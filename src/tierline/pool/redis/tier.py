"""A Redis tier: an object is one value with a header before its bytes, a long one several, each under a key of its own.

Rules: the value that says that an object is there is written last. What is missing, foreign, torn or not what its
checksum says is a miss, and what is left of it is removed, so that the next who has the object writes it whole. A
server that is away is asked again only when its breaker lets somebody try; a server that is full is not written to for
a while.
"""

import asyncio
import functools
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from redis.exceptions import MovedError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tierline.loading import Speed
from tierline.pool.failures import Failures
from tierline.pool.header import HEADER_BYTES, MOST_PARTS, Header, cut
from tierline.pool.redis.replies import Reader, Refusal
from tierline.pool.redis.servers import FAULTS, Server, Servers, perform
from tierline.pool.redis.settings import RedisSettings
from tierline.pool.tier import Arrival, Found, Kept, Wanted
from tierline.pool.transfers import Batch, Transfers, checksum_of, leading, seconds_for, timed
from tierline.store import ObjectKey

T = TypeVar("T")
Object = TypeVar("Object", "_Fetch", "_Write")
Command = tuple[bytes | str | int, ...]

FULL_PAUSE_S = 10.0
"""How long nothing is written to a tier that had no memory."""

_MIB = 1024 * 1024
_LEAST_RUN_BYTES, _MOST_RUN_BYTES, _MOST_RUN_PARTS = _MIB, 8 * _MIB, 64
"""What one connection is asked for in one go: more would only wait in the server's buffers."""

_ANSWERED_WITHIN = 0.9
_LOOKUP_THREADS = 8
_BOOKKEEPING_S = 1.0
_REFRESH_S = 30.0
_LEAST_REFRESH_S = 1.0
_REASONS = {"OOM": "full", "MOVED": "moved", "ASK": "moved", "READONLY": "moved"}


class RedisTier:
    """One Redis, Valkey, cluster of them, or master with its sentinels.

    Parameters
    ----------
    settings
        How it is reached and used.
    clock
        Seconds, monotonic.

    Attributes
    ----------
    name
        ``redis``.
    failures
        What has gone wrong, by reason: ``unreachable``, ``timeout``, ``late`` (no answer to a lookup within its
        time), ``refused``, ``full``, ``moved``, ``gone`` (evicted between the lookup and the fetch), ``foreign`` and
        ``wrong bytes``.
    """

    name = "redis"

    def __init__(self, settings: RedisSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.failures = Failures(settings.shown, clock)
        self._settings = settings
        self._clock = clock
        self._servers = Servers(settings, clock)
        self._lookups = Transfers("redis-lookup", _LOOKUP_THREADS)
        self._reads = Transfers("redis-read", settings.streams)
        self._writes = Transfers("redis-write", settings.streams)
        self._speed = Speed(clock)
        self._full_until = float("-inf")
        self._doubt = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Learn who is who, for as long as a server may take to answer, and keep knowing it."""
        self._loop = asyncio.get_running_loop()
        if not self._servers.is_fixed:
            await self._lookups.within(self._refresh, self._settings.timeout_s)
            self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End what is under way and close the connections."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        for transfers in (self._lookups, self._reads, self._writes):
            await transfers.stop()
        self._servers.close()

    async def exists(
        self,
        keys: Sequence[ObjectKey],
        anchor: int | None,  # noqa: ARG002  (of the interface; a server's keys are spread by their names)
        within_s: float,
        group_size: int = 1,
    ) -> Sequence[Found]:
        """Return what is there of the leading run: one round trip to each server that has any of the keys."""
        # A little sooner than whoever asks has to go: what the servers in time have said is worth having.
        headers = await self._headers(keys, within_s * _ANSWERED_WITHIN)
        return leading([None if each is None else Found(each.size, each) for each in headers], group_size)

    def seconds(self, found: Sequence[Found]) -> float | None:
        """Return how long fetching these would take, by what was observed."""
        return seconds_for(found, self._speed)

    def fetch_into(self, wanted: Sequence[Wanted]) -> AsyncGenerator[Arrival, None]:
        """Fetch objects, begun in their order, over several connections."""
        parts = [part for index, each in enumerate(wanted) for part in self._parts(_Fetch.of(index, each))]
        return timed(self._reads.carry(self._jobs(parts, self._get)), wanted, self._speed)

    async def store_from(self, kept: Sequence[Kept]) -> Sequence[bool]:
        """Store what is not there yet; of what is there, the time to live begins anew."""
        if self._clock() < self._full_until:
            return [False] * len(kept)
        headers = await self._headers([each.key for each in kept], _BOOKKEEPING_S)
        writes = [_Write.of(each, self._settings.part_bytes) for each in kept]
        for write, header in zip(writes, headers, strict=True):
            write.is_known = header is not None and header.is_same_object(write.header)
        if self._settings.ttl_s:
            known = [part.name for write in writes if write.is_known for part in self._parts(write)]
            await self._tell([("EXPIRE", name, self._settings.ttl_s) for name in known])
        missing = [part for write in writes if not write.is_known for part in self._parts(write)]
        # An object is there as soon as its first part is: the others go before.
        for is_first in (False, True):
            parts = [each for each in missing if (each.header.part == 0) == is_first and not each.of.is_lost]
            async with aclosing(self._writes.carry(self._jobs(parts, self._put))) as lost:
                async for part in lost:
                    part.of.is_lost = True
        await self._tell([("UNLINK", part.name) for part in missing if part.of.is_lost])
        return [not write.is_lost for write in writes]

    async def delete(self, keys: Sequence[ObjectKey]) -> None:
        """Remove objects with all their parts."""
        headers = await self._headers(keys, _BOOKKEEPING_S)
        found = [(key, header) for key, header in zip(keys, headers, strict=True) if header is not None]
        names = [self._name(key, part) for key, header in found for part in range(header.parts())]
        await self._tell([("UNLINK", name) for name in names])

    # Small replies.

    async def _headers(self, keys: Sequence[ObjectKey], within_s: float) -> list[Header | None]:
        """Return the header of each object that is there, as far as it is known in time."""
        headers: list[Header | None] = [None] * len(keys)
        commands: list[Command] = [("GETRANGE", self._name(key), 0, HEADER_BYTES - 1) for key in keys]

        async def ask(server: Server, numbers: list[int]) -> None:
            replies = await self._ask(server, [commands[number] for number in numbers], within_s)
            for number, reply in zip(numbers, replies, strict=False):
                header = Header.parse(reply) if isinstance(reply, bytes) else None
                if header is not None and header.part == 0 and header.is_of(keys[number]):
                    headers[number] = header

        await asyncio.gather(*(ask(server, numbers) for server, numbers in self._by_server(commands).items()))
        return headers

    async def _tell(self, commands: Sequence[Command]) -> None:
        """Have commands carried out whose replies nobody needs; where they cannot be, that is counted."""
        asked = self._by_server(commands).items()
        await asyncio.gather(
            *(self._ask(server, [commands[number] for number in numbers], _BOOKKEEPING_S) for server, numbers in asked)
        )

    async def _ask(self, server: Server, commands: Sequence[Command], within_s: float) -> Sequence[object]:
        """Return the replies to commands, in one round trip; none at all where the server gives none in time."""
        if not server.breaker.allows():
            return ()
        replies = await self._lookups.within(lambda: self._ask_now(server, commands), within_s)
        if replies is None:
            self.failures.note("late", server.address)
        return replies or ()

    def _ask_now(self, server: Server, commands: Sequence[Command]) -> Sequence[object]:
        try:
            with server.lookup() as connection:
                replies = perform(connection, commands)
        except FAULTS as fault:
            self._note_fault(server, fault)
            return ()
        server.breaker.succeeded()
        for reply in replies:
            if isinstance(reply, ResponseError):
                self._note_refusal("MOVED" if isinstance(reply, MovedError) else "", str(reply))
        return replies

    def _by_server(self, commands: Sequence[Command]) -> dict[Server, list[int]]:
        """Return the numbers of the commands that each server is for, by the key that comes second in each."""
        numbers: dict[Server, list[int]] = {}
        for number, command in enumerate(commands):
            name = command[1]
            assert isinstance(name, bytes)
            server = self._servers.of(name)
            if server is None:
                self._raise_doubt()
            else:
                numbers.setdefault(server, []).append(number)
        return numbers

    # Bulk.

    def _parts(self, of: Object) -> list["_Part[Object]"]:
        pieces = cut(of.views, of.header.part_bytes)
        return [
            _Part(of, self._name(of.key, number), of.header.numbered(number), views)
            for number, views in enumerate(pieces)
        ]

    def _jobs(
        self, parts: Sequence["_Part[Object]"], carry: Callable[["_Run[Object]", Batch[T]], None]
    ) -> list[Callable[[Batch[T]], None]]:
        """Divide parts into runs, each for one connection to one server, begun in the order of their first parts."""
        size = sum(part.header.length() for part in parts)
        most_bytes = min(max(size // self._settings.streams, _LEAST_RUN_BYTES), _MOST_RUN_BYTES)
        runs: list[_Run[Object]] = []
        latest: dict[Server | None, _Run[Object]] = {}
        for part in parts:
            server = self._servers.of(part.name)
            run = latest.get(server)
            if run is None or len(run.parts) == _MOST_RUN_PARTS or run.size + part.header.length() > most_bytes:
                run = latest[server] = _Run(server)
                runs.append(run)
            run.parts.append(part)
            run.size += part.header.length()
        return [functools.partial(carry, run) for run in runs]

    def _get(self, run: "_Run[_Fetch]", batch: Batch[Arrival]) -> None:
        """Fetch the parts of a run; runs in a thread."""
        waiting = deque(run.parts)
        try:
            if run.server is not None and run.server.breaker.allows():
                with run.server.bulk() as wire, batch.interruptible(wire.reader.interrupt):
                    wire.reader.allow(self._settings.timeout_s)
                    wire.connection.send_packed_command([b"".join(_packed(b"GET", part.name) for part in waiting)])
                    while waiting:
                        wire.reader.allow(self._settings.timeout_s)
                        self._read_part(wire.reader, waiting[0])
                        self._end_part(waiting.popleft().of, batch)
                run.server.breaker.succeeded()
        except FAULTS as fault:
            batch.go_on()  # where it was stopped, the fault is our own
            self._note_fault(run.server, fault)
        for part in waiting:
            part.of.is_lost = True
            self._end_part(part.of, batch)

    def _read_part(self, reader: Reader, part: "_Part[_Fetch]") -> None:
        try:
            length = reader.value_length()
        except Refusal as refusal:
            part.of.is_lost = True
            self._note_refusal(refusal.kind, str(refusal))
            return
        if length is None:
            part.of.is_lost = part.of.is_broken = True
            self.failures.note("gone", "evicted between the lookup and the fetch")
            return
        header = Header.parse(reader.take(min(length, HEADER_BYTES)))
        expected = HEADER_BYTES + part.header.length()
        if length == expected and header is not None and header.is_same_part(part.header):
            for view in part.views:
                reader.fill(view)
        else:
            part.of.is_lost = part.of.is_broken = True
            self.failures.note("foreign", "a value is not what its key's first part says")
            reader.skip(length - min(length, HEADER_BYTES))
        reader.end_value()

    def _end_part(self, fetch: "_Fetch", batch: Batch[Arrival]) -> None:
        """Count a part that came or will not; after the last, say how the object has ended."""
        if not fetch.is_last_part():
            return
        if not fetch.is_lost and checksum_of(fetch.views) != fetch.header.checksum:
            fetch.is_lost = fetch.is_broken = True
            self.failures.note("wrong bytes", "an object is not what its checksum says")
        batch.tell(Arrival(fetch.index, None if fetch.is_lost else fetch.header.checksum, ""))
        if fetch.is_broken:  # whoever has it next writes it whole
            names = [self._name(fetch.key, number) for number in range(fetch.header.parts())]
            for name in names:
                server = self._servers.of(name)
                if server is not None:
                    self._ask_now(server, [("UNLINK", name)])

    def _put(self, run: "_Run[_Write]", batch: Batch["_Part[_Write]"]) -> None:
        """Store the parts of a run and tell those that are not stored; runs in a thread."""
        waiting = deque(run.parts)
        ttl = (b"EX", b"%d" % self._settings.ttl_s) if self._settings.ttl_s else ()
        try:
            if run.server is not None and run.server.breaker.allows():
                with run.server.bulk() as wire, batch.interruptible(wire.reader.interrupt):
                    for part in run.parts:
                        wire.reader.allow(self._settings.timeout_s)
                        value = HEADER_BYTES + part.header.length()
                        head = b"*%d\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n" % (
                            *(3 + len(ttl), len(part.name), part.name, value),
                        )
                        tail = b"\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in ttl)
                        wire.connection.send_packed_command([head + part.header.pack(), *part.views, tail])
                    while waiting:
                        wire.reader.allow(self._settings.timeout_s)
                        try:
                            wire.reader.reply()
                        except Refusal as refusal:
                            self._note_refusal(refusal.kind, str(refusal))
                            batch.tell(waiting[0])
                        waiting.popleft()
                run.server.breaker.succeeded()
        except FAULTS as fault:
            batch.go_on()
            self._note_fault(run.server, fault)
        for part in waiting:
            batch.tell(part)

    def _name(self, key: ObjectKey, part: int = 0) -> bytes:
        """Return the key in Redis of a part of an object."""
        number = f"#{part}" if part else ""
        return f"{self._settings.prefix}{number}:{key.bucket}/{key.name}".encode()

    # What goes wrong, and who is who.

    def _note_refusal(self, kind: str, text: str) -> None:
        if kind == "OOM":
            self._full_until = self._clock() + FULL_PAUSE_S
        reason = _REASONS.get(kind, "refused")
        if reason == "moved":
            self._raise_doubt()
        self.failures.note(reason, text)

    def _note_fault(self, server: Server | None, fault: Exception) -> None:
        if server is not None:
            server.breaker.failed()
        if isinstance(fault, ResponseError):  # when it logged in
            reason = "refused"
        else:
            reason = "timeout" if isinstance(fault, RedisTimeoutError | TimeoutError) else "unreachable"
        self.failures.note(reason, f"{'' if server is None else server.address}: {fault}")
        self._raise_doubt()

    def _raise_doubt(self) -> None:
        """Have asked who is who, from any thread."""
        if self._loop is not None and self._watching is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._doubt.set)

    async def _watch(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._doubt.wait(), _REFRESH_S)
            self._doubt.clear()
            await self._lookups.run(self._refresh)
            await asyncio.sleep(_LEAST_REFRESH_S)

    def _refresh(self) -> None:
        try:
            self._servers.refresh()
        except FAULTS as fault:
            self._note_fault(None, fault)


@dataclass(slots=True)
class _Fetch:
    """An object on its way into pages; its parts come in several threads."""

    index: int
    key: ObjectKey
    header: Header
    views: Sequence[memoryview]
    is_lost: bool = False
    is_broken: bool = False
    _left: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, index: int, wanted: Wanted) -> "_Fetch":
        header = wanted.found.place
        assert isinstance(header, Header)
        return cls(index, wanted.key, header, wanted.views, _left=header.parts())

    def is_last_part(self) -> bool:
        """Count one part less to come; whether it was the last."""
        with self._lock:
            self._left -= 1
            return not self._left


@dataclass(slots=True)
class _Write:
    """An object on its way out of pages."""

    key: ObjectKey
    header: Header
    views: Sequence[memoryview]
    is_known: bool = False
    is_lost: bool = False

    @classmethod
    def of(cls, kept: Kept, part_bytes: int) -> "_Write":
        part_bytes = max(min(part_bytes, kept.size), -(-kept.size // MOST_PARTS))
        header = Header.of(kept.key, kept.size, kept.checksum, slot=kept.slot, part_bytes=part_bytes)
        return cls(kept.key, header, kept.views)


@dataclass(slots=True)
class _Part(Generic[Object]):
    """One value of an object: its key in Redis, and its share of the object's pages."""

    of: Object
    name: bytes
    header: Header
    views: Sequence[memoryview]


@dataclass(slots=True)
class _Run(Generic[Object]):
    """Parts that go over one connection one after another."""

    server: Server | None
    parts: list[_Part[Object]] = field(default_factory=list)
    size: int = 0


def _packed(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
