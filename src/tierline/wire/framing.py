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


def encode_frame(message: Message) -> bytes:
    """Return the frame of one message.

    Raises
    ------
    WireError
        The message is larger than ``MAX_FRAME_BYTES``; the peer would refuse it.
    """
    payload = _ENCODER.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise WireError(f"a message of {len(payload)} bytes; allowed: {MAX_FRAME_BYTES}; send it in parts")
    return len(payload).to_bytes(FRAME_HEADER_BYTES, "little") + payload


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

    def whole(self, received: bytes | bytearray | memoryview) -> M | None:
        """Take received bytes and return their message where they are its frame and nothing more, as nearly all are.

        ``None``: they are not, and nothing was taken; :meth:`feed` does. Raises ``WireError`` as that does.
        """
        if self._buffer or self._failure is not None:
            return None
        length = len(received) - FRAME_HEADER_BYTES
        if not 0 < length <= MAX_FRAME_BYTES:
            return None
        if int.from_bytes(received[:FRAME_HEADER_BYTES], "little") != length:
            return None
        return self._decode(received[FRAME_HEADER_BYTES:])

    def feed(self, received: bytes | bytearray | memoryview) -> Iterator[M]:
        """Take received bytes and yield the messages they complete, in order.

        Raises
        ------
        WireError
            A length out of bounds, or a message that its type does not allow. Every later call raises it again.
        """
        message = self.whole(received)
        if message is not None:
            yield message
            return
        self._buffer += received
        consumed = 0
        try:
            while (length := self._frame_length(consumed)) is not None:
                start = consumed + FRAME_HEADER_BYTES
                with memoryview(self._buffer) as view, view[start : start + length] as payload:
                    message = self._decode(payload)
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

    def _decode(self, payload: bytes | bytearray | memoryview) -> M:
        try:
            return self._decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._failure = WireError(f"not a message of the contract: {error}")
            raise self._failure from error
