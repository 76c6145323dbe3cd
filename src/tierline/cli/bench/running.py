"""``tierline bench run``: load on any endpoint of the OpenAI API."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tierline.cli.numbers import number

if TYPE_CHECKING:
    from tierline.bench.serving.arrivals import Ramp
    from tierline.bench.serving.bottleneck import LateRule
    from tierline.bench.serving.drivers.driver import Asked
    from tierline.bench.serving.results import Billing, Result
    from tierline.bench.serving.running import Run


def run(
    base_url: Annotated[str, typer.Option(metavar="URL", help="The server.")] = "http://127.0.0.1:8000",
    endpoint: Annotated[
        Literal["/v1/chat/completions", "/v1/completions"], typer.Option(help="The route.")
    ] = "/v1/chat/completions",
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Model.", show_default="the first it has")] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Header of every request; may be repeated.")
    ] = None,
    extra_body: Annotated[str | None, typer.Option(metavar="JSON", help="Merged into every request's body.")] = None,
    dataset_name: Annotated[
        Literal["documents", "code", "chats", "templates", "agents", "independent", "prefixes", "trace"],
        typer.Option(help="The workload."),
    ] = "documents",
    dataset_path: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="trace: Mooncake or Bailian JSONL, Azure or BurstGPT CSV."),
    ] = None,
    trace_speed: Annotated[
        float, typer.Option(callback=number(over=0), help="trace: how many times faster than it came.")
    ] = 1.0,
    num_prompts: Annotated[int, typer.Option(min=1, help="How many requests, at most.")] = 100,
    input_len: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Context length in tokens; of a trace, what is longer is cut.",
            show_default="8192; trace: as it is",
        ),
    ] = None,
    output_len: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an answer.", show_default="128; trace: as it is")
    ] = None,
    num_turns: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Questions on a document, turns of a chat, steps of an agent.",
            show_default="4; chats: 20; agents: 10",
        ),
    ] = None,
    num_prefixes: Annotated[int, typer.Option(min=1, help="How many templates, or kinds of agents.")] = 8,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    salt: Annotated[
        str | None, typer.Option(help="Of the text: a new one is cold everywhere.", show_default="a new one")
    ] = None,
    ignore_eos: Annotated[bool, typer.Option(help="Ask for answers of exactly that length.")] = True,
    max_concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Requests in flight; with a rate, at most.", show_default="20; with a rate: no limit"),
    ] = None,
    request_rate: Annotated[
        float | None,
        typer.Option(
            callback=number(over=0, may_be_infinite=True),
            help="Requests a second, whether or not those before are answered; inf: all at once.",
            show_default="closed loop",
        ),
    ] = None,
    burstiness: Annotated[
        float,
        typer.Option(
            callback=number(over=0, may_be_infinite=True),
            help="1: Poisson; less: bursts; more: steadier; inf: a clock.",
        ),
    ] = 1.0,
    ramp_up_strategy: Annotated[
        Literal["linear", "exponential"] | None, typer.Option(help="How the rate changes over the run.")
    ] = None,
    ramp_up_start_rps: Annotated[
        float | None, typer.Option(callback=number(over=0), help="The rate of the first request.")
    ] = None,
    ramp_up_end_rps: Annotated[
        float | None, typer.Option(callback=number(over=0), help="The rate of the last one.")
    ] = None,
    ramp_up_seconds: Annotated[
        float,
        typer.Option(min=0.0, callback=number(), help="Open places one by one over this time; none of it is measured."),
    ] = 0.0,
    num_warmups: Annotated[int, typer.Option(min=0, help="Requests before, which nobody counts.")] = 0,
    duration: Annotated[
        float | None,
        typer.Option(callback=number(over=0), help="Seconds after which nothing is sent.", show_default="no limit"),
    ] = None,
    request_timeout: Annotated[
        float, typer.Option(callback=number(over=0), help="Seconds that a request may take.")
    ] = 600.0,
    goodput: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC:MS", help="What a good answer keeps: ttft, tpot, e2el; may be repeated."),
    ] = None,
    metric_percentiles: Annotated[str, typer.Option(help="Which percentiles.")] = "50,90,95,99",
    metrics_url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="An engine whose counters say which tier had the prompts; may be repeated."),
    ] = None,
    prices: Annotated[Path | None, typer.Option(metavar="FILE", help="Price list, by instance type.")] = None,
    instance_type: Annotated[str | None, typer.Option(help="What serves, as the price list calls it.")] = None,
    instances: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Client processes.")] = 1,
    share: Annotated[
        str, typer.Option(metavar="N/HOSTS", help="This host's part of the plan, where several make load.")
    ] = "1/1",
    start_at: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=number(),
            metavar="EPOCH",
            help="When to start, in Unix seconds, so that hosts start together.",
            show_default="at once",
        ),
    ] = None,
    late_limit: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=number(),
            metavar="MS",
            help="How late 1 of 100 requests may be sent.",
            show_default="10, or 5 % of TTFT P50",
        ),
    ] = None,
    driver: Annotated[
        Literal["vllm", "aiperf", "guidellm"] | None,
        typer.Option(
            help="Run this load generator instead and import its result, for workloads that it can make.",
            show_default="our own client",
        ),
    ] = None,
    driver_path: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its program.", show_default="found in PATH")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="driver: folder or name of its tokenizer.", show_default="the model"),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result, every request in it.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a line a request.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the printed tables.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw a chart as PNG or SVG.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with charts that needs no other file.")
    ] = None,
    aiperf_json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the result in aiperf's shape.")
    ] = None,
    save_result: Annotated[bool, typer.Option("--save-result", help="Write the result under vLLM's names.")] = False,
    save_detailed: Annotated[
        bool, typer.Option("--save-detailed", help="With arrays of every request, and what was answered.")
    ] = False,
    result_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to.", show_default="here")] = None,
    result_filename: Annotated[
        str | None, typer.Option(metavar="NAME", help="As what.", show_default="as vLLM calls it")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Said in the result; may be repeated.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was interrupted; needs --json, and the same flags.")
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A.json B.json", help="Compare two results instead of running."),
    ] = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Merge results of several hosts instead of running; repeat for each."),
    ] = None,
) -> None:
    """Load an endpoint of the OpenAI API, and say how long its answers take, how many there are, what they cost.

    Prompts are made from a seed and salted, so that what is called cold is in no cache. A request that is meant to find
    a prefix waits for the answer that puts it there. Time to first token ends with the first event with content. When
    the client itself was too slow, nothing is written and the exit status is 1, as it is when more than half of the
    requests failed.

    \b
    Workloads:
      documents    questions on long documents
      code         review questions on code bases
      chats        chats whose history grows, 20 turns
      templates    short requests behind a few long instructions
      agents       agents with tools: shared instructions, results that pile up
      independent  prompts that share nothing
      prefixes     in turn one prefix again and again, and prefixes of their own
      trace        a trace of a real service

    \b
    Examples:
      tierline bench run --dataset-name documents --input-len 8192 --max-concurrency 20 --json a.json
      tierline bench run --dataset-name chats --request-rate 2 --goodput ttft:500 --goodput tpot:50
      tierline bench run --dataset-name trace --dataset-path conversation_trace.jsonl --input-len 4096 --duration 300
      tierline bench run --prices prices.yaml --instance-type ml.g6.12xlarge --instances 2
      tierline bench run --compare a.json b.json
      tierline bench run --merge host1.json --merge host2.json --json both.json
      tierline bench run --driver vllm --dataset-name independent --tokenizer ./model --json by-vllm.json
    """
    from tierline.bench.serving import results
    from tierline.bench.serving.bottleneck import LATE, LateRule
    from tierline.bench.serving.client import Target
    from tierline.bench.serving.drivers.driver import Asked
    from tierline.bench.serving.measures import parse_slos
    from tierline.bench.serving.running import TRACE, Run, replayed_trace
    from tierline.bench.serving.workloads import default_turns
    from tierline.cli.bench.writing import Files, compared, require_answers, shown
    from tierline.errors import ConfigurationError, UsageError

    if compare is not None:
        compared(*compare)
        return
    if start_at is not None and not 0 < start_at - time.time() < 86_400:
        raise ConfigurationError("--start-at", start_at, f"a time within a day; it is {time.time():.0f} now")
    is_trace = dataset_name == TRACE
    is_timed_by_us = request_rate is not None or ramp_up_strategy is not None
    has_two_rates = ramp_up_strategy is not None and request_rate is not None and math.isfinite(request_rate)
    _require_effect(
        {
            "--dataset-path": (dataset_path is None or is_trace, "--dataset-name trace"),
            "--trace-speed": (
                trace_speed == 1.0 or (is_trace and not is_timed_by_us),
                "--dataset-name trace, without --request-rate and --ramp-up-strategy",
            ),
            "--burstiness": (burstiness == 1.0 or is_timed_by_us, "--request-rate or --ramp-up-strategy"),
            "--request-rate": (not has_two_rates, "--ramp-up-strategy only as inf"),
            "--instances": (instances == 1 or prices is not None, "--prices"),
            "--driver-path": (driver_path is None or driver is not None, "--driver"),
            "--tokenizer": (tokenizer is None or driver is not None, "--driver"),
            "--save-detailed": (not save_detailed or save_result, "--save-result"),
            "--result-dir": (result_dir is None or save_result, "--save-result"),
            "--result-filename": (result_filename is None or save_result, "--save-result"),
        }
    )
    files = Files(
        json=json,
        csv=csv,
        markdown=markdown,
        plot=plot,
        html=html,
        aiperf=aiperf_json,
        vllm_folder=(result_dir or Path()) if save_result else None,
        vllm_name=result_filename,
        is_detailed=save_detailed,
    )
    files.check()
    if merge:
        merged = results.merge([results.decode(path) for path in merge])
        shown(merged)
        files.write(merged)
        require_answers(merged)
        return
    if resume and json is None:
        raise UsageError("--resume: needs --json, whose file is made from what the interrupted run has left")
    if (start_at is not None or share != "1/1") and salt is None:
        raise UsageError("--share, --start-at: need --salt, the same on every host, or they share no prefix")
    if duration is not None and ramp_up_seconds >= duration:
        raise ConfigurationError(
            "--ramp-up-seconds", ramp_up_seconds, f"less than --duration, {duration:g}, or nothing is measured"
        )
    for flag, urls in (("--base-url", [base_url]), ("--metrics-url", metrics_url or [])):
        for url in urls:
            _require_http(flag, url)
    ramp = _ramp(ramp_up_strategy, ramp_up_start_rps, ramp_up_end_rps)
    is_open_loop = is_trace or ramp is not None or request_rate is not None
    headers = _pairs("--header", header)
    target = Target(
        base_url=base_url,
        endpoint=endpoint,
        model=model or _served_model(base_url, headers),
        headers=headers,
        extra_body=_json_object("--extra-body", extra_body),
        ignore_eos=ignore_eos,
        keeps_texts=save_detailed,
        timeout_s=request_timeout,
    )
    settings = results.Settings(
        base_url=base_url,
        endpoint=endpoint,
        model=target.model,
        workload=dataset_name,
        trace=dataset_path.name if is_trace and dataset_path is not None else "",
        trace_speed=trace_speed,
        input_len=input_len or (0 if is_trace else 8192),
        output_len=output_len or (0 if is_trace else 128),
        turns=num_turns or default_turns(dataset_name),
        prefixes=num_prefixes,
        requests=num_prompts,
        is_open_loop=is_open_loop,
        request_rate=None if request_rate is None or math.isinf(request_rate) else request_rate,
        burstiness=None if math.isinf(burstiness) else burstiness,
        ramp=ramp,
        max_concurrency=max_concurrency or (None if is_open_loop else 20),
        ramp_s=ramp_up_seconds,
        duration_s=duration,
        warmups=num_warmups,
        ignores_eos=ignore_eos,
        processes=processes,
        share=share,
        seed=seed,
        goodput_ms=parse_slos(goodput or []).limits_ms,
        percentiles=_percentiles(metric_percentiles),
        metadata=_pairs("--metadata", metadata),
    )
    late = LATE if late_limit is None else LateRule.fixed(late_limit)
    if driver is not None:
        others = {
            "--resume": resume,
            "--processes": processes > 1,
            "--share": share != "1/1",
            "--start-at": start_at is not None,
            "--metrics-url": bool(metrics_url),
            "--salt": salt is not None,
        }
        given = [flag for flag, is_given in others.items() if is_given]
        result = _by_driver(
            driver,
            driver_path,
            Asked(
                settings,
                target,
                tokenizer or target.model,
                replayed_trace(settings, dataset_path) if is_trace else (),
            ),
            billing_of(prices, instance_type, instances),
            late,
            given,
        )
        _require_measured(result)
        shown(result)
        files.write(result)
        require_answers(result)
        return
    journal = json.with_suffix(".partial.jsonl") if json is not None else None
    result = _carried_out(
        Run(
            settings=settings,
            target=target,
            trace_path=dataset_path,
            salt=salt or "",
            metrics_urls=metrics_url or (),
            billing=billing_of(prices, instance_type, instances),
            late=late,
            start_at_s=start_at,
            journal=journal,
            resumes=resume,
        )
    )
    _require_measured(result)
    shown(result)
    if journal is not None and result.doubts:  # what is not published is not gone on with either
        journal.unlink(missing_ok=True)
    files.write(result)
    if journal is not None:
        journal.unlink(missing_ok=True)
    require_answers(result)


def _require_measured(result: "Result") -> None:
    from tierline.errors import TierlineError

    if not any(record.is_measured for record in result.records):
        raise TierlineError(
            f"nothing was measured: all {len(result.records)} requests were sent within --ramp-up-seconds, "
            f"{result.settings.ramp_s:g}; give less of it, or more requests"
        )


def _served_model(base_url: str, headers: dict[str, str]) -> str:
    import asyncio

    from tierline.bench.serving.running import served_model

    return asyncio.run(served_model(base_url, headers))


def _by_driver(
    name: str,
    path: Path | None,
    asked: "Asked",
    billing: "Billing | None",
    late: "LateRule",
    others: Sequence[str],
) -> "Result":
    import asyncio
    import sys
    import tempfile

    import msgspec

    from tierline.bench.serving.drivers.driver import is_simulated, run_driver
    from tierline.bench.serving.drivers.known import driver_for
    from tierline.bench.serving.running import command_line
    from tierline.errors import UsageError

    if others:
        raise UsageError(f"{others[0]}: goes only with our own client, without --driver")
    driver = driver_for(name, asked.settings.workload)
    with tempfile.TemporaryDirectory(prefix="tierline-bench-") as folder:
        command = command_line(sys.argv[1:])
        result = run_driver(driver, asked, path, Path(folder), billing=billing, command=command, late=late)
    simulated = asyncio.run(is_simulated(asked.target.base_url))
    records = [msgspec.structs.replace(record, is_simulated=simulated) for record in result.records]
    return msgspec.structs.replace(result, records=records)


def _carried_out(given: "Run") -> "Result":
    import asyncio

    from tierline.bench.serving.running import run as carry_out
    from tierline.cli.bench.progress import Progress

    with Progress() as progress:
        return asyncio.run(carry_out(given, progress.watcher))


def _ramp(strategy: Literal["linear", "exponential"] | None, start: float | None, end: float | None) -> "Ramp | None":
    from tierline.bench.serving.arrivals import Ramp
    from tierline.errors import UsageError

    if strategy is None and start is None and end is None:
        return None
    if strategy is None or start is None or end is None:
        raise UsageError("--ramp-up-strategy: goes with --ramp-up-start-rps and --ramp-up-end-rps; give all three")
    return Ramp(strategy, start, end)


def billing_of(prices: Path | None, instance_type: str | None, instances: int) -> "Billing | None":
    """Return what serves, and what it costs; ``None`` where neither flag was given."""
    from tierline.bench.serving.prices import Fleet, read_prices
    from tierline.bench.serving.results import Billing
    from tierline.errors import UsageError

    if prices is None and instance_type is None:
        return None
    if prices is None or instance_type is None:
        raise UsageError("--prices: goes with --instance-type; give both")
    fleet = Fleet(read_prices(prices), instance_type, instances)
    return Billing(fleet.prices, fleet.instance_type, fleet.instances)


def _require_effect(flags: Mapping[str, tuple[bool, str]]) -> None:
    """Refuse a flag that would change nothing: by its name whether it is left out or has an effect, and with what."""
    from tierline.errors import UsageError

    for flag, (is_well, goes_with) in flags.items():
        if not is_well:
            raise UsageError(f"{flag}: has no effect here; it goes with {goes_with}")


def _require_http(flag: str, url: str) -> None:
    from urllib.parse import urlsplit

    from tierline.errors import ConfigurationError

    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(flag, url, "http://HOST:PORT or https://HOST:PORT")


def _pairs(flag: str, texts: list[str] | None) -> dict[str, str]:
    from tierline.errors import ConfigurationError

    pairs = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigurationError(flag, text, "NAME=VALUE")
        pairs[name] = value
    return pairs


def _json_object(flag: str, text: str | None) -> dict[str, object]:
    import msgspec

    from tierline.errors import ConfigurationError

    try:
        return msgspec.json.decode(text or "{}", type=dict[str, object])
    except msgspec.DecodeError as error:
        raise ConfigurationError(flag, text, "a JSON object") from error


def _percentiles(text: str) -> tuple[float, ...]:
    from tierline.errors import ConfigurationError

    try:
        percents = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        percents = ()
    if not percents or not all(0 <= percent <= 100 for percent in percents):
        raise ConfigurationError("--metric-percentiles", text, "numbers from 0 to 100 with commas between them")
    return percents
