"""Messages of a pool: what is sent is what arrives; what is too much, or wrong, is refused."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.errors import WireError
from tierline.wire import pool
from tierline.wire.framing import FrameDecoder, encode_frame
from tierline.wire.messages import Message

IDS = st.integers(0, 2**63 - 1)
SLOTS = st.integers(0, pool.SLOTS - 1)
DIGESTS = st.binary(min_size=pool.DIGEST_BYTES, max_size=pool.DIGEST_BYTES)
SIZES = st.integers(1, 2**40 - 1)
CHECKSUMS = st.integers(0, 2**64 - 1)
NAMES = st.text(min_size=1, max_size=20)
FOUND = st.builds(
    pool.RunFound,
    st.lists(st.integers(1, 4), max_size=3),
    st.lists(st.integers(0, 9), max_size=3),
    st.lists(SIZES, max_size=3),
    st.lists(CHECKSUMS, max_size=3),
)
MESSAGES = st.one_of(
    st.builds(pool.Ping, IDS),
    st.builds(
        pool.Announce,
        IDS,
        st.lists(st.builds(pool.ObjectHeld, SLOTS, DIGESTS, SIZES, CHECKSUMS), max_size=4),
        st.lists(st.builds(pool.ObjectGone, SLOTS, DIGESTS), max_size=4),
    ),
    st.builds(pool.Complete),
    st.builds(pool.Lookup, IDS, st.lists(st.builds(pool.Run, SLOTS, st.lists(DIGESTS, max_size=4)), max_size=3)),
    st.builds(
        pool.Keep,
        IDS,
        st.lists(st.builds(pool.ObjectToKeep, NAMES, NAMES, SLOTS, SIZES, CHECKSUMS), max_size=3),
        st.text(max_size=20),
        st.text(max_size=20),
    ),
    st.builds(pool.Well, IDS, *[IDS] * 5),
    st.builds(pool.Announced, IDS, st.lists(IDS, max_size=4)),
    st.builds(pool.Entrusted, st.lists(DIGESTS, max_size=4)),
    st.builds(
        pool.Located,
        IDS,
        st.lists(st.builds(pool.Holder, NAMES, IDS), max_size=3),
        st.lists(FOUND, max_size=3),
    ),
    st.builds(pool.Keeping, IDS, st.lists(st.booleans(), max_size=4)),
)
TYPE: Any = pool.PeerRequest | pool.PeerReply


@given(st.lists(MESSAGES, max_size=5), st.integers(1, 40))
def test_messages_arrive_whole_and_in_order_whatever_pieces_they_come_in(sent: list[Any], piece: int) -> None:
    stream = b"".join(encode_frame(message) for message in sent)
    decoder: FrameDecoder[Any] = FrameDecoder(TYPE)
    received: list[Any] = []
    for start in range(0, len(stream), piece):
        received.extend(decoder.feed(stream[start : start + piece]))
    assert received == sent


@given(MESSAGES, st.data())
def test_a_frame_with_changed_bytes_gives_a_message_or_a_wire_error(message: Any, data: st.DataObject) -> None:
    frame = bytearray(encode_frame(message))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    decoder: FrameDecoder[Any] = FrameDecoder(TYPE)
    with contextlib.suppress(WireError):
        list(decoder.feed(frame))


@pytest.mark.parametrize(
    "message",
    [
        pool.Lookup(1, [pool.Run(pool.SLOTS, [])]),
        pool.Lookup(1, [pool.Run(0, [b"short"])]),
        pool.Announce(1, [pool.ObjectHeld(0, bytes(16), 0, 0)], []),
        pool.Announce(1, [], [pool.ObjectGone(0, bytes(16))] * (pool.MAX_ANNOUNCED_PER_MESSAGE + 1)),
        pool.Located(1, [], [pool.RunFound([0], [], [], [])]),
        pool.Located(1, [], [pool.RunFound([pool.MAX_HOLDERS_PER_OBJECT + 1], [0] * 5, [1] * 5, [0] * 5)]),
        pool.Located(1, [], [pool.RunFound([1], [0], [0], [0])]),
        pool.Ping(-1),
    ],
)
def test_what_is_out_of_bounds_is_refused(message: Any) -> None:
    with pytest.raises(WireError, match="contract"):
        list(FrameDecoder(TYPE).feed(encode_frame(message)))


def test_the_largest_messages_fit_a_frame() -> None:
    digests = [bytes(pool.DIGEST_BYTES)] * pool.MAX_OBJECTS_PER_MESSAGE
    held = [pool.ObjectHeld(pool.SLOTS - 1, bytes(16), 2**40 - 1, 2**64 - 1)] * pool.MAX_ANNOUNCED_PER_MESSAGE
    copies = pool.MAX_HOLDERS_PER_OBJECT * pool.MAX_OBJECTS_PER_MESSAGE
    located = pool.RunFound(
        [pool.MAX_HOLDERS_PER_OBJECT] * pool.MAX_OBJECTS_PER_MESSAGE,
        [9] * copies,
        [2**40 - 1] * copies,
        [2**64 - 1] * copies,
    )
    kept = [pool.ObjectToKeep("b" * 63, "n" * 1024, 1, 2**40 - 1, 2**64 - 1)] * pool.MAX_KEPT_PER_MESSAGE
    for message in (
        pool.Lookup(1, [pool.Run(0, digests)]),
        pool.Announce(1, held, []),
        pool.Located(1, [pool.Holder("n" * 200, 1)] * 64, [located]),
        pool.Keep(1, kept, "i" * 256, "t" * 256),
    ):
        assert encode_frame(message)


class OldKeep(Message, frozen=True, tag="Keep"):
    """As it was before it said for whose sake."""

    id: int
    objects: list[pool.ObjectToKeep]


def test_nodes_of_two_versions_understand_each_other() -> None:
    """One may be restarted with a newer version while the other runs."""
    wish = [pool.ObjectToKeep("b", "n", 1, 10, 5)]
    old: FrameDecoder[Any] = FrameDecoder(OldKeep | pool.Ping)  # type: ignore[arg-type]
    assert list(old.feed(encode_frame(pool.Keep(3, wish, "an id", "a place")))) == [OldKeep(3, wish)]
    new: FrameDecoder[Any] = FrameDecoder(TYPE)
    assert list(new.feed(encode_frame(OldKeep(3, wish)))) == [pool.Keep(3, wish, "", "")]
