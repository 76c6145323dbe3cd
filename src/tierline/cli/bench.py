"""``tierline bench NAME``: measure, print, write."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help="document, store, cluster, router, routing or eviction.")],
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write machine-readable rows.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the printed tables.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw a chart as PNG.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few samples: shows that it works, not how fast.")] = False,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="document: the router of a running stack.", show_default="found or started"),
    ] = None,
    engine: Annotated[
        Literal["vllm", "simulated"], typer.Option(help="document: what to start when no stack runs.")
    ] = "vllm",
    samples: Annotated[int, typer.Option(min=1, help="document: how many documents, as time allows.")] = 20,
    trace: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="eviction, routing: a trace in Mooncake's format; may be repeated.",
            show_default="generated",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="eviction, routing: seed of the generated traces.")] = 1,
    endpoints: Annotated[int, typer.Option(min=1, max=256, help="routing: how many engines.")] = 8,
    through_store: Annotated[
        bool, typer.Option("--through-store", help="eviction: replay through the real store too; minutes.")
    ] = False,
    black_boxes: Annotated[
        bool,
        typer.Option("--black-boxes", help="routing: ours and PyPI's routers over HTTP too, in real time; minutes."),
    ] = False,
) -> None:
    """Run a benchmark and print its table beside the limits it is compared with.

    \b
    Benchmarks:
      document   time to first token of a long document: cold, warm here, warm elsewhere, after a restart
      store      the node store beside memcpy, loopback TCP and Redis
      cluster    two node stores as one pool beside Redis and Mooncake
      router     the router's CPU time a request beside the Rust routers of PyPI
      routing    hits, time to first token and balance of the routing strategies on request traces
      eviction   hit rates of the eviction policies on request traces, beside a clairvoyant's

    \b
    Examples:
      tierline bench document --json result.json --plot result.png
      tierline bench store --json store.json --quick
      tierline bench router --markdown router.md
      tierline bench eviction --trace conversation_trace.jsonl --plot eviction.png
      tierline bench routing --trace conversation_trace.jsonl --endpoints 16
      tierline bench routing --black-boxes
    """
    from rich.console import Console

    from tierline.bench.registry import BenchOptions, run_bench

    run_bench(
        name,
        BenchOptions(
            quick=quick,
            url=url,
            engine=engine,
            samples=samples,
            traces=tuple(trace or ()),
            seed=seed,
            endpoints=endpoints,
            through_store=through_store,
            black_boxes=black_boxes,
        ),
        console=Console(),
        json=json,
        markdown=markdown,
        plot=plot,
    )
