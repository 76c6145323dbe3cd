"""``tierline node`` by itself: serve."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tierline.cli.options import ConfigFile, LogFormat, LogLevel, require_no_options


def node(
    context: typer.Context,
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="Address that HTTP listens on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port that HTTP listens on.", show_default="9200")] = None,
    socket: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="UNIX socket of engines on this machine.", show_default="by port"),
    ] = None,
    shared_memory_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the segment under /dev/shm.", show_default="shared_memory"),
    ] = None,
    capacity: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Size of the segment, e.g. 512MiB or 20%.", show_default="512MiB")
    ] = None,
    eviction: Annotated[
        Literal["arc", "lru", "s3fifo", "lfu", "fifo"] | None,
        typer.Option(help="What gives way when the segment is full.", show_default="arc"),
    ] = None,
    transfer_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the other nodes of a pool reach this one.")
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(metavar="NAME=HOST:PORT,…", help="The pool's other nodes, by their --transfer-address."),
    ] = None,
    pool_token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Secret that all nodes of the pool have.")
    ] = None,
    l1: Annotated[
        bool | None, typer.Option("--l1/--no-l1", help="Keep what is stored here.", show_default="true")
    ] = None,
    tiers: Annotated[
        str | None,
        typer.Option(metavar="TIER,…", help="What a miss is asked of: tieredstorage, redis://HOST, …"),
    ] = None,
    write_policy: Annotated[
        Literal["write-all", "write-through-on-second-use", "read-only"] | None,
        typer.Option(help="Which of what is stored here tiers get.", show_default="write-all"),
    ] = None,
    promote: Annotated[
        bool | None,
        typer.Option("--promote/--no-promote", help="Keep what tiers bring.", show_default="true"),
    ] = None,
    kv_events: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Publish events of blocks at, e.g., tcp://127.0.0.1:5560."),
    ] = None,
    opentelemetry: Annotated[
        bool | None,
        typer.Option("--opentelemetry", help="Send spans by OTLP, as the OTEL_* variables say."),
    ] = None,
    traces_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Append spans here, for tierline trace show.")
    ] = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Run a node store, or, with a command, ask one that runs.

    By itself: one shared-memory segment, leases on it, HTTP beside it. The options below are of serving; a command has
    its own after its name.

    \b
    Examples:
      tierline node
      tierline node --port 9200 --capacity 8GiB --eviction lru
      tierline node --transfer-address 10.0.0.1:9240 --peers 10.0.0.2:9240,10.0.0.3:9240
      tierline node --tiers redis://cache:6379
      tierline node --config node.toml
      TIERLINE_NODE_TRUSTED_NETWORK=true tierline node --host 0.0.0.0
      tierline node status
      tierline node explain lmcache 'model@1@0@5f3a@bfloat16'
    """
    if context.invoked_subcommand is not None:
        require_no_options(context)
        return
    from tierline.configuration import load
    from tierline.node.config import NodeConfig
    from tierline.node.server import run

    settings = load(
        NodeConfig,
        config,
        {
            "host": host,
            "port": port,
            "socket": socket,
            "shared_memory_name": shared_memory_name,
            "capacity": capacity,
            "eviction": eviction,
            "transfer_address": transfer_address,
            "peers": peers,
            "pool_token_file": pool_token_file,
            "l1": l1,
            "tiers": tiers,
            "write_policy": write_policy,
            "promote": promote,
            "kv_events": kv_events,
            "opentelemetry": opentelemetry,
            "traces_file": traces_file,
            "log_level": log_level,
            "log_format": log_format,
        },
    )
    run(settings)
