"""Objects sent to other nodes, in a thread for each connection: straight from the segment's file to the socket.

Rules. The store is the event loop's: a thread has what it wants of it done there, and waits. **What is sent is leased
until the receiver has said that it has it**, or the connection has ended, for ``sendfile`` hands the socket pages and
not their bytes: they leave when the network takes them. A receiver that is too slow, or silent, is dropped, so that it
holds nothing for long; it asks again, here or elsewhere.
"""

import asyncio
import logging
import math
import os
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from tierline import logs
from tierline.errors import TierlineError, TooManyLeases, WireError
from tierline.pool.handshake import Hello
from tierline.pool.threads import limit_waits
from tierline.store import Extent, ObjectKey, Store
from tierline.tracing.context import Origin
from tierline.tracing.spans import Attributes, bucket_digest
from tierline.tracing.tracer import Tracer
from tierline.wire.framing import FrameDecoder
from tierline.wire.transfers import MAX_OPEN_FETCHES, Asked, BulkRequest, Fetch, ObjectHead, Outcome, Received

log = logs.get(__name__)
_logger = logging.getLogger(__name__)

T = TypeVar("T")

_PIECE_BYTES = 8 * 1024 * 1024
"""Of one system call, after which a thread looks at the clock; the more, the more seldom it wants the interpreter's
lock, which the event loop wants too."""
_WAITS = _PIECE_BYTES // (64 * 1024)
"""The kernel sends a piece in parts of 64 KiB, and may wait for room before each of them."""
_RECEIVE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class SendingLimits:
    """How long a receiver may hold what it asked for.

    Parameters
    ----------
    lease_s
        For how long a lease is taken, where the store gives one for as long; it is renewed well before.
    slowest_bytes_per_s, patience_s
        A fetch is given up when sending it and hearing that it came takes longer than its bytes at this rate, and this.
    idle_s
        A connection on which nothing is asked for is closed after this.
    """

    lease_s: float = 30.0
    slowest_bytes_per_s: float = 4 * 1024 * 1024
    patience_s: float = 10.0
    idle_s: float = 60.0


DEFAULTS = SendingLimits()
MOST_RECEIVERS = 4096
"""That are counted apart."""


@dataclass(slots=True)
class Sent:
    """What one node has got from this one since it started."""

    objects: int = 0
    size_bytes: int = 0


