"""A report as one HTML file that needs nothing else: tables, and charts drawn by uPlot, which is in the file.

Charts are as wide as the window lets them be, and each has its figures in a table for who cannot see it. What comes
from servers (models, errors) is text to it, never markup.
"""

import html
import importlib.resources
from collections.abc import Mapping, Sequence

import msgspec

from tierline.bench.report import Report, Table, report_tables
from tierline.bench.rows import JsonValue
from tierline.bench.serving.measures import duration
from tierline.bench.serving.records import Record
from tierline.bench.serving.report import report_of
from tierline.bench.serving.results import Result

_PARTS_OF_A_RUN = 60
_POINTS_OF_A_CURVE = 200


def html_text(result: Result) -> str:
    """Return a result as a page."""
    label = "Simulated: " if result.is_simulated else ""
    title = f"{label}{result.settings.workload} at {result.settings.model}"
    return page_text(title, report_of(result), _charts(result))


def page_text(title: str, report: Report, charts: Sequence[Mapping[str, JsonValue]]) -> str:
    """Return a report as a page.

    Parameters
    ----------
    title
        As text.
    report
        Whose tables and notes it has.
    charts
        Each with ``title``, the names of its axes ``x`` and ``y``, of its series, ``names``, and their ``data``, x
        first; ``kind`` is ``line``, ``points`` or ``bars``, and bars stand at 0, 1, … for their ``labels``.
    """
    uplot = importlib.resources.files("tierline") / "vendored" / "uplot"
    return _PAGE.format(
        title=html.escape(title),
        uplot_style=(uplot / "uPlot.min.css").read_text(),
        style=_STYLE,
        subtitle=html.escape(f"{report.started} · {report.command}"),
        machine=html.escape(f"Client: {report.machine}"),
        notes="".join(f"<li>{html.escape(note)}</li>" for note in report.notes),
        tables="".join(map(_table, report_tables(report))),
        uplot_script=(uplot / "uPlot.iife.min.js").read_text(),
        charts=msgspec.json.encode(charts).decode().replace("<", "\\u003c"),
        script=_SCRIPT,
    )


def _charts(result: Result) -> list[dict[str, JsonValue]]:
    measured = [record for record in result.measured if record.is_good and record.ttft_s is not None]
    if not measured:
        return []
    return [_moments(measured), _shares(measured), _rates(measured)]


def _moments(records: Sequence[Record]) -> dict[str, JsonValue]:
    """When each request was sent, and how long its first token took."""
    ordered = sorted(records, key=lambda record: record.sent_s)
    cold = [record.ttft_s if record.is_cold else None for record in ordered]
    warm = [None if record.is_cold else record.ttft_s for record in ordered]
    return {
        "title": "Time to first token of each request",
        "x": "seconds since the start",
        "y": "seconds",
        "kind": "points",
        "names": ["cold", "warm"],
        "data": [[record.sent_s for record in ordered], cold, warm],
    }


def _shares(records: Sequence[Record]) -> dict[str, JsonValue]:
    """Of how many requests the first token took no longer than that."""
    sides = [sorted(record.ttft_s or 0.0 for record in records if record.is_cold is cold) for cold in (True, False)]
    longest = max(record.ttft_s or 0.0 for record in records)
    ticks = [longest * step / _POINTS_OF_A_CURVE for step in range(_POINTS_OF_A_CURVE + 1)]
    return {
        "title": "Share of requests whose first token took at most so long",
        "x": "seconds",
        "y": "share",
        "kind": "line",
        "names": ["cold", "warm"],
        "data": [ticks, *([_share_below(side, tick) for tick in ticks] for side in sides)],
    }


def _share_below(ordered: Sequence[float], limit: float) -> float | None:
    return sum(value <= limit for value in ordered) / len(ordered) if ordered else None


def _rates(records: Sequence[Record]) -> dict[str, JsonValue]:
    """Output tokens a second, by when answers ended."""
    start = min(record.sent_s for record in records)
    part_s = duration(records) / _PARTS_OF_A_RUN
    counts = [0] * _PARTS_OF_A_RUN
    for record in records:
        counts[min(_PARTS_OF_A_RUN - 1, int((record.ended_s - start) / part_s))] += record.output
    return {
        "title": "Output tokens a second, of answers that ended then",
        "x": "seconds since the start",
        "y": "tokens/s",
        "kind": "line",
        "names": ["output tokens/s"],
        "data": [
            [start + part_s * (part + 0.5) for part in range(_PARTS_OF_A_RUN)],
            [count / part_s for count in counts],
        ],
    }


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.header)
    lines = "".join(
        "<tr>"
        + f'<th scope="row">{html.escape(line[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in line[1:])
        + "</tr>"
        for line in table.lines
    )
    caption = html.escape(table.title)
    table_html = f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="wide" role="region" aria-label="{caption}" tabindex="0">{table_html}</div>'


_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1d; --paper: #fff; --line: #ccc; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #16181c; --line: #444; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1.5rem 0; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .15rem .7rem; border-bottom: 1px solid var(--line); text-align: right; font-weight: 400;
  font-variant-numeric: tabular-nums; }
