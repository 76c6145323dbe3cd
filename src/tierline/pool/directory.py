"""The directory: who holds which objects, for the slots that are at home here. Pure: no sockets, no clock.

Rules
-----
- **It is hearsay**: an entry says what a member announced, and may be wrong by the time that it is read. Whoever asks
  a holder must bear that it has nothing; an entry that is missing is a miss.
- A member announces in *rounds*, one for each connection that it makes: with a round's end (a new epoch, a newer round
  that is complete, a member that is dead) all that it said is void at once. Entries that are void are never found;
  their memory comes back by :meth:`Directory.sweep`.
- Of an object's holders, the one that was first here is to keep it longest. Whenever that is another one, it is noted
  for :meth:`Directory.take_entrusted`: the others may evict theirs as copies, and one of them always knows better.
- Memory is bounded: what does not fit is not remembered, and counted.
"""

import random
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from tierline.wire.pool import MAX_HOLDERS_PER_OBJECT

ENTRY_BYTES = 176
"""An object with one holder: 16 bytes of digest and 16 of holder as objects of Python, and its place in a table."""
HOLDER_BYTES = 16
"""Each further holder."""
DEFAULT_BYTES = 256 * 1024**2
SWEPT_AT_A_TIME = 1000
"""Entries, in about half a millisecond."""

_SIZE_BITS = 40
_SIZE_MASK = (1 << _SIZE_BITS) - 1
_HOLDERS = struct.Struct("<QQ")  # number of the round and size; checksum


class Round(NamedTuple):
    """A member's announcements on one connection."""

    number: int
    member: str
    epoch: int


class Holding(NamedTuple):
    """What a member announced to hold of an object."""

    member: str
    epoch: int
    size: int
    checksum: int


