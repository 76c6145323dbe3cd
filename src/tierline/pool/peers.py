"""The other members: a connection to each, kept up, on which this node asks and announces.

Rules
-----
- A member is alive from the handshake on until its connection ends; after three seconds of silence we end it. Seconds
  are counted by our own beats, so a loop that stood still takes nobody for dead.
- A member is who it says itself to be, whatever it was called where it was found. Itself a node leaves alone, and under
  a second address a member is not connected to again.
- A request has one answer, or ``None``: not in time, or the member is gone. Nobody waits for the dead.
- What does not follow the contract ends the connection, and is counted.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol, TypeVar

from tierline import logs
from tierline.errors import AccessDenied, NodeUnavailable, WireError
from tierline.pool.connecting import ControlConnection
from tierline.pool.directory import Holding
from tierline.pool.handshake import Hello
from tierline.pool.members import Member
from tierline.tracing.context import current
from tierline.wire.cluster import ALIVE, SELF
from tierline.wire.framing import FrameDecoder, encode_frame
from tierline.wire.pool import (
    Announce,
    Announced,
    Complete,
    Entrusted,
    Keep,
    Keeping,
    Located,
    Lookup,
    ObjectGone,
    ObjectHeld,
    ObjectToKeep,
    PeerReply,
    PeerRequest,
    Ping,
    Run,
    Well,
)

log = logs.get(__name__)

PING_SECONDS = 1.0
SILENT_BEATS = 3
"""A member from which so many pings in a row brought nothing is dead."""
RETRY_SECONDS = (0.25, 0.5, 1.0, 2.0, 5.0)
KNOWN_AGAIN_AFTER_S = 30.0
"""An address that is this node's own, or a second one of a member, is tried again after that."""
MOST_WAITING = 1024
"""Requests to one member that are not answered yet; more than that are not sent."""
OBJECTS_PER_LOOKUP = 1024
"""In one message, of whoever asks: a few milliseconds of the home's time."""
BUFFERED_BYTES = 8 * 1024**2
"""Of what a member has not taken yet; beyond that nothing is asked of it."""
_READ_BYTES = 256 * 1024
_WARNED_EVERY_S = 60.0

CONNECTING, AWAY, REFUSED, SILENT = "connecting", "away", "refused", "silent"

_Reply = TypeVar("_Reply", Announced, Keeping, Located)
_Answer = Announced | Keeping | Located | Well


class Connect(Protocol):
    """Connects to a member and shakes hands (:func:`~tierline.pool.connecting.connect_control`)."""

    def __call__(self, member: Member) -> Awaitable[ControlConnection]:
        """Raises ``NodeUnavailable`` and ``AccessDenied``."""


