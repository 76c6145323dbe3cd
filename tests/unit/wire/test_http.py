"""Heads and paths of the HTTP contract, as values."""

import contextlib
import json
from http import HTTPStatus
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.wire import http
from tierline.wire.http import AcquireLease, GetObject, HttpRefusal, PutObject, ReleaseLease

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=80).filter(lambda name: len(name.encode()) <= 1024)


@given(bucket=NAMES, name=NAMES)
def test_any_bucket_and_key_survive_their_quoting(bucket: str, name: str) -> None:
    path = f"/v1/kv/{quote(bucket, safe='')}/{quote(name, safe='')}".encode()
    assert http.route("PUT", path) == PutObject(bucket, name)
    assert http.route("GET", path) == GetObject(bucket, name, head_only=False)
    assert http.route("POST", path + b"/leases?timeout_ms=250&ttl_s=30.0") == AcquireLease(bucket, name, 0.25, 30.0)


@given(method=st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "X"]), target=st.binary(max_size=80))
def test_any_target_is_routed_or_refused_with_a_status(method: str, target: bytes) -> None:
    with contextlib.suppress(HttpRefusal):
        assert isinstance(http.route(method, target), http.Route)


@given(head=st.binary(max_size=200))
def test_any_head_is_parsed_or_refused_as_a_bad_request(head: bytes) -> None:
    with contextlib.suppress(HttpRefusal):
        assert isinstance(http.parse_head(head + http.HEAD_END), http.RequestHead)


def test_a_key_is_split_off_before_it_is_unquoted() -> None:
    assert http.route("PUT", b"/v1/kv/b/a%2Fleases") == PutObject("b", "a/leases")
    assert http.route("PUT", b"/v1/kv/b/a%2525") == PutObject("b", "a%25")


def test_an_unquoted_bucket_may_have_slashes() -> None:
    assert http.route("PUT", b"/v1/kv/team/a/key") == http.route("PUT", b"/v1/kv/team%2Fa/key")


def test_the_absolute_form_of_a_target_is_the_same_request() -> None:
    assert http.route("POST", b"http://node:9200/v1/leases/a-1/release") == ReleaseLease("a-1")


def test_parameters_have_defaults_and_a_long_wait_is_cut() -> None:
    assert http.route("POST", b"/v1/kv/b/k/leases") == AcquireLease("b", "k", 1.0, 30.0)
    assert http.route("POST", b"/v1/kv/b/k/leases?timeout_ms=1e9&x&y=1") == AcquireLease("b", "k", 60.0, 30.0)


@pytest.mark.parametrize("query", ["timeout_ms=-1", "timeout_ms=x", "ttl_s=0", "ttl_s=nan", "ttl_s=inf", "ttl_s="])
def test_a_parameter_out_of_bounds_is_named_with_its_value(query: str) -> None:
    with pytest.raises(HttpRefusal, match=query.partition("=")[0]) as refused:
        http.route("POST", f"/v1/kv/b/k/leases?{query}".encode())
    assert refused.value.status is HTTPStatus.BAD_REQUEST


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


@pytest.mark.parametrize(
    "headers",
    [b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"Content-Length: x\r\n\r\n", b"A: \x00\r\n\r\n", b"A\r\n\r\n"],
)
def test_refused_headers_are_not_remembered_as_good(headers: bytes) -> None:
    for _ in range(2):
        with pytest.raises(http.HttpRefusal):
            http.parse_head(b"PUT /a HTTP/1.1\r\n" + headers)
