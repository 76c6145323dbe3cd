"""Heads and bodies of the HTTP contract, as values."""

import contextlib
import json
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.wire import http
from tierline.wire.http import HttpRefusal


@given(head=st.binary(max_size=200))
def test_any_head_is_parsed_or_refused_as_a_bad_request(head: bytes) -> None:
    with contextlib.suppress(HttpRefusal):
        assert isinstance(http.parse_head(head + http.HEAD_END), http.RequestHead)


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", False),
    ],
)
def test_a_head_says_whether_the_connection_may_be_used_again(head: bytes, keep_alive: bool) -> None:
    assert http.parse_head(head).keep_alive is keep_alive


def test_a_head_is_parsed_without_its_body() -> None:
    head = http.parse_head(b"PUT /x HTTP/1.1\r\ncontent-LENGTH: 12\r\nExpect: 100-Continue\r\n\r\n")
    assert (head.method, head.target, head.content_length, head.is_chunked) == ("PUT", b"/x", 12, False)
    assert head.expects_continue


def test_the_body_of_a_lease_is_what_the_stock_clients_read() -> None:
    assert json.loads(http.lease_body("a-1", [(0, 65536), (131072, 28)])) == {
        "id": "a-1",
        "offsets": [{"offset": 0, "len": 65536}, {"offset": 131072, "len": 28}],
    }


def test_a_reply_head_ends_with_an_empty_line_and_says_its_length() -> None:
    assert http.reply_head(HTTPStatus.OK, 3, http.JSON) == (
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Type: application/json\r\n\r\n"
    )


@pytest.mark.parametrize(
    "headers",
    [
        b"Host: a\r\nContent-Length: 7\r\n\r\n",
        b"Host: a\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 7\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"\r\n",
    ],
)
def test_headers_mean_the_same_whether_they_are_remembered_or_not(headers: bytes) -> None:
    unremembered = http.parse_head(b"PUT /%C3%BC HTTP/1.1\r\nX: " + b"x" * 2000 + b"\r\n" + headers)
    for _ in range(2):
        assert http.parse_head(b"PUT /%C3%BC HTTP/1.1\r\n" + headers) == unremembered


def meaning(headers: bytes, *, is_long: bool) -> http.RequestHead | None:
    """Return what headers say, long ones being parsed as they are; ``None`` where they are refused."""
    more = b"X: " + b"x" * 2000 + b"\r\n" if is_long else b""
    with contextlib.suppress(HttpRefusal):
        return http.parse_head(b"PUT /a HTTP/1.1\r\n" + more + headers)
    return None


@given(
    lines=st.lists(
        st.sampled_from(
            [
                b"x-request-id: a-1\r\n",
                b"X-Request-ID: B\r\n",
                b"x-request-id:\tc d \r\n",
                b"x-request-id: \x00\r\n",
                b"traceparent: 00-1\r\n",
                b"Traceparent:  2\r\n",
                b"y: x-request-id: e\r\n",
                b" goes on\r\n",
                b"content-length: 7\r\n",
                b"x-tierline-client: f\r\n",
                b"connection: close\r\n",
                b"\n",
                b"no header\r\n",
            ]
        ),
        max_size=5,
    )
)
def test_whose_work_it_is_changes_nothing_of_what_other_headers_mean(lines: list[bytes]) -> None:
    headers = b"".join(lines) + b"\r\n"
    for _ in range(2):
        assert meaning(headers, is_long=False) == meaning(headers, is_long=True)


def test_headers_are_remembered_whosever_work_it_is() -> None:
    head = b"GET / HTTP/1.1\r\nHost: remembered\r\nX-Request-Id: %d\r\ntraceparent: 00-%032x-%016x-01\r\nA: b\r\n\r\n"
    said = {(read.request_id, read.traceparent) for read in (http.parse_head(head % (n, n, n)) for n in range(100))}
    assert said == {(str(n), b"00-%032x-%016x-01" % (n, n)) for n in range(100)}
    before = http._parse_headers.cache_info().misses
    for number in range(100, 200):
        http.parse_head(head % (number, number, number))
    assert http._parse_headers.cache_info().misses == before


@pytest.mark.parametrize(
    "headers",
    [b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"Content-Length: x\r\n\r\n", b"A: \x00\r\n\r\n", b"A\r\n\r\n"],
)
def test_refused_headers_are_not_remembered_as_good(headers: bytes) -> None:
    for _ in range(2):
        with pytest.raises(http.HttpRefusal):
            http.parse_head(b"PUT /a HTTP/1.1\r\n" + headers)


def test_a_client_may_say_who_it_is() -> None:
    assert http.parse_head(b"GET / HTTP/1.1\r\nX-Tierline-Client: engine 7\r\n\r\n").client == "engine 7"
    assert http.parse_head(b"GET / HTTP/1.1\r\n\r\n").client == ""


@pytest.mark.parametrize("name", [b"", b"a#1", b"\xe9", b"x" * 201])
def test_a_name_that_could_be_taken_for_anothers_is_refused(name: bytes) -> None:
    with pytest.raises(HttpRefusal, match="X-Tierline-Client"):
        http.parse_head(b"GET / HTTP/1.1\r\nX-Tierline-Client: " + name + b"\r\n\r\n")