class Peer:
    """A member that is alive, on one connection, until :meth:`run` returns.

    Invariant: what was asked and not answered is in ``_waiting``, and whoever waits for it hears of the end.

    Attributes
    ----------
    well
        What it said of itself last.
    round_trip_s
        Of the last ping.
    """

    def __init__(
        self, member: Member, connection: ControlConnection, entrusted: Callable[[Sequence[bytes]], None]
    ) -> None:
        self.member = member
        self.name = connection.peer.node
        self.epoch = connection.peer.epoch
        self.well: Well | None = None
        self.round_trip_s: float | None = None
        self.is_silent = False
        self._reader, self._writer = connection.reader, connection.writer
        self._entrusted = entrusted
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._silent_beats = 0
        self._next = 0
        self._waiting: dict[int, Callable[[_Answer | None], None]] = {}
        self._lookups: list[_Asked] = []
        self._is_over = False

    @property
    def heard_s(self) -> float:
        """Since something was heard of it."""
        return self._loop.time() - self._heard_at

    async def run(self) -> None:
        """Hear its answers until the connection ends; raises ``WireError`` where they are none, and ``OSError``."""
        beat = asyncio.create_task(self._beat())
        try:
            decoder: FrameDecoder[PeerReply] = FrameDecoder(PeerReply)  # type: ignore[arg-type]
            while data := await self._reader.read(_READ_BYTES):
                self._silent_beats = 0
                self._heard_at = self._loop.time()
                for reply in decoder.feed(data):
                    self._take(reply)
        finally:
            beat.cancel()
            self.end()

    def end(self) -> None:
        """End the connection: what was asked has no answer, and nothing more is asked."""
        self._is_over = True
        self._writer.transport.abort()
        waiting, self._waiting = self._waiting, {}
        for then in waiting.values():
            then(None)

    async def announce(self, held: list[ObjectHeld], gone: list[ObjectGone], within_s: float) -> Sequence[int] | None:
        """Tell what has changed here in slots that are at home there; returns which of ``held`` are copies."""
        announced = await self._exchange(Announce(self._number(), held, gone), Announced, within_s)
        return None if announced is None else announced.copies

    def complete(self) -> None:
        """Say that all is announced on this connection."""
        self._say(Complete())

    async def keep(self, objects: list[ObjectToKeep], within_s: float) -> Sequence[bool]:
        """Ask it to fetch objects from here and keep them; returns which of them it has."""
        origin = current()
        wish = Keep(self._number(), objects, origin.request_id, origin.traceparent)
        keeping = await self._exchange(wish, Keeping, within_s)
        return keeping.kept if keeping is not None and len(keeping.kept) == len(objects) else [False] * len(objects)

    async def lookup(self, slot: int, digests: Sequence[bytes], within_s: float) -> Sequence[Sequence[Holding]]:
        """Ask who holds the leading objects of a run.

        All that is asked in one turn of the loop goes in one message, and has the time of who has least.
        """
        if not self._lookups:
            self._loop.call_soon(self._send_lookups)
        parts = []
        for start in range(0, len(digests), OBJECTS_PER_LOOKUP):
            run = Run(slot, list(digests[start : start + OBJECTS_PER_LOOKUP]))
            parts.append(_Asked(run, within_s, self._loop.create_future()))
        self._lookups += parts
        found: list[Sequence[Holding]] = []
        for part in parts:
            holdings = await part.answered
            found += holdings
            if len(holdings) < len(part.run.digests):
                break
        return found

    # Inside -----------------------------------------------------------------------------------------------------------

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _say(self, request: PeerRequest) -> None:
        if not self._writer.is_closing():  # else it is gone, and run() hears of it in a moment: writing may raise
            self._writer.write(encode_frame(request))

    def _ask(self, request: Announce | Keep | Lookup | Ping, then: Callable[[_Answer | None], None]) -> None:
        """Send a request; ``then`` is called once, with the answer, or with nothing at the connection's end."""
        if (
            self._is_over
            or len(self._waiting) >= MOST_WAITING
            or self._writer.transport.get_write_buffer_size() > BUFFERED_BYTES
        ):
            then(None)
            return
        self._waiting[request.id] = then
        self._say(request)

    def _give_up(self, number: int) -> None:
        then = self._waiting.pop(number, None)
        if then is not None:
            then(None)

    async def _exchange(self, request: Announce | Keep, kind: type[_Reply], within_s: float) -> _Reply | None:
        answered: asyncio.Future[_Reply | None] = self._loop.create_future()

        def then(answer: _Answer | None) -> None:
            if not answered.done():
                answered.set_result(answer if isinstance(answer, kind) else None)
            if not isinstance(answer, kind | None):
                raise WireError(f"node {self.name}: a {type(answer).__name__} for a {type(request).__name__}")

        self._ask(request, then)
        try:
            async with asyncio.timeout(within_s):
                return await answered
        except TimeoutError:
            return None
        finally:
            self._waiting.pop(request.id, None)

    def _send_lookups(self) -> None:
        lookups, self._lookups = self._lookups, []
        start = count = 0
        for place, asked in enumerate(lookups):
            count += len(asked.run.digests)
            if count > OBJECTS_PER_LOOKUP:
                self._send_lookup(lookups[start:place])
                start, count = place, len(asked.run.digests)
        if lookups:
            self._send_lookup(lookups[start:])

    def _send_lookup(self, lookups: "Sequence[_Asked]") -> None:
        number = self._number()
        self._loop.call_later(min(asked.within_s for asked in lookups), self._give_up, number)
        self._ask(Lookup(number, [asked.run for asked in lookups]), lambda answer: self._located(lookups, answer))

    def _located(self, lookups: "Sequence[_Asked]", answer: _Answer | None) -> None:
        runs: Sequence[Sequence[Sequence[Holding]]] = [()] * len(lookups)
        try:
            if answer is not None:
                runs = _holdings(answer, [len(asked.run.digests) for asked in lookups])
        finally:
            for asked, run in zip(lookups, runs, strict=True):
                if not asked.answered.done():
                    asked.answered.set_result(run)

    def _take(self, reply: PeerReply) -> None:
        if isinstance(reply, Entrusted):
            self._entrusted(reply.digests)
            return
        if reply.id > self._next:
            raise WireError(f"node {self.name} answered what it was not asked")
        then = self._waiting.pop(reply.id, None)
        if then is not None:  # else nobody waits for it any more
            then(reply)

    async def _beat(self) -> None:
        """Ping until it has been silent for too long."""
        while self._silent_beats < SILENT_BEATS:
            self._silent_beats += 1
            self._ask(Ping(self._number()), self._hear_well(self._loop.time()))
            await asyncio.sleep(PING_SECONDS)
        self.is_silent = True
        self.end()

    def _hear_well(self, asked_at: float) -> Callable[[_Answer | None], None]:
        def then(answer: _Answer | None) -> None:
            if isinstance(answer, Well):
                self.well = answer
                self.round_trip_s = self._loop.time() - asked_at
            elif answer is not None:
                raise WireError(f"node {self.name}: a {type(answer).__name__} for a ping")

        return then


