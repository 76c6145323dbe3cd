"""Heads and requests of a bulk connection mean what they meant when they were packed; others are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.errors import WireError
from tierline.wire.framing import FrameDecoder, encode_frame
from tierline.wire.messages import Message
from tierline.wire.transfers import (
    HEAD_BYTES,
    MAX_OBJECTS_PER_FETCH,
    Asked,
    BulkRequest,
    Fetch,
    ObjectHead,
    Outcome,
    Received,
    unpack_head,
)

U64 = st.integers(0, 2**64 - 1)


def decode(data: bytes) -> list[BulkRequest]:
    decoder: FrameDecoder[BulkRequest] = FrameDecoder(BulkRequest)  # type: ignore[arg-type]
    return list(decoder.feed(data))


@given(U64, st.integers(0, 2**32 - 1), st.sampled_from(list(Outcome)), U64, U64)
def test_a_head_is_what_was_packed(number: int, place: int, outcome: Outcome, size: int, checksum: int) -> None:
    head = ObjectHead(number, place, outcome, size, checksum)
    assert unpack_head(head.pack()) == head
    assert len(head.pack()) == HEAD_BYTES


def test_a_head_with_an_outcome_that_is_none_is_refused() -> None:
    data = bytearray(ObjectHead(1, 2, Outcome.SENT).pack())
    data[12] = 9
    with pytest.raises(WireError, match="outcome 9"):
        unpack_head(bytes(data))


def test_requests_are_what_was_said() -> None:
    said = [Fetch(0, [Asked("b", "name", 1, 2**64 - 1)], "an id", "a place"), Received(0, [1, 2])]
    assert decode(b"".join(encode_frame(message) for message in said)) == said


class OldFetch(Message, frozen=True, tag="Fetch"):
    """As it was before it said for whose sake."""

    number: int
    objects: list[Asked]


def test_nodes_of_two_versions_understand_each_other() -> None:
    """One may be restarted with a newer version while the other runs."""
    asked = [Asked("b", "name", 1, 1)]
    old: FrameDecoder[OldFetch | Received] = FrameDecoder(OldFetch | Received)  # type: ignore[arg-type]
    assert list(old.feed(encode_frame(Fetch(3, asked, "an id", "a place")))) == [OldFetch(3, asked)]
    assert decode(encode_frame(OldFetch(3, asked))) == [Fetch(3, asked, "", "")]


@pytest.mark.parametrize(
    "request_",
    [
        Fetch(0, []),
        Fetch(0, [Asked("b", "n", 1, 1)] * (MAX_OBJECTS_PER_FETCH + 1)),
        Fetch(-1, [Asked("b", "n", 1, 1)]),
        Fetch(0, [Asked("", "n", 1, 1)]),
        Fetch(0, [Asked("b", "n" * 1025, 1, 1)]),
        Fetch(0, [Asked("b", "n", 0, 1)]),
        Fetch(0, [Asked("b", "n", 1, -1)]),
        Fetch(0, [Asked("b", "n", 1, 1)], "i" * 257),
        Received(0, [0] * (MAX_OBJECTS_PER_FETCH + 1)),
        Received(0, [-1]),
    ],
)
def test_requests_out_of_bounds_are_refused(request_: BulkRequest) -> None:
    with pytest.raises(WireError):
        decode(encode_frame(request_))
