"""What the store keeps of each object: numbers in columns, under the number of its journal record; no object each.

Columns that every lease reads and writes are lists of small integers, which the interpreter shares: a list is read in a
third of the time of an array. What few objects have, such as a second extent, is in dictionaries beside the columns.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import itemgetter

from tierline.store.extents import PAGE_BYTES, Run, extents_of, pages_for, runs_of
from tierline.store.namespaces import Account
from tierline.store.objects import Entry, Extent, Leased, ObjectKey

AWAKE, RESTING, QUARANTINED = range(3)
"""Rests: not in the wheel of rests; there since a lease was given back; there since a lease expired."""

REST = 3
"""Bits of ``Rows.readers`` that say how an object rests; those above count its leases."""

LEASE = 4
"""One lease in ``Rows.readers``."""

_GROWTH = 1024

_extent: Callable[[Iterable[object]], Extent] = partial(tuple.__new__, Extent)
_leased: Callable[[Iterable[object]], Leased] = partial(tuple.__new__, Leased)


class Rows:
    """Committed objects, and those that are gone while somebody may still read their pages (*retired*).

    Its eviction policy lists an object exactly while it is idle, committed and not pinned.

    Parameters
    ----------
    nobody
        Stands for the account of a row that holds no object: accounts of tenants that are gone shall be forgotten.

    Attributes
    ----------
    keys
        Text of the key of each committed object, the very one that index and policy have; empty in any other row.
    accounts
        Who is charged for it.
    readers
        ``LEASE`` times its leases, and how it rests; zero while it is idle.
    pages, hits, touched, born
        How many pages it has, how often and when last it was used, and when it was committed.
    sizes, checksums
        Of its bytes.
    rests_until
        Before that, its pages are not reused.
    pinned_until
        Of those that are pinned.
    transit
        Those that go as soon as nobody reads them.
    """

    def __init__(self, nobody: Account) -> None:
        self._nobody = nobody
        self.keys: list[str] = []
        self.accounts: list[Account] = []
        self.readers: list[int] = []
        self.pages: list[int] = []
        self.hits: list[int] = []
        self.touched = array("d")
        self.born = array("d")
        self.rests_until = array("d")
        self.pinned_until: dict[int, float] = {}
        self.transit: set[int] = set()
        self.sizes = array("Q")
        self.checksums = array("Q")
        self._starts = array("I")  # first pages
        self._anchors = array("H")  # one more than each, 0 for none
        self._is_verified = bytearray()
        self._fragmented: dict[int, tuple[Extent, ...]] = {}
        self._used = 0  # rows up to the last that was ever filled

    def __len__(self) -> int:
        return self._used

    def fill(
        self,
        row: int,
        size: int,
        checksum: int,
        runs: Sequence[Run],
        account: Account,
        *,
        now: float,
        born: float,
        rests_until: float,
        is_verified: bool,
        anchor: int | None = None,
    ) -> None:
        """Write the row of a new object, without its key."""
        self._reach(row)
        self.accounts[row] = account
        self.readers[row] = 0
        self.pages[row] = pages_for(size)
        self.hits[row] = 0
        self.touched[row] = now
        self.born[row] = born
        self.rests_until[row] = rests_until
        self._is_verified[row] = is_verified
        self.sizes[row] = size
        self.checksums[row] = checksum
        self._starts[row] = runs[0].start
        self._anchors[row] = 0 if anchor is None else anchor + 1
        if len(runs) > 1:
            self._fragmented[row] = extents_of(runs, size)

    def _reach(self, row: int) -> None:
        """Lengthen the columns so far that they have this row."""
        self._used = max(self._used, row + 1)
        if row < len(self.keys):
            return
        more = row + _GROWTH - len(self.keys)
        self.keys += [""] * more
        self.accounts += [self._nobody] * more
        for numbers in (self.readers, self.pages, self.hits):
            numbers += [0] * more
        for column in (self.touched, self.born, self.rests_until, self.sizes, self.checksums):
            column.frombytes(bytes(more * column.itemsize))
        for small in (self._starts, self._anchors):
            small.frombytes(bytes(more * small.itemsize))
        self._is_verified += bytes(more)

    def clear(self, row: int) -> None:
        """Forget an object whose pages nobody can be reading."""
        self._fragmented.pop(row, None)
        self.accounts[row] = self._nobody

    def leases(self, row: int) -> int:
        """Return how many leases an object is under."""
        return self.readers[row] // LEASE

    def is_verified(self, row: int) -> bool:
        """Whether somebody has compared bytes and checksum, or its writer gave both to this process."""
        return bool(self._is_verified[row])

    def mark_verified(self, row: int) -> None:
        """Note that bytes and checksum were compared."""
        self._is_verified[row] = True

    def expires_at(self, row: int) -> float | None:
        """Return when the time to live of an object is over; ``None`` where it has none."""
        ttl_s = self.accounts[row].rules.ttl_s
        return None if ttl_s is None else self.born[row] + ttl_s

    def extents(self, row: int) -> tuple[Extent, ...]:
        """Return where the bytes of an object are."""
        return self._fragmented.get(row) or (Extent(self._starts[row] * PAGE_BYTES, self.sizes[row]),)

    def runs(self, row: int) -> tuple[Run, ...]:
        """Return the pages of an object."""
        return runs_of(self.extents(row))

    def fragments(self, row: int) -> int:
        """Return how many extents an object has."""
        fragmented = self._fragmented.get(row)
        return 1 if fragmented is None else len(fragmented)

    def entry(self, row: int) -> Entry:
        """Describe an object to other nodes."""
        anchor = self._anchors[row]
        return Entry(self.sizes[row], self.checksums[row], anchor - 1 if anchor else None, row in self.transit)

    def leased(self, key: ObjectKey, row: int) -> Leased:
        """Describe an object to who leases it."""
        size = self.sizes[row]
        extents = self._fragmented.get(row) or (Extent(self._starts[row] * PAGE_BYTES, size),)
        return Leased(key, size, self.checksums[row], extents, self._is_verified[row] == 1)

    def leased_all(self, keys: Iterable[ObjectKey], rows: Sequence[int]) -> list[Leased]:
        """Describe objects to who leases them; ``keys`` begins with theirs."""
        if len(rows) < 2 or not self._fragmented.keys().isdisjoint(rows):
            return list(map(self.leased, keys, rows))
        gather = itemgetter(*rows)  # column by column, without a step of Python for each object
        sizes = gather(self.sizes)
        offsets = map(PAGE_BYTES.__mul__, gather(self._starts))
        extents = zip(map(_extent, zip(offsets, sizes, strict=True)), strict=True)  # one each
        is_verified = map(bool, gather(self._is_verified))
        return list(map(_leased, zip(keys, sizes, gather(self.checksums), extents, is_verified, strict=False)))
