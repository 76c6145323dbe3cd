"""Files of requests, as ``tierline bench run`` and ``tierline simulate run`` replay them."""

import tempfile
from math import isfinite
from pathlib import Path

from tierline.bench.serving import trace_files
from tierline.bench.trace_fields import MOST_TOKENS
from tierline.bench.traces import read_trace
from tierline.errors import UsageError


def request_traces(data: bytes) -> None:
    """A file is refused in one line, or each of its requests has a time, after those before it, and lengths."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        _bench(Path(file.name))
        _simulate(Path(file.name))


def _bench(path: Path) -> None:
    try:
        trace = trace_files.read(path)
    except UsageError as error:
        _require_one_line(str(error))
        return
    times = [request.at_s for request in trace]
    assert times == sorted(times)
    assert times[0] == 0
    assert isfinite(times[-1])
    assert all(1 <= length <= MOST_TOKENS for each in trace for length in (each.input_tokens, each.output_tokens))
    for planned in trace_files.plan(trace_files.replayed(trace, 3, longest_input=2_000)):
        assert 0 <= planned.known_tokens <= planned.input_tokens <= 2_000
        assert sum(message.tokens for message in planned.messages) == planned.input_tokens


def _simulate(path: Path) -> None:
    try:
        trace = read_trace(path)
    except UsageError as error:
        _require_one_line(str(error))
        return
    times = [request.at_s for request in trace.requests]
    assert times == sorted(times)
    assert all(isfinite(at_s) and at_s >= 0 for at_s in times)
    assert all(1 <= request.output_tokens <= MOST_TOKENS for request in trace.requests)


def _require_one_line(told: str) -> None:
    assert "\n" not in told, told
