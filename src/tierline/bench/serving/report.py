"""A result for people: rows, tables, notes and a chart, in the form that every benchmark's report has."""

import textwrap
from collections.abc import Sequence

from tierline.bench.report import Bar, Chart, Report, Table, figure_text
from tierline.bench.rows import Row, not_measured
from tierline.bench.serving.measures import METRICS, Summary, duration, most_in_flight
from tierline.bench.serving.prices import Costs
from tierline.bench.serving.results import Result, Settings

_LONGEST_DETAIL = 100


def report_of(result: Result) -> Report:
    """Return a result as a report."""
    label = ("simulated: " if result.is_simulated else "") + (f"by {result.driver}: " if result.driver else "")
    parts = {"all": result.summary(), **result.parts()}
    rows = [row for name, summary in parts.items() for row in _rows(f"{label}{name}", summary)]
    costs = result.costs()
    if costs is not None and result.billing is not None:
        rows += _cost_rows(label, costs, result.billing.prices.currency)
    tables = [_latencies(label, parts, result.settings.percentiles), _rates(label, parts)]
    if result.summary().errors:
        tables.append(_failures(label, result))
    if result.split is not None:
        tables.append(_tiers(label, result))
    if costs is not None and result.billing is not None:
        tables.append(_bill(label, costs, result.billing.prices.currency))
    return Report(
        bench="run",
        command=result.command,
        started=result.started,
        duration_s=duration(result.records),
        machine=result.machine,
        rows=rows,
        notes=[*_notes(result), *result.notes],
        tables=tables,
        chart=_chart(label, parts),
    )


def _rows(name: str, summary: Summary) -> list[Row]:
    rows = []
    for metric, words in METRICS.items():
        spread = summary.metrics.get(metric)
        if spread is None:
            rows.append(not_measured(f"{name}: {metric.upper()}", "ms", f"no answer has a {words}"))
            continue
        for percent, value in spread.percentiles.items():
            rows.append(Row(f"{name}: {metric.upper()} P{percent:g}", value * 1000, "ms", n=spread.n))
    n = summary.completed
    if name.endswith("all"):
        rows.append(Row(f"{name}: requests", summary.requests_per_s, "1/s", n=n))
        rows.append(Row(f"{name}: output tokens", summary.output_tokens_per_s, "1/s", n=n))
        rows.append(Row(f"{name}: all tokens", summary.tokens_per_s, "1/s", n=n))
        if summary.goodput is not None:
            rows.append(Row(f"{name}: requests that keep the SLOs", summary.goodput, "1/s", n=n))
    own = summary.own_output_tokens_per_s
    if own is not None:
        rows.append(Row(f"{name}: output tokens of one request", own, "1/s", n=n))
    share = summary.cached_share
    if share is None:
        rows.append(not_measured(f"{name}: cached tokens", "share", "the server says nothing of cached tokens"))
    else:
        rows.append(Row(f"{name}: cached tokens", share, "share", n=n, note="of the prompts, as `usage` says"))
    rows += [Row(f"{name}: error, {kind}", float(count), "requests", n=count) for kind, count in summary.errors.items()]
    return rows


def _latencies(label: str, parts: dict[str, Summary], percents: Sequence[float]) -> Table:
    lines = []
    for name, summary in parts.items():
        for metric, spread in summary.metrics.items():
            cells = [figure_text(spread.percentiles[percent] * 1000) for percent in percents]
            lines.append((f"{name}: {metric.upper()}", str(spread.n), figure_text(spread.mean * 1000), *cells))
    header = ("milliseconds", "n", "mean", *(f"P{percent:g}" for percent in percents))
    return Table(f"{label}How long answers take", header, lines)


def _rates(label: str, parts: dict[str, Summary]) -> Table:
    lines = [
        (
            name,
            str(summary.completed),
            str(summary.failed),
            # Those of parts are what the whole run's load was made of; what one request gets can be compared.
            figure_text(summary.requests_per_s) if name == "all" else "",
            figure_text(summary.output_tokens_per_s) if name == "all" else "",
            figure_text(summary.tokens_per_s) if name == "all" else "",
            figure_text(summary.own_output_tokens_per_s),
            figure_text(summary.goodput) if name == "all" else "",
            f"{summary.input_tokens:,}",
            f"{summary.output_tokens:,}",
            "–" if summary.cached_share is None else f"{summary.cached_share:.1%}",
        )
        for name, summary in parts.items()
    ]
    header = (
        "requests",
        "good",
        "failed",
        "per s",
        "output tokens/s",
        "all tokens/s",
        "of one request",
        "goodput",
        "input",
        "output",
        "cached",
    )
    return Table(f"{label}How much is answered", header, lines)


def _failures(label: str, result: Result) -> Table:
    """List what went wrong, the most frequent first, with what was said of it the first time that anything was."""
    said: dict[str, str] = {}
    for record in result.measured:
        if not said.get(record.error):
            said[record.error] = record.detail
    lines = [(kind, f"{count:,}", _in_a_line(said[kind])) for kind, count in result.summary().errors.items()]
    return Table(f"{label}What failed", ("error", "requests", "said of the first"), lines)


def _in_a_line(text: str) -> str:
    printable = "".join(each if each.isprintable() else " " for each in text)
    return textwrap.shorten(printable, _LONGEST_DETAIL, placeholder=" …")


def _tiers(label: str, result: Result) -> Table:
    split = result.split
    assert split is not None
    names, who = ("the engine's own cache", "the node store", "another node", "computed"), "by the engines' counters"
    if result.is_simulation:
        names, who = ("the engine's own cache", "L1", "L2", "computed"), "of measured requests"
    named = zip(names, (split.engine_cache, split.node_store, split.other_node, split.computed), strict=True)
    lines = [(name, f"{tokens:,}", f"{tokens / split.total:.1%}" if split.total else "–") for name, tokens in named]
    return Table(f"{label}Who had the prompts' tokens, {who}", ("tier", "tokens", "share"), lines)


