"""``tierline trace``: what one request did in all programs, from the files that these wrote."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.errors import UsageError

if TYPE_CHECKING:
    from tierline.cli.printing import Output
    from tierline.tracing.reading import Trace, TraceTree

app = typer.Typer(name="trace", no_args_is_help=True)


@app.callback()
def trace() -> None:
    """Look at traces that programs wrote with --traces-file, or OpenTelemetry's collector with its file exporter.

    \b
    Examples:
      tierline trace show router.jsonl node.jsonl
    """


@app.command(short_help="Draw what requests did in all programs, as trees with times.")
def show(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of spans, one JSON object a line.")],
    trace_id: Annotated[
        str | None,
        typer.Option("--trace", metavar="ID", help="The trace with this id, or of the request with this x-request-id."),
    ] = None,
    slowest: Annotated[int | None, typer.Option(min=1, metavar="N", help="The N traces that took longest.")] = None,
) -> None:
    """Draw what requests did in all programs, as trees with times.

    Without an option, the latest trace. Times are since the trace began, and how long each span took; those of several
    machines are as far apart as their clocks.

    \b
    Examples:
      tierline trace show router.jsonl node.jsonl connector.jsonl
      tierline trace show *.jsonl --slowest 3
      tierline trace show *.jsonl --trace 0af7651916cd43dd8448eb211c80319c
    """
    from tierline.cli.printing import Output, plural
    from tierline.tracing.reading import read_traces

    if trace_id is not None and slowest is not None:
        raise UsageError("--trace and --slowest: one of them")
    reading = read_traces(files)
    if trace_id is not None:
        shown = [trace for trace in reading.traces if trace.is_called(trace_id)]
        if not shown:
            raise UsageError(f"--trace {trace_id}: no span of it is in {_named(files)}")
    elif slowest is not None:
        shown = sorted(reading.traces, key=lambda trace: trace.duration_ns, reverse=True)[:slowest]
    else:
        shown = reading.traces[-1:]
    output = Output(is_json=False)
    if reading.unfinished:
        output.line(f"{_named(reading.unfinished)}: the last line is not whole yet")
    for file, count in reading.unread_lines.items():
        output.line(f"{file}: {plural(count, 'line')} without spans left out, as a full disk or a crash leaves them")
    if not shown:
        output.line(f"no spans in {_named(files)}")
    for trace in shown:
        _draw(output, trace)
    if len(shown) < len(reading.traces) and trace_id is None:
        output.line(f"{len(shown)} of {len(reading.traces)} traces; --slowest N or --trace ID shows others")


def _draw(output: "Output", trace: "Trace") -> None:
    from tierline.cli.printing import plural

    named = f"  request {trace.request_id}" if trace.request_id else ""
    programs = len({span.service for span in trace.spans})
    told = f"{plural(len(trace.spans), 'span')} of {plural(programs, 'program')}"
    output.line(f"trace {trace.trace_id}{named}  {_milliseconds(trace.duration_ns)}  {told}")
    width = max(len(span.service) for span in trace.spans)
    for tree in trace.roots():
        _draw_tree(output, tree, trace, width)
    output.line("")


def _draw_tree(output: "Output", root: "TraceTree", trace: "Trace", width: int) -> None:
    # Not by recursion: a file may have a chain of any length.
    waiting = [(root, "", "")]
    while waiting:
        tree, branch, indent = waiting.pop()
        span = tree.span
        about = " ".join(f"{name}={_short(value)}" for name, value in _told(span.attributes).items())
        failed = "  FAILED" if span.is_error else ""
        lost = "  (its parent is in no file)" if tree is root and span.parent_id else ""
        at, took = _milliseconds(span.start_ns - trace.start_ns), _milliseconds(span.duration_ns)
        line = f"{at:>11} {took:>11}  {span.service:<{width}}  {branch}{span.name}  {about}"
        output.line(line.rstrip() + failed + lost)
        last = len(tree.children) - 1
        waiting.extend(
            (child, indent + ("└ " if place == last else "├ "), indent + ("  " if place == last else "│ "))
            for place, child in reversed(list(enumerate(tree.children)))
        )


def _told(attributes: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
    """Return what of a span's attributes is worth a place on its line: ours, its status and its error."""
    ours = {
        name.removeprefix("tierline."): value
        for name, value in attributes.items()
        if name.startswith("tierline.") and name != "tierline.request_id" and value != ""
    }
    names = {"http.response.status_code": "status", "error.type": "error"}
    return {short: attributes[name] for name, short in names.items() if name in attributes} | ours


def _short(value: str | int | float | bool) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _milliseconds(duration_ns: int) -> str:
    return f"{duration_ns / 1e6:,.2f} ms"


def _named(files: list[Path]) -> str:
    return ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
