"""A segment mapped into a process, without a node."""

import os
from collections.abc import Iterator

import pytest
import xxhash

from tierline.client import Extent, SegmentMapping
from tierline.errors import ChecksumMismatch, SegmentError

SIZE = 1024 * 1024
EXTENTS = [Extent(65536, 100), Extent(0, 50), Extent(SIZE - 10, 10)]


@pytest.fixture
def descriptor() -> Iterator[int]:
    descriptor = os.memfd_create("segment")
    os.ftruncate(descriptor, SIZE)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def writer(descriptor: int) -> Iterator[SegmentMapping]:
    mapping = SegmentMapping(descriptor, SIZE, writable=True)
    yield mapping
    mapping.close()


@pytest.fixture
def reader(descriptor: int) -> Iterator[SegmentMapping]:
    mapping = SegmentMapping(descriptor, SIZE)
    yield mapping
    mapping.close()


def test_what_one_mapping_writes_another_reads(writer: SegmentMapping, reader: SegmentMapping) -> None:
    content = os.urandom(160)
    checksum = writer.write_from(EXTENTS, content)
    arrived = bytearray(160)
    reader.read_into(EXTENTS, arrived, checksum=checksum)
    assert arrived == content
    assert checksum == xxhash.xxh3_64_intdigest(content) == reader.checksum(EXTENTS)


def test_an_object_smaller_than_its_slot_fills_the_first_bytes(writer: SegmentMapping) -> None:
    content = os.urandom(120)
    checksum = writer.write_from(EXTENTS, content)
    assert checksum == writer.checksum(EXTENTS, 120)
    assert bytes(writer.views(EXTENTS)[1][:20]) == content[100:]
    assert bytes(writer.views(EXTENTS)[1][20:]) == bytes(30)


def test_an_object_larger_than_its_slot_is_refused(writer: SegmentMapping) -> None:
    with pytest.raises(ValueError, match="1 too many"):
        writer.write_from(EXTENTS, bytes(161))


def test_items_of_any_type_are_taken_as_bytes(writer: SegmentMapping) -> None:
    words = memoryview(bytearray(160)).cast("Q")
    words[0] = 42
    writer.write_from(EXTENTS, words)
    target = memoryview(bytearray(160)).cast("d")
    writer.read_into(EXTENTS, target)
    assert target.cast("B").cast("Q")[0] == 42


def test_bytes_that_are_not_those_committed_are_refused(reader: SegmentMapping) -> None:
    with pytest.raises(ChecksumMismatch):
        reader.read_into(EXTENTS, bytearray(160), checksum=1)


@pytest.mark.parametrize("extent", [Extent(-1, 10), Extent(SIZE - 9, 10), Extent(0, 0), Extent(SIZE, 1)])
def test_an_extent_outside_the_segment_is_refused(reader: SegmentMapping, extent: Extent) -> None:
    with pytest.raises(SegmentError):
        reader.views([extent])


def test_a_reader_cannot_write(reader: SegmentMapping) -> None:
    with pytest.raises(SegmentError, match="read-only"):
        reader.write_from(EXTENTS, bytes(160))


def test_a_closed_mapping_says_so_and_views_outlive_it(descriptor: int) -> None:
    mapping = SegmentMapping(descriptor, SIZE, writable=True)
    mapping.prefault()
    mapping.write_from([Extent(0, 4)], b"kept")
    [view] = mapping.views([Extent(0, 4)])
    mapping.close()
    mapping.close()
    assert bytes(view) == b"kept"
    with pytest.raises(SegmentError, match="closed"):
        mapping.views([Extent(0, 4)])


def test_a_descriptor_that_is_too_small_cannot_be_mapped(descriptor: int) -> None:
    with pytest.raises(SegmentError):
        SegmentMapping(descriptor, 2 * SIZE)