def _bill(label: str, costs: Costs, currency: str) -> Table:
    lines = [
        ("1,000 input tokens", figure_text(costs.per_1k_input)),
        ("1,000 output tokens", figure_text(costs.per_1k_output)),
        ("1,000 tokens of both", figure_text(costs.per_1k_tokens)),
        ("a request", figure_text(costs.per_request)),
        ("the measured time", figure_text(costs.whole)),
    ]
    return Table(f"{label}Cost", ("of", currency), lines)


def _cost_rows(label: str, costs: Costs, currency: str) -> list[Row]:
    named = {
        f"{label}cost of 1,000 input tokens": costs.per_1k_input,
        f"{label}cost of 1,000 output tokens": costs.per_1k_output,
        f"{label}cost of 1,000 tokens": costs.per_1k_tokens,
        f"{label}cost of a request": costs.per_request,
    }
    return [
        not_measured(name, currency, "there was nothing to share the bill among")
        if value is None
        else Row(name, value, currency)
        for name, value in named.items()
    ]


def _chart(label: str, parts: dict[str, Summary]) -> Chart | None:
    bars = [
        Bar(f"{name} (n={spread.n})", spread.percentiles[50.0], upper=spread.percentiles.get(90.0))
        for name, summary in parts.items()
        if (spread := summary.metrics.get("ttft")) is not None and 50.0 in spread.percentiles
    ]
    title = f"{label}Time to first token: P50, whisker to P90"
    return Chart(title, "seconds, logarithmic", bars, is_logarithmic=True) if bars else None


def _load(settings: Settings) -> str:
    """Say how requests came."""
    if not settings.is_open_loop:
        return f"closed loop, {settings.max_concurrency} at once"
    limit = "" if settings.max_concurrency is None else f", at most {settings.max_concurrency} at once"
    if settings.ramp is not None:
        return f"open loop, {settings.ramp.start_rps:g} to {settings.ramp.end_rps:g} requests/s{limit}"
    if settings.request_rate is not None:
        return f"open loop, {settings.request_rate:g} requests/s{limit}"
    if settings.trace:
        return f"open loop, as the trace has it, {settings.trace_speed:g} times as fast{limit}"
    return f"open loop, all at once{limit}"


def _asked(result: Result) -> str:
    """Say what a client asked for."""
    settings = result.settings
    lengths = (
        f"at most {settings.input_len:,} tokens" if settings.input_len else "lengths as in the trace",
        f"at most {settings.output_len} tokens" if settings.output_len else "lengths as in the trace",
    )
    counted = [record.prompt_tokens for record in result.measured if record.is_good and record.prompt_tokens]
    words = f"prompts had {min(counted):,} to {max(counted):,} tokens by the server's count; " if counted else ""
    words += "" if result.driver else f"{result.tokens_per_word:.2f} tokens a word; "
    return (
        f"{f'{settings.workload} {settings.trace}'.rstrip()}: prompts of {lengths[0]}, answers of {lengths[1]}; "
        f"{_load(settings)}; {words}model {settings.model} at {settings.base_url}."
    )


def _too_few_in_flight(result: Result) -> int | None:
    """Return how many requests a closed loop had in flight, where these were fewer than it was asked for."""
    settings = result.settings
    if settings.is_open_loop or settings.max_concurrency is None or result.driver or result.is_simulation:
        return None
    most = most_in_flight(result.records)
    return most if most < settings.max_concurrency else None


def _notes(result: Result) -> list[str]:
    measured = result.measured
    notes = []
    if result.is_simulated:
        notes.append("Simulated engines answered: these figures are of a model of an engine, never of a real one.")
    notes += [f"Not to be published: {doubt}." for doubt in result.doubts]
    if not result.is_simulation:  # who simulates says what was asked for in a note of its own
        notes.append(_asked(result))
    failed = sum(not record.is_good for record in measured)
    if failed:
        notes.append(f"{failed} of {len(measured)} requests failed: times and rates are those of the others.")
    if (most := _too_few_in_flight(result)) is not None:
        notes.append(
            f"At most {most} were in flight at once, not {result.settings.max_concurrency}: a request that goes on "
            "with another waits for its answer. With more --num-prompts there are more that need not."
        )
    if left_out := len(result.records) - len(measured):
        when = "outside the measured time" if result.is_simulation else "of the ramp"
        notes.append(f"{left_out} requests {when} are not measured.")
    if any(record.output_tokens is None for record in measured if record.is_good):
        notes.append("The server does not count tokens: output tokens are events with content, input is unknown.")
    late = [record.late_s for record in measured if record.ttft_s is not None and record.late_s is not None]
    if result.unchecked:
        notes.append(f"How late {result.driver} sent is unknown: {result.unchecked}.")
    elif late:
        notes.append(f"The client sent at most {max(late) * 1000:.1f} ms late.")
    if result.billing is not None:
        prices = result.billing.prices
        notes.append(
            f"Prices: {result.billing.instances} × {result.billing.instance_type} at "
            f"{prices.per_hour[result.billing.instance_type]:g} {prices.currency} an hour, {prices.dated}, "
            f"{prices.source}. Input is billed for the time until the first token, output for the time after it."
        )
    endpoints = {record.endpoint for record in measured if record.endpoint}
    if endpoints:
        notes.append(f"The router sent them to {len(endpoints)} endpoints.")
    return notes
