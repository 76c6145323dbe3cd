"""Tells other routers what this one does: its loads several times a second, and what its strategies remember.

Rule: a follower that does not keep up, or costs more than its part of the bandwidth, is told less, which is counted;
nobody waits for it.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tierline import logs
from tierline.errors import EnvironmentTooSmall, WireError
from tierline.router.gossip.sealing import HELLO_BYTES, JOIN_BYTES, Sealer, Teller
from tierline.router.keys import Allowance
from tierline.router.workers import messages
from tierline.router.workers.board import Load
from tierline.router.workers.messages import Kind, LoadEntry, Loads

log = logs.get(__name__)

LOADS_SECONDS = 0.25
STILL_HERE_SECONDS = 1.0
"""Loads that are what they were are told as seldom as that."""
BYTES_PER_SECOND = 4 * 1024**2
"""Told to one follower at most, besides loads and what it asks for when it comes."""
BUFFERED_BYTES = 1024**2
FOLLOWERS_MAX = 64
JOIN_WITHIN_S = 5.0
_WARNED_EVERY_S = 60.0


class _Told(NamedTuple):
    """A follower that is told."""

    writer: asyncio.StreamWriter
    sealer: Sealer
    allowance: Allowance

    def say(self, kind: Kind, payload: bytes) -> None:
        if not self.writer.is_closing():  # else it is gone, and its task will hear of it in a moment: writing may raise
            self.writer.write(self.sealer.sealed(kind, payload))


class Telling:
    """The server that followers connect to.

    Parameters
    ----------
    secret, name
        What followers must know; this router's name, another in each run.
    loads
        Returns what this router has at endpoints.
    recent
        Returns what strategies remembered lately, encoded, the oldest first.
    """

    def __init__(
        self,
        secret: bytes,
        name: bytes,
        loads: Callable[[], Sequence[Load]],
        recent: Callable[[], Sequence[bytes]],
    ) -> None:
        self._secret = secret
        self._name = name
        self._loads = loads
        self._recent = recent
        self._followers: set[_Told] = set()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._beat: asyncio.Task[None] | None = None
        self._warn_again_at = 0.0
        self.refused = 0
        """Connections that were none of a router's, or of one without the secret."""
        self.untold = 0
        """Messages that a follower was not told."""

    async def start(self, host: str, port: int) -> None:
        """Listen from now on.

        Raises
        ------
        EnvironmentTooSmall
            The address cannot be had.
        """
        try:
            self._server = await asyncio.start_server(self._serve, host, port)
        except OSError as error:
            raise EnvironmentTooSmall(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        self._beat = asyncio.create_task(self._tell_loads())

    async def stop(self) -> None:
        """Tell nobody any more."""
        if self._server is not None:
            self._server.close()
        tasks = [*self._connections, *([self._beat] if self._beat else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def tell(self, knowledge: bytes) -> None:
        """Tell what a strategy remembered just now, encoded."""
        now = asyncio.get_running_loop().time()
        for follower in self._followers:
            if (
                follower.allowance.wait_s(1.0, now)
                or follower.writer.transport.get_write_buffer_size() > BUFFERED_BYTES
            ):
                self.untold += 1
            else:
                follower.allowance.take(len(knowledge))
                follower.say(Kind.KNOWLEDGE, knowledge)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > FOLLOWERS_MAX:
                raise WireError("more followers than there may be")
            await self._follow(reader, writer)
        except (WireError, asyncio.IncompleteReadError, TimeoutError) as error:
            self.refused += 1
            self._warn(str(error) or "it did not say who it is")
        except OSError:
            pass  # it is gone
        finally:
            self._connections.discard(task)
            writer.close()

    def _warn(self, why: str) -> None:
        """Once a minute: anybody can connect, as often as he likes."""
        now = asyncio.get_running_loop().time()
        if now >= self._warn_again_at:
            self._warn_again_at = now + _WARNED_EVERY_S
            log.warning("a connection of another router is refused", why=why, refused=self.refused)

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        beginning = Teller(self._secret, self._name)
        async with asyncio.timeout(JOIN_WITHIN_S):
            welcome = beginning.welcome(await reader.readexactly(HELLO_BYTES))
            if writer.is_closing():
                return
            writer.write(welcome)
            joined, sealer = beginning.join(await reader.readexactly(JOIN_BYTES))
        if joined.name == self._name:
            return  # this router itself, which has seen its own name and leaves
        follower = _Told(writer, sealer, Allowance(BYTES_PER_SECOND, BYTES_PER_SECOND))
        follower.say(Kind.LOADS, self._encoded_loads())
        self._followers.add(follower)
        try:
            if joined.wants_recent:
                for knowledge in list(self._recent()):
                    follower.say(Kind.KNOWLEDGE, knowledge)
                    await writer.drain()
                follower.say(Kind.CAUGHT_UP, b"")
            if await reader.read(1):
                raise WireError("a follower that speaks")
        finally:
            self._followers.discard(follower)

    async def _tell_loads(self) -> None:
        before, told_at = b"", 0.0
        while True:
            await asyncio.sleep(LOADS_SECONDS)
            loads, now = self._encoded_loads(), asyncio.get_running_loop().time()
            if loads == before and now - told_at < STILL_HERE_SECONDS:
                continue
            before, told_at = loads, now
            for follower in self._followers:
                if follower.writer.transport.get_write_buffer_size() <= BUFFERED_BYTES:
                    follower.say(Kind.LOADS, loads)

    def _encoded_loads(self) -> bytes:
        entries = [LoadEntry(*load) for load in self._loads() if load.inflight > 0 and load.queued_tokens >= 0]
        return messages.encode(Loads(entries[: messages.MAX_LOADS]))
