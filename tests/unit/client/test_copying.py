"""Copies between lists of buffers, cut anywhere, and their checksums."""

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tierline.client import copying


def cut(content: bytes, lengths: list[int]) -> list[memoryview]:
    view, parts = memoryview(content), []
    for length in lengths:
        parts.append(view[:length])
        view = view[length:]
    return [*parts, view]


@given(content=st.binary(max_size=5000), sources=st.lists(st.integers(0, 900)), targets=st.lists(st.integers(0, 900)))
def test_bytes_arrive_in_order_wherever_both_sides_are_cut(
    content: bytes, sources: list[int], targets: list[int]
) -> None:
    for sum_destination in (False, True):
        arrived = bytearray(len(content))
        into = []
        view = memoryview(arrived)
        for length in targets:
            into.append(view[:length])
            view = view[length:]
        total = copying.copy_and_sum([*into, view], cut(content, sources), sum_destination=sum_destination)
        assert arrived == content
        assert total == xxhash.xxh3_64_intdigest(content)


def test_pieces_larger_than_one_step_arrive_whole() -> None:
    content = bytes(range(256)) * 4096 * 5
    arrived = bytearray(len(content))
    copying.copy_into([memoryview(arrived)], cut(content, [100_001, 3_000_000]))
    assert arrived == content


def test_unequal_lengths_are_refused_before_a_byte_moves() -> None:
    arrived = bytearray(2)
    with pytest.raises(ValueError, match="3 bytes into 2"):
        copying.copy_into([memoryview(arrived)], [memoryview(b"abc")])
    assert arrived == bytes(2)


def test_a_read_only_destination_is_refused() -> None:
    with pytest.raises(BufferError):
        copying.copy_into([memoryview(b"abc")], [memoryview(b"xyz")])
