"""Listens to other routers: what they have at endpoints, and where their prompts went.

Rules
-----
- What a router said counts as long as its connection lives; one that is silent for three seconds is not listened to
  until it speaks again, and what it had is taken off.
- A message that is malformed, unproven or contradicts another ends the connection, is counted, and changes nothing.
- A router is listened to once, under whatever addresses it is found; itself, never.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Sequence

from tierline import logs
from tierline.errors import WireError
from tierline.router.gossip.sealing import WELCOME_BYTES, Follower, SealedReader
from tierline.router.workers import messages
from tierline.router.workers.board import Load
from tierline.router.workers.messages import Kind

log = logs.get(__name__)

SILENT_SECONDS = 3.0
RESOLVED_EVERY_S = 5.0
RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)
KNOWN_AGAIN_AFTER_S = 30.0
"""An address of this router itself, or of one that is listened to already, is asked again after that."""
_READ_BYTES = 256 * 1024
_WARNED_EVERY_S = 60.0

Address = tuple[str, int]


class Following:
    """Follows all routers that are named, and those that a name stands for.

    Parameters
    ----------
    secret, name
        What is known to all of them; this router's name, another in each run.
    peers
        Addresses.
    lookup
        A name whose every address is a router's, and the port; ``None`` for none.
    loads_changed
        Called with what the others have together, whenever it is something else.
    learnt
        Called with what another's strategy remembered: encoded, and found to be well-formed.
    """

    def __init__(
        self,
        secret: bytes,
        name: bytes,
        peers: Sequence[Address],
        lookup: Address | None,
        loads_changed: Callable[[list[Load]], None],
        learnt: Callable[[bytes], None],
    ) -> None:
        self._secret = secret
        self._name = name
        self._peers = peers
        self._lookup = lookup
        self._loads_changed = loads_changed
        self._learnt = learnt
        self._tasks: dict[Address, asyncio.Task[None]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._loads: dict[bytes, Sequence[messages.LoadEntry]] = {}
        """By the names of the routers that are listened to."""
        self._asked: bytes | None = None
        """Who is asked what was known before: one, not all; empty once that has been told."""
        self._warned: dict[Address, float] = {}
        self.refused = 0
        """Messages and connections that were not as they have to be."""

    @property
    def followed(self) -> int:
        """Routers that are listened to now."""
        return len(self._loads)

    def start(self) -> None:
        """Follow from now on."""
        for address in self._peers:
            self._begin(address)
        if self._lookup is not None:
            self._looking = asyncio.create_task(self._look(*self._lookup))

    async def stop(self) -> None:
        """Follow nobody any more."""
        tasks = [*self._tasks.values(), *([self._looking] if self._looking else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Who --------------------------------------------------------------------------------------------------------------

    def _begin(self, address: Address) -> None:
        if address not in self._tasks:
            self._tasks[address] = asyncio.create_task(self._follow(address))

    async def _look(self, name: str, port: int) -> None:
        """Follow whoever the name stands for."""
        while True:
            try:
                found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:  # the latter for what cannot be a name
                self._warn((name, port), "other routers cannot be found", str(error))
            else:
                addresses = {(str(entry[4][0]), port) for entry in found}
                for address in addresses:
                    self._begin(address)
                for address in self._tasks.keys() - addresses - set(self._peers):
                    self._tasks.pop(address).cancel()
            await asyncio.sleep(RESOLVED_EVERY_S)

    async def _follow(self, address: Address) -> None:
        failures = 0
        while True:
            pause_s = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
            try:
                if await self._listen(address):
                    failures = 0
                else:
                    pause_s = KNOWN_AGAIN_AFTER_S
            except WireError as error:
                self.refused += 1
                self._warn(address, "another router is not listened to", str(error))
                failures += 1
            except (OSError, UnicodeError, asyncio.IncompleteReadError) as error:
                self._warn(address, "another router cannot be listened to", str(error) or "it is silent")
                failures += 1
            await asyncio.sleep(pause_s)

    # What -------------------------------------------------------------------------------------------------------------

    async def _listen(self, address: Address) -> bool:
        """Listen until the connection ends; return whether there is somebody to listen to."""
        async with asyncio.timeout(SILENT_SECONDS):
            reader, writer = await asyncio.open_connection(*address)
        try:
            beginning = Follower(self._secret, self._name)
            _write(writer, beginning.hello())
            async with asyncio.timeout(SILENT_SECONDS):
                welcome = await reader.readexactly(WELCOME_BYTES)
            wants_recent = self._asked is None
            name, answer, frames = beginning.join(welcome, wants_recent=wants_recent)
            if name == self._name or name in self._loads:
                return False
            _write(writer, answer)
            self._loads[name] = []
            if wants_recent:
                self._asked = name
            log.info("another router is listened to", address=_text(address))
            try:
                await self._hear(name, reader, frames)
            finally:
                del self._loads[name]
                self._add_up()
                if self._asked == name:  # before it had told all
                    self._asked = None
            return True
        finally:
            writer.close()

    async def _hear(self, name: bytes, reader: asyncio.StreamReader, frames: SealedReader) -> None:
        while True:
            async with asyncio.timeout(SILENT_SECONDS):
                data = await reader.read(_READ_BYTES)
            if not data:
                return
            for kind, payload in frames.feed(data):
                self._take(name, kind, payload)

    def _take(self, name: bytes, kind: Kind, payload: bytes) -> None:
        match kind:
            case Kind.LOADS:
                loads = messages.decode_loads(payload).entries
                if loads != self._loads[name]:
                    self._loads[name] = loads
                    self._add_up()
            case Kind.KNOWLEDGE:
                messages.decode_knowledge(payload)
                self._learnt(payload)
            case Kind.CAUGHT_UP:
                self._asked = b""
                log.info("what another router knows is learnt")
            case _:
                raise WireError(f"a {kind.name} of another router")

    def _add_up(self) -> None:
        inflight: Counter[int] = Counter()
        tokens: Counter[int] = Counter()
        for entries in self._loads.values():
            for entry in entries:
                inflight[entry.endpoint] += entry.inflight
                tokens[entry.endpoint] += entry.queued_tokens
        self._loads_changed([Load(endpoint, count, tokens[endpoint]) for endpoint, count in inflight.items()])

    def _warn(self, address: Address, what: str, why: str) -> None:
        """Once a minute for each address."""
        now = asyncio.get_running_loop().time()
        if now >= self._warned.get(address, 0.0):
            self._warned[address] = now + _WARNED_EVERY_S
            log.warning(what, address=_text(address), why=why)


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if writer.is_closing():  # reset since it was read from: writing would raise something that is no OSError
        raise ConnectionResetError("it has closed the connection")
    writer.write(data)


def _text(address: Address) -> str:
    return f"{address[0]}:{address[1]}"
