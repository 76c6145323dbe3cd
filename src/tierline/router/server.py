"""The router as a program: puts the parts together, listens, sweeps deadlines, and stops in order."""

import asyncio
import contextlib
import gc
import signal
import time
from collections.abc import AsyncIterator, Callable
from functools import partial

import uvloop

from tierline import logs
from tierline.duties import Duties
from tierline.router.admin.access import AdminAccess
from tierline.router.admin.api import AdminApi
from tierline.router.choosing import Choosing
from tierline.router.config import RouterConfig
from tierline.router.dashboard.watching import Dashboard
from tierline.router.discovery import Discovery, FileSource, Source, StaticSource
from tierline.router.discovery.kubernetes import kubernetes_sources
from tierline.router.endpoints import Endpoint, Endpoints
from tierline.router.exact import ExactRouting
from tierline.router.health import HealthChecker
from tierline.router.listening import Listener
from tierline.router.membership import Membership
from tierline.router.metrics import RouterMetrics
from tierline.router.outliers import OutlierDetector
from tierline.router.process import keep_freed_memory, raise_file_limit
from tierline.router.proxy.client import ClientConnection
from tierline.router.proxy.dispatch import dispatch
from tierline.router.proxy.services import Services
from tierline.router.proxy.upstream import UpstreamPool
from tierline.router.specs import MAX_ENDPOINTS
from tierline.router.tracing.requests import SERVICE_NAME, RequestTracing
from tierline.router.workers import supervisor
from tierline.router.workers.team import Team
from tierline.tracing.tracer import open_tracer

log = logs.get(__name__)

DUTIES = ("deadlines", "connections", "endpoints", "queue", "files", "health", "discovery", "dashboard")
"""What a router has to do beside serving requests."""
SWEEP_SECONDS = 0.25
"""Between two looks at all deadlines. One sweep costs less than a timer for each request, and is late by as much."""
RELOAD_SECONDS = 1.0
"""Between two looks at files with keys and certificates."""
FILES_BESIDE_CLIENTS = 64
"""Descriptors kept for listening, logs and the interpreter itself."""
FILES_OF_ENDPOINT = 2
FILES_OF_EVENTS = 4
"""Descriptors kept for each endpoint: for its health checks, and with ``kvaware`` for its two sockets of events."""
ENDPOINTS_ADDED = 16
"""Endpoints beside those named that an operator may add before descriptors must be taken from clients."""
SHARE_FOR_ENDPOINTS = 4
"""No more than one of so many descriptors is kept for endpoints that are still to come."""


class RouterServer:
    """A running router.

    Attributes
    ----------
    host, port
        Where it listens.
    """

    def __init__(
        self,
        services: Services,
        listener: Listener,
        health: HealthChecker,
        membership: Membership,
        discovery: Discovery,
        duties: Duties,
        exact: ExactRouting | None,
    ) -> None:
        self.services = services
        self._duties = duties
        self.membership = membership
        self._listener = listener
        self.outliers = OutlierDetector(services.endpoints, services.clock())
        self._health = health
        self._discovery = discovery
        self._exact = exact
        self._sweeper = asyncio.create_task(self._sweep())
        self._reloader = asyncio.create_task(self._reload())
        self.host, self.port = listener.host, listener.port

    async def stop(self, timeout_s: float) -> None:
        """Take no new requests, let running ones end for up to ``timeout_s``, close everything."""
        services = self.services
        services.is_draining = True
        self._listener.close()
        self._reloader.cancel()
        if services.dashboard is not None:
            services.dashboard.close()
        for client in list(services.clients):
            client.shut_down()
        deadline = services.clock() + timeout_s
        while services.clients and services.clock() < deadline:  # noqa: ASYNC110  (happens once, at the end)
            await asyncio.sleep(0.02)
        self._sweeper.cancel()
        await self._discovery.stop()
        await self._health.stop()
        if self._exact is not None:
            await self._exact.close()
        for client in list(services.clients):
            client.abort()
        for pool in services.pools.values():
            pool.close()
        await asyncio.sleep(0)  # connections are lost in the next turn of the loop
        if services.spans is not None:
            await services.spans.tracer.close()

    async def _sweep(self) -> None:
        services = self.services
        limit_s = services.config.total_timeout_s
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = services.clock()
            for client in [client for client in services.clients if client.deadline < now]:
                with self._duties.guarded("deadlines"):
                    client.expired()
            if limit_s:
                for client in list(services.clients):
                    with self._duties.guarded("deadlines"):
                        client.end_if_begun_before(now - limit_s)
            with self._duties.guarded("connections"):
                for pool in services.pools.values():
                    pool.close_idle()
            with self._duties.guarded("endpoints"):
                self.membership.sweep()
                self.outliers.sweep(now)
                services.alias_watch.sweep()
            with self._duties.guarded("queue"):
                if services.admission is not None:
                    services.admission.pump()

    async def _reload(self) -> None:
        """Follow the files with keys and certificates; in a thread, for reading many keys takes a while."""
        services = self.services
        every = (services.keys, services.certificate, services.endpoint_tls, services.endpoint_keys)
        files = [file for file in every if file is not None]
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            with self._duties.guarded("files"):
                for file in files:
                    await asyncio.to_thread(file.reload)
                await self._listener.renew()


