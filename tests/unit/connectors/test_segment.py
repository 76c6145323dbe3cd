"""What a node says about extents is checked, and pinning takes what the driver gives."""

import pytest

pytest.importorskip("torch")

import os
from collections.abc import Iterator

from tierline.client import SegmentMapping
from tierline.connectors.vllm.segment import LARGEST_REGISTRATION_BYTES, PinnedRun, SegmentWords
from tierline.errors import WireError
from tierline.wire.messages import Extent

SEGMENT_BYTES = 16 * 4096


@pytest.fixture
def words() -> Iterator[SegmentWords]:
    descriptor = os.memfd_create("segment")
    os.truncate(descriptor, SEGMENT_BYTES)
    mapping = SegmentMapping(descriptor, SEGMENT_BYTES, writable=True)
    os.close(descriptor)
    yield SegmentWords(mapping, SEGMENT_BYTES)
    mapping.close()


def test_what_is_written_through_words_is_summed_by_the_mapping(words: SegmentWords) -> None:
    extents = [Extent(4096, 64), Extent(0, 128)]
    before = words.checksum(extents)
    first, second = words.extents(extents, 192)
    assert (first.shape[0], second.shape[0]) == (8, 16)
    second[15] = 1
    assert words.checksum(extents) != before


@pytest.mark.parametrize(
    "extents",
    [
        [Extent(SEGMENT_BYTES - 8, 16)],
        [Extent(-8, 16)],
        [Extent(4, 16)],
        [Extent(0, 24)],
        [Extent(0, 32), Extent(64, -16)],
        [],
    ],
)
def test_extents_that_a_lying_node_made_up_are_refused(words: SegmentWords, extents: list[Extent]) -> None:
    with pytest.raises(WireError):
        words.extents(extents, 16)


class Driver:
    """Stands in for the CUDA driver: remembers what is registered, refuses from a given call on."""

    def __init__(self, refuses_from: int = 1000) -> None:
        self.registered: dict[int, int] = {}
        self._left = refuses_from

    def register(self, address: int, size: int, flags: int) -> int:
        self._left -= 1
        if self._left < 0:
            return 1
        self.registered[address] = size
        return 0

    def unregister(self, address: int) -> int:
        del self.registered[address]
        return 0


def test_a_large_segment_is_pinned_in_pieces_and_given_back() -> None:
    driver = Driver()
    size = 2 * LARGEST_REGISTRATION_BYTES + 4096
    run = PinnedRun(1 << 40, size, driver.register, driver.unregister)
    assert list(driver.registered.values()) == [LARGEST_REGISTRATION_BYTES, LARGEST_REGISTRATION_BYTES, 4096]
    assert run.pinned_bytes == size
    run.close()
    assert not driver.registered


def test_what_the_driver_refuses_to_pin_stays_usable() -> None:
    driver = Driver(refuses_from=1)
    run = PinnedRun(0, 2 * LARGEST_REGISTRATION_BYTES, driver.register, driver.unregister)
    assert run.pinned_bytes == LARGEST_REGISTRATION_BYTES
    run.close()
    assert not driver.registered
