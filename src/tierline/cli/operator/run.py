"""``run``: the operator itself, on a cluster or beside one."""

from typing import Annotated

import typer

from tierline.cli.options import ConfigFile, LogFormat, LogLevel


def run(
    config: ConfigFile = None,
    kubeconfig: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The way to the cluster.", show_default="the pod's account, or kubectl's"),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where the operator is, with its Lease and what endpoints share.",
            show_default="hyperpod-inference-system",
        ),
    ] = None,
    watch_namespace: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A namespace that it serves; repeat.", show_default="all of them"),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="Image of our programs.", show_default="ghcr.io/tierline/tierline:latest"),
    ] = None,
    connector_image: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE",
            help="Image that holds our vLLM connector.",
            show_default="ghcr.io/tierline/tierline-connector:latest",
        ),
    ] = None,
    worker_updates: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="Workers get other images of ours with other changes, or at-once.",
            show_default="with-changes",
        ),
    ] = None,
    redis_image: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="Image of our own Redis.", show_default="docker.io/valkey/valkey:8-alpine"),
    ] = None,
    router_placement: Annotated[
        str | None,
        typer.Option(metavar="WHERE", help="Routers beside their endpoint, or in system.", show_default="endpoint"),
    ] = None,
    connector: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What joins engines to the cache, or tierline.", show_default="lmcache"),
    ] = None,
    segment_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="File of node stores in /dev/shm.", show_default="ai_toolkit_cache"),
    ] = None,
    node_share_percent: Annotated[
        int | None, typer.Option(metavar="N", help="Percent of a node's memory for its store.", show_default="20")
    ] = None,
    node_priority_class: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="PriorityClass of node stores.", show_default="system-node-critical"),
    ] = None,
    cluster_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the cluster, a label of metrics.")
    ] = None,
    prometheus_address: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The Prometheus that autoscaling asks by default."),
    ] = None,
    s3_endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="S3 endpoint of model sources.", show_default="AWS's")
    ] = None,
    hf_endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Hugging Face hub of models.", show_default="https://huggingface.co"),
    ] = None,
    s3_region: Annotated[
        str | None,
        typer.Option(
            metavar="REGION",
            help="Region of the buckets of certificates and captured data.",
            show_default="that of the model's bucket",
        ),
    ] = None,
    catalogue: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Models that a JumpStartModel may name.", show_default="the packed one"),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Where /healthz, /readyz and /metrics are.", show_default="127.0.0.1:9320"
        ),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where the API server asks about resources.", show_default="none"),
    ] = None,
    webhook_address: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|URL", help="How the API server reaches that.", show_default="tierline-operator-webhook"
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Resources that are looked at at once.", show_default="8")
    ] = None,
    lease_s: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="A silent operator is succeeded after so long.", show_default="15"),
    ] = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Have endpoints be what InferenceEndpointConfigs and JumpStartModels say, for as long as it runs.

    Several may run: one holds the Lease and acts, the others wait for it.

    \b
    Examples:
      tierline operator run
      tierline operator run --kubeconfig ~/.kube/config --watch-namespace team-a --log-format console
    """
    from tierline.configuration import load
    from tierline.operator.config import OperatorConfig
    from tierline.operator.controller.planning import planner
    from tierline.operator.controller.server import run as serve

    settings = load(
        OperatorConfig,
        config,
        {
            "kubeconfig": kubeconfig,
            "namespace": namespace,
            "watched_namespaces": watch_namespace or None,
            "image": image,
            "connector_image": connector_image,
            "worker_updates": worker_updates,
            "redis_image": redis_image,
            "router_placement": router_placement,
            "connector": connector,
            "segment_name": segment_name,
            "node_share_percent": node_share_percent,
            "node_priority_class": node_priority_class,
            "cluster_name": cluster_name,
            "prometheus_address": prometheus_address,
            "s3_endpoint": s3_endpoint,
            "hf_endpoint": hf_endpoint,
            "s3_region": s3_region,
            "catalogue": catalogue,
            "http": http,
            "webhook": webhook,
            "webhook_address": webhook_address,
            "workers": workers,
            "lease_s": lease_s,
            "log_level": log_level,
            "log_format": log_format,
        },
    )
    serve(settings, planner(settings))
