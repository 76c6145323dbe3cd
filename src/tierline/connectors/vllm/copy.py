"""Copies between the engine's KV blocks and the bytes of a stored chunk, in plain PyTorch.

A chunk's bytes are: for each layer, for each of the chunk's blocks in order, the block's page. In the segment they lie
in extents, so a page may straddle two. All views are of 64-bit words: a run of words below PyTorch's threshold for
parallel copies is copied by the calling thread alone, so background copies do not steal the engine's threads.

`HostCopier` copies page by page and serves KV in host memory. `DeviceCopier` goes through one staging tensor on the
device, so that a chunk takes one transfer an extent and one kernel a layer, whatever the number of blocks.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch

from tierline.errors import EngineError

WORD_BYTES = 8


def page_words(tensor: torch.Tensor, num_blocks: int, name: str) -> torch.Tensor:
    """View a layer's KV tensor as one row of 64-bit words a block.

    Parameters
    ----------
    tensor
        ``[num_blocks, ...]``, or ``[num_blocks * n, ...]`` where the attention kernel divides blocks by ``n``. The
        dimensions after the first may be permuted but must fill a run of memory without gaps.
    num_blocks
        The engine's number of KV blocks.
    name
        The layer, for messages.

    Returns
    -------
    torch.Tensor
        int64, ``[num_blocks, page_bytes / 8]``, sharing the tensor's memory.

    Raises
    ------
    EngineError
        The layout has gaps inside a block, or blocks are not the outermost dimension.
    """
    if tensor.shape[0] % num_blocks:
        raise EngineError(f"KV of layer {name} has shape {tuple(tensor.shape)}: its first dimension is not blocks")
    blocks = tensor if tensor.shape[0] == num_blocks else tensor.unflatten(0, (num_blocks, -1))
    run = 1
    for stride, size in sorted(zip(blocks.stride()[1:], blocks.shape[1:], strict=True)):
        if size != 1 and stride != run:
            raise EngineError(f"KV of layer {name} with strides {blocks.stride()} has gaps inside a block")
        run *= size
    element_bytes = blocks.element_size()
    page_bytes, stride_bytes = run * element_bytes, blocks.stride(0) * element_bytes
    start_bytes = blocks.storage_offset() * element_bytes
    if page_bytes % WORD_BYTES or stride_bytes % WORD_BYTES or start_bytes % WORD_BYTES:
        raise EngineError(f"KV blocks of {page_bytes} bytes (layer {name}) are not made of 64-bit words")
    words = torch.empty(0, dtype=torch.int64, device=tensor.device)
    return words.set_(
        blocks.untyped_storage(),
        start_bytes // WORD_BYTES,
        (num_blocks, page_bytes // WORD_BYTES),
        (stride_bytes // WORD_BYTES, 1),
    )


class ChunkCopier(ABC):
    """Copies chunks in and out of an engine's KV blocks.

    Parameters
    ----------
    layers
        The layers' pages as returned by :func:`page_words`, in the order of their bytes in a chunk.
    blocks_per_chunk
        Engine blocks in a chunk.
    """

    def __init__(self, layers: Sequence[torch.Tensor], blocks_per_chunk: int) -> None:
        self._layers = layers
        self._blocks_per_chunk = blocks_per_chunk
        self._chunk_words: int = blocks_per_chunk * sum(layer.shape[1] for layer in layers)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a stored chunk."""
        return self._chunk_words * WORD_BYTES

    @abstractmethod
    def load(self, extents: Sequence[torch.Tensor], block_ids: Sequence[int], after: object) -> None:
        """Copy a chunk, or its last ``len(block_ids)`` blocks, into the engine; returns when it is there.

        Parameters
        ----------
        extents
            The chunk's words in the segment, one tensor an extent.
        block_ids
            The blocks that receive the end of the chunk.
        after
            What :meth:`mark` returned once the engine's last work on these blocks (zeroing) had been submitted.
        """

    @abstractmethod
    def store(self, block_ids: Sequence[int], extents: Sequence[torch.Tensor], after: object) -> None:
        """Copy a whole chunk out of the engine; returns when the segment has it.

        Parameters
        ----------
        block_ids
            All blocks of the chunk.
        extents
            Where the words go, one tensor an extent.
        after
            What :meth:`mark` returned once the blocks' computation had been submitted.
        """

    def mark(self) -> object:
        """Mark a point in the engine's work: what it has submitted so far."""
        return None

    def _check(self, block_ids: Sequence[int], extents: Sequence[torch.Tensor]) -> None:
        words = sum(extent.shape[0] for extent in extents)
        if words != self._chunk_words or len(block_ids) > self._blocks_per_chunk:
            raise ValueError(
                f"a chunk of {words * WORD_BYTES} bytes for {len(block_ids)} blocks; expected {self.chunk_bytes} bytes "
                f"and at most {self._blocks_per_chunk} blocks"
            )


