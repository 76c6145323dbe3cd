"""The interface of a way to a node store, and what a lookup brings back; one implementation a module.

Rule: a way raises what went wrong (:class:`~tierline.errors.TierlineError`, ``OSError``, aiohttp's errors); whoever
uses it turns that into a miss.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol, TypeAlias

from tierline.wire.messages import Extent

Prepare: TypeAlias = Callable[[bytes], memoryview | None]
"""Given an object's first bytes, returns where the rest goes; ``None`` does not want it."""


class Written(Enum):
    """What became of an object that was to be stored."""

    STORED = auto()
    ALREADY_THERE = auto()  # or being written by somebody else
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class Found:
    """One object that a lookup found.

    Parameters
    ----------
    name
        Its name in the bucket.
    size
        Its bytes.
    checksum
        XXH3-64 of its bytes.
    extents
        Where they are in the segment; empty over HTTP, where only the node reads them.
    """

    name: str
    size: int
    checksum: int
    extents: Sequence[Extent] = ()


@dataclass(slots=True)
class Holding:
    """What one lookup found, by place in its names, and the lease that keeps it there.

    Parameters
    ----------
    way
        Where it was found; the lease means nothing elsewhere.
    found
        The objects by their place among the names that were asked for.
    lease
        The lease's id; empty where nothing was there.
    until
        End of the lease, by the event loop's clock.
    taken
        How many hold an object of it; the lease goes with the last.
    sources
        How many of the objects came from below the node's memory, by who answered; empty over HTTP, which does not say.
    """

    way: "Way"
    found: dict[int, Found] = field(default_factory=dict)
    lease: str = ""
    until: float = float("inf")
    taken: int = 0
    sources: Mapping[str, int] = field(default_factory=dict)


class Way(Protocol):
    """One connection to a node store, of one event loop."""

    @property
    def is_open(self) -> bool:
        """False once it is of no use any more."""

    async def find(self, names: Sequence[str], *, across_gaps: bool) -> Holding:
        """Return which objects are there, under one lease: the leading run, or ``across_gaps`` all of them."""

    async def read(self, found: Found, header_bytes: int, prepare: Prepare) -> bool:
        """Read an object: its first ``header_bytes`` go to ``prepare``, the rest where that says.

        Returns
        -------
        bool
            True if all bytes arrived and are those that were committed.
        """

    async def release(self, holding: Holding) -> None:
        """Give a lease back."""

    async def write(self, names: Sequence[str], contents: Sequence[Sequence[memoryview]]) -> list[Written]:
        """Store objects, each from its parts; says what became of each."""

    async def close(self) -> None:
        """End the connection when no thread copies any more; leases go with it."""
