"""Frames and what is in them: whole in any pieces, refused where they cannot be."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.errors import WireError
from tierline.router.workers import messages
from tierline.router.workers.board import endpoint_key
from tierline.router.workers.messages import FrameReader, Kind, Knowledge, LoadEntry, Loads, Placed, Spilled

KINDS = st.sampled_from(list(Kind))


@given(st.lists(st.tuples(KINDS, st.binary(max_size=50)), max_size=8), st.lists(st.integers(1, 30), max_size=40))
def test_frames_come_out_as_they_went_in_whatever_pieces_they_come_in(
    frames: list[tuple[Kind, bytes]], cuts: list[int]
) -> None:
    stream, reader = b"".join(messages.frame(*each) for each in frames), FrameReader()
    found: list[tuple[Kind, bytes]] = []
    for cut in [*cuts, len(stream)]:
        found += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert found == frames


@pytest.mark.parametrize("data", [struct.pack("<IB", 101, 1), struct.pack("<IB", 0, 0), struct.pack("<IB", 0, 200)])
def test_a_frame_that_is_too_long_or_of_no_kind_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        list(FrameReader(100).feed(data))


@given(st.binary(max_size=300))
def test_what_is_no_knowledge_and_no_load_is_refused_and_nothing_else_happens(payload: bytes) -> None:
    for decode in (messages.decode_knowledge, messages.decode_loads):
        with contextlib.suppress(WireError):
            decode(payload)


KEY = endpoint_key("http://a:1")


def test_knowledge_comes_back_as_it_was() -> None:
    knowledge = Knowledge(7, [Placed(KEY, b"12345678"), Placed(KEY, b"", True)], [Spilled(2**64 - 1, 0)])
    assert messages.decode_knowledge(messages.encode(knowledge)) == knowledge


@pytest.mark.parametrize(
    "knowledge",
    [
        Knowledge(7, [Placed(KEY, b"1234567")], []),
        Knowledge(7, [Placed(0, b"")], []),
        Knowledge(7, [Placed(KEY, bytes(8 * (messages.MAX_BLOCKS + 1)))], []),
        Knowledge(7, [Placed(KEY, b"")] * (messages.MAX_ENTRIES + 1), []),
        Knowledge(7, [], [Spilled(-1, 0)]),
        Knowledge(0, [], []),
    ],
)
def test_knowledge_that_cannot_be_is_refused(knowledge: Knowledge) -> None:
    with pytest.raises(WireError):
        messages.decode_knowledge(messages.encode(knowledge))


@pytest.mark.parametrize(
    "entries",
    [[LoadEntry(KEY, -1, 0)], [LoadEntry(KEY, 0, 2**41)], [LoadEntry(0, 0, 0)], [LoadEntry(KEY, 1, 1)] * 2],
)
def test_loads_that_cannot_be_or_contradict_each_other_are_refused(entries: list[LoadEntry]) -> None:
    with pytest.raises(WireError):
        messages.decode_loads(messages.encode(Loads(entries)))
