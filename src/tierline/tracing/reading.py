"""Files of spans, read back: which traces are in them, and how the spans of one lie under each other.

Rule: whatever is in a file, reading it ends, in traces or in one clear error; spans of any number of files, in any
order and written twice, make the same traces. A line that a full disk or a crash cut off hides no other. Work that was
done for several requests at once has a trace of its own: it is a part of each trace that its first span links to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tierline.errors import UsageError
from tierline.tracing.otlp import ReadSpan, decode


@dataclass(slots=True, eq=False)
class TraceTree:
    """A span and those under it, in the order in which they began."""

    span: ReadSpan
    children: list["TraceTree"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Trace:
    """All spans of one trace, in the order in which they began; at least one."""

    trace_id: str
    spans: tuple[ReadSpan, ...]

    @property
    def start_ns(self) -> int:
        """When the first span began, since 1970."""
        return self.spans[0].start_ns

    @property
    def duration_ns(self) -> int:
        """From the beginning of the first span to the end of the last."""
        return max(span.end_ns for span in self.spans) - self.start_ns

    @property
    def request_id(self) -> str:
        """The request's id, as the first span that has one says; empty where none does."""
        return next((str(span.attributes[_ID]) for span in self.spans if _ID in span.attributes), "")

    def is_called(self, name: str) -> bool:
        """Whether a name is this trace's id, or that of a request in it."""
        trace_id = name.lower()  # also that of a batch that is drawn here
        return any(span.trace_id == trace_id or span.attributes.get(_ID) == name for span in self.spans)

    def roots(self) -> list[TraceTree]:
        """Return the spans whose parents are not here, each with all that lie under it."""
        trees = {span.span_id: TraceTree(span) for span in self.spans}
        roots: list[TraceTree] = []
        for span in self.spans:
            parent = trees.get(span.parent_id)
            (roots if parent is None else parent.children).append(trees[span.span_id])
        reached = set[str]()
        _reach(roots, reached)
        for span in self.spans:  # of spans that lie under each other in a circle, the first is taken for a root
            if span.span_id not in reached:
                tree = trees[span.span_id]
                trees[span.parent_id].children.remove(tree)
                roots.append(tree)
                _reach([tree], reached)
        return roots


_ID = "tierline.request_id"


def _reach(roots: Sequence[TraceTree], reached: set[str]) -> None:
    waiting = list(roots)
    while waiting:
        tree = waiting.pop()
        reached.add(tree.span.span_id)
        waiting += tree.children


@dataclass(frozen=True, slots=True)
class Reading:
    """What files have.

    Parameters
    ----------
    traces
        In the order in which they began.
    unfinished
        Files whose last line somebody is writing still, or never ended.
    unread_lines
        How many other lines of a file have no spans, by file, beside some that have.
    """

    traces: list[Trace]
    unfinished: list[Path]
    unread_lines: dict[Path, int]


def read_traces(files: Sequence[Path]) -> Reading:
    """Read files of spans.

    Raises
    ------
    UsageError
        A file cannot be read, or none of its lines has spans; the message says which.
    """
    spans: dict[str, dict[str, ReadSpan]] = {}
    unfinished = []
    unread_lines = {}
    for file in files:
        has_spans, unread, why = False, 0, ""
        try:
            with file.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.strip():
                        continue
                    try:
                        read = decode(line)
                    except ValueError as error:
                        if line.endswith(b"\n"):
                            unread += 1
                            why = why or f"line {number}: no spans in OTLP's JSON: {error}"
                        else:
                            unfinished.append(file)
                        continue
                    has_spans = True
                    for span in read:
                        spans.setdefault(span.trace_id, {}).setdefault(span.span_id, span)
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}") from None
        if unread and not has_spans:
            raise UsageError(f"{file}, {why}")
        if unread:
            unread_lines[file] = unread
    _join_batches(spans)
    traces = [
        Trace(trace_id, tuple(sorted(found.values(), key=lambda span: (span.start_ns, -span.end_ns))))
        for trace_id, found in spans.items()
    ]
    return Reading(sorted(traces, key=lambda trace: trace.start_ns), unfinished, unread_lines)


def _join_batches(spans: dict[str, dict[str, ReadSpan]]) -> None:
    """Move traces that begin with a span that links to others' into these, under the spans that it links to."""
    firsts = {
        trace_id: span
        for trace_id, found in spans.items()
        for span in found.values()
        if span.links and not span.parent_id
    }
    for trace_id, first in firsts.items():
        # None that moves itself: two that link to each other stay where they are.
        places = {
            linked: parent for linked, parent in reversed(first.links) if linked in spans and linked not in firsts
        }
        for linked, parent_id in places.items():
            for span in spans[trace_id].values():
                under = msgspec.structs.replace(span, parent_id=parent_id) if span is first else span
                spans[linked].setdefault(span.span_id, under)
        if places:
            del spans[trace_id]
