// The picture of times to the first token, drawn by uPlot, and the table that says the same.
import { clock, fill, seconds } from "./tables.js";

const HEIGHT = 250, MOMENT_S = 10, LEAST_S = 60;
const dark = matchMedia("(prefers-color-scheme: dark)");

export class TtftChart {
  constructor(place, empty, table) {
    this.place = place;
    this.empty = empty;
    this.table = table;
    this.moments = [];
    this.plot = null;
    dark.addEventListener("change", () => this.redraw());
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(place);
  }

  show(moments) {
    this.moments = moments;
    const data = columnsOf(moments);
    const isEmpty = !moments.some(moment => moment.hit || moment.miss);
    this.empty.hidden = !isEmpty;
    this.place.hidden = isEmpty;
    if (isEmpty) return;
    if (this.plot) this.plot.setData(data);
    else this.plot = this.draw(data);
    this.place.ariaLabel = `Time to first token of the last ten minutes. ${spoken(moments, "hit", "With a hit")}; ` +
      `${spoken(moments, "miss", "without")}. The table below has the figures.`;
    fill(this.table, rowsOf(moments), "No stream has been answered yet.");
  }

  redraw() {
    this.plot?.destroy();
    this.plot = null;
    this.show(this.moments);
  }

  size() {
    return { width: Math.max(280, this.place.clientWidth), height: HEIGHT };
  }

  /** From the first moment to the last, and never so little that there would be no time on the axis. */
  span() {
    const last = this.moments.at(-1).at;
    return [Math.min(this.moments[0].at, last - LEAST_S), last];
  }

  draw(data) {
    const style = getComputedStyle(document.documentElement);
    const colour = name => style.getPropertyValue(name).trim();
    const line = (label, name, dash) => ({
      label, dash, stroke: colour(name), width: dash ? 1 : 2,
      points: { show: !dash, size: 7, width: 2, fill: colour(name === "--hit" ? name : "--card") }, // also without colours
    });
    const axis = ({ grid, ...more }) => ({
      stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1, ...grid }, ticks: { show: false },
      font: "12px system-ui, sans-serif", ...more,
    });
    return new uPlot({
      ...this.size(),
      padding: [8, 32, 0, 0],
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: true, range: () => this.span() }, y: { distr: 3 } },
      axes: [
        axis({ values: (_, ticks) => ticks.map(at => clock(at).slice(0, 5 + 3 * (ticks.length > 1 && ticks[1] - ticks[0] < 60))), space: 80 }),
        axis({ values: (_, ticks) => ticks.map(tick => (tick == null ? "" : seconds(tick).replace(/\.?0+ s/, " s"))), size: 64, grid: { filter: decades } }),
      ],
      series: [
        {}, line("with a hit", "--hit"), line("without", "--miss"),
        line("with a hit, slowest tenth", "--hit", [4, 4]), line("without, slowest tenth", "--miss", [4, 4]),
      ],
    }, data, this.place);
  }
}

const decades = (_, ticks) => ticks.map(tick => (Math.abs(Math.log10(tick) % 1) < 1e-9 ? tick : null));

/** A line goes on over moments without its kind of request, which are `undefined`, and ends where nothing was asked for long. */
function columnsOf(those) {
  const moments = those.flatMap((moment, index) => {
    const isAlone = index && moment.at - those[index - 1].at > LEAST_S;
    return isAlone ? [{ at: moment.at - MOMENT_S, isSilent: true }, moment] : [moment];
  });
  const pick = (side, figure) => moments.map(moment => (moment.isSilent ? null : moment[side]?.[figure]));
  return [moments.map(moment => moment.at), pick("hit", "p50_s"), pick("miss", "p50_s"), pick("hit", "p90_s"), pick("miss", "p90_s")];
}

function spoken(moments, side, name) {
  const medians = moments.flatMap(moment => moment[side]?.p50_s ?? []);
  if (!medians.length) return `${name}: none`;
  return `${name}: ${seconds(medians.at(-1))} last, medians from ${seconds(Math.min(...medians))} to ${seconds(Math.max(...medians))}`;
}

function rowsOf(moments) {
  return moments.toReversed().map(({ at, hit, miss, requests }) => [
    clock(at), seconds(hit?.p50_s), seconds(hit?.p90_s), seconds(miss?.p50_s), seconds(miss?.p90_s), String(requests),
  ]);
}
