"""The interface of a source of endpoints, and who follows several of them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from tierline.duties import Duties
from tierline.router.specs import EndpointSpec


class Source(Protocol):
    """Says which endpoints are wanted."""

    name: str
    """As :attr:`Endpoint.source` has it."""

    def wanted_sets(self) -> AsyncIterator[Sequence[EndpointSpec]]:
        """Yield all that is wanted, the first time at once and then whenever it has changed.

        What cannot be used is dealt with inside: the last set stays in force.
        """


class Set(Protocol):
    """Is brought to what sources want."""

    def follow(self, source: str, specs: Sequence[EndpointSpec], *, from_start: bool = False) -> None:
        """Take over all that ``source`` wants; ``from_start``: it is what it wanted before this program began."""


class Discovery:
    """Keeps a set of endpoints as its sources want it, from :meth:`start` to :meth:`stop`."""

    def __init__(self, sources: Sequence[Source], endpoints: Set, duties: Duties) -> None:
        self._duties = duties
        self._sources = sources
        self._endpoints = endpoints
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Have each source's first set in force, and follow them from now on."""
        for source in self._sources:
            sets = source.wanted_sets()
            self._endpoints.follow(source.name, await anext(sets), from_start=True)
            self._tasks.append(asyncio.create_task(self._follow(source.name, sets)))

    async def stop(self) -> None:
        """Follow them no more; the endpoints stay."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, name: str, sets: AsyncIterator[Sequence[EndpointSpec]]) -> None:
        async for specs in sets:
            with self._duties.guarded("discovery"):
                self._endpoints.follow(name, specs)
