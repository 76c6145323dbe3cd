"""The port with the metrics: what it answers, and to whom when more ask than it has connections.

Rule: nobody is shut out by those who connect and ask nothing. Kubernetes asks here whether the proxy lives, and kills
it when it hears nothing; so who comes is let in, and one of those that take the most room goes.
"""

import asyncio
from collections import Counter
from itertools import count

from tierline.proxy.departing import Departure
from tierline.proxy.services import ProxyServices
from tierline.router.http.heads import RequestHead
from tierline.router.keys import ApiKey
from tierline.router.proxy.client import ClientConnection
from tierline.router.proxy.serving import Dispatch

_opened = count()


class PageConnection(ClientConnection):
    """A connection to the port with the metrics.

    Parameters
    ----------
    page
        What it shares with the others.
    dispatch
        Says what becomes of a request.
    """

    __slots__ = ("_host", "_opened", "_page")

    def __init__(self, page: ProxyServices, dispatch: Dispatch) -> None:
        super().__init__(page, dispatch)
        self._page = page
        self._opened = next(_opened)
        self._host = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        self._host = (transport.get_extra_info("peername") or ("",))[0]
        others = [other for other in self._page.clients if isinstance(other, PageConnection)]
        if len(others) >= self._page.config.connections:
            self._make_room(others)
        super().connection_made(transport)

    def _make_room(self, others: "list[PageConnection]") -> None:
        """End a connection of the address that has the most: one without a request before one with, the oldest."""
        held = Counter(other._host for other in others)
        leaving = min(others, key=lambda each: (-held[each._host], each._exchange is not None, each._opened))
        self._page.metrics.connections_refused += 1
        self._page.clients.discard(leaving)
        leaving.abort()


def show(
    page: ProxyServices,
    client: ClientConnection,
    head: RequestHead,
    body: bytes,  # noqa: ARG001
    held_bytes: int,
    key: ApiKey | None,  # noqa: ARG001
) -> Departure | None:
    """Answer a request."""
    if head.method == b"GET" and head.path == b"/drain":
        return Departure(page, client, held_bytes)
    without_body = head.method == b"HEAD"
    if head.method not in (b"GET", b"HEAD") or head.path not in (b"/metrics", b"/healthz"):
        client.write_error(
            404, "There are GET /metrics, /healthz and /drain here.", "not_found", keep_alive=head.keep_alive
        )
        return None
    content, content_type = page.metrics.exposition() if head.path == b"/metrics" else (b"ok\n", b"text/plain")
    client.write_reply(200, content, content_type=content_type, keep_alive=head.keep_alive, without_body=without_body)
    return None
