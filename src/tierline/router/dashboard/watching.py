"""Answers what is asked under ``/dashboard``, and tells everybody who watches how the router does, once a second.

Rules
-----
- **Nobody watches, nothing is done** but counting: what a snapshot is made of is gathered while there are watchers,
  once for all of them.
- **A watcher waits for nobody and delays nobody**: one that does not read misses snapshots.
- **The stream is no request that a stop waits for**: it ends when the router is told to stop.
"""

import asyncio
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec

from tierline.duties import Duties
from tierline.router.admin.access import AdminAccess
from tierline.router.admin.api import AdminApi
from tierline.router.dashboard import reading
from tierline.router.dashboard.documents import BucketView, EndpointView, Share, Snapshot, StoreView
from tierline.router.dashboard.files import PAGE, SAFETY, read_files
from tierline.router.dashboard.history import History, requests_per_s, ttft_of, view_of
from tierline.router.events.source import SourceState
from tierline.router.http.heads import RequestHead
from tierline.router.http.replies import status_line

if TYPE_CHECKING:
    from tierline.router.events.following_stores import StoreFollower
    from tierline.router.proxy.client import ClientConnection
    from tierline.router.proxy.services import Services

EVENTS = PAGE + b"/events"
DUTY = "dashboard"
INTERVAL_S = 1.0
ENGINES_A_SECOND = 16
"""Of more endpoints, each is asked less often."""
MOST_WATCHERS = 32
LAST_MOMENTS = 2
"""What a watcher who has the others is told anew: the one that goes on, and the one that has just ended."""
_HEAD = (
    status_line(200) + b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-store\r\n"
    b"x-accel-buffering: no\r\n" + SAFETY + b"connection: close\r\n\r\n"
)
"""No length and no chunks: the connection ends with the stream, as clients of HTTP/1.0 understand it too."""
_DOUBTS = {
    SourceState.EXACT: "",
    SourceState.BOOT: "its events have not told all of it yet",
    SourceState.DEGRADED: "at least these: some events were missed, or more is in it than the index has room for",
    SourceState.LOST: "no events reach the router any more: this is what it had before",
}
"""How far a store's events can be believed."""


class Watcher:
    """One stream, as its client's connection sees it.

    Invariant: it is among ``_watchers`` of its dashboard from :meth:`start` to its end.
    """

    def __init__(self, dashboard: "Dashboard", client: "ClientConnection", held_bytes: int) -> None:
        self._dashboard = dashboard
        self._client = client
        self._held_bytes = held_bytes
        self._is_paused = False
        self.has_history = False

    def start(self) -> None:
        """Begin."""
        self._client.write(_HEAD)
        self._dashboard.joined(self)

    def tell(self, event: bytes, *, whole: bool) -> None:
        """Send an event, or leave it out where the client is behind; ``whole``: it has all of the history."""
        if self._is_paused:
            self.has_history = False
            return
        self.has_history = self.has_history or whole
        self._client.write(event)

    def end(self) -> None:
        """There is no more to come."""
        self._leave()
        self._client.exchange_ended(keep_alive=False)

    def client_gone(self) -> None:
        """Nobody watches here any more."""
        self._leave()

    def expired(self) -> None:
        """Nothing could be told for longer than a stream may be silent."""
        self.end()

    def end_if_begun_before(self, time: float) -> None:
        """What one request may take in all does not hold for a stream without an end."""

    def client_paused(self) -> None:
        """The client does not read as fast as it is told."""
        self._is_paused = True

    def client_resumed(self) -> None:
        """It caught up."""
        self._is_paused = False

    def _leave(self) -> None:
        self._dashboard.left(self, self._held_bytes)
        self._held_bytes = 0


