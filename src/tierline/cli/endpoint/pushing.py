"""``push-model``: a model's files, from a folder into S3."""

from pathlib import Path
from typing import Annotated

import typer

S3Endpoint = Annotated[
    str | None,
    typer.Option(
        "--s3-endpoint",
        metavar="URL",
        envvar="AWS_ENDPOINT_URL_S3",
        help="S3 endpoint.",
        show_default="AWS's of the region",
    ),
]
S3Region = Annotated[
    str | None, typer.Option("--s3-region", metavar="NAME", envvar="AWS_REGION", help="Region of the bucket.")
]


def push_model(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder with the model.", exists=True, file_okay=False)
    ],
    place: Annotated[str, typer.Argument(metavar="S3-URL", help="Where it goes, s3://BUCKET/PREFIX.")],
    s3_endpoint: S3Endpoint = None,
    s3_region: S3Region = None,
    create_bucket: Annotated[bool, typer.Option("--create-bucket", help="Make the bucket if it is not there.")] = False,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Files to leave out, such as 'original/*'; repeat.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Send every file, also those that are there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Bring a model's files into S3, or what speaks its protocol; what is there already is not sent again.

    A file is there already if it has the same size and is not older, as with `aws s3 sync`; so a push that was
    interrupted goes on. config.json goes last: who finds it finds a whole model. What was sent is looked for
    afterwards. A folder whose model is not whole (a shard is missing, a file is a pointer of Git LFS) is refused.

    Other weights belong to another place, or to another modelVersion of endpoints: LMCache's caches do not tell them
    apart, and tokens would be wrong. If files that are there already are replaced, it is said.

    Credentials are found as AWS's own tools find them; without the package boto3 in the environment only.

    \b
    Examples:
      tierline endpoint push-model ~/models/llama-3.1-8b s3://my-models/llama-3.1-8b
      tierline endpoint push-model ./model s3://models/llama --s3-endpoint http://minio:9000 --create-bucket
      tierline endpoint push-model ./model s3://models/llama --exclude 'original/*'
    """
    from time import monotonic

    from tierline.cli.printing import Output, byte_size, duration, plural
    from tierline.operator.endpoints import models

    output = Output(is_json=json)
    at = models.parse_place(place, s3_endpoint, s3_region)
    files = models.files_of(folder, exclude or ())
    if create_bucket and models.create_bucket(at):
        output.note(f"bucket {at.bucket} is made")
    store = models.open_store(at)
    there = models.stored(store, at)
    missing = models.to_send(files, there, is_all=every)
    replaced = models.replaced(missing, there)
    if replaced:
        output.note(
            f"{plural(len(replaced), 'file')} of {at} will be replaced, and LMCache's caches are named after the place "
            "alone. Where the weights are others, endpoints of this model need another modelVersion, or "
            "tierline endpoint flush NAME --restart, which empties no Redis"
        )
    total = sum(file.size for file in missing)
    begun = monotonic()
    with output.transfer(f"{plural(len(missing), 'file')} to {at}", total) as sent:
        models.push(store, at, missing, sent)
    seconds = monotonic() - begun
    if json:
        output.document(
            {
                "place": str(at),
                "files": len(files),
                "sent": [file.name for file in missing],
                "replaced": replaced,
                "sent_bytes": total,
                "seconds": seconds,
            }
        )
        return
    kept = len(files) - len(missing)
    output.line(
        f"{plural(len(missing), 'file')} sent to {at}: {byte_size(total)} in {duration(seconds)}"
        + (f"; {plural(kept, 'file')} {'was' if kept == 1 else 'were'} there" if kept else "")
    )
