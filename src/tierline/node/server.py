"""The node store as a process: sockets bound, store opened, then served until a signal; :func:`run` is all of it.

Order matters. Ports are bound before the segment is touched, so that a port in use costs nothing; they listen only
after adoption, so that who connects is served. The UNIX socket is bound after it, under the segment's lock: one that
does not listen yet is taken for a dead node's by whoever starts next, and removed. On SIGTERM the store is closed
**before** the connections are: the slots of clients that may still be writing stay in the journal, as orphans of the
next process. A segment that another process has cut short ends the node: nothing of it may be touched any more. One
that a call of a tier holds which does not end stays mapped and locked to the very end of the process, which then comes
at once.
"""

import asyncio
import contextlib
import errno
import faulthandler
import ipaddress
import os
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from tierline import logs
from tierline.certificates import Certificate
from tierline.configuration import format_byte_size
from tierline.duties import Duties
from tierline.errors import (
    AccessDenied,
    EnvironmentTooSmall,
    SegmentError,
    SegmentHeld,
    TierlineError,
    UsageError,
    WireError,
)
from tierline.node.access import Access, Grant, Pass, Right
from tierline.node.admin import Administration, orphan_entry
from tierline.node.below import Below, Entrance, bind_entrance, require_tiers
from tierline.node.config import NodeConfig, SegmentConfig
from tierline.node.garbage import only_young_garbage
from tierline.node.http_protocol import HttpConnection, HttpLimits
from tierline.node.leftovers import is_stale_socket, remove_stale_socket
from tierline.node.listening import BACKLOG, ConnectionLimits, Listener
from tierline.node.local_protocol import LocalConnection
from tierline.node.metrics import NodeMetrics
from tierline.node.publishing import EventPublisher
from tierline.node.segments import Segments, ServedSegment
from tierline.node.service import NodeService
from tierline.node.turns import ReceivingTurns
from tierline.store import NO_PID, PAGE_BYTES, SegmentOptions, Store, StoreLimits
from tierline.tracing.tracer import open_tracer
from tierline.wire.framing import FrameDecoder, encode_frame
from tierline.wire.messages import FRAME_HEADER_BYTES, MAX_NAME_BYTES, PROTOCOL_VERSION, Failed, Hello, Welcome

log = logs.get(__name__)

DUTIES = (
    "deadlines",
    "segment",
    "orphans",
    "tokens",
    "certificate",
    "clock",
    "room",
    "scrub",
    "watch",
    "events",
    "tiers",
    "pool",
    "keep",
)
"""What a node has to do beside serving requests."""
SERVICE_NAME = "tierline-node"
EXPIRE_INTERVAL_S = 0.25
WATCH_INTERVAL_S = 1.0
HANDSHAKE_TIMEOUT_S = 5.0
MAX_HELLO_BYTES = 4096
SCRATCH_BYTES = 256 * 1024
_PEER_CREDENTIALS = struct.Struct("3i")


def run(config: NodeConfig) -> None:
    """Serve until SIGTERM or SIGINT; returns after an orderly stop.

    Raises
    ------
    UsageError
        A port or socket in use, a segment that does not fit: found before anything is served.
    SegmentError
        The segment cannot be adopted, or was cut short by another process.

    Where a call of a tier does not end, neither does this function: the process exits with status 1.
    """
    logs.configure(config.log_level, json=config.log_format == "json")
    faulthandler.enable()  # a SIGBUS, of a segment cut short a moment ago, says at least where
    factory = uvloop.new_event_loop if config.event_loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            runner.run(serve(config))
        except SegmentHeld as held:
            log.error("the node ends by force", error=str(held), former=str(held.__context__ or ""))
            os._exit(1)  # an orderly exit waits for every thread, and so for the call that does not end


