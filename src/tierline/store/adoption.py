"""From a journal's records to what a new process starts with: which objects, whose pages, and what is free.

A record is believed only where it agrees with the segment and with later records: where two claim one page, the later
one has it. What is not believed is left out, and its pages are free.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from tierline.store.extents import Run, free_between, pages_for
from tierline.store.journal import Record, RecordState
from tierline.store.objects import ObjectKey


@dataclass(slots=True)
class Adoption:
    """Records sorted by what becomes of them, each in the order in which they were written.

    Parameters
    ----------
    committed, retired
        Objects; and pages without an object that readers of the former process may still be looking at.
    orphaned
        Slots into which a client may still be writing.
    void
        Slots that the dead node itself was filling, and records that are not believed: to be erased.
    contradictory
        How many of those were not believed.
    free
        Pages that none of the first three holds.
    """

    committed: list[Record] = field(default_factory=list)
    retired: list[Record] = field(default_factory=list)
    orphaned: list[Record] = field(default_factory=list)
    void: list[Record] = field(default_factory=list)
    contradictory: int = 0
    free: list[Run] = field(default_factory=list)


def adopt(records: Iterable[Record], pages: int) -> Adoption:
    """Sort records, latest last, of a segment with so many pages, the first of which is its header."""
    adoption = Adoption()
    is_taken = bytearray(pages)
    is_taken[0] = 1
    keys: set[ObjectKey] = set()
    used = [Run(0, 1)]
    for record in reversed(list(records)):
        if record.state is RecordState.RESERVED and not record.client:
            adoption.void.append(record)
            continue
        is_new_key = record.state is not RecordState.COMMITTED or record.key not in keys
        if not (is_new_key and _is_plausible(record, pages) and _take(is_taken, record.runs)):
            adoption.void.append(record)
            adoption.contradictory += 1
            continue
        used.extend(record.runs)
        match record.state:
            case RecordState.COMMITTED:
                keys.add(record.key)
                adoption.committed.append(record)
            case RecordState.RETIRED:
                adoption.retired.append(record)
            case RecordState.RESERVED:
                adoption.orphaned.append(record)
    for group in (adoption.committed, adoption.retired, adoption.orphaned, adoption.void):
        group.reverse()
    adoption.free = list(free_between(used, 0, pages))
    return adoption


def _is_plausible(record: Record, pages: int) -> bool:
    """Whether its runs lie in the segment and hold exactly its bytes."""
    total = 0
    for start, count in record.runs:
        if not 0 < count <= pages - start:
            return False
        total += count
    return total == pages_for(record.size)


def _take(is_taken: bytearray, runs: tuple[Run, ...]) -> bool:
    """Mark pages as taken if every one of them is free."""
    for index, (start, count) in enumerate(runs):
        if is_taken.find(1, start, start + count) >= 0:
            for former_start, former_count in runs[:index]:
                is_taken[former_start : former_start + former_count] = bytes(former_count)
            return False
        is_taken[start : start + count] = b"\1" * count
    return True
