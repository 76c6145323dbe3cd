"""Files of spans, as ``tierline trace show`` reads them."""

import tempfile
from pathlib import Path

from tierline.errors import UsageError
from tierline.tracing.reading import read_traces


def traces(data: bytes) -> None:
    """A file is refused in one line, or each of its spans is in exactly one place of one tree."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            reading = read_traces([Path(file.name)])
        except UsageError:
            return
    for trace in reading.traces:
        waiting = trace.roots()
        found = []
        while waiting:
            tree = waiting.pop()
            found.append(tree.span)
            waiting += tree.children
        assert sorted(found, key=lambda span: span.span_id) == sorted(trace.spans, key=lambda span: span.span_id)
        assert trace.duration_ns >= 0