class Dashboard:
    """The page of one process.

    Invariant: ``_tasks`` run exactly as long as there are ``_watchers``.

    Parameters
    ----------
    services
        What is shown.
    access
        Who may see it.
    admin
        Knows what ``/admin`` says of this process.
    duties
        Counts what fails.
    followed
        Knows what node stores hold by their events; ``None`` where nobody listens to any.

    Raises
    ------
    UsageError
        The file with the token of node stores cannot be used.
    """

    def __init__(
        self,
        services: "Services",
        access: AdminAccess,
        admin: AdminApi,
        duties: Duties,
        followed: "StoreFollower | None" = None,
    ) -> None:
        self.history = History()
        self._started_at = time.time()
        self._services = services
        self._access = access
        self._admin = admin
        self._duties = duties
        self._followed = followed
        self._files = read_files()
        config = services.config
        self._reader = reading.Reader(
            services, config.dashboard_stores, reading.StoreToken(config.dashboard_store_token_file)
        )
        self._watchers: set[Watcher] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_closed = False
        if services.team is not None:
            services.team.answer("dashboard", lambda: msgspec.json.encode(self._own_share()))

    # Requests ---------------------------------------------------------------------------------------------------------

    def answer(self, client: "ClientConnection", head: RequestHead, held_bytes: int) -> Watcher | None:
        """Answer a request, or return the stream to start."""
        refusal = self._access.refusal(head, "/dashboard", has_page=True, is_open=head.path != EVENTS)
        if refusal is not None:
            extra = b"www-authenticate: Bearer\r\n" if refusal.status == HTTPStatus.UNAUTHORIZED else b""
            self._refuse(client, head, refusal.status, refusal.message, extra)
            return None
        file = self._files.get(head.path)
        if file is None and head.path != EVENTS:
            self._refuse(client, head, HTTPStatus.NOT_FOUND, f"There is no {head.path.decode('latin-1')} here.")
            return None
        if head.method != b"GET" and (head.method != b"HEAD" or file is None):
            allowed = b"GET" if file is None else b"GET, HEAD"
            message = f"{head.path.decode('latin-1')} takes {allowed.decode()}, not {head.method.decode('latin-1')}."
            self._refuse(client, head, HTTPStatus.METHOD_NOT_ALLOWED, message, b"allow: %b\r\n" % allowed)
            return None
        if file is not None:
            self._services.metrics.request_answered(DUTY, 200)
            client.write_reply(
                200,
                file.content,
                content_type=file.content_type,
                keep_alive=head.keep_alive,
                extra=(b"cache-control: no-cache\r\n", SAFETY),
                without_body=head.method == b"HEAD",
            )
            return None
        if self._is_closed or len(self._watchers) >= MOST_WATCHERS:
            why = "The router stops." if self._is_closed else f"{MOST_WATCHERS} watch already."
            self._refuse(client, head, HTTPStatus.SERVICE_UNAVAILABLE, why, b"retry-after: 5\r\n")
            return None
        self._services.metrics.request_answered(DUTY, 200)
        return Watcher(self, client, held_bytes)

    def _refuse(
        self, client: "ClientConnection", head: RequestHead, status: HTTPStatus, message: str, extra: bytes = b""
    ) -> None:
        self._services.metrics.request_refused(status)
        client.write_error(
            status,
            message,
            status.name.lower(),
            keep_alive=head.keep_alive,
            extra=(extra, SAFETY),
            without_body=head.method == b"HEAD",
        )

    # Watchers ---------------------------------------------------------------------------------------------------------

    def joined(self, watcher: Watcher) -> None:
        """Tell one more from now on."""
        self._watchers.add(watcher)
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._duties.keep_up(DUTY, work)) for work in (self._read_others, self._tell_all)
            ]

    def left(self, watcher: Watcher, held_bytes: int) -> None:
        """One is gone, and what its request held is free."""
        self._services.held_bytes -= held_bytes
        self._watchers.discard(watcher)
        if not self._watchers:
            for task in self._tasks:
                task.cancel()
            self._tasks = []

    def close(self) -> None:
        """End all streams; the router stops."""
        self._is_closed = True
        for watcher in list(self._watchers):
            watcher.end()

    async def _read_others(self) -> None:
        async with reading.session() as http:
            while True:
                await self._reader.read(http)
                await asyncio.sleep(INTERVAL_S * max(1.0, len(self._services.endpoints.all) / ENGINES_A_SECOND))

    async def _tell_all(self) -> None:
        while True:
            share = await self._gather()
            snapshot = self._snapshot(share)
            news = whole = _event(snapshot)
            if not all(watcher.has_history for watcher in self._watchers):
                snapshot.moments = [view_of(moment) for moment in share.moments]
                whole = _event(snapshot)
            for watcher in list(self._watchers):
                watcher.tell(news if watcher.has_history else whole, whole=not watcher.has_history)
            await asyncio.sleep(INTERVAL_S)

    async def _gather(self) -> Share:
        own, team = self._own_share(), self._services.team
        if team is None:
            return own
        try:
            said = await team.ask("dashboard", msgspec.json.encode(own))
        except TimeoutError:  # better a part of the picture than none
            return own
        return msgspec.json.decode(said, type=Share)

    def _own_share(self) -> Share:
        services, history = self._services, self.history
        return Share(
            endpoints=self._admin.own_endpoints(),
            affinity=self._admin.own_affinity(),
            rows=history.rows(),
            moments=history.moments(),
            flows=history.flows(),
            failures=dict(history.failures),
            waiting=services.admission.waiting if services.admission is not None else 0,
            index_bytes=services.choosing.index_bytes,
            started_at=self._started_at,
        )

    def _snapshot(self, share: Share) -> Snapshot:
        now = time.time()
        return Snapshot(
            time=now,
            started_at=share.started_at,
            workers=share.workers,
            arms=[arm for arm in share.affinity.arms if arm.share or arm.requests],
            turned_off=share.affinity.turned_off,
            aliases=[alias.alias for alias in share.endpoints.aliases if alias.is_served],
            endpoints=[
                EndpointView(state=state, engine=self._reader.engines.get(state.url))
                for state in share.endpoints.endpoints
            ],
            stores=[*self._reader.stores, *self._told_by_events()],
            rows=share.rows,
            moments=[view_of(moment) for moment in share.moments[-LAST_MOMENTS:]],
            hit=ttft_of(*(moment.hits for moment in share.moments)),
            miss=ttft_of(*(moment.misses for moment in share.moments)),
            flows=share.flows,
            requests_per_s=requests_per_s(share.moments, now),
            failures=share.failures,
            waiting=share.waiting,
            index_bytes=share.index_bytes,
        )

    def _told_by_events(self) -> list[StoreView]:
        """Return what events tell of stores, where none is named that can be asked."""
        if self._followed is None or self._services.config.dashboard_stores:
            return []
        return [
            StoreView(
                name=address.partition("?")[0],
                source="index",
                wrong=_DOUBTS[store.standing],
                objects=sum(store.objects.values()),
                buckets=[
                    BucketView(bucket=bucket, objects=objects, bytes=None)
                    for bucket, objects in sorted(store.objects.items())
                ],
            )
            for address, store in self._followed.contents().items()
        ]


def _event(snapshot: Snapshot) -> bytes:
    return b"event: snapshot\ndata: %b\n\n" % msgspec.json.encode(snapshot)
