"""The connector of LMCache's in-process mode.

Rules: a lookup is one lease for all its keys, and what it found stays leased until it is read, or for
:data:`HOLD_S`: LMCache reads milliseconds after it looked, and takes an object that is gone by then for a sick store.
Coroutines run on LMCache's loop; none waits for a thread that waits for the loop.
"""

# ruff: noqa: ARG002  (LMCache's interface has arguments that are of no use here)

import asyncio
import struct
from collections.abc import Sequence
from typing import Any

from lmcache.utils import CacheEngineKey
from lmcache.v1.memory_management import MemoryObj
from lmcache.v1.protocol import RemoteMetadata
from lmcache.v1.storage_backend.connector.base_connector import RemoteConnector

from tierline.connectors.lmcache.nodes import Grip, Nodes
from tierline.connectors.lmcache.settings import Settings

HOLD_S = 10.0
"""How long what a lookup found is held for the read that follows, unless the lease ends before."""

HELD_OBJECTS = 4096
"""Objects held for reads at once; beyond it the oldest are given back, and read under a lease of their own."""


class SageMakerHyperPodConnector(RemoteConnector):  # type: ignore[misc]  # LMCache is not typed for us
    """LMCache's view of the node stores.

    Invariant: ``_held`` has a grip for each object that a lookup found and nobody has read since.

    Parameters
    ----------
    settings
        Which node stores, and how they are used.
    loop
        LMCache's loop; runs elsewhere or not yet.
    local_cpu_backend
        Where what is read gets its memory.
    config, metadata
        LMCache's.
    """

    def __init__(
        self,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
        local_cpu_backend: Any,
        config: Any,
        metadata: Any,
    ) -> None:
        super().__init__(config, metadata)
        self.settings = settings
        self.loop = loop
        self._local_cpu_backend = local_cpu_backend
        self._header_bytes = self.remote_metadata_bytes if self.save_chunk_meta else 0
        self._made: Nodes | None = None
        self._held: dict[str, Grip] = {}
        loop.call_soon_threadsafe(self._nodes)

    # Lookups ------------------------------------------------------------------------------------------------------

    async def exists(self, key: CacheEngineKey) -> bool:
        """Say whether an object is there."""
        return await self._count_leading([key.to_string()]) == 1

    def exists_sync(self, key: CacheEngineKey) -> bool:
        """Say whether an object is there; not to be called on the loop's thread."""
        return self.batched_contains([key]) == 1

    def support_batched_contains(self) -> bool:
        """Return True: a lookup of many keys costs what one costs."""
        return True

    def batched_contains(self, keys: list[CacheEngineKey]) -> int:
        """Return how many of the leading keys are there; not to be called on the loop's thread."""
        counting = asyncio.run_coroutine_threadsafe(self.batched_async_contains("", keys), self.loop)
        return counting.result()

    def support_batched_async_contains(self) -> bool:
        """Return True."""
        return True

    async def batched_async_contains(
        self,
        lookup_id: str,
        keys: list[CacheEngineKey],
        pin: bool = False,
    ) -> int:
        """Return how many of the leading keys are there."""
        return await self._count_leading([key.to_string() for key in keys])

    # Reads --------------------------------------------------------------------------------------------------------

    async def get(self, key: CacheEngineKey) -> MemoryObj | None:
        """Read an object into memory of the local CPU backend; ``None`` is a miss."""
        [memory] = await self.batched_get([key])
        return memory

    def support_batched_get(self) -> bool:
        """Return True: what no lookup holds costs one lease together."""
        return True

    async def batched_get(self, keys: list[CacheEngineKey]) -> list[MemoryObj | None]:
        """Read objects, side by side; ``None`` for each miss."""
        names = [key.to_string() for key in keys]
        grips = {place: self._held.pop(name) for place, name in enumerate(names) if name in self._held}
        reads: dict[int, asyncio.Task[MemoryObj | None]] = {}
        try:
            missing = [place for place in range(len(names)) if place not in grips]
            if missing:
                found = await self._nodes().find([names[place] for place in missing], across_gaps=True)
                grips.update({missing[place]: grip for place, grip in found.items()})
            reads = {place: asyncio.create_task(self._read(grip)) for place, grip in grips.items()}
            await asyncio.gather(*reads.values())
        except BaseException:
            for read in reads.values():
                read.cancel()
            for memory in await asyncio.gather(*reads.values(), return_exceptions=True):
                if isinstance(memory, MemoryObj):
                    memory.ref_count_down()
            raise
        finally:
            self._nodes().let_go(grips.values())
        return [reads[place].result() if place in reads else None for place in range(len(names))]

    def support_batched_get_non_blocking(self) -> bool:
        """Return True."""
        return True

    async def batched_get_non_blocking(self, lookup_id: str, keys: list[CacheEngineKey]) -> list[MemoryObj]:
        """Read objects; returns those before the first miss."""
        memories = await self.batched_get(keys)
        run = next((place for place, memory in enumerate(memories) if memory is None), len(memories))
        for memory in memories[run:]:
            if memory is not None:
                memory.ref_count_down()
        return memories[:run]

    # Writes -------------------------------------------------------------------------------------------------------

    async def put(self, key: CacheEngineKey, memory_obj: MemoryObj) -> None:
        """Store an object, unless it is there."""
        await self.batched_put([key], [memory_obj])

    def support_batched_put(self) -> bool:
        """Return True."""
        return True

    async def batched_put(self, keys: list[CacheEngineKey], memory_objs: list[MemoryObj]) -> None:
        """Store objects, unless they are there."""
        names = [key.to_string() for key in keys]
        await self._nodes().write(names, [self._parts(memory) for memory in memory_objs])

    # The rest -----------------------------------------------------------------------------------------------------

    def remove_sync(self, key: CacheEngineKey) -> bool:
        """Do nothing: a node store decides by itself what goes."""
        return True

    @property
    def stats(self) -> dict[str, int]:
        """What happened since the start."""
        return vars(self._made.counts).copy() if self._made is not None else {}

    async def close(self) -> None:
        """Give back what is held, and end the connections."""
        nodes = self._nodes()
        nodes.let_go(self._held.values())
        self._held.clear()
        await nodes.close()

    def _nodes(self) -> Nodes:
        """Return the node stores; made on the loop."""
        if self._made is None:
            self._made = Nodes(self.settings)
        return self._made

    async def _count_leading(self, names: Sequence[str]) -> int:
        grips = await self._nodes().find(names, across_gaps=False)
        replaced = [grip for name in names if (grip := self._held.pop(name, None)) is not None]
        kept = {names[place]: grip for place, grip in grips.items()}
        self._held.update(kept)
        excess = list(self._held)[: max(len(self._held) - HELD_OBJECTS, 0)]
        self._nodes().let_go([*replaced, *(self._held.pop(name) for name in excess)])
        self.loop.call_later(min(HOLD_S, self.settings.lease_ttl_s), self._end_hold, kept)
        return len(grips)

    def _end_hold(self, kept: dict[str, Grip]) -> None:
        ended = [name for name, grip in kept.items() if self._held.get(name) is grip]
        self._nodes().let_go([self._held.pop(name) for name in ended])

    async def _read(self, grip: Grip) -> MemoryObj | None:
        memory: MemoryObj | None = None

        def prepare(header: bytes) -> memoryview | None:
            nonlocal memory
            memory = self._allocate(header, grip.found.size - len(header))
            return None if memory is None else _bytes_of(memory)

        is_read = False
        try:
            is_read = await self._nodes().read(grip, self._header_bytes, prepare)
        finally:
            if not is_read and memory is not None:
                memory.ref_count_down()
        return memory if is_read else None

    def _allocate(self, header: bytes, size: int) -> MemoryObj | None:
        """Return memory for an object's payload of ``size`` bytes; ``None`` where it is not what is expected."""
        if self.save_chunk_meta:
            try:
                metadata = RemoteMetadata.deserialize(header)
            except (ValueError, KeyError, ArithmeticError, struct.error):  # written without a header
                return None
            if metadata.length != size:
                return None
            return self._local_cpu_backend.allocate(metadata.shapes, metadata.dtypes, metadata.fmt)
        if size % self.single_token_size or not 0 < size <= self.full_chunk_size_bytes:
            return None
        memory = self._local_cpu_backend.allocate(self.meta_shapes, self.meta_dtypes, self.meta_fmt)
        return None if memory is None else self.reshape_partial_chunk(memory, size)

    def _parts(self, memory: MemoryObj) -> list[memoryview]:
        payload = _bytes_of(memory)
        if not self.save_chunk_meta:
            return [payload]
        shapes, dtypes = memory.get_shapes(), memory.get_dtypes()
        header = RemoteMetadata(payload.nbytes, shapes, dtypes, memory.get_memory_format()).serialize()
        return [memoryview(header), payload]

    async def list(self) -> Sequence[str]:
        """Return nothing: what is in a node store is not LMCache's to list."""
        return []


def _bytes_of(memory: MemoryObj) -> memoryview:
    return memoryview(memory.byte_array).cast("B")
