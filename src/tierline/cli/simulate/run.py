"""``tierline simulate run``: one cluster under one load."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tierline.cli.numbers import number
from tierline.errors import ConfigurationError

Workload = Literal["chats", "documents", "templates", "questions"]
PoolKind = Literal["nodes", "l1", "service"]
Policy = Literal["arc", "lru", "s3fifo", "lfu", "fifo"]


def run(
    coefficients: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="How fast a replica is: one that comes along, or a file.")
    ] = "llama-3.1-70b-tp8-h100",
    replicas: Annotated[int, typer.Option(min=1, max=256, help="How many.")] = 7,
    replicas_per_node: Annotated[int, typer.Option(min=1, help="How many share a node's memory and links.")] = 1,
    strategy: Annotated[
        str, typer.Option(metavar="NAME", help="Of the router; or production-stack, to compare with.")
    ] = "prefixaware",
    workload: Annotated[Workload, typer.Option(help="What is generated, without --trace.")] = "chats",
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A trace in Mooncake's format instead.", show_default="generated"),
    ] = None,
    num_prompts: Annotated[int, typer.Option(min=2, help="Requests at most.")] = 2000,
    random_input_len: Annotated[
        int, typer.Option(min=1024, help="questions: tokens of a document and a question.")
    ] = 8192,
    random_output_len: Annotated[int, typer.Option(min=1, help="questions: tokens of an answer.")] = 512,
    questions: Annotated[int, typer.Option(min=1, help="questions: about each document.")] = 4,
    request_rate: Annotated[
        float | None,
        typer.Option(
            min=1e-6, callback=number(), help="Requests a second, in the trace's rhythm.", show_default="as they came"
        ),
    ] = None,
    max_concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="A closed loop of so many clients instead, each with one session at a time."),
    ] = None,
    think_time: Annotated[
        float, typer.Option(min=0, callback=number(), help="Of those clients between requests, seconds on average.")
    ] = 0.0,
    duration: Annotated[
        float | None,
        typer.Option(
            min=0.1, callback=number(), help="End the closed loop after so many seconds.", show_default="requests"
        ),
    ] = None,
    warmup: Annotated[
        float, typer.Option(min=0, callback=number(), help="Seconds at the start that are not measured.")
    ] = 0.0,
    prefix_caching: Annotated[bool, typer.Option(help="Whether engines keep prefixes.")] = True,
    l1_size: Annotated[str, typer.Option(metavar="SIZE", help="Memory of a node; 0: there is none.")] = "0",
    l1_bandwidth: Annotated[
        float,
        typer.Option(
            min=0.001,
            callback=number(),
            help="From it into a node's engines, GB/s, and as much back; measured here by `tierline bench store`.",
        ),
    ] = 50.0,
    l1_latency: Annotated[float, typer.Option(min=0, callback=number(), help="Seconds before the first byte.")] = 0.001,
    l1_policy: Annotated[Policy, typer.Option(help="What goes when room is needed.")] = "arc",
    l2_size: Annotated[str, typer.Option(metavar="SIZE", help="Beyond the nodes, all of it; 0: there is none.")] = "0",
    l2_kind: Annotated[
        PoolKind,
        typer.Option(
            help="Where: memory of the nodes beside L1, an equal part each; their L1 itself, without --l2-size; "
            "one service with a link as a node's."
        ),
    ] = "nodes",
    l2_bandwidth: Annotated[
        float, typer.Option(min=0.001, callback=number(), help="Of one node's link, GB/s each way.")
    ] = 11.0,
    l2_latency: Annotated[float, typer.Option(min=0, callback=number(), help="Seconds before the first byte.")] = 0.002,
    l2_policy: Annotated[Policy, typer.Option(help="What goes when room is needed.")] = "arc",
    overhead: Annotated[
        float, typer.Option(min=0, callback=number(), help="Router, network, tokenizing: seconds a request.")
    ] = 0.0,
    load_factor: Annotated[
        float,
        typer.Option(min=0, callback=number(), help="What a second of computing is worth in seconds of loading."),
    ] = 1.0,
    max_replicas: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, help="Let an autoscaler add replicas, up to so many.", show_default="as many as there are"
        ),
    ] = None,
    target_requests: Annotated[
        float,
        typer.Option(min=0.1, callback=number(), help="Autoscaler: requests under way that each replica should have."),
    ] = 8.0,
    scale_interval: Annotated[
        float, typer.Option(min=1, callback=number(), help="Autoscaler: seconds between two looks.")
    ] = 30.0,
    start_delay: Annotated[
        float,
        typer.Option(min=0, callback=number(), help="Autoscaler: seconds until a replica that is wanted serves."),
    ] = 180.0,
    cool_down: Annotated[
        float,
        typer.Option(min=0, callback=number(), help="Autoscaler: seconds that fewer must do before replicas go."),
    ] = 300.0,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 1,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures.")] = None,
    result: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write every request as tierline bench run does, for its --compare."),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write that report as one page.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write that report for a README.")] = None,
    output: Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="What is printed.")] = "table",
) -> None:
    """Simulate one cluster under one load and say what clients would see.

    The router's strategies, the store's eviction policies and the rule for load or recompute run unmodified; engines,
    links and time are modelled. Same options, same result.

    \b
    Examples:
      tierline simulate run
      tierline simulate run --replicas 7 --strategy kvaware --l1-size 500GiB --l2-size 4TiB
      tierline simulate run --replicas 7 --strategy kvaware --l1-size 500GiB --l2-kind l1
      tierline simulate run --trace conversation_trace.jsonl --request-rate 2 --json result.json
      tierline simulate run --workload questions --random-input-len 65536 --max-concurrency 28 --think-time 10
      tierline simulate run --replicas 2 --max-replicas 12 --l2-size 4TiB --request-rate 8 --num-prompts 20000
    """
    import datetime as dt
    import shlex
    import sys
    from math import inf

    import msgspec

    from tierline.bench.report import require_writable
    from tierline.cli.bench.writing import Files
    from tierline.cli.printing import Output
    from tierline.cli.simulate.showing import show_result
    from tierline.configuration import parse_byte_size
    from tierline.simulate import coefficients as known
    from tierline.simulate.autoscaling import Autoscaling
    from tierline.simulate.loads import generate, read
    from tierline.simulate.results import document
    from tierline.simulate.running import Cluster, Load, simulate
    from tierline.simulate.serving import result_of
    from tierline.simulate.tiers import TierModel

    def tier(flag: str, size: str, bandwidth: float, latency: float, policy: Policy) -> TierModel:
        try:
            size_bytes = parse_byte_size(size)
        except ValueError as error:
            raise ConfigurationError(flag, size, str(error)) from None
        return TierModel(size_bytes, bandwidth * 1e9, latency, policy)

    if max_concurrency is None and duration is not None:
        raise ConfigurationError(
            "--duration", duration, "only with --max-concurrency: an open loop ends with its requests"
        )
    l1 = tier("--l1-size", l1_size, l1_bandwidth, l1_latency, l1_policy)
    l2 = tier("--l2-size", l2_size, l2_bandwidth, l2_latency, l2_policy)
    has_l2 = l2.size_bytes > 0 or l2_kind == "l1"
    cluster = Cluster(
        coefficients=known.read(coefficients),
        replicas=replicas,
        strategy=strategy,
        keeps_prefixes=prefix_caching,
        l1=l1 if l1.size_bytes or has_l2 else None,  # what L2 brings goes over its link
        l2=l2 if has_l2 else None,
        l2_kind=l2_kind,
        replicas_per_node=replicas_per_node,
        overhead_s=overhead,
        load_factor=load_factor,
        autoscaling=Autoscaling(replicas, max_replicas, target_requests, scale_interval, start_delay, cool_down)
        if max_replicas is not None
        else None,
    )
    if trace is not None:
        asked = read(trace, num_prompts)
    else:
        asked = generate(
            workload,
            seed,
            num_prompts,
            questions=questions,
            prompt_tokens=random_input_len,
            output_tokens=random_output_len,
        )
    load = Load(
        asked,
        rate=request_rate,
        concurrency=max_concurrency,
        think_s=think_time,
        measured_from_s=warmup,
        until_s=inf if duration is None else duration,
        seed=seed,
    )
    require_writable({"--json": json, "--result": result, "--html": html, "--markdown": markdown})
    printed = Output(is_json=output == "json")
    files = None
    if result is not None or html is not None or markdown is not None:
        files = Files(json=result, html=html, markdown=markdown)
    started = dt.datetime.now(dt.UTC)
    outcome = simulate(cluster, load)
    told = document(outcome, started.isoformat(timespec="seconds"), coefficients)
    if files is not None:
        command = shlex.join(["tierline", *sys.argv[1:]])
        made = result_of(
            outcome,
            coefficients,
            started=started.isoformat(timespec="seconds"),
            started_s=started.timestamp(),
            command=command,
        )
        files.write(made)
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n")
    if printed.is_json:
        printed.document(told)
    else:
        show_result(printed, told)
