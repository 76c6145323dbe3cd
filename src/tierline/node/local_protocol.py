"""One connection of the UNIX socket: requests of :mod:`tierline.wire.messages` in, their replies out.

Rules: slots and leases belong to the connection and end when **the client** ends it; a client whose frames break the
contract is told so and no longer served, but its slots wait for its end of the connection: it may be writing into them.
Requests are carried out in the order they came, in steps, and the loop gets its turn after :data:`TURN_S`.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextlib import nullcontext
from functools import partial
from operator import attrgetter
from typing import Any, Protocol, cast

from tierline import logs
from tierline.errors import (
    AccessDenied,
    AlreadyStored,
    BeingWritten,
    NoSpace,
    ObjectTooLarge,
    QuotaExceeded,
    StoreError,
    TierlineError,
    UnknownLease,
    UnknownSlot,
    WireError,
)
from tierline.loading import PrefillCost
from tierline.node.access import Grant, Pass
from tierline.node.prefix_run import MAX_WAIT_S, PrefixRun
from tierline.node.segments import ServedSegment
from tierline.node.service import Verdict
from tierline.node.waiting import KeyWaiters
from tierline.store import PAGE_BYTES, ObjectKey, Owner, Slot
from tierline.tracing.context import Origin, working_for
from tierline.tracing.spans import Attributes, bucket_digest
from tierline.wire import messages
from tierline.wire.framing import FrameDecoder, encode_frame
from tierline.wire.messages import Extent, Failed, Hello, LeasedObject, Refusal, Reply, Request

log = logs.get(__name__)
_logger = logging.getLogger(__name__)

TURN_S = 0.001
"""A connection lets others have their turn after so long."""
MAX_WAITING_REQUESTS = 1024
"""Above it the connection is not read until some are done."""

MAX_REPLY_EXTENTS = 262_144
"""A run of leases or slots ends here, so that its reply fits a frame."""

MAX_WAITS = 256
"""Requests of one connection that wait for somebody; further ones are answered at once."""

Steps = Generator[None, None, Reply | None]
"""A request being carried out: yields where the loop may take its turn, returns the reply (None: it comes later)."""


class SocketObserver(Protocol):
    """Hears of every request once it has been answered."""

    def socket_request(self, verb: str, outcome: str, seconds: float) -> None:
        """Take note; ``outcome`` is ``ok`` or the name of the error."""


class EngineObserver(Protocol):
    """Hears which engines read the store."""

    def introduced(self, holder: str, said: messages.Introduce) -> None:
        """An engine said what it reads."""

    def left(self, holder: str) -> None:
        """A connection ended, an engine's perhaps."""