async def serve(config: NodeConfig) -> None:
    """Serve until SIGTERM or SIGINT, which it handles while it runs; errors as of :func:`run`."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with running_node(config) as node, only_young_garbage():
            if (
                config.tokens_file or config.tls_certificate or config.pool_tls_certificate
            ):  # else a hang-up ends the node, as any program
                loop.add_signal_handler(signal.SIGHUP, node.hang_up)
            log.info(
                "node ready",
                url=f"{'https' if config.tls_certificate else 'http'}://{config.host}:{config.port}",
                socket=str(config.socket_path()),
                segment=str(config.shared_memory_directory / config.shared_memory_name),
                capacity=format_byte_size(config.capacity),
                adopted=sum(segment.service.store.stats().adopted for segment in node.segments),
            )
            await node.serve_until(stop)
            log.info("node stopping")
            await node.drain(config.drain_s)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def running_node(config: NodeConfig) -> AsyncIterator["Node"]:
    """Open the store and serve it for the length of the block, without signal handlers."""
    require_tiers(config)
    access = Access(config.tokens_file)
    certificate = (
        Certificate(config.tls_certificate, config.tls_key, config.tls_client_ca)
        if config.tls_certificate is not None and config.tls_key is not None
        else None
    )
    with contextlib.ExitStack() as sockets:
        http = sockets.enter_context(_bind_http(config, access, certificate))
        is_stale_socket(config.socket_path())  # raises where another node listens, before the segment is touched
        entrance = bind_entrance(config)
        if entrance is not None:
            sockets.enter_context(entrance.sock)
        events = EventPublisher(config.kv_events) if config.kv_events is not None else None
        if events is not None:
            sockets.callback(events.close)
        stores = await asyncio.to_thread(_open_stores, config)
        node = Node(config, stores, access, certificate, events, entrance)
        try:
            await node.below.start()
            local = sockets.enter_context(_bind_local(config.socket_path(), config.socket_mode))
            sockets.callback(config.socket_path().unlink, missing_ok=True)
            node.start(http, local)
            yield node
        finally:
            await node.stop()


class Node:
    """One node store on a running loop.

    Parameters
    ----------
    config
        Its settings.
    stores
        The open stores, in the order of the configuration's segments; closed by :meth:`stop`.
    access
        Who may do what.
    certificate
        What HTTP is served with; ``None``: without TLS.
    events
        Told of what the stores hold; closed by the caller, after :meth:`stop`.
    entrance
        Where other nodes of a pool come in; ``None``: it is in none.
    """

    def __init__(
        self,
        config: NodeConfig,
        stores: Sequence[Store],
        access: Access,
        certificate: Certificate | None = None,
        events: EventPublisher | None = None,
        entrance: Entrance | None = None,
    ) -> None:
        self.access = access
        self._certificate = certificate
        self._events = events
        self.segments = Segments(
            [
                ServedSegment(segment.name, tuple(segment.buckets), service, Administration(service))
                for segment, service in zip(config.all_segments(), map(NodeService, stores), strict=True)
            ]
        )
        self.service = self.segments.first.service
        self._config = config
        self._started = time.monotonic()
        self._http_connections: set[HttpConnection] = set()
        self._local_connections: set[LocalConnection] = set()
        self._duties = Duties(DUTIES)
        self._tracer = open_tracer(SERVICE_NAME, config.traces_file, to_collector=config.opentelemetry)
        for segment in self.segments:
            segment.service.tracer = self._tracer
        self.below = Below(config, self.segments, self._duties, entrance, self._tracer)
        self._metrics = NodeMetrics(
            self.service,
            lambda: (len(self._http_connections), len(self._local_connections)),
            self._failed_reloads,
            self._certificate_expires,
            {segment.name: segment.service for segment in self.segments} if len(self.segments) > 1 else None,
            self._duties.failures,
            events,
            self.below.uses,
            self.below.members,
            self.below.source,
        )
        self._limits = HttpLimits(
            max_head_bytes=config.max_head,
            max_object_bytes=config.max_object or max(store.segment.size for store in stores),
            max_discarded_bytes=config.max_discarded,
            slowest_bytes_per_s=config.slowest_rate,
            keep_alive_s=config.keep_alive_s,
            head_timeout_s=config.head_timeout_s,
            body_timeout_s=config.body_timeout_s,
        )
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._turns = ReceivingTurns()
        self._tasks: set[asyncio.Task[None]] = set()
        self._greeting = 0
        if self._tracer is not None:
            self._metrics.show_spans(self._tracer.outcomes)
        self._name_troubles: dict[str, str] = {}
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self, http: socket.socket, local: socket.socket) -> None:
        """Listen on two bound sockets."""
        listener = Listener(
            http,
            self._http_connection,
            ConnectionLimits(
                self._config.max_connections, self._config.connections_per_address(), self._config.head_timeout_s
            ),
            self._certificate,
            self._metrics,
        )
        local.listen(BACKLOG)
        try:
            listener.listen()
        except OSError as error:  # bound by two, and the other was first to listen
            raise EnvironmentTooSmall(f"--port: {self._config.port} is in use: {error.strerror}") from error
        self._spawn(self._serve_for_good(listener.serve()))
        self._spawn(self._serve_for_good(self._accept_local(local)))
        self._spawn(self._duties.keep_up("clock", self._expire))
        for segment in self.segments:
            self._spawn(self._duties.keep_up("room", segment.service.keep_room))
            if scrub_rate := self._config.scrub_bytes_per_s(segment.service.store.segment.size):
                self._spawn(self._duties.keep_up("scrub", partial(segment.service.scrub, scrub_rate)))
        self._spawn(self._duties.keep_up("watch", self._watch))
        if self._events is not None:
            self._events.start([segment.service.store for segment in self.segments])
            self._spawn(self._duties.keep_up("events", self._events.serve_replays))

    async def serve_until(self, stop: asyncio.Event) -> None:
        """Wait for the event.

        Raises as soon as the node can serve no longer: ``SegmentError`` where another process has cut the segment
        short, or whatever ended the taking in of connections.
        """
        stopping = asyncio.ensure_future(stop.wait())
        ends: list[asyncio.Future[Any]] = [stopping, self._broken]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if self._broken.done():
            self._broken.result()

    def hang_up(self) -> None:
        """Read tokens and certificate again, changed or not."""
        self._spawn(self._reload(if_changed=False))

    async def drain(self, at_most_s: float) -> None:
        """Take no more writes, let the bodies under way come to their end, and peers what nobody else has."""
        for segment in self.segments:
            segment.service.accepts_writes = False
        await asyncio.gather(self._end_bodies(at_most_s), self.below.hand_over(at_most_s))

    async def _end_bodies(self, at_most_s: float) -> None:
        end = time.monotonic() + at_most_s
        while time.monotonic() < end and any(connection.is_writing for connection in self._http_connections):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Close the stores, all at once, and what is connected to them.

        HTTP goes first, for its bodies are received into a segment that another process may adopt as soon as it is
        closed; clients of the socket go last, for their slots stay open in the journal.

        Raises
        ------
        SegmentHeld
            A call of a tier goes on; what it may write to is neither closed nor unlocked, all else is.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for http_connection in list(self._http_connections):
            http_connection.close()
        held = await self.below.stop()
        for segment in self.segments:
            await asyncio.get_running_loop().run_in_executor(None, segment.service.stop_verifying)
        for segment in self.segments:
            segment.service.close(keeps_segment=segment.name in held)
        for local_connection in list(self._local_connections):
            local_connection.close()
        await asyncio.sleep(0)  # lets the transports say that they are closed
        if self._tracer is not None:
            await self._tracer.close()
        if held:
            raise SegmentHeld(f"{', '.join(held)}: a call of a tier does not end, and may still write to its pages")

    def stats(self, grant: Grant) -> bytes:
        """Return the document of ``GET /v1/stats``; names of others are for who has a right on every bucket."""
        config, store = self._config, self.service.store
        document = {
            "node": config.node_name,
            "epoch": store.epoch,
            "uptime_s": round(time.monotonic() - self._started, 3),
            "accepts_writes": self.service.accepts_writes,
            "segment": {
                "path": str(store.segment.path),
                "bytes": store.segment.size,
                "page_bytes": PAGE_BYTES,
                "relinks": self.service.relinks,
                "huge_bytes": store.segment.placement.huge_bytes,
                "numa_bytes": store.segment.placement.node_bytes,
            },
            "segments": [
                {
                    "name": segment.name,
                    "epoch": segment.service.store.epoch,
                    "buckets": segment.buckets,
                    "bytes": segment.service.store.segment.size,
                    "store": segment.service.store.stats(),
                }
                for segment in self.segments
                if grant.is_for_all or all(grant.allows(bucket, Right.READ) for bucket in segment.buckets)
            ],
            "eviction": config.eviction,
            "store": store.stats(),
            "verifications": self.service.verifications_by_result(),
            "http": {"connections": len(self._http_connections)},
            "socket": {
                "path": str(config.socket_path()),
                "connections": [
                    {
                        "client": connection.hello.client,
                        "pid": connection.owner.pid if connection.owner.pid < NO_PID else 0,
                        "writer": connection.hello.writer,
                        "segment": connection.segment.name,
                        "slots": connection.slots,
                        "reserved_bytes": connection.reserved_bytes,
                    }
                    for connection in (self._local_connections if grant.is_for_all else ())
                ],
            },
            "orphans": [
                msgspec.to_builtins(orphan_entry(orphan))
                for segment in (self.segments if grant.is_for_all else ())
                for orphan in segment.service.store.orphaned_owners()
            ],
        }
        return msgspec.json.encode(document)

    def cluster(self) -> bytes:
        """Return the document of ``GET /v1/cluster``."""
        return msgspec.json.encode(self.below.view())

    def metrics(self, grant: Grant) -> tuple[bytes, str]:
        """Return the text of ``GET /metrics`` and its content type; series by bucket as in :meth:`stats`."""
        return self._metrics.exposition(with_buckets=grant.is_for_all)

    # HTTP ---------------------------------------------------------------------------------------------------------

    def _http_connection(self, turned_away: str, gone: Callable[[], None]) -> HttpConnection:
        return HttpConnection(
            self.segments,
            self._limits,
            self._metrics,
            self.access,
            self,
            self._scratch,
            self._turns,
            self._http_connections,
            turned_away,
            gone,
        )

    # UNIX socket --------------------------------------------------------------------------------------------------

    async def _accept_local(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED):
                    raise
                log.error("cannot accept a client", error=str(error))
                await asyncio.sleep(WATCH_INTERVAL_S)
                continue
            if len(self._local_connections) + self._greeting >= self._config.max_connections:
                self._metrics.limit_reached("max_connections")
                reason = f"{self._config.max_connections} clients are connected already; try again later"
                self._turn_away(sock, "", WireError(reason))
                continue
            self._greeting += 1
            self._spawn(self._greet(sock))

    async def _greet(self, sock: socket.socket) -> None:
        connection = None
        try:
            connection = await self._welcome(sock)
        finally:
            self._greeting -= 1
        if connection is None:
            return
        self._local_connections.add(connection)  # at once: it counts as greeted or as connected, never as both
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        except BaseException:
            self._local_connections.discard(connection)
            raise

    async def _welcome(self, sock: socket.socket) -> LocalConnection | None:
        """Greet one client; returns the connection that its socket is for, ``None`` where it was turned away."""
        since = time.monotonic()
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                hello = await _receive_hello(sock)
        except (OSError, WireError, TimeoutError) as error:
            self._turn_away(sock, "", error)
            return None
        rights = Pass(self.access, hello.token)
        try:
            segment = self._segment_for(hello)
            rights.require_segment(segment.buckets, writable=hello.writer)
        except (AccessDenied, WireError) as error:
            self._turn_away(sock, hello.client, error)
            return None
        store = segment.service.store
        pid, uid, _ = _PEER_CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        )
        process = pid or NO_PID | (uid % NO_PID)
        # Whoever else says this name may be a reader, or another: whose slots they were may be writing into them.
        freed = store.release_orphans(hello.client, process) if hello.writer else 0
        if freed:
            log.info("a client is back after a restart of the node", client=hello.client, slots_freed=freed)
        welcome = Welcome(
            PROTOCOL_VERSION,
            self._config.node_name,
            store.epoch,
            store.segment.size,
            PAGE_BYTES,
            store.limits.max_ttl_s,
            bool(self.below.uses),
        )
        try:
            descriptor = store.segment.open_descriptor(writable=hello.writer)
        except OSError as error:
            reason = f"the node cannot open its segment any more: {error.strerror}; who changed {store.segment.path}?"
            self._turn_away(sock, hello.client, SegmentError(reason))
            return None
        try:
            socket.send_fds(sock, [encode_frame(welcome)], [descriptor])
        except OSError as error:
            self._turn_away(sock, hello.client, error)
            return None
        finally:
            os.close(descriptor)
        self._metrics.socket_request(Hello.__name__, "ok", time.monotonic() - since)
        return LocalConnection(
            segment,
            (lambda bucket: self.segments.of_bucket(bucket) is segment) if len(self.segments) > 1 else None,
            hello,
            process,
            rights,
            max_reserved_bytes=self._config.reserved_limit(store.segment.size),
            max_reserved_bytes_of_all=self._config.reserved_limit_of_all(store.segment.size),
            max_object_bytes=self._config.max_object,
            observer=self._metrics,
            engines=self._events,
            stats=self.stats,
            connections=self._local_connections,
        )

    def _segment_for(self, hello: Hello) -> ServedSegment:
        if hello.bucket and not hello.segment:
            return self.segments.of_bucket(hello.bucket)
        segment = self.segments.named(hello.segment)
        if segment is None:
            raise WireError(f"no segment {hello.segment!r} at this node")
        return segment

    def _turn_away(self, sock: socket.socket, client: str, error: Exception) -> None:
        """Close on a client that has not been welcomed; it is told why where it can have done something wrong."""
        outcome = type(error).__name__
        log.warning("a client was turned away", client=client, error=str(error) or outcome)
        self._metrics.socket_request(Hello.__name__, outcome, 0.0)
        if isinstance(error, TierlineError):
            with contextlib.suppress(OSError):
                sock.send(encode_frame(Failed(0, outcome, str(error))))
        sock.close()

    # Housekeeping -------------------------------------------------------------------------------------------------

    async def _expire(self) -> None:
        """Let the store's clock move on; measures how late the loop is on the way."""
        worst, since = 0.0, time.monotonic()
        while True:
            due = time.monotonic() + EXPIRE_INTERVAL_S
            await asyncio.sleep(EXPIRE_INTERVAL_S)
            now = time.monotonic()
            worst = max(worst, now - due)
            if now - since >= WATCH_INTERVAL_S:
                self.service.lag_s, worst, since = worst, 0.0, now
            for segment in self.segments:
                while segment.service.expire():  # noqa: ASYNC110
                    await asyncio.sleep(0)  # others have their turn

    async def _watch(self) -> None:
        """Every second: slow connections, the segment's name, clients of a former process that are gone, the pool."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            now = time.monotonic()
            for connection in list(self._http_connections):
                with self._duties.guarded("deadlines"):
                    connection.enforce_deadline(now)
            for segment in self.segments:
                try:
                    with self._duties.guarded("segment", lets_through=SegmentError):
                        segment.service.store.segment.require_whole()
                        self._keep_name(segment)
                except SegmentError as error:
                    self._break(error)
                with self._duties.guarded("orphans"):
                    _free_orphans_of_the_gone(segment.service.store)
            if self._events is not None:
                with self._duties.guarded("events"):
                    self._tell_pool(self._events)
            await self._reload()

    def _tell_pool(self, events: EventPublisher) -> None:
        """Say whether a hit here is one on others, and the other way round: else it is in a pool by its name only."""
        if self.below.shares_pool:
            events.joined_pool(self.below.pool_name)
        else:
            events.left_pool()

    def _keep_name(self, segment: ServedSegment) -> None:
        """Put the segment's name back where it was removed; where that cannot be done, say so and serve on."""
        try:
            is_relinked = segment.service.store.segment.relink_if_unlinked()
        except (OSError, SegmentError) as error:
            if str(error) != self._name_troubles.get(segment.name):
                log.error("new clients cannot open the segment", error=str(error))
            self._name_troubles[segment.name] = str(error)
            segment.service.is_named = False
            return
        self._name_troubles.pop(segment.name, None)
        segment.service.is_named = True
        if is_relinked:
            segment.service.relinks += 1
            log.warning("the segment's name was removed, by an LMCache client that exited perhaps; put back")

    async def _reload(self, *, if_changed: bool = True) -> None:
        with self._duties.guarded("tokens"):
            self.access.reload(if_changed=if_changed)
        if self._certificate is not None:
            with self._duties.guarded("certificate"):
                await asyncio.to_thread(self._certificate.reload, if_changed=if_changed)
        if self._config.pool_tls_certificate is not None:
            with self._duties.guarded("certificate"):
                await asyncio.to_thread(self.below.reload, if_changed=if_changed)

    def _failed_reloads(self) -> dict[str, int]:
        certificate = self._certificate
        return {"tokens": self.access.failed_reloads, "certificate": certificate.failed_reloads if certificate else 0}

    def _certificate_expires(self) -> float:
        return self._certificate.expires if self._certificate is not None else 0.0

    async def _serve_for_good(self, accepting: Coroutine[Any, Any, None]) -> None:
        """Take connections in; a node that cannot ends, and says why."""
        try:
            await accepting
        except Exception as error:  # noqa: BLE001  (serve_until raises it)
            self._break(error)

    def _break(self, error: Exception) -> None:
        if not self._broken.done():
            self._broken.set_exception(error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a task of the node failed", "exception": error, "task": task}
            )


