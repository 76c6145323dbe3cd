"""Heads and bodies of the node's HTTP, as values: a request's head parsed, a reply's written. Pure, no sockets.

What a path asks for is in :mod:`tierline.wire.routes`. What cannot be served is an :class:`HttpRefusal`, which says the
status it is answered with.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

import httptools
import msgspec

from tierline.errors import WireError
from tierline.wire.messages import Anchor, Count, Extent, Names, Seconds, Wait

HEAD_END = b"\r\n\r\n"
MIN_HEAD_LIMIT_BYTES = 8 * 1024
"""Request line and headers together; a bucket and a name of ``MAX_NAME_BYTES``, every byte encoded, take 6 KiB."""

MAX_CLIENT_CHARACTERS = 200

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
BYTES = "application/octet-stream"


class HttpRefusal(WireError):  # noqa: N818  (it is an answer)
    """A request that is answered with an error.

    Parameters
    ----------
    status
        The status of the answer.
    message
        What was wrong and what is allowed; the client gets it.
    headers
        Further headers of the answer.
    reason
        One word for programs, in the answer's body.
    """

    def __init__(
        self, status: HTTPStatus, message: str, headers: Mapping[str, str] | None = None, *, reason: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.reason = reason


# Requests ---------------------------------------------------------------------------------------------------------


class RequestHead(NamedTuple):
    """What a request line and its headers say about how to go on.

    Parameters
    ----------
    method, target
        As they came.
    content_length
        Bytes of the body; None where no header says it.
    is_chunked
        The body comes in a transfer coding, whose length nobody knows ahead.
    keep_alive
        The connection may be used again.
    expects_continue
        The client waits for ``100 Continue`` before it sends the body.
    authorization
        The header of that name.
    client
        ``X-Tierline-Client``: who leases; empty where no header says it.
    request_id, traceparent
        Whose work it is; empty where no header says it. They are for logs and spans alone, and never refused.
    """

    method: str
    target: bytes
    content_length: int | None
    is_chunked: bool
    keep_alive: bool
    expects_continue: bool
    authorization: bytes | None = None
    client: str = ""
    request_id: str = ""
    traceparent: bytes = b""


def parse_head(head: bytes | bytearray | memoryview) -> RequestHead:
    """Parse a request's bytes up to and with the empty line.

    A client sends the same headers with each of its requests, so those are parsed once and remembered: with a
    request line of the usual form, what headers mean does not depend on it. Those that say whose work it is differ
    each time, mean nothing for the others, and are taken out before.

    Raises
    ------
    HttpRefusal
        400 for what is not HTTP/1.x.
    """
    line = _USUAL_REQUEST_LINE.match(head)
    if line is None or len(head) - line.end() > _MOST_BYTES_REMEMBERED:
        return _parse_whole_head(head)
    headers = bytes(head[line.end() :])
    method, target = line.groups()
    if b"equest-" not in headers and b"raceparent" not in headers:
        return RequestHead._make((method.decode("latin-1"), target, *_parse_headers(headers)))
    headers, request_id = _without(_USUAL_REQUEST_ID, headers)
    headers, traceparent = _without(_USUAL_TRACEPARENT, headers)
    *read, more_request_id, more_traceparent = _parse_headers(headers)
    if more_request_id or more_traceparent:  # said twice, or in another form
        return _parse_whole_head(head)
    return RequestHead._make((method.decode("latin-1"), target, *read, request_id.decode("latin-1"), traceparent))


_USUAL_REQUEST_LINE = re.compile(rb"(DELETE|GET|HEAD|POST|PUT) (/[!-~]*) HTTP/1\.1(?=\r\n)")
_USUAL_REQUEST_ID = re.compile(rb"\r\nx-request-id: ([!-~]+)(?=\r\n[^ \t])")  # no line follows that goes on with it
_USUAL_TRACEPARENT = re.compile(rb"\r\ntraceparent: ([!-~]+)(?=\r\n[^ \t])")
_MOST_BYTES_REMEMBERED = 1024


def _without(header: re.Pattern[bytes], headers: bytes) -> tuple[bytes, bytes]:
    """Return headers, each behind its line's beginning, without the first of a name, and what that says."""
    found = header.search(headers.lower())  # a pattern that ignores case takes ten times as long
    if found is None or headers[: found.start()].endswith(b"\n"):  # behind an empty line is no header
        return headers, b""
    return headers[: found.start()] + headers[found.end() :], headers[slice(*found.span(1))]


@lru_cache(maxsize=1024)
def _parse_headers(headers: bytes) -> tuple[int | None, bool, bool, bool, bytes | None, str, str, bytes]:
    """Return what the headers of an HTTP/1.1 request say: the fields of :class:`RequestHead` but for the first two."""
    return _parse_whole_head(b"GET / HTTP/1.1" + headers)[2:]


def _parse_whole_head(head: bytes | bytearray | memoryview) -> RequestHead:
    collector = _HeadCollector()
    parser = httptools.HttpRequestParser(collector)
    collector.parser = parser
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        collector.keep_alive = False  # we speak HTTP/1.1 only, and say so by ignoring the wish
    except httptools.HttpParserError as error:
        raise HttpRefusal(HTTPStatus.BAD_REQUEST, f"not an HTTP/1.1 request: {error}") from error
    if not collector.is_complete:
        raise HttpRefusal(HTTPStatus.BAD_REQUEST, "not an HTTP/1.1 request: its head does not end where it should")
    return RequestHead(
        method=parser.get_method().decode("latin-1"),
        target=bytes(collector.target),
        content_length=collector.content_length,
        is_chunked=collector.is_chunked,
        keep_alive=collector.keep_alive,
        expects_continue=collector.expects_continue,
        authorization=collector.authorization,
        client="" if collector.client is None else _client_name(collector.client),
        request_id=collector.request_id.decode("latin-1"),
        traceparent=collector.traceparent,
    )


