"""``tierline collector``: the metrics of a pod's containers, on one page and with the pod's names."""

from typing import Annotated

import typer

from tierline.cli import dimensions
from tierline.cli.options import ConfigFile, LogFormat, LogLevel


def collector(
    config: ConfigFile = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=URL",
            help="Whose metrics are read, such as model-container=http://127.0.0.1:8000/metrics; repeat.",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of /metrics and /healthz; 0 takes a free one.", show_default="9464")
    ] = None,
    interval_s: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Time between two readings.", show_default="15")
    ] = None,
    otlp_endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Send what was read there too, by OTLP over HTTP.")
    ] = None,
    cluster_id: dimensions.ClusterId = None,
    cluster_name: dimensions.ClusterName = None,
    resource_name: dimensions.ResourceName = None,
    resource_type: dimensions.ResourceType = None,
    namespace: dimensions.Namespace = None,
    model_name: dimensions.ModelName = None,
    model_version: dimensions.ModelVersion = None,
    container_type: dimensions.ContainerType = None,
    pod_name: dimensions.PodName = None,
    node_name: dimensions.NodeName = None,
    instance_type: dimensions.InstanceType = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Read the metrics of a pod's containers, and show them on one page with the labels of HyperPod's dashboards.

    \b
    Examples:
      tierline collector --target model-container=http://127.0.0.1:8000/metrics
      tierline collector --target model-container=http://127.0.0.1:8000/metrics --otlp-endpoint http://otel:4318
    """
    from tierline.collector.config import CollectorConfig
    from tierline.collector.server import run
    from tierline.configuration import load

    settings = load(
        CollectorConfig,
        config,
        {
            "targets": target or None,
            "host": host,
            "port": port,
            "interval_s": interval_s,
            "otlp_endpoint": otlp_endpoint,
            "cluster_id": cluster_id,
            "cluster_name": cluster_name,
            "resource_name": resource_name,
            "resource_type": resource_type,
            "namespace": namespace,
            "model_name": model_name,
            "model_version": model_version,
            "container_type": container_type,
            "pod_name": pod_name,
            "node_name": node_name,
            "instance_type": instance_type,
            "log_level": log_level,
            "log_format": log_format,
        },
    )
    run(settings)
