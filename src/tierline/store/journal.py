"""What the segment holds, written beside it for the next process to adopt; a record is valid as a whole or not at all.

File ``NAME.journal``, on the segment's own filesystem, so that both live and die together::

    header     one page: magic, format version, shape of the rest, the segment's identity; checksum
    records    one of 64 bytes for each page of the segment: state, sizes, checksums, where its body is
    bodies     a heap of 64-byte units: runs of pages, client, bucket, name

Whatever has not been used yet is a hole and takes no memory. A body is written before the record that points to it,
and a record is one ``pwrite`` of 64 aligned bytes, so a process killed between any two system calls leaves every record
as it was before or after. Its checksum covers the body, the record's own number and the segment's identity: what a torn
tail or another journal leaves behind never reads as a record. There is no ``fsync``: the file is memory, and a machine
that stops loses the segment too.

A record has the time of its commit by the wall clock, for a time to live that outlasts the process. Format 1 had eight
zero bytes in that place, so its records are read as they are; opening such a journal changes its header alone, which
then says when that was: the age of what is older counts from there. It has one more than the directory slot of the
object's prefix (0: none), in two bytes that were zero before there was one, and behind them whether the object was in
transit, in one.

States of a record: ``RESERVED`` (a client may be writing), ``COMMITTED`` (an object), ``RETIRED`` (no object any more,
but its pages may still be read), and zero, which is none.
"""

import errno
import mmap
import os
import struct
import sys
import uuid
from array import array
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Self

import xxhash

from tierline.errors import NoSpace, SegmentError
from tierline.store.extents import MAX_FRAGMENTS, PAGE_BYTES, PageAllocator, Run, free_between
from tierline.store.objects import ObjectKey, Owner
from tierline.store.segment import Segment

FORMAT_VERSION = 2
"""Raised when a byte of the file changes its meaning. Version 1 is migrated, any other refused, never guessed at."""

MAX_TEXT_BYTES = 4096
"""Most bytes of client, bucket and name together."""

_MAGIC = b"TIERLINE JOURNAL"
# Magic, version, page bytes, pages, identity, starts, longest TTL, when it was migrated (0: never), checksum.
_HEADER = struct.Struct("<16sIIQ16sQddQ")
_HEADER_1 = struct.Struct("<16sIIQ16sQdQ")
_HEADER_BYTES = 4096
_RECORD = struct.Struct("<BBHHHIQQQIH?5xdQ")
_RECORD_BYTES = 64
_RUN = struct.Struct("<II")
_UNIT_BYTES = 64
_UNITS_PER_PAGE = 16
_MAX_BODY_UNITS = -(-(MAX_FRAGMENTS * _RUN.size + MAX_TEXT_BYTES) // _UNIT_BYTES)
_SCAN_BYTES = 1024 * 1024
_TRANSIT_FIELD = 11  # of these
_LATEST = 2.0**40  # Unix time that no clock of ours tells
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)

_NOBODY = Owner(client="", connection=0)


class RecordState(IntEnum):
    """What the pages of a record are."""

    RESERVED = 1
    COMMITTED = 2
    RETIRED = 3


class Record(NamedTuple):
    """One record. ``sequence`` grows with every write, so that of two records the later is known.

    ``created`` is the Unix time of the commit, and 0 for a reservation; ``anchor`` and ``is_transit`` as in
    :class:`Entry`.
    """

    number: int
    state: RecordState
    runs: tuple[Run, ...]
    client: str
    pid: int
    key: ObjectKey
    size: int
    checksum: int
    sequence: int
    created: float
    anchor: int | None
    is_transit: bool
    body: Run
    """Where the journal keeps its variable part, in units of its heap."""


