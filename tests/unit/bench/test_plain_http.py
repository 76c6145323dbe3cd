"""Replies as the load of the benches reads them."""

import pytest

from tierline.bench.plain_http import received_reply

REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"


@pytest.mark.parametrize("length", range(len(REPLY)))
def test_a_reply_is_not_taken_before_it_is_whole(length: int) -> None:
    assert received_reply(REPLY[:length]) is None


def test_a_whole_reply_is_status_and_body() -> None:
    assert received_reply(REPLY) == (200, b"abc")
