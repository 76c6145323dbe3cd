"""A comparison from its first cell to its last: one load on every cell, each result in a file once it is there.

The same requests go to every cell, word for word, under a ``cache_salt`` that no cell had before: answers can be
compared, and what is called cold is in no cache. A cell that cannot be had is named with its reason, and the others are
measured.
"""

import asyncio
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from tierline.bench.features.cells import Cell
from tierline.bench.features.estimate import Estimate, minutes
from tierline.bench.features.stacks import OwnStacks, RunningServer, Served, Setup, Stacks, cells_of_a_running_server
from tierline.bench.registry import Say
from tierline.bench.serving import results
from tierline.bench.serving.bottleneck import LateRule
from tierline.bench.serving.client import Target
from tierline.bench.serving.results import Billing, Result, Settings
from tierline.bench.serving.running import Run, Watcher, make_plan, run, served_model
from tierline.bench.serving.text import Lengths
from tierline.bench.serving.workloads import default_turns
from tierline.errors import TierlineError, UsageError

SESSION_HEADER = "x-session-id"
TEXT_SALT = "compare-features"
"""Of all cells' text, today and tomorrow: two comparisons ask the same."""

_ROOM_TOKENS, _ROOM_SHARE = 128, 16
"""What a request may have beyond its planned length: the chat template, and words that are more tokens than others, a
sixteenth of the prompt at most."""

LATE = LateRule(share=0.25, least_ms=10.0, most_ms=50.0)
"""The first requests of a cell go at once, beside engines that take every processor, and may be some 10 ms late: little
beside times of seconds, much beside 20 ms."""

Watching = Callable[[], AbstractContextManager[Watcher]]
"""Opens what shows how one cell goes."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared.

    Parameters
    ----------
    cells
        Which cells.
    workload, input_len, output_len, requests, prefixes, turns, concurrency, seed
        The load, as of ``tierline bench run``; it is the same on every cell.
    folder
        Takes a result for each cell, and logs.
    engine, dtype, engine_cache_tokens
        What the stacks are made of; see :class:`~tierline.bench.features.stacks.Setup`.
    base_url
        A server that runs already; empty: stacks are started here.
    billing
        What serves.
    resumes
        Keep the results that are there already.
    late
        How late the client may be.
    """

    cells: Sequence[Cell]
    workload: str
    input_len: int
    output_len: int
    requests: int
    prefixes: int
    turns: int | None
    concurrency: int
    seed: int
    folder: Path
    engine: Literal["vllm", "simulated"] = "vllm"
    dtype: str = "float32"
    engine_cache_tokens: int | None = None
    base_url: str = ""
    billing: Billing | None = None
    resumes: bool = False
    late: LateRule = LATE

    @property
    def setup(self) -> Setup:
        """What its own stacks have in common; an engine's cache has room for all requests in flight, and no more."""
        context = self.input_len + self.input_len // _ROOM_SHARE + self.output_len + _ROOM_TOKENS
        return Setup(self.engine, self.dtype, self.engine_cache_tokens or self.concurrency * context, context)


@dataclass
class Measured:
    """What was found.

    Parameters
    ----------
    comparison
        What was asked for.
    results
        By the cell, in the order of the cells.
    missing
        Why others could not be measured.
    """

    comparison: Comparison
    results: dict[Cell, Result] = field(default_factory=dict)
    missing: dict[Cell, str] = field(default_factory=dict)


