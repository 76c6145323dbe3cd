"""A comparison for people: the vendor's four charts, what each feature changes, where tokens were found, what is wrong.

Every figure is computed from the cells' results; what a feature changes is over a baseline of the same comparison.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tierline.bench.features.answers import ROUNDING, Agreement, compare_answers
from tierline.bench.features.cells import BASELINES, OFF, Cell
from tierline.bench.features.comparing import Comparison, Measured
from tierline.bench.report import Bar, Chart, ChartGrid, Machine, Report, Table, figure_text, markdown
from tierline.bench.rows import JsonValue, Limit, Row, not_measured
from tierline.bench.serving.html import page_text
from tierline.bench.serving.results import Result

NAME = "compare-features"
_ANSWERS_GO_ON = ("chats", "agents")
"""Workloads whose answers are part of the next prompt."""


@dataclass(frozen=True)
class Figure:
    """One of the four that the vendor's charts show; ``of`` returns ``None`` where a result does not have it."""

    name: str
    unit: str
    of: Callable[[Result], float | None]


def _ttft(percent: float) -> Callable[[Result], float | None]:
    def of(result: Result) -> float | None:
        ttft = result.summary().metrics.get("ttft")
        return None if ttft is None else ttft.percentiles[percent]

    return of


def _cost(result: Result) -> float | None:
    costs = result.costs()
    return None if costs is None else costs.per_1k_tokens


def figures(currency: str = "") -> tuple[Figure, ...]:
    """Return the vendor's four: two of the time to first token, throughput, cost."""
    return (
        Figure("TTFT P90", "s", _ttft(90.0)),
        Figure("TTFT P50", "s", _ttft(50.0)),
        Figure("throughput", "output tokens/s", lambda result: result.summary().output_tokens_per_s),
        Figure("cost of 1,000 tokens", currency or "price list", _cost),
    )


def agreements(found: Measured) -> dict[Cell, Agreement]:
    """Hold the answers of every cell against those of the first."""
    (first, reference), *others = found.results.items()
    rounding = ROUNDING[found.comparison.dtype]
    goes_on = found.comparison.workload in _ANSWERS_GO_ON
    whole = Agreement(equal=reference.summary().completed)
    return {first: whole} | {
        cell: compare_answers(reference.measured, result.measured, rounding, goes_on=goes_on) for cell, result in others
    }


def what_is_wrong(found: Measured) -> list[str]:
    """Return why these figures are not to be published: wrong tokens, failures, what was warm before, a slow client."""
    wrong = []
    for cell, agreement in agreements(found).items():
        if agreement.wrong:
            indices = ", ".join(map(str, agreement.wrong))
            wrong.append(f"{cell.name}: wrong tokens in {len(agreement.wrong)} answers (requests {indices})")
    for cell, result in found.results.items():
        failures = ", ".join(f"{count} of {kind}" for kind, count in result.summary().errors.items())
        wrong += [f"{cell.name}: {failures}"] if failures else []
        first = [record for record in result.measured if record.is_good and record.is_cold]
        if found_some := sum((record.cached_tokens or 0) > 0 for record in first):
            wrong.append(f"{cell.name}: {found_some} of {len(first)} cold requests found something in a cache")
        wrong += [f"{cell.name}: {doubt}" for doubt in result.doubts]
    return wrong


def report_of(
    found: Measured,
    *,
    command: str,
    started: str,
    duration_s: float,
    machine: Machine,
    more_notes: Sequence[str] = (),
) -> Report:
    """Return a comparison in the form that every benchmark's report has."""
    label = "simulated: " if is_simulated(found) else ""
    billing = found.comparison.billing
    shown = figures(billing.prices.currency if billing is not None else "")
    return Report(
        bench=NAME,
        command=command,
        started=started,
        duration_s=duration_s,
        machine=machine,
        rows=_rows(label, found, shown),
        notes=[*more_notes, *_notes(found)],
        tables=[
            _figures_table(label, found, shown),
            *(_changes(label, found, shown, cell) for cell in BASELINES if cell in found.results),
            _tokens(label, found),
        ],
        chart=ChartGrid([_chart(label, found, figure) for figure in shown if _has(found, figure)]),
    )