class Sender:
    """What a node gives to others.

    Parameters
    ----------
    loop
        The event loop that the stores belong to.
    store_of
        Returns the store that a bucket is in, or ``None``; called on the loop.
    suspect
        Told, on the loop, of objects whose bytes were others than they should be when they came to a receiver.
    limits
        See :class:`SendingLimits`.
    tracer
        Is told of what is sent for traced requests; ``None``: nobody is.
    clock
        Monotonic seconds, for patience and leases: that of the stores.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        store_of: Callable[[str], Store | None],
        suspect: Callable[[ObjectKey], None],
        limits: SendingLimits = DEFAULTS,
        tracer: Tracer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.active = 0
        """Fetches that are being sent."""
        self.sent_bytes = 0
        """Bytes of objects that were handed to sockets."""
        self.receivers: dict[str, Sent] = {}
        """What each node has got, by its name."""
        self.outcomes: Counter[Outcome] = Counter()
        """Objects that were asked for, by what became of them."""
        self.dropped = 0
        """Connections that were ended because of what the receiver did, or did not."""
        self.limits = limits
        self.tracer = tracer
        self.clock = clock
        self._loop = loop
        self._store_of = store_of
        self._suspect = suspect
        self._descriptors: dict[Store, int] = {}
        self._lock = threading.Lock()

    def serve(self, sock: socket.socket, peer: Hello) -> None:
        """Serve one bulk connection until it ends; in a thread. For :class:`~tierline.pool.listening.Door`."""
        sending = _Sending(self, sock, peer)
        try:
            sending.run()
        except (OSError, TierlineError) as error:
            with self._lock:
                self.dropped += 1
            log.debug("a transfer was dropped", node=peer.node, error=str(error))
        finally:
            sending.end()

    def close(self) -> None:
        """Close the segments' descriptors; no connection is served any more."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    # For the threads ----------------------------------------------------------------------------------------------

    def lend(self, asked: Sequence[Asked], holder: str) -> "list[_Loan | Outcome]":
        """Lease objects; each is one that may be sent now, or why it is not."""
        return self._on_loop(lambda: [self._lend(one, holder) for one in asked])

    def renew(self, loans: Sequence["_Loan"]) -> None:
        """Let leases live on; raises ``UnknownLease`` where one has ended."""

        def renew() -> None:
            for loan in loans:
                loan.store.renew(loan.lease, self.limits.lease_s)

        self._on_loop(renew)

    def take_back(self, loans: Sequence["_Loan"], wrong: Sequence[ObjectKey] = ()) -> None:
        """End leases, and hear which objects were not what they should be; does not wait."""

        def take_back() -> None:
            for loan in loans:
                loan.store.release(loan.lease)
            for key in wrong:
                self._suspect(key)

        self._loop.call_soon_threadsafe(take_back)

    def count(self, *, active: int = 0, sent_bytes: int = 0, outcome: Outcome | None = None, to: str = "") -> None:
        """Count what a thread has done; ``to``: the receiver's name, where it is of objects."""
        with self._lock:
            self.active += active
            self.sent_bytes += sent_bytes
            if outcome is not None:
                self.outcomes[outcome] += 1
            if to in self.receivers or (to and len(self.receivers) < MOST_RECEIVERS):
                receiver = self.receivers.setdefault(to, Sent())
                receiver.size_bytes += sent_bytes
                receiver.objects += outcome is Outcome.SENT

    def _lend(self, asked: Asked, holder: str) -> "_Loan | Outcome":
        store = self._store_of(asked.bucket)
        key = ObjectKey(asked.bucket, asked.name)
        if store is None or not store.is_stored(key):
            return Outcome.MISSING
        try:
            found = store.lease(key, holder, self.limits.lease_s)
        except TooManyLeases:
            return Outcome.BUSY
        if found is None:
            return Outcome.BUSY
        lease, leased = found
        if (leased.size, leased.checksum) != (asked.size, asked.checksum):
            store.release(lease)
            return Outcome.MISSING
        return _Loan(store, lease, key, leased.size, leased.checksum, leased.extents, self._descriptor(store))

    def _descriptor(self, store: Store) -> int:
        if store not in self._descriptors:
            self._descriptors[store] = store.segment.open_descriptor(writable=False)
        return self._descriptors[store]

    def _on_loop(self, work: Callable[[], T]) -> T:
        """Do something on the event loop, and return what it returns."""
        done: Future[T] = Future()

        def do() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001  (who waits gets it)
                done.set_exception(error)

        self._loop.call_soon_threadsafe(do)
        return done.result()


class _Loan(NamedTuple):
    """An object that is leased for being sent, and the file that its bytes are in."""

    store: Store
    lease: str
    key: ObjectKey
    size: int
    checksum: int
    extents: tuple[Extent, ...]
    descriptor: int


class _Open(NamedTuple):
    """A fetch that is not received yet; ``loans`` by the object's place in it."""

    number: int
    loans: dict[int, _Loan]
    deadline: float


class _Telling:
    """Tells of what one node got from this one for one request, in one run of fetches over one connection.

    Not of each of them: a prefix may be a thousand fetches.
    """

    def __init__(self, tracer: Tracer | None, first: Fetch, node: str) -> None:
        self._origin = Origin.read(first.request_id, first.traceparent)
        self._bucket = first.objects[0].bucket
        self._node = node
        self._asked = self._sent = self._size = self._wrong = 0
        self._span = None if tracer is None else tracer.open("peer fetch", "server", self._origin.trace)

    def asked(self, objects: int) -> None:
        """Take note of a fetch."""
        self._asked += objects

    def sent(self, size: int) -> None:
        """Take note of an object that was sent."""
        self._sent += 1
        self._size += size

    def wrong(self, objects: int) -> None:
        """Take note of objects that came with other bytes."""
        self._wrong += objects

    def end(self, *, is_whole: bool) -> None:
        """Tell: all that was sent has come, or the connection has ended before."""
        if self._span is not None:
            attributes: Attributes = {
                "tierline.bucket_digest": bucket_digest(self._bucket),
                "tierline.peer": self._node,
                "tierline.asked_objects": self._asked,
                "tierline.objects": self._sent,
                "tierline.bytes": self._size,
            }
            self._span.end(attributes, is_error=not is_whole or self._wrong > 0)
        if self._origin.request_id and _logger.isEnabledFor(logging.DEBUG):
            log.debug(
                "objects sent",
                request_id=self._origin.request_id,
                node=self._node,
                asked=self._asked,
                sent=self._sent,
                is_whole=is_whole,
            )


