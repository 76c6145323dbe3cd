"""The control plane of one node: who is alive, who is the home of what, what is announced, and what is answered.

The rule inside: **a change of members takes effect everywhere in one turn of the loop** (homes, directory, what is to
be told again), so that no two parts ever see different members.
"""

import asyncio
import time
from collections.abc import Callable

from tierline.duties import Duties
from tierline.pool.announcing import Announcer
from tierline.pool.answering import Answering
from tierline.pool.directory import DEFAULT_BYTES, Directory
from tierline.pool.handshake import Hello
from tierline.pool.homes import Homes
from tierline.pool.local import Local
from tierline.pool.peers import Connect, Peer, Peers
from tierline.pool.tieredstorage import Bulk, TieredStorage

DUTY = "pool"
"""What its failures are counted under."""
STRAYS_SECONDS = 5.0
"""Slots of the directory that are at home elsewhere are forgotten after one to two times this: whoever told us of them
sees other members than we do, or did so for a moment."""


class Control:
    """Everything of a pool but its sockets.

    Parameters
    ----------
    own
        Who we are.
    connect, bulk
        How other members are reached, and objects fetched from them.
    local
        This node's objects.
    sending
        Returns how many transfers are being sent.
    duties
        Guard what goes on beside.
    max_directory_bytes
        Memory of the directory's entries.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        own: Hello,
        connect: Connect,
        bulk: Bulk,
        local: Local,
        sending: Callable[[], int],
        duties: Duties,
        *,
        max_directory_bytes: int = DEFAULT_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.own = own
        self.homes = Homes(own.node)
        self.directory = Directory(max_directory_bytes)
        self.announcer = Announcer(self.directory.begin(own.node, own.epoch), self.homes, self.directory, local)
        self.peers = Peers(own, connect, joined=self._joined, left=self._left, entrusted=self.announcer.entrusted)
        self.answering = Answering(own, self.directory, local, sending, self.announcer.entrusted, duties)
        self.tier = TieredStorage(own.node, self.homes, self.directory, self.peers, bulk, duties, clock)
        self._duties = duties
        self._tasks: list[asyncio.Task[None]] = []
        self._is_open = True

    def start(self) -> None:
        """Begin to tell homes what is here, and to look after the directory."""
        for work in (self.announcer.tell_again, self.answering.look_after, self._forget_strays):
            self._tasks.append(asyncio.create_task(self._duties.keep_up(DUTY, work)))

    async def stop(self) -> None:
        """Leave all members; nothing is told to anybody any more."""
        self._is_open = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.peers.stop()
        self.announcer.stop()

    def is_at_home(self, slot: int) -> bool:
        """Whether this node is the home of a slot."""
        return self.homes[slot] == self.own.node

    async def _forget_strays(self) -> None:
        before: set[int] = set()
        while True:
            await asyncio.sleep(STRAYS_SECONDS)
            strays = {slot for slot in self.directory.slots if not self.is_at_home(slot)}
            self.directory.drop_slots(strays & before)
            before = strays

    def _joined(self, peer: Peer) -> None:
        slots = self.homes.join(peer.name)
        self.directory.drop_slots(slots)
        self.announcer.joined(peer, slots)

    def _left(self, peer: Peer) -> None:
        if self._is_open:  # else each that is left would be made up for among the others
            self.announcer.left(peer, self.homes.leave(peer.name))