class _Asked(NamedTuple):
    """A lookup of one run, and who waits for it."""

    run: Run
    within_s: float
    answered: asyncio.Future[Sequence[Sequence[Holding]]]


def _holdings(answer: _Answer, lengths: Sequence[int]) -> Sequence[Sequence[Sequence[Holding]]]:
    """Return what is said of runs of these lengths; raises ``WireError`` where it cannot be of them."""
    if not isinstance(answer, Located) or len(answer.runs) != len(lengths):
        raise WireError("an answer to another question than where objects are")
    holders = [(holder.name, holder.epoch) for holder in answer.holders]
    found: list[list[Sequence[Holding]]] = []
    for run, length in zip(answer.runs, lengths, strict=True):
        columns = len(run.holders), len(run.sizes), len(run.checksums)
        if len(run.copies) > length or columns != (sum(run.copies),) * 3:
            raise WireError("an answer with more, or less, than was asked for")
        try:
            copies = [
                Holding(*holders[place], size, checksum)
                for place, size, checksum in zip(run.holders, run.sizes, run.checksums, strict=True)
            ]
        except IndexError:
            raise WireError("a holder that is not named") from None
        ends = accumulate(run.copies)
        found.append([copies[end - count : end] for count, end in zip(run.copies, ends, strict=True)])
    return found


class MemberState(NamedTuple):
    """What is known of a member's address.

    Parameters
    ----------
    state, why
        As in :class:`~tierline.wire.cluster.MemberFigures`.
    peer
        The connection, or the last one there was.
    """

    member: Member
    state: str
    why: str
    peer: Peer | None


