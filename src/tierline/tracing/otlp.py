"""Spans in OTLP's JSON, a line of a file as OpenTelemetry's collector writes and reads it: written and read. Pure.

https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/, and "JSON Protobuf Encoding" in the specification of
OTLP: ids in hexadecimal, 64-bit numbers as strings, kinds and codes as numbers.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tierline.tracing.context import SAMPLED
from tierline.tracing.spans import Attributes, Kind, Span

_KINDS: dict[Kind, int] = {"internal": 1, "server": 2, "client": 3}
_ERROR = 2
_MOST_NS = 2**64 - 1


def encode(spans: Sequence[Span], resource: Mapping[str, str], version: str) -> bytes:
    """Return the line, without its end."""
    scope = {"scope": {"name": "tierline", "version": version}, "spans": list(map(_span, spans))}
    about = {"attributes": _attributes(resource)}
    return msgspec.json.encode({"resourceSpans": [{"resource": about, "scopeSpans": [scope]}]})


def _span(span: Span) -> dict[str, Any]:
    return {
        "traceId": f"{span.context.trace_id:032x}",
        "spanId": f"{span.context.span_id:016x}",
        "parentSpanId": f"{span.parent.span_id:016x}" if span.parent is not None else "",
        "traceState": span.state,
        "flags": SAMPLED,
        "name": span.name,
        "kind": _KINDS[span.kind],
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes(span.attributes),
        "events": [{"name": name, "timeUnixNano": str(at)} for name, at in span.events],
        "links": [{"traceId": f"{each.trace_id:032x}", "spanId": f"{each.span_id:016x}"} for each in span.links],
        "status": {"code": _ERROR} if span.is_error else {},
    }


def _attributes(values: Mapping[str, str | int | float | bool]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: str | int | float | bool) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
    return {"stringValue": value}


# Reading ----------------------------------------------------------------------------------------------------------


class ReadSpan(msgspec.Struct, frozen=True):
    """A span that somebody wrote, of ours or of another program.

    Parameters
    ----------
    service
        Who wrote it.
    trace_id, span_id, parent_id
        In hexadecimal; ``parent_id`` is empty where the trace begins.
    start_ns, end_ns
        Since 1970; no span ends before it began.
    links
        Other spans that it is the work of: their traces' ids, and their own.
    """

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: Attributes
    is_error: bool
    links: tuple[tuple[str, str], ...] = ()

    @property
    def duration_ns(self) -> int:
        """How long it took."""
        return self.end_ns - self.start_ns


class _Value(msgspec.Struct, rename="camel"):
    string_value: str | None = None
    int_value: str | int | None = None
    double_value: float | str | None = None  # NaN and infinities are strings
    bool_value: bool | None = None


class _Attribute(msgspec.Struct):
    key: str
    value: _Value = msgspec.field(default_factory=_Value)


class _Status(msgspec.Struct):
    code: int | str = 0


class _Link(msgspec.Struct, rename="camel"):
    trace_id: str
    span_id: str


class _Span(msgspec.Struct, rename="camel"):
    trace_id: str
    span_id: str
    name: str
    start_time_unix_nano: str | int
    end_time_unix_nano: str | int
    parent_span_id: str = ""
    attributes: list[_Attribute] = []
    links: list[_Link] = []
    status: _Status = msgspec.field(default_factory=_Status)


class _Scope(msgspec.Struct):
    spans: list[_Span] = []


class _Resource(msgspec.Struct):
    attributes: list[_Attribute] = []


class _Group(msgspec.Struct, rename="camel"):
    resource: _Resource = msgspec.field(default_factory=_Resource)
    scope_spans: list[_Scope] = []


class _Line(msgspec.Struct, rename="camel"):
    resource_spans: list[_Group]


_INTEGER = re.compile(r"-?[0-9]{1,20}")
_decoder = msgspec.json.Decoder(_Line)


def decode(line: bytes) -> list[ReadSpan]:
    """Return the spans of one line.

    Raises
    ------
    ValueError
        It is no line of spans; the message says why.
    """
    try:
        read = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    spans = []
    for group in read.resource_spans:
        service = str(_read_attributes(group.resource.attributes).get("service.name", "unknown"))
        spans += [_read(span, service) for scope in group.scope_spans for span in scope.spans]
    return spans


def _read(span: _Span, service: str) -> ReadSpan:
    start_ns, end_ns = _number(span.start_time_unix_nano), _number(span.end_time_unix_nano)
    if end_ns < start_ns:
        raise ValueError(f"span {span.span_id} ends before it begins")
    return ReadSpan(
        service=service,
        name=span.name,
        trace_id=_id(span.trace_id, 32),
        span_id=_id(span.span_id, 16),
        parent_id=_id(span.parent_span_id, 16) if span.parent_span_id else "",
        start_ns=start_ns,
        end_ns=end_ns,
        attributes=_read_attributes(span.attributes),
        is_error=span.status.code in (_ERROR, "STATUS_CODE_ERROR"),
        links=tuple((_id(link.trace_id, 32), _id(link.span_id, 16)) for link in span.links),
    )


def _id(text: str, characters: int) -> str:
    lower = text.lower()
    if len(lower) != characters or not set(lower) <= set("0123456789abcdef"):
        raise ValueError(f"{text!r:.80} is no id of {characters} hexadecimal digits")
    return lower


def _number(value: str | int) -> int:
    text = str(value)
    if not (text.isascii() and text.isdecimal() and len(text) <= 20 and int(text) <= _MOST_NS):
        raise ValueError(f"{text!r:.80} is no time in nanoseconds")
    return int(text)


def _integer(value: str | int | None) -> str | int | None:
    """Return the number that 64 bits of JSON are the text of; what is none stays text."""
    is_number = isinstance(value, str) and _INTEGER.fullmatch(value)
    return int(value) if is_number and value is not None else value


def _read_attributes(read: Sequence[_Attribute]) -> Attributes:
    attributes: Attributes = {}
    for each in read:
        value = each.value
        for given in (value.string_value, _integer(value.int_value), value.double_value, value.bool_value):
            if given is not None:
                attributes[each.key] = given
                break
    return attributes
