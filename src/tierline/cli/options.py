"""Options that several commands share; a flag that is not given is ``None``, so that file and environment can speak."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tierline.errors import UsageError

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML, YAML or JSON file with keys spelled like the flags."),
]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"] | None,
    typer.Option("--log-level", help="Least severe event that is logged.", show_default="info"),
]
LogFormat = Annotated[
    Literal["console", "json"] | None,
    typer.Option("--log-format", help="Text for people, or one JSON object a line.", show_default="console"),
]


def require_no_options(context: typer.Context) -> None:
    """Refuse ``tierline node --port 9300 status``, which asks another node than it seems to."""
    for option in context.command.params:
        given = context.params.get(str(option.name))
        if given is not None and given not in ([], ()):
            raise UsageError(
                f"{option.opts[0]}: is for serving; "
                f"`tierline {context.info_name} {context.invoked_subcommand}` takes --url"
            )
