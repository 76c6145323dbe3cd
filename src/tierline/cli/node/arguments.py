"""Arguments that several commands take."""

from typing import Annotated

import typer

Bucket = Annotated[str, typer.Argument(metavar="BUCKET", help="Bucket of the object.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="Name of the object in its bucket.")]
Keys = Annotated[list[str], typer.Argument(metavar="KEY…", help="Names of objects in the bucket.")]
AnyBucket = Annotated[str | None, typer.Argument(metavar="BUCKET", help="One bucket.", show_default="every bucket")]
Salt = Annotated[
    str | None,
    typer.Option(metavar="SALT", help="One tenant; an empty one is who has none.", show_default="every tenant"),
]
Limit = Annotated[int, typer.Option(min=1, metavar="N", help="List so many at most.")]
Cursor = Annotated[
    str,
    typer.Option(metavar="CURSOR", help='Go on where a list ended: its "cursor" in JSON.', show_default=False),
]
