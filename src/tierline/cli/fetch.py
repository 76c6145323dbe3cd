"""``tierline fetch``: a model's files into a folder, before its server starts."""

from typing import Annotated

import typer

from tierline.cli.options import ConfigFile, LogFormat, LogLevel


def fetch(
    source: Annotated[
        str | None,
        typer.Argument(metavar="SOURCE", help="s3://BUCKET/PREFIX, hf://OWNER/MODEL@REVISION or file:///FOLDER."),
    ] = None,
    folder: Annotated[
        str | None, typer.Argument(metavar="FOLDER", help="Where the files go; made where it is not there.")
    ] = None,
    config: ConfigFile = None,
    s3_endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="S3 endpoint, where it is not AWS's of the region.")
    ] = None,
    s3_region: Annotated[
        str | None, typer.Option(metavar="REGION", help="Region of the bucket.", show_default="as AWS_REGION says")
    ] = None,
    hf_endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Hub that hf:// means.", show_default="https://huggingface.co"),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Files to leave out, such as 'original/*'; repeat.")
    ] = None,
    streams: Annotated[
        int | None, typer.Option(metavar="N", help="Parts that are fetched at once.", show_default="8")
    ] = None,
    part_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Size of a part.", show_default="64MiB")
    ] = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Fetch a model's files: what was interrupted goes on where it was, what is there already is not fetched again.

    The token for gated models is HF_TOKEN, credentials of S3 are found as AWS's own tools find them.

    \b
    Examples:
      tierline fetch s3://models/llama-3.1-8b /opt/ml/model
      tierline fetch s3://models/llama-3.1-8b /opt/ml/model --s3-endpoint http://minio:9000
      tierline fetch hf://HuggingFaceTB/SmolLM2-135M@main /opt/ml/model
    """
    from tierline.configuration import load
    from tierline.fetch.config import FetchConfig
    from tierline.fetch.program import run

    settings = load(
        FetchConfig,
        config,
        {
            "source": source,
            "folder": folder,
            "s3_endpoint": s3_endpoint,
            "s3_region": s3_region,
            "hf_endpoint": hf_endpoint,
            "exclude": exclude or None,
            "streams": streams,
            "part_bytes": part_bytes,
            "log_level": log_level,
            "log_format": log_format,
        },
    )
    run(settings)
