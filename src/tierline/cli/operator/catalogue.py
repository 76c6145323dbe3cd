"""``catalogue``: the models that a ``JumpStartModel`` may name."""

from pathlib import Path
from typing import Annotated

import typer


def catalogue(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="A file, or a folder of files, with more models.", show_default=False),
    ] = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the models that a JumpStartModel may name: those that come along, and those of a file of your own.

    \b
    Examples:
      tierline operator catalogue
      tierline operator catalogue models.yaml --json
    """
    from tierline.cli.printing import Output
    from tierline.operator.catalogue import read

    found = read(file)
    output = Output(is_json=is_json)
    entries = sorted(found.entries, key=lambda entry: (entry.id, entry.version_numbers))
    if is_json:
        output.document([entry.model_dump(mode="json", by_alias=True, exclude_unset=True) for entry in entries])
        return
    output.table(
        ("MODEL", "VERSION", "LICENCE", "IMAGE"),
        (
            (
                entry.id,
                entry.version,
                f"{entry.licence.name}{', to be accepted' if entry.licence.must_be_accepted else ''}",
                entry.spec.worker.image,
            )
            for entry in entries
        ),
    )
