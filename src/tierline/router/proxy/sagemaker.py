"""SageMaker's runtime API in front of the same endpoints: its routes, its errors, and its framing of streams.

Of its other API, what clients ask before they invoke: whether an endpoint is in service.

Rule: a façade changes how an answer is wrapped, never what is in it, and never where a request goes.
"""

import re
from collections.abc import Sequence

import msgspec

from tierline.router.http.eventstream import EVENT_STREAM, payload_part, stream_error
from tierline.router.http.heads import RequestHead, ResponseHead
from tierline.router.http.replies import LAST_CHUNK, chunk

PREFIX = b"/endpoints/"
OPERATIONS = b"/"
"""Where operations are asked for that have no path, by a field of the head."""
MODEL_ERROR = 424
"""What SageMaker answers when a model's server answered with an error."""
_ROUTE = re.compile(rb"/endpoints/[A-Za-z0-9](?:-*[A-Za-z0-9]){0,62}/invocations(-response-stream)?")
_OPERATION = b"x-amz-target"
_DESCRIBE = b"SageMaker.DescribeEndpoint"
_NAME = re.compile(r"[A-Za-z0-9](?:-*[A-Za-z0-9]){0,62}")
_AWS_JSON = b"application/x-amz-json-1.1"
_SIGNATURES = (b"authorization", b"x-amz-security-token")
_QUOTED_BYTES = 4096
"""Of an endpoint's error, what is told."""
_ERROR_TYPES = {401: "AccessDeniedException", 403: "AccessDeniedException", 429: "ThrottlingException"}


class Facade:
    """How one request's answer is wrapped.

    Parameters
    ----------
    streams
        As messages of an event stream, else as it is.
    """

    __slots__ = ("_is_chunked", "_quoted", "streams")

    def __init__(self, *, streams: bool, is_chunked: bool) -> None:
        self.streams = streams
        self._is_chunked = is_chunked
        self._quoted = b""

    def rewrites(self, status: int) -> bool:
        """Whether an answer of this status goes to the client otherwise than it came."""
        return self.streams or status >= 400

    def quote_anew(self) -> None:
        """What was kept is of an answer that is not the one."""
        self._quoted = b""

    def quote(self, data: bytes) -> None:
        """Keep some of an endpoint's error."""
        self._quoted += data[: _QUOTED_BYTES - len(self._quoted)]

    def model_error(self, status: int) -> tuple[bytes, Sequence[bytes]]:
        """Return body and fields of the answer for an endpoint's error."""
        said = self._quoted.decode("utf-8", "replace")
        return error(status, f"The endpoint answered {status}: {said}", original=said)[1:]

    def head_lines(self, response: ResponseHead) -> list[bytes]:
        """Return the fields of the answer's head."""
        if not self.streams:
            return response.lines
        kind = [line.partition(b":")[2].strip() for line in response.lines if _names(line, b"content-type")]
        return [
            b"content-type: %b\r\n" % EVENT_STREAM,
            *[b"x-amzn-sagemaker-content-type: %b\r\n" % value for value in kind],
            *[b"transfer-encoding: chunked\r\n"][: self._is_chunked],
            *[line for line in response.lines if not _names(line, b"content-type")],
        ]

    def part(self, data: bytes) -> bytes:
        """Return some of a body as it goes to the client."""
        return self._framed(payload_part(data)) if data else b""

    def end(self) -> bytes:
        """Return the end of a body that is whole."""
        return LAST_CHUNK if self._is_chunked else b""

    def broken(self, message: str, reason: str) -> bytes:
        """Return the end of a body that is not."""
        code = "ModelInvocationTimeExceeded" if reason == "timeout" else "StreamBroken"
        content = msgspec.json.encode({"Message": message, "ErrorCode": code})
        return self._framed(stream_error("ModelStreamError", content)) + self.end()

    def _framed(self, data: bytes) -> bytes:
        return chunk(data) if self._is_chunked else data


def facade_of(head: RequestHead) -> Facade | None:
    """Return the façade that a request asks for; ``None`` where it has another path."""
    match = _ROUTE.fullmatch(head.path)
    if match is None:
        return None
    head.drop(*_SIGNATURES)  # made for AWS, and none of an endpoint's business
    return Facade(streams=match[1] is not None, is_chunked=head.version != "1.0")


def operation_of(head: RequestHead) -> bytes | None:
    """Return the operation that a request names; ``None`` where it is none of AWS's."""
    if head.method != b"POST" or head.path != OPERATIONS:
        return None
    named = (line.partition(b":")[2].strip() for line in head.lines if _names(line, _OPERATION))
    return next(named, None)


def described(operation: bytes, body: bytes, *, is_serving: bool, since: float) -> tuple[int, bytes, bytes]:
    """Return status, body and content type of what ``DescribeEndpoint`` is answered.

    Parameters
    ----------
    is_serving
        Whether requests are answered; whatever name is asked for, it is this router's endpoint.
    since
        When the router started, in seconds of the epoch.
    """
    if operation != _DESCRIBE:
        return 400, _problem("UnknownOperationException", f"There is no {operation.decode('latin-1')} here."), _AWS_JSON
    try:
        name = msgspec.json.decode(body, type=_Described).name
    except msgspec.MsgspecError as why:
        return 400, _problem("ValidationException", str(why)), _AWS_JSON
    if not _NAME.fullmatch(name):
        return 400, _problem("ValidationException", f"EndpointName: got {name!r}; allowed: {_NAME.pattern}"), _AWS_JSON
    content = {
        "EndpointName": name,
        "EndpointArn": f"arn:aws:sagemaker:local:000000000000:endpoint/{name.lower()}",
        "EndpointConfigName": name,
        "EndpointStatus": "InService" if is_serving else "OutOfService",
        "CreationTime": since,
        "LastModifiedTime": since,
    }
    return 200, msgspec.json.encode(content), _AWS_JSON


def error(status: int, message: str, original: str | None = None) -> tuple[int, bytes, Sequence[bytes]]:
    """Return status, body and fields of an error as SageMaker's clients expect it.

    What an endpoint failed at is SageMaker's ``ModelError``, which its clients do not try again: all that can be tried
    has been.
    """
    if original is None and status not in (502, 504):
        kind = _ERROR_TYPES.get(status) or ("ValidationError" if status < 500 else "ServiceUnavailable")
        body = {"Message": message}
        return status, msgspec.json.encode(body), (_error_type(kind),)
    content = {"Message": message, "OriginalStatusCode": status, "OriginalMessage": original or message}
    return MODEL_ERROR, msgspec.json.encode(content), (_error_type("ModelError"),)


class _Described(msgspec.Struct):
    name: str = msgspec.field(name="EndpointName")


def _problem(kind: str, message: str) -> bytes:
    return msgspec.json.encode({"__type": kind, "message": message})


def _error_type(kind: str) -> bytes:
    return b"x-amzn-errortype: %b\r\n" % kind.encode()


def _names(line: bytes, name: bytes) -> bool:
    return line.partition(b":")[0].lower() == name
