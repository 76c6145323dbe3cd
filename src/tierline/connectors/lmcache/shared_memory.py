"""The way to a node store on this machine: its UNIX socket and its segment. No byte of an object crosses a socket.

Rule: memory that LMCache lent is not touched after a call has ended. A copy that runs in a thread when its caller is
cancelled is waited for, so is every copy before the connection ends: the node takes that as our word that nobody
writes into slots.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Self

from tierline.client import AsyncNodeClient, CommitEntry, Extent, Leased, Refusal, Slot, copying
from tierline.connectors.lmcache.settings import Settings
from tierline.connectors.lmcache.ways import Found, Holding, Prepare, Written
from tierline.errors import WireError


class SharedMemoryWay:
    """One connection over the UNIX socket; made by :meth:`connect`.

    Invariant: ``_copies`` are the copies that run; each belongs to a call that has not ended.
    """

    def __init__(self, client: AsyncNodeClient, settings: Settings, executor: Executor) -> None:
        self._client = client
        self._settings = settings
        self._executor = executor
        self._copies: set[asyncio.Future[int]] = set()

    @classmethod
    async def connect(cls, path: str, client: str, settings: Settings, executor: Executor) -> Self:
        """Connect as ``client``, for reading and writing.

        Raises
        ------
        NodeUnavailable, AccessDenied, WireError, SegmentError
            Nobody answers, or the node does not want us, or its segment cannot be mapped.
        """
        node = await AsyncNodeClient.connect(
            path,
            client=client,
            writer=True,
            timeout_s=settings.lookup_timeout_ms / 1000,
            token=settings.token,
            bucket=settings.bucket,
        )
        return cls(node, settings, executor)

    @property
    def epoch(self) -> int:
        """Which start of the node this is."""
        return self._client.epoch

    @property
    def is_open(self) -> bool:
        """False once the node is gone."""
        return self._client.is_connected

    async def find(self, names: Sequence[str], *, across_gaps: bool) -> Holding:
        """One prefix lease, whatever the number of names; where the node has tiers, it waits for what they bring.

        A node waits for leading runs alone, so a row with gaps takes two leases there, the first until the second.
        """
        asked = asyncio.get_running_loop().time()
        run: Leased | None = None
        if self._client.has_tiers or not across_gaps:
            wait_s = self._settings.tiers_wait_s if self._client.has_tiers else 0.0
            run = await self._lease(names, across_gaps=False, wait_s=wait_s)
        if run is not None and (len(run.objects) == len(names) or not across_gaps):
            leased, places = run, list(range(len(run.objects)))
        else:
            try:
                leased = await self._lease(names, across_gaps=True)
            finally:
                if run is not None and run.lease and self.is_open:
                    await self._client.release(run.lease)
            places = list(leased.places)
        found = {
            place: Found(names[place], item.size, item.checksum, item.extents)
            for place, item in zip(places, leased.objects, strict=True)
        }
        return Holding(self, found, leased.lease, asked + leased.ttl_s, sources=leased.sources)

    async def read(self, found: Found, header_bytes: int, prepare: Prepare) -> bool:
        """Copy out of the segment in a thread; what arrived is summed."""
        if sum(extent.length for extent in found.extents) != found.size:
            raise WireError(f"extents {found.extents} do not add up to {found.size} bytes")
        sources = self._client.mapping.views(found.extents)
        header = bytearray(min(header_bytes, found.size))
        copying.copy_into([memoryview(header)], _leading(sources, len(header)))
        seen = bytes(header)
        destination = prepare(seen)
        if destination is None or len(header) + destination.nbytes != found.size:
            return False
        destinations = [memoryview(header), destination]
        checksum = await self._copy(lambda: copying.copy_and_sum(destinations, sources, sum_destination=True))
        if checksum != found.checksum or header != seen:
            await self._client.suspect(self._settings.bucket, found.name)
            return False
        return True

    async def _lease(self, names: Sequence[str], *, across_gaps: bool, wait_s: float = 0.0) -> Leased:
        bucket, ttl_s = self._settings.bucket, self._settings.lease_ttl_s
        return await self._client.prefix_lease(bucket, names, ttl_s, across_gaps=across_gaps, wait_s=wait_s)

    async def release(self, holding: Holding) -> None:
        """Give the lease back."""
        if holding.lease and self.is_open:
            await self._client.release(holding.lease)

    async def write(self, names: Sequence[str], contents: Sequence[Sequence[memoryview]]) -> list[Written]:
        """Reserve, copy in a thread, commit with the sum; a slot that is not committed is aborted, whatever happens."""
        sizes = [sum(part.nbytes for part in parts) for parts in contents]
        outcomes = await self._client.reserve(self._settings.bucket, names, sizes)
        written = [_of_refusal(outcome) for outcome in outcomes]
        slots = {place: outcome for place, outcome in enumerate(outcomes) if isinstance(outcome, Slot)}
        open_slots = {slot.slot for slot in slots.values()}
        try:
            entries = []
            for place, slot in slots.items():
                checksum = await self._fill(slot.extents, contents[place])
                entries.append(CommitEntry(slot.slot, names[place], sizes[place], checksum))
            refusals = await self._client.commit(self._settings.bucket, entries) if entries else []
            for place, entry, refusal in zip(slots, entries, refusals, strict=True):
                written[place] = Written.STORED if refusal is None else _of_refusal(refusal)
                if refusal is None:
                    open_slots.remove(entry.slot)
        finally:
            if open_slots and self.is_open:
                await self._client.abort(sorted(open_slots))
        return written

    async def close(self) -> None:
        """Wait for the copies, then end the connection."""
        if self._copies:
            await asyncio.wait(self._copies)
        await self._client.close()

    async def _fill(self, extents: Sequence[Extent], parts: Sequence[memoryview]) -> int:
        size = sum(part.nbytes for part in parts)
        destinations = _leading(self._client.mapping.views(extents), size)
        return await self._copy(lambda: copying.copy_and_sum(destinations, parts))

    async def _copy(self, copy: Callable[[], int]) -> int:
        """Run a copy in a thread; cancelled, return only when it has ended."""
        running = asyncio.get_running_loop().run_in_executor(self._executor, copy)
        self._copies.add(running)
        running.add_done_callback(self._copies.discard)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise


def _of_refusal(outcome: Slot | Refusal) -> Written:
    return Written.ALREADY_THERE if outcome in (Refusal.EXISTS, Refusal.BEING_WRITTEN) else Written.REFUSED


def _leading(views: Sequence[memoryview], size: int) -> list[memoryview]:
    leading = []
    for view in views:
        leading.append(view[:size])
        size -= leading[-1].nbytes
        if not size:
            break
    return leading
