"""Who goes when room is needed, over all partitions; and pins, which keep an object until nothing else is left.

The order: first whoever asks, if it is over its soft quota; then whoever is over it by the most; then the partition
whose own choice was touched longest ago. With more than ``SAMPLE`` partitions as many of them are compared, in turn.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from math import inf
from typing import TypeVar

from tierline.store.entries import Entry
from tierline.store.namespaces import Account, Namespaces
from tierline.store.objects import ObjectKey
from tierline.store.partition import Partition
from tierline.store.wheel import DueWheel

SAMPLE = 32
"""Most partitions, and accounts over their quota, that are compared for one victim: about 30 µs."""

Item = TypeVar("Item")


class Room:
    """What can go, and what shall go last.

    Invariant: ``evictable_pages`` are those of all idle objects, ``pinned_pages`` those of all pinned ones.

    Parameters
    ----------
    entries
        All committed objects.
    """

    def __init__(self, entries: Mapping[ObjectKey, Entry], namespaces: Namespaces) -> None:
        self._entries = entries
        self._namespaces = namespaces
        self._pins: DueWheel[Entry] = DueWheel()
        self.evictable_pages = 0
        self.pinned_pages = 0
        self._shelved_pages = 0

    @property
    def unpinned_pages(self) -> int:
        """Pages of what can go without touching a pinned object."""
        return self.evictable_pages - self._shelved_pages

    def insert(self, entry: Entry) -> None:
        """List a new object, which is idle."""
        entry.account.policy.insert(entry.leased.key, entry.pages)
        self.evictable_pages += entry.pages

    def hold_out(self, entries: Iterable[Entry]) -> None:
        """Note that objects are idle no more."""
        pages = 0
        for entry in entries:
            pages += entry.pages
            if entry.pinned_until:
                self._unshelve(entry)
            else:
                entry.account.policy.hold_out(entry.leased.key)
        self.evictable_pages -= pages

    def put_back(self, entry: Entry) -> None:
        """Note that an object is idle again."""
        self.evictable_pages += entry.pages
        if entry.pinned_until:
            self._shelve(entry)
        else:
            entry.account.policy.put_back(entry.leased.key)

    def remove(self, entry: Entry) -> None:
        """Forget an object that is gone for another reason than room."""
        if entry.is_idle:
            self.evictable_pages -= entry.pages
            if entry.pinned_until:
                self._unshelve(entry)
        self._end_pin(entry)
        entry.account.policy.remove(entry.leased.key)

    def pin(self, entry: Entry, until: float) -> None:
        """Keep an object until a time, or until nothing unpinned is evictable; a later pin replaces this one."""
        if entry.pinned_until:
            self._pins.discard(entry, entry.pinned_until)
        else:
            self.pinned_pages += entry.pages
            if entry.is_idle:
                entry.account.policy.hold_out(entry.leased.key)
                self._shelve(entry)
        entry.pinned_until = until
        self._pins.put(entry, until)

    def unpin(self, entry: Entry) -> None:
        """End a pin; what is idle is listed again."""
        if entry.is_idle:
            self._unshelve(entry)
            entry.account.policy.put_back(entry.leased.key)
        self._end_pin(entry)

    def pins_due(self, now: float) -> Iterator[Entry]:
        """Yield objects whose pin has run out, for :meth:`unpin`."""
        return self._pins.take_due(now)

    def victim(self, account: Account | None = None, *, takes_pinned: bool = True) -> Entry | None:
        """Choose an object to go for a write that is charged to an account, and forget it."""
        partition = self._unpinned(account) if self.unpinned_pages else None
        if partition is None and takes_pinned:
            partition = self._pinned(self._namespaces.partitions)
        return self._take(partition)

    def victim_of(self, level: Account, account: Account) -> Entry | None:
        """Choose an object charged to ``level`` to go, of the writer's own partition first, and forget it."""
        if account.partition in level.partitions and account.partition.evictable_pages:
            return self._take(account.partition)
        return self._take(self._oldest(level.partitions) or self._pinned(level.partitions))

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
                if key is not None and self._entries[key].touched < touched:
                    oldest, touched = partition, self._entries[key].touched
            if oldest is not None or len(partitions) <= SAMPLE:
                return oldest
        return None

    @staticmethod
    def _pinned(partitions: dict[Partition, None]) -> Partition | None:
        """Return a partition that has a pinned object to give."""
        return next((partition for partition in partitions if partition.pinned), None)

    def _take(self, partition: Partition | None) -> Entry | None:
        key = None if partition is None else partition.victim()
        if key is None:
            return None
        entry = self._entries[key]
        self.evictable_pages -= entry.pages
        if entry.pinned_until:
            self._shelved_pages -= entry.pages
            self._end_pin(entry)
        return entry

    def _shelve(self, entry: Entry) -> None:
        entry.account.partition.shelve(entry.leased.key, entry.pages)
        self._shelved_pages += entry.pages

    def _unshelve(self, entry: Entry) -> None:
        entry.account.partition.unshelve(entry.leased.key)
        self._shelved_pages -= entry.pages

    def _end_pin(self, entry: Entry) -> None:
        if entry.pinned_until:
            self._pins.discard(entry, entry.pinned_until)
            self.pinned_pages -= entry.pages
            entry.pinned_until = 0.0


def _in_turn(items: dict[Item, None]) -> list[Item]:
    """Return all of a few items; of many, the next ``SAMPLE``, which then go to the end."""
    if len(items) <= SAMPLE:
        return list(items)
    taken = list(islice(items, SAMPLE))
    for item in taken:
        del items[item]
        items[item] = None
    return taken