class _Sending:
    """One connection.

    Invariant: what is leased for it is in :attr:`_open`, at most :data:`MAX_OPEN_FETCHES` fetches; while there are any,
    :attr:`_telling` tells of them.
    """

    def __init__(self, sender: Sender, sock: socket.socket, peer: Hello) -> None:
        self._sender = sender
        self._limits = sender.limits
        self._way: _Way = _Encrypted(sock) if isinstance(sock, ssl.SSLSocket) else _Plain(sock)
        self._node = peer.node
        self._holder = f"node:{peer.node}"
        self._open: deque[_Open] = deque()
        self._telling: _Telling | None = None
        self._number = 0
        self._lease_s = self._limits.lease_s
        self._clock = sender.clock
        self._renewed = self._clock()

    def run(self) -> None:
        """Serve until the receiver closes.

        Raises
        ------
        OSError, TierlineError
            Why it was ended by us.
        """
        self._limit_waits()
        decoder: FrameDecoder[BulkRequest] = FrameDecoder(BulkRequest)  # type: ignore[arg-type]
        idle_since = self._clock()
        while True:
            data = self._way.receive(_RECEIVE_BYTES)
            if data is None:
                if self._open:
                    self._go_on()
                elif self._clock() - idle_since > self._limits.idle_s:
                    return
                continue
            if not data:
                return
            for message in decoder.feed(data):
                if isinstance(message, Fetch):
                    self._send(message)
                else:
                    self._take_back(message)
            idle_since = self._clock()

    def end(self) -> None:
        """Give all leases back."""
        loans = [loan for one in self._open for loan in one.loans.values()]
        self._open.clear()
        self._sender.take_back(loans)
        self._tell(is_whole=False)

    def _limit_waits(self) -> None:
        """Let no wait be so long that a lease could not be renewed in time."""
        pause_s = min(self._lease_s, self._limits.patience_s) / 4
        self._way.limit(pause_s, pause_s / _WAITS)

    def _send(self, fetch: Fetch) -> None:
        if fetch.number != self._number or len(self._open) >= MAX_OPEN_FETCHES:
            raise WireError(f"fetch {fetch.number}, and {self._number} was to be next, {len(self._open)} not received")
        self._number += 1
        if self._telling is None:
            self._telling = _Telling(self._sender.tracer, fetch, self._node)
        self._telling.asked(len(fetch.objects))
        lent = self._sender.lend(fetch.objects, self._holder)
        loans = {index: loan for index, loan in enumerate(lent) if isinstance(loan, _Loan)}
        shortest_s = min((loan.store.limits.max_ttl_s for loan in loans.values()), default=math.inf)
        if shortest_s < self._lease_s:
            self._lease_s = shortest_s
            self._limit_waits()
        size = sum(loan.size for loan in loans.values())
        patience_s = self._limits.patience_s + size / self._limits.slowest_bytes_per_s
        self._open.append(_Open(fetch.number, loans, self._clock() + patience_s))
        self._sender.count(active=1)
        try:
            for index, loan in enumerate(lent):
                if isinstance(loan, _Loan):
                    head = ObjectHead(fetch.number, index, Outcome.SENT, loan.size, loan.checksum)
                    self._send_head(head)
                    self._send_object(loan)
                    self._sender.count(outcome=Outcome.SENT, to=self._node)
                    self._telling.sent(loan.size)
                else:
                    self._send_head(ObjectHead(fetch.number, index, loan))
                    self._sender.count(outcome=loan)
        finally:
            self._sender.count(active=-1)

    def _send_head(self, head: ObjectHead) -> None:
        data = head.pack()
        while data:
            data = data[self._way.send(data, is_more=head.outcome is Outcome.SENT) :]
            self._go_on()

    def _send_object(self, loan: _Loan) -> None:
        for offset, length in loan.extents:
            at, end = offset, offset + length
            while at < end:
                sent = self._way.send_extent(loan, at, min(_PIECE_BYTES, end - at))
                self._sender.count(sent_bytes=sent, to=self._node)
                at += sent
                self._go_on()

    def _go_on(self) -> None:
        """Renew what is leased when it is time; raises ``WireError`` where the receiver takes too long."""
        now = self._clock()
        if now > self._open[-1].deadline:  # what was received before it is heard of behind it
            raise WireError("a receiver that is too slow")
        if now - self._renewed > self._lease_s / 3:
            self._renewed = now
            self._sender.renew([loan for one in self._open for loan in one.loans.values()])

    def _take_back(self, received: Received) -> None:
        if not self._open or received.number != self._open[0].number:
            raise WireError(f"fetch {received.number} was received, and was not the next to be")
        done = self._open.popleft()
        wrong = [done.loans[index].key for index in received.wrong if index in done.loans]
        self._sender.take_back(list(done.loans.values()), wrong)
        if self._telling is not None:
            self._telling.wrong(len(wrong))
        if not self._open:
            self._tell(is_whole=True)

    def _tell(self, *, is_whole: bool) -> None:
        telling, self._telling = self._telling, None
        if telling is not None:
            telling.end(is_whole=is_whole)


