"""What the node's stores hold, told to whoever subscribes: KV events over ZeroMQ, numbered, and a socket that repeats.

Rules: the store is never held up. A change costs it one entry of a dictionary; messages are made a slice at a time, and
what no longer fits is dropped, counted, and leaves a gap in the numbers. Who finds a gap, or comes late, asks from
number 0 and is sent a *listing*: numbered messages that stand in for all before the last one. It is made while the
store goes on, so an object may be in it that came or went meanwhile; the messages behind it, which are sent as well,
say so again, and it makes no difference to be told twice.

Only objects that are blocks are told of: those whose name has a hash in it (``tierline.prefix.split_name``).
"""

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from itertools import islice
from typing import Literal, NamedTuple

import msgspec

from tierline import logs
from tierline.errors import EnvironmentTooSmall, UsageError
from tierline.prefix import split_name
from tierline.store import Store, key_of
from tierline.wire import kv_events
from tierline.wire.kv_events import END_OF_REPLAY, NUMBER_BYTES, EngineJoined, EngineLeft, EventBatch, Frame, StoreEvent
from tierline.wire.messages import Introduce

log = logs.get(__name__)

FLUSH_S = 0.01
"""Changes wait so long for company: a message costs as much as 30 of them."""
CHANGES_PER_MESSAGE = 512
"""About a millisecond's work and 17 KiB; others have their turn between two messages."""
MOST_PENDING = 65_536
"""Changes that wait to be told; more are dropped, all of them, and a listing says how things stand."""
KEPT_BYTES = 16 * 1024**2
"""Messages kept to be sent again."""
QUEUED_MESSAGES = 1000
"""Messages that ZeroMQ keeps for a subscriber that does not read; those behind are not sent to it."""
QUESTION_BYTES = 256
"""Most that may be said to the publisher at once, a subscription or the number of a message: whoever reaches its
sockets may speak, and ZeroMQ would keep whatever he says."""
STALL_S = 1.0
"""A replay is given up when its asker takes nothing for so long."""
LISTINGS_IN_A_ROW = 3
_MESSAGES_AHEAD = 64

EventKind = Literal["stored", "removed", "dropped"]
ReplayAnswer = Literal["kept", "listing", "given_up"]


class Told(NamedTuple):
    """A message: its number, and what it says."""

    number: int
    payload: bytes


