"""Heads and bodies, against llhttp and against any cutting of the stream."""

import contextlib
import itertools
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.router.http.bodies import ChunkedBody, LengthBody, body_of_response
from tierline.router.http.heads import BadMessage, RequestHead, ResponseHead
from tierline.router.http.replies import chunk, error_body, reply
from tierline.router.http.retryafter import retry_after_s

chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(chunks, st.binary(max_size=10), st.lists(st.integers(0, 400), max_size=8))
def test_a_chunked_body_ends_where_it_ends_however_it_is_cut(
    parts: list[bytes], behind: bytes, places: list[int]
) -> None:
    body, relayed = ChunkedBody(keeps_payload=True), ChunkedBody()
    framed = b"".join(map(chunk, parts)) + b"0\r\nname: value\r\n\r\n"
    taken = sum(body.feed(piece) for piece in cut(framed + behind, places))
    assert body.is_complete
    assert taken == len(framed)
    assert sum(relayed.feed(piece) for piece in cut(framed + behind, places)) == len(framed)
    assert relayed.is_complete
    assert body.take_payload() == b"".join(parts)


@given(st.binary(max_size=60))
def test_what_llhttp_refuses_as_a_chunked_body_is_refused_here(data: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    try:
        httptools.HttpRequestParser(object()).feed_data(head + data)
    except httptools.HttpParserError:
        body = ChunkedBody()
        with contextlib.suppress(BadMessage):
            assert body.feed(data) < len(data) or not body.is_complete


@given(st.integers(0, 100), st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_a_body_of_a_known_length_takes_just_that(length: int, data: bytes, places: list[int]) -> None:
    body = LengthBody(length)
    assert sum(body.feed(piece) for piece in cut(data, places)) == min(length, len(data))
    assert body.is_complete == (len(data) >= length)


def test_a_chunk_may_be_put_in_only_between_chunks() -> None:
    body = ChunkedBody()
    seen = []
    for byte in b"2\r\nab\r\n0\r\n":
        seen.append(body.is_between_chunks)
        body.feed(bytes([byte]))
    assert [place for place, is_between in enumerate(seen) if is_between] == [0, 7]


@pytest.mark.parametrize("framing", [b"G\r\n", b"\r\n", b"1\n", b"1\r\nab\r\n", b"f" * 16 + b"\r\n", b"1;\x00\r\n"])
def test_broken_chunks_are_refused(framing: bytes) -> None:
    with pytest.raises(BadMessage):
        ChunkedBody().feed(framing)


def test_endless_chunk_lines_and_trailers_are_refused() -> None:
    for endless in (b"1;" + b"x" * 5000, b"0\r\n" + b"a: b\r\n" * 2000):
        with pytest.raises(BadMessage, match="too long"):
            ChunkedBody().feed(endless)


@given(st.binary(max_size=120))
def test_any_bytes_are_a_head_or_a_bad_message(data: bytes) -> None:
    for parse in (RequestHead, ResponseHead):
        for raw in (
            data,
            b"GET / HTTP/1.1\r\nhost: x\r\n" + data + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n",
        ):
            with contextlib.suppress(BadMessage):
                parse(raw)


def test_end_to_end_fields_keep_their_order_and_spelling() -> None:
    head = RequestHead(
        b"GET /a?b HTTP/1.1\r\nX-One: 1\r\nHost: h\r\nx-two:2\r\nConnection: X-One\r\nX-ONE: 3\r\n\r\n", {b"x-two"}
    )
    assert head.lines == [b"x-two: 2\r\n"]
    assert head.fields == {b"x-two": b"2"}
    assert (head.method, head.target, head.path) == (b"GET", b"/a?b", b"/a")


def test_a_target_in_absolute_form_is_a_path() -> None:
    assert RequestHead(b"GET http://other/a HTTP/1.1\r\nhost: x\r\n\r\n").target == b"/a"


@pytest.mark.parametrize(
    ("status_line", "method", "is_complete"),
    [
        (b"HTTP/1.1 204 No", b"GET", True),
        (b"HTTP/1.1 304 No", b"GET", True),
        (b"HTTP/1.1 200 OK", b"HEAD", True),
        (b"HTTP/1.1 200 OK", b"GET", False),
    ],
)
def test_some_responses_have_no_body_whatever_their_fields_say(
    status_line: bytes, method: bytes, is_complete: bool
) -> None:
    head = ResponseHead(status_line + b"\r\ncontent-length: 5\r\n\r\n")
    assert body_of_response(head, method).is_complete == is_complete


def test_a_reply_is_a_response() -> None:
    head = ResponseHead(
        reply(404, error_body(404, "no", "not_found"), keep_alive=False).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    )
    assert (head.status, head.length, head.keep_alive) == (404, len(error_body(404, "no", "not_found")), False)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"120", 120.0), (b"0", 0.0), (b"", 0.0), (b"-1", 0.0), (b"soon", 0.0), (b"1.5", 0.0), (b"9" * 40, 0.0),
     (b"Wed, 21 Oct 2015 07:28:00 GMT", 0.0), (b"\xff\xfe", 0.0)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_and_nonsense_is_none(value: bytes, seconds: float) -> None:
    assert retry_after_s(value) == seconds


def test_retry_after_a_date_to_come_is_the_time_until_then() -> None:
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True).encode()
    assert 3500 < retry_after_s(in_an_hour) <= 3600


@pytest.mark.parametrize(
    ("version", "connection", "lasts"),
    [
        ("1.1", "", True), ("1.1", "keep-alive", True), ("1.1", "close", False), ("1.1", "X, Close", False),
        ("1.0", "", False), ("1.0", "Keep-Alive", True), ("1.0", "keep-alive, close", False), ("1.0", "x", False),
    ],
)  # fmt: skip
def test_a_connection_lasts_as_its_messages_say_whether_they_have_a_body_or_not(
    version: str, connection: str, lasts: bool
) -> None:
    line = f"connection: {connection}\r\n" if connection else ""
    for body in ("", "content-length: 2\r\n"):
        request = RequestHead(f"GET / HTTP/{version}\r\nhost: x\r\n{line}{body}\r\n".encode())
        response = ResponseHead(f"HTTP/{version} 204 None\r\n{line}{body}\r\n".encode())
        assert (request.keep_alive, response.keep_alive) == (lasts, lasts)
