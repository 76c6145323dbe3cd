"""Listens to the engines' publishers over ZeroMQ, a task for each; what comes is for :mod:`.source` to judge.

vLLM's publisher (``vllm/distributed/kv_events.py``) sends ``[topic, number, payload]`` on a PUB socket, and again, on
request, on a ROUTER socket: ``[b"", topic, number, payload]`` since 0.26, without the topic before, and at the end the
number -1. A message that has another form is counted and skipped. What arrives in one piece is applied for
``SLICE_SECONDS`` at most before other work gets its turn.

Nobody proves who he is on these sockets, and they carry prompts: they belong into a network that only engines and
routers share.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol

from tierline import logs
from tierline.errors import UsageError
from tierline.router.events.addresses import SourceAddress
from tierline.router.events.source import BlocksT, EventSource

if TYPE_CHECKING:
    import zmq.asyncio

log = logs.get(__name__)

MESSAGE_BYTES = 64 * 1024**2
"""Largest message that is taken; a batch of 100,000 tokens has half a MiB."""
MESSAGES_WAITING = 100_000
"""Messages that may wait in a socket, as many as in vLLM's publisher; beyond it they are lost, and the numbers show
it."""
HEARTBEAT_MS = 5000
"""How often a silent publisher is asked whether it lives; three times as long without an answer is a broken
connection."""
SETTLE_SECONDS = 0.1
"""From a connection to the first replay: the subscription is on its way, and what is sent before it came is not for
us."""
REPLAY_SECONDS = 5.0
"""Between two messages of a replay. vLLM serves replays between its steps."""
RETRY_SECONDS = 5.0
SLICE_SECONDS = 0.002
END_OF_REPLAY = b"\xff" * 8


class EventSubscriber(Generic[BlocksT]):
    """Feeds one source until it is closed.

    Attributes
    ----------
    malformed
        Messages that had not the form of one.
    """

    def __init__(self, context: "zmq.asyncio.Context", address: SourceAddress, source: EventSource[BlocksT]) -> None:
        self.source = source
        self.malformed = 0
        self._context = context
        self._address = address
        self._replay: asyncio.Task[None] | None = None
        self._task = asyncio.get_running_loop().create_task(self._keep_listening())

    async def close(self) -> None:
        """Stop listening."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_listening(self) -> None:
        """Subscribe, and again where that fails in an unforeseen way: its source is as after a broken connection."""
        while True:
            try:
                await self._run()
            except Exception as error:  # whatever it was, engines go on telling
                self.source.disconnected()
                log.error(
                    "KV events: subscription failed and is begun anew", address=self._address.events, exc_info=error
                )
            await asyncio.sleep(RETRY_SECONDS)

    async def _run(self) -> None:
        """Follow the publisher until something fails."""
        import zmq

        live = self._socket(zmq.SUB)
        live.subscribe(self._address.topic.encode())
        monitor = live.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        start = asyncio.get_running_loop().create_task
        tasks = [start(self._listen(live)), start(self._watch(monitor))]
        try:
            live.connect(self._address.events)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if self._replay is not None:
                tasks.append(self._replay)
            for task in tasks:
                task.cancel()  # they close their sockets
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            live.disable_monitor()
            monitor.close()
            live.close()
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _watch(self, monitor: "zmq.asyncio.Socket") -> None:
        """Follow how the connection stands."""
        import zmq
        from zmq.utils.monitor import recv_monitor_message

        while True:
            if await monitor.poll(RETRY_SECONDS * 1000):
                event = (await recv_monitor_message(monitor))["event"]
                if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self._ask(self.source.connected())
                else:
                    self._stop_replay()
                    self.source.disconnected()
                    log.warning("KV events: connection lost", address=self._address.events)
            elif self.source.wants_replay:
                self._ask(self.source.ask_again())

    def _socket(self, kind: int) -> "zmq.asyncio.Socket":
        import zmq

        socket = self._context.socket(kind)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.RCVHWM, MESSAGES_WAITING),
            (zmq.MAXMSGSIZE, MESSAGE_BYTES),
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS),
            (zmq.RECONNECT_IVL, 100),
            (zmq.RECONNECT_IVL_MAX, 5000),
            (zmq.IPV6, 1),
        ):
            socket.setsockopt(option, value)
        return socket

    async def _listen(self, live: "zmq.asyncio.Socket") -> None:
        while True:
            await live.poll()
            for frames in arrived(live):
                if len(frames) == 3 and len(frames[1]) == 8:
                    self._ask(self.source.received(int.from_bytes(frames[1], "big"), frames[2]))
                else:
                    self.malformed += 1
            await asyncio.sleep(0)

    # Replays ----------------------------------------------------------------------------------------------------------

    def _ask(self, start: int | None) -> None:
        if start is not None:
            self._stop_replay()
            self._replay = asyncio.get_running_loop().create_task(self._replay_from(start))
            self._replay.add_done_callback(self._replay_broke)

    def _replay_broke(self, replay: asyncio.Task[None]) -> None:
        """A replay that fails in an unforeseen way is one without an end."""
        if not replay.cancelled() and (error := replay.exception()) is not None:
            log.error("KV events: replay failed", address=self._address.replay, exc_info=error)
            self._ask(self.source.replay_failed())

    def _stop_replay(self) -> None:
        if self._replay is not None:
            self._replay.cancel()
            self._replay = None

    async def _replay_from(self, start: int | None) -> None:
        import zmq

        assert self._address.replay is not None
        await asyncio.sleep(SETTLE_SECONDS)
        replays = self._socket(zmq.DEALER)
        try:
            replays.connect(self._address.replay)
            while start is not None:
                await replays.send_multipart([b"", start.to_bytes(8, "big")])
                has_ended = await self._take_replay(replays)
                start = self.source.replay_ended() if has_ended else self.source.replay_failed()
                if not has_ended:
                    log.warning("KV events: no replay", address=self._address.replay)
        finally:
            replays.close()

    async def _take_replay(self, replays: "zmq.asyncio.Socket") -> bool:
        """Return whether a replay came to its end."""
        while await replays.poll(REPLAY_SECONDS * 1000):
            for frames in arrived(replays):
                if len(frames) not in (3, 4) or len(frames[-2]) != 8:
                    self.malformed += 1
                elif frames[-2] == END_OF_REPLAY:
                    return True
                else:
                    self.source.replayed(int.from_bytes(frames[-2], "big"), frames[-1])
            await asyncio.sleep(0)
        return False


