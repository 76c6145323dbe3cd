"""The proxy as a program: puts the parts together, listens, sweeps deadlines, and stops in order."""

import asyncio
import contextlib
import gc
import signal
import time
from collections.abc import AsyncIterator
from functools import partial

import uvloop

from tierline import logs
from tierline.duties import Duties
from tierline.proxy.capture import Capture
from tierline.proxy.config import ProxyConfig
from tierline.proxy.destinations import destination_of
from tierline.proxy.metrics import ProxyMetrics
from tierline.proxy.page import PageConnection, show
from tierline.proxy.relay import relay
from tierline.proxy.services import ProxyServices
from tierline.router.listening import Listener
from tierline.router.process import keep_freed_memory, raise_file_limit
from tierline.router.proxy.client import ClientConnection

log = logs.get(__name__)

DUTIES = ("deadlines", "departures", "connections", "capture")
"""What a proxy has to do beside serving requests."""
SWEEP_SECONDS = 0.25
"""Between two looks at all deadlines."""
FILES_BESIDE_CLIENTS = 64
"""Descriptors kept for listening, logs, records and the interpreter itself."""
METRICS_CONNECTIONS = 64
"""Of the port with the metrics, so that whoever fills the other one does not shut these out; see
:mod:`~tierline.proxy.page`."""
FLUSH_SECONDS = 5.0
"""At the end, for records that are not written yet."""


class ProxyServer:
    """A running proxy.

    Attributes
    ----------
    port, metrics_port
        Where it listens.
    """

    def __init__(
        self, services: ProxyServices, page: ProxyServices, listeners: tuple[Listener, Listener], duties: Duties
    ) -> None:
        self.services = services
        self._page = page
        self._listeners = listeners
        self._duties = duties
        self.port, self.metrics_port = (listener.port for listener in listeners)
        self._tasks = [asyncio.create_task(self._sweep())]
        if services.capture is not None:
            self._tasks.append(asyncio.create_task(duties.keep_up("capture", services.capture.run)))

    async def stop(self, timeout_s: float) -> None:
        """Take no new requests, let running ones end for up to ``timeout_s``, write records, close everything."""
        services = self.services
        services.is_draining = self._page.is_draining = True
        for listener in self._listeners:
            listener.close()
        for client in [*services.clients, *self._page.clients]:
            client.shut_down()
        deadline = services.clock() + timeout_s
        while services.clients and services.clock() < deadline:  # noqa: ASYNC110  (happens once, at the end)
            await asyncio.sleep(0.02)
        for task in self._tasks:
            task.cancel()
        for client in [*services.clients, *self._page.clients]:
            client.abort()
        services.pool.close()
        await asyncio.sleep(0)  # connections are lost in the next turn of the loop
        if services.capture is not None:
            await services.capture.flush(FLUSH_SECONDS)

    async def _sweep(self) -> None:
        services = self.services
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = services.clock()
            for client in [client for client in (*services.clients, *self._page.clients) if client.deadline < now]:
                with self._duties.guarded("deadlines"):
                    client.expired()
            for departure in list(self._page.departures):
                with self._duties.guarded("departures"):
                    departure.look()
            with self._duties.guarded("connections"):
                services.pool.close_idle()


async def start(config: ProxyConfig) -> ProxyServer:
    """Start a proxy in the running loop.

    Raises
    ------
    EnvironmentTooSmall
        When an address cannot be had.
    UsageError
        When records cannot go where they should.
    """
    metrics = ProxyMetrics(config.dimensions("reverse-proxy"))
    capture = Capture(config, destination_of(config), metrics) if config.capture_uri else None
    services = ProxyServices(config, metrics, time.monotonic, capture)
    page = ProxyServices(config.model_copy(update={"connections": METRICS_CONNECTIONS}), metrics, time.monotonic)
    duties = Duties(DUTIES)
    metrics.failed_duties = duties.failures
    metrics.gauges = {
        "tierline_proxy_queued_requests": lambda: services.admission.waiting if services.admission else 0,
        "tierline_proxy_client_connections": lambda: len(services.clients),
        "tierline_proxy_held_body_bytes": lambda: services.held_bytes,
        "tierline_proxy_capture_held_bytes": lambda: capture.held_bytes if capture else 0,
    }
    pass_on, answer = partial(relay, services), partial(show, page)
    listeners = (
        Listener(lambda: ClientConnection(services, pass_on), None),
        Listener(lambda: PageConnection(page, answer), None),
    )
    try:
        for listener, port in zip(listeners, (config.port, config.metrics_port), strict=True):
            await listener.listen(config.host, port)
    except BaseException:
        listeners[0].close()
        raise
    return ProxyServer(services, page, listeners, duties)


@contextlib.asynccontextmanager
async def running(config: ProxyConfig) -> AsyncIterator[ProxyServer]:
    """Run a proxy for the time of a ``with`` block."""
    server = await start(config)
    try:
        yield server
    finally:
        await server.stop(config.shutdown_timeout_s)


async def serve(config: ProxyConfig) -> None:
    """Pass requests on until SIGTERM or SIGINT; running ones get ``shutdown_timeout_s`` to end."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with running(config) as server:
        gc.collect()
        gc.freeze()  # what is alive now stays: no collection need look at it again
        log.info(
            "proxy is ready",
            url=f"http://{config.host}:{server.port}",
            metrics=f"http://{config.host}:{server.metrics_port}/metrics",
            model=server.services.model.url,
        )
        await stopped.wait()
        log.info("proxy stops", running=len(server.services.clients))


def run(config: ProxyConfig) -> None:
    """Run the proxy as a program."""
    logs.configure(config.log_level, json=config.log_format == "json")
    keep_freed_memory()
    connections = max(1, (raise_file_limit() - FILES_BESIDE_CLIENTS) // 2)  # each takes two
    if config.connections > connections:
        log.warning("fewer connections than configured: too few files may be open", connections=connections)
        config = config.model_copy(update={"connections": connections})
    uvloop.run(serve(config))