class LocalConnection(asyncio.Protocol):
    """Serves one client that has been welcomed.

    Invariant: ``reserved_bytes`` counts the pages of the connection's open slots, and ``granted_bytes`` of its service
    those of all connections.

    Parameters
    ----------
    segment
        Which segment the client maps.
    holds
        Whether a bucket is in that segment; ``None``: every bucket is.
    hello
        How the client greeted.
    pid
        The client's process, as the kernel says.
    rights
        What the client may do.
    max_reserved_bytes
        Most that the connection's open slots may hold.
    max_reserved_bytes_of_all
        Most that those of all connections may hold; ``None``: whatever there is.
    max_object_bytes
        Most that one slot may hold; ``None``: whatever there is.
    observer
        Hears of each request.
    engines
        Hears which engines are connected; ``None`` where nobody wants to know.
    stats
        Makes the document of ``Describe``, as far as the client may see it.
    connections
        The open connections of the server; this one adds and removes itself.
    """

    def __init__(
        self,
        segment: ServedSegment,
        holds: Callable[[str], bool] | None,
        hello: Hello,
        pid: int,
        rights: Pass,
        *,
        max_reserved_bytes: int,
        max_reserved_bytes_of_all: int | None = None,
        max_object_bytes: int | None = None,
        observer: SocketObserver,
        engines: EngineObserver | None = None,
        stats: Callable[[Grant], bytes],
        connections: set["LocalConnection"],
    ) -> None:
        self.hello = hello
        self.reserved_bytes = 0
        service = segment.service
        self.owner: Owner = service.new_owner(hello.client, pid)
        self.holder = f"{hello.client}#{self.owner.connection}"
        self.segment = segment
        self._holds = holds
        self._rights = rights
        self._service = service
        self._store = service.store
        self._max_reserved_bytes = max_reserved_bytes
        self._max_reserved_bytes_of_all = max_reserved_bytes_of_all
        self._max_object_bytes = max_object_bytes
        self._observer = observer
        self._engines = engines
        self._stats = stats
        self._connections = connections
        self._decoder: FrameDecoder[Request] = FrameDecoder(cast("type[Request]", Request))
        self._waiting: deque[tuple[Request, float]] = deque()
        self._current: tuple[Request, float, Steps] | None = None
        self._slots: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.Transport | None = None
        self._is_scheduled = False
        self._is_refused = False
        self._can_write = True

    @property
    def slots(self) -> int:
        """Number of open slots."""
        return len(self._slots)

    # What asyncio calls -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of requests have come."""
        if self._is_refused:
            return
        now = time.monotonic()
        try:
            request = self._decoder.whole(data)
            if request is not None and self._can_write and self._current is None and not self._waiting:
                if not self._start(request, now):
                    self._take_turn()
                return
            for each in self._decoder.feed(data) if request is None else (request,):
                self._waiting.append((each, now))
        except WireError as error:
            self._refuse(error)
            return
        if len(self._waiting) > MAX_WAITING_REQUESTS:
            self._require_transport().pause_reading()
        self._take_turn()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio gives it)
        """The connection is gone, whoever ended it."""
        self._connections.discard(self)
        self._is_refused = True
        self._waiting.clear()
        self._current = None
        for task in self._tasks:
            task.cancel()
        self._slots.clear()
        self._reserve_bytes(-self.reserved_bytes)
        self._service.end_owner(self.owner)
        self._service.end_holder(self.holder)
        if self._engines is not None:
            self._engines.left(self.holder)

    def pause_writing(self) -> None:
        """The client does not take the replies as fast as they come."""
        self._can_write = False
        self._require_transport().pause_reading()

    def resume_writing(self) -> None:
        """The client has taken what was sent."""
        self._can_write = True
        self._take_turn()

    def close(self) -> None:
        """End the connection from the node's side; for a node that stops."""
        if self._transport is not None:
            self._transport.abort()

    # Turns --------------------------------------------------------------------------------------------------------

    def _take_turn(self) -> None:
        """Carry out what waits, for as long as a turn lasts and the client takes the replies."""
        self._is_scheduled = False
        end = time.monotonic() + TURN_S
        while self._can_write and not self._is_refused:
            if self._current is not None:
                self._step(*self._current)
            elif self._waiting:
                self._start(*self._waiting.popleft())
            else:
                break
            if time.monotonic() >= end:
                self._schedule()
                return
        transport = self._require_transport()
        if self._can_write and not transport.is_reading() and not transport.is_closing():
            transport.resume_reading()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._take_turn)

    def _start(self, request: Request, received: float) -> bool:
        """Carry out a request; False: it takes more steps, and is now the current one."""
        try:
            answer = self._answer(request, received)
        except (StoreError, WireError, AccessDenied) as error:
            self._fail(request, received, error)
            return True
        if isinstance(answer, Generator):
            self._current = request, received, answer
            return False
        if answer is not None:
            self._reply(request, received, answer)
        return True

    def _step(self, request: Request, received: float, steps: Steps) -> None:
        """Go one step further with the current request."""
        try:
            next(steps)
        except StopIteration as stop:
            self._current = None
            if stop.value is not None:
                self._reply(request, received, stop.value)
        except (StoreError, WireError, AccessDenied) as error:
            self._current = None
            self._fail(request, received, error)

    def _fail(self, request: Request, received: float, error: TierlineError) -> None:
        self._reply(request, received, Failed(request.id, type(error).__name__, str(error)))

    def _reply(self, request: Request, received: float, reply: Reply) -> None:
        outcome = reply.code if isinstance(reply, Failed) else "ok"
        self._observer.socket_request(type(request).__name__, outcome, time.monotonic() - received)
        self._require_transport().write(encode_frame(reply))

    def _refuse(self, error: WireError) -> None:
        """Serve this client no longer, for where its next request starts is lost; what it holds stays until its end."""
        log.warning("a client broke the contract", client=self.hello.client, pid=self.owner.pid, error=str(error))
        self._is_refused = True
        self._waiting.clear()
        self._current = None
        transport = self._require_transport()
        transport.write(encode_frame(Failed(0, type(error).__name__, str(error))))
        transport.write_eof()
        if not transport.is_reading():
            transport.resume_reading()  # to hear of its end

    # Requests -----------------------------------------------------------------------------------------------------

    def _answer(self, request: Request, received: float) -> Steps | Reply | None:
        """Carry out a request of one step and return its reply (None: it comes later); of others, return the steps."""
        self._rights.require(request)
        if self._holds is not None:
            self._require_held(request, self._holds)
        match request:
            case messages.PrefixLease():
                return self._prefix_lease(request, received)
            case messages.Release():
                return self._release(request)
            case messages.Reserve():
                return self._reserve(request, received)
            case messages.Grant():
                return self._grant(request)
            case messages.Commit():
                return self._commit(request)
            case messages.Abort():
                return self._abort(request)
            case messages.Delete():
                return self._delete(request)
            case messages.Renew():
                return self._renew(request)
            case messages.Suspect():
                if not self._may_wait():  # it has sent so many that another one may be heard of later
                    return messages.Done(request.id, 0)
                self._answer_later(request, received, self._suspect(request))
                return None
            case messages.Introduce():
                if self._engines is not None:
                    self._engines.introduced(self.holder, request)
                return messages.Done(request.id)
            case messages.Describe():
                return messages.Description(request.id, self._stats(self._rights.grant))

    def _prefix_lease(self, request: messages.PrefixLease, received: float) -> Steps | Reply | None:
        if not (request.request_id or request.traceparent):
            return self._lease_run(request, received)
        with working_for(Origin.read(request.request_id, request.traceparent)):
            return self._lease_run(request, received)

    def _lease_run(self, request: messages.PrefixLease, received: float) -> Steps | Reply | None:
        run = PrefixRun(
            self._service,
            self.holder,
            request.bucket,
            request.names,
            ttl_s=request.ttl_s,
            group_size=request.group_size,
            max_extents=MAX_REPLY_EXTENTS,
            across_gaps=request.across_gaps,
            anchor=request.anchor,
            prefill=PrefillCost(request.prefill_s, request.prefill_growth_s) if request.prefill_s else None,
        )
        return self._gathering(request, received, run) if run.gather() else self._gathered(request, received, run)

    def _gathering(self, request: messages.PrefixLease, received: float, run: PrefixRun) -> Steps:
        yield
        while run.gather():
            yield
        return self._gathered(request, received, run)

    def _gathered(self, request: messages.PrefixLease, received: float, run: PrefixRun) -> Reply | None:
        if request.wait_s and run.awaits() and self._may_wait():
            self._answer_later(request, received, self._prefix_lease_later(request, run))
            return None
        if self._service.below is not None:
            run.seek_ahead()
        return _leased(request, run)

    async def _prefix_lease_later(self, request: messages.PrefixLease, run: PrefixRun) -> Reply:
        await run.extend(request.wait_s)
        return _leased(request, run)

    def _renew(self, request: messages.Renew) -> Reply:
        self._store.renew(request.lease, request.ttl_s)
        return messages.Done(request.id, 1)

    def _release(self, request: messages.Release) -> Reply:
        return messages.Done(request.id, self._store.release(request.lease, request.start, request.stop))

    def _reserve(self, request: messages.Reserve, received: float) -> Steps:
        self._require_writer()
        if len(request.names) != len(request.sizes):
            raise WireError(f"{len(request.names)} names and {len(request.sizes)} sizes; allowed: equally many")
        _require_short([request.bucket, *request.names])
        reservation = _Reservation(request, self._allocate_named)
        for index in range(len(request.names)):
            reservation.take(index)
            yield
        if request.wait_s and reservation.must_wait and self._may_wait():
            self._answer_later(request, received, reservation.wait(self._service.waiters))
            return None
        return reservation.reply()

    def _grant(self, request: messages.Grant) -> Steps:
        self._require_writer()
        slots: list[messages.Slot] = []
        extents = 0
        while len(slots) < request.count and extents <= MAX_REPLY_EXTENTS:
            outcome = self._allocate(request.size, partial(self._service.grant, request.size, self.owner))
            if not isinstance(outcome, messages.Slot):
                break
            slots.append(outcome)
            extents += len(outcome.extents)
            yield
        return messages.Granted(request.id, slots)

    def _commit(self, request: messages.Commit) -> Steps:
        self._require_writer()
        _require_short([request.bucket, *(entry.name for entry in request.entries)])
        outcomes: list[Refusal | None] = []
        tracer = self._service.tracer
        origin = Origin.read(request.request_id, request.traceparent)
        span = tracer.open("commit", "server", origin.trace) if tracer is not None else None
        told = origin if span is None else Origin(origin.request_id, span.context)
        for entry in reversed(
            request.entries
        ):  # the head of a prefix is then its youngest block, and outlives the rest
            try:
                key = ObjectKey(request.bucket, entry.name)
                with working_for(told) if told.is_traced else nullcontext():  # what writes it to tiers asks for whom
                    self._service.commit(entry.slot, self.owner, entry.checksum, key, entry.size, entry.anchor)
            except StoreError as error:
                outcomes.append(_refusal(error))
            else:
                self._forget_slot(entry.slot)
                outcomes.append(None)
            yield
        outcomes.reverse()
        if span is not None:
            span.end(_committed(request, outcomes))
        if origin.request_id and _logger.isEnabledFor(logging.DEBUG):
            log.debug("committed", request_id=origin.request_id, objects=outcomes.count(None), of=len(outcomes))
        return messages.Committed(request.id, outcomes)

    def _abort(self, request: messages.Abort) -> Steps:
        aborted = 0
        for slot in request.slots:
            try:
                self._service.abort(slot, self.owner)
            except UnknownSlot:
                continue  # committed or aborted before: nothing is left to give back
            self._forget_slot(slot)
            aborted += 1
            yield
        return messages.Done(request.id, aborted)

    async def _suspect(self, request: messages.Suspect) -> Reply:
        verdict = await self._service.suspect(ObjectKey(request.bucket, request.name))
        return messages.Done(request.id, int(verdict is Verdict.MISMATCH))

    def _delete(self, request: messages.Delete) -> Steps:
        deleted = 0
        keys = [ObjectKey(request.bucket, name) for name in request.names]
        for key in keys:
            deleted += self._store.delete(key)
            yield
        if self._service.below is not None:
            self._service.below.forget(keys)
        return messages.Done(request.id, deleted)

    def _may_wait(self) -> bool:
        return len(self._tasks) < MAX_WAITS

    def _answer_later(self, request: Request, received: float, answer: Coroutine[Any, Any, Reply]) -> None:
        """Let a reply that has to wait be made by a task; requests behind it may overtake it."""

        async def run() -> None:
            try:
                reply = await answer
            except StoreError as error:
                reply = Failed(request.id, type(error).__name__, str(error))
            self._reply(request, received, reply)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Slots --------------------------------------------------------------------------------------------------------

    def _allocate_named(self, bucket: str, name: str, size: int) -> messages.Slot | Refusal:
        return self._allocate(size, partial(self._service.write, ObjectKey(bucket, name), size, self.owner))

    def _allocate(self, size: int, allocate: Callable[[], Slot]) -> messages.Slot | Refusal:
        pages_bytes = -(-size // PAGE_BYTES) * PAGE_BYTES
        if self._is_refused:  # the turn of one who has gone came before the end of its wait: nobody would end the slot
            return Refusal.NO_SPACE
        if self._max_object_bytes is not None and size > self._max_object_bytes:
            return Refusal.TOO_LARGE
        if self.reserved_bytes + pages_bytes > self._max_reserved_bytes:
            return Refusal.NO_SPACE
        of_all = self._max_reserved_bytes_of_all
        if of_all is not None and self._service.granted_bytes + pages_bytes > of_all:
            return Refusal.NO_SPACE
        try:
            slot = allocate()
        except StoreError as error:
            return _refusal(error)
        self._slots[slot.id] = pages_bytes
        self._reserve_bytes(pages_bytes)
        return messages.Slot(slot.id, slot.size, cast("list[Extent]", slot.extents))

    def _forget_slot(self, slot: int) -> None:
        self._reserve_bytes(-self._slots.pop(slot, 0))

    def _reserve_bytes(self, more: int) -> None:
        self.reserved_bytes += more
        self._service.granted_bytes += more

    def _require_held(self, request: Request, holds: Callable[[str], bool]) -> None:
        """Refuse a bucket of another segment: its bytes are not in what the client has mapped."""
        bucket: str | None = getattr(request, "bucket", None)  # every request about a bucket has it
        if bucket is not None and not holds(bucket):
            raise WireError(
                f"bucket {bucket} is not in segment {self.segment.name}; say hello with the name of the one it is in"
            )

    def _require_writer(self) -> None:
        if not self.hello.writer:
            raise WireError("this connection reads only; say hello with writer set to reserve and commit")

    def _require_transport(self) -> asyncio.Transport:
        assert self._transport is not None, "asyncio calls connection_made first"
        return self._transport


class _Reservation:
    """A ``Reserve`` while it is carried out: one outcome a name, and who is still waited for.

    It waits only while it has no slot: whoever holds some and waits for others could wait for somebody who waits for
    those. So it ends with the first slots it gets, and with the last name it learns of.
    """

    def __init__(self, request: messages.Reserve, allocate: Callable[[str, str, int], messages.Slot | Refusal]) -> None:
        self._request = request
        self._allocate = allocate
        self._outcomes: list[messages.Slot | Refusal] = [Refusal.BEING_WRITTEN] * len(request.names)
        self._unknown = len(request.names)
        self._extents = 0
        self._has_slot = False

    @property
    def must_wait(self) -> bool:
        """Whether there is somebody to wait for, and no slot that keeps from waiting."""
        return not self._has_slot and self._unknown > 0

    def take(self, index: int) -> None:
        """Allocate the slot of one name, or find out why not."""
        outcome: messages.Slot | Refusal = Refusal.NO_SPACE
        if self._extents <= MAX_REPLY_EXTENTS:
            outcome = self._allocate(self._request.bucket, self._request.names[index], self._request.sizes[index])
        self._outcomes[index] = outcome
        self._unknown -= outcome is not Refusal.BEING_WRITTEN
        if isinstance(outcome, messages.Slot):
            self._extents += len(outcome.extents)
            self._has_slot = True

    async def wait(self, waiters: KeyWaiters) -> Reply:
        """Stand in line for every name that another writes."""
        settled = asyncio.get_running_loop().create_future()

        def take(index: int) -> None:
            self.take(index)
            if not self.must_wait and not settled.done():
                settled.set_result(None)

        turns = [
            (ObjectKey(self._request.bucket, self._request.names[index]), partial(take, index))
            for index, outcome in enumerate(self._outcomes)
            if outcome is Refusal.BEING_WRITTEN
        ]
        await waiters.wait_in_line(turns, settled, min(MAX_WAIT_S, self._request.wait_s))
        return self.reply()

    def reply(self) -> Reply:
        """Return what has come of it."""
        return messages.Reserved(self._request.id, self._outcomes)


def _committed(request: messages.Commit, outcomes: list[Refusal | None]) -> Attributes:
    """Return what a span says of a commit."""
    entries = zip(request.entries, outcomes, strict=True)
    return {
        "tierline.bucket_digest": bucket_digest(request.bucket),
        "tierline.objects": outcomes.count(None),
        "tierline.refused": len(outcomes) - outcomes.count(None),
        "tierline.bytes": sum(entry.size for entry, outcome in entries if outcome is None),
    }


def _require_short(names: Iterable[str]) -> None:
    """Refuse a request with a name that the journal cannot hold: it counts bytes, a message's type characters."""
    for name in names:
        if not name.isascii() and len(name.encode()) > messages.MAX_NAME_BYTES:
            raise WireError(f"a name of {len(name.encode())} bytes; allowed: {messages.MAX_NAME_BYTES}")


def _leased(request: messages.PrefixLease, run: PrefixRun) -> Reply:
    objects = cast("list[LeasedObject]", list(map(_as_sent, run.objects)))
    return messages.Leased(request.id, run.finish(), objects, run.granted_s, run.places, run.sources())


_as_sent = attrgetter(*LeasedObject.__struct_fields__)
"""Of what is leased, a tuple: it becomes the array that a :class:`LeasedObject` becomes, at a third of the cost."""


_REFUSALS: dict[type[StoreError], Refusal] = {
    AlreadyStored: Refusal.EXISTS,
    BeingWritten: Refusal.BEING_WRITTEN,
    NoSpace: Refusal.NO_SPACE,
    QuotaExceeded: Refusal.NO_SPACE,
    ObjectTooLarge: Refusal.TOO_LARGE,
    UnknownSlot: Refusal.UNKNOWN_SLOT,
    UnknownLease: Refusal.UNKNOWN_SLOT,
}


def _refusal(error: StoreError) -> Refusal:
    return _REFUSALS[type(error)]
