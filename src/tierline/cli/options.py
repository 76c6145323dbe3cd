"""Options that several commands share; a flag that is not given is ``None``, so that file and environment can speak."""

from pathlib import Path
from typing import Annotated, Literal

import typer

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
