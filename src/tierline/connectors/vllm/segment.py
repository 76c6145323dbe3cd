"""The node store's segment as PyTorch sees it: 64-bit words, one tensor an extent, pinned for accelerators.

What a node says about extents is checked before it is used: a wrong answer must not become a wrong address.
"""

from collections.abc import Callable, Sequence

import torch

from tierline.client import SegmentMapping
from tierline.connectors.vllm.copy import WORD_BYTES
from tierline.errors import WireError
from tierline.wire.messages import Extent

LARGEST_REGISTRATION_BYTES = 64 * 1024**3
"""Drivers refuse to pin larger runs at once."""


class SegmentWords:
    """The mapped segment.

    Parameters
    ----------
    mapping
        The client's mapping; kept alive for as long as this object.
    """

    def __init__(self, mapping: SegmentMapping, size_bytes: int) -> None:
        self._mapping = mapping
        (whole,) = mapping.views([Extent(0, size_bytes)])
        self._words = torch.frombuffer(whole, dtype=torch.int64)

    @property
    def address(self) -> int:
        """Where the segment is mapped."""
        return int(self._words.data_ptr())

    @property
    def size_bytes(self) -> int:
        """Bytes of the segment."""
        return int(self._words.shape[0]) * WORD_BYTES

    def extents(self, extents: Sequence[Extent], size_bytes: int) -> list[torch.Tensor]:
        """Return an object's words, one tensor an extent.

        Raises
        ------
        WireError
            The extents lie outside the segment, or do not add up to ``size_bytes``.
        """
        if sum(extent.length for extent in extents) != size_bytes:
            raise WireError(f"extents {extents} do not add up to {size_bytes} bytes")
        for offset, length in extents:
            if offset % WORD_BYTES or length % WORD_BYTES or not 0 <= offset < offset + length <= self.size_bytes:
                raise WireError(f"extent {offset}+{length} does not lie in a segment of {self.size_bytes} bytes")
        return [self._words[offset // WORD_BYTES : (offset + length) // WORD_BYTES] for offset, length in extents]

    def checksum(self, extents: Sequence[Extent]) -> int:
        """Return the XXH3-64 of an object's bytes as they are now."""
        return self._mapping.checksum(extents)


class PinnedRun:
    """A run of memory registered with the CUDA driver, so that transfers go straight to it.

    Pinning only makes transfers faster, so a refusal is not an error: what could be pinned stays so.

    Parameters
    ----------
    address, size_bytes
        The run.
    register, unregister
        ``cudaHostRegister(address, size, flags)`` and ``cudaHostUnregister(address)``; they return 0 for success.
    """

    def __init__(
        self,
        address: int,
        size_bytes: int,
        register: Callable[[int, int, int], int],
        unregister: Callable[[int], int],
    ) -> None:
        self._unregister = unregister
        self._pieces: list[int] = []
        for start in range(0, size_bytes, LARGEST_REGISTRATION_BYTES):
            piece_bytes = min(LARGEST_REGISTRATION_BYTES, size_bytes - start)
            if int(register(address + start, piece_bytes, 0)) != 0:
                return
            self._pieces.append(address + start)
            self.pinned_bytes = start + piece_bytes

    pinned_bytes: int = 0
    """Bytes from the start of the run that are pinned."""

    def close(self) -> None:
        """Give the registration back; to be called before the memory is unmapped."""
        while self._pieces:
            self._unregister(self._pieces.pop())


def pin(words: SegmentWords, device: torch.device) -> PinnedRun:
    """Register the segment with the CUDA driver of this process.

    A thread starts out on device 0; registering there would cost every other rank a context on it.
    """
    with torch.cuda.device(device):
        runtime = torch.cuda.cudart()
        return PinnedRun(words.address, words.size_bytes, runtime.cudaHostRegister, runtime.cudaHostUnregister)
