"""A connection between two processes of one router: frames both ways; what may be lost is dropped when it is full."""

import asyncio
from collections.abc import Callable
from typing import cast

from tierline import logs
from tierline.errors import WireError
from tierline.router.workers.messages import FrameReader, Kind, frame

log = logs.get(__name__)

OFFERED_BYTES = 4 * 1024**2
"""As long as more than this waits to be sent, what may be lost is."""


class Channel(asyncio.Protocol):
    """One end.

    Parameters
    ----------
    received
        Called with each frame.
    lost
        Called once, when the other end is gone.
    """

    def __init__(self, received: Callable[[Kind, bytes], None], lost: Callable[[], None]) -> None:
        self._received = received
        self._lost = lost
        self._frames = FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        try:
            for kind, payload in self._frames.feed(data):
                self._received(kind, payload)
        except WireError as error:
            log.error("a process of this router talks nonsense", error=str(error))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """See :class:`asyncio.Protocol`."""
        self._transport = None
        self._lost()

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send a frame, as soon as may be; none to who is gone."""
        if self._transport is not None:
            self._transport.write(frame(kind, payload))

    def offer(self, kind: Kind, payload: bytes) -> bool:
        """Send a frame unless too much waits to be sent already; return whether this did."""
        if self._transport is None or self._transport.get_write_buffer_size() > OFFERED_BYTES:
            return False
        self._transport.write(frame(kind, payload))
        return True

    def close(self) -> None:
        """End the connection; what was sent before still arrives."""
        if self._transport is not None:
            self._transport.close()
