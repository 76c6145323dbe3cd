"""Redis' replies, however the network cuts them, and whatever comes instead."""

import contextlib
import socket
import threading
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("redis")

from tierline.errors import WireError
from tierline.pool.redis.replies import Reader, Refusal

Reply = int | bytes | None | list["Reply"]

replies = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=9000),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


class _Trickle:
    """A connection whose bytes come in pieces of given lengths."""

    socket_timeout = None

    def __init__(self, content: bytes, pieces: list[int]) -> None:
        self._sock = self
        self._content = memoryview(content)
        self._pieces = pieces

    def recv_into(self, view: memoryview) -> int:
        length = min(self._pieces.pop() if self._pieces else 1 << 20, len(self._content), len(view))
        view[:length] = self._content[:length]
        self._content = self._content[length:]
        return length


def reader_of(content: bytes, pieces: list[int] | None = None) -> Reader:
    reader = Reader()
    reader.on_connect(_Trickle(content, list(pieces or ())))
    return reader


def written(reply: Reply) -> bytes:
    match reply:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % reply
        case bytes():
            return b"$%d\r\n%s\r\n" % (len(reply), reply)
    return b"*%d\r\n" % len(reply) + b"".join(map(written, reply))


@given(st.lists(replies, max_size=4), st.lists(st.integers(1, 5000)))
def test_replies_are_read_as_they_were_written_however_they_are_cut(sent: list[object], pieces: list[int]) -> None:
    reader = reader_of(b"".join(written(cast("Reply", reply)) for reply in sent), pieces)
    assert [reader.reply() for _ in sent] == sent


@given(st.lists(st.binary(min_size=1, max_size=20_000), max_size=4), st.lists(st.integers(1, 5000)))
def test_values_come_into_pages_however_they_are_cut(values: list[bytes], pieces: list[int]) -> None:
    reader = reader_of(b"".join(map(written, values)), pieces)
    for value in values:
        length = reader.value_length()
        assert length == len(value)
        pages = bytearray(length)
        reader.fill(memoryview(pages)[: length // 2])
        reader.fill(memoryview(pages)[length // 2 :])
        reader.end_value()
        assert pages == value


@given(st.binary(max_size=6000), st.lists(st.integers(1, 500)))
def test_whatever_comes_ends_in_a_reply_or_an_error_that_closes_the_connection(
    content: bytes, pieces: list[int]
) -> None:
    reader = reader_of(content, pieces)
    with pytest.raises((WireError, ConnectionResetError)):  # at the latest at the end
        _read_on(reader)


def test_lists_in_lists_without_end_are_an_error() -> None:
    with pytest.raises(WireError):
        reader_of(b"*1\r\n" * 100_000).reply()


def test_a_refusal_leaves_the_connection_well() -> None:
    reader = reader_of(b"-OOM command not allowed\r\n$2\r\nok\r\n")
    with pytest.raises(Refusal) as refusal:
        reader.value_length()
    assert refusal.value.kind == "OOM"
    assert reader.reply() == b"ok"


def test_an_interrupt_ends_a_read_that_waits() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = Reader()
        connection = _Trickle(b"", [])
        connection._sock = ours  # type: ignore[assignment]
        reader.on_connect(connection)
        reader.allow(60)
        threading.Timer(0.05, reader.interrupt).start()
        with pytest.raises(OSError, match="closed"):
            reader.reply()


def _read_on(reader: Reader) -> None:
    while True:
        with contextlib.suppress(Refusal):
            reader.reply()
