"""Nodes of a pool in one process: their control planes are real, their connections are memory, their objects are names.

The network between them can be cut, and a node can be killed and started anew.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

from tierline.duties import Duties
from tierline.errors import AccessDenied, NodeUnavailable
from tierline.pool.connecting import ControlConnection
from tierline.pool.control import Control
from tierline.pool.handshake import Hello
from tierline.pool.local import LocalObject, LocalState, Offered
from tierline.pool.members import Member
from tierline.pool.receiving import Expected
from tierline.pool.slots import slot_of, slot_of_name
from tierline.pool.tier import Arrival, Wanted
from tierline.store import ObjectKey, Store

SLICE = 100


class World:
    """The network, and who is on it."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.epochs = 0
        self.cut: set[frozenset[str]] = set()
        """Pairs of nodes between which nothing goes, and no connection is made."""
        self.links: list[_Link] = []

    async def start(self, name: str, objects: Sequence[LocalObject] = ()) -> "Node":
        """Start a node that has these objects already; the others hear of it."""
        self.epochs += 1
        node = self.nodes[name] = Node(self, name, self.epochs, objects)
        node.control.start()
        self.follow()
        return node

    async def kill(self, *names: str) -> None:
        """End nodes' processes; their connections break."""
        nodes = [self.nodes.pop(name) for name in names]
        await asyncio.gather(*(node.control.stop() for node in nodes))
        for link in [link for link in self.links if not {*names}.isdisjoint(link.ends)]:
            link.break_()
        serving = [task for node in nodes for task in node.serving]
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def remove(self, name: str) -> None:
        """End a node, and have the others told that it is no member any more."""
        await self.kill(name)
        self.follow()

    async def stop(self) -> None:
        """End all."""
        await self.kill(*self.nodes)

    def follow(self) -> None:
        """Tell every node who the members are."""
        members = [Member("", name, 1) for name in self.nodes]
        for node in self.nodes.values():
            node.control.peers.follow(members)

    async def until(self, holds: Callable[[], bool], within_s: float = 100.0, every_s: float = 0.02) -> None:
        """Wait for something to hold."""
        async with asyncio.timeout(within_s):
            while not holds():  # noqa: ASYNC110  (it has many parts)
                await asyncio.sleep(every_s)

    @property
    def is_settled(self) -> bool:
        """Whether all know each other, and all homes have been told all."""
        return all(
            node.control.homes.members == self.nodes.keys() and node.control.announcer.is_settled
            for node in self.nodes.values()
        )

    def is_cut(self, one: str, other: str) -> bool:
        return frozenset((one, other)) in self.cut

    async def connect(self, caller: "Node", member: Member) -> ControlConnection:
        called = self.nodes.get(member.host)
        if called is None or self.is_cut(caller.name, member.host):
            raise NodeUnavailable(f"node {member}: not there")
        if reason := called.control.answering.objection(caller.own):
            raise AccessDenied(f"it turns us away: {reason}")
        link = _Link(self, caller.name, called.name)
        self.links.append(link)
        there, here = link.streams
        called.serving.append(asyncio.create_task(called.control.answering.serve(*there, caller.own)))
        return ControlConnection(*here, called.own)


