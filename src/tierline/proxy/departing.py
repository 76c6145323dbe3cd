"""``GET /drain``: whoever is about to end the pod asks first, and is answered once no invocation runs any more.

A model's server ends its answers half-way when it is told to stop. Kubernetes asks before it tells: by ``preStop``.
"""

from tierline.proxy.services import ProxyServices
from tierline.router.proxy.client import ClientConnection

QUIET_SECONDS = 3.0
"""Without an invocation; those who lead requests here take a moment to hear that the pod ends."""


class Departure:
    """A request that is answered when the model is idle.

    Invariants
    ----------
    - It is in ``departures`` of its page from :meth:`start` to its answer, or until its client is gone.

    Parameters
    ----------
    page, client
        Where it came in, and from whom.
    held_bytes
        What the request's body counts for.
    """

    def __init__(self, page: ProxyServices, client: ClientConnection, held_bytes: int) -> None:
        self._page = page
        self._client = client
        self._held_bytes = held_bytes
        self._quiet_since = 0.0

    def start(self) -> None:
        """See :class:`~tierline.router.proxy.serving.Cycle`."""
        self._page.held_bytes -= self._held_bytes
        self._quiet_since = self._page.clock()
        self._page.departures.add(self)

    def look(self) -> None:
        """Answer, if nothing ran or waited for long enough; called again and again."""
        page, now = self._page, self._page.clock()
        if page.metrics.concurrent or page.metrics.gauges["tierline_proxy_queued_requests"]():
            self._quiet_since = now
        elif now - self._quiet_since >= QUIET_SECONDS:
            self._end(200, b"no invocation runs\n")

    def expired(self) -> None:
        """See :class:`~tierline.router.proxy.serving.Cycle`."""
        self._end(503, b"invocations run still\n")

    def end_if_begun_before(self, time: float) -> None:
        """See :class:`~tierline.router.proxy.serving.Cycle`; it has no end of its own."""

    def client_gone(self) -> None:
        """See :class:`~tierline.router.proxy.serving.Cycle`."""
        self._page.departures.discard(self)

    def client_paused(self) -> None:
        """See :class:`~tierline.router.proxy.serving.Cycle`; the answer is short."""

    def client_resumed(self) -> None:
        """See :class:`~tierline.router.proxy.serving.Cycle`."""

    def _end(self, status: int, content: bytes) -> None:
        self._page.departures.discard(self)
        self._client.write_reply(status, content, content_type=b"text/plain", keep_alive=False)
        self._client.exchange_ended(keep_alive=False)
