"""Leases: who reads what until when. A lease is a numbered list of objects with one holder and one end.

The table neither pins nor frees: it hands back what a lease no longer covers, and its caller draws the consequences.
"""

import os
from collections.abc import Iterator
from typing import Generic, TypeVar

from tierline.errors import TooManyLeases, UnknownLease
from tierline.store.wheel import DueWheel

Item = TypeVar("Item")


class Lease(Generic[Item]):
    """One lease; ``number`` grows from each to the next.

    ``items`` keeps its numbering: an item given back leaves ``None``; ``live`` counts the others. ``payer`` is whose
    share of all leases it takes; ``None``: nobody's.
    """

    __slots__ = ("deadline", "given", "holder", "id", "items", "live", "number", "payer")

    def __init__(
        self, lease_id: str, number: int, holder: str, payer: str | None, given: float, deadline: float
    ) -> None:
        self.id = lease_id
        self.number = number
        self.holder = holder
        self.payer = payer
        self.given = given
        self.deadline = deadline
        self.items: list[Item | None] = []
        self.live = 0


class LeaseTable(Generic[Item]):
    """All live leases, by id and by holder, and when each ends.

    Parameters
    ----------
    prefix
        Start of every id, of letters, digits and ``-``: unique to this process of the node, so that an id given
        by a former one names nothing here. Each id ends with 64 bits of chance: whoever knows an id may release the
        lease, so nobody may come to one by counting.
    most, most_of_holder
        Live leases that count, in all and of one payer.
    """

    def __init__(self, prefix: str, most: int, most_of_holder: int) -> None:
        self._prefix = prefix
        self._most = most
        self._most_of_holder = most_of_holder
        self._count = 0
        self._chances = _chances()
        self._leases: dict[str, Lease[Item]] = {}
        self._by_holder: dict[str, dict[str, None]] = {}
        self._counted = 0
        self._of_payer: dict[str, int] = {}
        self._ends: DueWheel[Lease[Item]] = DueWheel()

    def __len__(self) -> int:
        return len(self._leases)

    def open(self, holder: str, now: float, deadline: float, payer: str | None = None) -> Lease[Item]:
        """Start a lease without items; one that nobody pays for counts nowhere. Raises ``TooManyLeases``."""
        if payer is not None:
            paid = self._of_payer.get(payer, 0)
            if paid >= self._most_of_holder:
                raise TooManyLeases(f"{payer!r} has {paid} live leases, the most one holder may; release some")
            if self._counted >= self._most:
                raise TooManyLeases(f"there are {self._counted} live leases, the most there may be; try again later")
            self._of_payer[payer] = paid + 1
            self._counted += 1
        self._count += 1
        lease_id = f"{self._prefix}{self._count:x}-{next(self._chances)}"
        lease: Lease[Item] = Lease(lease_id, self._count, holder, payer, now, deadline)
        self._leases[lease.id] = lease
        self._by_holder.setdefault(holder, {})[lease.id] = None
        self._ends.put(lease, deadline)
        return lease

    def after(self, number: int) -> Iterator[Lease[Item]]:
        """Yield live leases in the order in which they were given, from behind this number of a lease."""
        return (lease for lease in self._leases.values() if lease.number > number)

    def get(self, lease_id: str) -> Lease[Item]:
        """Return a live lease. Raises ``UnknownLease``."""
        lease = self._leases.get(lease_id)
        if lease is None:
            raise UnknownLease(f"no lease {lease_id!r}: released, expired or never given; ask for a new one")
        return lease

    def add(self, lease: Lease[Item], items: list[Item]) -> None:
        """Append items to a live lease."""
        lease.items += items
        lease.live += len(items)

    def renew(self, lease_id: str, deadline: float) -> None:
        """Give a lease a new end. Raises ``UnknownLease``."""
        lease = self.get(lease_id)
        self._ends.discard(lease, lease.deadline)
        lease.deadline = deadline
        self._ends.put(lease, deadline)

    def release(self, lease_id: str, start: int, stop: int | None) -> list[Item]:
        """Take items ``start`` to ``stop`` out of a lease, last first; the lease ends with its last item.

        Nothing is returned for what was given back before, or for a lease that is not there.
        """
        lease = self._leases.get(lease_id)
        if lease is None:
            return []
        end = len(lease.items) if stop is None else min(stop, len(lease.items))
        released = _take(lease, max(start, 0), end)
        if lease.live == 0:
            self._drop(lease)
        return released

    def end_holder(self, holder: str) -> Iterator[list[Item]]:
        """End every lease of a holder; yields the items of each."""
        for lease_id in list(self._by_holder.get(holder, ())):
            yield self._end(self._leases[lease_id])

    def end_due(self, now: float) -> Iterator[list[Item]]:
        """End the leases whose time has come; yields the items of each."""
        for lease in self._ends.take_due(now):
            yield self._end(lease)

    def _end(self, lease: Lease[Item]) -> list[Item]:
        items = _take(lease, 0, len(lease.items))
        self._drop(lease)
        return items

    def _drop(self, lease: Lease[Item]) -> None:
        del self._leases[lease.id]
        self._ends.discard(lease, lease.deadline)
        of_holder = self._by_holder[lease.holder]
        del of_holder[lease.id]
        if not of_holder:
            del self._by_holder[lease.holder]
        if lease.payer is not None:
            self._counted -= 1
            self._of_payer[lease.payer] -= 1
            if not self._of_payer[lease.payer]:
                del self._of_payer[lease.payer]


def _take(lease: Lease[Item], start: int, stop: int) -> list[Item]:
    """Take a range of items out, last first: the head of a prefix is then the one used most recently."""
    taken = [item for item in reversed(lease.items[start:stop]) if item is not None]
    lease.items[start:stop] = [None] * max(stop - start, 0)
    lease.live -= len(taken)
    return taken


def _chances() -> Iterator[str]:
    """Yield 16 random hexadecimal digits at a time; the kernel is asked for 256 of them at once."""
    while True:
        digits = os.urandom(2048).hex()
        for start in range(0, len(digits), 16):
            yield digits[start : start + 16]