class HostCopier(ChunkCopier):
    """For KV in host memory: each page is copied straight from or to the segment."""

    def load(self, extents: Sequence[torch.Tensor], block_ids: Sequence[int], after: object) -> None:  # noqa: ARG002
        """Copy a chunk, or its last blocks, into the engine. Host memory has no queue, so nothing is waited for."""
        self._check(block_ids, extents)
        for page, pieces in self._pages(block_ids, extents):
            at = 0
            for piece in pieces:
                page[at : at + piece.shape[0]].copy_(piece)
                at += piece.shape[0]

    def store(self, block_ids: Sequence[int], extents: Sequence[torch.Tensor], after: object) -> None:  # noqa: ARG002
        """Copy a whole chunk out of the engine."""
        self._check(block_ids, extents)
        for page, pieces in self._pages(block_ids, extents):
            at = 0
            for piece in pieces:
                piece.copy_(page[at : at + piece.shape[0]])
                at += piece.shape[0]

    def _pages(
        self, block_ids: Sequence[int], extents: Sequence[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
        """Yield each page of the blocks with the runs of the chunk that belong to it."""
        skipped_blocks = self._blocks_per_chunk - len(block_ids)
        at = 0
        for layer in self._layers:
            at += skipped_blocks * layer.shape[1]
            for block_id in block_ids:
                yield layer[block_id], list(runs(extents, at, layer.shape[1]))
                at += layer.shape[1]


class DeviceCopier(ChunkCopier):
    """For KV on an accelerator: through a staging tensor there, on streams beside the engine's.

    Loads and stores have a stream and a staging tensor each; work within a stream is ordered, so one staging tensor
    serves all chunks of its direction. On a device without streams (the CPU, in tests) everything runs in line.
    """

    def __init__(self, layers: Sequence[torch.Tensor], blocks_per_chunk: int) -> None:
        super().__init__(layers, blocks_per_chunk)
        self._device = layers[0].device
        self._load_stream, self._store_stream = self._new_stream(), self._new_stream()
        self._load_staging, self._store_staging = (
            torch.empty(self._chunk_words, dtype=torch.int64, device=self._device) for _ in range(2)
        )

    def load(self, extents: Sequence[torch.Tensor], block_ids: Sequence[int], after: object) -> None:
        """Copy a chunk, or its last blocks, into the engine."""
        self._check(block_ids, extents)
        with torch.cuda.stream(self._load_stream):
            if self._load_stream is not None:
                self._load_stream.wait_event(after)
            staging = self._load_staging
            at = 0
            for extent in extents:
                staging[at : at + extent.shape[0]].copy_(extent, non_blocking=True)
                at += extent.shape[0]
            indices = torch.tensor(block_ids, device=self._device)
            for layer, rows in self._staged(staging):
                layer.index_copy_(0, indices, rows[self._blocks_per_chunk - len(block_ids) :])
        self._wait(self._load_stream)

    def store(self, block_ids: Sequence[int], extents: Sequence[torch.Tensor], after: object) -> None:
        """Copy a whole chunk out of the engine."""
        self._check(block_ids, extents)
        if len(block_ids) != self._blocks_per_chunk:
            raise ValueError(f"{len(block_ids)} blocks are not a whole chunk of {self._blocks_per_chunk}")
        with torch.cuda.stream(self._store_stream):
            if self._store_stream is not None:
                self._store_stream.wait_event(after)
            indices = torch.tensor(block_ids, device=self._device)
            for layer, rows in self._staged(self._store_staging):
                torch.index_select(layer, 0, indices, out=rows)
            at = 0
            for extent in extents:
                extent.copy_(self._store_staging[at : at + extent.shape[0]], non_blocking=True)
                at += extent.shape[0]
        self._wait(self._store_stream)

    def mark(self) -> object:
        """Record an event on the engine's stream."""
        if self._store_stream is None:
            return None
        return torch.cuda.current_stream(self._device).record_event()

    def _staged(self, staging: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield each layer with its rows ``[blocks_per_chunk, page words]`` of the staging tensor."""
        at = 0
        for layer in self._layers:
            words = self._blocks_per_chunk * layer.shape[1]
            yield layer, staging[at : at + words].view(self._blocks_per_chunk, layer.shape[1])
            at += words

    def _new_stream(self) -> "torch.cuda.Stream | None":
        return torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    @staticmethod
    def _wait(stream: "torch.cuda.Stream | None") -> None:
        if stream is not None:
            stream.synchronize()


def copier_for(layers: Sequence[torch.Tensor], blocks_per_chunk: int) -> ChunkCopier:
    """Return the copier for where the KV lies."""
    kind = HostCopier if layers[0].device.type == "cpu" else DeviceCopier
    return kind(layers, blocks_per_chunk)


def runs(extents: Sequence[torch.Tensor], start: int, length: int) -> Iterator[torch.Tensor]:
    """Yield the pieces of ``[start, start + length)``, in words, of a run that is cut into extents."""
    for extent in extents:
        size = extent.shape[0]
        if start < size:
            taken = min(length, size - start)
            yield extent[start : start + taken]
            length -= taken
            start = 0
            if not length:
                return
        else:
            start -= size
