"""The node's segment mapped into this process: where the bytes of leases are read and those of slots are written.

Nothing here talks to the node. Reading is allowed while a lease holds the extents, writing while a slot does; which
of both is the caller's to know.
"""

import mmap
from collections.abc import Sequence
from typing import Any, TypeAlias

from tierline.client import copying
from tierline.errors import ChecksumMismatch, SegmentError
from tierline.wire.messages import Extent

Buffer: TypeAlias = "bytes | bytearray | memoryview[Any] | mmap.mmap"
"""What bytes are read into or written from; anything contiguous that ``memoryview`` takes, of any item type."""

_PAGE_BYTES = mmap.PAGESIZE
_PREFAULT_PIECE_BYTES = 16 * 1024 * 1024


class SegmentMapping:
    """A shared mapping of the whole segment; valid until closed, also after the node has died.

    Copies give up the interpreter lock and may run in several threads at once.

    Parameters
    ----------
    descriptor
        The segment's descriptor; the mapping keeps its own duplicate, so the caller may close it.
    size_bytes
        Size of the segment.
    writable
        Map for writing too; the descriptor must allow it.

    Raises
    ------
    SegmentError
        The descriptor cannot be mapped.
    """

    def __init__(self, descriptor: int, size_bytes: int, *, writable: bool = False) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            self._mmap = mmap.mmap(descriptor, size_bytes, flags=mmap.MAP_SHARED, prot=protection)
        except (OSError, ValueError) as error:
            raise SegmentError(f"cannot map {size_bytes} bytes of the node's segment: {error}") from error
        self._view = memoryview(self._mmap)
        self.size_bytes = size_bytes
        self.is_writable = writable

    @property
    def buffer(self) -> memoryview:
        """The whole segment, e.g. to register it with a device once."""
        return self._view

    def views(self, extents: Sequence[Extent]) -> list[memoryview]:
        """Return the extents as views of the mapping, without a copy.

        Raises
        ------
        SegmentError
            An extent lies outside the segment, or the mapping is closed.
        """
        for offset, length in extents:
            if offset < 0 or length <= 0 or offset + length > self.size_bytes:
                raise SegmentError(f"extent at {offset} of {length} bytes; the segment has {self.size_bytes}")
        try:
            return [self._view[offset : offset + length] for offset, length in extents]
        except ValueError as error:
            raise SegmentError("the mapping of the node's segment is closed") from error

    def read_into(self, extents: Sequence[Extent], destination: Buffer, *, checksum: int | None = None) -> None:
        """Copy leased bytes out of the segment.

        Parameters
        ----------
        extents
            Extents of one object, in order.
        destination
            Writable buffer of exactly as many bytes.
        checksum
            The object's checksum; given, the bytes that arrived are verified against it (about a third slower).

        Raises
        ------
        ChecksumMismatch
            The bytes are not those that were committed; tell the node with ``suspect`` and treat it as a miss.
        ValueError
            The destination has another size.
        """
        target = memoryview(destination).cast("B")
        if checksum is None:
            copying.copy_into([target], self.views(extents))
            return
        found = copying.copy_and_sum([target], self.views(extents), sum_destination=True)
        if found != checksum:
            raise ChecksumMismatch(f"XXH3-64 of {target.nbytes} bytes: got {found:016x}, committed {checksum:016x}")

    def write_from(self, extents: Sequence[Extent], source: Buffer) -> int:
        """Copy bytes into a slot and return their checksum, summed on the way, for the commit.

        Parameters
        ----------
        extents
            Extents of the slot, in order; the last may be longer than what is written.
        source
            The object's bytes: as many as the extents hold, or fewer.

        Raises
        ------
        ValueError
            The source is larger than the slot.
        SegmentError
            The mapping is read-only.
        """
        if not self.is_writable:
            raise SegmentError("the mapping is read-only; connect with writer=True to write")
        data = memoryview(source).cast("B")
        return copying.copy_and_sum(self._leading(extents, data.nbytes), [data])

    def checksum(self, extents: Sequence[Extent], size_bytes: int | None = None) -> int:
        """Return the XXH3-64 of what the extents hold, or of its first ``size_bytes``.

        For writers that fill ``views`` themselves, a GPU's copy engine say, and for readers that verify in place.
        """
        total = sum(length for _, length in extents)
        return copying.checksum(self._leading(extents, total if size_bytes is None else size_bytes))

    def prefault(self) -> None:
        """Touch every page, so that the first copies do not pay for page faults (about 0.1 s a GiB)."""
        for start in range(0, self.size_bytes, _PREFAULT_PIECE_BYTES):
            bytes(self._view[start : start + _PREFAULT_PIECE_BYTES : _PAGE_BYTES])

    def close(self) -> None:
        """Unmap; where views are still in use, the mapping goes with the last of them. Idempotent."""
        self._view.release()
        try:
            self._mmap.close()
        except BufferError:
            return

    def _leading(self, extents: Sequence[Extent], size_bytes: int) -> list[memoryview]:
        """Return views of the first ``size_bytes`` of the extents."""
        views: list[memoryview] = []
        missing = size_bytes
        for view in self.views(extents):
            if missing <= 0:
                break
            views.append(view[:missing])
            missing -= views[-1].nbytes
        if missing > 0:
            raise ValueError(f"{size_bytes} bytes do not fit into the slot: {missing} too many")
        return views
