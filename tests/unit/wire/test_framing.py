"""Frames and messages: what is sent is what arrives, in whatever pieces; what is wrong is refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.errors import WireError
from tierline.wire import messages
from tierline.wire.framing import FrameDecoder, encode_frame

NAMES = st.text(min_size=1, max_size=40)
IDS = st.integers(0, 2**32)
REQUESTS = st.one_of(
    st.builds(messages.PrefixLease, IDS, NAMES, st.lists(NAMES, max_size=5), st.floats(0.001, 1e6), st.integers(1, 8)),
    st.builds(messages.Renew, IDS, NAMES, st.floats(0.001, 1e6)),
    st.builds(messages.Release, IDS, NAMES, st.integers(0, 100), st.none() | st.integers(0, 100)),
    st.builds(messages.Reserve, IDS, NAMES, st.lists(NAMES, max_size=5), st.lists(st.integers(1, 2**40), max_size=5)),
    st.builds(messages.Grant, IDS, st.integers(1, 2**40), st.integers(1, 1000)),
    st.builds(
        messages.Commit,
        IDS,
        NAMES,
        st.lists(st.builds(messages.CommitEntry, IDS, NAMES, st.integers(1, 2**40), st.integers(0, 2**64 - 1))),
    ),
    st.builds(messages.Abort, IDS, st.lists(IDS)),
    st.builds(messages.Suspect, IDS, NAMES, NAMES),
    st.builds(messages.Delete, IDS, NAMES, st.lists(NAMES, max_size=5)),
    st.builds(messages.Describe, IDS),
)


def decoder() -> FrameDecoder[messages.Request]:
    return FrameDecoder(messages.Request)  # type: ignore[arg-type]


@given(st.lists(REQUESTS, max_size=6), st.data())
def test_messages_arrive_whole_and_in_order_whatever_pieces_they_come_in(
    sent: list[messages.Request], data: st.DataObject
) -> None:
    stream = b"".join(encode_frame(message) for message in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    incremental = decoder()
    received: list[messages.Request] = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received.extend(incremental.feed(stream[start:stop]))
    assert received == sent
    assert incremental.buffered_bytes == 0


@given(st.binary(max_size=300))
def test_arbitrary_bytes_give_messages_or_a_wire_error_and_nothing_else(stream: bytes) -> None:
    try:
        received = list(decoder().feed(stream))
    except WireError:
        return
    assert all(isinstance(message, messages.Message) for message in received)


@given(REQUESTS, st.data())
def test_a_frame_with_changed_bytes_gives_a_message_or_a_wire_error(
    message: messages.Request, data: st.DataObject
) -> None:
    frame = bytearray(encode_frame(message))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        list(decoder().feed(frame))


@pytest.mark.parametrize("length", [0, messages.MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_before_its_bytes_come(length: int) -> None:
    with pytest.raises(WireError, match="allowed"):
        list(decoder().feed(length.to_bytes(4, "little")))


def test_nothing_is_decoded_after_a_frame_that_was_refused() -> None:
    broken = decoder()
    with pytest.raises(WireError):
        list(broken.feed(b"\x01\0\0\0\xc1"))
    with pytest.raises(WireError):
        list(broken.feed(encode_frame(messages.Describe(1))))


def test_messages_before_a_refused_frame_are_delivered() -> None:
    received = decoder().feed(encode_frame(messages.Describe(1)) + b"\0\0\0\0")
    assert next(received) == messages.Describe(1)
    with pytest.raises(WireError):
        next(received)


def test_a_message_too_large_for_a_frame_is_refused_where_it_is_made() -> None:
    with pytest.raises(WireError, match="send it in parts"):
        encode_frame(messages.Description(1, bytes(messages.MAX_FRAME_BYTES)))


@pytest.mark.parametrize(
    "message",
    [
        messages.PrefixLease(1, "", ["name"], 1.0),
        messages.PrefixLease(1, "b", [""], 1.0),
        messages.PrefixLease(1, "b", ["x" * (messages.MAX_NAME_BYTES + 1)], 1.0),
        messages.PrefixLease(1, "b", ["x"] * (messages.MAX_NAMES_PER_REQUEST + 1), 1.0),
        messages.PrefixLease(1, "b", ["x"], 0.0),
        messages.PrefixLease(1, "b", ["x"], 1.0, 0),
        messages.Reserve(1, "b", ["x"], [0]),
        messages.Grant(1, 1, 0),
    ],
    ids=lambda message: str(message)[:60],
)
def test_a_field_out_of_bounds_is_refused(message: messages.Request) -> None:
    with pytest.raises(WireError):
        list(decoder().feed(encode_frame(message)))


@pytest.mark.parametrize("message", [messages.Hello(1, "c"), messages.Done(1), messages.Welcome(1, "n", 1, 1, 1, 1.0)])
def test_a_reply_or_a_greeting_is_no_request(message: messages.Message) -> None:
    with pytest.raises(WireError):
        list(decoder().feed(encode_frame(message)))
