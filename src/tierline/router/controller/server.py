"""The controller as a program: listens to engines, answers routers, shows its health, and stops in order."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import uvloop
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tierline import logs
from tierline.certificates import Certificate
from tierline.duties import Duties
from tierline.errors import EnvironmentTooSmall
from tierline.metrics import families
from tierline.router.controller.config import ControllerConfig
from tierline.router.controller.connection import Answering, RouterConnection
from tierline.router.controller.holdings import Holdings, Lmcache
from tierline.router.controller.lmcache import LmcacheListener
from tierline.router.controller.token import Token
from tierline.router.discovery import Discovery, FileSource, Source, StaticSource
from tierline.router.events.addresses import ControllerAddress, parse_controller
from tierline.router.events.following import source_families
from tierline.router.events.lmcache import LmcacheInstances
from tierline.router.events.lmcache_keys import VLLM_SEED, first_hash, scheme_of
from tierline.router.events.source import SourceState
from tierline.router.listening import Listener

log = logs.get(__name__)

DUTIES = ("files", "discovery", "lmcache")
"""What a controller has to do beside answering."""
RELOAD_SECONDS = 1.0
_PREFIX = "tierline_controller"


class ControllerServer:
    """A running controller.

    Attributes
    ----------
    holdings
        What it knows.
    addresses
        Where it listens for routers, with the ports that it got.
    http
        ``host:port`` of its health and metrics; empty for none.
    """

    def __init__(self, config: ControllerConfig) -> None:
        self._config = config
        self._duties = Duties(DUTIES)
        self._token = Token(config.token_file) if config.token_file else None
        self._certificate: Certificate | None = None
        if config.tls_certificate is not None and config.tls_key is not None:
            self._certificate = Certificate(config.tls_certificate, config.tls_key)
        sources: list[Source] = [StaticSource(config.endpoints, dict(_pairs(config.kv_events)))]
        if config.endpoints_file:
            sources.append(FileSource(config.endpoints_file))
        self.holdings = Holdings(config.kv_index_bytes, time.time, time.monotonic)
        self.answering = Answering(
            self.holdings,
            int.from_bytes(os.urandom(7), "big"),
            self._token,
            config.takes_endpoints,
            config.connections,
        )
        self.lmcache = _lmcache_listener(config, self.holdings, self._duties) if config.lmcache_pull else None
        self._discovery = Discovery(sources, self.holdings, self._duties)
        self._listeners: list[Listener] = []
        self._sockets: list[tuple[asyncio.Server, Path]] = []
        self._runner: web.AppRunner | None = None
        self._reloader: asyncio.Task[None] | None = None
        self.addresses: list[ControllerAddress] = []
        self.http = ""
        self._http_socket: Path | None = None

    async def start(self) -> None:
        """Listen to engines, then for routers.

        Raises
        ------
        EnvironmentTooSmall
            An address cannot be had.
        """
        await self._discovery.start()
        if self.lmcache is not None:
            self.lmcache.listen(
                parse_controller(self._config.lmcache_pull), parse_controller(self._config.lmcache_reply)
            )
        for entry in self._config.listen:
            await self._listen(parse_controller(entry))
        if self._config.http:
            await self._serve_http(parse_controller(self._config.http))
        self._reloader = asyncio.create_task(self._reload())

    async def stop(self) -> None:
        """Answer nobody any more and forget everything."""
        if self._reloader is not None:
            self._reloader.cancel()
        for listener in self._listeners:
            listener.close()
        for server, path in self._sockets:
            server.close()
            path.unlink(missing_ok=True)
        for connection in list(self.answering.connections):
            connection.abort()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._http_socket is not None:
            self._http_socket.unlink(missing_ok=True)
        await self._discovery.stop()
        if self.lmcache is not None:
            await self.lmcache.close()
        await self.holdings.close()

    async def _listen(self, address: ControllerAddress) -> None:
        if address.path:
            await self._listen_locally(Path(address.path))
            self.addresses.append(address)
            return
        needs_token = self._token is not None
        listener = Listener(lambda: RouterConnection(self.answering, needs_token=needs_token), self._certificate)
        await listener.listen(address.host, address.port)
        self._listeners.append(listener)
        self.addresses.append(ControllerAddress(host=listener.host, port=listener.port))

    async def _listen_locally(self, path: Path) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(path))  # a file that is left of a former controller refuses
            raise EnvironmentTooSmall(f"cannot listen on unix:{path}: another program does")
        try:
            former_mask = os.umask(0o177)  # nobody else may connect, from the first moment on
            try:
                server = await loop.create_unix_server(
                    lambda: RouterConnection(self.answering, needs_token=False), str(path)
                )
            finally:
                os.umask(former_mask)
        except OSError as error:
            raise EnvironmentTooSmall(f"cannot listen on unix:{path}: {error.strerror or error}") from error
        self._sockets.append((server, path))

    async def _serve_http(self, address: ControllerAddress) -> None:
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._registry = CollectorRegistry()
        self._registry.register(ControllerMetrics(self.answering, self._duties, self.lmcache))
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            if address.path:
                await self._start_locally(self._runner, address.path)
                self.http = str(address)
                return
            await web.TCPSite(self._runner, address.host, address.port).start()
        except OSError as error:
            raise EnvironmentTooSmall(f"cannot listen on {address}: {error.strerror or error}") from error
        host, port = self._runner.addresses[0][:2]
        self.http = str(ControllerAddress(host=host, port=port))

    async def _start_locally(self, runner: web.AppRunner, path: str) -> None:
        former_mask = os.umask(0o177)  # nobody else may connect, from the first moment on
        try:
            await web.UnixSite(runner, path).start()
        finally:
            os.umask(former_mask)
        self._http_socket = Path(path)

    async def _healthz(self, request: web.Request) -> web.Response:  # noqa: ARG002
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """Ready is who has heard of every engine that it listens to: before that its answers help nobody."""
        silent = [
            url for url, sources in self.holdings.sources.items() if not any(source.is_telling for source in sources)
        ]
        if silent and len(silent) == len(self.holdings.sources):
            return web.Response(status=503, text="no engine was heard of yet\n")
        return web.Response(text=f"ok, {len(silent)} of {len(self.holdings.sources)} endpoints not heard of\n")

    async def _metrics(self, request: web.Request) -> web.Response:  # noqa: ARG002
        return web.Response(body=generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _reload(self) -> None:
        """Follow the files with the token and the certificate."""
        files = [file for file in (self._token, self._certificate) if file is not None]
        while files:
            await asyncio.sleep(RELOAD_SECONDS)
            with self._duties.guarded("files"):
                for file in files:
                    await asyncio.to_thread(file.reload)
                for listener in self._listeners:
                    await listener.renew()


class ControllerMetrics(Collector):
    """What a controller counts."""

    def __init__(self, answering: Answering, duties: Duties, lmcache: LmcacheListener | None) -> None:
        self._answering = answering
        self._duties = duties
        self._lmcache = lmcache

    def collect(self) -> Iterable[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        answering, holdings = self._answering, self._answering.holdings
        yield from source_families(_PREFIX, holdings.sources, holdings.subscriptions)
        yield families.gauge(f"{_PREFIX}_index_bytes", holdings.index.size_bytes)
        yield families.gauge(f"{_PREFIX}_routers", len(answering.connections))
        yield families.counters(f"{_PREFIX}_messages_total", answering.messages)
        yield families.counters(f"{_PREFIX}_refused_total", answering.refused)
        yield families.counters(f"{_PREFIX}_lookups_total", holdings.lookups)
        if self._lmcache is not None:
            yield from self._of_lmcache(self._lmcache)
        yield families.counters(f"{_PREFIX}_failed_duties_total", self._duties.failures)

    def _of_lmcache(self, lmcache: LmcacheListener) -> Iterable[Metric]:
        holdings = self._answering.holdings
        assert holdings.lmcache is not None
        instances = holdings.lmcache.instances
        state = families.gauges(f"{_PREFIX}_lmcache_state", {})
        chunks = families.gauges(f"{_PREFIX}_lmcache_chunks", {})
        for endpoint, instance in instances.by_endpoint.items():
            standing = instance.standing(holdings.now())
            for candidate in SourceState:
                state.add_metric((endpoint, candidate.value), standing is candidate)
            chunks.add_metric((endpoint,), instance.chunks)
        counts = {**instances.counts, "malformed": lmcache.malformed, "unknown": lmcache.unknown}
        yield from (state, chunks, families.counters(f"{_PREFIX}_lmcache_messages_total", counts))


def _lmcache_listener(config: ControllerConfig, holdings: Holdings, duties: Duties) -> LmcacheListener:
    first = config.lmcache_none_hash
    scheme = scheme_of(config.lmcache_hash, first_hash(VLLM_SEED) if first is None else first)
    endpoints = {instance: url for url, instance in _pairs(config.lmcache_instances)}
    listener: LmcacheListener
    instances = LmcacheInstances(endpoints, holdings.now, lambda worker: listener.heartbeat_url(worker))
    holdings.lmcache = Lmcache(instances, scheme, config.lmcache_chunk_tokens)
    listener = LmcacheListener(instances, duties)
    return listener


def _pairs(entries: Sequence[str]) -> list[tuple[str, str]]:
    return [(url, address) for url, _, address in (entry.partition("=") for entry in entries)]


@contextlib.asynccontextmanager
async def running(config: ControllerConfig) -> AsyncIterator[ControllerServer]:
    """Run a controller for the time of a ``with`` block.

    Raises
    ------
    UsageError
        A file cannot be used, an address cannot be had, or pyzmq is missing.
    """
    server = ControllerServer(config)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


async def serve(config: ControllerConfig) -> None:
    """Answer until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with running(config) as server:
        gc.collect()
        gc.freeze()  # what is alive now stays: no collection need look at it again
        log.info(
            "controller is ready",
            listens=[str(address) for address in server.addresses],
            http=server.http,
            endpoints=sorted(server.holdings.sources),
        )
        await stopped.wait()
        log.info("controller stops", routers=len(server.answering.connections))


def run(config: ControllerConfig) -> None:
    """Run the controller as a program: of its own, or as the child of a router with several workers.

    Such a child listens on a UNIX socket that only its user can open, and on nothing else: ``ControllerConfig(listen=(
    "unix:/run/x.sock",), http="", takes_endpoints=True)``. The workers' routers have ``controller`` set to that
    address and tell it which endpoints there are.
    """
    logs.configure(config.log_level, json=config.log_format == "json")
    uvloop.run(serve(config))
