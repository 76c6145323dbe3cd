"""Two nodes agree on a connection only where both know the token and name one pool; words are of no use elsewhere."""

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.errors import AccessDenied, WireError
from tierline.pool.handshake import (
    GREETING_BYTES,
    MAX_SAID_BYTES,
    Hello,
    Purpose,
    Steps,
    answer,
    call,
    greet,
    parse_greeting,
)

TOKEN = b"a token of some length"
ONE, OTHER = Hello("one", 1, "pool"), Hello("other", 2, "pool")


def welcome(_: Hello) -> str:
    return ""


class Side:
    """One side's part, fed by hand: what it has sent so far, and who it found the other to be."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._received = b""
        self.sent = b""
        self.found: Hello | None = None
        self._wish: int | bytes = 0
        self._go_on(lambda: next(steps))

    def take(self, data: bytes) -> None:
        self._received += data
        while self.found is None and isinstance(self._wish, int) and len(self._received) >= self._wish:
            part, self._received = self._received[: self._wish], self._received[self._wish :]
            self._go_on(lambda part=part: self._steps.send(part))  # type: ignore[misc]

    def said(self) -> bytes:
        """What it has said since it was asked last."""
        said, self.sent = self.sent, b""
        return said

    def _go_on(self, step: Callable[[], int | bytes]) -> None:
        try:
            self._wish = step()
            while isinstance(self._wish, bytes):
                self.sent += self._wish
                self._wish = next(self._steps)
        except StopIteration as end:
            self.found = end.value


def sides(
    token: bytes = TOKEN, other: bytes = TOKEN, *, caller: Hello = ONE, door: Hello = OTHER, objection: Any = welcome
) -> tuple[Side, Side]:
    greeting = greet(Purpose.BULK, is_tls=False)
    heard = parse_greeting(greeting.raw, is_tls=False)
    return Side(call(greeting, caller, token)), Side(answer(heard, door, other, objection))


def talk(caller: Side, door: Side) -> None:
    for _ in range(3):
        caller.take(door.said())
        door.take(caller.said())


@pytest.mark.parametrize("token", [TOKEN, b""])
def test_two_of_one_pool_learn_who_the_other_is(token: bytes) -> None:
    caller, door = sides(token, token)
    talk(caller, door)
    assert (caller.found, door.found) == (OTHER, ONE)


@pytest.mark.parametrize("purpose", list(Purpose))
@pytest.mark.parametrize("is_tls", [True, False])
def test_a_greeting_says_what_a_connection_is_for(purpose: Purpose, is_tls: bool) -> None:
    greeting = greet(purpose, is_tls=is_tls)
    assert parse_greeting(greeting.raw, is_tls=is_tls) == greeting
    assert len(greeting.raw) == GREETING_BYTES
    with pytest.raises(WireError, match="TLS"):
        parse_greeting(greeting.raw, is_tls=not is_tls)


@pytest.mark.parametrize(("at", "message"), [(0, "not the greeting"), (8, "version"), (9, "purpose"), (10, "purpose")])
def test_other_first_bytes_are_no_greeting(at: int, message: str) -> None:
    raw = bytearray(greet(Purpose.CONTROL, is_tls=False).raw)
    raw[at] = 77
    with pytest.raises(WireError, match=message):
        parse_greeting(bytes(raw), is_tls=False)


@pytest.mark.parametrize(("own", "doors"), [(TOKEN, b"another token, as long"), (TOKEN, b""), (b"", TOKEN)])
def test_a_caller_finds_out_a_door_that_does_not_know_the_token_and_says_nothing_to_it(
    own: bytes, doors: bytes
) -> None:
    caller, door = sides(own, doors)
    with pytest.raises(AccessDenied, match="does not know this pool's token"):
        caller.take(door.said())
    assert caller.sent == b""


def test_a_door_finds_out_a_caller_that_changes_what_it_proves() -> None:
    caller, door = sides()
    caller.take(door.said())
    said = caller.said()
    for at in (3, len(said) - 1):
        again = Side(answer(greet(Purpose.BULK, is_tls=False), OTHER, TOKEN, welcome))
        again.said()
        with pytest.raises((AccessDenied, WireError)):
            again.take(said[:at] + bytes([said[at] ^ 1]) + said[at + 1 :])


def test_what_a_caller_has_said_once_proves_nothing_in_another_connection() -> None:
    greeting = greet(Purpose.BULK, is_tls=False)
    caller, door = Side(call(greeting, ONE, TOKEN)), Side(answer(greeting, OTHER, TOKEN, welcome))
    caller.take(door.said())
    recorded = caller.said()
    again = Side(answer(greeting, OTHER, TOKEN, welcome))  # the same first bytes; the door's nonce is another
    again.said()
    with pytest.raises(AccessDenied, match="does not know this pool's token"):
        again.take(recorded)
    assert b"token" in again.sent  # it is told why


def test_what_a_door_says_cannot_be_said_back_to_it() -> None:
    greeting = greet(Purpose.BULK, is_tls=False)
    door = Side(answer(greeting, OTHER, TOKEN, welcome))
    said = door.said()
    with pytest.raises(AccessDenied, match="does not know this pool's token"):
        door.take(said[16:])  # its hello and its proof, as a caller's


def test_a_purpose_that_was_changed_on_the_way_is_found_out() -> None:
    greeting = greet(Purpose.BULK, is_tls=False)
    changed = parse_greeting(greeting.raw[:9] + b"\x01" + greeting.raw[10:], is_tls=False)
    caller, door = Side(call(greeting, ONE, TOKEN)), Side(answer(changed, OTHER, TOKEN, welcome))
    with pytest.raises(AccessDenied):
        caller.take(door.said())


@pytest.mark.parametrize(("caller", "door"), [("another", "pool"), ("pool", "another")])
def test_nodes_of_two_pools_part_although_they_know_one_token(caller: str, door: str) -> None:
    one, other = sides(caller=Hello("one", 1, caller), door=Hello("other", 2, door))
    with pytest.raises(AccessDenied, match="belongs to pool"):
        talk(one, other)


def test_a_caller_that_is_objected_to_hears_why() -> None:
    caller, door = sides(objection=lambda hello: f"{hello.node} is one too many")
    caller.take(door.said())
    with pytest.raises(AccessDenied, match="one is one too many"):
        door.take(caller.said())
    with pytest.raises(AccessDenied, match="turns us away: one is one too many"):
        caller.take(door.said())


@pytest.mark.parametrize("hello", [["", 1, "pool"], ["one", -1, "pool"], ["one", 1], ["x" * 201, 1, "pool"], 7])
def test_a_hello_that_is_none_is_refused(hello: object) -> None:
    _, door = sides()
    payload = msgspec.msgpack.encode(hello)
    with pytest.raises(WireError, match="not a node's hello"):
        door.take(len(payload).to_bytes(2, "little") + payload + bytes(32))


def test_a_hello_of_any_length_is_not_waited_for() -> None:
    _, door = sides()
    with pytest.raises(WireError, match="bytes in a handshake"):
        door.take((MAX_SAID_BYTES + 1).to_bytes(2, "little"))


@given(st.binary(max_size=3000))
def test_any_bytes_are_refused_or_waited_behind(data: bytes) -> None:
    caller, door = sides()
    for side in (caller, door):
        with contextlib.suppress(AccessDenied, WireError):
            side.take(data)
        assert side.found is None
