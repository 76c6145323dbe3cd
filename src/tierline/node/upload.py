"""Where the bytes of a PUT go: into the object's extents, summed where they lie. No socket, no store."""

from collections.abc import Sequence

import xxhash

from tierline.store import ObjectKey, Slot

RECEIVE_BYTES = 256 * 1024
"""Most that one read takes: few enough that the sum finds them in the processor's cache."""


class Upload:
    """A PUT under way: where its next byte goes, and the sum of those that came.

    Invariant: ``received`` bytes of the object are in place and summed.
    """

    def __init__(self, key: ObjectKey, slot: Slot, views: Sequence[memoryview], anchor: str = "") -> None:
        self.key = key
        self.anchor = anchor
        self.slot = slot
        self.received = 0
        self._hasher = xxhash.xxh3_64()
        self._views = list(views)
        self._index = 0
        self._position = 0

    @property
    def missing(self) -> int:
        """Bytes that have not come yet."""
        return self.slot.size - self.received

    @property
    def checksum(self) -> int:
        """XXH3-64 of what has come."""
        return self._hasher.intdigest()

    def room(self) -> memoryview:
        """Return where the next bytes go; not empty while some are missing."""
        return self._views[self._index][self._position : self._position + RECEIVE_BYTES]

    def advance(self, length: int) -> None:
        """Take note that ``length`` bytes lie at the start of :meth:`room`."""
        view = self._views[self._index]
        self._hasher.update(view[self._position : self._position + length])
        self._position += length
        self.received += length
        if self._position == view.nbytes:
            self._index += 1
            self._position = 0

    def put(self, data: memoryview) -> None:
        """Copy bytes that were received together with the head."""
        while data.nbytes:
            room = self.room()[: data.nbytes]
            room[:] = data[: room.nbytes]
            self.advance(room.nbytes)
            data = data[room.nbytes :]