def _open_stores(config: NodeConfig) -> list[Store]:
    """Open the store of each segment, or none."""
    stores: list[Store] = []
    try:
        for segment in config.all_segments():
            stores.append(_open_store(config, segment))  # noqa: PERF401  (those before are closed where one fails)
    except BaseException:
        for store in stores:
            store.close()
        raise
    return stores


def _open_store(config: NodeConfig, segment: SegmentConfig) -> Store:
    return Store.open(
        config.shared_memory_directory,
        segment.name,
        segment.capacity,
        eviction=segment.eviction or config.eviction,
        clock=time.monotonic,
        limits=StoreLimits(
            max_ttl_s=config.max_ttl_s,
            grace_s=config.grace_s,
            quarantine_s=config.quarantine_s,
            max_leases_per_holder=config.max_leases_per_client,
        ),
        rules=config.bucket_rules(),
        default_rules=config.default_rules(),
        options=SegmentOptions(segment.mode, segment.group, segment.numa_node, segment.huge_pages),
    )


def _bind_http(config: NodeConfig, access: Access, certificate: Certificate | None) -> socket.socket:
    host, port = config.host, config.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise UsageError(f"--host: got {host!r}, which is no address: {error.strerror}") from error
    is_loopback = ipaddress.ip_address(address[0]).is_loopback
    lets_anybody_in = access.is_open and (certificate is None or not certificate.asks_clients)
    if not is_loopback and not config.trusted_network and (lets_anybody_in or certificate is None):
        raise UsageError(
            f"--host: {host} can be reached from other machines, and this node "
            + ("lets clients without a token do something" if lets_anybody_in else "would get tokens unencrypted")
            + ": give it a tokens_file (or tls_client_ca) and tls_certificate, or set trusted_network where a "
            "NetworkPolicy or a firewall decides who can connect (docs/security.md)"
        )
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise EnvironmentTooSmall(
            f"--port: {host}:{port} cannot be used: {error.strerror}; stop what uses it or choose another"
        ) from error
    return sock


