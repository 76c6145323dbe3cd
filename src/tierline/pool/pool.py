"""A node's part in a pool, with its sockets: what a node makes one of, starts and stops.

The rule inside: **what is let in is what is answered**: the port between nodes opens last and closes first.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from tierline.duties import Duties
from tierline.pool.announcing import Announcer
from tierline.pool.connecting import ControlConnection, connect_control
from tierline.pool.control import DUTY, Control
from tierline.pool.directory import DEFAULT_BYTES
from tierline.pool.handshake import Credentials, Hello
from tierline.pool.listening import Door
from tierline.pool.local import Local
from tierline.pool.members import Member, MemberSource
from tierline.pool.peers import MemberState
from tierline.pool.receiving import Transfers
from tierline.pool.sending import Sender, Sent
from tierline.pool.tieredstorage import TieredStorage, Traffic
from tierline.tracing.tracer import Tracer
from tierline.wire.cluster import SELF, MemberFigures, TrafficFigures

CONNECT_WITHIN_S = 3.0


class Pool:
    """One node among others.

    Parameters
    ----------
    own
        Name of this node in the pool, its epoch, and the pool's name.
    sock
        Bound for the port between nodes (:func:`~tierline.pool.listening.bind_door`); :meth:`stop` closes it.
    credentials
        What the members know each other by.
    sources
        Where members come from: they are those of all sources together.
    local
        This node's objects.
    duties
        Guard what goes on beside serving; failures count under :data:`~tierline.pool.control.DUTY`.
    max_directory_bytes
        Memory of this node's part of the directory.
    clock
        Monotonic seconds.
    tracer
        Is told of what is done for traced requests; ``None``: nobody is.
    """

    def __init__(
        self,
        own: Hello,
        sock: socket.socket,
        credentials: Credentials,
        sources: Sequence[MemberSource],
        local: Local,
        duties: Duties,
        *,
        max_directory_bytes: int = DEFAULT_BYTES,
        clock: Callable[[], float] = time.monotonic,
        tracer: Tracer | None = None,
    ) -> None:
        self.sender = Sender(asyncio.get_running_loop(), local.store_of, local.suspect, tracer=tracer, clock=clock)
        self.transfers = Transfers(own, credentials, clock=clock)
        self.control = Control(
            own,
            self._connect,
            self.transfers,
            local,
            lambda: self.sender.active,
            duties,
            max_directory_bytes=max_directory_bytes,
            clock=clock,
        )
        self.door = Door(
            sock,
            own,
            credentials,
            self.control.answering.serve,
            self.sender.serve,
            objection=self.control.answering.objection,
        )
        self._own = own
        self._address = sock.getsockname()[:2]
        self._credentials = credentials
        self._sources = sources
        self._local = local
        self._duties = duties
        self._members: dict[MemberSource, Sequence[Member]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._serving: asyncio.Task[None] | None = None

    @property
    def tier(self) -> TieredStorage:
        """The other nodes' stores, as a tier below this node's memory."""
        return self.control.tier

    @property
    def announcer(self) -> Announcer:
        """Is told of every change of this node's objects, from :meth:`start` on."""
        return self.control.announcer

    @property
    def has_peers(self) -> bool:
        """Whether another member is alive."""
        return bool(self.control.peers.alive)

    def is_at_home(self, slot: int) -> bool:
        """Whether this node is the home of a directory slot, by what it knows of the others now."""
        return self.control.is_at_home(slot)

    def start(self) -> None:
        """Take part; raises ``OSError`` where another socket listens on the address."""
        self.control.start()
        for source in self._sources:
            self._tasks.append(asyncio.create_task(self._duties.keep_up(DUTY, partial(self._follow, source))))
        self.door.listen()
        self._serving = asyncio.create_task(self.door.serve())

    async def stop(self) -> None:
        """Take part no more; transfers that are being sent end."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.control.stop()
        await self.transfers.close()
        self.sender.close()

    def members(self) -> list[MemberFigures]:
        """Return what is known of each member: this node first, the others by name."""
        slots = {name: len(self.control.homes.slots_of(name)) for name in self.control.homes.members}
        state = self._local.state()
        here = MemberFigures(
            name=self._own.node,
            address=_address(Member("", *self._address)),
            state=SELF,
            epoch=self._own.epoch,
            slots=slots[self._own.node],
            entries=self.control.directory.holders,
            capacity_bytes=state.capacity_bytes,
            used_bytes=state.used_bytes,
            objects=state.objects,
            heard_s=0.0,
        )
        others: dict[str, MemberFigures] = {}
        for known in self.control.peers.states:
            if known.state != SELF:
                figures = self._figures(known, slots)
                others.setdefault(figures.name, figures)
        return [here, *(others[name] for name in sorted(others))]

    # Inside -----------------------------------------------------------------------------------------------------------

    async def _connect(self, member: Member) -> ControlConnection:
        return await connect_control(member, self._own, self._credentials, CONNECT_WITHIN_S)

    async def _follow(self, source: MemberSource) -> None:
        async for members in source.member_sets():
            self._members[source] = members
            self.control.peers.follow([member for known in self._members.values() for member in known])
        await asyncio.Event().wait()  # it has said all that it ever will

    def _figures(self, known: MemberState, slots: Mapping[str, int]) -> MemberFigures:
        member, peer = known.member, known.peer
        name = peer.name if peer is not None else str(member)
        well = peer.well if peer is not None else None
        traffic, sent = self.tier.traffic.get(name, Traffic()), self.sender.receivers.get(name, Sent())
        return MemberFigures(
            name=name,
            address=_address(member),
            state=known.state,
            why=known.why,
            epoch=peer.epoch if peer is not None else 0,
            slots=slots.get(name, 0),
            entries=well.directory_entries if well is not None else None,
            capacity_bytes=well.capacity_bytes if well is not None else None,
            used_bytes=well.used_bytes if well is not None else None,
            objects=well.objects if well is not None else None,
            heard_s=peer.heard_s if peer is not None else None,
            round_trip_s=peer.round_trip_s if peer is not None else None,
            traffic=TrafficFigures(
                fetched_objects=traffic.fetched_objects,
                fetched_bytes=traffic.fetched_bytes,
                sent_objects=sent.objects,
                sent_bytes=sent.size_bytes,
                failed_objects=traffic.failed_objects,
                bytes_per_s=self.transfers.bytes_per_s(member),
            ),
        )


def _address(member: Member) -> str:
    return str(member._replace(name=""))
