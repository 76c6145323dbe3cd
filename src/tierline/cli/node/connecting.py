"""How a command of ``tierline node`` reaches its node: the options that all of them have, and one run of the loop."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from tierline.cli.asking import read_token, with_options
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
    return Target(url, read_token(token, token_file, "TIERLINE_NODE_TOKEN"), ca, certificate, json)


def asks_node(work: Callable[Concatenate["NodeAdmin", "Output", P], Awaitable[None]]) -> Callable[..., None]:
    """Make a command of a coroutine that asks a node.

    The command has the coroutine's parameters but the first two, and those of :func:`options` after them.
    """

    def run(target: Target, given: dict[str, Any]) -> None:
        from tierline.cli.printing import Output
        from tierline.client.admin import NodeAdmin

        async def ask() -> None:
            async with NodeAdmin(target.url, token=target.token, ca=target.ca, certificate=target.certificate) as node:
                await work(node, Output(is_json=target.is_json), **given)  # type: ignore[call-arg]

        try:
            asyncio.run(ask())
        except AccessDenied as error:
            raise UsageError(f"{error}; tokens are taken from --token-file and TIERLINE_NODE_TOKEN") from error

    return with_options(work, options, run)
