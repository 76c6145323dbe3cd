"""Spans as our programs tell them: plain values, of which exporters make what others read."""

from dataclasses import dataclass
from typing import Literal

from blake3 import blake3

from tierline.tracing.context import TraceContext

Attributes = dict[str, str | int | float | bool]
Kind = Literal["internal", "server", "client"]


@dataclass(frozen=True, slots=True)
class Span:
    """What one program did, from when to when.

    Parameters
    ----------
    name, kind
        As OpenTelemetry has them.
    context
        Its own place.
    parent
        The span that it is under; ``None`` where the trace begins with it.
    start_ns, end_ns
        Since 1970.
    attributes
        Never prompts, answers, keys or names of tenants.
    is_remote
        Another process has the parent.
    is_error
        What it tells of failed.
    events
        What happened meanwhile, and when.
    state
        The caller's ``tracestate``.
    links
        Other spans that it is the work of.
    """

    name: str
    kind: Kind
    context: TraceContext
    parent: TraceContext | None
    start_ns: int
    end_ns: int
    attributes: Attributes
    is_remote: bool = False
    is_error: bool = False
    events: tuple[tuple[str, int], ...] = ()
    state: str = ""
    links: tuple[TraceContext, ...] = ()


def bucket_digest(bucket: str) -> str:
    """Return what spans have of a bucket: its name may say whose it is."""
    return blake3(bucket.encode("utf-8", "surrogatepass")).hexdigest(4)
