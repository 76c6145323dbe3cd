"""Where a body ends. Each class is fed what arrives, says how much of it is body, and never asks for bytes twice.

Bodies are not copied here unless the caller asks for a chunked body's payload; what is relayed is relayed as it came.
"""

import re
from typing import Protocol

from tierline.router.http.heads import BadMessage, ResponseHead

PIECE_BYTES = 4096
"""Of a chunk, what is this long is kept where it came; shorter pieces are gathered, for each would cost 200 bytes."""
LINE_BYTES = 4096
"""Longest chunk line, and longest trailer section, that is accepted."""

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")


class Body(Protocol):
    """The end of one body, found while its bytes pass."""

    is_complete: bool

    def feed(self, data: bytes) -> int:
        """Return how many leading bytes of ``data`` belong to this body."""

    def end(self) -> bool:
        """The sender closed its side: return whether the body is whole."""


class LengthBody:
    """A body of ``length`` bytes. Invariant: complete exactly when ``remaining`` is 0."""

    __slots__ = ("is_complete", "remaining")

    def __init__(self, length: int) -> None:
        self.remaining = length
        self.is_complete = length == 0

    def feed(self, data: bytes) -> int:
        """See :class:`Body`."""
        taken = len(data)
        if taken >= self.remaining:
            taken = self.remaining
            self.is_complete = True
        self.remaining -= taken
        return taken

    def end(self) -> bool:
        """See :class:`Body`."""
        return self.is_complete


class ChunkedBody:
    """A chunked body (RFC 9112, 7.1).

    Invariant: the next byte belongs to chunk data while ``_remaining`` is above 0, else to the line begun in ``_line``,
    which is a chunk's size, the end of a chunk's data, or a trailer, as ``_expected`` says.
    """

    __slots__ = ("_expected", "_line", "_payload", "_remaining", "_trailer_bytes", "is_complete")

    _SIZE, _DATA_END, _TRAILER = range(3)

    def __init__(self, *, keeps_payload: bool = False) -> None:
        self._payload: list[memoryview | bytearray] | None = [] if keeps_payload else None
        self.is_complete = False
        self._remaining = 0
        self._line = b""
        self._expected = self._SIZE
        self._trailer_bytes = 0

    @property
    def keeps_payload(self) -> bool:
        """Whether the data is kept without its framing, for :meth:`take_payload`."""
        return self._payload is not None

    def keep_payload(self) -> None:
        """Keep the data from now on."""
        self._payload = []

    def take_payload(self) -> bytes:
        """Return the data kept since the last time; the only copy that is made of it."""
        assert self._payload is not None
        pieces, self._payload = self._payload, []
        return b"".join(pieces)

    @property
    def is_between_chunks(self) -> bool:
        """Whether a chunk of somebody else's may be put in here."""
        return self._expected == self._SIZE and not self._remaining and not self._line

    def feed(self, data: bytes) -> int:
        """See :class:`Body`.

        Raises
        ------
        BadMessage
            When the framing is broken.
        """
        position, available = 0, len(data)
        if self._payload is None and self.is_between_chunks:
            position = _skip_whole_chunks(data)
        while position < available and not self.is_complete:
            if self._remaining:
                taken = min(self._remaining, available - position)
                if self._payload is not None:
                    self._keep(memoryview(data)[position : position + taken], self._payload)
                self._remaining -= taken
                position += taken
                continue
            newline = data.find(b"\n", position) + 1
            line = data[position : newline or available]
            position += len(line)
            if self._line:
                line = self._line + line
            if len(line) + self._trailer_bytes > LINE_BYTES:
                raise BadMessage(400, "chunk line too long")
            if newline:
                self._line = b""
                self._take(line)
            else:
                self._line = line
        return position

    def end(self) -> bool:
        """See :class:`Body`."""
        return self.is_complete

    @staticmethod
    def _keep(piece: memoryview, payload: list[memoryview | bytearray]) -> None:
        if len(piece) >= PIECE_BYTES:
            payload.append(piece)
        elif payload and isinstance(payload[-1], bytearray):
            payload[-1] += piece
        else:
            payload.append(bytearray(piece))

    def _take(self, line: bytes) -> None:
        if self._expected == self._DATA_END:
            if line != b"\r\n":
                raise BadMessage(400, "chunk longer than its size")
            self._expected = self._SIZE
        elif self._expected == self._SIZE:
            match = _CHUNK_LINE.fullmatch(line)
            if match is None:
                raise BadMessage(400, "bad chunk size")
            self._remaining = int(match[1], 16)
            self._expected = self._DATA_END if self._remaining else self._TRAILER
        elif line == b"\r\n":
            self.is_complete = True
        elif not line.endswith(b"\r\n"):
            raise BadMessage(400, "bad trailer")
        else:
            self._trailer_bytes += len(line)


def _skip_whole_chunks(data: bytes) -> int:
    """Return where the chunks that lie whole in ``data`` end: an engine writes an event at a time, so mostly all do."""
    position, available = 0, len(data)
    while position < available and (line := _CHUNK_LINE.match(data, position)) is not None:
        start = line.end()
        end = start + int(line[1], 16)
        if end == start or not data.startswith(b"\r\n", end):  # the last one, or one that is not whole, or broken
            break
        position = end + 2
    return position


class UntilCloseBody:
    """A body that lasts until its sender closes the connection; nobody can tell whether it is whole."""

    __slots__ = ("is_complete",)

    def __init__(self) -> None:
        self.is_complete = False

    def feed(self, data: bytes) -> int:
        """See :class:`Body`."""
        return len(data)

    def end(self) -> bool:
        """See :class:`Body`."""
        self.is_complete = True
        return True


def body_of_response(head: ResponseHead, method: bytes) -> LengthBody | ChunkedBody | UntilCloseBody:
    """Return the framing of the body behind ``head`` (RFC 9112, 6.3)."""
    if method == b"HEAD" or head.status in (204, 304):
        return LengthBody(0)
    if head.is_chunked:
        return ChunkedBody()
    if head.length is not None:
        return LengthBody(head.length)
    return UntilCloseBody()
