import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.clocks import ManualClock

from tierline.errors import NoSpace, SegmentError
from tierline.store import PAGE_BYTES, BucketRules, ObjectKey, Owner, Segment, Store
from tierline.store.extents import Run
from tierline.store.journal import MAX_TEXT_BYTES, Journal, Record, RecordState

PAGES = 64
NOW = 1_800_000_000.0
CLIENT = Owner("engine", 1, 4711)
NAMES = st.text(max_size=40)


class Files:
    """A segment with its journal, closed and opened at will."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.segment, self.journal = self._open(max_ttl_s=60)

    @property
    def path(self) -> Path:
        return self.directory / "segment.journal"

    def reopen(self, max_ttl_s: float = 60) -> Journal:
        self.close()
        self.segment, self.journal = self._open(max_ttl_s)
        return self.journal

    def close(self) -> None:
        self.journal.close()
        self.segment.close()

    def _open(self, max_ttl_s: float) -> tuple[Segment, Journal]:
        segment = Segment.open(self.directory, "segment", PAGES * PAGE_BYTES)
        try:
            return segment, Journal.open(segment, max_ttl_s, NOW)
        except BaseException:
            segment.close()
            raise


@pytest.fixture
def files(shared_memory: Path) -> Iterator[Files]:
    opened = Files(shared_memory)
    yield opened
    opened.close()


def key(number: int) -> ObjectKey:
    return ObjectKey("kv", f"object-{number}")


def commit(journal: Journal, number: int) -> int:
    runs = (Run(1 + number, 1),)
    record = journal.reserve(CLIENT, key(number), 100, runs)
    journal.commit(record, key(number), 100, number, runs, NOW)
    return record


def essence(record: Record) -> tuple[RecordState, ObjectKey, int, tuple[Run, ...]]:
    return record.state, record.key, record.checksum, record.runs


@given(bucket=NAMES, name=NAMES, size=st.integers(1, 2**63), checksum=st.integers(0, 2**64 - 1), data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_what_is_committed_is_read_back(
    files: Files, bucket: str, name: str, size: int, checksum: int, data: st.DataObject
) -> None:
    numbers = data.draw(st.lists(st.integers(1, 2**31), min_size=1, max_size=32))
    runs = tuple(Run(number, number) for number in numbers)
    number = files.journal.reserve(CLIENT, None, size, runs)
    files.journal.commit(number, ObjectKey(bucket, name), size, checksum, runs, NOW)

    (record,) = files.reopen().adopt()
    files.journal.erase(record.number)

    assert record[:8] == (number, RecordState.COMMITTED, runs, "", 0, (bucket, name), size, checksum)


def test_a_reservation_says_whose_it_is(files: Files) -> None:
    files.journal.reserve(CLIENT, key(1), 100, [Run(1, 1)])

    (record,) = files.reopen().adopt()

    assert (record.state, record.client, record.pid) == (RecordState.RESERVED, "engine", 4711)


def test_a_retired_record_keeps_its_pages_and_loses_its_meaning(files: Files) -> None:
    files.journal.retire(commit(files.journal, 1))

    (record,) = files.reopen().adopt()

    assert (record.state, record.runs) == (RecordState.RETIRED, (Run(2, 1),))


def test_an_erased_record_is_none_and_its_number_is_used_again(files: Files) -> None:
    number = commit(files.journal, 1)
    files.journal.erase(number)

    assert commit(files.journal, 2) == number
    assert [record.key for record in files.reopen().adopt()] == [key(2)]


def test_records_come_in_the_order_they_were_written(files: Files) -> None:
    for number in range(3):
        files.journal.erase(commit(files.journal, number))
    for number in random.Random(1).sample(range(20), 20):
        commit(files.journal, number)
    expected = [key(number) for number in random.Random(1).sample(range(20), 20)]

    assert [record.key for record in files.reopen().adopt()] == expected


def test_numbers_and_bodies_are_used_again_after_adoption(files: Files) -> None:
    for number in range(10):
        commit(files.journal, number)
    journal = files.reopen()
    for record in journal.adopt()[:5]:
        journal.erase(record.number)
    for number in range(10, 15):
        commit(journal, number)

    assert {record.key for record in files.reopen().adopt()} == {key(number) for number in range(5, 15)}


def test_a_journal_without_room_refuses_and_stays_whole(files: Files) -> None:
    for number in range(PAGES):
        commit(files.journal, number)

    assert not files.journal.has_room
    with pytest.raises(NoSpace, match="records are in use"):
        commit(files.journal, PAGES)
    assert len(files.reopen().adopt()) == PAGES


def test_a_key_that_is_too_long_is_refused_and_leaves_nothing(files: Files) -> None:
    with pytest.raises(ValueError, match=f"more than {MAX_TEXT_BYTES} bytes"):
        files.journal.reserve(CLIENT, ObjectKey("kv", "x" * MAX_TEXT_BYTES), 1, [Run(1, 1)])

    assert commit(files.journal, 1) == 0
    assert len(files.reopen().adopt()) == 1


def test_the_epoch_differs_after_every_start(files: Files) -> None:
    epochs = [files.journal.epoch, *(files.reopen().epoch for _ in range(5))]

    assert len(set(epochs)) == 6
    assert all(0 <= epoch < 2**63 for epoch in epochs)


def test_the_longest_lease_of_any_former_process_is_remembered(files: Files) -> None:
    assert files.journal.former_max_ttl_s == 0
    assert files.reopen(max_ttl_s=600).former_max_ttl_s == 60
    assert files.reopen(max_ttl_s=30).former_max_ttl_s == 600
    assert files.reopen().former_max_ttl_s == 600


def test_a_lease_of_a_former_process_that_has_ended_is_waited_for_no_more(files: Files) -> None:
    files.reopen(max_ttl_s=600)
    files.reopen(max_ttl_s=30).outlive_former_leases()

    assert files.reopen().former_max_ttl_s == 30


def test_an_unused_journal_takes_hardly_any_memory(files: Files) -> None:
    assert files.path.stat().st_blocks * 512 <= 8192


def test_a_segment_whose_journal_is_gone_is_refused(files: Files) -> None:
    files.path.unlink()

    with pytest.raises(SegmentError, match="cannot be adopted without its journal"):
        files.reopen()


def test_a_new_segment_takes_no_notice_of_an_old_journal(files: Files) -> None:
    commit(files.journal, 1)
    files.segment.remove()

    assert files.reopen().adopt() == []


def test_the_journal_of_another_segment_is_refused(files: Files, tmp_path: Path) -> None:
    former = files.path.read_bytes()
    files.segment.remove()
    files.reopen()
    files.path.write_bytes(former)

    with pytest.raises(SegmentError, match="belongs to another segment"):
        files.reopen()


@pytest.mark.parametrize(
    ("offset", "written", "message"),
    [
        (0, b"X", "not a journal"),
        (16, struct.pack("<I", 3), "has format 3, this version of Tierline reads 1 and 2"),
        (50, b"\xff", "damaged header"),
    ],
)
def test_a_header_that_is_not_understood_is_refused(files: Files, offset: int, written: bytes, message: str) -> None:
    with files.path.open("r+b") as file:
        file.seek(offset)
        file.write(written)

    with pytest.raises(SegmentError, match=message):
        files.reopen()


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=150)
def test_damage_loses_records_and_never_changes_one(shared_memory: Path, data: st.DataObject) -> None:
    files = Files(shared_memory)
    for number in range(12):
        commit(files.journal, number)
    files.journal.retire(commit(files.journal, 12))
    files.journal.reserve(CLIENT, key(13), 100, [Run(14, 1)])
    files.reopen()
    expected = {record.number: essence(record) for record in files.journal.adopt()}

    damage = data.draw(st.sampled_from([_flip, _overwrite, _truncate, _copy_record]))
    damage(files.path, data)
    found = files.reopen().adopt()
    dropped = files.journal.dropped

    assert all(essence(record) == expected[record.number] for record in found)
    assert len(found) + dropped <= len(expected) + 1
    assert [essence(record) for record in files.reopen().adopt()] == [essence(record) for record in found]
    assert files.journal.dropped == 0
    files.path.unlink()
    files.segment.remove()
    files.close()


PLACES = st.integers(4096, 4096 + 14 * 64) | st.integers(8192, 8192 + 16 * 64)
"""In the records, and in the bodies, that the test has written."""


def _flip(path: Path, data: st.DataObject) -> None:
    content = bytearray(path.read_bytes())
    content[data.draw(PLACES)] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)


def _overwrite(path: Path, data: st.DataObject) -> None:
    content = bytearray(path.read_bytes())
    offset = data.draw(PLACES)
    noise = data.draw(st.binary(min_size=1, max_size=200))[: len(content) - offset]
    content[offset : offset + len(noise)] = noise
    path.write_bytes(content)


def _truncate(path: Path, data: st.DataObject) -> None:
    os.truncate(path, data.draw(PLACES))


def _copy_record(path: Path, data: st.DataObject) -> None:
    content = bytearray(path.read_bytes())
    source, target = (4096 + 64 * data.draw(st.integers(0, 15)) for _ in range(2))
    content[target : target + 64] = content[source : source + 64]
    path.write_bytes(content)


# Formats --------------------------------------------------------------------------------------------------------

WRITTEN_BY_FORMAT_1 = Path(__file__).parent / "journals" / "format1.zlib"
"""First bytes of a segment of 65 pages, and its journal, as the last version that wrote format 1 left them.

