"""Records of a run while it goes on, in a file, so that what was interrupted goes on where it stood.

The first line says what was asked for. Families that have all their records are done; what is there of others is
repeated whole, with new text, because caches have seen a part of it: cold stays cold. Time goes on where the records
end, so that an interruption is in no figure.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from tierline.bench.serving.plan import Planned
from tierline.bench.serving.records import Record
from tierline.bench.serving.results import Settings
from tierline.errors import UsageError


class Opening(msgspec.Struct, frozen=True):
    """What a journal begins with."""

    settings: Settings
    salt: str
    started_s: float


class Earlier(msgspec.Struct, frozen=True):
    """What an interrupted run left.

    Parameters
    ----------
    opening
        How it began.
    records
        Of families that are done.
    attempts
        How often it was begun.
    """

    opening: Opening
    records: Sequence[Record]
    attempts: int

    @property
    def lasted_s(self) -> float:
        """Where its time ends."""
        return max((record.ended_s for record in self.records), default=0.0)

    def left(self, plan: Sequence[Planned]) -> list[Planned]:
        """Return what is left to do of a plan."""
        done = {record.family for record in self.records}
        return [planned for planned in plan if planned.family not in done]


class Journal:
    """Appends records to a file; every one is there once it was written."""

    def __init__(self, path: Path, opening: Opening, earlier: Earlier | None = None) -> None:
        self._file: BinaryIO = path.open("wb")
        self._line(opening)
        for _ in range(earlier.attempts if earlier is not None else 0):
            self._file.write(b"\n")  # an empty line: begun again
        for record in earlier.records if earlier is not None else ():
            self.write(record)

    def write(self, record: Record) -> None:
        """Append a record."""
        self._line(record)

    def close(self) -> None:
        """End it; the file stays until the run's result is written."""
        self._file.close()

    def _line(self, entry: Opening | Record) -> None:
        self._file.write(msgspec.json.encode(entry) + b"\n")
        self._file.flush()


def read_journal(path: Path, settings: Settings, plan: Sequence[Planned]) -> Earlier | None:
    """Return what an interrupted run left, or ``None`` when there was none.

    Raises
    ------
    UsageError
        When the file is none of ours, or of a run that asked for something else.
    """
    if not path.exists():
        return None
    first, *lines = path.read_bytes().split(b"\n")
    try:
        opening = msgspec.json.decode(first, type=Opening)
        # The last line may have been cut when the run was.
        records = [msgspec.json.decode(line, type=Record) for line in lines[:-1] if line]
    except msgspec.DecodeError as error:
        raise UsageError(f"--resume: {path}: cannot be read: {error}") from error
    if opening.settings != settings:
        raise UsageError(
            f"--resume: {path} is of a run that asked for something else; give the same flags, or remove it"
        )
    planned = Counter(each.family for each in plan)
    recorded = Counter(record.family for record in records)
    done = {family for family, count in recorded.items() if count == planned[family]}
    begun_again = sum(not line for line in lines[:-1])
    return Earlier(opening, [record for record in records if record.family in done], begun_again + 1)
