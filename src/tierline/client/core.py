"""What a client knows about its connection, without a socket: requests under way, bytes to send, replies received.

Rule: a request whose caller stopped waiting is not forgotten. Its reply, when it comes, may hand out a lease or slots
that nobody holds; the core then queues the call that gives them back. So a timeout leaks nothing and need not close
the connection, which would void the leases and slots of every other caller.
"""

from collections.abc import Iterator
from typing import Any

from tierline.client import calls
from tierline.client.calls import Call
from tierline.errors import NodeUnavailable, WireError
from tierline.wire import messages
from tierline.wire.framing import FrameDecoder, encode_frame

MAX_UNSENT_BYTES = 2 * messages.MAX_FRAME_BYTES
_CONNECTION_ID = 0
"""The id of a ``Failed`` that is about the connection and not about one request."""


class ClientCore:
    """The state of one welcomed connection.

    ``refused_unheard`` counts calls that nobody waited for and that the node refused.

    Invariant: every id in flight is in exactly one of *awaited* and *abandoned*, until its reply has come.
    """

    def __init__(self) -> None:
        self.unsent = bytearray()
        self.refused_unheard = 0
        self._decoder: FrameDecoder[Any] = FrameDecoder(messages.Reply)  # type: ignore[arg-type]
        self._next_id = _CONNECTION_ID + 1
        self._awaited: set[int] = set()
        self._abandoned: set[int] = set()

    def request(self, call: Call[Any]) -> int:
        """Queue a call's request in ``unsent`` and return its id.

        Raises
        ------
        NodeUnavailable
            The node has not taken the requests before it.
        WireError
            The request is larger than a frame may be.
        """
        if len(self.unsent) > MAX_UNSENT_BYTES:
            raise NodeUnavailable(f"the node does not read: {len(self.unsent)} bytes of requests wait to be sent")
        number = self._queue(call)
        self._awaited.add(number)
        return number

    def send_unheard(self, call: Call[Any]) -> None:
        """Queue a call's request whose reply nobody waits for; raises as :meth:`request`."""
        self.abandon(self.request(call))

    @property
    def unheard(self) -> int:
        """Replies that will come and that nobody waits for."""
        return len(self._abandoned)

    def abandon(self, number: int) -> None:
        """The caller of a request waits no longer."""
        if number in self._awaited:
            self._awaited.remove(number)
            self._abandoned.add(number)

    def receive(self, data: bytes | bytearray | memoryview) -> Iterator[tuple[int, messages.Reply]]:
        """Take received bytes; yield the replies that someone awaits, each with its request's id.

        Raises
        ------
        WireError
            The node does not follow the contract, or says that we did not. The connection is of no use any more.
        """
        for reply in self._decoder.feed(data):
            number = getattr(reply, "id", None)
            if number in self._awaited:
                self._awaited.remove(number)
                yield number, reply
            elif number in self._abandoned:
                self._abandoned.remove(number)
                self.refused_unheard += isinstance(reply, messages.Failed)
                self.give_back(reply)
            elif isinstance(reply, messages.Failed):
                raise WireError(reply.message)
            else:
                raise WireError(f"the node answered with {type(reply).__name__} what was not asked")

    def give_back(self, reply: messages.Reply) -> None:
        """Queue the return of what a reply hands out; for one that nobody took."""
        if (call := calls.undo(reply)) is not None:
            self._abandoned.add(self._queue(call))

    def _queue(self, call: Call[Any]) -> int:
        number = self._next_id
        self.unsent += encode_frame(call.request(number))
        self._next_id += 1
        return number
