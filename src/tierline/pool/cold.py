"""A cold tier: what a depot keeps, with an index of it in memory, a filter before what is written, and a byte budget.

Rules: the index answers lookups, so that they cost the depot nothing; a depot may have lost what the index says, and
then it is a miss and forgotten. A depot's calls block, and are made in threads.
"""

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from itertools import islice
from typing import NamedTuple, Protocol, Self

from tierline.breaker import Breaker
from tierline.errors import TierlineError
from tierline.loading import Speed
from tierline.pool.coldindex import ColdIndex, Held
from tierline.pool.failures import Failures
from tierline.pool.local import Offered
from tierline.pool.tier import Arrival, Found, Kept, Wanted
from tierline.pool.transfers import Batch, Transfers, leading, seconds_for, timed
from tierline.pool.urls import TierUrl, byte_size, whole
from tierline.store import ObjectKey

FULL_PAUSE_S = 30.0
"""How long nothing is written to a depot that had no room."""

_MIB = 1024 * 1024
_MOST_BYTES = 2**60
_LISTED_AT_ONCE = 1000
_LISTED_AGAIN_S = 5.0


class NotThere(TierlineError):  # noqa: N818
    """The depot does not hold an object, or not whole; what was left of it is removed."""


class DepotFull(TierlineError):  # noqa: N818
    """The depot has no room for an object."""


class DepotFault(TierlineError):  # noqa: N818
    """The depot does not do what it is asked for; says why."""


class Depot(Protocol):
    """Where a cold tier's objects lie. All of it blocks, is called from several threads, and raises what is above."""

    def takes(self, key: ObjectKey) -> bool:
        """Whether an object of this key can be written at all."""

    def listed(self, passed_over: Callable[[object], None]) -> Iterator[tuple[ObjectKey, Held]]:
        """Yield what is there, the latest used first where that is known; what is torn is removed.

        ``passed_over`` is told of each thing that can neither be read nor removed; the rest is listed all the same.
        """

    def read(self, key: ObjectKey, held: Held, views: Sequence[memoryview], go_on: Callable[[], None]) -> int:
        """Read an object into pages and return its checksum, which has been compared; calls ``go_on`` now and then."""

    def write(self, kept: Kept) -> None:
        """Write an object, whole or not at all."""

    def remove(self, key: ObjectKey, held: Held) -> None:
        """Remove an object; one that is not there is no error."""


class ColdSettings(NamedTuple):
    """How a cold tier is used.

    Parameters
    ----------
    budget
        Bytes of all objects together; ``None`` for no bound of ours.
    least_uses
        An object is written when it is offered for the so many-th time.
    streams
        Objects that are read at once, and again written.
    list_every_s
        How often the depot is asked anew what it holds, for others may write to it; 0: at the start only.
    warm_bytes
        What a node that starts empty fetches from here; ``None``: half of its memory.
    warm_bytes_per_s
        How fast it does.
    """

    budget: int | None
    least_uses: int
    streams: int
    list_every_s: float
    warm_bytes: int | None
    warm_bytes_per_s: int

    @classmethod
    def from_url(cls, url: TierUrl, *, streams: int, list_every_s: float = 0.0) -> Self:
        """Take from a URL what all cold tiers understand.

        Raises
        ------
        ConfigurationError
            An option is not allowed.
        """
        return cls(
            budget=url.take("budget", byte_size(_MIB, _MOST_BYTES), None),
            least_uses=url.take("uses", whole(1, 15), 2),
            streams=url.take("streams", whole(1, 64), streams),
            list_every_s=list_every_s,
            warm_bytes=url.take("warm", byte_size(0, _MOST_BYTES), None),
            warm_bytes_per_s=url.take("warm-rate", byte_size(_MIB, _MOST_BYTES), 100 * _MIB),
        )