# Replies ----------------------------------------------------------------------------------------------------------


class Fragment(msgspec.Struct, frozen=True):
    """One extent, as LMCache's clients read it."""

    offset: int
    length: int = msgspec.field(name="len")


class LeaseReply(msgspec.Struct, frozen=True):
    """Body of a granted lease; the fragments' lengths sum to the object exactly."""

    id: str
    offsets: list[Fragment]


class PrefixLeaseRequest(msgspec.Struct, frozen=True):
    """Body of a prefix lease: ``names`` in order, first block first; ``timeout_ms`` waits for commits under way.

    With ``across_gaps`` it goes on behind a group that is not complete, and waits for nobody. ``anchor``,
    ``prefill_s`` and ``prefill_growth_s`` as in :class:`tierline.wire.messages.PrefixLease`.
    """

    names: Names
    ttl_s: Seconds = 30.0
    group_size: Count = 1
    timeout_ms: Wait = 0.0
    across_gaps: bool = False
    anchor: Anchor = ""
    prefill_s: Wait = 0.0
    prefill_growth_s: Wait = 0.0


class LeasedFragments(msgspec.Struct, frozen=True):
    """One object of a prefix lease; ``checksum`` is XXH3-64 of its bytes, 16 hexadecimal digits."""

    size: int
    checksum: str
    offsets: list[Fragment]


class PrefixLeaseReply(msgspec.Struct, frozen=True):
    """Body of a granted prefix lease: one object for each leading name; without any, ``id`` is empty.

    Across gaps ``places`` has the index of each object's name; else it is empty. ``sources`` as in
    :class:`tierline.wire.messages.Leased`.
    """

    id: str
    objects: list[LeasedFragments]
    ttl_s: float
    places: list[int] = []
    sources: dict[str, int] = {}


class ErrorReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Body of every refusal; ``reason`` is one word where a program needs to know it."""

    error: str
    reason: str = ""


_JSON_ENCODER = msgspec.json.Encoder()


def lease_body(lease: str, extents: Iterable[Extent | tuple[int, int]]) -> bytes:
    """Return the JSON of a granted lease."""
    return _JSON_ENCODER.encode(LeaseReply(lease, [Fragment(offset, length) for offset, length in extents]))


def error_body(message: str, reason: str = "") -> bytes:
    """Return the JSON of a refusal."""
    return _JSON_ENCODER.encode(ErrorReply(message, reason))


def reply_head(
    status: HTTPStatus,
    content_length: int,
    content_type: str | None = None,
    *,
    keep_alive: bool = True,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Return a reply's head; its body, ``content_length`` bytes, follows."""
    head = _usual_head(int(status), content_length, content_type, keep_alive)
    if not headers:
        return head
    further = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return b"%s%s\r\n" % (head[: -len(b"\r\n")], further.encode("latin-1"))


@lru_cache(maxsize=1024)  # replies of a kind are of few lengths
def _usual_head(status: int, content_length: int, content_type: str | None, keep_alive: bool) -> bytes:
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Length: {content_length}\r\n"
    if content_type is not None:
        head += f"Content-Type: {content_type}\r\n"
    if not keep_alive:
        head += "Connection: close\r\n"
    return f"{head}\r\n".encode("latin-1")


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


# Parsing ----------------------------------------------------------------------------------------------------------


class _HeadCollector:
    """httptools calls these for the parts of one head."""

    __slots__ = (
        "authorization",
        "client",
        "content_length",
        "expects_continue",
        "is_chunked",
        "is_complete",
        "keep_alive",
        "parser",
        "request_id",
        "target",
        "traceparent",
    )

    def __init__(self) -> None:
        self.parser: httptools.HttpRequestParser | None = None
        self.target = bytearray()
        self.content_length: int | None = None
        self.is_chunked = False
        self.keep_alive = False
        self.expects_continue = False
        self.authorization: bytes | None = None
        self.client: bytes | None = None
        self.request_id = b""
        self.traceparent = b""
        self.is_complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-length":
                self.content_length = int(value)
            case b"transfer-encoding":
                self.is_chunked = True
            case b"expect":
                self.expects_continue = value.lower() == b"100-continue"
            case b"authorization":
                self.authorization = value
            case b"x-tierline-client":
                self.client = value
            case b"x-request-id":
                self.request_id = value
            case b"traceparent":
                self.traceparent = value

    def on_headers_complete(self) -> None:
        assert self.parser is not None
        self.keep_alive = self.parser.should_keep_alive()
        self.is_complete = True


def _client_name(value: bytes) -> str:
    """Return a client's name; no ``#`` is in one, for that tells holders of the UNIX socket from those of HTTP."""
    name = value.decode("latin-1")
    if not (0 < len(name) <= MAX_CLIENT_CHARACTERS and name.isascii() and name.isprintable() and "#" not in name):
        raise HttpRefusal(
            HTTPStatus.BAD_REQUEST,
            f"X-Tierline-Client: got {name[:MAX_CLIENT_CHARACTERS]!r}; allowed: 1 to {MAX_CLIENT_CHARACTERS} printable "
            "characters of ASCII without #",
        )
    return name
