"""Two routers prove a secret to each other; a message that is not the next one of this connection fits nowhere."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.errors import WireError
from tierline.router.gossip.addresses import parse_address
from tierline.router.gossip.sealing import Follower, SealedReader, Sealer, Teller
from tierline.router.workers.messages import Kind

SECRET = b"a secret of some length"
FRAMES = st.lists(st.tuples(st.sampled_from(list(Kind)), st.binary(max_size=40)), min_size=1, max_size=6)


def joined(secret: bytes = SECRET, other: bytes = SECRET, *, wants_recent: bool = True) -> tuple[Sealer, SealedReader]:
    teller, follower = Teller(secret, b"t" * 16), Follower(other, b"f" * 16)
    name, answer, reader = follower.join(teller.welcome(follower.hello()), wants_recent=wants_recent)
    who, sealer = teller.join(answer)
    assert (name, who.name, who.wants_recent) == (b"t" * 16, b"f" * 16, wants_recent)
    return sealer, reader


@pytest.mark.parametrize("wants_recent", [True, False])
def test_routers_that_know_the_secret_understand_each_other(wants_recent: bool) -> None:
    sealer, reader = joined(wants_recent=wants_recent)
    told = [(Kind.LOADS, b"one"), (Kind.KNOWLEDGE, b""), (Kind.CAUGHT_UP, b"three")]
    assert list(reader.feed(b"".join(sealer.sealed(*message) for message in told))) == told


def test_who_does_not_know_the_secret_is_found_out_by_the_follower_and_by_the_teller() -> None:
    with pytest.raises(WireError, match="does not know the secret"):
        joined(b"another", SECRET)
    teller, follower = Teller(SECRET, b"t" * 16), Follower(SECRET, b"f" * 16)
    _, answer, _ = follower.join(teller.welcome(follower.hello()), wants_recent=True)
    for at in (0, 16, 20):
        with pytest.raises(WireError, match="does not know the secret"):
            teller.join(answer[:at] + bytes([answer[at] ^ 1]) + answer[at + 1 :])


def test_what_was_said_to_another_connection_proves_nothing_in_this_one() -> None:
    teller, follower = Teller(SECRET, b"t" * 16), Follower(SECRET, b"f" * 16)
    _, answer, _ = follower.join(teller.welcome(follower.hello()), wants_recent=False)
    again = Teller(SECRET, b"t" * 16)
    again.welcome(follower.hello())
    with pytest.raises(WireError):
        again.join(answer)


@given(FRAMES, st.integers(0, 500), st.integers(1, 255))
def test_a_changed_byte_is_found_out_and_nothing_behind_it_is_taken(
    frames: list[tuple[Kind, bytes]], at: int, change: int
) -> None:
    sealer = Sealer(b"key")
    stream = bytearray(b"".join(sealer.sealed(*one) for one in frames))
    at %= len(stream)
    stream[at] ^= change
    taken: list[tuple[Kind, bytes]] = []
    with contextlib.suppress(WireError):
        taken.extend(SealedReader(Sealer(b"key")).feed(bytes(stream)))
    assert taken == frames[: len(taken)]
    assert len(taken) < len(frames)


@given(FRAMES, st.randoms(use_true_random=False))
def test_messages_that_are_left_out_repeated_or_exchanged_are_refused(
    frames: list[tuple[Kind, bytes]], random: object
) -> None:
    sealer = Sealer(b"key")
    sealed = [sealer.sealed(*one) for one in frames]
    shuffled = [*sealed, *sealed]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    taken: list[tuple[Kind, bytes]] = []
    with pytest.raises(WireError):
        taken.extend(SealedReader(Sealer(b"key")).feed(b"".join(shuffled)))
    assert taken == frames[: len(taken)]


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    teller = Teller(SECRET, b"t" * 16)
    for take in (teller.welcome, teller.join, lambda said: Follower(SECRET, b"f" * 16).join(said, wants_recent=True)):
        with pytest.raises(WireError):
            take(data)


@pytest.mark.parametrize("text", ["host:1", "10.0.0.7:8100", "[fd00::7]:8100"])
def test_addresses_are_read(text: str) -> None:
    host, port = parse_address(text)
    assert text.replace("[", "").replace("]", "") == f"{host}:{port}"


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:x", "host:99999", "fd00::7:8100", "[fd00::7:1"])
def test_other_texts_are_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)
