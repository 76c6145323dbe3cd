"""Where a program's spans begin and go: to a file, to a collector, or to both; without either there is no tracer.

Rule: nothing here waits for anybody, and where a program has no tracer a request costs one look at ``None``.
"""

import asyncio
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import random
from typing import TYPE_CHECKING, Protocol

from tierline import __version__, logs
from tierline.errors import UsageError
from tierline.tracing.context import SAMPLED, TraceContext, random_id
from tierline.tracing.file import SpanFile
from tierline.tracing.spans import Attributes, Kind, Span

if TYPE_CHECKING:
    from tierline.tracing.collector import CollectorExport

log = logs.get(__name__)

LAST_EXPORT_SECONDS = 5.0
"""What a program's end waits for the last spans to be delivered."""


class Destination(Protocol):
    """Takes spans, waits for nobody, and counts what became of them."""

    @property
    def exported(self) -> int:
        """Spans that have arrived."""

    @property
    def failed(self) -> int:
        """Spans that have not."""

    @property
    def dropped(self) -> int:
        """Spans that found the queue full."""

    @property
    def waiting(self) -> int:
        """Spans that are on their way."""

    def put(self, span: Span) -> None:
        """Take a span, or drop it."""

    def close(self) -> None:
        """Deliver what is left, in the background."""


class OpenSpan:
    """A span that has begun; :meth:`end` tells it, once.

    Parameters
    ----------
    tracer
        Who is told.
    context, parent
        Its place, and that of the span it is under; without one, a trace begins.
    links
        Other spans that it is the work of.
    """

    __slots__ = ("_kind", "_links", "_name", "_started_ns", "_tracer", "context", "parent")

    def __init__(
        self,
        tracer: "Tracer",
        name: str,
        kind: Kind,
        parent: TraceContext | None,
        links: tuple[TraceContext, ...] = (),
    ) -> None:
        self.parent = parent
        trace_id = random_id(128) if parent is None else parent.trace_id
        self.context = TraceContext(trace_id, random_id(64), SAMPLED)
        self._links = links
        self._tracer = tracer
        self._name = name
        self._kind = kind
        self._started_ns = time.time_ns()

    def end(self, attributes: Attributes, *, is_error: bool = False) -> None:
        """It is over."""
        self._tracer.put(
            Span(
                self._name,
                self._kind,
                self.context,
                self.parent,
                self._started_ns,
                max(time.time_ns(), self._started_ns),  # somebody may have set the clock
                attributes,
                is_remote=self._kind == "server",
                is_error=is_error,
                links=self._links,
            )
        )


class Tracer:
    """One program's.

    Parameters
    ----------
    destinations
        Who gets the spans.
    sampler
        Decides about requests that come without ``traceparent``, and may about others; ``None``: the caller decides.
    share
        Of those without, where there is no sampler.
    """

    def __init__(
        self, destinations: Sequence[Destination], sampler: "CollectorExport | None" = None, share: float = 1.0
    ) -> None:
        self._destinations = destinations
        self._sampler = sampler
        self._share = share

    def samples(self, parent: TraceContext | None, trace_id: int, name: str) -> bool:
        """Decide whether a request has spans that came with a place in a trace, or begins one."""
        if self._sampler is not None:
            return self._sampler.samples(parent, trace_id, name)
        return parent.is_sampled if parent is not None else random() < self._share

    def open(self, name: str, kind: Kind, parent: TraceContext | None) -> OpenSpan | None:
        """Begin a span under one that is sampled; ``None`` where that is not, or there is none."""
        if parent is None or not parent.flags & SAMPLED:
            return None
        return OpenSpan(self, name, kind, parent)

    def open_for_all(self, name: str, kind: Kind, causes: Sequence[TraceContext]) -> OpenSpan | None:
        """Begin the span of work that spans of one trace or several have caused, all sampled; ``None`` where none has.

        As OpenTelemetry has it for batches: under the first where all are of one trace, and linked to the others; else
        in a trace of its own, and linked to all.
        """
        if not causes:
            return None
        if len({cause.trace_id for cause in causes}) == 1:
            return OpenSpan(self, name, kind, causes[0], tuple(causes[1:]))
        return OpenSpan(self, name, kind, None, tuple(causes))

    def put(self, span: Span) -> None:
        """Have a span delivered."""
        for destination in self._destinations:
            destination.put(span)

    def outcomes(self) -> dict[str, int]:
        """Return what became of the spans, by outcome."""
        each = self._destinations
        return {
            "exported": sum(one.exported for one in each),
            "failed": sum(one.failed for one in each),
            "dropped": sum(one.dropped for one in each),
        }

    @property
    def waiting(self) -> int:
        """Spans that are on their way."""
        return sum(each.waiting for each in self._destinations)

    async def close(self) -> None:
        """Deliver what is left, or give it up."""
        self._end()
        until = time.monotonic() + LAST_EXPORT_SECONDS
        while self.waiting and time.monotonic() < until:  # noqa: ASYNC110  (once, at the end)
            await asyncio.sleep(0.01)
        self._say_what_is_left()

    def close_blocking(self) -> None:
        """Do the same where there is no event loop."""
        self._end()
        until = time.monotonic() + LAST_EXPORT_SECONDS
        while self.waiting and time.monotonic() < until:
            time.sleep(0.01)
        self._say_what_is_left()

    def _end(self) -> None:
        for each in self._destinations:
            # A daemon: where a collector hangs, the program ends all the same.
            threading.Thread(target=each.close, daemon=True, name="last spans").start()

    def _say_what_is_left(self) -> None:
        if self.waiting:
            log.warning("spans were not delivered in time", spans=self.waiting)


def open_tracer(service: str, file: Path | None, *, to_collector: bool, share: float = 1.0) -> Tracer | None:
    """Return a program's tracer; ``None`` where nobody gets its spans.

    Parameters
    ----------
    service
        The program's name, unless ``OTEL_SERVICE_NAME`` says another.
    file
        Where spans are written; ``None``: nowhere.
    to_collector
        Send them by OTLP too, as the ``OTEL_*`` variables say, unless those switch it off.
    share
        Of the requests without ``traceparent``, where no sampler of the environment decides.

    Raises
    ------
    UsageError
        The file cannot be written, OpenTelemetry is not installed, or a variable says what is not possible.
    """
    collector = _collector_export(service) if to_collector and not _is_switched_off(os.environ) else None
    destinations: list[Destination] = [] if collector is None else [collector]
    if file is not None:
        name = os.environ.get("OTEL_SERVICE_NAME") or service
        resource = {"service.name": name, "service.version": __version__, "process.pid": str(os.getpid())}
        destinations.append(SpanFile(file, resource))
    return Tracer(destinations, collector, share) if destinations else None


def _collector_export(service: str) -> "CollectorExport":
    try:
        from tierline.tracing.collector import CollectorExport  # not loaded where it is not used: it takes 0.4 s
    except ImportError:
        raise UsageError("--opentelemetry needs OpenTelemetry: pip install 'tierline[otel]'") from None
    return CollectorExport(service)


def _is_switched_off(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's own variables say that there shall be no spans."""
    return environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or (
        environment.get("OTEL_TRACES_EXPORTER", "").lower() == "none"
    )
