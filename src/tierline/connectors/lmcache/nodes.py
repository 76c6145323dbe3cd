"""The node stores that one LMCache uses: objects spread over them, failures turned into misses, leases shared.

Rules: nothing here raises for a node store that is down, slow, full or restarted: it is a miss, a count and a warning
a minute, and after three in a row the store is left alone for a while. A lease is given back by the last holder of one
of its objects, on every way out. All coroutines run on one event loop.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
import msgspec
import xxhash

from tierline.breaker import Breaker, Warnings
from tierline.client.handshake import new_client_name
from tierline.connectors.lmcache.http import HttpWay
from tierline.connectors.lmcache.settings import Settings
from tierline.connectors.lmcache.shared_memory import SharedMemoryWay
from tierline.connectors.lmcache.ways import Found, Holding, Prepare, Way, Written
from tierline.errors import AccessDenied, SegmentError, StoreError, TierlineError

T = TypeVar("T")

COPYING_THREADS = 4
NAMES_PER_WRITE = 8
"""Objects of one request to store; it has its own limit of time, and what is reserved cannot be evicted for others."""

KEEPALIVE_S = 30.0
"""How long an idle HTTP connection is kept; nodes keep theirs 75 s."""

_FAILURES = (
    TierlineError,
    OSError,
    aiohttp.ClientError,
    TimeoutError,
    asyncio.IncompleteReadError,
    msgspec.MsgspecError,
)
_log = logging.getLogger(__name__)


@dataclass
class Counts:
    """What happened since the start; every one only rises."""

    lookups: int = 0
    leases: int = 0
    found: int = 0
    missed: int = 0
    loaded: int = 0
    not_loaded: int = 0
    stored: int = 0
    already_there: int = 0
    not_stored: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Grip:
    """A hold on one object that was found; give it back to :meth:`Nodes.let_go`, once."""

    node: "Node"
    holding: Holding
    found: Found

    @property
    def is_readable(self) -> bool:
        """False once its lease has ended, or its node store is gone."""
        return self.holding.way.is_open and asyncio.get_running_loop().time() < self.holding.until


class Node:
    """One node store: by shared memory where it is on this machine, else over HTTP.

    Invariant: at most one way is open; another is opened only when the last has ended with its copies.

    Parameters
    ----------
    url
        Its HTTP address.
    settings
        How it is used.
    """

    def __init__(
        self,
        url: str,
        settings: Settings,
        session: aiohttp.ClientSession,
        requests: asyncio.Semaphore,
        executor: ThreadPoolExecutor,
        counts: Counts,
    ) -> None:
        self.url = url
        self._settings = settings
        self._session = session
        self._requests = requests
        self._executor = executor
        self._counts = counts
        self._breaker = Breaker(time.monotonic)
        self._warnings = Warnings(_log, time.monotonic)
        self._client = new_client_name()
        self._connecting = asyncio.Lock()
        self._way: Way | None = None

    @property
    def uses_shared_memory(self) -> bool:
        """Whether the way that is open leads through shared memory."""
        return isinstance(self._way, SharedMemoryWay) and self._way.is_open

    async def find(self, names: Sequence[str], *, across_gaps: bool) -> Holding | None:
        """Look names up; ``None`` where the node store did not answer."""
        limit_s = self._settings.lookup_timeout_ms / 1000
        return await self._attempt("a lookup failed", limit_s, lambda way: way.find(names, across_gaps=across_gaps))

    async def read(self, grip: Grip, header_bytes: int, prepare: Prepare) -> bool:
        """Read what was found; False where that is not possible any more."""
        if not grip.is_readable:
            return False

        async def read_there(_: Way) -> bool:
            return await grip.holding.way.read(grip.found, header_bytes, prepare)

        return bool(await self._attempt("a read failed", self._settings.timeout_ms / 1000, read_there))

    async def write(self, names: Sequence[str], contents: Sequence[Sequence[memoryview]]) -> list[Written]:
        """Store objects; says what became of each."""
        written: list[Written] = []
        for start in range(0, len(names), NAMES_PER_WRITE):
            stop = start + NAMES_PER_WRITE
            written += await self._write_some(names[start:stop], contents[start:stop])
        return written

    async def release(self, holding: Holding) -> None:
        """Give a lease back; what cannot be given back ends with its time."""
        try:
            await holding.way.release(holding)
        except _FAILURES as error:
            self._failed("a release failed", error)

    async def close(self) -> None:
        """End the connection; leases go with it."""
        if self._way is not None:
            with contextlib.suppress(*_FAILURES):
                await self._way.close()

    async def _write_some(self, names: Sequence[str], contents: Sequence[Sequence[memoryview]]) -> list[Written]:
        limit_s = self._settings.timeout_ms / 1000
        written = await self._attempt("a write failed", limit_s, lambda way: way.write(names, contents))
        if written is None:
            return [Written.REFUSED] * len(names)
        if Written.REFUSED in written:
            refused = written.count(Written.REFUSED)
            self._warnings.warn("the node store had no room", f"{refused} of {len(names)} objects")
        return written

    async def _attempt(self, what: str, limit_s: float, work: Callable[[Way], Awaitable[T]]) -> T | None:
        if not self._breaker.allows():
            return None
        try:
            async with asyncio.timeout(limit_s):
                result = await work(await self._open_way())
        except StoreError as error:  # the node is well, and says no
            self._warnings.warn(what, error)
            return None
        except _FAILURES as error:
            self._breaker.failed()
            self._failed(what, error)
            return None
        self._breaker.succeeded()
        return result

    def _failed(self, what: str, error: Exception) -> None:
        self._counts.failures += 1
        self._warnings.warn(f"{what} on {self.url}", str(error) or type(error).__name__)

    async def _open_way(self) -> Way:
        if self._way is not None and self._way.is_open:
            return self._way
        async with self._connecting:
            if self._way is None or not self._way.is_open:
                if self._way is not None:
                    await self._way.close()
                self._way = await self._connect()
            return self._way

    async def _connect(self) -> Way:
        """Find out whether the node is on this machine and lets us map its segment; join it the better way."""
        path, epochs = await self._locate_socket()
        if path is not None:
            try:
                way = await SharedMemoryWay.connect(path, self._client, self._settings, self._executor)
            except (AccessDenied, SegmentError) as error:
                self._warnings.warn("no shared memory, hence HTTP", error)
            else:
                if epochs is None or way.epoch in epochs:
                    _log.info("Tierline: %s is joined through shared memory, by %s", self.url, path)
                    return way
                await way.close()  # another node has its socket under the path that this one has on its machine
        _log.info("Tierline: %s is joined over HTTP", self.url)
        return HttpWay(self._session, self.url, self._settings, self._requests, self._client)

    async def _locate_socket(self) -> tuple[str | None, set[int] | None]:
        """Return the UNIX socket as configured, or as the node states it with its epochs, if it can be opened here."""
        if self._settings.shared_memory_name is None:
            return None, None
        if self._settings.socket is not None:
            return self._settings.socket, None
        headers = {"Authorization": f"Bearer {self._settings.token}"} if self._settings.token else {}
        async with self._session.get(f"{self.url}/v1/stats", headers=headers) as reply:
            reply.raise_for_status()
            stated = msgspec.json.decode(await reply.read(), type=_Stated)
        path = stated.socket.path
        epochs = {stated.epoch, *(segment.epoch for segment in stated.segments)}
        return (path, epochs) if os.access(path, os.R_OK | os.W_OK) else (None, None)


class Nodes:
    """All node stores of one LMCache; made on the event loop that uses it.

    Parameters
    ----------
    settings
        Which, and how they are used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.counts = Counts()
        connector = aiohttp.TCPConnector(
            limit=settings.max_connections,
            limit_per_host=settings.max_connections_per_host,
            keepalive_timeout=KEEPALIVE_S,
            ssl=settings.trust() or True,
        )
        self._session = aiohttp.ClientSession(connector=connector)
        self._executor = ThreadPoolExecutor(COPYING_THREADS, thread_name_prefix="tierline-copy")
        requests = asyncio.Semaphore(settings.max_concurrent_requests)
        self._nodes = [
            Node(url, settings, self._session, requests, self._executor, self.counts) for url in settings.urls
        ]
        self._releasing: set[asyncio.Task[None]] = set()

    @property
    def shared(self) -> list[bool]:
        """For each node store, whether it is joined through shared memory at present."""
        return [node.uses_shared_memory for node in self._nodes]

    async def find(self, names: Sequence[str], *, across_gaps: bool) -> dict[int, Grip]:
        """Look names up, in one request to each node store; returns what is there by its place in ``names``.

        Without ``across_gaps`` the leading run.
        """
        self.counts.lookups += 1
        parts = self._spread(names)
        looked = [self._find_part(node, names, places, across_gaps=across_gaps) for node, places in parts.items()]
        grips: dict[int, Grip] = {}
        for part in await _all_or_none(looked, self._let_go_of_parts):
            grips.update(part)
        if not across_gaps:
            run = next((place for place in range(len(names)) if place not in grips), len(names))
            self.let_go(grips.pop(place) for place in [place for place in grips if place >= run])
        self.counts.found += len(grips)
        self.counts.missed += len(names) - len(grips)
        return grips

    async def read(self, grip: Grip, header_bytes: int, prepare: Prepare) -> bool:
        """Read what was found: its first ``header_bytes`` go to ``prepare``, the rest where that says."""
        is_read = await grip.node.read(grip, header_bytes, prepare)
        if is_read:
            self.counts.loaded += 1
        else:
            self.counts.not_loaded += 1
        return is_read

    async def write(self, names: Sequence[str], contents: Sequence[Sequence[memoryview]]) -> list[Written]:
        """Store objects, each from its parts; says what became of each."""
        written = [Written.REFUSED] * len(names)

        async def write_part(node: Node, places: Sequence[int]) -> None:
            outcome = await node.write([names[place] for place in places], [contents[place] for place in places])
            for place, became in zip(places, outcome, strict=True):
                written[place] = became

        await asyncio.gather(*(write_part(node, places) for node, places in self._spread(names).items()))
        self.counts.stored += written.count(Written.STORED)
        self.counts.already_there += written.count(Written.ALREADY_THERE)
        self.counts.not_stored += written.count(Written.REFUSED)
        return written

    def let_go(self, grips: Iterable[Grip]) -> None:
        """Give objects back; a lease is released, in the background, with its last."""
        for grip in grips:
            holding = grip.holding
            holding.taken -= 1
            if not holding.taken and holding.lease:
                task = asyncio.get_running_loop().create_task(grip.node.release(holding))
                self._releasing.add(task)
                task.add_done_callback(self._releasing.discard)

    async def close(self) -> None:
        """Give back what is being given back, and end the connections."""
        if self._releasing:
            await asyncio.wait(self._releasing)
        for node in self._nodes:
            await node.close()
        await self._session.close()
        self._executor.shutdown()

    async def _find_part(
        self, node: Node, names: Sequence[str], places: Sequence[int], *, across_gaps: bool
    ) -> dict[int, Grip]:
        holding = await node.find([names[place] for place in places], across_gaps=across_gaps)
        if holding is None:
            return {}
        self.counts.leases += bool(holding.lease)
        holding.taken = len(holding.found)
        grips = {places[place]: Grip(node, holding, found) for place, found in holding.found.items()}
        too_large = [place for place, grip in grips.items() if grip.found.size > self.settings.max_lease_bytes]
        self.let_go(grips.pop(place) for place in too_large)
        return grips

    def _let_go_of_parts(self, parts: dict[int, Grip]) -> None:
        self.let_go(parts.values())

    def _spread(self, names: Sequence[str]) -> dict[Node, list[int]]:
        parts: dict[Node, list[int]] = {}
        for place, name in enumerate(names):
            parts.setdefault(self._home(name), []).append(place)
        return parts

    def _home(self, name: str) -> Node:
        """Return an object's node store, by rendezvous hashing: one store more or less moves only its own objects."""
        if len(self._nodes) == 1:
            return self._nodes[0]
        return max(self._nodes, key=lambda node: xxhash.xxh3_64_intdigest(f"{node.url}\0{name}".encode()))


async def _all_or_none(work: Sequence[Awaitable[T]], undo: Callable[[T], None]) -> list[T]:
    """Gather; cancelled, wait for what has been begun and undo it, so that no lease is left with nobody."""
    gathered = asyncio.gather(*work)
    try:
        return await asyncio.shield(gathered)
    except asyncio.CancelledError:
        for result in await gathered:
            undo(result)
        raise


class _Socket(msgspec.Struct):
    path: str


class _Segment(msgspec.Struct):
    epoch: int


class _Stated(msgspec.Struct):
    """What of ``/v1/stats`` is read here."""

    epoch: int
    socket: _Socket
    segments: list[_Segment] = []
