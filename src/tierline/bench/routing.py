"""``tierline bench routing``: what each strategy makes of a fleet's caches and queues, on traces and generated traffic.

The strategies are the router's own objects; the engines are modelled and time is virtual, so a run takes seconds and
comes out the same each time. A hit rate is the share of all prompt blocks that an engine had when it came to them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tierline.bench import black_boxes
from tierline.bench.engine_model import EngineModel
from tierline.bench.fleet import LOAD, Fleet, Setting, imbalances, one_cache_hits_beside
from tierline.bench.registry import BenchOptions, Findings, Say
from tierline.bench.report import Curve, CurveChart, Panel, Table, figure_text
from tierline.bench.routing_loads import (
    ROUTER_BLOCKS,
    Arrival,
    arrivals,
    generate_chats,
    generate_documents,
    generate_templates,
)
from tierline.bench.rows import Limit, Row, at_most, not_measured, percentile
from tierline.bench.traces import BLOCK_TOKENS, Trace, read_trace
from tierline.router.index import PLACEMENT_BYTES
from tierline.router.strategies import build_strategy

STRATEGIES = ("roundrobin", "leastload", "session", "prefixaware", "kvaware")
SIZES_PERCENT = (3, 10, 30)
"""Of a trace's footprint: room of all engines together."""
WINDOW_SECONDS = 60.0
GOAL_HITS = 0.95
GOAL_IMBALANCE = 1.25

_GOALS_ARE_FOR = ("prefixaware", "kvaware")
_REQUESTS = 16_000
_QUICK_REQUESTS = 500
_QUICK_SIZES = (10,)


def measure(options: BenchOptions, say: Say) -> Findings:
    """Replay each trace at each size with each strategy."""
    traces = _traces(options, _QUICK_REQUESTS if options.quick else _REQUESTS)
    rows: list[Row] = []
    tables: list[Table] = []
    panels: list[Panel] = []
    notes = _notes(options)
    for trace in traces:
        replayed = _Replayed(trace, options, say)
        rows += replayed.rows()
        tables.append(replayed.table())
        panels.append(replayed.panel())
        notes += replayed.caveats
    if options.black_boxes:
        boxes = _black_boxes(options, say)
        rows += boxes.rows()
        tables += boxes.tables()
        notes += boxes.notes()
    chart = CurveChart("room of all engines, % of the footprint (log)", "hit rate, % of blocks", panels)
    return Findings(rows, notes, tables, chart)


def _traces(options: BenchOptions, requests: int) -> list[Trace]:
    if options.traces:
        return [read_trace(path).first(requests) for path in options.traces]
    return [make(options.seed, requests) for make in (generate_chats, generate_documents, generate_templates)]


def _black_boxes(options: BenchOptions, say: Say) -> black_boxes.BlackBoxes:
    if options.quick:
        traces, speed = _traces(options, black_boxes.QUICK_REQUESTS)[:1], black_boxes.QUICK_SPEED
    else:
        traces, speed = _traces(options, black_boxes.REQUESTS), black_boxes.SPEED
    return black_boxes.BlackBoxes(traces, options.endpoints, say, speed)


class Figures(NamedTuple):
    """What came of one replay."""

    hits: float
    """In percent of all blocks, as are the limits of it."""
    one_cache: float
    beside: float
    """Of one cache that also holds what runs."""
    ttft_s: Sequence[float]
    imbalance: float | None
    """Largest over mean of what the engines computed of prompts, averaged over windows; ``None`` without any."""
    windows: int
    tokens_per_s: float