def compare_features(comparison: Comparison, say: Say, watching: Watching) -> Measured:
    """Measure all cells and return what was found.

    Raises
    ------
    UsageError
        When the load cannot be planned, or no cell could be measured.
    """
    cells, found = list(comparison.cells), Measured(comparison)
    if comparison.base_url:
        cells, without = cells_of_a_running_server(cells)
        found.missing |= dict.fromkeys(without, "cannot be switched on a server that runs already")
    planned = make_plan(Run(_settings(comparison, "", ""), _target("", "", Served(""))))
    tokens = sum(each.input_tokens for each in planned)
    comparison.folder.mkdir(parents=True, exist_ok=True)
    kept = {cell: result for cell in cells if (result := _kept(comparison, cell)) is not None}
    left = [cell for cell in cells if cell not in kept]
    if kept:
        say(f"measured before: {', '.join(cell.name for cell in kept)}")
    estimate = Estimate(comparison.engine, tokens, has_own_stacks=not comparison.base_url)
    if left:
        say(f"{len(left)} cells to measure, about {minutes(estimate.before(left))}")
    measured: list[Cell] = []
    with _stacks(comparison, say) as stacks:
        for number, cell in enumerate(left, start=1):
            say(f"cell {number} of {len(left)}, {cell.name}: {cell.title}")
            lengths = next((result.lengths for result in kept.values()), None)
            try:
                with stacks.serve(cell) as served:
                    result = asyncio.run(_measure(comparison, cell, served, lengths, watching))
            except TierlineError as error:  # what was measured before must not be lost
                found.missing[cell] = str(error)
                say(f"not measured: {error}")
                continue
            _file(comparison, cell).write_bytes(results.encode(result))
            kept[cell] = result
            measured.append(cell)
            rest = f"; about {minutes(estimate.left(measured, left[number:]))} left" if left[number:] else ""
            say(f"{_in_a_line(result)}{rest}")
    if not kept:
        reasons = "; ".join(f"{cell.name}: {reason}" for cell, reason in found.missing.items())
        raise UsageError(f"compare-features: no cell could be measured: {reasons}")
    found.results = {cell: kept[cell] for cell in cells if cell in kept}
    return found


def _stacks(comparison: Comparison, say: Say) -> Stacks:
    if comparison.base_url:
        return RunningServer(comparison.base_url, comparison.folder, say)
    return OwnStacks(comparison.setup, comparison.folder, say)


async def _measure(
    comparison: Comparison, cell: Cell, served: Served, lengths: Lengths | None, watching: Watching
) -> Result:
    model = await served_model(served.url, {})
    with watching() as watcher:
        return await run(
            Run(
                settings=_settings(comparison, cell.name, model),
                target=_target(cell.name, model, served),
                salt=TEXT_SALT,
                metrics_urls=served.engines,
                billing=comparison.billing,
                late=comparison.late,
                lengths=lengths,
            ),
            watcher,
        )


def _target(cell: str, model: str, served: Served) -> Target:
    return Target(
        base_url=served.url,
        model=model,
        session_header=SESSION_HEADER,
        cache_salt=f"{cell} {uuid.uuid4().hex}",
        shares_nothing=served.shares_nothing,
        keeps_answers=True,
    )


def _settings(comparison: Comparison, cell: str, model: str) -> Settings:
    """Return what a cell's result says was asked for; it says nothing that changes from one start to the next."""
    asked = {"cell": cell, "engine": comparison.engine}
    if not comparison.base_url:
        setup = comparison.setup
        asked |= {"engine_cache_tokens": str(setup.engine_cache_tokens)}
        asked |= {"dtype": setup.dtype} if comparison.engine == "vllm" else {}
    return Settings(
        base_url=comparison.base_url or "a stack of its own",
        endpoint="/v1/chat/completions",
        model=model,
        workload=comparison.workload,
        input_len=comparison.input_len,
        output_len=comparison.output_len,
        turns=comparison.turns or default_turns(comparison.workload),
        prefixes=comparison.prefixes,
        requests=comparison.requests,
        max_concurrency=comparison.concurrency,
        seed=comparison.seed,
        metadata=asked,
    )


def _file(comparison: Comparison, cell: Cell) -> Path:
    return comparison.folder / f"{cell.name}.json"


def _kept(comparison: Comparison, cell: Cell) -> Result | None:
    """Return what a cell's file has from before, if that is wanted and of the same load; else there is no file."""
    file = _file(comparison, cell)
    if comparison.resumes and file.exists():
        result = results.decode(file)
        same_model = _settings(comparison, cell.name, result.settings.model)
        if result.settings == same_model and not result.doubts:
            return msgspec.structs.replace(result, billing=comparison.billing)
    file.unlink(missing_ok=True)
    return None


def _in_a_line(result: Result) -> str:
    summary = result.summary()
    ttft = summary.metrics.get("ttft")
    if ttft is None:
        return f"no answer of {summary.failed} requests"
    p50, p90 = ttft.percentiles[50.0], ttft.percentiles[90.0]
    cached = "" if summary.cached_share is None else f", {summary.cached_share:.0%} of the prompts cached"
    failed = f", {summary.failed} failed" if summary.failed else ""
    return f"TTFT P50 {p50:.2f} s, P90 {p90:.2f} s, {summary.output_tokens_per_s:.1f} output tokens/s{cached}{failed}"
