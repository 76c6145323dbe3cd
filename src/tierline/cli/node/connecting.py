"""How a command of ``tierline node`` reaches its node: the options that all of them have, and one run of the loop.

A token comes from a file, the environment or a flag, and appears in no message.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from tierline.errors import AccessDenied, UsageError

if TYPE_CHECKING:
    from tierline.cli.printing import Output
    from tierline.client.admin import NodeAdmin

P = ParamSpec("P")


@dataclass(frozen=True)
class Target:
    """Which node is asked, as whom, and in what form its answer is printed."""

    url: str
    token: str
    ca: Path | None
    certificate: Path | None
    is_json: bool


def options(
    url: Annotated[
        str, typer.Option("--url", metavar="URL", envvar="TIERLINE_NODE_URL", help="Address of the node.")
    ] = "http://127.0.0.1:9200",
    token: Annotated[
        str,
        typer.Option(
            "--token",
            metavar="TOKEN",
            envvar="TIERLINE_NODE_TOKEN",
            help="Bearer token. Other users see a flag in the list of processes: prefer the variable, or a file.",
            show_default=False,
        ),
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", metavar="FILE", envvar="TIERLINE_NODE_TOKEN_FILE", help="File that holds the bearer token."
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca",
            metavar="FILE",
            envvar="TIERLINE_NODE_CA",
            help="Certificates to trust, in PEM, for an https:// address.",
            show_default="the system's",
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            "--certificate",
            metavar="FILE",
            envvar="TIERLINE_NODE_CERTIFICATE",
            help="Own certificate and its key, in one PEM file, for a node that asks for one.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document, fields as in the HTTP API.")] = False,
) -> Target:
    """Return where the options that every command has lead.

    Raises
    ------
    UsageError
        The token's file cannot be read, or there are two tokens.
    """
    if token_file is not None:
        if token:
            raise UsageError("--token-file: there is a token already, from --token or TIERLINE_NODE_TOKEN; keep one")
        try:
            token = token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise UsageError(f"--token-file: cannot read {token_file}: {reason}") from error
    return Target(url, token, ca, certificate, json)


def asks_node(work: Callable[Concatenate["NodeAdmin", "Output", P], Awaitable[None]]) -> Callable[..., None]:
    """Make a command of a coroutine that asks a node.

    The command has the coroutine's parameters but the first two, and those of :func:`options` after them.
    """
    shared = inspect.signature(options).parameters
    own = list(inspect.signature(work).parameters.values())[2:]

    @wraps(work)
    def command(**given: Any) -> None:
        from tierline.cli.printing import Output
        from tierline.client.admin import NodeAdmin

        target = options(**{name: given.pop(name) for name in shared})

        async def run() -> None:
            async with NodeAdmin(target.url, token=target.token, ca=target.ca, certificate=target.certificate) as node:
                await work(node, Output(is_json=target.is_json), **given)  # type: ignore[call-arg]

        try:
            asyncio.run(run())
        except AccessDenied as error:
            raise UsageError(f"{error}; tokens are taken from --token-file and TIERLINE_NODE_TOKEN") from error

    # Typer reads both: what the command takes, and the types of that.
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*own, *shared.values()]]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
