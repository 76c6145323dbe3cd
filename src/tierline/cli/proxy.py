"""``tierline proxy``: what stands beside a model in its pod."""

from typing import Annotated

import typer

from tierline.cli import dimensions
from tierline.cli.options import ConfigFile, LogFormat, LogLevel


def proxy(
    config: ConfigFile = None,
    upstream: Annotated[
        str | None, typer.Option(metavar="URL", help="The model's server, such as http://127.0.0.1:8000.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 takes a free one.", show_default="9180")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of /metrics, /healthz and /drain.", show_default="9113")
    ] = None,
    max_concurrent_requests: Annotated[
        int | None,
        typer.Option(metavar="N", help="Invocations at the model at once; 0: any number.", show_default="0"),
    ] = None,
    max_queue_size: Annotated[
        int | None, typer.Option(metavar="N", help="Invocations that wait while that is reached.", show_default="0")
    ] = None,
    overflow_status: Annotated[
        int | None, typer.Option(metavar="STATUS", help="Answer to one that finds no place.", show_default="429")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the model's KV is of; requests about other KV get 412."),
    ] = None,
    queue_timeout_s: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How long one may wait.", show_default="60")
    ] = None,
    capture_uri: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Where invocations are recorded: s3://BUCKET/PREFIX or file:///FOLDER."),
    ] = None,
    capture_percent: Annotated[
        int | None, typer.Option(metavar="PERCENT", help="How many of them.", show_default="100")
    ] = None,
    capture_mode: Annotated[
        list[str] | None,
        typer.Option(metavar="MODE", help="What of each, input or output; repeat.", show_default="both"),
    ] = None,
    capture_json_type: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE", help="Content type recorded as JSON; repeat.", show_default="application/json"),
    ] = None,
    capture_csv_type: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE", help="Content type recorded as text; repeat.", show_default="text/csv"),
    ] = None,
    capture_batch: Annotated[
        int | None, typer.Option(metavar="N", help="Records of one file.", show_default="10")
    ] = None,
    capture_flush_interval_s: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="When fewer are written too.", show_default="60"),
    ] = None,
    capture_payload_kb: Annotated[
        int | None, typer.Option(metavar="KIB", help="What is recorded of a payload; 0: all.", show_default="0")
    ] = None,
    capture_kms_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="KMS key that S3 encrypts the files with.")
    ] = None,
    s3_endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="S3 endpoint, where it is not AWS's of the region.")
    ] = None,
    s3_region: Annotated[
        str | None, typer.Option(metavar="REGION", help="Region of the bucket.", show_default="as AWS_REGION says")
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
    """Pass requests on to the model's server beside it: as many as may run, the others wait or are turned away.

    \b
    Examples:
      tierline proxy --upstream http://127.0.0.1:8000
      tierline proxy --upstream http://127.0.0.1:8000 --max-concurrent-requests 32 --max-queue-size 64
      tierline proxy --upstream http://127.0.0.1:8000 --capture-uri s3://captures/demo --capture-percent 10
    """
    from tierline.configuration import load
    from tierline.proxy.config import ProxyConfig
    from tierline.proxy.server import run

    settings = load(
        ProxyConfig,
        config,
        {
            "upstream": upstream,
            "host": host,
            "port": port,
            "metrics_port": metrics_port,
            "max_concurrent_requests": max_concurrent_requests,
            "max_queue_size": max_queue_size,
            "overflow_status": overflow_status,
            "weights": weights,
            "queue_timeout_s": queue_timeout_s,
            "capture_uri": capture_uri,
            "capture_percent": capture_percent,
            "capture_modes": capture_mode or None,
            "capture_json_types": capture_json_type or None,
            "capture_csv_types": capture_csv_type or None,
            "capture_batch": capture_batch,
            "capture_flush_interval_s": capture_flush_interval_s,
            "capture_payload_kb": capture_payload_kb,
            "capture_kms_key": capture_kms_key,
            "s3_endpoint": s3_endpoint,
            "s3_region": s3_region,
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
