"""Objects fetched from other nodes, by threads that receive straight into the pages that they are for.

Rules. A fetch is objects in order, from one holder: its streams take the first that nobody has taken, so that the
beginning is there first. What came is an arrival with the checksum of the bytes that came, computed while they are in
the processor's cache; whatever else happens is one without. **Once an arrival was yielded, or the generator has ended,
no thread writes into its pages**: a stream that has to end is shut down, and waited for.
"""

import asyncio
import math
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import xxhash

from tierline import logs
from tierline.errors import AccessDenied, NodeUnavailable, TierlineError, WireError
from tierline.loading import Speed
from tierline.pool.connecting import connect_bulk
from tierline.pool.handshake import Credentials, Hello
from tierline.pool.members import Member
from tierline.pool.threads import give_way, limit_waits, shut_down, wait_to_the_end
from tierline.pool.tier import Arrival
from tierline.store import ObjectKey
from tierline.tracing.context import Origin, current
from tierline.wire.framing import encode_frame
from tierline.wire.transfers import (
    HEAD_BYTES,
    MAX_OBJECTS_PER_FETCH,
    Asked,
    Fetch,
    ObjectHead,
    Outcome,
    Received,
    unpack_head,
)

log = logs.get(__name__)

_AT_ONCE_BYTES = 2 * 1024 * 1024
"""Received and then summed: few enough that the sum finds them in the cache, and enough that a thread seldom wants the
interpreter's lock, which the event loop wants too."""
_FETCH_BYTES = 8 * 1024 * 1024
"""Asked for at a time: often enough that streams share a prefix evenly, seldom enough that asking costs nothing."""
_AHEAD = 2
"""Fetches of a stream that are under way, so that the holder has the next before it is through with one."""
_WARNED_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class ReceivingLimits:
    """How holders are asked.

    Parameters
    ----------
    streams, stream_bytes
        Connections that one fetch uses at most, and bytes that are worth another one.
    connect_s
        Time for a connection to be made.
    silence_s
        A holder that sends nothing for so long is given up.
    kept_s
        A connection that is not used is kept so long; holders close theirs later.
    threads
        Streams of all fetches at a time.
    """

    streams: int = 4
    stream_bytes: int = 64 * 1024 * 1024
    connect_s: float = 2.0
    silence_s: float = 2.0
    kept_s: float = 30.0
    threads: int = 64


DEFAULTS = ReceivingLimits()


class Expected(NamedTuple):
    """An object that a holder is said to have, and the pages for its bytes, in order: ``size`` in all."""

    key: ObjectKey
    size: int
    checksum: int
    views: Sequence[memoryview]