async def start(
    config: RouterConfig, team: Team | None = None, clock: Callable[[], float] = time.monotonic
) -> RouterServer:
    """Start a router in the running loop; for a ``team``, one of its workers, which listens when it is told to.

    By ``clock`` requests and connections have their time, and endpoints are passed over.

    Raises
    ------
    EnvironmentTooSmall
        When the address cannot be had.
    UsageError
        When the endpoints file or the file with the admin token cannot be used, or what ``kvaware`` needs is missing.
    """
    kv_events = dict(entry.split("=", 1) for entry in config.kv_events)
    node_events = dict(entry.split("=", 1) for entry in config.node_events)
    sources: list[Source] = [StaticSource(config.endpoints, kv_events, node_events)]
    file = FileSource(config.endpoints_file) if config.endpoints_file else None
    if file is not None:
        sources.append(file)
    duties = Duties(DUTIES)
    endpoints = Endpoints() if team is None else team.endpoints
    cluster = await kubernetes_sources(config, duties, endpoints.is_up)
    sources.extend(cluster)
    choosing = Choosing.of(config, endpoints)
    metrics = RouterMetrics(choosing, endpoints)
    services = Services(config, endpoints, choosing, metrics, clock, team=team)

    def build_pool(endpoint: Endpoint) -> UpstreamPool:
        return UpstreamPool(
            endpoint,
            connect_timeout_s=config.connect_timeout_s,
            head_bytes=config.head_bytes,
            tls=services.endpoint_tls,
            clock=services.clock,
        )

    metrics.failed_duties = duties.failures
    health = HealthChecker(
        choosing,
        duties,
        interval_s=config.health_interval_s,
        timeout_s=config.health_timeout_s,
        tls=services.endpoint_tls,
        keys=services.endpoint_keys,
        clock=services.clock,
    )
    membership = Membership(endpoints, choosing, services.pools, build_pool, services.clock)
    membership.companions.append(health)
    exact = ExactRouting.of(services)
    if exact is not None:
        services.tokens = exact.ladder
        membership.companions += (exact.follower, exact.stores)
        metrics.show(exact.follower)
        metrics.show(exact.stores)
    tracer = open_tracer(
        SERVICE_NAME, config.traces_file, to_collector=config.opentelemetry, share=config.trace_share or 1.0
    )
    if tracer is not None:
        services.spans = RequestTracing(tracer, services.clock)
        metrics.show(services.spans)
    discovery = Discovery(sources, membership, duties)
    access = AdminAccess(config.admin_token_file, config.host)
    services.admin = AdminApi(access, services, membership)
    if config.dashboard:
        stores = exact.stores if exact is not None else None
        services.dashboard = Dashboard(services, access, services.admin, duties, stores)
    metrics.gauges |= {
        "tierline_router_client_connections": lambda: len(services.clients),
        "tierline_router_idle_upstream_connections": lambda: sum(map(len, services.pools.values())),
        "tierline_router_held_body_bytes": lambda: services.held_bytes,
        "tierline_router_queued_requests": lambda: services.admission.waiting if services.admission else 0,
        "tierline_router_index_bytes": lambda: choosing.index_bytes,
        "tierline_router_index_placements": lambda: choosing.index_placements,
        "tierline_router_kubernetes_sources_behind": lambda: sum(source.is_behind for source in cluster),
    }
    metrics.counters |= {
        "tierline_router_endpoints_file_failures_total": lambda: file.failures if file else 0,
        "tierline_router_kubernetes_failures_total": lambda: sum(source.failures for source in cluster),
    }
    if team is not None:
        metrics.counters["tierline_router_unshared_total"] = team.dropped.total
    serve_request = partial(dispatch, services)
    listener = Listener(lambda: ClientConnection(services, serve_request), services.certificate)
    if team is None:
        await listener.listen(config.host, config.port)
    else:
        team.join(services, membership, listener, duties)
    await health.start()
    await discovery.start()
    return RouterServer(services, listener, health, membership, discovery, duties, exact)


@contextlib.asynccontextmanager
async def running(
    config: RouterConfig, team: Team | None = None, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[RouterServer]:
    """Run a router, or a worker of one, for the time of a ``with`` block; the rest as :func:`start` takes it."""
    server = await start(config, team, clock)
    try:
        yield server
    finally:
        await server.stop(config.shutdown_timeout_s)
        if team is not None:
            await team.close()


async def serve(config: RouterConfig) -> None:
    """Route until SIGTERM or SIGINT; running requests get ``shutdown_timeout_s`` to end."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with running(config) as server:
        gc.collect()
        gc.freeze()  # what is alive now stays: no collection need look at it again
        log.info(
            "router is ready",
            url=f"{'http' if config.tls_certificate is None else 'https'}://{server.host}:{server.port}",
            strategy=config.strategy,
            endpoints=[endpoint.url for endpoint in server.services.endpoints.all],
        )
        await stopped.wait()
        log.info("router stops", running=len(server.services.clients))


def run(config: RouterConfig) -> None:
    """Run the router as a program."""
    logs.configure(config.log_level, json=config.log_format == "json")
    if config.workers > 1 or config.gossips:
        supervisor.run(config)
        return
    keep_freed_memory()
    uvloop.run(serve(within_files(config, raise_file_limit())))


def within_files(config: RouterConfig, files: int) -> RouterConfig:
    """Return ``config`` with no more ``connections`` than ``files`` descriptors serve: each takes two.

    Endpoints take some first: those that are named, and those that a file, a cluster or an operator may bring.
    """
    each = FILES_OF_ENDPOINT + FILES_OF_EVENTS * (config.strategy == "kvaware")
    is_fed = config.endpoints_file is not None or config.kubernetes_services or config.kubernetes_pods
    coming = MAX_ENDPOINTS - len(config.endpoints) if is_fed else ENDPOINTS_ADDED
    for_endpoints = each * len(config.endpoints) + min(each * coming, files // SHARE_FOR_ENDPOINTS)
    connections = max(1, (files - FILES_BESIDE_CLIENTS - for_endpoints) // 2)
    if config.connections <= connections:
        return config
    log.warning("fewer connections than configured: too few files may be open", connections=connections, files=files)
    return config.model_copy(update={"connections": connections})