Three objects of 1 to 3 pages, the second deleted under a lease; one page granted to a client; a PUT of one page.
"""


@pytest.fixture
def format_1(shared_memory: Path) -> Path:
    content = zlib.decompress(WRITTEN_BY_FORMAT_1.read_bytes())
    with (shared_memory / "segment").open("wb") as segment:
        segment.write(content[:32])
        segment.truncate(65 * PAGE_BYTES)
    (shared_memory / "segment.journal").write_bytes(content[32:])
    return shared_memory


def open_store(directory: Path, clock: ManualClock, wall_clock: float, ttl_s: float) -> Store:
    return Store.open(
        directory,
        "segment",
        65 * PAGE_BYTES,
        clock=clock,
        wall_clock=lambda: wall_clock,
        default_rules=BucketRules(ttl_s=ttl_s),
    )


def test_a_journal_of_format_1_is_migrated_in_place_and_loses_nothing(format_1: Path, clock: ManualClock) -> None:
    before = (format_1 / "segment.journal").read_bytes()

    store = open_store(format_1, clock, NOW, 100)
    listed = {each.key: (each.size, each.checksum) for each in store.list().objects}
    stats = store.stats()
    store.close()

    assert listed == {key(0): (PAGE_BYTES - 7, 1), key(2): (3 * PAGE_BYTES - 7, 3)}
    assert (stats.adopted, stats.dropped, stats.retired_bytes) == (2, 0, 2 * PAGE_BYTES)
    assert (stats.orphaned_bytes, stats.free_bytes) == (PAGE_BYTES, 57 * PAGE_BYTES)
    after = (format_1 / "segment.journal").read_bytes()
    assert (before[16], after[16]) == (1, 2)
    assert (
        sum(before[at] != after[at] for at in range(4096, 8192)) <= 64
    )  # the PUT's record was erased, no other changed


def test_what_format_1_did_not_date_is_as_old_as_the_migration(format_1: Path, clock: ManualClock) -> None:
    open_store(format_1, clock, NOW, 100).close()

    store = open_store(format_1, clock, NOW + 60, 100)
    found = store.stat(key(0))
    store.close()

    assert found is not None
    assert (found.age_s, found.expires_s) == (60, 40)


def test_a_commit_is_dated(files: Files) -> None:
    commit(files.journal, 1)
    files.journal.retire(commit(files.journal, 2))
    files.journal.reserve(CLIENT, key(3), 100, [Run(9, 1)])

    assert [record.created for record in files.reopen().adopt()] == [NOW, NOW, 0]
