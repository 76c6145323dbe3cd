"""How a command of ``tierline router`` reaches its router: the options that all of them have, and the requests."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, TypeVar

import typer

from tierline.cli.asking import read_token, with_options
from tierline.errors import AccessDenied, RouterRefused, RouterUnavailable, UsageError, WireError

if TYPE_CHECKING:
    from tierline.cli.printing import Output

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class RouterAdmin:
    """A router as its operator sees it.

    Every request raises :class:`~tierline.errors.RouterUnavailable` when the router cannot be reached,
    :class:`~tierline.errors.AccessDenied` when the token does not suffice, and
    :class:`~tierline.errors.RouterRefused` for any other refusal.
    """

    url: str
    token: str = ""
    ca: Path | None = None

    async def ask(
        self,
        method: str,
        path: str,
        document: type[T],
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """Send one request and return its answer."""
        import aiohttp
        import msgspec

        from tierline.router.admin.access import ADMIN_TOKEN_FIELD

        # Not in Authorization, which the Kubernetes API takes for itself where it hands the request on.
        sent = {**(headers or {}), **({ADMIN_TOKEN_FIELD: self.token} if self.token else {})}
        if body is not None:
            sent["Content-Type"] = "application/json"
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), connector=self._connector()
                ) as http,
                http.request(
                    method, self.url + path, params=query, data=body, headers=sent, allow_redirects=False
                ) as reply,
            ):
                answer = await reply.read()
        except (ValueError, aiohttp.InvalidURL) as error:
            raise UsageError(f"--url: got {self.url!r}; allowed: http://HOST:PORT or https://HOST:PORT") from error
        except TimeoutError as error:
            raise RouterUnavailable(f"{self.url}: the router did not answer in time") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise UsageError(f"{self.url}: its certificate is not trusted; name its authority with --ca") from error
        except aiohttp.ClientConnectorError as error:
            reason = os.strerror(error.os_error.errno) if error.os_error.errno else str(error.os_error)
            raise RouterUnavailable(
                f"{self.url}: no router answers there ({reason}); is `tierline router` running?"
            ) from error
        except aiohttp.ClientError as error:
            raise RouterUnavailable(f"{self.url}: the connection ended before the answer: {error}") from error
        try:
            if reply.status >= HTTPStatus.MULTIPLE_CHOICES:
                raise self._refusal(reply.status, msgspec.json.decode(answer, type=dict[str, dict[str, Any]]))
            return msgspec.json.decode(answer, type=document)
        except msgspec.DecodeError as error:
            raise WireError(f"{self.url}: what it answers to {method} {path} is no reply of a router") from error

    def _connector(self) -> Any:
        import ssl

        import aiohttp

        try:
            return aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=self.ca))
        except OSError as error:
            raise UsageError(f"--ca: cannot take certificates from {self.ca}: {error.strerror or error}") from error

    def _refusal(self, status: int, document: dict[str, dict[str, Any]]) -> Exception:
        said = f"{self.url}: {document.get('error', {}).get('message', status)}"
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return AccessDenied(said)
        return RouterRefused(said)


def options(
    url: Annotated[
        str, typer.Option("--url", metavar="URL", envvar="TIERLINE_ROUTER_URL", help="Address of the router.")
    ] = "http://127.0.0.1:8000",
    token: Annotated[
        str,
        typer.Option(
            "--token",
            metavar="TOKEN",
            envvar="TIERLINE_ROUTER_TOKEN",
            help="Bearer token. Other users see a flag in the list of processes: prefer the variable, or a file.",
            show_default=False,
        ),
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            envvar="TIERLINE_ROUTER_TOKEN_FILE",
            help="File that holds the bearer token, such as the router's admin_token_file.",
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca",
            metavar="FILE",
            envvar="TIERLINE_ROUTER_CA",
            help="Certificates to trust, in PEM, for an https:// address.",
            show_default="the system's",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document, fields as in the HTTP API.")] = False,
) -> tuple[RouterAdmin, bool]:
    """Return where the options that every command has lead, and whether it prints JSON.

    Raises
    ------
    UsageError
        The token's file cannot be read, or there are two tokens.
    """
    return RouterAdmin(url.rstrip("/"), read_token(token, token_file, "TIERLINE_ROUTER_TOKEN"), ca), json


def asks_router(work: Callable[Concatenate[RouterAdmin, "Output", P], Awaitable[None]]) -> Callable[..., None]:
    """Make a command of a coroutine that asks a router.

    The command has the coroutine's parameters but the first two, and those of :func:`options` after them.
    """

    def run(target: tuple[RouterAdmin, bool], given: dict[str, Any]) -> None:
        from tierline.cli.printing import Output

        router, is_json = target
        try:
            asyncio.run(work(router, Output(is_json=is_json), **given))  # type: ignore[arg-type,call-arg]
        except AccessDenied as error:
            raise UsageError(f"{error} Tokens are taken from --token-file and TIERLINE_ROUTER_TOKEN.") from error

    return with_options(work, options, run)
