"""``tierline bench document`` and the others that measure our programs here: measure, print, write."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from tierline.bench.registry import BenchOptions

Json = Annotated[Path | None, typer.Option(metavar="FILE", help="Write machine-readable rows.")]
Markdown = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the printed tables.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw a chart as PNG or SVG.")]
Quick = Annotated[bool, typer.Option("--quick", help="Few samples: shows that it works, not how fast.")]
Trace = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="A trace in Mooncake's format; may be repeated.", show_default="generated"),
]
Seed = Annotated[int, typer.Option(help="Seed of the generated traces.")]


def document(
    json: Json = None,
    markdown: Markdown = None,
    plot: Plot = None,
    quick: Quick = False,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="The router of a running stack.", show_default="found or started")
    ] = None,
    engine: Annotated[Literal["vllm", "simulated"], typer.Option(help="What to start when no stack runs.")] = "vllm",
    samples: Annotated[int, typer.Option(min=1, help="How many documents, as time allows.")] = 20,
) -> None:
    """Ask about a document of 2,048 tokens in every place where its KV can be.

    \b
    Examples:
      tierline bench document --json result.json --plot result.png
      tierline bench document --engine simulated --quick
    """
    from tierline.bench.registry import BenchOptions

    _run("document", BenchOptions(quick=quick, url=url, engine=engine, samples=samples), json, markdown, plot)


def store(json: Json = None, markdown: Markdown = None, plot: Plot = None, quick: Quick = False) -> None:
    """Measure the node store: reads, writes, leases, growth.

    \b
    Examples:
      tierline bench store --json store.json --quick
    """
    from tierline.bench.registry import BenchOptions

    _run("store", BenchOptions(quick=quick), json, markdown, plot)


def cluster(json: Json = None, markdown: Markdown = None, plot: Plot = None, quick: Quick = False) -> None:
    """Measure reads from another node's memory.

    \b
    Examples:
      tierline bench cluster --markdown cluster.md
    """
    from tierline.bench.registry import BenchOptions

    _run("cluster", BenchOptions(quick=quick), json, markdown, plot)


def router(json: Json = None, markdown: Markdown = None, plot: Plot = None, quick: Quick = False) -> None:
    """Measure what the router costs a request.

    \b
    Examples:
      tierline bench router --markdown router.md
    """
    from tierline.bench.registry import BenchOptions

    _run("router", BenchOptions(quick=quick), json, markdown, plot)


def routing(
    json: Json = None,
    markdown: Markdown = None,
    plot: Plot = None,
    quick: Quick = False,
    trace: Trace = None,
    seed: Seed = 1,
    endpoints: Annotated[int, typer.Option(min=1, max=256, help="How many engines.")] = 8,
    black_boxes: Annotated[
        bool, typer.Option("--black-boxes", help="Ours and PyPI's routers over HTTP too, in real time; minutes.")
    ] = False,
) -> None:
    """Replay traces through the routing strategies, over modelled engines.

    \b
    Examples:
      tierline bench routing --trace conversation_trace.jsonl --endpoints 16
      tierline bench routing --black-boxes
    """
    from tierline.bench.registry import BenchOptions

    options = BenchOptions(
        quick=quick, traces=tuple(trace or ()), seed=seed, endpoints=endpoints, black_boxes=black_boxes
    )
    _run("routing", options, json, markdown, plot)


def eviction(
    json: Json = None,
    markdown: Markdown = None,
    plot: Plot = None,
    quick: Quick = False,
    trace: Trace = None,
    seed: Seed = 1,
    through_store: Annotated[
        bool, typer.Option("--through-store", help="Replay through the real store too; minutes.")
    ] = False,
) -> None:
    """Replay traces through the eviction policies.

    \b
    Examples:
      tierline bench eviction --trace conversation_trace.jsonl --plot eviction.png
    """
    from tierline.bench.registry import BenchOptions

    options = BenchOptions(quick=quick, traces=tuple(trace or ()), seed=seed, through_store=through_store)
    _run("eviction", options, json, markdown, plot)


def _run(name: str, options: "BenchOptions", json: Path | None, markdown: Path | None, plot: Path | None) -> None:
    from rich.console import Console

    from tierline.bench.registry import run_bench

    run_bench(name, options, console=Console(), json=json, markdown=markdown, plot=plot)