class _Replayed:
    """The figures of one trace, by size and strategy."""

    def __init__(self, trace: Trace, options: BenchOptions, say: Say) -> None:
        self._trace = trace
        self._endpoints = options.endpoints
        self._model = EngineModel()
        self._infinite = 100 * (1 - trace.footprint / trace.blocks)
        self._sizes = _QUICK_SIZES if options.quick else SIZES_PERCENT
        self._figures: dict[tuple[int, str], Figures] = {}
        self.caveats: list[str] = []
        arriving = list(arrivals(trace))
        for percent in self._sizes:
            setting = Setting.of(trace, percent, options.endpoints, self._model)
            self.caveats += [setting.caveat] if setting.caveat else []
            for name in STRATEGIES:
                say(f"{trace.name}, {percent} %: {name}")
                self._figures[percent, name] = self._replay(name, arriving, setting)

    def rows(self) -> list[Row]:
        rows = []
        for (percent, name), figures in self._figures.items():
            where, n = f"{self._trace.name}, {percent} %, {name}", len(self._trace.requests)
            has_goal = name in _GOALS_ARE_FOR
            one_cache = Limit("one cache", figures.one_cache, GOAL_HITS if has_goal else None)
            rows.append(Row(f"{where}: hits", figures.hits, "% of blocks", one_cache, n=n))
            rows.extend(
                Row(f"{where}: TTFT P{rank}", percentile(figures.ttft_s, rank), "s", n=n) for rank in (50, 90, 99)
            )
            rows.append(Row(f"{where}: throughput", figures.tokens_per_s, "prompt tokens/s", n=n))
            if figures.imbalance is None:
                rows.append(not_measured(f"{where}: imbalance", "largest / mean", "no minute above half load"))
            else:
                limit = at_most(GOAL_IMBALANCE) if has_goal else None
                rows.append(Row(f"{where}: imbalance", figures.imbalance, "largest / mean", limit, n=figures.windows))
        return rows

    def table(self) -> Table:
        return Table(
            title=f"{self._trace.name}: {len(self._trace.requests):,} requests over {self._endpoints} engines; "
            f"an infinite cache hits {self._infinite:.1f} %",
            header=(
                "",
                "hits %",
                "one cache %",
                "of it",
                "beside what runs %",
                "TTFT P50 s",
                "P90",
                "P99",
                "imbalance",
                "prompt tokens/s",
            ),
            lines=[
                (
                    f"{percent} %: {name}",
                    f"{figures.hits:.1f}",
                    f"{figures.one_cache:.1f}",
                    f"{figures.hits / figures.one_cache:.2f}" if figures.one_cache else "–",
                    f"{figures.beside:.1f}",
                    *(f"{percentile(figures.ttft_s, rank):.2f}" for rank in (50, 90, 99)),
                    "–" if figures.imbalance is None else f"{figures.imbalance:.2f}",
                    figure_text(figures.tokens_per_s),
                )
                for (percent, name), figures in self._figures.items()
            ],
        )

    def panel(self) -> Panel:
        curves = [
            Curve(name, [(percent, self._figures[percent, name].hits) for percent in self._sizes])
            for name in STRATEGIES
        ]
        best = [(percent, self._figures[percent, STRATEGIES[0]].one_cache) for percent in self._sizes]
        curves.append(Curve("one cache", best, is_bound=True))
        curves.append(Curve("infinite", [(percent, self._infinite) for percent in self._sizes], is_bound=True))
        return Panel(self._trace.name, curves)

    def _replay(self, name: str, arriving: Sequence[Arrival], setting: Setting) -> Figures:
        index_bytes = 2 * self._endpoints * setting.blocks * ROUTER_BLOCKS * PLACEMENT_BYTES
        strategy = build_strategy(name, self._endpoints, index_bytes)
        fleet = Fleet(strategy, self._endpoints, setting.blocks, self._model)
        served = fleet.serve(arriving, setting.time_scale)
        hits = sum(job.cached_blocks for job, _ in served)
        work = ((job.at_s, position, job.uncached_tokens) for job, position in served)
        ratios = imbalances(work, self._endpoints, WINDOW_SECONDS, self._model.prefill_tokens_per_s)
        lasts_s = max(job.ended_at_s for job, _ in served) - served[0].job.at_s
        return Figures(
            100 * hits / self._trace.blocks,
            100 * setting.one_cache / self._trace.blocks,
            100 * one_cache_hits_beside(served, setting.blocks * self._endpoints) / self._trace.blocks,
            [job.first_token_at_s - job.at_s for job, _ in served],
            sum(ratios) / len(ratios) if ratios else None,
            len(ratios),
            self._trace.blocks * BLOCK_TOKENS / lasts_s,
        )


def _notes(options: BenchOptions) -> list[str]:
    model = EngineModel()
    notes = [
        f"Engines are modelled: {model.prefill_tokens_per_s:,.0f} prompt tokens/s, steps of {model.step_tokens:,} "
        f"tokens, blocks of {BLOCK_TOKENS}, the least recently used goes first; answers do not become part of a cached "
        "prefix. Sizes are the room of all engines in % of the different blocks of the trace.",
        "One cache: of all engines' memory together, without a queue; of it: the share of its hits that was reached. "
        "Beside what runs: of one cache that also has to hold the prompts and answers that ran in this replay.",
        "Requests come in the trace's rhythm, at the pace at which engines with that one cache would be busy "
        f"{LOAD:.0%} of the time. Who hits less has more to do, and may fall behind.",
        "Imbalance: of what was computed of the prompts that came within a minute, the largest part of an engine over "
        "the mean, averaged over minutes that brought work for half of their time or more.",
        "prefixaware has room to remember twice what the engines hold (--index-bytes); kvaware is told by KV events.",
        "Traces do not tell sessions: what goes on where another prompt ended is taken for the same conversation.",
    ]
    if not options.traces:
        notes.append("The traffic is generated: it compares strategies, and says nothing about a service.")
    return notes