class _Way(Protocol):
    """How bytes go through a socket."""

    def limit(self, receiving_s: float, sending_s: float) -> None:
        """Let the others wait no longer than this, each time that they have to."""

    def receive(self, at_most: int) -> bytes | None:
        """Return what came, nothing at the end, ``None`` where nothing came in time."""

    def send(self, data: bytes, *, is_more: bool) -> int:
        """Send a few bytes; returns how many. ``is_more``: others follow at once."""

    def send_extent(self, loan: _Loan, offset: int, length: int) -> int:
        """Send some of an object's bytes; returns how many, 0 where none went in time."""


class _Plain:
    """The kernel sends from the segment's file; it has the limits of time, too, and the socket blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def limit(self, receiving_s: float, sending_s: float) -> None:
        limit_waits(self._sock, receiving_s, sending_s)

    def receive(self, at_most: int) -> bytes | None:
        try:
            return self._sock.recv(at_most)
        except BlockingIOError:
            return None

    def send(self, data: bytes, *, is_more: bool) -> int:
        try:
            return self._sock.send(data, socket.MSG_MORE if is_more else 0)
        except BlockingIOError:
            return 0

    def send_extent(self, loan: _Loan, offset: int, length: int) -> int:
        try:
            return os.sendfile(self._sock.fileno(), loan.descriptor, offset, length)
        except BlockingIOError:
            return 0


class _Encrypted:
    """OpenSSL reads the segment's memory; Python has the limits of time."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self._receiving_s = self._sending_s = 0.0

    def limit(self, receiving_s: float, sending_s: float) -> None:
        self._receiving_s, self._sending_s = receiving_s, sending_s

    def receive(self, at_most: int) -> bytes | None:
        self._sock.settimeout(self._receiving_s)
        try:
            return self._sock.recv(at_most)
        except TimeoutError:
            return None

    def send(self, data: bytes, *, is_more: bool) -> int:  # noqa: ARG002  (a record is what it is)
        self._sock.settimeout(self._sending_s)
        try:
            return self._sock.send(data)
        except TimeoutError:
            return 0

    def send_extent(self, loan: _Loan, offset: int, length: int) -> int:
        self._sock.settimeout(self._sending_s)
        [view] = loan.store.views([Extent(offset, length)])
        end, sent = time.monotonic() + self._receiving_s, 0
        try:
            while sent < length and time.monotonic() < end:
                sent += self._sock.send(view[sent:])  # one record of 16 KiB
        except TimeoutError:
            pass
        finally:
            view.release()
        return sent
