"""``tierline simulate mocker``: ours beside the mocker of NVIDIA Dynamo."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tierline.cli.numbers import number


def mocker(
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A trace in Mooncake's format, or such a .gz.", show_default="chats"),
    ] = None,
    coefficients: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="How fast a replica is, in both.")
    ] = "llama-3.1-70b-tp8-h100",
    replicas: Annotated[int, typer.Option(min=1, max=256, help="How many.")] = 7,
    num_prompts: Annotated[int, typer.Option(min=2, help="Requests at most.")] = 2000,
    request_rate: Annotated[
        float | None,
        typer.Option(
            min=1e-6, callback=number(), help="Requests a second, in the trace's rhythm.", show_default="as they came"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of chats.")] = 1,
    attention: Annotated[
        bool, typer.Option(help="Whether attending takes time; without, both have exactly the same speeds.")
    ] = True,
    dynamo: Annotated[
        Path, typer.Option(metavar="FILE", help="Python of the environment that has Dynamo's mocker.")
    ] = Path(".venv-dynamo/bin/python"),
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures.")] = None,
    output: Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="What is printed.")] = "table",
) -> None:
    """Replay a trace in this simulator and in NVIDIA Dynamo's, with engines of the same speed.

    Dynamo's mocker is in an environment of its own, which `make .venv-dynamo` makes. What differs between both is
    printed with the figures.

    \b
    Examples:
      tierline simulate mocker
      tierline simulate mocker --trace conversation_trace.jsonl --num-prompts 12031 --json mocker.json
    """
    import datetime as dt

    import msgspec

    from tierline import __version__
    from tierline.bench.report import require_writable
    from tierline.cli.printing import Output
    from tierline.cli.simulate.showing import show_beside, show_provenance
    from tierline.simulate import coefficients as known
    from tierline.simulate.loads import generate, read
    from tierline.simulate.mocker import DIFFERENCES, compare

    require_writable({"--json": json})
    printed = Output(is_json=output == "json")
    speeds = known.read(coefficients)
    provenance = known.provenance(coefficients, speeds)
    if not attention:
        speeds = known.without_attention(speeds)
    if trace is not None:
        asked = read(trace, num_prompts)
    else:
        asked = generate("chats", seed, num_prompts, questions=1, prompt_tokens=1024, output_tokens=1)
    found = compare(dynamo, asked, speeds, replicas, request_rate)
    document = {
        "schema": "tierline-mocker/1",
        "version": __version__,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "trace": asked.name,
        "num_prompts": len(asked.requests),
        "replicas": replicas,
        "attention": attention,
        "coefficients": provenance,
        "routers": [
            {
                "router": each.router,
                "strategy": each.strategy,
                "mocker": each.mocker._asdict(),
                "ours": each.ours._asdict(),
            }
            for each in found
        ],
        "differences": DIFFERENCES,
    }
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    if printed.is_json:
        printed.document(document)
        return
    without = "" if attention else ", attending takes no time"
    printed.line(f"{asked.name}, {len(asked.requests):,} requests, {replicas} replicas{without}")
    show_beside(printed, found)
    for difference in DIFFERENCES:
        printed.line(f"- {difference}")
    show_provenance(printed, provenance)