class EventPublisher:
    """Publishes for all stores of a node, from :meth:`start` to :meth:`close`.

    Invariant: a message is in ``_kept`` or nobody can ask for it again; ``_next`` is the number of the one to come.

    Parameters
    ----------
    address
        ZeroMQ address to bind; the replay socket gets :func:`replay_address`.

    Attributes
    ----------
    counts
        Changes by what became of them; those of objects that are no blocks are not counted.
    replays
        Answered questions for messages: from those kept, by a listing, and given up.

    Raises
    ------
    UsageError
        pyzmq is not installed.
    EnvironmentTooSmall
        The address is in use, or not this machine's.
    """

    def __init__(self, address: str) -> None:
        try:
            import zmq
            import zmq.asyncio
        except ImportError:
            raise UsageError("--kv-events needs pyzmq: pip install 'tierline[events]'") from None
        self.counts: Counter[EventKind] = Counter()
        self.replays: Counter[ReplayAnswer] = Counter()
        self._context = zmq.asyncio.Context()
        self._live: zmq.Socket[bytes] = zmq.Socket(self._context, zmq.PUB)  # which never has to be waited for
        self._asked = self._context.socket(zmq.ROUTER)
        self._asked.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._stores: Sequence[Store] = ()
        self._engines: dict[str, EngineJoined] = {}
        self._pool = ""
        self._pending: dict[str, bool] = {}
        self._kept: deque[Told] = deque()
        self._kept_bytes = 0
        self._next = 0
        self._loop = asyncio.get_running_loop()
        self._encode = msgspec.msgpack.Encoder().encode
        try:
            for socket, bound in ((self._live, address), (self._asked, replay_address(address))):
                for option, value in (
                    (zmq.LINGER, 0),
                    (zmq.SNDHWM, QUEUED_MESSAGES),
                    (zmq.MAXMSGSIZE, QUESTION_BYTES),
                    (zmq.IPV6, 1),
                ):
                    socket.setsockopt(option, value)
                socket.bind(bound)
        except zmq.ZMQError as error:
            self.close()
            raise EnvironmentTooSmall(f"--kv-events: {bound} cannot be used: {error}; choose another address") from None

    def start(self, stores: Sequence[Store]) -> None:
        """Tell of these stores from now on."""
        self._stores = stores
        objects = sum(store.stats().objects for store in stores)
        if objects:  # as if it had been told of them: numbers for a listing to stand in for
            self._next = objects // CHANGES_PER_MESSAGE + _MESSAGES_AHEAD
            self._tell([])
        else:
            self._tell([kv_events.AllBlocksCleared()])
        for store in stores:
            store.listen(self._changed)

    def close(self) -> None:
        """Tell nothing any more; :meth:`serve_replays` has ended."""
        for store in self._stores:
            store.unlisten(self._changed)
        self._live.close()
        self._asked.close()
        self._context.term()

    def introduced(self, holder: str, said: Introduce) -> None:
        """An engine said what it reads."""
        joined = EngineJoined(
            engine=holder,
            bucket=said.bucket,
            models=said.models,
            fingerprint=said.fingerprint,
            epoch=said.epoch,
            chunk_tokens=said.chunk_tokens,
            shards=said.shards,
            adapters=said.adapters,
            saves=said.saves,
        )
        if self._engines.get(holder) != joined:
            self._engines[holder] = joined
            self._tell([joined])

    def left(self, holder: str) -> None:
        """A connection ended, an engine's perhaps."""
        if self._engines.pop(holder, None) is not None:
            self._tell([EngineLeft(holder)])

    def joined_pool(self, pool: str) -> None:
        """Say that the stores' objects can be had by the other members of a pool."""
        if self._pool != pool:
            self._pool = pool
            self._tell([kv_events.PoolJoined(pool)])

    def left_pool(self) -> None:
        """Say that they cannot any more."""
        if self._pool:
            self._pool = ""
            self._tell([kv_events.PoolLeft()])

    # Changes ----------------------------------------------------------------------------------------------------------

    def _changed(self, text: str, is_stored: bool) -> None:
        """Remember a change until the next message; of several of one object, the last."""
        pending = self._pending
        if not pending:
            self._loop.call_later(FLUSH_S, self._flush)
        elif len(pending) >= MOST_PENDING:
            self._drop()
        pending[text] = is_stored

    def _flush(self) -> None:
        """Make one message of what waits, and come back for the rest."""
        if self._live.closed:
            return
        pending = self._pending
        stored: list[str] = []
        removed: list[str] = []
        for text in list(islice(pending, CHANGES_PER_MESSAGE)):
            (stored if pending.pop(text) else removed).append(text)
        if pending:
            self._loop.call_soon(self._flush)
        events: list[StoreEvent] = []
        for frame, hashes in _by_frame({}, removed).items():
            events.append(kv_events.BlockRemoved(block_hashes=hashes, frame=frame))
            self.counts["removed"] += len(hashes)
        for frame, hashes in _by_frame({}, stored).items():
            events.append(kv_events.BlockStored(block_hashes=hashes, frame=frame))
            self.counts["stored"] += len(hashes)
        if events:
            self._tell(events)

    def _drop(self) -> None:
        """Give up what waits. Nothing of before can be asked for: who has it would miss what was dropped."""
        self.counts["dropped"] += len(self._pending)
        self._next += len(self._pending) // CHANGES_PER_MESSAGE + 1
        self._pending.clear()
        self._kept.clear()
        self._kept_bytes = 0
        log.warning("events of blocks were dropped; subscribers are sent a listing", number=self._next)
        self._tell([])

    def _tell(self, events: Sequence[StoreEvent]) -> None:
        payload = self._encode(EventBatch(time.time(), events))
        self._kept.append(Told(self._next, payload))
        self._kept_bytes += len(payload)
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= len(self._kept.popleft().payload)
        # A PUB socket never waits: what a subscriber does not take is not sent to it, and the numbers tell it.
        self._live.send_multipart([b"", _number(self._next), payload])
        self._next += 1

    # Replays ----------------------------------------------------------------------------------------------------------

    async def serve_replays(self) -> None:
        """Answer who asks for messages again, one after the other; endless."""
        while True:
            frames = await self._asked.recv_multipart()
            if len(frames) == 3 and len(frames[2]) == NUMBER_BYTES:
                await self._replay(frames[0], int.from_bytes(frames[2], "big"))

    async def _replay(self, asker: bytes, start: int) -> None:
        """Send what is kept from ``start`` on, or, from 0 on, all that holds; and the end, which comes alone where
        ``start`` is not kept."""
        sent = True
        if start == 0 and self._kept[0].number > 0:
            async with contextlib.aclosing(self._listing()) as listing:
                async for told in listing:
                    sent = sent and await self._send(asker, told)
                    start = told.number + 1
            if not start:
                return  # no end without a beginning: it would say that there is nothing
            self.replays["listing"] += sent
        elif start >= self._kept[0].number:
            self.replays["kept"] += 1
        else:
            start = self._next
        # By number: while the asker takes its time, messages come and go.
        while sent and start < self._next and start >= self._kept[0].number:
            sent = await self._send(asker, self._kept[start - self._next])
            start += 1
        if sent and await self._send(asker, Told(-1, b"")):
            return
        self.replays["given_up"] += 1

    async def _listing(self) -> AsyncGenerator[Told, None]:
        """Yield messages that say all that holds, numbered to end where the first one begins that must follow."""
        for _ in range(LISTINGS_IN_A_ROW):
            last = self._next - 1
            stored: dict[Frame, list[bytes]] = {}
            for store in self._stores:
                cursor, is_first = "", True
                while cursor or is_first:
                    texts, cursor = store.keys(cursor)
                    is_first = False
                    for place in range(0, len(texts), CHANGES_PER_MESSAGE):
                        _by_frame(stored, texts[place : place + CHANGES_PER_MESSAGE])
                        await asyncio.sleep(0)  # others have their turn
            if self._kept[0].number > last:
                continue  # so much changed meanwhile that what must follow is not kept any more
            pool = [kv_events.PoolJoined(self._pool)] if self._pool else []
            events: list[StoreEvent] = [kv_events.AllBlocksCleared(), *pool, *self._engines.values()]
            for frame, hashes in stored.items():
                events += [
                    kv_events.BlockStored(block_hashes=hashes[place : place + CHANGES_PER_MESSAGE], frame=frame)
                    for place in range(0, len(hashes), CHANGES_PER_MESSAGE)
                ]
            head = 1 + len(pool) + len(self._engines)
            rest = events[head:]
            step = max(1, -(-len(rest) // max(1, last - 1)))
            batches = [events[:head], *(rest[place : place + step] for place in range(0, len(rest), step))]
            for number, batch in enumerate(batches, last - len(batches)):
                yield Told(number, self._encode(EventBatch(time.time(), batch)))
            return
        log.warning("blocks change faster than they can be listed")

    async def _send(self, asker: bytes, told: Told) -> bool:
        """Send a message again; False where the asker is gone, or takes nothing."""
        import zmq

        number = END_OF_REPLAY if told.number < 0 else _number(told.number)
        until = time.monotonic() + STALL_S
        plain: zmq.Socket[bytes] = zmq.Socket(shadow=self._asked.underlying)
        while True:
            try:
                plain.send_multipart([asker, b"", b"", number, told.payload], zmq.NOBLOCK)
            except zmq.Again:
                if time.monotonic() >= until:  # asked behind a try: it may be this process that stood still
                    return False
                await asyncio.sleep(FLUSH_S)
            except zmq.ZMQError:
                return False
            else:
                await asyncio.sleep(0)
                return True


def replay_address(address: str) -> str:
    """Return where messages can be asked for again: the next port, or the same path with ``.replay`` behind it.

    >>> replay_address("tcp://127.0.0.1:5560"), replay_address("ipc:///run/node.events")
    ('tcp://127.0.0.1:5561', 'ipc:///run/node.events.replay')
    """
    if address.startswith("ipc://"):
        return f"{address}.replay"
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + 1}"


def _number(number: int) -> bytes:
    return number.to_bytes(NUMBER_BYTES, "big")


def _by_frame(found: dict[Frame, list[bytes]], texts: Iterable[str]) -> dict[Frame, list[bytes]]:
    """Add the hashes in objects' names, sorted by what stands around them; what has none is left out."""
    for text in texts:
        bucket, name = key_of(text)
        split = split_name(name)
        if split is None:
            continue
        (before, after), content = split
        try:
            digest = bytes.fromhex(content)
        except ValueError:
            continue
        if digest and digest.hex() == content:
            found.setdefault((bucket, before, after), []).append(digest)
    return found
