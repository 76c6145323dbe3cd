"""Nodes of a pool on the loopback interface: real stores, real ports, real bytes."""

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import xxhash
from tests.integration.pool.holders import PATIENT
from tests.ports import free_port

from tierline.duties import Duties
from tierline.pool.handshake import Credentials, Hello
from tierline.pool.listening import bind_door
from tierline.pool.local import LocalObject, LocalState, Offered
from tierline.pool.members import Member, StaticMembers
from tierline.pool.pool import Pool
from tierline.pool.slots import slot_of, slot_of_name
from tierline.pool.tier import Arrival, Wanted
from tierline.store import ObjectKey, Owner, Store, StoreLimits, key_of

MIB = 1024 * 1024
SECRET = Credentials(token=b"a secret of this pool")
_OWNER = Owner("", 1)


class PoolNode:
    """A store that is in a pool: :class:`~tierline.pool.local.Local` of it."""

    def __init__(self, name: str, store: Store, credentials: Credentials, members: Sequence[Member], port: int) -> None:
        self.name = name
        self.store = store
        self.duties = Duties(("pool",))
        self.suspected: list[ObjectKey] = []
        self.pool = Pool(
            Hello(name, store.epoch, "pool"),
            bind_door("127.0.0.1", port, credentials),
            credentials,
            [StaticMembers(members)],
            self,
            self.duties,
        )
        self.pool.transfers.limits = PATIENT
        store.listen(self._changed)
        self.pool.start()

    async def stop(self) -> None:
        await self.pool.stop()
        self.store.unlisten(self._changed)

    def put(self, key: ObjectKey, content: bytes, anchor: str = "") -> None:
        """Store an object as an engine would."""
        slot = self.store.write(key, len(content), _OWNER)
        at = 0
        for view in self.store.views(slot.extents):
            view[:] = content[at : at + len(view)]
            at += len(view)
        place = slot_of(key.bucket, anchor) if anchor else None
        self.store.commit(slot.id, _OWNER, xxhash.xxh3_64_intdigest(content), anchor=place)

    def content(self, key: ObjectKey) -> bytes:
        """Return an object's bytes."""
        found = self.store.lease(key, "test", 60.0)
        assert found is not None
        lease, leased = found
        content = b"".join(bytes(view) for view in self.store.views(leased.extents))
        self.store.release(lease)
        return content

    async def bring(self, keys: Sequence[ObjectKey], anchor: str = "", within_s: float = 60.0) -> list[Arrival]:
        """Find objects in the pool, fetch them into the store, and commit what came."""
        place = slot_of(keys[0].bucket, anchor) if anchor else None
        found = await self.pool.tier.exists(keys, place, within_s)
        offered = [
            Offered(key, slot_of_name(*key) if place is None else place, one)
            for key, one in zip(keys, found, strict=False)
        ]
        return await self._fetch(offered)

    async def _fetch(self, offered: Sequence[Offered]) -> list[Arrival]:
        slots = [self.store.write(one.key, one.found.size, _OWNER) for one in offered]
        wanted = [
            Wanted(one.key, one.found, self.store.views(slot.extents)) for one, slot in zip(offered, slots, strict=True)
        ]
        arrivals = []
        async for arrival in self.pool.tier.fetch_into(wanted):
            if arrival.checksum is None:
                self.store.abort(slots[arrival.index].id, _OWNER)
            else:
                place = offered[arrival.index].slot
                self.store.commit(slots[arrival.index].id, _OWNER, arrival.checksum, anchor=place)
            arrivals.append(arrival)
        return sorted(arrivals)

    def _changed(self, text: str, is_stored: bool) -> None:
        held = self._object(text)
        if is_stored:
            self.pool.announcer.added(held)
        else:
            self.pool.announcer.removed(held.key, held.slot)

    def _object(self, text: str) -> LocalObject:
        key, entry = key_of(text), self.store.entry(text)
        assert entry is not None
        return LocalObject(
            key, slot_of_name(*key) if entry.anchor is None else entry.anchor, entry.size, entry.checksum
        )

    # Local ------------------------------------------------------------------------------------------------------------

    def objects(self, cursor: str) -> tuple[Sequence[LocalObject], str]:
        texts, cursor = self.store.keys(cursor)
        return [self._object(text) for text in texts], cursor

    def mark_copied(self, key: ObjectKey, is_copied: bool) -> None:
        self.store.mark_copied(key, is_copied)

    async def keep(self, offered: Sequence[Offered]) -> Sequence[bool]:
        return [arrival.checksum is not None for arrival in await self._fetch(offered)]

    def store_of(self, bucket: str) -> Store | None:
        return self.store

    def suspect(self, key: ObjectKey) -> None:
        self.suspected.append(key)

    def state(self) -> LocalState:
        stats = self.store.stats()
        return LocalState(stats.objects, stats.used_bytes, self.store.segment.size)


class Cluster:
    """Nodes that know of each other, and the memory that their segments are in, which outlives them."""

    def __init__(self, names: str, directory: Path) -> None:
        self.nodes: dict[str, PoolNode] = {}
        self.members = {name: Member(name, "127.0.0.1", free_port()) for name in names}
        self._directory = directory

    def start(self, name: str, credentials: Credentials = SECRET, called: str = "") -> PoolNode:
        """Start a node, under another name perhaps; it adopts what its predecessor stored."""
        limits = StoreLimits(grace_s=0, quarantine_s=0)
        store = Store.open(self._directory, name, 64 * MIB, eviction="lru", clock=time.monotonic, limits=limits)
        node = PoolNode(called or name, store, credentials, [*self.members.values()], self.members[name].port)
        self.nodes[name] = node
        return node

    async def end(self, name: str) -> None:
        """Stop a node; its segment stays."""
        node = self.nodes.pop(name)
        await node.stop()
        node.store.close()

    async def settle(self) -> None:
        """Wait until all know each other, and have told each other all."""
        await until(lambda: self.is_settled)

    @property
    def is_settled(self) -> bool:
        return all(
            node.pool.control.homes.members == self.nodes.keys() and node.pool.announcer.is_settled
            for node in self.nodes.values()
        )


async def until(holds: Callable[[], bool], within_s: float = 60.0) -> None:
    """Wait for something to hold."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110  (it has many parts)
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def open_cluster(names: str) -> AsyncIterator[Cluster]:
    """A cluster for the length of the block; nothing failed beside serving."""
    directory = Path(tempfile.mkdtemp(prefix="tierline-test-", dir="/dev/shm"))
    cluster = Cluster(names, directory)
    failures = 0
    try:
        yield cluster
    finally:
        for name in [*cluster.nodes]:
            failures += cluster.nodes[name].duties.failures.total()
            await cluster.end(name)
        shutil.rmtree(directory)
    assert not failures
