"""Who may be reading: leases on objects, and the rest of an object after its last one, until nobody can be.

A reader that gave its lease back leaves the object readable for the grace time; one whose lease ran out, or whose
connection ended, may be copying on, so the object is in quarantine. Objects that are gone rest like others.
"""

from collections.abc import Iterator, Sequence

from tierline.store.objects import StoreLimits
from tierline.store.room import Room
from tierline.store.rows import LEASE, QUARANTINED, REST, RESTING, Rows
from tierline.store.wheel import DueWheel


class Readers:
    """Invariant: an object that is not idle is held out of ``room``; one that rests is in the wheel under its end.

    ``leased_pages`` are those of objects under a lease that are not gone, ``quarantined_pages`` those in quarantine,
    ``retired_pages`` those of objects that are gone.

    Parameters
    ----------
    pages
        Of the whole segment.
    """

    def __init__(self, rows: Rows, room: Room, limits: StoreLimits, pages: int) -> None:
        self._rows = rows
        self._room = room
        self._limits = limits
        self._most_quarantined_pages = limits.max_quarantined_fraction * pages
        self._rests: DueWheel[int] = DueWheel()
        self.leased_pages = 0
        self.quarantined_pages = 0
        self.retired_pages = 0

    @property
    def is_quarantine_full(self) -> bool:
        """Whether nothing that is idle shall be leased."""
        return self.quarantined_pages > self._most_quarantined_pages

    def hold(self, row: int, now: float, *, is_use: bool) -> None:
        """Note one more lease on an object, and a use of it."""
        rows = self._rows
        held = rows.readers[row]
        rows.readers[row] = held + LEASE
        if held < LEASE:
            self.leased_pages += rows.pages[row]
            if not held:
                self._room.hold_out(row)
        if is_use and rows.touched[row] <= now - self._limits.touch_window_s:
            rows.touched[row] = now
            rows.hits[row] += 1
            self._room.use(row)

    def hold_all(self, run: Sequence[int], now: float) -> None:
        """Note one more lease on each object, and a use of it. An object may be in a run more than once."""
        readers, pages, touched, hits = self._rows.readers, self._rows.pages, self._rows.touched, self._rows.hits
        touched_before = now - self._limits.touch_window_s
        not_idle: list[int] = []
        used: list[int] = []
        leased_pages = 0
        for row in run:
            held = readers[row]
            if held < LEASE:
                leased_pages += pages[row]
                if not held:
                    not_idle.append(row)
            readers[row] = held + LEASE
            if touched[row] <= touched_before:
                touched[row] = now
                hits[row] += 1
                used.append(row)
        self.leased_pages += leased_pages
        self._room.hold_out_all(not_idle)
        self._room.use_all(used)

    def let_go(self, rows: Sequence[int], now: float) -> None:
        """Note that readers gave back one lease on each object."""
        self._rest(rows, now + self._limits.grace_s, RESTING)

    def quarantine(self, rows: Sequence[int], now: float) -> None:
        """Note that a lease ended which its holder has not given back: it may be reading on."""
        self._rest(rows, now + self._limits.quarantine_s, QUARANTINED)

    def retire(self, row: int) -> None:
        """Note that an object is gone, while somebody may be reading it."""
        pages = self._rows.pages[row]
        if self._rows.readers[row] >= LEASE:
            self.leased_pages -= pages
        self.retired_pages += pages
        if not self._rows.readers[row]:
            self._rows.readers[row] = RESTING
            self._rests.put(row, self._rows.rests_until[row])

    def end_rests(self, now: float) -> Iterator[int | None]:
        """Make objects evictable again whose rest is over; yields each that nobody can be reading and that is to go.

        Such are those gone, and those in transit. Yields ``None`` for any other, so that the caller may stop after as
        many as it likes.
        """
        for rested in self._rests.take_due(now):
            yield rested if self._end_rest(rested) else None

    def _rest(self, rows: Sequence[int], until: float, kind: int) -> None:
        """Take back one lease on each object, which rests where that was the last one, or where it is in quarantine.

        It is filed behind what was given back before it: heads of prefixes, which are given back last, come last.
        """
        readers, rests_until = self._rows.readers, self._rows.rests_until
        pages, keys = self._rows.pages, self._rows.keys
        filed: list[int] = []
        for row in rows:
            held = readers[row] - LEASE
            rest = held & REST
            if rest:
                self._rests.discard(row, rests_until[row])
            if kind == QUARANTINED and rest != QUARANTINED:
                self.quarantined_pages += pages[row]
                held += QUARANTINED - rest
                rest = QUARANTINED
            latest = rests_until[row]
            if latest < until:
                rests_until[row] = latest = until
            if held >= LEASE:
                if rest != QUARANTINED:
                    readers[row] = held - rest
                    continue
            elif keys[row]:
                self.leased_pages -= pages[row]
            readers[row] = held if rest else held + kind
            if latest == until:
                filed.append(row)
            else:
                self._rests.put(row, latest)
        self._rests.put_all(filed, until)

    def _end_rest(self, row: int) -> bool:
        """Return whether nobody can be reading the object, and it is gone or in transit."""
        held = self._rows.readers[row]
        rest = held & REST
        self._rows.readers[row] = held - rest
        if rest == QUARANTINED:
            self.quarantined_pages -= self._rows.pages[row]
        if held >= LEASE:
            return False
        if not self._rows.keys[row]:
            self.retired_pages -= self._rows.pages[row]
            return True
        self._room.put_back(row)
        return row in self._rows.transit
