"""``tierline router`` by itself: OpenAI-compatible HTTP in front of the replicas."""

from typing import Annotated

import typer

from tierline.cli.options import ConfigFile, LogFormat, LogLevel, require_no_options


def router(
    context: typer.Context,
    config: ConfigFile = None,
    host: Annotated[
        str | None, typer.Option(help="Address that the router listens on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port that the router listens on.", show_default="8000")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve on the port.", show_default="1")] = None,
    gossip_listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where other routers are told of this one's loads and placements."),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="Another router to listen to, by its --gossip-listen; repeat for more."),
    ] = None,
    peers_name: Annotated[
        str | None,
        typer.Option(metavar="NAME:PORT", help="The same for every address of a DNS name, such as a headless Service."),
    ] = None,
    gossip_secret_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="A secret that all these routers know; needed beyond loopback.")
    ] = None,
    endpoint: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="A replica's address; repeat for each replica.")
    ] = None,
    endpoints_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="YAML or JSON file that lists replicas; read again as it changes."),
    ] = None,
    kubernetes_service: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMESPACE/NAME[:PORT]", help="Kubernetes Service whose ready endpoints serve; repeat for more."
        ),
    ] = None,
    kubernetes_pods: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMESPACE:SELECTOR[:PORT]",
            help="Kubernetes pods by labels, such as default:app=vllm:8000; repeat for more.",
        ),
    ] = None,
    kubernetes_readiness_gate: Annotated[
        bool | None,
        typer.Option(
            "--kubernetes-readiness-gate",
            help="Let pods in whose readiness waits for tierline.ai/routable, once they pass a health check.",
        ),
    ] = None,
    kubeconfig: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The way to the cluster; else the pod's own account, or kubectl's file."),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="prefixaware, kvaware, session, leastload or roundrobin; how an endpoint is chosen.",
            show_default="prefixaware",
        ),
    ] = None,
    model_strategy: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=NAME", help="The strategy of one model and its adapters; repeat for more."),
    ] = None,
    model_alias: Annotated[
        list[str] | None,
        typer.Option(metavar="ALIAS=MODEL", help="Another name that requests may give a model; repeat for more."),
    ] = None,
    ab_strategy: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another strategy, on trial beside --strategy.")
    ] = None,
    ab_share: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Share of the requests that it chooses for, such as 0.1.")
    ] = None,
    allow_bypass: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT", help="What requests may ask to do without (x-tierline-bypass): affinity, cache; repeat."
        ),
    ] = None,
    kv_events: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL=ADDRESS",
            help="For kvaware: where a replica publishes KV events, such as http://a:8000=tcp://a:5557; repeat.",
        ),
    ] = None,
    node_events: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL=ADDRESS",
            help="For kvaware: where the node store of a replica publishes them, such as "
            "http://a:8000=tcp://a:5560?replay=5561; repeat.",
        ),
    ] = None,
    tier_weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TIER=WEIGHT",
            help="For kvaware: what a token saves that is read from gpu, host, shared or storage; repeat.",
        ),
    ] = None,
    controller: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="For kvaware: a controller that listens to KV events instead, unix:PATH or HOST:PORT.",
        ),
    ] = None,
    controller_token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="File with the token that the controller asks for.")
    ] = None,
    controller_ca: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="PEM file to trust the controller by; the connection is then TLS."),
    ] = None,
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=FOLDER", help="For kvaware: a folder with a model's tokenizer; repeat."),
    ] = None,
    session_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Request header that names a session, cookie:NAME or body:KEY; repeat for more, first match wins.",
            show_default="x-session-id, x-user-id, x-amzn-sagemaker-session-id, body:user",
        ),
    ] = None,
    prefill_threshold: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Tokens to compute from which a prefill replica does it for one that only decodes.",
            show_default="4096",
        ),
    ] = None,
    hedge_after: Annotated[
        str | None,
        typer.Option(metavar="SECONDS", help="Ask a second replica after so long without a byte of answer, or p95."),
    ] = None,
    api_keys_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="YAML or JSON file with the API keys that requests must show."),
    ] = None,
    tls_certificate: Annotated[
        str | None, typer.Option(metavar="FILE", help="PEM file with the certificate that clients are shown.")
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option(metavar="FILE", help="PEM file with its key, without a passphrase.")
    ] = None,
    endpoint_api_key_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="File with the API key that replicas ask for.")
    ] = None,
    opentelemetry: Annotated[
        bool | None,
        typer.Option("--opentelemetry", help="Send spans of requests by OTLP, as the OTEL_* variables say."),
    ] = None,
    traces_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Append spans of requests here, for tierline trace show.")
    ] = None,
    trust_traceparent: Annotated[
        bool | None,
        typer.Option(
            "--trust-traceparent/--no-trust-traceparent",
            help="Go on with the traces that clients began.",
            show_default="true",
        ),
    ] = None,
    dashboard: Annotated[
        bool | None,
        typer.Option("--dashboard", help="Show a page at /dashboard, to those whom /admin lets in."),
    ] = None,
    dashboard_store: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Node store whose contents the page shows; repeat for more."),
    ] = None,
    dashboard_store_token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="File with the token that these node stores ask for.")
    ] = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Run the router in front of replicas that serve the OpenAI API, or, with a command, ask one that runs.

    The options below are of serving; a command has its own after its name.

    \b
    Examples:
      tierline router --endpoint http://127.0.0.1:8001 --endpoint http://127.0.0.1:8002
      tierline router --endpoint http://10.0.0.7:8000 --strategy session --port 80 --host 0.0.0.0
      tierline router --endpoints-file endpoints.yaml
      tierline router --endpoint http://a:8000 --strategy kvaware --kv-events 'http://a:8000=tcp://a:5557?replay=5558'
      tierline router --endpoint http://a:8000 --model-strategy llama-3-8b=session --model-strategy qwen=leastload
      tierline router --endpoint http://a:8000 --ab-strategy session --ab-share 0.1
      TIERLINE_ROUTER_ENDPOINTS=http://a:8000,http://b:8000 tierline router --config router.yaml
    """
    if context.invoked_subcommand is not None:
        require_no_options(context)
        return
    from tierline.configuration import load
    from tierline.router.config import RouterConfig
    from tierline.router.server import run

    settings = load(
        RouterConfig,
        config,
        {
            "host": host,
            "port": port,
            "workers": workers,
            "gossip_listen": gossip_listen,
            "peers": peer or None,
            "peers_name": peers_name,
            "gossip_secret_file": gossip_secret_file,
            "endpoints": endpoint or None,
            "endpoints_file": endpoints_file,
            "kubernetes_services": kubernetes_service or None,
            "kubernetes_pods": kubernetes_pods or None,
            "kubernetes_readiness_gate": kubernetes_readiness_gate,
            "kubeconfig": kubeconfig,
            "strategy": strategy,
            "models": model_strategy or None,
            "model_aliases": model_alias or None,
            "ab_strategy": ab_strategy,
            "ab_share": ab_share,
            "allow_bypass": allow_bypass or None,
            "kv_events": kv_events or None,
            "node_events": node_events or None,
            "tier_weights": tier_weight or None,
            "controller": controller,
            "controller_token_file": controller_token_file,
            "controller_ca": controller_ca,
            "tokenizers": tokenizer or None,
            "session_keys": session_key or None,
            "prefill_threshold": prefill_threshold,
            "hedge_after": hedge_after,
            "api_keys_file": api_keys_file,
            "tls_certificate": tls_certificate,
            "tls_key": tls_key,
            "endpoint_api_key_file": endpoint_api_key_file,
            "opentelemetry": opentelemetry,
            "traces_file": traces_file,
            "trust_traceparent": trust_traceparent,
            "dashboard": dashboard,
            "dashboard_stores": dashboard_store,
            "dashboard_store_token_file": dashboard_store_token_file,
            "log_level": log_level,
            "log_format": log_format,
        },
    )
    run(settings)