class Peers:
    """All members but this one.

    Parameters
    ----------
    own
        Who we are.
    connect
        Connects to a member.
    joined, left
        Told of a member when it is alive, and when it is so no more; a member that comes back is another :class:`Peer`.
    entrusted
        Told of objects that are copies no more.

    Attributes
    ----------
    alive
        By name.
    refused
        Connections that ended by what does not follow the contract.
    """

    def __init__(
        self,
        own: Hello,
        connect: Connect,
        *,
        joined: Callable[[Peer], None],
        left: Callable[[Peer], None],
        entrusted: Callable[[Sequence[bytes]], None],
    ) -> None:
        self.alive: dict[str, Peer] = {}
        self.refused = 0
        self._own = own
        self._connect = connect
        self._joined = joined
        self._left = left
        self._entrusted = entrusted
        self._tasks: dict[Member, asyncio.Task[None]] = {}
        self._states: dict[Member, MemberState] = {}
        self._warned: dict[Member, float] = {}

    @property
    def states(self) -> Sequence[MemberState]:
        """Of every member, itself perhaps among them; of one with several addresses, each."""
        return list(self._states.values())

    def follow(self, members: Sequence[Member]) -> None:
        """Keep connections to these members, and to no others, from now on."""
        wanted = set(members)
        for member in self._tasks.keys() - wanted:
            self._tasks.pop(member).cancel()
            self._states.pop(member, None)
            self._warned.pop(member, None)
        for member in wanted - self._tasks.keys():
            self._note(member, CONNECTING)
            self._tasks[member] = asyncio.create_task(self._keep_up(member))

    async def stop(self) -> None:
        """End all connections."""
        tasks = list(self._tasks.values())
        self.follow(())
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_up(self, member: Member) -> None:
        failures = 0
        while True:
            pause_s = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
            failures += 1
            try:
                connection = await self._connect(member)
                was_met = await self._meet(member, connection)
            except NodeUnavailable as error:
                self._warn(member, AWAY, str(error))
            except AccessDenied as error:
                self._warn(member, REFUSED, str(error))
            else:
                if was_met:
                    failures = 0
                else:
                    pause_s = KNOWN_AGAIN_AFTER_S
            await asyncio.sleep(pause_s * (0.5 + random.random()))  # so that not all come at once

    async def _meet(self, member: Member, connection: ControlConnection) -> bool:
        """Live with a member until its connection ends; returns whether it is one to live with at this address.

        Raises
        ------
        AccessDenied
            It is another one with a name that is taken.
        """
        hello, transport = connection.peer, connection.writer.transport
        known = self._own if hello.node == self._own.node else None
        if hello.node in self.alive:
            known = Hello(hello.node, self.alive[hello.node].epoch, hello.pool)
        if known is not None:
            transport.abort()
            if known.epoch != hello.epoch:
                raise AccessDenied(f"node {member}: another one with the name {hello.node}, which must be its alone")
            self._note(member, SELF if known is self._own else ALIVE, peer=self.alive.get(hello.node))
            return False
        peer = Peer(member, connection, self._entrusted)
        self.alive[peer.name] = peer
        self._note(member, ALIVE, peer=peer)
        log.info("a member of the pool is alive", node=peer.name, address=str(member))
        try:
            self._joined(peer)
            await peer.run()
        except WireError as error:
            self.refused += 1
            self._warn(member, REFUSED, str(error))
        except OSError as error:
            self._note(member, AWAY, str(error), peer)
        else:
            self._note(member, SILENT if peer.is_silent else AWAY, "it has closed the connection", peer)
        finally:
            peer.end()
            del self.alive[peer.name]
            self._left(peer)
            log.info("a member of the pool is gone", node=peer.name, was_silent=peer.is_silent)
        return True

    def _note(self, member: Member, state: str, why: str = "", peer: Peer | None = None) -> None:
        if member in self._tasks or state == CONNECTING:
            before = self._states.get(member)
            self._states[member] = MemberState(member, state, why, peer or (before.peer if before else None))

    def _warn(self, member: Member, state: str, why: str) -> None:
        """Note why a member does not take part, and say so once a minute."""
        self._note(member, state, why)
        now = asyncio.get_running_loop().time()
        if now >= self._warned.get(member, 0.0) and member in self._tasks:
            self._warned[member] = now + _WARNED_EVERY_S
            log.warning("a member of the pool does not take part", member=str(member), why=why)
