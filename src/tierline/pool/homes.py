"""The home of every slot, kept up to date while members come and go.

The rule inside: **it is always what** :func:`~tierline.pool.slots.home_of` **says of the same members**, so that nodes
that see the same members agree without a word. Only what changes is computed: a member that comes is compared with each
slot's home, one that goes leaves its own slots to be looked at again, 4,096 comparisons each.
"""

from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache

import xxhash

from tierline.wire.pool import SLOTS


class Homes:
    """Homes of all slots among one member, who never leaves, and others.

    Parameters
    ----------
    first
        This node.
    """

    def __init__(self, first: str) -> None:
        self._first = first
        self._members = {first}
        self._homes = [first] * SLOTS
        self._heights = list(_weights(first))

    def __getitem__(self, slot: int) -> str:
        return self._homes[slot]

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    @property
    def members(self) -> frozenset[str]:
        """Names of all members."""
        return frozenset(self._members)

    def slots_of(self, member: str) -> list[int]:
        """Return the slots that are at home with a member."""
        return [slot for slot, home in enumerate(self._homes) if home == member]

    def ranked(self, slot: int) -> Sequence[str]:
        """Return all members, the home of a slot first, and then whoever would be it without those before."""
        return sorted(self._members, key=lambda member: (_weights(member)[slot], member), reverse=True)

    def join(self, member: str) -> list[int]:
        """Add a member; returns the slots that it is the home of now."""
        if member in self._members:
            return []
        self._members.add(member)
        homes, heights = self._homes, self._heights
        won = []
        for slot, weight in enumerate(_weights(member)):
            if weight > heights[slot] or (weight == heights[slot] and member > homes[slot]):
                homes[slot], heights[slot] = member, weight
                won.append(slot)
        return won

    def leave(self, member: str) -> list[int]:
        """Remove a member; returns the slots that it was the home of."""
        if member not in self._members or member == self._first:
            return []
        self._members.remove(member)
        lost = self.slots_of(member)
        others = [(other, _weights(other)) for other in self._members]
        for slot in lost:
            self._heights[slot], self._homes[slot] = max((weights[slot], other) for other, weights in others)
        return lost


@lru_cache(maxsize=1024)
def _weights(member: str) -> "array[int]":
    """Return what a member weighs in each slot; 32 KiB."""
    name = member.encode()
    return array("Q", (xxhash.xxh3_64_intdigest(name, seed=slot) for slot in range(SLOTS)))
