"""The HTTP of the node store, as values: a head's bytes to a typed request, a reply to its bytes. Pure, no sockets.

Keys hold ``/ @ %`` and come percent-encoded, so a path is split on ``/`` while it is raw and its parts are unquoted
after that. What cannot be served is an :class:`HttpRefusal`, which says the status it is answered with.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import httptools
import msgspec

from tierline.errors import WireError
from tierline.wire.messages import MAX_NAME_BYTES, Extent

HEAD_END = b"\r\n\r\n"
MIN_HEAD_LIMIT_BYTES = 8 * 1024
"""Request line and headers together; a bucket and a name of ``MAX_NAME_BYTES``, every byte encoded, take 6 KiB."""

DEFAULT_WAIT_MS = 1000.0
DEFAULT_TTL_S = 30.0
MAX_WAIT_MS = 60_000.0
"""A longer ``timeout_ms`` is cut to this."""

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
    """

    def __init__(self, status: HTTPStatus, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


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
    """

    method: str
    target: bytes
    content_length: int | None
    is_chunked: bool
    keep_alive: bool
    expects_continue: bool
    authorization: bytes | None = None


class PutObject(NamedTuple):
    """``PUT /v1/kv/{bucket}/{key}``."""

    bucket: str
    name: str


class GetObject(NamedTuple):
    """``GET`` or ``HEAD /v1/kv/{bucket}/{key}``."""

    bucket: str
    name: str
    head_only: bool


class DeleteObject(NamedTuple):
    """``DELETE /v1/kv/{bucket}/{key}``."""

    bucket: str
    name: str


class AcquireLease(NamedTuple):
    """``POST /v1/kv/{bucket}/{key}/leases?timeout_ms=…&ttl_s=…``."""

    bucket: str
    name: str
    wait_s: float
    ttl_s: float


class ReleaseLease(NamedTuple):
    """``POST /v1/leases/{id}/release``."""

    lease: str


class Stats(NamedTuple):
    """``GET /v1/stats``."""


class Health(NamedTuple):
    """``GET /healthz``: the process answers."""


class Readiness(NamedTuple):
    """``GET /readyz``: the node takes traffic."""


class Metrics(NamedTuple):
    """``GET /metrics``."""


Route = PutObject | GetObject | DeleteObject | AcquireLease | ReleaseLease | Stats | Health | Readiness | Metrics


def parse_head(head: bytes | bytearray | memoryview) -> RequestHead:
    """Parse a request's bytes up to and with the empty line.

    A client sends the same headers with each of its requests, so those are parsed once and remembered: with a
    request line of the usual form, what headers mean does not depend on it.

    Raises
    ------
    HttpRefusal
        400 for what is not HTTP/1.x.
    """
    line = _USUAL_REQUEST_LINE.match(head)
    if line is None or len(head) - line.end() > _MOST_BYTES_REMEMBERED:
        return _parse_whole_head(head)
    headers = _parse_headers(bytes(head[line.end() :]))
    method, target = line.groups()
    return RequestHead(method.decode("latin-1"), target, *headers)


_USUAL_REQUEST_LINE = re.compile(rb"(DELETE|GET|HEAD|POST|PUT) (/[!-~]*) HTTP/1\.1\r\n")
_MOST_BYTES_REMEMBERED = 1024


@lru_cache(maxsize=1024)
def _parse_headers(headers: bytes) -> tuple[int | None, bool, bool, bool, bytes | None]:
    """Return what the headers of an HTTP/1.1 request say: the last five fields of :class:`RequestHead`."""
    return _parse_whole_head(b"GET / HTTP/1.1\r\n" + headers)[2:]


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
    )


def route(method: str, target: bytes) -> Route:
    """Return the typed request that method and raw target say.

    Raises
    ------
    HttpRefusal
        404 for an unknown path, 405 for a method that it does not take, 400 for a name or a parameter out of bounds.

    Examples
    --------
    >>> route("PUT", b"/v1/kv/lmcache/model%401%2Fa")
    PutObject(bucket='lmcache', name='model@1/a')
    """
    path, _, query = target.partition(b"?")
    if not path.startswith(b"/"):  # absolute form, as sent to proxies
        _, _, rest = path.partition(b"://")
        path = b"/" + rest.partition(b"/")[2]
    parts = path.split(b"/")[1:]
    match parts:
        case [b"v1", b"kv", *bucket, key, b"leases"] if bucket and method == "POST":
            wait_s, ttl_s = _lease_parameters(query)
            return AcquireLease(_name(b"/".join(bucket)), _name(key), wait_s, ttl_s)
        case [b"v1", b"kv", *bucket, key] if bucket:
            return _object_route(method, _name(b"/".join(bucket)), _name(key))
        case [b"v1", b"leases", lease, b"release"]:
            _require(method, ("POST",))
            return ReleaseLease(unquote_to_bytes(lease).decode("latin-1"))
        case [b"v1", b"stats"]:
            _require(method, ("GET",))
            return Stats()
        case [b"healthz"]:
            _require(method, ("GET",))
            return Health()
        case [b"readyz"]:
            _require(method, ("GET",))
            return Readiness()
        case [b"metrics"]:
            _require(method, ("GET",))
            return Metrics()
    raise HttpRefusal(HTTPStatus.NOT_FOUND, f"no such path: {path.decode('latin-1')}")


# Replies ----------------------------------------------------------------------------------------------------------


class Fragment(msgspec.Struct, frozen=True):
    """One extent, as LMCache's clients read it."""

    offset: int
    length: int = msgspec.field(name="len")


class LeaseReply(msgspec.Struct, frozen=True):
    """Body of a granted lease; the fragments' lengths sum to the object exactly."""

    id: str
    offsets: list[Fragment]


class ErrorReply(msgspec.Struct, frozen=True):
    """Body of every refusal."""

    error: str


_JSON_ENCODER = msgspec.json.Encoder()


def lease_body(lease: str, extents: Iterable[Extent | tuple[int, int]]) -> bytes:
    """Return the JSON of a granted lease."""
    return _JSON_ENCODER.encode(LeaseReply(lease, [Fragment(offset, length) for offset, length in extents]))


def error_body(message: str) -> bytes:
    """Return the JSON of a refusal."""
    return _JSON_ENCODER.encode(ErrorReply(message))


def reply_head(
    status: HTTPStatus,
    content_length: int,
    content_type: str | None = None,
    *,
    keep_alive: bool = True,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Return a reply's head; its body, ``content_length`` bytes, follows."""
    start, end = _around_length(int(status), content_type, keep_alive)
    further = "".join(f"\r\n{name}: {value}" for name, value in headers.items()) if headers else ""
    return f"{start}{content_length}{end}{further}\r\n\r\n".encode("latin-1")


@lru_cache(maxsize=256)
def _around_length(status: int, content_type: str | None, keep_alive: bool) -> tuple[str, str]:
    """Return what stands before and after the value of a reply's content length."""
    end = "" if content_type is None else f"\r\nContent-Type: {content_type}"
    if not keep_alive:
        end += "\r\nConnection: close"
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Length: ", end


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


# Parsing ----------------------------------------------------------------------------------------------------------


class _HeadCollector:
    """httptools calls these for the parts of one head."""

    __slots__ = (
        "authorization",
        "content_length",
        "expects_continue",
        "is_chunked",
        "is_complete",
        "keep_alive",
        "parser",
        "target",
    )

    def __init__(self) -> None:
        self.parser: httptools.HttpRequestParser | None = None
        self.target = bytearray()
        self.content_length: int | None = None
        self.is_chunked = False
        self.keep_alive = False
        self.expects_continue = False
        self.authorization: bytes | None = None
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

    def on_headers_complete(self) -> None:
        assert self.parser is not None
        self.keep_alive = self.parser.should_keep_alive()
        self.is_complete = True


_OBJECT_METHODS = ("PUT", "GET", "HEAD", "DELETE")


def _object_route(method: str, bucket: str, name: str) -> Route:
    match method:
        case "PUT":
            return PutObject(bucket, name)
        case "GET" | "HEAD":
            return GetObject(bucket, name, head_only=method == "HEAD")
        case "DELETE":
            return DeleteObject(bucket, name)
    raise _method_refused(method, _OBJECT_METHODS)


def _require(method: str, allowed: Sequence[str]) -> None:
    if method not in allowed:
        raise _method_refused(method, allowed)


def _method_refused(method: str, allowed: Sequence[str]) -> HttpRefusal:
    listed = ", ".join(allowed)
    return HttpRefusal(HTTPStatus.METHOD_NOT_ALLOWED, f"got {method}; allowed: {listed}", {"Allow": listed})


def _name(quoted: bytes) -> str:
    """Unquote a key, or a bucket, which may have a ``/``: LMCache's in-process client does not quote it."""
    raw = unquote_to_bytes(quoted)
    if not 0 < len(raw) <= MAX_NAME_BYTES:
        raise HttpRefusal(HTTPStatus.BAD_REQUEST, f"a name of {len(raw)} bytes; allowed: 1 to {MAX_NAME_BYTES}")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise HttpRefusal(HTTPStatus.BAD_REQUEST, f"a name that is not UTF-8: {error}") from error


@lru_cache(maxsize=256)  # a client sends the same ones with every lease
def _lease_parameters(query: bytes) -> tuple[float, float]:
    """Return how long to wait and the time to live, both in seconds."""
    given = dict(parameter.split(b"=", 1) for parameter in query.split(b"&") if b"=" in parameter)
    wait_ms = _number("timeout_ms", given.get(b"timeout_ms"), DEFAULT_WAIT_MS, at_least=0)
    ttl_s = _number("ttl_s", given.get(b"ttl_s"), DEFAULT_TTL_S, at_least=0.001)
    return min(wait_ms, MAX_WAIT_MS) / 1000, ttl_s


def _number(name: str, text: bytes | None, default: float, *, at_least: float) -> float:
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= at_least):
        raise HttpRefusal(
            HTTPStatus.BAD_REQUEST, f"{name}: got {text.decode('latin-1')!r}; allowed: a number from {at_least} on"
        )
    return value