def _bind_local(path: Path, mode: int) -> socket.socket:
    remove_stale_socket(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(mode)
    except OSError as error:
        sock.close()
        raise EnvironmentTooSmall(f"--socket: {path} cannot be made: {error}; choose another path") from error
    sock.setblocking(False)
    return sock


async def _receive_hello(sock: socket.socket) -> Hello:
    sock.setblocking(False)
    decoder: FrameDecoder[Hello] = FrameDecoder(Hello)
    header = await _receive_exactly(sock, FRAME_HEADER_BYTES)
    length = int.from_bytes(header, "little")
    if not 0 < length <= MAX_HELLO_BYTES:
        raise WireError(f"a greeting of {length} bytes; allowed: 1 to {MAX_HELLO_BYTES}")
    [hello] = decoder.feed(header + await _receive_exactly(sock, length))
    if hello.version != PROTOCOL_VERSION:
        raise WireError(f"version {hello.version} of the protocol; this node speaks {PROTOCOL_VERSION}")
    if len(hello.client.encode()) > MAX_NAME_BYTES:
        raise WireError(f"a client's name of {len(hello.client.encode())} bytes; allowed: {MAX_NAME_BYTES}")
    return hello


async def _receive_exactly(sock: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        part = await asyncio.get_running_loop().sock_recv(sock, length - len(received))
        if not part:
            raise WireError("the client closed the connection before it had greeted")
        received += part
    return received


def _free_orphans_of_the_gone(store: Store) -> None:
    for orphan in store.orphaned_owners():
        if 0 < orphan.pid < NO_PID and not _is_alive(orphan.pid):
            freed = store.release_orphans(orphan.client, orphan.pid)
            log.info("a client of the former process is gone", client=orphan.client, slots_freed=freed)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, so it lives
        return True
    return True
