"""AWS's event stream, held to botocore's own parser."""

import pytest
from botocore.eventstream import ChecksumMismatch, EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from tierline.router.http.eventstream import encode_message, payload_part, stream_error

NAMES = st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=20)
VALUES = st.text(alphabet=st.characters(codec="utf-8"), max_size=200)
MESSAGES = st.lists(st.tuples(st.dictionaries(NAMES, VALUES, max_size=5), st.binary(max_size=2000)), max_size=5)


@given(MESSAGES, st.lists(st.integers(1, 400), max_size=30))
def test_botocore_reads_what_was_written_however_it_is_cut(
    messages: list[tuple[dict[str, str], bytes]], cuts: list[int]
) -> None:
    data = b"".join(encode_message(headers, payload) for headers, payload in messages)
    buffer, found = EventStreamBuffer(), []
    for cut in [*cuts, len(data)]:
        buffer.add_data(data[:cut])
        data = data[cut:]
        found += [(message.headers, message.payload) for message in buffer]
    assert found == messages


@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_byte_that_changes_on_the_way_is_noticed(payload: bytes, draw: st.DataObject) -> None:
    message = bytearray(payload_part(payload))
    place = draw.draw(st.integers(8, len(message) - 1))  # in the lengths, more bytes would be waited for
    message[place] ^= draw.draw(st.integers(1, 255))
    buffer = EventStreamBuffer()
    buffer.add_data(bytes(message))
    with pytest.raises(ChecksumMismatch):
        list(buffer)


def test_an_exception_names_its_type() -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(stream_error("ModelStreamError", b'{"Message":"x"}'))
    (message,) = buffer
    assert message.headers[":message-type"] == "exception"
    assert message.headers[":exception-type"] == "ModelStreamError"
