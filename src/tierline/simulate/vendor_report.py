"""The vendor's table beside the simulated one: as a document, as lines for people, and drawn."""

from collections.abc import Sequence
from pathlib import Path

from tierline import __version__
from tierline.bench.report import require_plotting
from tierline.bench.rows import JsonValue
from tierline.simulate import coefficients
from tierline.simulate.levels import HELD as HELD_BY_LEVELS
from tierline.simulate.levels import Level
from tierline.simulate.vendor import (
    ASSUMPTIONS,
    CLAIM_COST,
    CLAIM_TTFT,
    COEFFICIENTS,
    HELD,
    MEASURES,
    SOURCE,
    TABLE,
    Changes,
    Study,
    spread,
)

SCHEMA = "tierline-simulate-vendor/1"


def document(studies: Sequence[Study], levels: Sequence[Level], *, started: str, command: str) -> dict[str, JsonValue]:
    """Return the document that ``--json`` writes."""
    known = coefficients.read(COEFFICIENTS)
    return {
        "schema": SCHEMA,
        "version": __version__,
        "date": started,
        "command": command,
        "vendor": SOURCE,
        "coefficients": coefficients.provenance(COEFFICIENTS, known),
        "assumptions": [
            {
                "name": each.name,
                "unit": each.unit,
                "values": {str(context): list(values) for context, values in each.values.items()},
                "central": {str(context): value for context, value in each.central.items()},
                "why": each.why,
            }
            for each in ASSUMPTIONS
        ],
        "held_fixed": [dict(each._asdict()) for each in HELD],
        "held_fixed_by_levels": [dict(each._asdict()) for each in HELD_BY_LEVELS],
        "contexts": [_context(study) for study in studies],
        "levels": [
            {"share": each.share, "request_rate": each.rate, "contender": each.contender, **each.figures}
            for each in levels
        ],
    }


def _context(study: Study) -> dict[str, JsonValue]:
    return {
        "tokens": study.context,
        "measures": [
            {
                "name": name,
                "vendor_percent": TABLE[study.context][measure],
                "central_percent": study.central[measure],
                "share_that_reaches": study.reached(measure),
                "share_that_is_near": study.near(measure),
            }
            for measure, name in enumerate(MEASURES)
        ],
        "share_near_in_all": study.near_in_all,
        "share_that_reaches_claim": study.claimed,
        "baseline_caching": study.on_baseline_caching,
        "samples": [{"choice": dict(each.choice), **_changes(each.changes)} for each in study.samples],
        "sensitivity": [
            {
                "assumption": swing.assumption.name,
                "tried": [{"value": value, **_changes(changes)} for value, changes in swing.tried],
            }
            for swing in study.swings
        ],
    }


def _changes(changes: Changes) -> dict[str, JsonValue]:
    return {f"{name}_percent": value for name, value in changes._asdict().items()}


def table_lines(study: Study) -> list[tuple[str, ...]]:
    """Return a line for each measure: the vendor's, ours with central assumptions, of samples, and shares."""
    lines: list[tuple[str, ...]] = []
    for measure, name in enumerate(MEASURES):
        least, middle, most = spread(study.samples, measure)
        lines.append(
            (
                name,
                f"{TABLE[study.context][measure]:+.0f} %",
                f"{study.central[measure]:+.0f} %",
                f"{least:+.0f} … {middle:+.0f} … {most:+.0f} %",
                f"{100 * study.reached(measure):.0f} %",
                f"{100 * study.near(measure):.0f} %",
            )
        )
    return lines


def swing_lines(study: Study) -> list[tuple[str, ...]]:
    """Return a line for each assumption: its values, and the least and the most of each measure over them."""
    return [
        (
            swing.assumption.name,
            ", ".join(str(value) for value, _ in swing.tried) + (f" {swing.assumption.unit}".rstrip()),
            *(
                f"{min(changes[measure] for _, changes in swing.tried):+.0f} … "
                f"{max(changes[measure] for _, changes in swing.tried):+.0f}"
                for measure in range(3)
            ),
        )
        for swing in study.swings
    ]


def sentences(study: Study) -> list[str]:
    """Return what is to be said beside the table."""
    size = f"{study.context // 1024}K"
    return [
        f"{size}: {100 * study.near_in_all:.0f} % of {len(study.samples)} choices of assumptions are near all four",
        f"{size}: {study.on_baseline_caching}",
        f"{size}: TTFT {CLAIM_TTFT:.0f} % (P50) and cost {CLAIM_COST:.0f} % at once, the vendor's other claim: "
        f"{100 * study.claimed:.0f} % of the choices",
    ]


def draw(studies: Sequence[Study], path: Path) -> None:
    """Draw how far each assumption moves each measure, as a PNG or SVG.

    Raises
    ------
    UsageError
        When matplotlib is not installed.
    """
    require_plotting()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.2 * len(studies)), layout="constrained")
    for row, study in zip(figure.subplots(len(studies), 3, squeeze=False), studies, strict=True):
        for measure, axes in enumerate(row):
            axes.axvline(TABLE[study.context][measure], color="#c0392b", linewidth=2, label="vendor")
            axes.axvline(study.central[measure], color="#1d1d1d", linestyle="--", linewidth=1, label="central")
            for line, swing in enumerate(reversed(study.swings)):
                found = [changes[measure] for _, changes in swing.tried]
                axes.barh(line, max(found) - min(found), left=min(found), color="#3b6ea5", height=0.55)
                axes.plot(found, [line] * len(found), "|", color="#1d1d1d", markersize=9)
            axes.set_yticks(range(len(study.swings)), [swing.assumption.name for swing in reversed(study.swings)])
            axes.set_title(f"{study.context // 1024}K: {MEASURES[measure]}, change in %", loc="left", fontsize="medium")
            axes.grid(axis="x", alpha=0.3)
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