def arrived(socket: "zmq.asyncio.Socket") -> Iterator[list[bytes]]:
    """Yield messages that are there, for a slice of time. Past asyncio's wrapper, which costs 100 µs for each."""
    import zmq

    plain: zmq.Socket[bytes] = zmq.Socket(shadow=socket.underlying)
    until = time.monotonic() + SLICE_SECONDS
    with contextlib.suppress(zmq.Again):
        while time.monotonic() < until:
            yield plain.recv_multipart(zmq.NOBLOCK)


class Index(Protocol[BlocksT]):
    """Where what publishers tell is kept."""

    def open(self) -> BlocksT:
        """Return the part of one more."""

    def close(self, source: BlocksT, /) -> None:
        """Forget it."""


class EventSubscriptions(Generic[BlocksT]):
    """All subscriptions of a router to publishers of one kind, by the endpoint, or store, that they tell about.

    Parameters
    ----------
    index
        Where what they tell is kept.
    clock
        Wall clock.

    Raises
    ------
    UsageError
        When pyzmq is not installed.
    """

    def __init__(self, index: Index[BlocksT], clock: Callable[[], float]) -> None:
        try:
            import zmq.asyncio
        except ImportError:
            raise UsageError("KV events need pyzmq: pip install 'tierline[kvaware]'") from None
        self.index = index
        self.by_endpoint: dict[str, list[EventSubscriber[BlocksT]]] = {}
        self._clock = clock
        self._context: Any = zmq.asyncio.Context()

    def add(self, endpoint: str, addresses: Sequence[SourceAddress]) -> list[EventSource[BlocksT]]:
        """Listen to the publishers of an endpoint; return their sources."""
        subscribers = [
            EventSubscriber(
                self._context,
                address,
                EventSource(self.index.open(), has_replay=address.replay is not None, clock=self._clock),
            )
            for address in addresses
        ]
        self.by_endpoint[endpoint] = subscribers
        return [subscriber.source for subscriber in subscribers]

    def remove(self, endpoint: str) -> Coroutine[Any, Any, None]:
        """Have the endpoint no more, from now on; what is returned stops listening and forgets what was told."""
        return self._close(self.by_endpoint.pop(endpoint, []))

    async def _close(self, subscribers: Sequence[EventSubscriber[BlocksT]]) -> None:
        for subscriber in subscribers:
            await subscriber.close()
            self.index.close(subscriber.source.blocks)

    async def close(self) -> None:
        """Stop all."""
        for endpoint in list(self.by_endpoint):
            await self.remove(endpoint)
        self._context.term()
