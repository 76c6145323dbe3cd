"""The interface of a tier below a node's own memory: objects are found, fetched into pages, stored from pages, deleted.

Rules: **a tier never decides**, it answers; what is fetched when, and what is kept, is the node's business. Every
operation takes a batch and lasts no longer than it is told to. Bytes go straight from and to pages of the segment, off
the event loop. What a tier says of an object is a claim: the node commits an object only with the checksum of the bytes
that came, after it was compared with the one that the tier was given when they were stored. In doubt it is a miss.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple, Protocol

from tierline.store import ObjectKey


class Found(NamedTuple):
    """An object that a tier holds.

    Parameters
    ----------
    size
        Bytes of it.
    place
        Where in the tier, for its own :meth:`Tier.fetch_into`: who holds it, for example.
    """

    size: int
    place: object


class Wanted(NamedTuple):
    """An object to fetch, and the pages that its bytes go into, in order: ``found.size`` in all."""

    key: ObjectKey
    found: Found
    views: Sequence[memoryview]


class Arrival(NamedTuple):
    """How the fetch of one object ended.

    Parameters
    ----------
    index
        Its place in what was wanted.
    checksum
        XXH3-64 of the bytes that came, which is the one they were stored with; ``None``: it did not come.
    source
        Who answered, for people and metrics: a peer's name, or empty where the tier is one.
    """

    index: int  # type: ignore[assignment]  # it is a sequence to nobody
    checksum: int | None
    source: str


class Kept(NamedTuple):
    """An object to store in a tier; its caller holds a lease on the pages until the answer.

    Parameters
    ----------
    slot
        Directory slot of the prefix that it is of.
    """

    key: ObjectKey
    slot: int
    size: int
    checksum: int
    views: Sequence[memoryview]


class Tier(Protocol):
    """One tier.

    Attributes
    ----------
    name
        ``tieredstorage``, ``redis``, ``mooncake``, ``s3`` or ``fs``; the value of label ``tier``.
    """

    name: str

    async def exists(
        self, keys: Sequence[ObjectKey], anchor: int | None, within_s: float, group_size: int = 1
    ) -> Sequence[Found]:
        """Return what the tier holds of the longest leading run of ``keys``, in whole groups.

        Parameters
        ----------
        anchor
            Directory slot of the prefix that the keys are of (:mod:`tierline.pool.slots`); ``None``: nobody said, and
            each object is in the slot of its own name.
        within_s
            What is not known by then counts as missing.
        """

    def seconds(self, found: Sequence[Found]) -> float | None:
        """Return how long fetching these would take, by what was observed; ``None`` before anything was."""

    def fetch_into(self, wanted: Sequence[Wanted]) -> AsyncGenerator[Arrival, None]:
        """Fetch objects, the first of them first; yields one arrival each, in any order.

        Once an object's arrival has been yielded, and once ``aclose`` has returned, nothing writes into its pages any
        more. Nothing is raised for what a tier or a network does: what does not come is an arrival without checksum.
        """

    async def store_from(self, kept: Sequence[Kept]) -> Sequence[bool]:
        """Store objects; returns for each whether the tier has it now."""

    async def delete(self, keys: Sequence[ObjectKey]) -> None:
        """Remove objects where the tier can; what is not there is no error."""

    async def start(self) -> None:
        """Begin; a tier that cannot be reached begins all the same, and answers nothing until it can."""

    async def stop(self) -> None:
        """End what is under way and close what is open."""