def html_of(found: Measured, report: Report) -> str:
    """Return the report as one page that needs no other file."""
    label = "Simulated: " if is_simulated(found) else ""
    billing = found.comparison.billing
    charts = [
        _bars(found, figure)
        for figure in figures(billing.prices.currency if billing is not None else "")
        if _has(found, figure)
    ]
    return page_text(f"{label}features compared", report, charts)


def markdown_of(found: Measured, report: Report, chart: str) -> str:
    """Return the report as a page of its own, with the file that has its charts."""
    title = "Features compared, simulated" if is_simulated(found) else "Features compared"
    return f"# {title}\n\n![The four charts]({chart})\n\n{markdown(report)}"


def is_simulated(found: Measured) -> bool:
    """Whether no model answered."""
    return any(result.is_simulated for result in found.results.values())


def _has(found: Measured, figure: Figure) -> bool:
    return any(figure.of(result) is not None for result in found.results.values())


def _rows(label: str, found: Measured, shown: Sequence[Figure]) -> list[Row]:
    off = found.results.get(OFF)
    rows = []
    for cell, result in found.results.items():
        n, name = result.summary().completed, f"{label}{cell.title}"
        for figure in shown:
            value = figure.of(result)
            if value is None:
                why = "no price list was given" if result.billing is None else "no request was answered"
                rows.append(not_measured(f"{name}: {figure.name}", figure.unit, why))
                continue
            base = None if off is None or cell == OFF else Limit(f"{figure.name}, {OFF.title}", figure.of(off))
            split = result.split if figure is shown[0] else None
            rows.append(Row(f"{name}: {figure.name}", value, figure.unit, base, n, split=split))
        share = result.summary().cached_share
        if share is not None:
            rows.append(Row(f"{name}: cached tokens", share, "share", n=n, note="of the prompts, as `usage` says"))
    for cell, agreement in agreements(found).items():
        rows.append(
            Row(
                f"{label}{cell.title}: answers as those of the first cell",
                (agreement.equal + agreement.ties) / agreement.total if agreement.total else 0.0,
                "share",
                n=agreement.total,
                note=f"{agreement.ties} of them but for tokens that were equally likely",
            )
        )
    rows += [not_measured(f"{label}{cell.title}: TTFT P50", "s", reason) for cell, reason in found.missing.items()]
    return rows


def _figures_table(label: str, found: Measured, shown: Sequence[Figure]) -> Table:
    answered = agreements(found)
    lines = []
    for cell, result in found.results.items():
        summary, agreement = result.summary(), answered[cell]
        lines.append(
            (
                cell.title,
                str(summary.completed),
                str(summary.failed),
                *(figure_text(figure.of(result)) for figure in shown),
                figure_text(summary.requests_per_s),
                "–" if summary.cached_share is None else f"{summary.cached_share:.0%}",
                f"{agreement.equal}/{agreement.ties}/{len(agreement.wrong)}",
            )
        )
    lines += [(cell.title, "–", *[""] * (len(shown) + 4)) for cell in found.missing]
    header = (
        *("cell", "good", "failed"),
        *(f"{figure.name}, {figure.unit}" for figure in shown),
        *("requests/s", "cached", "answers equal/tied/wrong"),
    )
    return Table(f"{label}The same {found.comparison.requests} requests in every cell", header, lines)


def _changes(label: str, found: Measured, shown: Sequence[Figure], base: Cell) -> Table:
    of_base = found.results[base]
    lines = [
        (cell.title, *(_change(figure.of(result), figure.of(of_base)) for figure in shown))
        for cell, result in found.results.items()
        if cell != base
    ]
    return Table(f"{label}Change from the {base.title}", ("cell", *(figure.name for figure in shown)), lines)


def _change(value: float | None, base: float | None) -> str:
    if value is None or not base:
        return "–"
    return f"{value / base - 1:+.0%}".replace("-", "−")


