"""All committed objects, by key and by the number of their record; what is counted about them, and walks over them.

An object keeps its record's number for as long as it lives, so a walk by number can stop and go on anywhere: it meets
each object that is there all the while exactly once. Every step of a walk is bounded, whatever is stored.
"""

from collections.abc import Iterator
from itertools import chain

from tierline.store.entries import Entry
from tierline.store.objects import Leased, Listing, ObjectKey, ObjectStat

SCANNED_ROWS = 10_000
"""Most records that one step of a walk looks at: about 2 ms."""


class Catalog:
    """Invariant: an object is in ``by_key`` and in the row of its record, or in neither.

    ``pages``, ``fragments`` and ``unverified`` are sums over all objects.
    """

    def __init__(self) -> None:
        self.by_key: dict[ObjectKey, Entry] = {}
        self.pages = 0
        self.fragments = 0
        self.unverified = 0
        self._rows: list[Entry | None] = []
        self._next = 0  # of the walk in turn

    def __len__(self) -> int:
        return len(self.by_key)

    def add(self, new: Entry) -> None:
        """List an object."""
        self.by_key[new.leased.key] = new
        if new.record < len(self._rows):
            self._rows[new.record] = new
        else:
            self._rows += [None] * (new.record - len(self._rows))
            self._rows.append(new)
        self.pages += new.pages
        self.fragments += len(new.leased.extents)
        self.unverified += not new.leased.is_verified

    def remove(self, gone: Entry) -> None:
        """Take an object out."""
        del self.by_key[gone.leased.key]
        self._rows[gone.record] = None
        self.pages -= gone.pages
        self.fragments -= len(gone.leased.extents)
        self.unverified -= not gone.leased.is_verified

    def mark_verified(self, leased: Leased) -> None:
        """Note that an object is verified, if just this one is still there."""
        found = self.by_key.get(leased.key)
        if found is not None and found.leased is leased and not leased.is_verified:
            found.leased = leased._replace(is_verified=True)
            self.unverified -= 1

    def scan(self, cursor: str) -> Iterator[tuple[str, Entry]]:
        """Yield the objects of one step of a walk, each with the cursor that leads to it.

        Raises ``ValueError`` for what is no cursor.
        """
        start = _row(cursor)
        for row, found in enumerate(self._rows[start : start + SCANNED_ROWS], start):
            if found is not None:
                yield str(row), found

    def cursor_behind(self, cursor: str) -> str:
        """Return the cursor of the next step, empty where this was the last."""
        end = _row(cursor) + SCANNED_ROWS
        return str(end) if end < len(self._rows) else ""

    def page(self, bucket: str | None, prefix: str, salt: str | None, cursor: str, limit: int, now: float) -> Listing:
        """Describe objects of one step of a walk, ``limit`` at the most."""
        objects: list[ObjectStat] = []
        for position, found in self.scan(cursor):
            if not found.leased.key.name.startswith(prefix) or not found.is_of(bucket, salt):
                continue
            if len(objects) >= limit:
                return Listing(objects, position)
            objects.append(found.stat(now))
        return Listing(objects, self.cursor_behind(cursor))

    def next_in_turn(self) -> ObjectKey | None:
        """Return the key of the next object, round and round; ``None`` if a step met none."""
        rows = chain(range(self._next, len(self._rows)), range(self._next))
        for row, _ in zip(rows, range(SCANNED_ROWS), strict=False):
            self._next = row + 1
            found = self._rows[row]
            if found is not None:
                return found.leased.key
        return None


def _row(cursor: str) -> int:
    row = int(cursor or 0)
    if row < 0:
        raise ValueError(f"cursor: got {cursor!r}; allowed: what a page before gave")
    return row
