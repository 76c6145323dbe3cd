"""Answers members on the connections that they made: takes what they announce, says what the directory has of it.

Rules
-----
- Whoever is in belongs to the pool, and is believed: about its own objects alone.
- Whose connection is silent for three seconds is cut off. What it announced holds for a while longer, until it comes
  back and announces all again: a connection may end while its node is well.
- Each message is answered in its turn, except a wish to keep objects, which takes as long as fetching them.
"""

import asyncio
from collections.abc import Callable, Sequence

from tierline import logs
from tierline.duties import Duties
from tierline.errors import WireError
from tierline.pool.directory import Directory, Holding, Round
from tierline.pool.handshake import Hello
from tierline.pool.local import Local, LocalState, Offered
from tierline.pool.peers import PING_SECONDS, SILENT_BEATS
from tierline.pool.tier import Found
from tierline.store import ObjectKey
from tierline.tracing.context import Origin, working_for
from tierline.wire.framing import FrameDecoder, encode_frame
from tierline.wire.pool import (
    MAX_OBJECTS_PER_MESSAGE,
    Announce,
    Announced,
    Complete,
    Entrusted,
    Holder,
    Keep,
    Keeping,
    Located,
    Lookup,
    PeerReply,
    PeerRequest,
    Ping,
    RunFound,
    Well,
)

log = logs.get(__name__)

FORGOTTEN_AFTER_S = 3.0
"""What a member announced is void so long after its connection ended, if it has made no other."""
MOST_KEEPING = 4
"""Wishes of one member to keep objects that are under way; more are refused."""
_READ_BYTES = 256 * 1024