def _tokens(label: str, found: Measured) -> Table:
    lines = []
    for cell, result in found.results.items():
        split = result.split
        if split is None or not split.total:
            lines.append((cell.title, *["–"] * 4))
            continue
        parts = (split.engine_cache, split.node_store, split.other_node, split.computed)
        lines.append((cell.title, *(f"{tokens / split.total:.0%}" for tokens in parts)))
    header = ("cell", "engines' own cache", "node store", "another node", "computed")
    return Table(f"{label}Who had the prompts' tokens, by the engines' counters", header, lines)


def _chart(label: str, found: Measured, figure: Figure) -> Chart:
    bars = [
        Bar(cell.title, value) for cell, result in found.results.items() if (value := figure.of(result)) is not None
    ]
    return Chart(f"{label}{figure.name}", figure.unit, bars)


def _bars(found: Measured, figure: Figure) -> Mapping[str, JsonValue]:
    cells = [cell for cell, result in found.results.items() if figure.of(result) is not None]
    return {
        "title": figure.name,
        "x": "cell",
        "y": figure.unit,
        "kind": "bars",
        "labels": [cell.title for cell in cells],
        "names": [figure.name],
        "data": [list(range(len(cells))), [figure.of(found.results[cell]) for cell in cells]],
    }


def _notes(found: Measured) -> list[str]:
    comparison = found.comparison
    result = next(iter(found.results.values()))
    notes = []
    if is_simulated(found):
        notes.append("Simulated engines answered: these figures are of a model of an engine, never of a real one.")
    notes += [f"Not to be published: {wrong}." for wrong in what_is_wrong(found)]
    notes.append(_load(comparison, result))
    notes.append(_stack(comparison, result))
    notes.append(
        "Throughput is output tokens over the time from the first request to the last answer. Answers are held "
        "against those of the first cell, token by token: equal, tied (another token stands where in both cells the "
        f"best was ahead by no more than {ROUNDING[comparison.dtype]:g} nats, which is rounding), wrong."
    )
    if comparison.billing is not None:
        prices, kind = comparison.billing.prices, comparison.billing.instance_type
        notes.append(
            f"Cost: {comparison.billing.instances} × {kind} at {prices.per_hour[kind]:g} {prices.currency} an hour "
            f"({prices.dated}, {prices.source}) over the measured time; input and output tokens together."
        )
    notes += [f"{cell.title}: not measured: {reason}." for cell, reason in found.missing.items()]
    return notes


def _load(comparison: Comparison, result: Result) -> str:
    same = ", but for earlier answers in them" if comparison.workload in _ANSWERS_GO_ON else ""
    prefixes = f" over {comparison.prefixes} prefixes" if comparison.workload in ("templates", "agents") else ""
    return (
        f"{comparison.requests} requests of the workload {comparison.workload}{prefixes}, prompts of about "
        f"{comparison.input_len:,} tokens, answers of {comparison.output_len}, {comparison.concurrency} at once, word "
        f"for word the same in every cell{same}, each cell under a cache_salt of its own, so that cold is cold; "
        f"model {result.settings.model}. These are contexts and loads that a small machine can serve: the vendor's "
        "figures are of 8K and 64K tokens on 56 GPUs, so compare ratios, not seconds."
    )


def _stack(comparison: Comparison, result: Result) -> str:
    if comparison.base_url:
        return (
            f"Measured at {comparison.base_url}, which ran already: only what can be switched from outside was "
            "compared. Where each request has a cache_salt of its own, no cache has anything for it; other strategies "
            "are those of routers beside the one that runs."
        )
    asked = result.settings.metadata
    dtype = f", in {asked['dtype']}" if "dtype" in asked else ""
    return (
        f"Two replicas{dtype}, each with room for {int(asked['engine_cache_tokens']):,} tokens in its own cache: by "
        "default all requests in flight and no more, as engines hold less than what is asked for again. A router "
        "stands before them in every cell, round robin where routing is not what is compared. With L1 each replica has "
        "a node store of its own; below that the two are one pool (tieredstorage), or share a Redis."
    )
