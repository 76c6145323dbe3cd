"""Frames of the UNIX socket: a 4-byte little-endian length and one msgpack-encoded message; pure, no sockets.

The decoder takes bytes as they come, in any pieces, and hands out whole messages. What does not follow the contract
(:mod:`tierline.wire.messages`) raises :class:`~tierline.errors.WireError`, and nothing after it is decoded: a byte
stream that lost its frame boundaries cannot be trusted again.
"""

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from tierline.errors import WireError
from tierline.wire.messages import FRAME_HEADER_BYTES, MAX_FRAME_BYTES, Message

M = TypeVar("M")

_ENCODER = msgspec.msgpack.Encoder()


def encode_frame(message: Message) -> bytearray:
    """Return the frame of one message.

    Raises
    ------
    WireError
        The message is larger than ``MAX_FRAME_BYTES``; the peer would refuse it.
    """
    frame = bytearray(FRAME_HEADER_BYTES)
    _ENCODER.encode_into(message, frame, FRAME_HEADER_BYTES)
    length = len(frame) - FRAME_HEADER_BYTES
    if length > MAX_FRAME_BYTES:
        raise WireError(f"a message of {length} bytes; allowed: {MAX_FRAME_BYTES}; send it in parts")
    frame[:FRAME_HEADER_BYTES] = length.to_bytes(FRAME_HEADER_BYTES, "little")
    return frame


class FrameDecoder(Generic[M]):
    """Turns a byte stream into messages of one union of types.

    Invariant: the buffer starts at a frame boundary and holds less than one whole frame between calls of
    :meth:`feed` that were consumed to their end.

    Parameters
    ----------
    message_type
        A message class or a union of them; anything else raises ``WireError``.
    """

    def __init__(self, message_type: type[M]) -> None:
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(message_type)
        self._buffer = bytearray()
        self._failure: WireError | None = None

    @property
    def buffered_bytes(self) -> int:
        """Bytes of a frame whose end has not come yet."""
        return len(self._buffer)

    def feed(self, received: bytes | bytearray | memoryview) -> Iterator[M]:
        """Take received bytes and yield the messages they complete, in order.

        Raises
        ------
        WireError
            A length out of bounds, or a message that its type does not allow. Every later call raises it again.
        """
        if not self._buffer and self._failure is None and _is_one_frame(received):  # as nearly all come
            with memoryview(received) as view:
                message = self._decode(view[FRAME_HEADER_BYTES:])
            yield message
            return
        self._buffer += received
        consumed = 0
        try:
            while (length := self._frame_length(consumed)) is not None:
                start = consumed + FRAME_HEADER_BYTES
                with memoryview(self._buffer) as view:
                    message = self._decode(view[start : start + length])
                consumed = start + length
                yield message
        finally:
            del self._buffer[:consumed]

    def _frame_length(self, start: int) -> int | None:
        """Return the payload length of the frame at ``start``, or None while it is not whole."""
        if self._failure is not None:
            raise self._failure
        if len(self._buffer) - start < FRAME_HEADER_BYTES:
            return None
        length = int.from_bytes(self._buffer[start : start + FRAME_HEADER_BYTES], "little")
        if not 0 < length <= MAX_FRAME_BYTES:
            self._failure = WireError(f"a frame of {length} bytes; allowed: 1 to {MAX_FRAME_BYTES}")
            raise self._failure
        return length if len(self._buffer) - start - FRAME_HEADER_BYTES >= length else None

    def _decode(self, payload: memoryview) -> M:
        with payload:
            try:
                return self._decoder.decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                self._failure = WireError(f"not a message of the contract: {error}")
                raise self._failure from error


def _is_one_frame(received: bytes | bytearray | memoryview) -> bool:
    """Whether these bytes are a whole frame and nothing more."""
    length = len(received) - FRAME_HEADER_BYTES
    return 0 < length <= MAX_FRAME_BYTES and int.from_bytes(received[:FRAME_HEADER_BYTES], "little") == length