class ColdTier:
    """A tier on a depot.

    Attributes
    ----------
    name
        As the depot's kind is called.
    settings
        How it is used.
    failures
        What has gone wrong, by reason: ``gone``, ``full``, ``fault``, ``passed over``.
    """

    def __init__(
        self,
        name: str,
        shown: str,
        depot: Depot,
        settings: ColdSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.failures = Failures(shown, clock)
        self._depot = depot
        self.settings = settings
        self._clock = clock
        self._index = ColdIndex(settings.budget, settings.least_uses)
        self._breaker = Breaker(clock)
        self._speed = Speed(clock)
        self._reads = Transfers(f"{name}-read", settings.streams)
        self._writes = Transfers(f"{name}-write", settings.streams)
        self._lists = Transfers(f"{name}-list", 1)
        self._full_until = float("-inf")
        self._is_listed = asyncio.Event()
        self._listing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to list what is there; until that is done, what is not listed yet is missing."""
        self._listing = asyncio.create_task(self._keep_listing())

    async def stop(self) -> None:
        """End what is under way."""
        if self._listing is not None:
            self._listing.cancel()
            with suppress(asyncio.CancelledError):
                await self._listing
        for transfers in (self._reads, self._writes, self._lists):
            await transfers.stop()

    async def exists(
        self,
        keys: Sequence[ObjectKey],
        anchor: int | None,  # noqa: ARG002  (of the interface; what is where is in memory)
        within_s: float,  # noqa: ARG002  (it takes no time)
        group_size: int = 1,
    ) -> Sequence[Found]:
        """Return what the index knows of the leading run."""
        held = [self._index.get(key) for key in keys]
        run = leading([None if each is None else Found(each.size, each) for each in held], group_size)
        return run if run and self._breaker.allows() else []

    def seconds(self, found: Sequence[Found]) -> float | None:
        """Return how long fetching these would take, by what was observed."""
        return seconds_for(found, self._speed)

    def fetch_into(self, wanted: Sequence[Wanted]) -> AsyncGenerator[Arrival, None]:
        """Fetch objects, begun in their order."""
        return timed(self._fetch(wanted), wanted, self._speed)

    async def store_from(self, kept: Sequence[Kept]) -> Sequence[bool]:
        """Store those that are wanted often enough, and remove colder ones for them; the others are not stored."""
        stored = [each.key in self._index for each in kept]
        self._index.use([each.key for each, is_there in zip(kept, stored, strict=True) if is_there])
        if self._clock() < self._full_until or not self._breaker.allows():
            return stored
        admitted: dict[int, _Write] = {}
        for number, each in enumerate(kept):
            if stored[number] or not self._depot.takes(each.key):
                continue
            if (leaving := self._index.admit(each.key, each.size)) is not None:
                admitted[number] = _Write(number, each, leaving)
        try:
            jobs = [functools.partial(self._write, write) for write in admitted.values()]
            async with aclosing(self._writes.carry(jobs)) as written:
                async for number in written:
                    each = admitted.pop(number).kept
                    self._index.add(each.key, Held(each.size, each.slot))
                    stored[number] = True
        finally:
            for write in admitted.values():
                self._index.give_up(write.kept.size)
                for key, held in write.leaving:  # which may be there still
                    self._index.found(key, held)
        return stored

    async def delete(self, keys: Sequence[ObjectKey]) -> None:
        """Remove objects."""
        await self._remove([(key, held) for key in keys if (held := self._index.get(key)) is not None])

    async def warmest(self, limit_bytes: int) -> Sequence[Offered]:
        """Return what a node that starts empty would have of use, best first; waits until all is listed."""
        await self._is_listed.wait()
        return [Offered(key, held.slot, Found(held.size, held)) for key, held in self._index.warmest(limit_bytes)]

    async def _fetch(self, wanted: Sequence[Wanted]) -> AsyncGenerator[Arrival, None]:
        jobs = [functools.partial(self._read, index, each) for index, each in enumerate(wanted)]
        came: list[ObjectKey] = []
        try:
            async with aclosing(self._reads.carry(jobs)) as arrivals:
                async for arrival, is_there in arrivals:
                    key = wanted[arrival.index].key
                    if not is_there:
                        self._index.remove(key)
                    elif arrival.checksum is not None:
                        came.append(key)
                    yield arrival
        finally:
            self._index.use(came)

    def _read(self, index: int, wanted: Wanted, batch: Batch[tuple[Arrival, bool]]) -> None:
        held = wanted.found.place
        assert isinstance(held, Held)
        checksum, is_there = None, True
        try:
            checksum = self._depot.read(wanted.key, held, wanted.views, batch.go_on)
            self._breaker.succeeded()
        except NotThere as missing:
            self.failures.note("gone", missing)
            is_there = False
        except DepotFault as fault:
            self._note(fault)
        batch.tell((Arrival(index, checksum, ""), is_there))

    def _write(self, write: "_Write", batch: Batch[int]) -> None:
        try:
            for key, held in write.leaving:
                self._depot.remove(key, held)
            self._depot.write(write.kept)
            self._breaker.succeeded()
        except DepotFull as full:
            self._full_until = self._clock() + FULL_PAUSE_S
            self.failures.note("full", full)
        except DepotFault as fault:
            self._note(fault)
        else:
            batch.tell(write.number)

    async def _remove(self, leaving: Sequence[tuple[ObjectKey, Held]]) -> None:
        for key, _ in leaving:
            self._index.remove(key)

        def remove(batch: Batch[None]) -> None:
            try:
                for key, held in leaving:
                    batch.go_on()
                    self._depot.remove(key, held)
            except DepotFault as fault:
                self._note(fault)

        async with aclosing(self._writes.carry([remove])) as ended:
            async for _ in ended:
                pass

    async def _keep_listing(self) -> None:
        """List what is there, and again every so often where that is wished."""
        while True:
            known = self._index.known()
            is_whole = False
            async with aclosing(self._lists.carry([self._list])) as pages:
                async for page in pages:
                    is_whole |= not page
                    for key, held in page:
                        known.discard(key)
                        self._index.found(key, held)
            if is_whole:
                for key in known:  # somebody else has removed them
                    self._index.remove(key)
                await self._remove(self._index.excess())
                self._is_listed.set()
                if not self.settings.list_every_s:
                    return
            await asyncio.sleep(self.settings.list_every_s if is_whole else _LISTED_AGAIN_S)

    def _list(self, batch: Batch[Sequence[tuple[ObjectKey, Held]]]) -> None:
        """Tell what is there in pages; an empty one is the end."""
        listed = self._depot.listed(functools.partial(self.failures.note, "passed over"))
        try:
            while page := list(islice(listed, _LISTED_AT_ONCE)):
                batch.go_on()
                batch.tell(page)
        except DepotFault as fault:
            self._note(fault)
        else:
            batch.tell([])

    def _note(self, fault: DepotFault) -> None:
        self._breaker.failed()
        self.failures.note("fault", fault)


class _Write(NamedTuple):
    """An object to write, and what leaves for it."""

    number: int
    kept: Kept
    leaving: Sequence[tuple[ObjectKey, Held]]
