"""Results of simulations as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from tierline.cli.printing import Output, percentage
from tierline.simulate.levels import HELD as HELD_BY_LEVELS
from tierline.simulate.levels import Level, beyond
from tierline.simulate.mocker import Beside, Side
from tierline.simulate.vendor import ASSUMPTIONS, HELD, NEAR_POINTS, SOURCE, Held, Study
from tierline.simulate.vendor_report import sentences, swing_lines, table_lines

_TIMES = (("TTFT", "ttft"), ("between tokens (ITL)", "itl"), ("a token (TPOT)", "tpot"), ("end to end", "e2el"))


def show_result(printed: Output, result: Mapping[str, Any]) -> None:
    """Print what came of a run, and how far it is to be believed."""
    cluster = result["cluster"]
    printed.line(
        f"Simulated: {_replicas(result)} of {result['model_id']} on {result['coefficients']['hardware']}, "
        f"{cluster['strategy']}; {result['label']}, {result['completed']:,} requests in {result['duration']:,.0f} s"
    )
    ranks = ("mean", "median", "p90", "p95", "p99")
    printed.table(
        ["ms", *(f">{rank}" for rank in ranks)],
        [(name, *(_milliseconds(result.get(f"{rank}_{key}_ms")) for rank in ranks)) for name, key in _TIMES],
    )
    printed.facts(
        [
            ("requests/s", f"{result['request_throughput']:.3g}"),
            ("output tokens/s", f"{result['output_throughput']:,.0f}"),
            ("all tokens/s", f"{result['total_token_throughput']:,.0f}"),
            ("prompt tokens cached", percentage(result["hit_rate"], 1)),
            ("  by the engine", percentage(result["hit_rate_engine"], 1)),
            ("  L1, L2", f"{percentage(result['hit_rate_l1'], 1)}, {percentage(result['hit_rate_l2'], 1)}"),
        ]
    )
    show_provenance(printed, result["coefficients"])


def show_provenance(printed: Output, known: Mapping[str, str]) -> None:
    """Print where a result's coefficients are from, and how far they are to be believed."""
    printed.facts(
        [
            ("coefficients", f"{known['file']}: {known['model']} on {known['hardware']}, {known['engine']}"),
            ("source", f"{known['date']}: {known['source']}"),
            ("fit", known["fit"]),
            ("validated", known["validation"]),
        ]
    )


def _replicas(result: Mapping[str, Any]) -> str:
    if result["cluster"]["autoscaling"] is None:
        return f"{result['cluster']['replicas']} replicas"
    return f"{result['mean_replicas']:.1f} replicas on average, {result['most_replicas']} at most,"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def show_beside(printed: Output, found: Sequence[Beside]) -> None:
    """Print what both simulators say, and how far ours is from the other one."""
    rows = []
    for each in found:
        ratios = [
            f"{100 * (ours / theirs - 1):+.0f} %" if theirs else "-"
            for ours, theirs in zip(each.ours[:3], each.mocker[:3], strict=True)
        ]
        ratios.append(f"{100 * (each.ours.hit_rate - each.mocker.hit_rate):+.1f} points")
        rows += [
            (f"mocker, {each.router}", *_side_cells(each.mocker)),
            (f"ours, {each.strategy}", *_side_cells(each.ours)),
            ("ours against the mocker", *ratios),
        ]
    printed.table(["", ">TTFT P50 ms", ">P90 ms", ">output tokens/s", ">cached"], rows)


def _side_cells(side: Side) -> list[str]:
    return [
        _milliseconds(side.ttft_p50_ms),
        _milliseconds(side.ttft_p90_ms),
        f"{side.output_tokens_per_s:,.0f}",
        percentage(side.hit_rate, 1),
    ]


def show_study(printed: Output, study: Study) -> None:
    """Print the vendor's table beside the simulated one, and what each assumption does."""
    size = f"{study.context // 1024}K tokens"
    printed.line(f"{size}: what the features change")
    printed.table(
        [
            "",
            ">vendor",
            ">central",
            ">samples: least … median … most",
            ">reach it",
            f">within {NEAR_POINTS:.0f} points",
        ],
        table_lines(study),
    )
    for sentence in sentences(study):
        printed.line(sentence)
    printed.line("")
    printed.line(f"{size}: one assumption at a time, the others central")
    printed.table(["assumption", "values", ">TTFT P90 %", ">TTFT P50 %", ">throughput %"], swing_lines(study))
    printed.line("")


def show_assumptions(printed: Output) -> None:
    """Print what the vendor does not say, and where the values come from."""
    printed.line("What is assumed, for the vendor does not say it")
    printed.table(["assumption", "why these values"], [(each.name, each.why) for each in ASSUMPTIONS])
    printed.line("")
    printed.line("What is held fixed, and is assumed as well")
    _show_held(printed, HELD)
    printed.line(f"The vendor's figures: {SOURCE}")
    printed.line("")


def _show_held(printed: Output, held: Sequence[Held]) -> None:
    printed.table(["", "value", "why"], held)


def show_levels(printed: Output, levels: Sequence[Level]) -> None:
    """Print ours beside production-stack's under each load."""
    printed.line("Beside production-stack's prefixaware as published: questions about popular documents, open loop")
    printed.table(
        ["load", "", ">requests/s", ">TTFT P50 ms", ">P90", ">P99", ">cached", ">output tokens/s"],
        [
            (
                f"{each.share:.0%}",
                each.contender,
                f"{each.rate:.1f}",
                *(_milliseconds(each.figures[f"p{rank}_ttft_ms"]) for rank in (50, 90, 99)),
                percentage(each.figures["hit_rate"], 1),
                f"{each.figures['output_throughput']:,.0f}",
            )
            for each in levels
        ],
    )
    printed.line(beyond(levels))
    printed.line("")
    printed.line("What is held fixed at every load")
    _show_held(printed, HELD_BY_LEVELS)