class Directory:
    """Holders of objects, by slot and digest.

    Invariant: of each member at most two rounds are valid, the one under way and one before it; an object has at most
    one valid copy of each member, and no entry is empty.

    Parameters
    ----------
    max_bytes
        Of entries, by :data:`ENTRY_BYTES` and :data:`HOLDER_BYTES`.
    choice
        Which of very many holders an answer names.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES, choice: random.Random | None = None) -> None:
        self._max_bytes = max_bytes
        self._choice = choice or random.Random()
        self._tables: dict[int, dict[bytes, bytes]] = {}
        self._rounds: dict[int, Round] = {}
        self._void: set[int] = set()
        """Rounds that are void, and of which entries may be left."""
        self._of_member: dict[str, list[Round]] = {}
        self._next = 1
        self._entrusted: dict[Round, list[bytes]] = {}
        self.entries = 0
        self.holders = 0
        self.refused = 0
        """Announcements that did not fit."""

    @property
    def used_bytes(self) -> int:
        """Memory of the entries, about."""
        return self.entries * (ENTRY_BYTES - HOLDER_BYTES) + self.holders * HOLDER_BYTES

    @property
    def slots(self) -> Collection[int]:
        """Slots that there are entries of."""
        return self._tables.keys()

    # Members ----------------------------------------------------------------------------------------------------------

    def begin(self, member: str, epoch: int) -> Round:
        """Begin a round of a member; all that it announced in another epoch is void now."""
        round_ = Round(self._next, member, epoch)
        self._next += 1
        earlier = self._of_member.get(member, [])
        # Only the first of them can be complete; one that was broken off adds nothing that the new one will not say.
        kept = [known for known in earlier[:1] if known.epoch == epoch]
        self._end(known for known in earlier if known not in kept)
        self._of_member[member] = [*kept, round_]
        self._rounds[round_.number] = round_
        return round_

    def complete(self, round_: Round) -> None:
        """All that a member has is announced in this round: its earlier ones are void."""
        rounds = self._of_member.get(round_.member, [])
        if round_ in rounds:
            self._end(known for known in rounds if known != round_)
            self._of_member[round_.member] = [round_]

    def drop(self, member: str) -> None:
        """All that a member announced is void: it is dead, or gone."""
        self._end(self._of_member.pop(member, []))

    def drop_slots(self, slots: Iterable[int]) -> None:
        """Forget slots that are at home elsewhere now."""
        for slot in slots:
            table = self._tables.pop(slot, None)
            if table is not None:
                self.entries -= len(table)
                self.holders -= sum(map(len, table.values())) // _HOLDERS.size

    # Objects ----------------------------------------------------------------------------------------------------------

    def add(self, round_: Round, slot: int, digest: bytes, size: int, checksum: int) -> bool:
        """Note that a member holds an object; returns whether another has announced it before."""
        if round_.number not in self._rounds:
            return False
        said = _HOLDERS.pack(round_.number << _SIZE_BITS | size, checksum)
        table = self._tables.get(slot)
        entry = table.get(digest) if table is not None else None
        if entry is None:
            if self.used_bytes + ENTRY_BYTES > self._max_bytes:
                self.refused += 1
                return False
            self._tables.setdefault(slot, {})[digest] = said
            self.entries += 1
            self.holders += 1
            return False
        copies = self._copies(entry)
        mine = next((place for place, copy in enumerate(copies) if copy.round.member == round_.member), len(copies))
        if mine == len(copies) > 0 and self.used_bytes + HOLDER_BYTES > self._max_bytes:
            self.refused += 1
            return True
        copies[mine : mine + 1] = [_Copy(round_, size, checksum)]
        self._put(slot, digest, entry, copies)
        return mine > 0

    def remove(self, round_: Round, slot: int, digest: bytes) -> None:
        """Note that a member does not hold an object any more."""
        table = self._tables.get(slot)
        entry = table.get(digest) if table is not None else None
        if entry is not None and round_.number in self._rounds:
            kept = [copy for copy in self._copies(entry) if copy.round.member != round_.member]
            self._put(slot, digest, entry, kept)

    def locate(self, slot: int, digests: Iterable[bytes], asker: str) -> list[Sequence[Holding]]:
        """Return who holds the leading objects that anybody but the asker holds."""
        table, rounds = self._tables.get(slot, {}), self._rounds
        located: list[Sequence[Holding]] = []
        for digest in digests:
            copies = []
            for head, checksum in _HOLDERS.iter_unpack(table.get(digest, b"")):
                round_ = rounds.get(head >> _SIZE_BITS)
                if round_ is not None and round_.member != asker:
                    copies.append(Holding(round_.member, round_.epoch, head & _SIZE_MASK, checksum))
            if not copies:
                break
            if len(copies) > MAX_HOLDERS_PER_OBJECT:
                copies = self._choice.sample(copies, MAX_HOLDERS_PER_OBJECT)
            located.append(copies)
        return located

    def take_entrusted(self) -> dict[Round, list[bytes]]:
        """Return the objects whose first holder has changed since the last call, by who it is now."""
        entrusted, self._entrusted = self._entrusted, {}
        return {round_: digests for round_, digests in entrusted.items() if round_.number in self._rounds}

    def sweep(self) -> Iterator[None]:
        """Take out what is void, if anything is; stops after every :data:`SWEPT_AT_A_TIME` entries, for others."""
        void = frozenset(self._void)
        if not void:
            return
        swept = 0
        for slot in list(self._tables):
            for digest in list(self._tables.get(slot, ())):
                swept += 1
                if swept % SWEPT_AT_A_TIME == 0:
                    yield
                entry = self._tables.get(slot, {}).get(digest)
                if entry is not None and any(head >> _SIZE_BITS in void for head, _ in _HOLDERS.iter_unpack(entry)):
                    self._put(slot, digest, entry, self._copies(entry))
        self._void -= void

    # Inside -----------------------------------------------------------------------------------------------------------

    def _copies(self, entry: bytes) -> "list[_Copy]":
        """Return the copies of an entry that are not void."""
        rounds = self._rounds
        return [
            _Copy(rounds[head >> _SIZE_BITS], head & _SIZE_MASK, checksum)
            for head, checksum in _HOLDERS.iter_unpack(entry)
            if head >> _SIZE_BITS in rounds
        ]

    def _put(self, slot: int, digest: bytes, before: bytes, copies: "Sequence[_Copy]") -> None:
        """Write an entry that was there ``before``, or take it out."""
        table = self._tables[slot]
        self.holders += len(copies) - len(before) // _HOLDERS.size
        if not copies:
            del table[digest]
            self.entries -= 1
            if not table:
                del self._tables[slot]
            return
        table[digest] = b"".join(
            _HOLDERS.pack(copy.round.number << _SIZE_BITS | copy.size, copy.checksum) for copy in copies
        )
        first = copies[0].round
        was_first = self._rounds.get(_HOLDERS.unpack_from(before)[0] >> _SIZE_BITS)
        if was_first is None or was_first.member != first.member:
            self._entrusted.setdefault(first, []).append(digest)

    def _end(self, rounds: Iterable[Round]) -> None:
        for round_ in list(rounds):
            del self._rounds[round_.number]
            self._void.add(round_.number)


class _Copy(NamedTuple):
    round: Round
    size: int
    checksum: int
