"""Who may be reading: leases on objects, and the rest of an object after its last one, until nobody can be.

A reader that gave its lease back leaves the object readable for the grace time; one whose lease ran out, or whose
connection ended, may be copying on, so the object is in quarantine. Objects that are gone rest like others.
"""

from collections.abc import Iterator, Sequence
from math import inf

from tierline.store.entries import Entry
from tierline.store.objects import StoreLimits
from tierline.store.room import Room
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

    def __init__(self, room: Room, limits: StoreLimits, pages: int) -> None:
        self._room = room
        self._limits = limits
        self._most_quarantined_pages = limits.max_quarantined_fraction * pages
        self._rests: DueWheel[Entry] = DueWheel()
        self.leased_pages = 0
        self.quarantined_pages = 0
        self.retired_pages = 0

    @property
    def is_quarantine_full(self) -> bool:
        """Whether nothing that is idle shall be leased."""
        return self.quarantined_pages > self._most_quarantined_pages

    def hold(self, run: Sequence[Entry], now: float, *, is_use: bool) -> None:
        """Note one more lease on each object, and a use of it. An object may be in a run more than once."""
        not_idle: list[Entry] = []
        used: list[Entry] = []
        touched_before = now - self._limits.touch_window_s if is_use else -inf
        for found in run:
            if not found.leases:
                self.leased_pages += found.pages
                if not found.is_resting:
                    not_idle.append(found)
            found.leases += 1
            if found.touched <= touched_before:
                found.touched = now
                found.hits += 1
                used.append(found)
        self._room.hold_out(not_idle)
        for found in used:
            found.account.policy.use(found.leased.key)

    def let_go(self, items: Sequence[Entry], now: float) -> None:
        """Note that readers gave back one lease on each object."""
        self._rest(items, now + self._limits.grace_s)

    def quarantine(self, items: Sequence[Entry], now: float) -> None:
        """Note that a lease ended which its holder has not given back: it may be reading on."""
        for item in items:
            if not item.is_quarantined:
                item.is_quarantined = True
                self.quarantined_pages += item.pages
        self._rest(items, now + self._limits.quarantine_s)

    def retire(self, gone: Entry) -> None:
        """Note that an object is gone, while somebody may be reading it."""
        if gone.leases:
            self.leased_pages -= gone.pages
        gone.is_retired = True
        self.retired_pages += gone.pages
        if gone.is_idle:
            gone.is_resting = True
            self._rests.put(gone, gone.rests_until)

    def end_rests(self, now: float) -> Iterator[Entry | None]:
        """Make objects evictable again whose rest is over; yields each that is gone, whose pages nobody can be reading.

        Yields ``None`` for any other, so that the caller may stop after as many as it likes.
        """
        for rested in self._rests.take_due(now):
            yield rested if self._end_rest(rested) else None

    def _rest(self, items: Sequence[Entry], until: float) -> None:
        for item in items:
            item.leases -= 1
            if item.is_resting:  # filed anew, behind what was given back before it: heads of prefixes come last
                item.is_resting = False
                self._rests.discard(item, item.rests_until)
            item.rests_until = max(item.rests_until, until)
            if not item.leases:
                if not item.is_retired:
                    self.leased_pages -= item.pages
            elif not item.is_quarantined:
                continue
            item.is_resting = True
            self._rests.put(item, item.rests_until)

    def _end_rest(self, rested: Entry) -> bool:
        """Return whether the pages can be freed."""
        rested.is_resting = False
        if rested.is_quarantined:
            rested.is_quarantined = False
            self.quarantined_pages -= rested.pages
        if rested.leases:
            return False
        if rested.is_retired:
            self.retired_pages -= rested.pages
            return True
        self._room.put_back(rested)
        return False
