"""Who goes when room is needed, over all partitions; and pins, which keep an object until nothing else is left.

The order: first whoever asks, if it is over its soft quota; then whoever is over it by the most; then the partition
whose own choice was touched longest ago. With more than ``SAMPLE`` partitions as many of them are compared, in turn.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from math import inf
from typing import TypeVar

from tierline.store.eviction import EvictionPolicy
from tierline.store.index import KeyIndex
from tierline.store.namespaces import Account, Namespaces
from tierline.store.partition import Partition
from tierline.store.rows import Rows
from tierline.store.wheel import DueWheel

SAMPLE = 32
"""Most partitions, and accounts over their quota, that are compared for one victim: about 30 µs."""

Item = TypeVar("Item")


class Room:
    """What can go, and what shall go last.

    Invariant: ``evictable_pages`` are those of all idle objects, ``pinned_pages`` those of all pinned ones.

    Parameters
    ----------
    index
        All committed objects.
    """

    def __init__(self, rows: Rows, index: KeyIndex, namespaces: Namespaces) -> None:
        self._rows = rows
        self._index = index
        self._namespaces = namespaces
        self._pins: DueWheel[int] = DueWheel()
        self.evictable_pages = 0
        self.pinned_pages = 0
        self._shelved_pages = 0

    @property
    def unpinned_pages(self) -> int:
        """Pages of what can go without touching a pinned object."""
        return self.evictable_pages - self._shelved_pages

    def insert(self, row: int) -> None:
        """List a new object, which is idle."""
        pages = self._rows.pages[row]
        self._rows.accounts[row].policy.insert(self._rows.keys[row], pages)
        self.evictable_pages += pages

    def hold_out(self, row: int) -> None:
        """Note that an object is idle no more."""
        self.evictable_pages -= self._rows.pages[row]
        if row in self._rows.pinned_until:
            self._unshelve(row)
        else:
            self._rows.accounts[row].policy.hold_out(self._rows.keys[row])

    def hold_out_all(self, rows: Sequence[int]) -> None:
        """Note that objects are idle no more."""
        self.evictable_pages -= sum(map(self._rows.pages.__getitem__, rows))
        pinned = self._rows.pinned_until
        if pinned and not pinned.keys().isdisjoint(rows):
            for row in rows:
                if row in pinned:
                    self._unshelve(row)
            rows = [row for row in rows if row not in pinned]
        for policy, keys in self._by_policy(rows):
            policy.hold_out_all(keys)

    def use(self, row: int) -> None:
        """Note a use of an object, which is not idle."""
        self._rows.accounts[row].policy.use(self._rows.keys[row])

    def use_all(self, rows: Sequence[int]) -> None:
        """Note a use of objects, which are not idle."""
        for policy, keys in self._by_policy(rows):
            policy.use_all(keys)

    def put_back(self, row: int) -> None:
        """Note that an object is idle again."""
        self.evictable_pages += self._rows.pages[row]
        if row in self._rows.pinned_until:
            self._shelve(row)
        else:
            self._rows.accounts[row].policy.put_back(self._rows.keys[row])

    def remove(self, row: int) -> None:
        """Forget an object that is gone for another reason than room."""
        is_pinned = row in self._rows.pinned_until
        if not self._rows.readers[row]:
            self.evictable_pages -= self._rows.pages[row]
            if is_pinned:
                self._unshelve(row)
        if is_pinned:
            self._end_pin(row)
        self._rows.accounts[row].policy.remove(self._rows.keys[row])

    def pin(self, row: int, until: float) -> None:
        """Keep an object until a time, or until nothing unpinned is evictable; a later pin replaces this one."""
        former = self._rows.pinned_until.get(row)
        if former is not None:
            self._pins.discard(row, former)
        else:
            self.pinned_pages += self._rows.pages[row]
            if not self._rows.readers[row]:
                self._rows.accounts[row].policy.hold_out(self._rows.keys[row])
                self._shelve(row)
        self._rows.pinned_until[row] = until
        self._pins.put(row, until)

    def unpin(self, row: int) -> None:
        """End a pin; what is idle is listed again."""
        if not self._rows.readers[row]:
            self._unshelve(row)
            self._rows.accounts[row].policy.put_back(self._rows.keys[row])
        self._end_pin(row)

    def pins_due(self, now: float) -> Iterator[int]:
        """Yield objects whose pin has run out, for :meth:`unpin`."""
        return self._pins.take_due(now)

    def victim(self, account: Account | None = None, *, takes_pinned: bool = True) -> int | None:
        """Choose an object to go for a write that is charged to an account, and forget it."""
        partition = self._unpinned(account) if self.unpinned_pages else None
        if partition is None and takes_pinned:
            partition = self._pinned(self._namespaces.partitions)
        return self._take(partition)

    def victim_of(self, level: Account, account: Account) -> int | None:
        """Choose an object charged to ``level`` to go, of the writer's own partition first, and forget it."""
        if account.partition in level.partitions and account.partition.evictable_pages:
            return self._take(account.partition)
        return self._take(self._oldest(level.partitions) or self._pinned(level.partitions))

    def _by_policy(self, rows: Sequence[int]) -> Iterator[tuple[EvictionPolicy[str], list[str]]]:
        """Yield the keys of objects by the policy that orders them."""
        keys = self._rows.keys
        if len(self._namespaces.partitions) == 1:
            if rows:
                yield self._rows.accounts[rows[0]].policy, [keys[row] for row in rows]
            return
        by_policy: dict[EvictionPolicy[str], list[str]] = {}
        for row in rows:
            by_policy.setdefault(self._rows.accounts[row].policy, []).append(keys[row])
        yield from by_policy.items()

    def _unpinned(self, account: Account | None) -> Partition | None:
        partitions = self._namespaces.partitions
        if len(partitions) == 1:
            return next(iter(partitions))
        if account is not None and account.excess > 1 and account.partition.policy.evictable_pages:
            return account.partition
        greedy = _in_turn(self._namespaces.over_soft)
        greedy.sort(key=lambda over: over.excess, reverse=True)
        for over in greedy:
            if (chosen := self._oldest(over.partitions)) is not None:
                return chosen
        return self._oldest(partitions)

    def _oldest(self, partitions: dict[Partition, None]) -> Partition | None:
        """Return the partition whose next victim was touched longest ago."""
        for candidates in (_in_turn(partitions), partitions):
            oldest = None
            touched = inf
            for partition in candidates:
                key = partition.policy.peek()
                if key is None:
                    continue
                last_touched = self._rows.touched[self._index.row(key)]
                if last_touched < touched:
                    oldest, touched = partition, last_touched
            if oldest is not None or len(partitions) <= SAMPLE:
                return oldest
        return None

    @staticmethod
    def _pinned(partitions: dict[Partition, None]) -> Partition | None:
        """Return a partition that has a pinned object to give."""
        return next((partition for partition in partitions if partition.pinned), None)

    def _take(self, partition: Partition | None) -> int | None:
        key = None if partition is None else partition.victim()
        if key is None:
            return None
        row = self._index.row(key)
        pages = self._rows.pages[row]
        self.evictable_pages -= pages
        if row in self._rows.pinned_until:
            self._shelved_pages -= pages
            self._end_pin(row)
        return row

    def _shelve(self, row: int) -> None:
        pages = self._rows.pages[row]
        self._rows.accounts[row].partition.shelve(self._rows.keys[row], pages)
        self._shelved_pages += pages

    def _unshelve(self, row: int) -> None:
        self._rows.accounts[row].partition.unshelve(self._rows.keys[row])
        self._shelved_pages -= self._rows.pages[row]

    def _end_pin(self, row: int) -> None:
        self._pins.discard(row, self._rows.pinned_until.pop(row))
        self.pinned_pages -= self._rows.pages[row]


def _in_turn(items: dict[Item, None]) -> list[Item]:
    """Return all of a few items; of many, the next ``SAMPLE``, which then go to the end."""
    if len(items) <= SAMPLE:
        return list(items)
    taken = list(islice(items, SAMPLE))
    for item in taken:
        del items[item]
        items[item] = None
    return taken
