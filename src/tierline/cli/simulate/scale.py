"""``tierline simulate scale``: what simulating takes as clusters grow."""

from typing import Annotated, Literal

import typer


def scale(
    replicas: Annotated[int, typer.Option(min=8, max=512, help="How many at most.")] = 64,
    requests: Annotated[int, typer.Option(min=80, help="How many at most.")] = 100_000,
    strategy: Annotated[str, typer.Option(metavar="NAME", help="Of the router.")] = "prefixaware",
    seed: Annotated[int, typer.Option(help="Of the chats.")] = 1,
    output: Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="What is printed.")] = "table",
) -> None:
    """Say how long simulations take here, and how much memory, as replicas and requests grow.

    Chats on 8B replicas, at the same load for each replica, up to the size that is asked for and at an eighth of its
    replicas, of its requests and of both. Each is a process of its own.

    \b
    Examples:
      tierline simulate scale
      tierline simulate scale --replicas 512 --requests 1000000
    """
    from tierline.cli.printing import Output, byte_size, percentage
    from tierline.errors import ConfigurationError
    from tierline.router.strategies import STRATEGIES
    from tierline.simulate.scale import grow, sizes

    if strategy not in STRATEGIES:
        raise ConfigurationError("--strategy", strategy, ", ".join(STRATEGIES))
    printed = Output(is_json=output == "json")
    with printed.progress("simulating") as bar:
        task = bar.add_task("simulating", total=len(sizes(replicas, requests)))
        points = grow(replicas, requests, strategy, seed, lambda what: bar.update(task, description=what, advance=1))
    if printed.is_json:
        printed.document([point._asdict() for point in points])
        return
    printed.table(
        [">replicas", ">requests", ">seconds", ">CPU s", ">µs a request", ">peak memory", ">simulated s", ">cached"],
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
            )
            for point in points
        ],
    )
