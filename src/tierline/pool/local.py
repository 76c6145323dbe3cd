"""What a pool asks of the node that it is in: its objects and how it is; the node implements it.

All of it is called on the event loop.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tierline.pool.tier import Found
from tierline.store import ObjectKey, Store


class LocalObject(NamedTuple):
    """A committed object of this node.

    Parameters
    ----------
    slot
        Directory slot of the prefix that it is of (:mod:`tierline.pool.slots`), the same for as long as it is stored.
    """

    key: ObjectKey
    slot: int
    size: int
    checksum: int


class Offered(NamedTuple):
    """An object of a peer that this node is asked to hold too."""

    key: ObjectKey
    slot: int
    found: Found


class LocalState(NamedTuple):
    """How much a node holds."""

    objects: int
    used_bytes: int
    capacity_bytes: int


class Local(Protocol):
    """The node's own objects.

    Of every change it also tells :class:`~tierline.pool.announcing.Announcer`: ``added`` when an object is committed or
    adopted, ``removed`` when it is gone, in the turn of the loop in which it happens.
    """

    def objects(self, cursor: str) -> tuple[Sequence[LocalObject], str]:
        """Return a slice of all committed objects, in about a millisecond, and where to go on: empty at the end.

        The first cursor is empty. What is stored all the while is in one slice or more; what comes or goes meanwhile
        may be in none.
        """

    def mark_copied(self, key: ObjectKey, is_copied: bool) -> None:
        """Take note of whether others hold an object too; it may be gone."""

    async def keep(self, offered: Sequence[Offered]) -> Sequence[bool]:
        """Fetch objects from where they were found, and hold them; returns which of them are here at the end."""

    def store_of(self, bucket: str) -> Store | None:
        """Return the store that a bucket is in, for members that fetch from it."""

    def suspect(self, key: ObjectKey) -> None:
        """An object came to a member with other bytes than it was stored with: see whether it is so here."""

    def state(self) -> LocalState:
        """Return how much is held."""
