"""Tells each slot's home what this node holds: every change, soon; and all of a slot, whenever its home is a new one.

Rules
-----
- What a home has still to be told is bounded. Where it is too much, the connection ends, and with the next one all is
  told again: a home that is behind is a home that restarted.
- Of one object only the last change is told.
- What is told again is read from the store in slices, those slots alone whose home has changed. A change meanwhile is
  told after it, or in its place.
- Whether an object of ours is a copy, its home says. We pass it on to the store, and remember for which it was so.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TypeAlias

import xxhash

from tierline.pool.directory import Directory, Round
from tierline.pool.homes import Homes
from tierline.pool.local import Local, LocalObject
from tierline.pool.peers import Peer
from tierline.store import ObjectKey
from tierline.store.index import text_of
from tierline.wire.pool import ObjectGone, ObjectHeld

FLUSH_S = 0.01
"""Changes wait so long for company."""
SETTLES_S = 0.2
"""So long after homes have changed slots are told again: members seldom come alone."""
OBJECTS_PER_MESSAGE = 512
MOST_PENDING = 65_536
"""Changes that a home has not been told of, about 30 MiB."""
ANSWER_WITHIN_S = 3.0


def digest_of(key: ObjectKey) -> bytes:
    """Return what stands for an object between nodes."""
    return xxhash.xxh3_128_digest(text_of(key).encode())


class Announcer:
    """Announces for one node.

    Invariant: the home of each slot knows what this node holds of it, or a change waits for it, or the slot is to be
    told again.

    Parameters
    ----------
    own
        This node's own round in its directory, for the slots that are at home here.
    homes
        Who to tell.
    directory
        This node's.
    local
        What is told.

    Attributes
    ----------
    told
        Objects that homes were told of, those at home here among them.
    overflows
        Connections that ended because a home was too far behind.
    """

    def __init__(self, own: Round, homes: Homes, directory: Directory, local: Local) -> None:
        self.told = 0
        self.overflows = 0
        self._own = own
        self._homes = homes
        self._directory = directory
        self._local = local
        self._telling: dict[str, _Telling] = {}
        self._copies: dict[bytes, ObjectKey] = {}
        self._due: set[int] = set(homes.slots_of(own.member))
        self._being_told: set[int] = set()
        self._is_due = asyncio.Event()
        self._is_due.set()

    @property
    def pending(self) -> int:
        """Changes that some home has still to be told of."""
        return sum(len(telling.changes) for telling in self._telling.values())

    @property
    def is_settled(self) -> bool:
        """Whether every home has been told all."""
        return not (self._due or self._being_told or any(telling.is_behind for telling in self._telling.values()))

    def added(self, held: LocalObject) -> None:
        """An object is committed, or adopted, or to be told again."""
        digest = digest_of(held.key)
        home = self._homes[held.slot]
        if home == self._own.member:
            is_copy = self._directory.add(self._own, held.slot, digest, held.size, held.checksum)
            self._mark(digest, held.key, is_copy)
            self.told += 1
        else:
            self._change(home, digest, held)

    def removed(self, key: ObjectKey, slot: int) -> None:
        """An object is gone."""
        digest = digest_of(key)
        self._copies.pop(digest, None)
        home = self._homes[slot]
        if home == self._own.member:
            self._directory.remove(self._own, slot, digest)
        else:
            self._change(home, digest, slot)

    def entrusted(self, digests: Iterable[bytes]) -> None:
        """These objects of ours are copies no more."""
        for digest in digests:
            key = self._copies.get(digest)
            if key is not None:
                self._mark(digest, key, False)

    def joined(self, peer: Peer, slots: Iterable[int]) -> None:
        """A member is alive, and the home of these slots now."""
        self._telling[peer.name] = _Telling(peer, self._take_answer)
        self._tell_again(slots)

    def left(self, peer: Peer, slots: Iterable[int]) -> None:
        """A member is gone, and others are the homes of its slots now."""
        telling = self._telling.pop(peer.name, None)
        if telling is not None:
            telling.stop()
        self._tell_again(slots)

    async def tell_again(self) -> None:
        """Tell slots again whose homes have changed, whenever some have; endless."""
        while True:
            await self._is_due.wait()
            await asyncio.sleep(SETTLES_S)
            self._is_due.clear()
            self._being_told, self._due = self._due, set()
            try:
                # Whoever comes from now on has slots that are due next time.
                newcomers = [telling for telling in self._telling.values() if not telling.is_told]
                await self._tell_all_of(self._being_told, newcomers)
            except BaseException:
                self._tell_again(self._being_told)
                raise
            finally:
                self._being_told = set()

    def stop(self) -> None:
        """Tell nothing any more."""
        for telling in self._telling.values():
            telling.stop()

    # Inside -----------------------------------------------------------------------------------------------------------

    def _change(self, home: str, digest: bytes, change: "Change") -> None:
        telling = self._telling.get(home)
        if telling is None:
            return  # it is leaving, and its slots are due
        if len(telling.changes) >= MOST_PENDING:
            self.overflows += 1
            telling.peer.end()
            return
        telling.put(digest, change)

    def _tell_again(self, slots: Iterable[int]) -> None:
        self._due.update(slots)
        self._is_due.set()

    async def _tell_all_of(self, slots: set[int], newcomers: "Sequence[_Telling]") -> None:
        cursor, is_first = "", True
        while cursor or is_first:
            objects, cursor = self._local.objects(cursor)
            is_first = False
            for held in objects:
                if held.slot in slots:
                    self.added(held)
            await asyncio.sleep(0)  # others have their turn
            for telling in list(self._telling.values()):
                await telling.has_room.wait()
        for telling in newcomers:
            telling.finish()

    def _take_answer(self, telling: "_Telling", changes: "dict[bytes, Change]", copies: Sequence[int]) -> None:
        self.told += len(changes)
        held = [(digest, change.key) for digest, change in changes.items() if isinstance(change, LocalObject)]
        are_copies = set(copies)
        for place, (digest, key) in enumerate(held):
            if digest not in telling.changes:  # else it is another object by now, or gone
                self._mark(digest, key, place in are_copies)

    def _mark(self, digest: bytes, key: ObjectKey, is_copy: bool) -> None:
        if is_copy:
            self._copies[digest] = key
        else:
            self._copies.pop(digest, None)
        self._local.mark_copied(key, is_copy)


Change: TypeAlias = LocalObject | int
"""An object that is held now, or the slot of one that is gone."""


class _Telling:
    """What one live member has still to be told, and the task that tells it."""

    def __init__(self, peer: Peer, answered: "Callable[[_Telling, dict[bytes, Change], Sequence[int]], None]") -> None:
        self.peer = peer
        self.changes: dict[bytes, Change] = {}
        self.has_room = asyncio.Event()
        """Nobody who reads the store need wait before adding to ``changes``."""
        self.has_room.set()
        self.is_told = False
        """All that was here when the member came has been put into ``changes`` once."""
        self._answered = answered
        self._is_awake = asyncio.Event()
        self._is_telling = False
        self._is_complete = False
        self._task = asyncio.create_task(self._tell())

    @property
    def is_behind(self) -> bool:
        return bool(self.changes) or self._is_telling or not self._is_complete

    def put(self, digest: bytes, change: Change) -> None:
        self.changes[digest] = change
        self._is_awake.set()
        if len(self.changes) > MOST_PENDING // 2:
            self.has_room.clear()

    def finish(self) -> None:
        self.is_told = True
        self._is_awake.set()

    def stop(self) -> None:
        self._task.cancel()
        self.has_room.set()

    async def _tell(self) -> None:
        while True:
            await self._is_awake.wait()
            self._is_awake.clear()
            await asyncio.sleep(FLUSH_S)
            while self.changes:
                batch = dict(islice(self.changes.items(), OBJECTS_PER_MESSAGE))
                for digest in batch:
                    del self.changes[digest]
                if len(self.changes) <= MOST_PENDING // 2:
                    self.has_room.set()
                self._is_telling = True
                copies = await self.peer.announce(*_said(batch), ANSWER_WITHIN_S)
                if copies is None:
                    self.peer.end()
                    return
                self._answered(self, batch, copies)
                self._is_telling = False
            if self.is_told and not self._is_complete:
                self._is_complete = True
                self.peer.complete()


def _said(changes: dict[bytes, Change]) -> tuple[list[ObjectHeld], list[ObjectGone]]:
    held: list[ObjectHeld] = []
    gone: list[ObjectGone] = []
    for digest, change in changes.items():
        if isinstance(change, LocalObject):
            held.append(ObjectHeld(change.slot, digest, change.size, change.checksum))
        else:
            gone.append(ObjectGone(change, digest))
    return held, gone