class Transfers:
    """Fetches from other nodes, on one event loop.

    Parameters
    ----------
    own
        Who we are.
    credentials
        What members know each other by.
    limits
        See :class:`ReceivingLimits`.
    clock
        Monotonic seconds, for speeds and connections that are kept.
    """

    def __init__(
        self,
        own: Hello,
        credentials: Credentials,
        limits: ReceivingLimits = DEFAULTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.received_bytes = 0
        """Bytes of objects that came whole and were right."""
        self.failures: Counter[str] = Counter()
        """Objects that did not come, by reason: ``unreachable``, ``missing``, ``busy``, ``checksum``, ``broken``,
        ``silent`` or ``late``."""
        self._own = own
        self._credentials = credentials
        self.limits = limits
        self.clock = clock
        self._speeds: dict[tuple[str, int], Speed] = {}
        self._kept: dict[tuple[str, int], deque[tuple[float, _Link]]] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(limits.threads, thread_name_prefix="fetch", initializer=give_way)
        self._is_closed = False
        self._warned = -math.inf

    def seconds(self, member: Member, size_bytes: int) -> float | None:
        """Return how long fetching so many bytes from a member would take; ``None`` where nobody has tried lately."""
        speed = self._speeds.get(member.address)
        return None if speed is None else speed.seconds(size_bytes)

    def bytes_per_s(self, member: Member) -> float | None:
        """Return how fast a member's bytes came; ``None`` where none came lately."""
        speed = self._speeds.get(member.address)
        return None if speed is None else speed.bytes_per_s

    async def fetch(
        self, member: Member, expected: Sequence[Expected], within_s: float
    ) -> AsyncGenerator[Arrival, None]:
        """Fetch objects from one member, the first of them first; one arrival each, in any order.

        Parameters
        ----------
        expected
            What it is said to hold; an object that is of another size or checksum there does not come.
        within_s
            What has not come by then does not come. A member that is silent is given up before.
        """
        loop = asyncio.get_running_loop()
        count = min(self.limits.streams, 1 + sum(one.size for one in expected) // self.limits.stream_bytes)
        run = _Run(self, member, expected, count, self.clock() + within_s)
        streams = [loop.run_in_executor(self._threads, run.stream, number) for number in range(count)]
        timer = loop.call_later(within_s, run.cancel, "late")
        missing = set(range(len(expected)))
        try:
            while missing:
                arrival = await run.arrivals.get()
                if arrival is not None:
                    missing.discard(arrival.index)
                    yield arrival
                elif run.is_cancelled or run.ended == count:
                    break
        finally:
            timer.cancel()
            if missing:
                run.cancel("unwanted")
            await wait_to_the_end([streams[number] for number in run.under_way()])
            self._observe(run)
        for arrival in run.left():
            missing.discard(arrival.index)
            yield arrival
        self._note_failures(run, len(missing))
        for index in sorted(missing):
            yield Arrival(index, None, run.source)

    async def close(self) -> None:
        """Close the connections that are kept, and end the threads; every fetch has ended."""
        with self._lock:
            self._is_closed = True
            links = [link for kept in self._kept.values() for _, link in kept]
            self._kept.clear()
        for link in links:
            link.sock.close()
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)

    # For the threads ----------------------------------------------------------------------------------------------

    def link(self, member: Member, within_s: float) -> "_Link":
        """Return a connection to a member, one that is kept where there is one; raises as ``connect_bulk``."""
        self._close_old()
        while True:
            with self._lock:
                kept = self._kept.get(member.address)
                link = kept.pop()[1] if kept else None
            if link is None:
                return _Link(*connect_bulk(member, self._own, self._credentials, within_s))
            if link.is_alive():
                return link
            link.sock.close()

    def keep(self, member: Member, link: "_Link") -> None:
        """Keep a connection, on which nothing is under way, for the next fetch."""
        with self._lock:
            if not self._is_closed:
                self._kept.setdefault(member.address, deque()).append((self.clock(), link))
                return
        link.sock.close()

    def count(self, *, received_bytes: int = 0, failure: str = "") -> None:
        """Count an object that came, or did not."""
        with self._lock:
            self.received_bytes += received_bytes
            if failure:
                self.failures[failure] += 1

    def _close_old(self) -> None:
        """Close what was not used for long, to whomever it leads."""
        old: list[_Link] = []
        with self._lock:
            for address, kept in list(self._kept.items()):
                while kept and self.clock() - kept[0][0] > self.limits.kept_s:
                    old.append(kept.popleft()[1])
                if not kept:
                    del self._kept[address]
        for link in old:
            link.sock.close()

    def _observe(self, run: "_Run") -> None:
        """Learn how fast a member is, also from a fetch that was given up: of one that is silent, that it is slow."""
        if run.came_bytes or run.reason in ("late", "silent"):
            speed = self._speeds.setdefault(run.member.address, Speed(self.clock))
            speed.observe(max(1, run.came_bytes), run.seconds())

    def _note_failures(self, run: "_Run", missing: int) -> None:
        if not missing:
            return
        self.failures[run.reason] += missing
        if self.clock() - self._warned >= _WARNED_EVERY_S:
            self._warned = self.clock()
            log.warning("objects did not come", node=run.source, reason=run.reason, error=run.error, objects=missing)


class _Link:
    """A connection to a holder, and the number of the next fetch on it."""

    def __init__(self, sock: socket.socket, peer: Hello) -> None:
        self.sock = sock
        self.node = peer.node
        self._number = 0
        # Until all has come, or nothing for too long; OpenSSL knows no such thing, and gives a record at a time.
        self._flags = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_WAITALL

    def is_alive(self) -> bool:
        """Whether the holder has not closed it: nothing is to be read of a connection on which nothing is asked."""
        self.sock.setblocking(False)
        try:
            socket.socket.recv(self.sock, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def limit(self, silence_s: float) -> None:
        """Let the holder be silent no longer than this."""
        if isinstance(self.sock, ssl.SSLSocket):  # OpenSSL waits again where the kernel has given up
            self.sock.settimeout(silence_s)
        else:
            limit_waits(self.sock, silence_s, silence_s)

    def ask(self, expected: Sequence[Expected], origin: Origin) -> int:
        """Ask for objects, and say for whose sake; returns the number of the fetch."""
        number, self._number = self._number, self._number + 1
        asked = [Asked(one.key.bucket, one.key.name, one.size, one.checksum) for one in expected]
        self.sock.sendall(encode_frame(Fetch(number, asked, origin.request_id, origin.traceparent)))
        return number

    def thank(self, number: int, wrong: list[int]) -> None:
        """Say that a fetch has come."""
        self.sock.sendall(encode_frame(Received(number, wrong)))

    def receive_head(self) -> ObjectHead:
        """Return the next head."""
        data = b""
        while len(data) < HEAD_BYTES:
            part = self.sock.recv(HEAD_BYTES - len(data))
            if not part:
                raise EOFError("the holder closed the connection")
            data += part
        return unpack_head(data)

    def receive_into(self, views: Sequence[memoryview]) -> int:
        """Fill pages, and return the checksum of what came."""
        hasher = xxhash.xxh3_64()
        for view in views:
            for start in range(0, len(view), _AT_ONCE_BYTES):
                piece = view[start : start + _AT_ONCE_BYTES]
                self._fill(piece)
                hasher.update(piece)
        return hasher.intdigest()

    def _fill(self, piece: memoryview) -> None:
        at = 0
        while at < len(piece):
            count = self.sock.recv_into(piece[at:], 0, self._flags)
            if not count:
                raise EOFError("the holder closed the connection in the middle of an object")
            at += count


class _Batch(NamedTuple):
    """Objects that are asked for together: places in what is expected."""

    number: int
    indices: Sequence[int]


class _Run:
    """One fetch: what is left to ask for, shared by its streams.

    Invariant: who is in :attr:`receiving` may write into pages, and nobody else; once cancelled, nobody joins.
    """

    def __init__(
        self, transfers: Transfers, member: Member, expected: Sequence[Expected], streams: int, deadline: float
    ) -> None:
        self.member = member
        self.source = str(member)
        """Who answers; the member's own word for itself as soon as it is known."""
        self.arrivals: asyncio.Queue[Arrival | None] = asyncio.Queue()
        """Objects; ``None`` where a stream has ended or all is cancelled."""
        self.is_cancelled = False
        self.ended = 0
        """Streams that have ended."""
        self.receiving: dict[int, socket.socket] = {}
        self.reason = "broken"
        self.error = ""
        self.came_bytes = 0
        self._transfers = transfers
        self._expected = expected
        self._deadline = deadline
        self._streams = streams
        self._clock = transfers.clock
        self._origin = current()
        self._loop = asyncio.get_running_loop()
        self._began = self._last = self._clock()
        self._batches = deque(_batches(expected))
        self._lock = threading.Lock()

    def cancel(self, reason: str) -> None:
        """Let no stream begin any more, and end those that receive."""
        with self._lock:
            if self.is_cancelled:
                return
            self.is_cancelled = True
            if self.ended < self._streams:
                self.reason = reason
            for sock in self.receiving.values():
                shut_down(sock)
        self.arrivals.put_nowait(None)

    def under_way(self) -> list[int]:
        """Return the streams that receive; those that have ended have given their connections back."""
        with self._lock:
            return list(self.receiving)

    def left(self) -> Iterator[Arrival]:
        """Yield what arrived and was not taken."""
        while not self.arrivals.empty():
            arrival = self.arrivals.get_nowait()
            if arrival is not None:
                yield arrival

    def seconds(self) -> float:
        """Return how long it took to the last object that came; where none did, until now."""
        return (self._last if self.came_bytes else self._clock()) - self._began

    def stream(self, number: int) -> None:
        """Fetch what nobody has taken, one batch after the other, over one connection; in a thread."""
        try:
            if self._batches and not self.is_cancelled:  # else the others have asked for all of it meanwhile
                link = self._transfers.link(self.member, min(self._transfers.limits.connect_s, self._remaining_s()))
                self._use(link, number)
        except (AccessDenied, NodeUnavailable) as error:
            self._fail("unreachable", error)
        finally:
            self._loop.call_soon_threadsafe(self._stream_ended)

    def _remaining_s(self) -> float:
        return max(0.001, self._deadline - self._clock())

    def _use(self, link: _Link, number: int) -> None:
        with self._lock:
            if not self.is_cancelled:
                self.receiving[number] = link.sock
        is_clean = number not in self.receiving
        asked: deque[_Batch] = deque()
        try:
            if not is_clean:
                self.source = link.node
                link.limit(self._transfers.limits.silence_s)
                self._receive(link, asked)
                is_clean = True
        except (OSError, EOFError, TierlineError) as error:
            self._fail("silent" if isinstance(error, TimeoutError | BlockingIOError) else "broken", error)
        finally:
            with self._lock:  # in one go: once the fetch has ended, the next one finds its connections
                self.receiving.pop(number, None)
                if is_clean:
                    self._transfers.keep(self.member, link)
            if not is_clean:
                link.sock.close()

    def _receive(self, link: _Link, asked: deque[_Batch]) -> None:
        while True:
            while len(asked) < _AHEAD and (indices := self._take()):
                expected = [self._expected[index] for index in indices]
                asked.append(_Batch(link.ask(expected, self._origin), indices))
            if not asked:
                return
            number, indices = asked[0]
            wrong = []
            for place, index in enumerate(indices):
                head = link.receive_head()
                if (head.number, head.place) != (number, place):
                    raise WireError(f"object {head.place} of fetch {head.number}, and not {place} of {number}")
                checksum = self._receive_object(link, head, self._expected[index])
                if head.outcome is Outcome.SENT and checksum is None:
                    wrong.append(place)
                self._arrived(index, checksum)
            asked.popleft()
            link.thank(number, wrong)

    def _receive_object(self, link: _Link, head: ObjectHead, expected: Expected) -> int | None:
        """Return the checksum of an object that came and is what was expected."""
        if head.outcome is not Outcome.SENT:
            self._transfers.count(failure=head.outcome.name.lower())
            return None
        if (head.size, head.checksum) != (expected.size, expected.checksum):
            raise WireError(f"another object than was asked for, of {head.size} bytes instead of {expected.size}")
        found = link.receive_into(expected.views)
        if found != expected.checksum:
            self._transfers.count(failure="checksum")
            log.warning("an object came with other bytes than were stored", node=self.source, name=expected.key.name)
            return None
        self._transfers.count(received_bytes=expected.size)
        return found

    def _take(self) -> Sequence[int]:
        """Return what to ask for next; nothing where all is asked for."""
        with self._lock:
            return self._batches.popleft() if self._batches and not self.is_cancelled else ()

    def _arrived(self, index: int, checksum: int | None) -> None:
        with self._lock:
            self._last = self._clock()
            if checksum is not None:
                self.came_bytes += self._expected[index].size
        self._loop.call_soon_threadsafe(self.arrivals.put_nowait, Arrival(index, checksum, self.source))

    def _fail(self, reason: str, error: Exception) -> None:
        with self._lock:
            if not self.is_cancelled:
                is_over = self._clock() >= self._deadline  # a wait that was cut short for it is nobody's fault
                self.reason, self.error = "late" if is_over else reason, str(error) or type(error).__name__

    def _stream_ended(self) -> None:
        self.ended += 1
        self.arrivals.put_nowait(None)


def _batches(expected: Sequence[Expected]) -> Iterator[Sequence[int]]:
    """Yield places of objects that are asked for together, in order."""
    batch: list[int] = []
    size = 0
    for index, one in enumerate(expected):
        if batch and (size + one.size > _FETCH_BYTES or len(batch) == MAX_OBJECTS_PER_FETCH):
            yield batch
            batch, size = [], 0
        batch.append(index)
        size += one.size
    if batch:
        yield batch
