"""What the connector can know of a request beside its tokens: its id outside of vLLM, and its place in a trace.

vLLM hands a connector no headers. Its request has ``trace_headers``, where vLLM itself traces
(``--otlp-traces-endpoint``), and a name that vLLM makes of ``x-request-id``; the router sends it a traced request with
an id that says its place in the trace (:meth:`~tierline.tracing.context.TraceContext.request_id`).
"""

import re
from typing import TYPE_CHECKING

from tierline.tracing.context import REQUEST_ID_CHARS, Origin, read_context, read_id

if TYPE_CHECKING:
    from vllm.v1.request import Request

_NAME = re.compile(
    r"(?:\d+_)?(?:chatcmpl-(?P<chat>.+?)|cmpl-(?P<text>.+?)-\d{1,4})(?:-[0-9a-f]{8})?", re.ASCII | re.DOTALL
)
"""A name as vLLM 0.32 makes it: which of several answers, the id, which of several prompts, eight digits by chance."""


def origin_of(request: "Request") -> Origin:
    """Return whose work a request is."""
    request_id, place = read_id(outer_request_id(request.request_id))
    headers = request.trace_headers
    traceparent = headers.get("traceparent") if headers else None
    trace = read_context(traceparent.encode("latin-1", "replace")) if traceparent else None
    return Origin(request_id[:REQUEST_ID_CHARS], trace or place)


def outer_request_id(name: str) -> str:
    """Return the ``x-request-id`` that vLLM made a request's name of; the name itself, where it is of another form.

    >>> outer_request_id("chatcmpl-9b2c-7e1f44aa")
    '9b2c'
    >>> outer_request_id("cmpl-9b2c-0-7e1f44aa")
    '9b2c'
    """
    match = _NAME.fullmatch(name)
    return (match["chat"] or match["text"]) if match else name
