"""The longest leading run of stored objects under one lease, gathered in slices; both protocols lease prefixes so.

The rule inside: **the lease holds exactly the objects gathered**; whoever gives up midway has one id to release.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import repeat
from math import inf

from tierline import logs
from tierline.errors import WireError
from tierline.loading import PrefillCost
from tierline.node.service import NodeService, Verdict
from tierline.store import Leased, ObjectKey
from tierline.tracing.context import NOWHERE, Origin, current, working_for
from tierline.tracing.spans import Attributes, bucket_digest
from tierline.tracing.tracer import OpenSpan

log = logs.get(__name__)
_logger = logging.getLogger(__name__)

KEYS_PER_STEP = 64
MOST_SOUGHT = 8192
"""Objects that tiers are asked for at once."""
MAX_WAIT_S = 60.0
"""A longer wait is cut to this, and to half the longest time to live: what was leased before it must outlive it."""

_key: Callable[[tuple[str, str]], ObjectKey] = partial(tuple.__new__, ObjectKey)
"""As ``ObjectKey._make``, at a third of the cost: it has no frame of its own."""


class PrefixRun:
    """One prefix lease while it is being made.

    Parameters
    ----------
    service
        The store and its waiters.
    holder, payer
        Whom the lease belongs to, and whose share of all leases it takes; empty: the holder's.
    bucket, names
        Objects in order, first block first.
    ttl_s
        Wished time to live; cut to the longest allowed.
    group_size
        The run ends before the first group of so many names that is not complete.
    max_extents
        The run ends where it has more, so that its reply is not too long.
    across_gaps
        Go on behind groups that are not complete; ``places`` says what was there, and nothing is waited for.
    anchor
        As in :class:`tierline.wire.messages.PrefixLease`: for a run that ends at what is not here.
    prefill
        What computing a group takes.
    verifies_later
        Adopted objects are verified when there is time, for a reader who verifies anyway; else see
        :meth:`keep_verified`.

    Raises
    ------
    WireError
        The names are no whole groups.
    TooManyLeases
        The holder has as many leases as it may.
    """

    __slots__ = (
        "_across_gaps",
        "_anchor",
        "_bucket",
        "_extents_left",
        "_group_size",
        "_has_sought",
        "_is_cut",
        "_names",
        "_next",
        "_origin",
        "_prefill",
        "_service",
        "_since",
        "_slice",
        "_span",
        "_store",
        "_verifies_later",
        "granted_s",
        "lease",
        "objects",
        "places",
    )

    def __init__(
        self,
        service: NodeService,
        holder: str,
        bucket: str,
        names: Sequence[str],
        *,
        ttl_s: float,
        group_size: int,
        max_extents: int,
        across_gaps: bool = False,
        payer: str = "",
        verifies_later: bool = True,
        anchor: str = "",
        prefill: PrefillCost | None = None,
    ) -> None:
        if len(names) % group_size:
            raise WireError(f"{len(names)} names in groups of {group_size}; allowed: a multiple")
        self._service = service
        self._store = service.store
        self._bucket = bucket
        self._names = names
        self._group_size = group_size
        self._across_gaps = across_gaps
        self._anchor = anchor
        self._prefill = prefill
        self._has_sought = False
        self._since = inf if service.below is None else asyncio.get_running_loop().time()
        self._extents_left = max_extents
        self._is_cut = False
        self._verifies_later = verifies_later
        self._next = 0
        self._slice = max(KEYS_PER_STEP // group_size, 1) * group_size
        self.granted_s = min(ttl_s, self._store.limits.max_ttl_s)
        """Time to live of the lease."""
        self.lease = self._store.open_lease(holder, self.granted_s, payer=payer)
        self.objects: list[Leased] = []
        self.places: list[int] = []
        """Across gaps: the index of each object's name."""
        self._origin = origin = current()
        self._span: OpenSpan | None = None
        if service.tracer is not None and (span := service.tracer.open("prefix lease", "server", origin.trace)):
            self._span = span
            self._origin = Origin(origin.request_id, span.context)

    def gather(self) -> bool:
        """Gather the next few objects; returns whether to go on, once others have had their turn."""
        start, end = self._next, min(self._next + self._slice, len(self._names))
        if self._across_gaps:
            for place in range(start, end, self._group_size):
                found = self._lease(place, place + self._group_size)
                self.places.extend(range(place, place + found))
                if self._is_cut:
                    return False
        elif start == end or self._lease(start, end) < end - start or self._is_cut:
            return False
        self._next = end
        return end < len(self._names)

    def _lease(self, start: int, end: int) -> int:
        """Lease the longest leading run of these names; returns how many."""
        keys = list(map(_key, zip(repeat(self._bucket), self._names[start:end], strict=False)))
        found = self._store.extend_lease(self.lease, keys, self._group_size)
        self.objects += found
        for leased in found:
            self._extents_left -= len(leased.extents)
            if not leased.is_verified and self._verifies_later:
                self._service.verify_later(leased)
        self._is_cut = self._extents_left < 0
        return len(found)

    def awaits(self) -> bool:
        """Whether the run ended at objects that are being written, or at some that may be below, and could go on."""
        return self._awaited() is not None or self._could_be_below()

    def seek_ahead(self) -> None:
        """Have fetched what is missing, for the next who asks."""
        if self._service.below is not None and self._lacks_some() and self._awaited() is None:
            with working_for(self._origin):
                self._service.below.seek_ahead(
                    self._missing(),
                    self._anchor,
                    group_size=self._group_size,
                    prefill=self._prefill,
                    start=len(self.objects) // self._group_size,
                )

    def sources(self) -> dict[str, int]:
        """Count the objects of the run that were brought from below for it, or meanwhile, by who brought them."""
        below = self._service.below
        return {} if below is None else below.sources(self.objects, self._since)

    async def extend(self, wait_s: float) -> None:
        """Wait for the objects at which the run ended, ``wait_s`` in all, and go on with them.

        Such as are being written; and, once in a run, such as the tiers below have.
        """
        max_ttl_s = self._store.limits.max_ttl_s
        loop = asyncio.get_running_loop()
        end = loop.time() + min(MAX_WAIT_S, max_ttl_s / 2, wait_s)
        while True:
            self._next = len(self.objects)  # also the first time: the commit may have come before this task
            while not self._is_cut and self.gather():  # noqa: ASYNC110
                await asyncio.sleep(0)
            if (key := self._awaited()) is None:
                if self._could_be_below() and await self._seek(end - loop.time()):
                    continue
                break
            self._store.renew(self.lease, max_ttl_s)
            if not await self._service.committed(key, end - loop.time()):
                break
        self._store.renew(self.lease, self.granted_s)

    async def keep_verified(self, wait_s: float) -> None:
        """Compare adopted objects with their checksums, ``wait_s`` in all; the run ends before the first that fails.

        Across gaps only the group goes that has it. Raises ``UnknownLease`` where the lease has ended meanwhile.
        """
        max_ttl_s = self._store.limits.max_ttl_s
        loop = asyncio.get_running_loop()
        end = loop.time() + min(MAX_WAIT_S, max_ttl_s / 2, wait_s)
        unsound: set[int] = set()
        for index, leased in enumerate(self.objects):
            group = index - index % self._group_size
            if leased.is_verified or group in unsound:
                continue
            self._store.renew(self.lease, max_ttl_s)
            if await self._service.verify_within(leased, end - loop.time()) is Verdict.MATCH:
                continue
            if not self._across_gaps:
                self._store.release(self.lease, group)
                del self.objects[group:]
                break
            self._store.release(self.lease, group, group + self._group_size)
            unsound.add(group)
        for group in sorted(unsound, reverse=True):
            del self.objects[group : group + self._group_size]
            del self.places[group : group + self._group_size]
        if self.objects:
            self._store.renew(self.lease, self.granted_s)

    def finish(self) -> str:
        """Return the lease's id; a lease on nothing is released, and its id empty."""
        if self._origin is not NOWHERE:
            self._tell()
        if not self.objects:
            self.release()
            return ""
        if self._service.below is not None:
            with working_for(self._origin) if self._origin.is_traced else nullcontext():
                self._service.below.used(self.objects)
        return self.lease

    def release(self) -> None:
        """Give up: release what was gathered."""
        self._store.release(self.lease)

    def _tell(self) -> None:
        """Say for which request this was, where anybody listens."""
        if self._span is not None:
            attributes: Attributes = {
                "tierline.bucket_digest": bucket_digest(self._bucket),
                "tierline.asked_objects": len(self._names),
                "tierline.blocks": len(self.objects) // self._group_size,
                "tierline.bytes": sum(leased.size for leased in self.objects),
            }
            for source, count in self.sources().items():
                attributes[f"tierline.from.{source}"] = count
            self._span.end(attributes)
            self._span = None
        if self._origin.request_id and _logger.isEnabledFor(logging.DEBUG):
            log.debug(
                "prefix leased",
                request_id=self._origin.request_id,
                asked=len(self._names),
                found=len(self.objects),
                sources=self.sources(),
            )

    def _could_be_below(self) -> bool:
        """Whether tiers could have what is missing; they are asked once in a run, and not across gaps."""
        has_tiers = self._service.below is not None and not self._has_sought
        return has_tiers and not self._across_gaps and self._lacks_some()

    def _lacks_some(self) -> bool:
        return not self._is_cut and len(self.objects) < len(self._names)

    def _missing(self) -> list[ObjectKey]:
        names = self._names[len(self.objects) :]
        if self._across_gaps:
            are_there = set(self.places)
            names = [name for place, name in enumerate(self._names) if place not in are_there]
        most = max(MOST_SOUGHT // self._group_size, 1) * self._group_size
        return [ObjectKey(self._bucket, name) for name in names[:most]]

    async def _seek(self, within_s: float) -> bool:
        """Ask the tiers for what is missing; returns whether to look again."""
        below = self._service.below
        assert below is not None, "somebody looked before"
        self._has_sought = True
        self._store.renew(self.lease, self._store.limits.max_ttl_s)
        with working_for(self._origin):
            sought = await below.seek(
                self._missing(),
                self._anchor,
                group_size=self._group_size,
                within_s=within_s,
                prefill=self._prefill,
                start=len(self.objects) // self._group_size,
            )
        return sought == "coming"

    def _awaited(self) -> ObjectKey | None:
        """Return the first key of the next group that is being written, if none of the group is missing for good."""
        start = len(self.objects)
        awaited: ObjectKey | None = None
        for name in () if self._is_cut or self._across_gaps else self._names[start : start + self._group_size]:
            key = ObjectKey(self._bucket, name)
            if self._store.is_being_written(key):
                awaited = awaited or key
            elif not self._store.is_stored(key):
                return None
        return awaited
