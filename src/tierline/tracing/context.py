"""Whose work something is: the request's id, and where it stands in a trace (W3C Trace Context, level 1).

Rule: what came from elsewhere is read once, here; what is not as the specification has it counts as none.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from random import getrandbits
from typing import NamedTuple

from tierline import logs

TRACEPARENT, TRACESTATE = b"traceparent", b"tracestate"
SAMPLED = 0x01
REQUEST_ID_CHARS = 256
"""Of an id that a client chose, in spans, logs and messages."""
_HEX = frozenset(b"0123456789abcdef")
_OF_TRACED = re.compile(r"(?:(.+)~)?([0-9a-f]{32})-([0-9a-f]{16})", re.ASCII | re.DOTALL)


class TraceContext(NamedTuple):
    """A place in a trace: that of a span."""

    trace_id: int
    span_id: int
    flags: int

    @property
    def is_sampled(self) -> bool:
        """Whether whoever began the trace wants its spans."""
        return bool(self.flags & SAMPLED)

    def field(self) -> bytes:
        """Return the value of ``traceparent``."""
        return b"00-%032x-%016x-%02x" % self

    def request_id(self, chosen: str = "") -> str:
        """Return an id by which who is told that alone, as a connector is, finds the trace; reads as :func:`read_id`.

        ``chosen``: the one that the request has; empty: none.
        """
        place = f"{self.trace_id:032x}-{self.span_id:016x}"
        return f"{chosen}~{place}" if chosen else place


def read_context(field: bytes | None) -> TraceContext | None:
    """Return what a ``traceparent`` says; ``None`` for none, and for one that is not as the specification has it."""
    if field is None or len(field) < 55:
        return None
    version, trace_id, span_id, flags = field[:2], field[3:35], field[36:52], field[53:55]
    is_split = field[2:3] == field[35:36] == field[52:53] == b"-"
    is_longer = len(field) > 55  # a later version may have more, behind another dash
    if not is_split or version == b"ff" or (is_longer and (version == b"00" or field[55:56] != b"-")):
        return None
    if not _HEX.issuperset(version + trace_id + span_id + flags):
        return None
    context = TraceContext(int(trace_id, 16), int(span_id, 16), int(flags, 16) & SAMPLED)
    return context if context.trace_id and context.span_id else None


def read_id(request_id: str) -> tuple[str, TraceContext | None]:
    """Return the id that a request goes by, and the sampled place that :meth:`TraceContext.request_id` put into it.

    >>> read_id("of a client~0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331")[0]
    'of a client'
    """
    match = _OF_TRACED.fullmatch(request_id)
    if match is None:
        return request_id, None
    context = TraceContext(int(match[2], 16), int(match[3], 16), SAMPLED)
    if not (context.trace_id and context.span_id):
        return request_id, None
    return match[1] or request_id, context


def random_id(bits: int) -> int:
    """Return an id that is not 0."""
    return getrandbits(bits) or 1


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose work is done.

    Parameters
    ----------
    request_id
        ``x-request-id`` of the request; empty where nobody said one.
    trace
        The span that the work is for; ``None`` outside of any trace.
    """

    request_id: str = ""
    trace: TraceContext | None = None

    @classmethod
    def read(cls, request_id: str, traceparent: bytes | str) -> "Origin":
        """Return what a message says; of nothing, :data:`NOWHERE`."""
        if not (request_id or traceparent):
            return NOWHERE
        field = traceparent.encode("latin-1", "replace") if isinstance(traceparent, str) else traceparent
        if "~" in request_id:
            request_id, _ = read_id(request_id)
        return cls(request_id[:REQUEST_ID_CHARS], read_context(field))

    @property
    def is_traced(self) -> bool:
        """Whether whoever began its trace wants spans of it."""
        return self.trace is not None and self.trace.is_sampled

    @property
    def traceparent(self) -> str:
        """The value of the header; empty outside of any trace."""
        return self.trace.field().decode() if self.trace is not None else ""

    def headers(self) -> dict[str, str]:
        """Return the headers that tell somebody else."""
        told = {"x-request-id": self.request_id, "traceparent": self.traceparent}
        return {name: value for name, value in told.items() if value}


NOWHERE = Origin()
"""Work that nobody said whose it is."""
_current: ContextVar[Origin] = ContextVar("tierline_origin", default=NOWHERE)


def current() -> Origin:
    """Return whose work this task, or thread, is doing."""
    return _current.get()


@contextmanager
def working_for(origin: Origin) -> Iterator[None]:
    """Do the block's work, and that of tasks begun in it, for somebody: log events in it carry ``request_id``."""
    token, logged = _current.set(origin), logs.request_id.set(origin.request_id)
    try:
        yield
    finally:
        logs.request_id.reset(logged)
        _current.reset(token)
