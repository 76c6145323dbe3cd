"""The operator as a program: waits for the Lease, leads, shows its health, and hands over when it is told to stop."""

import asyncio
import contextlib
import gc
import signal
import time
from collections.abc import AsyncIterator, Awaitable

import uvloop
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest

from tierline import logs
from tierline.duties import Duties
from tierline.errors import ConfigurationError, EnvironmentTooSmall
from tierline.kube.api import KubernetesApi
from tierline.kube.cluster import Cluster
from tierline.metrics import CATALOGUE
from tierline.operator import names
from tierline.operator.catalogue import CatalogueFiles
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.admitting import admit
from tierline.operator.controller.discovering import Discovery
from tierline.operator.controller.health import STUCK_SECONDS
from tierline.operator.controller.leading import Leadership, Terms
from tierline.operator.controller.looping import Loop
from tierline.operator.controller.metrics import OperatorMetrics
from tierline.operator.controller.planning import Planner

log = logs.get(__name__)

DUTIES = ("leading", "discovery", "reconciling", "admission")
_LOOK_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class OperatorServer:
    """A running operator.

    Parameters
    ----------
    config
        What it was told.
    planner
        What is wanted.

    Attributes
    ----------
    http
        ``host:port`` of its health and metrics; empty for none.
    webhook
        ``host:port`` where it answers the API server; empty before it does, and for none.
    loop
        The term of leadership that goes on; ``None`` while another operator leads.
    """

    def __init__(self, config: OperatorConfig, planner: Planner) -> None:
        self.http = ""
        self.webhook = ""
        self.loop: Loop | None = None
        self._config = config
        self._planner = planner
        self._api = KubernetesApi(config.kubeconfig)
        self._duties = Duties(DUTIES)
        self._stack = contextlib.AsyncExitStack()
        self._leading: asyncio.Task[None] | None = None
        self._admitting: asyncio.Task[None] | None = None
        self._discovery = Discovery()
        self._registry = CollectorRegistry()
        looks = CATALOGUE["tierline_operator_look_seconds"]
        self._seconds = Histogram(
            looks.name, looks.meaning, looks.labels, buckets=_LOOK_SECONDS, registry=self._registry
        )

    async def start(self) -> None:
        """Wait for the Lease from now on, and lead whenever it is ours.

        Raises
        ------
        UsageError
            There is no way to a cluster, or an address cannot be had.
        """
        connected = await self._stack.enter_async_context(self._api.connected())
        terms = Terms(self._config.lease_s, self._config.lease_s * 2 / 3, self._config.lease_s * 2 / 15)
        cluster = Cluster(connected, names.FIELD_MANAGER)
        self.leadership = Leadership(cluster, self._config.namespace, time.monotonic, terms)
        self._registry.register(OperatorMetrics(self.leadership, lambda: self.loop, self._duties))
        if self._config.http:
            await self._serve_http(self._config.http)
        if self._config.webhook:
            files = CatalogueFiles(self._config.catalogue)

            def work_of_admission() -> Awaitable[None]:
                return admit(cluster, self._config, files.current, self._now_admits)

            self._admitting = asyncio.create_task(self._duties.keep_up("admission", work_of_admission))

        async def work() -> None:
            self.loop = Loop(
                self._api,
                connected,
                self._planner,
                self._config,
                self.leadership.identity,
                self._duties,
                self._seconds,
                self._discovery,
            )
            try:
                await self.loop.run()
            finally:
                self.loop = None

        self._leading = asyncio.create_task(self._duties.keep_up("leading", lambda: self.leadership.lead(work)))

    async def stop(self) -> None:
        """Leave everything as it is, and the Lease to whoever waits for it."""
        working = {task for task in (self._leading, self._admitting) if task is not None}
        for task in working:
            task.cancel()
        if working:
            await asyncio.wait(working)
        await self._stack.aclose()

    def _now_admits(self, address: str) -> None:
        self.webhook = address

    async def _serve_http(self, address: str) -> None:
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        host, _, port = address.rpartition(":")
        if not port.isdigit():
            raise ConfigurationError("http", address, "HOST:PORT")
        try:
            await web.TCPSite(runner, host.strip("[]"), int(port)).start()
        except OSError as error:
            raise EnvironmentTooSmall(f"cannot listen on {address}: {error.strerror or error}") from error
        self.http = "{}:{}".format(*runner.addresses[0][:2])

    async def _healthz(self, request: web.Request) -> web.Response:  # noqa: ARG002
        if self._leading is None or self._leading.done():
            return web.Response(status=503, text="nothing is done any more\n")
        if self.leadership.still_s > STUCK_SECONDS + self.leadership.terms.every_s * 2:
            return web.Response(status=503, text="nobody asks for the Lease any more\n")
        if self.loop is not None and (what := self.loop.stuck):
            return web.Response(status=503, text=f"{what}\n")
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """Ready is who waits behind another operator, and who leads and has seen what there is."""
        if self.loop is None:
            return web.Response(text="ok, another operator leads\n")
        if not self.loop.is_synced:
            return web.Response(status=503, text="not everything was listed yet\n")
        return web.Response(text=f"ok, leads, {len(self.loop.queue)} resources wait\n")

    async def _metrics(self, request: web.Request) -> web.Response:  # noqa: ARG002
        return web.Response(body=generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_LATEST})


@contextlib.asynccontextmanager
async def running(config: OperatorConfig, planner: Planner) -> AsyncIterator[OperatorServer]:
    """Run an operator for the time of a ``with`` block.

    Raises
    ------
    UsageError
        There is no way to a cluster, an address cannot be had, or a package is missing.
    """
    server = OperatorServer(config, planner)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


async def serve(config: OperatorConfig, planner: Planner) -> None:
    """Work until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with running(config, planner) as server:
        gc.collect()
        gc.freeze()  # what is alive now stays: no collection need look at it again
        log.info("operator is ready", http=server.http, identity=server.leadership.identity)
        await stopped.wait()
        log.info("operator stops")


def run(config: OperatorConfig, planner: Planner) -> None:
    """Run the operator as a program."""
    logs.configure(config.log_level, json=config.log_format == "json")
    uvloop.run(serve(config, planner))
