"""Where LMCache's workers find their controller: they push to one socket and ask on another; ZeroMQ, as LMCache has it.

Nobody proves who he is on these sockets: they belong into a network that only engines and the controller share.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tierline import logs
from tierline.duties import Duties
from tierline.errors import EnvironmentTooSmall
from tierline.router.events.addresses import ControllerAddress
from tierline.router.events.lmcache import LmcacheInstances
from tierline.router.events.lmcache_messages import ErrorMsg, UnreadableMessage, decode, encode
from tierline.router.events.subscriber import HEARTBEAT_MS, MESSAGES_WAITING, arrived

if TYPE_CHECKING:
    import zmq.asyncio

log = logs.get(__name__)

MESSAGE_BYTES = 8 * 1024**2
"""Largest message that is taken: a batch of a full sync has 20 KiB."""


class LmcacheListener:
    """Takes what workers push, and answers what they ask.

    Parameters
    ----------
    instances
        Where it is kept.
    duties
        Guards the work; it has the duty ``lmcache``.

    Attributes
    ----------
    pull, reply
        Where it listens, with the ports that it got.
    malformed, unknown
        Counters: messages that were none; of types that nobody here knows.
    """

    def __init__(self, instances: LmcacheInstances, duties: Duties) -> None:
        import zmq.asyncio

        self.malformed = self.unknown = 0
        self.pull = self.reply = ControllerAddress()
        self._instances = instances
        self._duties = duties
        self._context: Any = zmq.asyncio.Context()
        self._tasks: list[asyncio.Task[None]] = []

    def listen(self, pull: ControllerAddress, reply: ControllerAddress) -> None:
        """Listen from now on.

        Raises
        ------
        EnvironmentTooSmall
            An address cannot be had.
        """
        import zmq

        self.pull = self._serve(zmq.PULL, pull, self._take_pushed)
        self.reply = self._serve(zmq.ROUTER, reply, self._answer)

    def heartbeat_url(self, worker: str) -> str:
        """Return where a worker at an address reaches the socket for questions."""
        host = self.reply.host
        if host in ("0.0.0.0", "::"):  # noqa: S104  (it is what was asked for; said is which of our addresses it is)
            host = _own_address_towards(worker)
        return str(ControllerAddress(host=host, port=self.reply.port))

    async def close(self) -> None:
        """Listen no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._context.term()

    def _serve(
        self, kind: int, address: ControllerAddress, take: "Callable[[zmq.asyncio.Socket, list[bytes]], Any]"
    ) -> ControllerAddress:
        import zmq

        listening = self._context.socket(kind)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.RCVHWM, MESSAGES_WAITING),
            (zmq.MAXMSGSIZE, MESSAGE_BYTES),
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS),
            (zmq.IPV6, 1),
        ):
            listening.setsockopt(option, value)
        try:
            listening.bind(f"tcp://{address}" if address.port else f"tcp://{address.host}:*")
        except zmq.ZMQError as error:
            listening.close()
            raise EnvironmentTooSmall(f"cannot listen for LMCache on {address}: {error.strerror}") from error
        port = int(listening.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        work = self._duties.keep_up("lmcache", lambda: _listen(listening, take))
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda _: listening.close())
        self._tasks.append(task)
        return ControllerAddress(host=address.host, port=port)

    def _take_pushed(self, pulling: "zmq.asyncio.Socket", frames: list[bytes]) -> None:  # noqa: ARG002
        for frame in frames:
            try:
                message = decode(frame)
            except UnreadableMessage as error:
                self.malformed += 1
                log.warning("a message of LMCache cannot be read", why=str(error))
                continue
            if message is None:
                self.unknown += 1
            else:
                self._instances.pushed(message)

    def _answer(self, asked: "zmq.asyncio.Socket", frames: list[bytes]) -> None:
        import zmq

        if len(frames) != 3:
            self.malformed += 1
            return
        try:
            message = decode(frames[2])
            answer = ErrorMsg("nobody here knows that question") if message is None else self._instances.answer(message)
            self.unknown += message is None
        except UnreadableMessage as error:
            self.malformed += 1
            answer = ErrorMsg(str(error))
        plain: zmq.Socket[bytes] = zmq.Socket(shadow=asked.underlying)
        try:
            plain.send_multipart([*frames[:2], encode(answer)], zmq.NOBLOCK)
        except zmq.ZMQError as error:  # who asks and does not listen asks again
            log.debug("a worker of LMCache takes no answer", why=error.strerror)


async def _listen(listening: "zmq.asyncio.Socket", take: "Callable[[zmq.asyncio.Socket, list[bytes]], Any]") -> None:
    while True:
        await listening.poll()
        for frames in arrived(listening):
            take(listening, frames)
        await asyncio.sleep(0)


def _own_address_towards(host: str) -> str:
    """Return the address of this machine that ``host`` sees, or the loopback where it has none."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, 9, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    except (OSError, UnicodeError):  # the latter for what cannot be an address, which is a worker's to say
        return "127.0.0.1"
