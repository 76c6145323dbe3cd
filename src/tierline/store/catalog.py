"""All committed objects, by key and by the number of their row; what is counted about them, and walks over them.

An object keeps its record's number for as long as it lives, so a walk by number can stop and go on anywhere: it meets
each object that is there all the while exactly once. Every step of a walk is bounded, whatever is stored.
"""

from collections.abc import Iterator
from itertools import chain

from tierline.prefix import tenant_of
from tierline.store.index import KeyIndex, key_of
from tierline.store.namespaces import OTHERS
from tierline.store.objects import Leased, Listing, ObjectKey, ObjectStat
from tierline.store.rows import Rows

SCANNED_ROWS = 10_000
"""Most records that one step of a walk looks at: about 2 ms."""


class Catalog:
    """Invariant: an object is in ``index`` and has its key in its row, or neither.

    ``pages``, ``fragments`` and ``unverified`` are sums over all objects.
    """

    def __init__(self, rows: Rows) -> None:
        self.index = KeyIndex()
        self.pages = 0
        self.fragments = 0
        self.unverified = 0
        self._rows = rows
        self._next = 0  # of the walk in turn

    def __len__(self) -> int:
        return len(self.index)

    def add(self, key: ObjectKey, row: int) -> None:
        """List an object, whose row is filled."""
        self._rows.keys[row] = self.index.add(key, row)
        self.pages += self._rows.pages[row]
        self.fragments += self._rows.fragments(row)
        self.unverified += not self._rows.is_verified(row)

    def remove(self, row: int) -> None:
        """Take an object out."""
        self.index.remove(self._rows.keys[row])
        self._rows.keys[row] = ""
        self.pages -= self._rows.pages[row]
        self.fragments -= self._rows.fragments(row)
        self.unverified -= not self._rows.is_verified(row)

    def key(self, row: int) -> ObjectKey:
        """Return the key of an object."""
        return key_of(self._rows.keys[row])

    def find(self, leased: Leased) -> int | None:
        """Return the row of an object if it is just this one: its pages cannot be another's while somebody has it."""
        row = self.index.get(leased.key)
        return row if row is not None and self._rows.extents(row) == leased.extents else None

    def mark_verified(self, leased: Leased) -> None:
        """Note that an object is verified, if just this one is still there."""
        row = self.find(leased)
        if row is not None and not self._rows.is_verified(row):
            self._rows.mark_verified(row)
            self.unverified -= 1

    def is_of(self, row: int, bucket: str | None, salt: str | None) -> bool:
        """Whether an object is in this bucket, and of this tenant; ``None`` for any."""
        charged = self._rows.accounts[row].namespace
        if bucket is not None and (self.key(row).bucket if charged.bucket == OTHERS else charged.bucket) != bucket:
            return False
        if salt is None:
            return True
        return (tenant_of(self.key(row).name) if charged.salt == OTHERS else charged.salt) == salt

    def stat(self, row: int, now: float) -> ObjectStat:
        """Describe an object."""
        rows = self._rows
        expires_at = rows.expires_at(row)
        return ObjectStat(
            key=self.key(row),
            size=rows.sizes[row],
            checksum=rows.checksums[row],
            fragments=rows.fragments(row),
            leases=rows.leases(row),
            is_verified=rows.is_verified(row),
            age_s=now - rows.born[row],
            idle_s=now - rows.touched[row],
            hits=rows.hits[row],
            pinned_s=max(rows.pinned_until.get(row, now) - now, 0.0),
            expires_s=None if expires_at is None else max(expires_at - now, 0.0),
        )

    def scan(self, cursor: str, rows: int = SCANNED_ROWS) -> Iterator[tuple[str, int]]:
        """Yield the objects of one step of a walk, each with the cursor that leads to it.

        Raises ``ValueError`` for what is no cursor.
        """
        start = _row(cursor)
        for row, key in enumerate(self._rows.keys[start : start + rows], start):
            if key:
                yield str(row), row

    def cursor_behind(self, cursor: str, rows: int = SCANNED_ROWS) -> str:
        """Return the cursor of the next step, empty where this was the last."""
        end = _row(cursor) + rows
        return str(end) if end < len(self._rows) else ""

    def page(self, bucket: str | None, prefix: str, salt: str | None, cursor: str, limit: int, now: float) -> Listing:
        """Describe objects of one step of a walk, ``limit`` at the most."""
        objects: list[ObjectStat] = []
        for position, row in self.scan(cursor):
            if not self.is_of(row, bucket, salt) or (prefix and not self.key(row).name.startswith(prefix)):
                continue
            if len(objects) >= limit:
                return Listing(objects, position)
            objects.append(self.stat(row, now))
        return Listing(objects, self.cursor_behind(cursor))

    def next_in_turn(self) -> ObjectKey | None:
        """Return the key of the next object, round and round; ``None`` if a step met none."""
        rows = chain(range(self._next, len(self._rows)), range(self._next))
        for row, _ in zip(rows, range(SCANNED_ROWS), strict=False):
            self._next = row + 1
            if self._rows.keys[row]:
                return self.key(row)
        return None


def _row(cursor: str) -> int:
    row = int(cursor or 0)
    if row < 0:
        raise ValueError(f"cursor: got {cursor!r}; allowed: what a page before gave")
    return row
