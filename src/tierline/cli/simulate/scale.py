"""``tierline simulate scale``: what simulating takes as clusters grow."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from tierline.cli.printing import Output
    from tierline.simulate.scale import Point


def scale(
    up_to_replicas: Annotated[int, typer.Option(min=8, max=512, help="How many at most.")] = 64,
    up_to_requests: Annotated[int, typer.Option(min=80, max=10_000_000, help="How many at most.")] = 100_000,
    strategy: Annotated[str, typer.Option(metavar="NAME", help="Of the router.")] = "prefixaware",
    seed: Annotated[int, typer.Option(help="Of the chats.")] = 1,
    output: Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="What is printed.")] = "table",
) -> None:
    """Say how long simulations take here, and how much memory, as replicas and requests grow.

    Chats on 8B replicas, at the same load for each replica, in steps of eight times the replicas and ten times the
    requests, from 8 and 10,000 on. Each size is a process of its own. The limit is for 64 replicas and 100,000
    requests: 10 minutes and 4 GiB; the exit status is 1 if it is not kept.

    \b
    Examples:
      tierline simulate scale
      tierline simulate scale --up-to-replicas 512 --up-to-requests 1000000
    """
    from tierline.cli.printing import Output
    from tierline.cli.simulate.showing import show_provenance
    from tierline.errors import ConfigurationError
    from tierline.router.strategies import STRATEGIES
    from tierline.simulate.coefficients import provenance, read
    from tierline.simulate.scale import COEFFICIENTS, LIMIT, grow, keeps_limit, sizes

    if strategy not in STRATEGIES:
        raise ConfigurationError("--strategy", strategy, ", ".join(STRATEGIES))
    printed = Output(is_json=output == "json")
    with printed.progress("simulating") as bar:
        task = bar.add_task("simulating", total=len(sizes(up_to_replicas, up_to_requests)))
        points = grow(
            up_to_replicas, up_to_requests, strategy, seed, lambda what: bar.update(task, description=what, advance=1)
        )
    known = provenance(COEFFICIENTS, read(COEFFICIENTS))
    kept = [keeps_limit(point) for point in points]
    if printed.is_json:
        printed.document(
            {"coefficients": known, "limit": LIMIT._asdict(), "points": [point._asdict() for point in points]}
        )
    else:
        _show(printed, points)
        show_provenance(printed, known)
    if False in kept:
        raise typer.Exit(1)


def _show(printed: "Output", points: Sequence["Point"]) -> None:
    from tierline.cli.printing import byte_size, percentage
    from tierline.simulate.scale import LIMIT, keeps_limit

    limit = f"{LIMIT.seconds / 60:.0f} min, {byte_size(LIMIT.peak_bytes)}: "
    words = {None: "", True: f"{limit}kept", False: f"{limit}not kept"}
    printed.table(
        [
            ">replicas",
            ">requests",
            ">seconds",
            ">CPU s",
            ">µs a request",
            ">peak memory",
            ">simulated s",
            ">cached",
            "limit",
        ],
        [
            (
                f"{point.replicas}",
                f"{point.requests:,}",
                f"{point.seconds:.1f}",
                f"{point.cpu_seconds:.1f}",
                f"{1e6 * point.cpu_seconds / point.requests:,.0f}",
                byte_size(point.peak_bytes),
                f"{point.simulated_s:,.0f}",
                percentage(point.hit_rate, 1),
                words[keeps_limit(point)],
            )
            for point in points
        ],
    )
