"""``tierline simulate vendor``: the vendor's cluster, its table beside the simulated one."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tierline.cli.numbers import number


def vendor(
    samples: Annotated[int, typer.Option(min=1, help="Choices of assumptions that are tried, for each context.")] = 40,
    seconds: Annotated[
        float, typer.Option(min=60, callback=number(), help="Of simulated time that each run measures.")
    ] = 300.0,
    requests: Annotated[int, typer.Option(min=50, help="Of the load levels.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 1,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything that was tried.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the sensitivity as PNG or SVG.")] = None,
    output: Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="What is printed.")] = "table",
) -> None:
    """Simulate the cluster of HyperPod's announcement, and print its table beside ours.

    Llama-3.1-70B on 7 replicas of 8 H100, 8K and 64K tokens. No coefficient is fitted to the table: what the vendor
    does not say is drawn from plausible values, and what is printed is how often these reach each figure. Then ours
    beside production-stack's prefixaware as published, from idle to beyond saturation.

    \b
    Examples:
      tierline simulate vendor
      tierline simulate vendor --samples 200 --json vendor.json --plot vendor.png
    """
    import datetime as dt
    import sys

    import msgspec

    from tierline.bench.report import require_plotting, require_writable
    from tierline.cli.printing import Output
    from tierline.cli.simulate.showing import show_assumptions, show_levels, show_provenance, show_study
    from tierline.simulate.coefficients import provenance, read
    from tierline.simulate.levels import LEVELS, climb, contenders
    from tierline.simulate.vendor import ASSUMPTIONS, COEFFICIENTS, TABLE, study
    from tierline.simulate.vendor_report import document, draw

    if plot is not None:
        require_plotting(plot)
    require_writable({"--json": json, "--plot": plot})
    printed = Output(is_json=output == "json")
    started = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    with printed.progress("simulating") as bar:
        runs = len(TABLE) * (1 + len(ASSUMPTIONS) + samples) + 1 + len(LEVELS) * len(contenders())
        task = bar.add_task("simulating", total=runs)

        def say(what: str) -> None:
            bar.update(task, description=what, advance=1)

        studies = [study(context, samples, seed, seconds, say) for context in TABLE]
        levels = climb(requests, seed, say)
    command = " ".join(["tierline", *sys.argv[1:]])
    result = document(studies, levels, started=started, command=command)
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    if plot is not None:
        draw(studies, plot)
    if printed.is_json:
        printed.document(result)
        return
    for each in studies:
        show_study(printed, each)
    show_assumptions(printed)
    show_levels(printed, levels)
    printed.line("")
    show_provenance(printed, provenance(COEFFICIENTS, read(COEFFICIENTS)))
