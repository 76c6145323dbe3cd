"""``tierline bench eviction``: which policy keeps what will be asked for, by size of the cache, on traces of requests.

The policies are the node store's own objects. A hit rate is the share of all blocks asked for that are hits; no cache
exceeds one that forgets nothing, and none of its size one that knows the future.
"""

from collections.abc import Sequence

from tierline.bench.registry import BenchOptions, Findings, Say
from tierline.bench.replay import PolicyCache, clairvoyant_hits, replay, store_cache
from tierline.bench.report import Curve, CurveChart, Panel, Table
from tierline.bench.rows import Limit, Row
from tierline.bench.traces import BLOCK_TOKENS, Trace, generate_trace, read_trace
from tierline.store import PolicyName, StoreLimits
from tierline.store.eviction import POLICIES

SIZES_PERCENT = (1, 3, 10, 30)
"""Of a trace's footprint."""

_DEFAULT: PolicyName = "arc"
_QUICK_REQUESTS = 600


def measure(options: BenchOptions, say: Say) -> Findings:
    """Replay each trace through each policy at each size."""
    traces = [read_trace(path) for path in options.traces] or [generate_trace(options.seed)]
    rows: list[Row] = []
    tables: list[Table] = []
    panels: list[Panel] = []
    for trace in traces:
        short = trace.first(_QUICK_REQUESTS) if options.quick else trace
        measured = _Measured(short, say, through_store=options.through_store)
        rows += measured.rows()
        tables.append(measured.table())
        panels.append(measured.panel())
    chart = CurveChart("size of the cache, % of the footprint (log)", "hit rate, % of blocks", panels)
    return Findings(rows, _notes(options), tables, chart)


class _Measured:
    """The hit rates of one trace, by who served it and then by size, in percent of its blocks."""

    def __init__(self, trace: Trace, say: Say, *, through_store: bool) -> None:
        self._trace = trace
        self._blocks = trace.blocks
        self._footprint = trace.footprint
        self._sizes = [max(1, self._footprint * percent // 100) for percent in SIZES_PERCENT]
        self._rates: dict[str, list[float]] = {}
        for policy in POLICIES:
            say(f"{trace.name}: {policy}")
            self._add(policy, [replay(trace, PolicyCache(policy, size)) for size in self._sizes])
        say(f"{trace.name}: {_DEFAULT}, heads committed first")
        in_order = [replay(trace, PolicyCache(_DEFAULT, size, commits_head_first=True)) for size in self._sizes]
        self._add(f"{_DEFAULT}, heads first", in_order)
        if through_store:
            say(f"{trace.name}: {_DEFAULT} through the store")
            self._add(f"{_DEFAULT}, real store", [self._stored(size) for size in self._sizes])
        say(f"{trace.name}: clairvoyant")
        self._add("clairvoyant", [clairvoyant_hits(trace, size) for size in self._sizes])
        self._infinite = 100 * (1 - self._footprint / self._blocks)

    def rows(self) -> list[Row]:
        limit = Limit("infinite cache", self._infinite)
        return [
            Row(f"{self._trace.name}: {who}, {percent} %", rate, "% of blocks", limit, n=self._blocks)
            for who, rates in self._rates.items()
            for percent, rate in zip(SIZES_PERCENT, rates, strict=True)
        ]

    def table(self) -> Table:
        sizes = zip(SIZES_PERCENT, self._sizes, strict=True)
        return Table(
            title=f"{self._trace.name}: hits in % of {self._blocks:,} blocks of {len(self._trace.requests):,} requests",
            header=("", *(f"{percent} % ({size:,})" for percent, size in sizes)),
            lines=[
                *((who, *(f"{rate:.1f}" for rate in rates)) for who, rates in self._rates.items()),
                ("infinite", *(f"{self._infinite:.1f}" for _ in SIZES_PERCENT)),
            ],
        )

    def panel(self) -> Panel:
        curves = [Curve(policy, list(zip(SIZES_PERCENT, self._rates[policy], strict=True))) for policy in POLICIES]
        bounds = {"clairvoyant": self._rates["clairvoyant"], "infinite": [self._infinite] * len(SIZES_PERCENT)}
        curves += [Curve(name, list(zip(SIZES_PERCENT, rates, strict=True)), True) for name, rates in bounds.items()]
        return Panel(self._trace.name, curves)

    def _add(self, who: str, hits: Sequence[int]) -> None:
        self._rates[who] = [100 * count / self._blocks for count in hits]

    def _stored(self, size: int) -> int:
        with store_cache(_DEFAULT, size, StoreLimits()) as cache:
            return replay(self._trace, cache)


def _notes(options: BenchOptions) -> list[str]:
    notes = [
        "A hit is a block of the longest stored prefix of a request. Sizes are percent of the different blocks of the "
        "trace, in brackets as blocks.",
        "A request leases its prefix, writes what is missing, commits that last block first, and releases. Uses of a "
        "block within a second of the trace count once. Heads first: the other way round, for comparison.",
        "Clairvoyant: what is needed latest goes first, or is not kept at all (Belady 1966); infinite: nothing goes.",
    ]
    if not options.traces:
        notes.append(
            f"The trace is generated (blocks stand for {BLOCK_TOKENS} tokens): it compares policies under one load and "
            "says nothing about a real service. --trace replays one of yours."
        )
    if options.through_store:
        limits = StoreLimits()
        notes.append(
            "Real store: with its journal, its leases and its times. A block rests after a release, "
            f"{limits.grace_s:g} s in which it cannot go; once more than {limits.high_watermark:.0%} of the room is "
            f"taken, objects go ahead of need, down to {limits.low_watermark:.0%}."
        )
    return notes
