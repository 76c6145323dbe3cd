"""``tierline bench compare-features``: the same load on a stack with each feature on and off."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tierline.cli.numbers import number

if TYPE_CHECKING:
    from tierline.bench.features.comparing import Comparison, Measured
    from tierline.bench.report import Report

REPORT = "features-report"
"""What the report's files are called, before their endings."""


def compare_features(
    base_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A server that runs already: then only what can be switched there is compared.",
            show_default="stacks of its own",
        ),
    ] = None,
    engine: Annotated[Literal["vllm", "simulated"], typer.Option(help="What is started.")] = "vllm",
    cells: Annotated[
        str, typer.Option(metavar="NAME,NAME…", help="Which cells.", show_default="all of those below")
    ] = "",
    dataset_name: Annotated[
        Literal["documents", "code", "chats", "templates", "agents", "independent", "prefixes"],
        typer.Option(help="The workload; see `tierline bench run`."),
    ] = "templates",
    num_prompts: Annotated[int, typer.Option(min=2, help="How many requests, in each cell.")] = 40,
    input_len: Annotated[int, typer.Option(min=64, help="Context length in tokens.")] = 1024,
    output_len: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 16,
    num_prefixes: Annotated[int, typer.Option(min=1, help="How many templates, or kinds of agents.")] = 5,
    num_turns: Annotated[
        int | None,
        typer.Option(min=1, help="Questions, turns or steps.", show_default="4; chats: 20; agents: 10"),
    ] = None,
    # Not an even number: round robin over two replicas would fall into step, and each prefix stay where it was.
    max_concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 3,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    dtype: Annotated[
        Literal["float32", "auto"],
        typer.Option(help="Of vLLM; in float32 all cells' answers must be the same, but for ties."),
    ] = "float32",
    engine_cache_tokens: Annotated[
        int | None,
        typer.Option(min=256, help="Tokens in each engine's own cache.", show_default="all requests in flight"),
    ] = None,
    prices: Annotated[Path | None, typer.Option(metavar="FILE", help="Price list, by instance type.")] = None,
    instance_type: Annotated[str | None, typer.Option(help="What serves, as the price list calls it.")] = None,
    instances: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    late_limit: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=number(),
            metavar="MS",
            help="How late 1 of 100 requests may be sent.",
            show_default="a quarter of TTFT P50, but 10 to 50",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few short requests: shows that it works.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep cells that are done; needs the same flags and --result-dir.")
    ] = False,
    result_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Takes the report, a result for each cell, and logs.")
    ] = Path("bench-results/features"),
) -> None:
    """Compare the features: the same requests with none, with each alone, and with both.

    Shown are the time to first token (P90, P50), throughput and cost, what each feature changes of them, where the
    prompts' tokens were found, and whether all cells gave the same answers. A wrong token, a failed request or a client
    that was too slow is named in every output, and the exit status is 1.

    \b
    Cells:
      off               neither feature, engines without prefix caching: the baseline
      prefix-caching    neither feature, engines with prefix caching
      session, prefixaware, kvaware
                        routing alone, on engines with prefix caching
      l1                a node store for each engine, behind round robin
      l1-redis          and a Redis below them
      l1-tieredstorage  and the node stores as one pool
      both              prefixaware before l1-tieredstorage

    \b
    Files in --result-dir: features-report.json, .md, .png, .html; cells/NAME.json for `tierline bench run --compare`.

    \b
    Examples:
      tierline bench compare-features --prices benchmarks/prices-example.yaml --instance-type r7a.large
      tierline bench compare-features --input-len 2048 --cells off,prefix-caching,both --resume
      tierline bench compare-features --engine simulated --quick
      tierline bench compare-features --base-url http://127.0.0.1:8000
    """
    from tierline.bench.features.cells import chosen
    from tierline.bench.features.comparing import LATE, Comparison
    from tierline.bench.report import require_plotting, require_writable
    from tierline.bench.serving.bottleneck import LateRule
    from tierline.cli.bench.running import billing_of

    require_plotting()
    require_writable({"--result-dir": result_dir / f"{REPORT}.json"})
    comparison = Comparison(
        cells=chosen(cells),
        workload=dataset_name,
        input_len=min(input_len, 512) if quick else input_len,
        output_len=min(output_len, 4) if quick else output_len,
        requests=min(num_prompts, 12) if quick else num_prompts,
        prefixes=min(num_prefixes, 4) if quick else num_prefixes,
        turns=num_turns,
        concurrency=max_concurrency,
        seed=seed,
        folder=result_dir / "cells",
        engine=engine,
        dtype=dtype,
        engine_cache_tokens=engine_cache_tokens,
        base_url=base_url or "",
        billing=billing_of(prices, instance_type, instances),
        resumes=resume,
        late=LATE if late_limit is None else LateRule.fixed(late_limit),
    )
    _compare(comparison, result_dir, is_quick=quick)


def _compare(comparison: "Comparison", folder: Path, *, is_quick: bool) -> None:
    import sys
    import time
    from datetime import UTC, datetime

    from rich.console import Console

    from tierline.bench import report as reports
    from tierline.bench.features import report as features
    from tierline.bench.features.comparing import compare_features as carry_out
    from tierline.bench.registry import QUICK_NOTE, ended_in_order
    from tierline.bench.serving.running import command_line
    from tierline.cli.bench.progress import watching
    from tierline.errors import TierlineError

    console = Console()
    machine = reports.Machine.here()
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    with ended_in_order():
        found = carry_out(
            comparison, lambda line: console.print(line, style="dim", highlight=False, markup=False), watching
        )
    report = features.report_of(
        found,
        command=command_line(sys.argv[1:]),
        started=started,
        duration_s=time.monotonic() - clock,
        machine=machine,
        more_notes=[QUICK_NOTE] if is_quick else [],
    )
    reports.show(report, console)
    _write(found, report, folder)
    if wrong := features.what_is_wrong(found):
        raise TierlineError(f"these figures are not to be published: {'; '.join(wrong)}")


def _write(found: "Measured", report: "Report", folder: Path) -> None:
    from tierline.bench import report as reports
    from tierline.bench.features import report as features

    reports.write_json(report, folder / f"{REPORT}.json")
    (folder / f"{REPORT}.md").write_text(features.markdown_of(found, report, chart=f"{REPORT}.png"))
    reports.plot(report, folder / f"{REPORT}.png")
    (folder / f"{REPORT}.html").write_text(features.html_of(found, report))
