"""The admission webhook as a server; what it answers is :mod:`tierline.operator.admission`'s."""

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Collection

import msgspec
from aiohttp import web

from tierline import logs
from tierline.errors import ConfigurationError, EnvironmentTooSmall
from tierline.operator.admission import PATH, review
from tierline.operator.catalogue import Catalogue

log = logs.get(__name__)

LARGEST_BODY_BYTES = 8 * 1024 * 1024
"""Two objects of etcd's 1.5 MiB, their JSON escaped at worst."""


@contextlib.asynccontextmanager
async def serving(
    address: str,
    context: Callable[[], ssl.SSLContext],
    catalogue: Callable[[], Catalogue],
    watched: Collection[str] = (),
) -> AsyncIterator[str]:
    """Answer the API server for the time of a ``with`` block, at the ``host:port`` that is given back.

    Parameters
    ----------
    address
        ``HOST:PORT``; port 0 is any that is free.
    context
        Gives what connections are encrypted with from now on; its certificate is for the Service's name, or the URL's.
    catalogue
        Gives the catalogue of the moment.
    watched
        Namespaces whose resources are looked at; none: all.

    Raises
    ------
    UsageError
        The address is none, or cannot be had.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise ConfigurationError("webhook", address, "HOST:PORT")

    async def answer(request: web.Request) -> web.Response:
        try:
            asked = msgspec.json.decode(await request.read(), type=dict)
            body = review(asked, catalogue(), watched)
        except ValueError as error:  # also what msgspec says of other JSON
            return web.Response(status=400, text=f"{error}\n")
        if not body["response"]["allowed"]:
            log.info("resource refused", problem=body["response"]["status"]["message"])
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")

    def newest(shaken: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        # So a certificate that was made anew is shown from the next connection on.
        shaken.context = context()

    first = context()
    first.sni_callback = newest
    app = web.Application(client_max_size=LARGEST_BODY_BYTES)
    app.router.add_post(PATH, answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host.strip("[]"), int(port), ssl_context=first).start()
        except OSError as error:
            raise EnvironmentTooSmall(f"cannot listen on {address}: {error.strerror or error}") from error
        yield "{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()