class Answering:
    """Answers all members.

    Parameters
    ----------
    own
        Who we are.
    directory
        Is told, and asked.
    local
        This node's objects.
    sending
        Returns how many transfers are being sent.
    entrusted
        Told of objects of this node that are copies no more.
    duties
        Guard what others ask this node to fetch.

    Attributes
    ----------
    lookups, located
        Objects that were asked for, and those of them that somebody holds.
    refused
        Connections that ended by what does not follow the contract.
    """

    def __init__(
        self,
        own: Hello,
        directory: Directory,
        local: Local,
        sending: Callable[[], int],
        entrusted: Callable[[Sequence[bytes]], None],
        duties: Duties,
    ) -> None:
        self.lookups = 0
        self.located = 0
        self.refused = 0
        self._own = own
        self._directory = directory
        self._local = local
        self._sending = sending
        self._entrusted = entrusted
        self._duties = duties
        self._state = LocalState(0, 0, 0)
        self._connections: dict[str, _Connection] = {}

    def objection(self, caller: Hello) -> str:
        """Return why a caller may not come in, or nothing: a name belongs to one node at a time."""
        if caller.node == self._own.node:
            known, is_well = self._own.epoch, True
        elif (connection := self._connections.get(caller.node)) is not None:
            known, is_well = connection.round.epoch, connection.silent_beats <= 1  # else it may be its former process
        else:
            return ""
        return f"another node is called {caller.node}, and is alive" if is_well and known != caller.epoch else ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Hello) -> None:
        """Answer a member to whom there is no objection, until its connection ends; this node itself, at no time."""
        if peer.node == self._own.node:
            return
        connection = _Connection(writer, self._directory.begin(peer.node, peer.epoch))
        former = self._connections.get(peer.node)
        if former is not None:
            former.writer.transport.abort()
        self._connections[peer.node] = connection
        decoder: FrameDecoder[PeerRequest] = FrameDecoder(PeerRequest)  # type: ignore[arg-type]
        try:
            while data := await reader.read(_READ_BYTES):
                connection.silent_beats = 0
                for request in decoder.feed(data):
                    self._answer(connection, request)
                    if isinstance(request, Announce | Lookup):
                        await asyncio.sleep(0)  # each may take milliseconds: others have their turn
                await writer.drain()
        except WireError as error:
            self.refused += 1
            log.warning("a member of the pool is cut off", node=peer.node, why=str(error))
        except OSError:
            pass  # it is gone
        finally:
            for task in connection.keeping:
                task.cancel()
            if self._connections.get(peer.node) is connection:
                del self._connections[peer.node]
                asyncio.get_running_loop().call_later(FORGOTTEN_AFTER_S, self._forget, peer.node)

    async def look_after(self) -> None:
        """Cut off who is silent, and take out of the directory what is void; endless."""
        while True:
            self._state = self._local.state()  # every member asks each second
            for connection in self._connections.values():
                connection.silent_beats += 1
                if connection.silent_beats > SILENT_BEATS:
                    connection.writer.transport.abort()
            for _ in self._directory.sweep():
                await asyncio.sleep(0)
            self._tell_entrusted()
            await asyncio.sleep(PING_SECONDS)

    def _answer(self, connection: "_Connection", request: PeerRequest) -> None:
        match request:
            case Ping(number):
                connection.say(Well(number, self._sending(), *self._state, self._directory.holders))
            case Announce():
                self._take(connection, request)
            case Complete():
                self._directory.complete(connection.round)
            case Lookup():
                self._locate(connection, request)
            case Keep():
                self._keep(connection, request)

    def _take(self, connection: "_Connection", said: Announce) -> None:
        round_, add = connection.round, self._directory.add
        for gone in said.gone:
            self._directory.remove(round_, gone.slot, gone.digest)
        copies = [
            place
            for place, held in enumerate(said.held)
            if add(round_, held.slot, held.digest, held.size, held.checksum)
        ]
        connection.say(Announced(said.id, copies))
        self._tell_entrusted()

    def _locate(self, connection: "_Connection", asked: Lookup) -> None:
        count = sum(len(run.digests) for run in asked.runs)
        if count > MAX_OBJECTS_PER_MESSAGE:
            raise WireError(f"a lookup of {count} objects; allowed: {MAX_OBJECTS_PER_MESSAGE}")
        places: dict[tuple[str, int], int] = {}
        runs = []
        for run in asked.runs:
            located = self._directory.locate(run.slot, run.digests, connection.round.member)
            self.located += len(located)
            holders: list[int] = []
            sizes: list[int] = []
            checksums: list[int] = []
            for copies in located:
                for member, epoch, size, checksum in copies:
                    holders.append(places.setdefault((member, epoch), len(places)))
                    sizes.append(size)
                    checksums.append(checksum)
            runs.append(RunFound([len(copies) for copies in located], holders, sizes, checksums))
        self.lookups += count
        connection.say(Located(asked.id, [Holder(*who) for who in places], runs))

    def _keep(self, connection: "_Connection", wish: Keep) -> None:
        if len(connection.keeping) >= MOST_KEEPING:
            connection.say(Keeping(wish.id, [False] * len(wish.objects)))
            return
        with working_for(Origin.read(wish.request_id, wish.traceparent)):
            task = asyncio.create_task(self._fetch(connection, wish))
        connection.keeping.add(task)
        task.add_done_callback(connection.keeping.discard)

    async def _fetch(self, connection: "_Connection", wish: Keep) -> None:
        member, epoch = connection.round.member, connection.round.epoch
        kept: Sequence[bool] = [False] * len(wish.objects)
        with self._duties.guarded("keep"):
            kept = await self._local.keep(
                [
                    Offered(
                        ObjectKey(wanted.bucket, wanted.name),
                        wanted.slot,
                        Found(wanted.size, (Holding(member, epoch, wanted.size, wanted.checksum),)),
                    )
                    for wanted in wish.objects
                ]
            )
        connection.say(Keeping(wish.id, list(kept)))

    def _tell_entrusted(self) -> None:
        for round_, digests in self._directory.take_entrusted().items():
            if round_.member == self._own.node:
                self._entrusted(digests)
            elif (connection := self._connections.get(round_.member)) is not None:
                for start in range(0, len(digests), MAX_OBJECTS_PER_MESSAGE):
                    connection.say(Entrusted(digests[start : start + MAX_OBJECTS_PER_MESSAGE]))

    def _forget(self, member: str) -> None:
        if member not in self._connections:
            self._directory.drop(member)


class _Connection:
    """A member that connected, and the round in which it announces."""

    def __init__(self, writer: asyncio.StreamWriter, round_: Round) -> None:
        self.writer = writer
        self.round = round_
        self.silent_beats = 0
        self.keeping: set[asyncio.Task[None]] = set()

    def say(self, reply: PeerReply) -> None:
        if not self.writer.is_closing():  # else it is gone, and writing may raise what is no OSError
            self.writer.write(encode_frame(reply))