class Node:
    """One node: :class:`~tierline.pool.local.Local` and :class:`~tierline.pool.tieredstorage.Bulk` of names."""

    def __init__(self, world: World, name: str, epoch: int, objects: Sequence[LocalObject]) -> None:
        self.name = name
        self.own = Hello(name, epoch, "pool")
        self.serving: list[asyncio.Task[None]] = []
        self.held: dict[ObjectKey, LocalObject] = {held.key: held for held in objects}
        self.copies: set[ObjectKey] = set()
        self.fetched_from: list[str] = []
        self.fails: set[ObjectKey] = set()
        """Objects that others do not get from here, though they are here."""
        self.rates: Mapping[str, float] = {}
        self.duties = Duties(())
        self._world = world
        self.control = Control(self.own, lambda member: world.connect(self, member), self, self, lambda: 0, self.duties)

    def put(self, key: ObjectKey, anchor: str = "", size: int = 10, checksum: int = 7) -> LocalObject:
        """Commit an object."""
        held = local_object(key, anchor, size, checksum)
        self.held[key] = held
        self.control.announcer.added(held)
        return held

    def drop(self, key: ObjectKey) -> None:
        """Evict an object."""
        held = self.held.pop(key)
        self.copies.discard(key)
        self.control.announcer.removed(key, held.slot)

    async def finds(self, *keys: ObjectKey, anchor: str = "", within_s: float = 5.0, group_size: int = 1) -> int:
        """Return how many leading objects others have."""
        slot = slot_of(keys[0].bucket, anchor) if anchor else None
        return len(await self.control.tier.exists(keys, slot, within_s, group_size))

    async def fetches(self, *keys: ObjectKey, anchor: str = "") -> list[Arrival]:
        """Find and fetch objects, and hold what came."""
        slot = slot_of(keys[0].bucket, anchor) if anchor else None
        found = await self.control.tier.exists(keys, slot, 5.0)
        wanted = [Wanted(key, one, ()) for key, one in zip(keys, found, strict=False)]
        arrivals = [arrival async for arrival in self.control.tier.fetch_into(wanted)]
        for arrival in arrivals:
            if arrival.checksum is not None:
                key, one, _ = wanted[arrival.index]
                self.put(key, anchor, one.size, arrival.checksum)
        return sorted(arrivals)

    # Local ------------------------------------------------------------------------------------------------------------

    def objects(self, cursor: str) -> tuple[Sequence[LocalObject], str]:
        start = int(cursor or 0)
        held = list(self.held.values())[start : start + SLICE]
        return held, str(start + SLICE) if start + SLICE < len(self.held) else ""

    def mark_copied(self, key: ObjectKey, is_copied: bool) -> None:
        if key in self.held:
            (self.copies.add if is_copied else self.copies.discard)(key)

    async def keep(self, offered: Sequence[Offered]) -> Sequence[bool]:
        wanted = [Wanted(one.key, one.found, ()) for one in offered]
        kept = [False] * len(offered)
        async for arrival in self.control.tier.fetch_into(wanted):
            one = offered[arrival.index]
            if arrival.checksum is not None:
                kept[arrival.index] = True
                held = LocalObject(one.key, one.slot, one.found.size, arrival.checksum)
                self.held[one.key] = held
                self.control.announcer.added(held)
        return kept

    def store_of(self, bucket: str) -> Store | None:
        raise NotImplementedError

    def suspect(self, key: ObjectKey) -> None:
        raise NotImplementedError

    def state(self) -> LocalState:
        return LocalState(len(self.held), sum(held.size for held in self.held.values()), 1 << 30)

    # Bulk -------------------------------------------------------------------------------------------------------------

    async def fetch(
        self, member: Member, expected: Sequence[Expected], within_s: float
    ) -> AsyncGenerator[Arrival, None]:
        holder = self._world.nodes.get(member.host)
        is_reached = holder is not None and not self._world.is_cut(self.name, member.host)
        for index, one in enumerate(expected):
            await asyncio.sleep(0)
            held = holder.held.get(one.key) if holder is not None and is_reached else None
            is_it = held is not None and (held.size, held.checksum) == (one.size, one.checksum)
            if holder is not None and is_it and one.key not in holder.fails:
                self.fetched_from.append(member.host)
                yield Arrival(index, one.checksum, member.host)
            else:
                yield Arrival(index, None, member.host)

    def seconds(self, member: Member, size_bytes: int) -> float | None:
        rate = self.rates.get(member.host)
        return None if rate is None else size_bytes / rate

    def bytes_per_s(self, member: Member) -> float | None:
        return self.rates.get(member.host)


def local_object(key: ObjectKey, anchor: str = "", size: int = 10, checksum: int = 7) -> LocalObject:
    """Return an object as a node holds it."""
    return LocalObject(key, slot_of(key.bucket, anchor) if anchor else slot_of_name(*key), size, checksum)


class _Link:
    """A connection between two nodes; what is written is read in a later turn of the loop, unless the way is cut."""

    def __init__(self, world: World, caller: str, called: str) -> None:
        self.ends = (caller, called)
        self.world = world
        self.transports = [_Transport(self), _Transport(self)]
        self.streams = [transport.streams for transport in self.transports]

    def carry(self, sender: "_Transport", data: bytes) -> None:
        [receiver] = [transport for transport in self.transports if transport is not sender]
        if not self.world.is_cut(*self.ends):
            receiver.loop.call_soon(receiver.receive, data)

    def break_(self) -> None:
        for transport in self.transports:
            transport.lose()
        if self in self.world.links:
            self.world.links.remove(self)


class _Transport(asyncio.Transport):
    """One end of a link."""

    def __init__(self, link: _Link) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self._link = link
        self._is_closing = False
        reader = asyncio.StreamReader()
        self._protocol = asyncio.StreamReaderProtocol(reader)
        self._protocol.connection_made(self)
        self.streams = (reader, asyncio.StreamWriter(self, self._protocol, reader, self.loop))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._link.carry(self, bytes(data))

    def receive(self, data: bytes) -> None:
        if not self._is_closing:
            self._protocol.data_received(data)

    def lose(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self.loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.lose()
        if not self._link.world.is_cut(*self._link.ends):
            self._link.break_()

    def close(self) -> None:
        self.abort()

    def is_closing(self) -> bool:
        return self._is_closing

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass
