"""Responses of the router's own: plain ones, and errors in OpenAI's shape, whole or as an event in a stream."""

from collections.abc import Sequence
from http import HTTPStatus

import msgspec

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

JSON = b"application/json"

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    502: "upstream_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class _Error(msgspec.Struct):
    message: str
    type: str
    code: str
    param: str | None = None


def status_line(status: int, reason: bytes = b"") -> bytes:
    """Return ``HTTP/1.1 404 Not Found`` with its line end."""
    return b"HTTP/1.1 %d %b\r\n" % (status, reason or _phrase(status))


def reply(
    status: int,
    body: bytes,
    *,
    content_type: bytes = JSON,
    extra: Sequence[bytes] = (),
    keep_alive: bool = True,
    without_body: bool = False,
) -> bytes:
    """Return a whole response.

    Parameters
    ----------
    status, body, content_type
        What it says.
    extra
        More field lines, each with its line end.
    keep_alive
        Whether the connection lasts.
    without_body
        For ``HEAD``: the head alone, as if the body followed.
    """
    return b"".join((
        status_line(status),
        b"content-type: %b\r\ncontent-length: %d\r\n" % (content_type, len(body)),
        *extra,
        b"\r\n" if keep_alive else b"connection: close\r\n\r\n",
        b"" if without_body else body,
    ))  # fmt: skip


def error_body(status: int, message: str, code: str, param: str | None = None) -> bytes:
    """Return ``{"error": {...}}`` as OpenAI's clients expect it.

    >>> error_body(404, "no such model", "model_not_found", "model")
    b'{"error":{"message":"no such model","type":"not_found_error","code":"model_not_found","param":"model"}}'
    """
    kind = _ERROR_TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    return msgspec.json.encode({"error": _Error(message, kind, code, param)})


def error_event(message: str, code: str) -> bytes:
    """Return the event that ends a broken stream: an error and no ``[DONE]``, so that no client takes it for whole."""
    return b"\n\ndata: " + error_body(502, message, code) + b"\n\n"


def chunk(data: bytes) -> bytes:
    """Return ``data`` as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Status"
