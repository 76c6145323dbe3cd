"""``tierline simulate-engine``: an engine that models time and cache and computes nothing."""

from typing import Annotated

import typer

from tierline.cli.options import ConfigFile, LogFormat, LogLevel


def simulate_engine(
    config: ConfigFile = None,
    host: Annotated[
        str | None, typer.Option(help="Address that the engine listens on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port that the engine listens on; 0 takes a free one.", show_default="8001")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Model name; must contain 'simulated'.", show_default="simulated-model"),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A LoRA adapter that is served beside the model; repeat for more."),
    ] = None,
    prefill_rate: Annotated[
        float | None, typer.Option(help="Prompt tokens per second, whole engine.", show_default="2000.0")
    ] = None,
    decode_rate: Annotated[
        float | None, typer.Option(help="Generated tokens per second, each sequence.", show_default="50.0")
    ] = None,
    cache_blocks: Annotated[
        int | None, typer.Option(help="Blocks of 16 tokens in the KV cache.", show_default="4096")
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Sequences that run at once; more of them queue.", show_default="64")
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(help="Tokens of one step; longer prompts are chunked.", show_default="2048")
    ] = None,
    enable_prefix_caching: Annotated[
        bool | None, typer.Option(help="Find what earlier prompts left.", show_default="on")
    ] = None,
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="Share prefixes with other engines through this node store.")
    ] = None,
    store_bucket: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Bucket of the node store for them.", show_default="lmcache"),
    ] = None,
    kv_events_endpoint: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Send KV events here, e.g. tcp://*:5557 (needs tierline[simulate])."),
    ] = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Run a simulated engine: the OpenAI API, vLLM's metrics and KV events, no model.

    It models prefill rate, decode rate, a paged LRU prefix cache and queueing. Its answers are made-up words and each
    response has the header x-tierline-simulated. For tests and load, never for a claim about a real engine.

    \b
    Examples:
      tierline simulate-engine --port 8001
      tierline simulate-engine --model simulated-70b --prefill-rate 20000 --decode-rate 40 --cache-blocks 30000
      tierline simulate-engine --port 8001 --store http://127.0.0.1:9200
      tierline simulate-engine --port 8002 --kv-events-endpoint 'tcp://*:5557'
    """
    from tierline.configuration import load
    from tierline.stack.simulated_engine import SimulatedEngineConfig, run

    settings = load(
        SimulatedEngineConfig,
        config,
        {
            "host": host,
            "port": port,
            "model": model,
            "adapters": adapter or None,
            "prefill_rate": prefill_rate,
            "decode_rate": decode_rate,
            "cache_blocks": cache_blocks,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_batched_tokens,
            "enable_prefix_caching": enable_prefix_caching,
            "store": store,
            "store_bucket": store_bucket,
            "kv_events_endpoint": kv_events_endpoint,
            "log_level": log_level,
            "log_format": log_format,
        },
    )
    run(settings)