class Journal:
    """The journal of one open segment, whose lock guards it too.

    Attributes
    ----------
    starts
        How often the segment was opened, this time included.
    former_max_ttl_s
        Longest lease that a former process may have given and that may still be read.
    dropped
        Records that were not whole when they were read.
    """

    def __init__(
        self,
        path: Path,
        fd: int,
        segment: Segment,
        identity: bytes,
        starts: int,
        max_ttl_s: float,
        former_ttl_s: float,
        migrated: float,
    ) -> None:
        self.starts = starts
        self.former_max_ttl_s = former_ttl_s
        self._max_ttl_s = max_ttl_s
        self._migrated = migrated
        self.dropped = 0
        self._path = path
        self._fd = fd
        self._identity = identity
        self._pages = segment.size // PAGE_BYTES
        self._bodies_at = _HEADER_BYTES + self._pages * _RECORD_BYTES
        self._heap = PageAllocator([Run(0, self._pages * _UNITS_PER_PAGE)], max_fragments=1)
        self._body_start = array("I")  # by record number, as far as any record was ever used
        self._body_units = array("H")
        self._free_numbers: list[int] = []
        self._sequence = 0

    @classmethod
    def open(cls, segment: Segment, max_ttl_s: float, now: float) -> Self:
        """Open the journal of a segment; create it, and seal the segment, where the segment is new.

        Parameters
        ----------
        max_ttl_s
            Longest lease that this process will give; kept for the next one.
        now
            Unix time, to date what a journal of format 1 holds.

        Raises
        ------
        SegmentError
            The segment holds something, and this is not its journal: missing, damaged, or of another version.
        """
        path = segment.path.with_name(segment.path.name + ".journal")
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            if segment.identity is None:
                path.unlink(missing_ok=True)
                fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            else:
                fd = os.open(path, flags)
        except OSError as error:
            raise SegmentError(f"{path}: {error.strerror}; {_how_to_start_empty(segment.path)}") from error
        try:
            if segment.identity is None:
                identity, starts, former_ttl_s, migrated = uuid.uuid4().bytes, 0, 0.0, 0.0
            else:
                identity = segment.identity
                starts, former_ttl_s, migrated = _read_header(path, fd, segment, now)
            journal = cls(path, fd, segment, identity, starts + 1, max_ttl_s, former_ttl_s, migrated)
            os.truncate(fd, journal._bodies_at + journal._pages * _UNITS_PER_PAGE * _UNIT_BYTES)
            journal._write_header(max(max_ttl_s, former_ttl_s))
            if segment.identity is None:
                segment.seal(identity)
        except BaseException:
            os.close(fd)
            raise
        return journal

    @property
    def epoch(self) -> int:
        """63 bits that differ after every start, on every machine."""
        return xxhash.xxh3_64_intdigest(self._identity, self.starts) >> 1

    def outlive_former_leases(self) -> None:
        """Note that no lease of a former process can be read any more: the next one need wait for ours alone."""
        self._write_header(self._max_ttl_s)

    def _write_header(self, max_ttl_s: float) -> None:
        packed = _HEADER.pack(
            _MAGIC,
            FORMAT_VERSION,
            PAGE_BYTES,
            self._pages,
            self._identity,
            self.starts,
            max_ttl_s,
            self._migrated,
            0,
        )
        os.pwrite(self._fd, packed[:-8] + xxhash.xxh3_64_intdigest(packed[:-8]).to_bytes(8, "little"), 0)

    @property
    def has_room(self) -> bool:
        """Whether another record, however large, can be written."""
        has_number = bool(self._free_numbers) or len(self._body_start) < self._pages
        return has_number and self._heap.largest_run >= _MAX_BODY_UNITS

    def reserve(self, owner: Owner, key: ObjectKey | None, size: int, runs: Sequence[Run]) -> int:
        """Record that an owner may write into these pages; returns the record's number.

        Raises
        ------
        NoSpace
            There is no room for another record.
        ValueError
            Client, bucket and name are longer than ``MAX_TEXT_BYTES`` together.
        """
        number = self._take_number()
        try:
            self._write(number, RecordState.RESERVED, owner, key, size, 0, runs, 0.0, None, is_transit=False)
        except BaseException:
            self._free_numbers.append(number)
            raise
        return number

    def commit(
        self,
        number: int,
        key: ObjectKey,
        size: int,
        checksum: int,
        runs: Sequence[Run],
        created: float,
        anchor: int | None = None,
        *,
        is_transit: bool = False,
    ) -> None:
        """Turn a reservation into an object. Raises as :meth:`reserve` does; the reservation is then as it was."""
        former = Run(self._body_start[number], self._body_units[number])
        self._write(
            number, RecordState.COMMITTED, _NOBODY, key, size, checksum, runs, created, anchor, is_transit=is_transit
        )
        self._heap.free([former])

    def retire(self, number: int) -> None:
        """Record that an object is no more, while its pages may still be read. Needs no room."""
        self._change(number, 0, RecordState.RETIRED)

    def keep(self, number: int) -> None:
        """Record that an object is in transit no more. Needs no room."""
        self._change(number, _TRANSIT_FIELD, False)

    def erase(self, number: int) -> None:
        """Make a record none, before its pages are used for anything else."""
        self._put(_HEADER_BYTES + number * _RECORD_BYTES, bytes(_RECORD_BYTES))
        self._heap.free([Run(self._body_start[number], self._body_units[number])])
        self._free_numbers.append(number)

    def adopt(self) -> list[Record]:
        """Read every whole record, latest last, and erase the others. Called once, before anything is written."""
        records: list[Record] = []
        broken: list[int] = []
        with mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ) as whole:
            for number, packed in self._scan(whole):
                record = self._decode(number, packed, whole)
                if record is None:
                    broken.append(number)
                else:
                    records.append(record)
        records = _with_bodies_of_their_own(records, broken)
        records.sort(key=lambda record: record.sequence)
        self._sequence = records[-1].sequence if records else 0
        self._rebuild(records)
        for number in broken:
            self._put(_HEADER_BYTES + number * _RECORD_BYTES, bytes(_RECORD_BYTES))
        self.dropped = len(broken)
        return records

    def close(self) -> None:
        """Let go of the file, which stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # Writing ------------------------------------------------------------------------------------------------------

    def _take_number(self) -> int:
        if self._free_numbers:
            return self._free_numbers.pop()
        if len(self._body_start) == self._pages:
            raise NoSpace(f"{self._path}: all {self._pages} records are in use")
        self._body_start.append(0)
        self._body_units.append(0)
        return len(self._body_start) - 1

    def _write(
        self,
        number: int,
        state: RecordState,
        owner: Owner,
        key: ObjectKey | None,
        size: int,
        checksum: int,
        runs: Sequence[Run],
        created: float,
        anchor: int | None,
        *,
        is_transit: bool,
    ) -> None:
        client, bucket, name = (_encode(text) for text in (owner.client, *(key or ("", ""))))
        if len(client) + len(bucket) + len(name) > MAX_TEXT_BYTES:
            raise ValueError(
                f"client, bucket and name have more than {MAX_TEXT_BYTES} bytes: {owner.client!r}, {key!r}"
            )
        body = b"".join([*(_RUN.pack(*run) for run in runs), client, bucket, name])
        taken = self._heap.allocate(-(-len(body) // _UNIT_BYTES))
        if taken is None:
            raise NoSpace(f"{self._path}: no room for a body of {len(body)} bytes")
        unit, units = taken[0]
        self._sequence += 1
        packed = _RECORD.pack(
            state,
            len(runs),
            len(client),
            len(bucket),
            len(name),
            owner.pid,
            self._sequence,
            size,
            checksum,
            unit,
            0 if anchor is None else anchor + 1,
            is_transit,
            created,
            0,
        )
        try:
            self._put(self._bodies_at + unit * _UNIT_BYTES, body)
            self._put(_HEADER_BYTES + number * _RECORD_BYTES, self._sealed(number, packed, body))
        except BaseException:
            self._heap.free(taken)
            raise
        self._body_start[number], self._body_units[number] = unit, units

    def _change(self, number: int, field: int, value: int) -> None:
        """Change one field of a record, all at once."""
        record_at = _HEADER_BYTES + number * _RECORD_BYTES
        fields = list(_RECORD.unpack(os.pread(self._fd, _RECORD_BYTES, record_at)))
        body_bytes = fields[1] * _RUN.size + sum(fields[2:5])
        body = os.pread(self._fd, body_bytes, self._bodies_at + self._body_start[number] * _UNIT_BYTES)
        fields[field] = value
        packed = _RECORD.pack(*fields[:-1], 0)
        self._put(record_at, self._sealed(number, packed, body))

    def _put(self, offset: int, content: bytes) -> None:
        try:
            written = os.pwrite(self._fd, content, offset)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            written = 0
        if written != len(content):
            raise NoSpace(f"{self._path}: its filesystem is full; the journal needs about 0.3 KiB an object")

    def _sealed(self, number: int, packed: bytes, body: bytes) -> bytes:
        return packed[:-8] + self._checksum(number, packed, body).to_bytes(8, "little")

    def _checksum(self, number: int, packed: bytes, body: bytes) -> int:
        seed = int.from_bytes(self._identity[:8], "little") ^ number
        return xxhash.xxh3_64_intdigest(packed[:-8] + body, seed)

    # Reading ------------------------------------------------------------------------------------------------------

    def _scan(self, whole: mmap.mmap) -> Iterator[tuple[int, bytes]]:
        """Yield number and bytes of each record that is not none, skipping what was never written."""
        offset = _HEADER_BYTES
        none = bytes(_RECORD_BYTES)
        while offset < self._bodies_at:
            try:
                offset = os.lseek(self._fd, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return  # nothing but a hole is left
            end = min(os.lseek(self._fd, offset, os.SEEK_HOLE), offset + _SCAN_BYTES, self._bodies_at)
            piece = whole[offset:end]
            for start in range(0, len(piece), _RECORD_BYTES):
                packed = piece[start : start + _RECORD_BYTES]
                if packed != none:
                    yield (offset + start - _HEADER_BYTES) // _RECORD_BYTES, packed
            offset = end

    def _decode(self, number: int, packed: bytes, whole: mmap.mmap) -> Record | None:
        """Return the record, or ``None`` if any byte of it or of its body is not as we write it."""
        (
            state,
            run_count,
            client_length,
            bucket_length,
            name_length,
            pid,
            sequence,
            size,
            checksum,
            unit,
            anchor,
            is_transit,
            created,
            seal,
        ) = _RECORD.unpack(packed)
        texts_at = run_count * _RUN.size
        length = texts_at + client_length + bucket_length + name_length
        start = self._bodies_at + unit * _UNIT_BYTES
        body = whole[start : start + length]
        if not run_count or len(body) != length or self._checksum(number, packed, body) != seal:
            return None
        if not 0.0 <= created < _LATEST:
            return None
        bucket_at = texts_at + client_length
        name_at = bucket_at + bucket_length
        try:
            return Record(
                number,
                RecordState(state),
                tuple(map(Run._make, _RUN.iter_unpack(body[:texts_at]))),
                _decode_text(body[texts_at:bucket_at]) if client_length else "",
                pid,
                ObjectKey(sys.intern(_decode_text(body[bucket_at:name_at])), _decode_text(body[name_at:])),
                size,
                checksum,
                sequence,
                created if created or state == RecordState.RESERVED else self._migrated,
                anchor - 1 if anchor else None,
                is_transit,
                Run(unit, -(-length // _UNIT_BYTES)),
            )
        except ValueError:  # whole, but no state of ours, or no text: another program's
            return None

    def _rebuild(self, records: Sequence[Record]) -> None:
        """Bring numbers and heap to what the records take."""
        count = max((record.number for record in records), default=-1) + 1
        self._body_start = array("I", bytes(4 * count))
        self._body_units = array("H", bytes(2 * count))
        for record in records:
            self._body_start[record.number], self._body_units[record.number] = record.body
        taken = {record.number for record in records}
        self._free_numbers = [number for number in reversed(range(count)) if number not in taken]
        self._heap = PageAllocator(
            free_between((record.body for record in records), 0, self._pages * _UNITS_PER_PAGE), max_fragments=1
        )


def _with_bodies_of_their_own(records: Iterable[Record], broken: list[int]) -> list[Record]:
    """Drop, of two records whose bodies overlap, the earlier written: none that we write does."""
    kept: list[Record] = []
    for record in sorted(records, key=lambda record: record.body.start):
        if kept and kept[-1].body.start + kept[-1].body.pages > record.body.start:
            loser, winner = sorted((kept.pop(), record), key=lambda record: record.sequence)
            broken.append(loser.number)
            record = winner
        kept.append(record)
    return kept


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # any str that a client can send must come back the same


def _decode_text(encoded: bytes) -> str:
    return encoded.decode("utf-8", "surrogatepass")


def _how_to_start_empty(segment: Path) -> str:
    return (
        f"the segment cannot be adopted without its journal. To start with an empty cache, stop all clients and remove "
        f"{segment}, {segment}.keep and {segment}.journal"
    )


def _read_header(path: Path, fd: int, segment: Segment, now: float) -> tuple[int, float, float]:
    """Return starts and longest TTL of the former process, and when the journal was migrated.

    Raises ``SegmentError``.
    """
    packed = os.pread(fd, _HEADER.size, 0)
    if len(packed) < _HEADER.size or not packed.startswith(_MAGIC):
        raise SegmentError(f"{path}: not a journal; {_how_to_start_empty(segment.path)}")
    version = int.from_bytes(packed[len(_MAGIC) : len(_MAGIC) + 4], "little")
    if version == 1:
        packed = packed[: _HEADER_1.size]
        _, _, page_bytes, pages, identity, starts, max_ttl_s, checksum = _HEADER_1.unpack(packed)
        migrated = now
    elif version == FORMAT_VERSION:
        _, _, page_bytes, pages, identity, starts, max_ttl_s, migrated, checksum = _HEADER.unpack(packed)
    else:
        raise SegmentError(
            f"{path}: has format {version}, this version of Tierline reads 1 and {FORMAT_VERSION}: start the version "
            f"that wrote it, or start empty; {_how_to_start_empty(segment.path)}"
        )
    if xxhash.xxh3_64_intdigest(packed[:-8]) != checksum:
        raise SegmentError(f"{path}: damaged header; {_how_to_start_empty(segment.path)}")
    if identity != segment.identity or page_bytes != PAGE_BYTES or pages != segment.size // PAGE_BYTES:
        raise SegmentError(f"{path}: belongs to another segment; {_how_to_start_empty(segment.path)}")
    return starts, max_ttl_s, migrated
