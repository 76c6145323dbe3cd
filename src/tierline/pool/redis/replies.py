"""Replies of Redis read from its socket: small ones whole, a value's bytes straight into the pages they are for.

It takes the place of redis-py's own parser (``parser_class`` of its connections), which would make ``bytes`` of every
value first. redis-py connects, encrypts and logs in; then it is this reader's socket. RESP2 only. Rule: after an error
that is not one of the server's replies, what the socket holds is unknown, and the connection is closed.
"""

import select
import socket
import time
from typing import Any

from redis.exceptions import ResponseError

from tierline.errors import WireError

_BUFFER_BYTES = 4096
"""Replies' heads and headers are read through it. Small, for what it catches of a value is copied a second time."""

_LONGEST_LINE_BYTES = 2048
_DEEPEST = 16
_MOST_SKIPPED_BYTES = 8 * 1024 * 1024


class Refusal(Exception):  # noqa: N818
    """The server's reply is an error; the connection is well.

    Parameters
    ----------
    text
        What it says; its first word is the kind of error.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.kind = text.partition(" ")[0]


class Reader:
    """Reads what one connection receives; its socket is given by redis-py when it connects."""

    def __init__(self) -> None:
        self._socket: Any = None
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = self._end = 0
        self._deadline: float | None = None

    # What redis-py asks of a parser.

    def on_connect(self, connection: Any) -> None:
        """Take the socket of a connection."""
        self._socket = connection._sock  # every parser of redis-py does so; there is no public way
        self._deadline = None  # what redis-py reads to log in has the connection's own time limit
        self._start = self._end = 0

    def on_disconnect(self) -> None:
        """Let go of the socket."""
        self._socket = None

    def can_read(self, timeout: float = 0) -> bool:
        """Whether there is anything to read, its end included."""
        if self._start < self._end:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def read_response(self, *_: object, **__: object) -> object:
        """Read one reply whole; an error is returned, as redis-py wants it."""
        try:
            return self.reply()
        except Refusal as refusal:
            return ResponseError(str(refusal))

    # What the tier asks.

    def allow(self, seconds: float) -> None:
        """Give what is sent and read from now on so much time."""
        self._deadline = time.monotonic() + seconds
        self._socket.settimeout(seconds)

    def interrupt(self) -> None:
        """End what another thread reads or sends; it fails with an ``OSError``."""
        current = self._socket
        if current is None:
            return
        try:
            # Not the method of an encrypted socket: that one forgets its encryption, and the other thread would then
            # read ciphertext into pages.
            socket.socket.shutdown(current, socket.SHUT_RDWR)
        except OSError:
            return  # closed meanwhile

    def reply(self, depth: int = 0) -> object:
        """Read one reply; returns ``int``, ``bytes``, ``None`` or a list of them.

        Parameters
        ----------
        depth
            Of lists that it is in.

        Raises
        ------
        Refusal
            It is an error.
        """
        if depth > _DEEPEST:
            raise WireError("a reply with lists in lists without end")
        line = self._line()
        kind, text = line[:1], line[1:]
        match kind:
            case b"+":
                return text
            case b"-":
                raise Refusal(text.decode(errors="replace"))
            case b":":
                return _number(text)
            case b"$":
                length = _count(text)
                return None if length is None else self._bulk(length)
            case b"*":
                count = _count(text)
                return None if count is None else [self.reply(depth + 1) for _ in range(count)]
            case _:
                raise WireError(f"Redis began a reply with {kind!r}")

    def value_length(self) -> int | None:
        """Read the head of a value; ``None`` where there is none. Its bytes and :meth:`end_value` come next."""
        line = self._line()
        if line[:1] == b"-":
            raise Refusal(line[1:].decode(errors="replace"))
        if line[:1] != b"$":
            raise WireError(f"Redis answered a GET with {line[:1]!r}")
        return _count(line[1:])

    def take(self, length: int) -> bytes:
        """Read a few bytes of a value."""
        taken = bytearray(length)
        self.fill(memoryview(taken))
        return bytes(taken)

    def fill(self, view: memoryview) -> None:
        """Read bytes of a value into ``view`` until it is full."""
        buffered = min(self._end - self._start, view.nbytes)
        if buffered:
            view[:buffered] = self._buffer[self._start : self._start + buffered]
            self._start += buffered
            view = view[buffered:]
        while view.nbytes:
            view = view[self._receive(view) :]

    def skip(self, length: int) -> None:
        """Read past bytes of a value that nobody wants."""
        if length > _MOST_SKIPPED_BYTES:
            raise WireError(f"a value of {length} bytes that is not ours")
        scratch = memoryview(bytearray(min(length, 256 * 1024)))
        while length:
            piece = scratch[:length]
            self.fill(piece)
            length -= piece.nbytes

    def end_value(self) -> None:
        """Read the end of a value."""
        if self.take(2) != b"\r\n":
            raise WireError("a value of Redis is longer than it said")

    def _bulk(self, length: int) -> bytes:
        if length > _MOST_SKIPPED_BYTES:
            raise WireError(f"a reply of {length} bytes")
        taken = self.take(length)
        self.end_value()
        return taken

    def _line(self) -> bytes:
        scanned = 0
        while True:
            held = bytes(self._buffer[self._start : self._end])
            end = held.find(b"\r\n", max(0, scanned - 1))
            if end >= 0:
                self._start += end + 2
                return held[:end]
            scanned = len(held)
            if scanned > _LONGEST_LINE_BYTES:
                raise WireError("a reply's first line does not end")
            self._buffer[:scanned] = held
            self._start, self._end = 0, scanned
            self._end += self._receive(self._buffer[scanned:])

    def _receive(self, view: memoryview) -> int:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("not answered in time")
            self._socket.settimeout(left)
        count = self._socket.recv_into(view)
        if not count:
            raise ConnectionResetError("the server closed the connection")
        return int(count)


def _count(text: bytes) -> int | None:
    count = _number(text)
    if count < -1:
        raise WireError(f"Redis said a length of {count}")
    return None if count == -1 else count


def _number(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise WireError(f"Redis wrote {text[:32]!r} for a number") from None
