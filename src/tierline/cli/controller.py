"""``tierline controller``: the exact index of ``kvaware`` as a process of its own, for several routers."""

from typing import Annotated

import typer

from tierline.cli.options import ConfigFile, LogFormat, LogLevel


def controller(
    config: ConfigFile = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A replica's address, as the routers spell it; repeat for each replica."),
    ] = None,
    kv_events: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL=ADDRESS",
            help="Where a replica publishes KV events, such as http://a:8000=tcp://a:5557?replay=5558; repeat.",
        ),
    ] = None,
    endpoints_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="YAML or JSON file that lists replicas, as for the router; followed."),
    ] = None,
    takes_endpoints: Annotated[
        bool | None,
        typer.Option("--takes-endpoints", help="Listen to the replicas of the routers that are connected, too."),
    ] = None,
    lmcache_pull: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where LMCache's workers push, their controller_pull_url."),
    ] = None,
    lmcache_reply: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where LMCache's workers ask, their controller_reply_url."),
    ] = None,
    lmcache_instance: Annotated[
        list[str] | None,
        typer.Option(metavar="URL=ID", help="A replica's lmcache_instance_id, where it is not its URL; repeat."),
    ] = None,
    lmcache_chunk_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="LMCache's chunk_size.", show_default="256")
    ] = None,
    lmcache_hash: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="LMCache's pre_caching_hash_algorithm, sha256_cbor or builtin.",
            show_default="sha256_cbor",
        ),
    ] = None,
    lmcache_none_hash: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="NONE_HASH as LMCache logs it at its start.")
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="Where routers connect, unix:PATH or HOST:PORT; repeat for more.",
            show_default="127.0.0.1:9310",
        ),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Where /healthz, /readyz and /metrics are.", show_default="127.0.0.1:9311"
        ),
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="File with the token that routers show over TCP."),
    ] = None,
    tls_certificate: Annotated[
        str | None, typer.Option(metavar="FILE", help="PEM file with the certificate that routers are shown.")
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option(metavar="FILE", help="PEM file with its key, without a passphrase.")
    ] = None,
    kv_index_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory for the index.", show_default="512MiB")
    ] = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Keep the exact index of who holds which blocks, and answer routers that run with --controller.

    \b
    Examples:
      tierline controller --endpoint http://a:8000 --kv-events 'http://a:8000=tcp://a:5557?replay=5558'
      tierline controller --endpoints-file endpoints.yaml --listen unix:/run/tierline/controller.sock
      tierline controller --endpoints-file endpoints.yaml --listen 0.0.0.0:9310 --token-file token
      tierline router --strategy kvaware --endpoints-file endpoints.yaml --controller 127.0.0.1:9310
    """
    from tierline.configuration import load
    from tierline.router.controller.config import ControllerConfig
    from tierline.router.controller.server import run

    settings = load(
        ControllerConfig,
        config,
        {
            "endpoints": endpoint or None,
            "kv_events": kv_events or None,
            "endpoints_file": endpoints_file,
            "takes_endpoints": takes_endpoints,
            "lmcache_pull": lmcache_pull,
            "lmcache_reply": lmcache_reply,
            "lmcache_instances": lmcache_instance or None,
            "lmcache_chunk_tokens": lmcache_chunk_tokens,
            "lmcache_hash": lmcache_hash,
            "lmcache_none_hash": lmcache_none_hash,
            "listen": listen or None,
            "http": http,
            "token_file": token_file,
            "tls_certificate": tls_certificate,
            "tls_key": tls_key,
            "kv_index_bytes": kv_index_bytes,
            "log_level": log_level,
            "log_format": log_format,
        },
    )
    run(settings)
