"""Messages of ``application/vnd.amazon.eventstream``, as AWS's SDKs read them from a stream. Encoding only.

A message is a prelude (two lengths and their CRC-32), headers, a payload, and the CRC-32 of all before it; integers are
big-endian. The format is described with Amazon Transcribe's streaming; botocore's parser is what the tests hold it to.
"""

from collections.abc import Mapping
from struct import Struct
from zlib import crc32

EVENT_STREAM = b"application/vnd.amazon.eventstream"

_PRELUDE, _CRC = Struct("!II"), Struct("!I")
_STRING_HEADER = Struct("!BH")
_STRING = 7
_FRAME_BYTES = _PRELUDE.size + 2 * _CRC.size


def encode_message(headers: Mapping[str, str], payload: bytes) -> bytes:
    """Return one message; all of its headers are strings.

    >>> encode_message({}, b"").hex()
    '000000100000000005c248eb7d98c8ff'
    """
    return _framed(b"".join(_header(name, value) for name, value in headers.items()), payload)


def payload_part(data: bytes) -> bytes:
    """Return an event ``PayloadPart`` with some of an answer's body."""
    return _framed(_PART_HEADERS, data)


def stream_error(code: str, message: bytes) -> bytes:
    """Return an exception ``ModelStreamError``; ``message`` is its JSON."""
    headers = {":message-type": "exception", ":exception-type": code, ":content-type": "application/json"}
    return encode_message(headers, message)


def _header(name: str, value: str) -> bytes:
    name_bytes, value_bytes = name.encode(), value.encode()
    return b"%c%b%b%b" % (len(name_bytes), name_bytes, _STRING_HEADER.pack(_STRING, len(value_bytes)), value_bytes)


def _framed(headers: bytes, payload: bytes) -> bytes:
    prelude = _PRELUDE.pack(_FRAME_BYTES + len(headers) + len(payload), len(headers))
    message = b"".join((prelude, _CRC.pack(crc32(prelude)), headers, payload))
    return message + _CRC.pack(crc32(message))


_PART_HEADERS = b"".join((
    _header(":message-type", "event"),
    _header(":event-type", "PayloadPart"),
    _header(":content-type", "application/octet-stream"),
))  # fmt: skip