th:first-child { text-align: left; }
thead th { font-weight: 600; }
figure { margin: 1.5rem 0; }
figcaption { font-weight: 600; }
h1, p, li { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
summary { cursor: pointer; }
@media (max-width: 40rem) { body { margin: 1rem auto; } h1 { font-size: 1.4rem; } th, td { padding: .15rem .4rem; } }
.u-legend { color: var(--ink); }
"""

_SCRIPT = """
const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
const colours = ["#3b6ea5", "#c0702b"];
const MOST_LINES = 5000;
const shown = value => value == null ? "–" : `${Number(value.toPrecision(6))}`;

// Room for tick labels, however long they are, beside the axis's own label.
function roomFor(plot, values, index, cycle) {
  const axis = plot.axes[index];
  if (cycle > 1) return axis._size;
  plot.ctx.font = axis.font[0];
  const widths = (values ?? []).map(value => plot.ctx.measureText(value).width / devicePixelRatio);
  return Math.ceil(Math.max(25, ...widths)) + axis.ticks.size + axis.gap;
}

function inWords(chart) {
  const ranges = chart.names.map((name, index) => {
    const values = chart.data[index + 1].filter(value => value != null);
    const [low, high] = values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)],
      [Infinity, -Infinity]);
    return values.length ? `${name} from ${shown(low)} to ${shown(high)}` : `${name} none`;
  });
  return `${chart.title}: ${ranges.join(", ")} (${chart.y}). Its figures are in the table below it.`;
}

// Made when it is opened: a long run has many lines.
function inATable(chart) {
  const details = document.createElement("details"), summary = document.createElement("summary");
  summary.textContent = "Figures of this chart";
  details.append(summary);
  details.addEventListener("toggle", () => {
    if (details.querySelector("table")) return;
    const box = document.createElement("div"), table = document.createElement("table");
    box.className = "wide";
    // Odd, so that one of four is not always the first question on a document.
    const every = Math.ceil(chart.data[0].length / MOST_LINES) | 1;
    table.createCaption().textContent = every > 1 ? `${chart.title}: one of ${every}` : chart.title;
    const line = (section, cells, isHead) => {
      const row = section.insertRow();
      cells.forEach((cell, index) => {
        const element = document.createElement(isHead || !index ? "th" : "td");
        if (isHead || !index) element.scope = isHead ? "col" : "row";
        element.textContent = cell;
        row.append(element);
      });
    };
    line(table.createTHead(), [chart.x, ...chart.names], true);
    const body = table.createTBody();
    for (let at = 0; at < chart.data[0].length; at += every) {
      const named = chart.labels ? chart.labels[chart.data[0][at]] : shown(chart.data[0][at]);
      line(body, [named, ...chart.data.slice(1).map(values => shown(values[at]))], false);
    }
    box.append(table);
    details.append(box);
  });
  return details;
}

for (const chart of JSON.parse(document.getElementById("charts").textContent)) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = chart.title;
  figure.append(caption);
  const place = document.createElement("div");
  place.className = "wide";
  if (chart.kind === "bars") place.tabIndex = 0;  // it scrolls where bars need more room than there is
  figure.append(place);
  document.getElementById("figures").append(figure);
  const axis = label => ({label, stroke: ink, grid: {stroke: "#8884"}, ticks: {stroke: "#8884"}});
  const isBars = chart.kind === "bars";
  const paths = {points: () => null, bars: uPlot.paths.bars({size: [0.6, 80]})}[chart.kind];
  const series = chart.names.map((name, index) => ({
    label: name, stroke: colours[index], paths, fill: isBars ? colours[index] : undefined,
    points: {show: chart.kind === "points", size: 5, fill: colours[index]},
  }));
  const named = (_, places) => places.map(place => chart.labels[place] ?? "");
  const x = axis(chart.x), y = {...axis(chart.y), size: roomFor}, first = {label: chart.x}, scales = {x: {time: false}};
  if (isBars) {
    Object.assign(x, {label: undefined, values: named, splits: () => chart.data[0], rotate: -35, size: 130});
    first.value = (_, place) => chart.labels[place] ?? "";
    scales.x.range = [-0.6, chart.labels.length - 0.4];
    scales.y = {range: (_, low, high) => [0, high * 1.1]};
    y.values = (_, places) => places.map(place => `${Number(place.toPrecision(3))}`);
  }
  const height = isBars ? 400 : 300, narrowest = isBars ? 220 + 40 * chart.labels.length : 0;
  const width = () => Math.max(narrowest, Math.min(920, place.clientWidth));
  const plot = new uPlot({
    width: width(), height, scales, axes: [x, y], padding: isBars ? [null, 90, null, null] : undefined,
    series: [first, ...series],
  }, chart.data, place);
  new ResizeObserver(() => width() !== plot.width && plot.setSize({width: width(), height})).observe(place);
  const canvas = place.querySelector("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", inWords(chart));
  figure.append(inATable(chart));
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{uplot_style}{style}</style>
</head>
<body>
<h1>{title}</h1>
<p><code>{subtitle}</code></p>
<p>{machine}</p>
<ul>{notes}</ul>
<div id="figures"></div>
{tables}
<script id="charts" type="application/json">{charts}</script>
<script>{uplot_script}</script>
<script>{script}</script>
</body>
</html>
"""
