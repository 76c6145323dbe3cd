"""The header before an object's bytes: what was packed is read back, and nothing else passes for it."""

from hypothesis import given
from hypothesis import strategies as st

from tierline.pool.header import HEADER_BYTES, MOST_PARTS, Header, cut
from tierline.store import ObjectKey
from tierline.wire.pool import SLOTS

keys = st.builds(ObjectKey, st.text(min_size=1), st.text(min_size=1))
sums = st.integers(0, 2**64 - 1)
sizes = st.integers(1, 2**40)


@given(keys, sizes, sums, st.integers(0, SLOTS - 1), st.integers(1, 2**40), st.data())
def test_a_header_is_read_as_it_was_written(
    key: ObjectKey, size: int, checksum: int, slot: int, part_bytes: int, data: st.DataObject
) -> None:
    part_bytes = max(part_bytes, -(-size // MOST_PARTS))
    header = Header.of(key, size, checksum, slot=slot, part_bytes=part_bytes)
    part = header.numbered(data.draw(st.integers(0, header.parts() - 1)))
    assert Header.parse(part.pack() + b"its bytes") == part
    assert part.is_of(key)
    assert part.is_same_object(header)
    assert 0 < part.length() <= part_bytes


@given(keys, sizes, sums)
def test_a_header_that_says_more_parts_than_anybody_writes_is_none(key: ObjectKey, size: int, checksum: int) -> None:
    header = Header.of(key, size + MOST_PARTS, checksum, slot=0, part_bytes=1)
    assert Header.parse(header.pack()) is None


@given(st.binary(max_size=2 * HEADER_BYTES))
def test_bytes_of_others_are_no_header(content: bytes) -> None:
    found = Header.parse(content)
    assert found is None or found.pack() == content[:HEADER_BYTES]


@given(keys, sizes, sums, st.integers(0, HEADER_BYTES * 8 - 1))
def test_a_header_with_a_flipped_bit_is_another_object_or_none(
    key: ObjectKey, size: int, checksum: int, bit: int
) -> None:
    header = Header.of(key, size, checksum, slot=0)
    content = bytearray(header.pack())
    content[bit // 8] ^= 1 << bit % 8
    found = Header.parse(content)
    padding_or_slot = bit // 8 in (6, 7, 12, 13, 14, 15)
    assert found is None or padding_or_slot or not found.is_same_part(header)


@given(keys, sizes, sums, st.integers(0, HEADER_BYTES - 1))
def test_a_torn_header_is_none(key: ObjectKey, size: int, checksum: int, length: int) -> None:
    assert Header.parse(Header.of(key, size, checksum, slot=1).pack()[:length]) is None


@given(keys, keys)
def test_a_header_is_of_one_key(key: ObjectKey, other: ObjectKey) -> None:
    assert Header.of(key, 1, 0, slot=0).is_of(other) == (key == other)


@given(st.lists(st.binary(max_size=40)), st.integers(1, 60))
def test_pages_are_cut_without_a_byte_lost(contents: list[bytes], part_bytes: int) -> None:
    whole = b"".join(contents)
    parts = [b"".join(part) for part in cut([memoryview(content) for content in contents], part_bytes)]
    assert b"".join(parts) == whole
    assert all(len(part) == part_bytes for part in parts[:-1])
    assert all(parts)
