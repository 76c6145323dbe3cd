"""``tierline simulate validate``: simulated figures beside those of a real endpoint."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def validate(
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The engine: one replica, with nothing else to do.", show_default="vLLM here"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER", help="As requests name it; of vLLM here, its folder.", show_default="SmolLM2-135M"
        ),
    ] = None,
    hardware: Annotated[str, typer.Option(help="With --base-url: what it runs on, in words.")] = "not told",
    engine: Annotated[str, typer.Option(help="With --base-url: which engine it is, with its version.")] = "vLLM",
    kv_bytes_per_token: Annotated[
        int, typer.Option(min=1, help="With --base-url: 2 · layers · KV heads · head size · bytes of a number.")
    ] = 131_072,
    kv_tokens: Annotated[
        int | None,
        typer.Option(min=1024, help="With --base-url: room of its cache.", show_default="as its metrics say"),
    ] = None,
    block_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="With --base-url: tokens of a block of it.", show_default="as its metrics say"),
    ] = None,
    step_tokens: Annotated[int, typer.Option(min=1, help="With --base-url: vLLM's --max-num-batched-tokens.")] = 8192,
    sequences: Annotated[int, typer.Option(min=1, help="With --base-url: vLLM's --max-num-seqs.")] = 256,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of vLLM here.", show_default="one for each processor")
    ] = None,
    max_input_len: Annotated[int, typer.Option(min=512, help="Tokens of calibration's longest prompt.")] = 1024,
    output_len: Annotated[int, typer.Option(min=8, help="Tokens of answers.")] = 16,
    max_concurrency: Annotated[int, typer.Option(min=1, max=2, help="Clients of the measured load.")] = 2,
    questions: Annotated[int, typer.Option(min=2, help="Of the measured load, about each document.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Of calibration and load, by turns; medians count.")] = 5,
    coefficients: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what was calibrated, and how far it is off.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it for people.")] = None,
    output: Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="What is printed.")] = "table",
) -> None:
    """Measure a load on a real endpoint, simulate the same, and say how far apart they are.

    Coefficients are calibrated on the endpoint first, with other prompts than the load has. Bounds: TTFT P50 25 %, P90
    35 %, output tokens/s 20 %, cached prompt tokens 5 points. Where one is not kept all of it is tried once more; the
    exit status is 1 if one is not kept then either. Without --base-url vLLM is started on this machine's processors.

    \b
    Examples:
      tierline simulate validate
      tierline simulate validate --coefficients mine.yaml --json validation.json --markdown validation.md
      tierline simulate validate --base-url http://127.0.0.1:8001 --model NAME --hardware '1 x H100'
    """
    import asyncio
    import contextlib
    import datetime as dt
    import shlex
    import sys
    import time

    import msgspec

    from tierline.bench import report as reports
    from tierline.cli.printing import Output
    from tierline.errors import ConfigurationError
    from tierline.simulate import validating
    from tierline.simulate.calibrating import Described, Design
    from tierline.simulate.coefficients import check_place, write
    from tierline.simulate.own_endpoint import cache_of, own_replica

    if coefficients is not None:
        check_place("--coefficients", coefficients)
    reports.require_writable({"--coefficients": coefficients, "--json": json, "--markdown": markdown})
    if base_url is not None and model is None:
        raise ConfigurationError("--model", model, "as requests name it, where there is a --base-url")
    printed = Output(is_json=output == "json")
    machine = reports.Machine.here()
    started, began_s = dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), time.monotonic()
    with contextlib.ExitStack() as stack:
        if base_url is None:
            url, described = stack.enter_context(own_replica(model, threads, printed.note))
            blocks = cache_of(url)
        else:
            url, blocks = base_url, (0, block_tokens or 0)
            if kv_tokens is None or block_tokens is None:
                blocks = cache_of(url)
            described = Described(
                model or "",
                hardware,
                engine,
                kv_bytes_per_token,
                kv_tokens or blocks[0] * blocks[1],
                step_tokens,
                sequences,
            )
        design = Design(max_input_len, output_len, max_concurrency, repeats=rounds)
        workload = validating.Workload.beside(
            max_input_len,
            block_tokens or blocks[1],
            questions=questions,
            answer_tokens=output_len,
            clients=max_concurrency,
            rounds=rounds,
        )
        bar = stack.enter_context(printed.progress("measuring"))
        task = bar.add_task("measuring", total=design.measurements + rounds)
        attempts = asyncio.run(
            validating.validate(
                url, described, design, workload, lambda what: bar.update(task, description=what, advance=1)
            )
        )
    command = shlex.join(["tierline", *sys.argv[1:]])
    found = validating.report(
        attempts, workload, machine=machine, started=started, seconds=time.monotonic() - began_s, command=command
    )
    document = validating.document(found, attempts, workload)
    if coefficients is not None:
        write(attempts[-1].validated(workload), coefficients)
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    if markdown is not None:
        reports.write_markdown(found, markdown)
    if printed.is_json:
        printed.document(document)
    else:
        reports.show(found, printed.console)
    if not attempts[-1].is_within:
        raise typer.Exit(1)
