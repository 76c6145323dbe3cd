"""The collector as a program: reads its targets at each interval, shows what they said, sends it on where it is told.

Rules: what a target said is shown until it was to be read again; one that does not answer has no samples, only
``up 0``. Nothing that a target says ends the collector or hides what another says.
"""

import asyncio
import contextlib
import gc
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import msgspec
import uvloop
from aiohttp import web
from prometheus_client import Metric

from tierline import __version__, logs
from tierline.collector.config import CollectorConfig
from tierline.collector.otlp import export_request
from tierline.collector.pages import CONTENT_TYPE, exposition, joined, read_page
from tierline.duties import Duties
from tierline.errors import EnvironmentTooSmall, WireError
from tierline.metrics import HYPERPOD_LABELS, families

log = logs.get(__name__)

DUTIES = ("targets", "export")
"""What a collector has to do beside answering."""
_ACCEPT = "text/plain;version=0.0.4"
_WARNING_INTERVAL_S = 60.0


class Target:
    """One whose metrics are read. Invariant: ``families`` is what it said at the last reading; nothing, if it failed.

    Parameters
    ----------
    name, url
        What it is called, and where its page is.
    labels
        Put on its samples.
    """

    def __init__(self, name: str, url: str, labels: dict[str, str]) -> None:
        self.name, self.url, self.labels = name, url, labels
        self.families: list[Metric] = []
        self.is_up = False
        self.seconds = 0.0
        """That the last reading took."""
        self.failures = 0
        self.warned_at = float("-inf")


class CollectorServer:
    """A running collector.

    Parameters
    ----------
    config
        Its settings.
    clock
        Seconds, monotonic.
    pause
        Waits so many seconds, between two readings.

    Attributes
    ----------
    port
        Where it listens.
    """

    def __init__(
        self,
        config: CollectorConfig,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._config = config
        self._clock = clock
        self._pause = pause
        self.targets = [Target(name, url, config.dimensions(name)) for name, url in config.urls.items()]
        self.exports: Counter[str] = Counter({"sent": 0, "failed": 0})
        self._duties = Duties(DUTIES)
        self._tasks: list[asyncio.Task[None]] = []
        self.port = 0

    async def start(self) -> None:
        """Listen, and begin to read.

        Raises
        ------
        EnvironmentTooSmall
            The address cannot be had.
        """
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        config = self._config
        try:
            await web.TCPSite(self._runner, config.host, config.port).start()
        except OSError as error:
            await self._runner.cleanup()
            reason = error.strerror or error
            raise EnvironmentTooSmall(f"cannot listen on {config.host}:{config.port}: {reason}") from error
        self.port = self._runner.addresses[0][1]
        timeout = aiohttp.ClientTimeout(total=min(config.timeout_s, config.interval_s))
        # Straight to the containers beside it, whatever proxy the environment names for other addresses.
        self._session = aiohttp.ClientSession(timeout=timeout, headers={"accept": _ACCEPT})
        self._tasks.append(asyncio.create_task(self._duties.keep_up("targets", self._read_all)))

    async def stop(self) -> None:
        """Read no more, and close everything."""
        for task in self._tasks:
            task.cancel()
        await self._session.close()
        await self._runner.cleanup()

    # Reading ----------------------------------------------------------------------------------------------------------

    async def _read_all(self) -> None:
        while True:
            began = self._clock()
            await asyncio.gather(*map(self._read, self.targets))
            if self._config.otlp_endpoint is not None:
                with self._duties.guarded("export"):
                    await self._export(self._config.otlp_endpoint)
            await self._pause(max(0.0, self._config.interval_s - (self._clock() - began)))

    async def _read(self, target: Target) -> None:
        began = self._clock()
        try:
            families = await self._page_of(target)
        except (aiohttp.ClientError, TimeoutError, OSError, WireError) as error:
            target.families, target.is_up = [], False
            target.failures += 1
            if began - target.warned_at >= _WARNING_INTERVAL_S:
                target.warned_at = began
                log.warning("a target's metrics cannot be read", target=target.name, why=str(error) or "timeout")
        else:
            target.families, target.is_up = families, True
        target.seconds = self._clock() - began

    async def _page_of(self, target: Target) -> list[Metric]:
        async with self._session.get(target.url, allow_redirects=False) as answer:
            if answer.status != 200:
                raise WireError(f"it answered {answer.status}")
            content = bytearray()
            async for piece in answer.content.iter_any():
                content += piece
                if len(content) > self._config.page_bytes:
                    raise WireError(f"its page is larger than {self._config.page_bytes} bytes")
        return await asyncio.to_thread(read_page, bytes(content), target.labels)

    async def _export(self, endpoint: str) -> None:
        body = msgspec.json.encode(export_request(self.families(), time.time(), __version__))
        try:
            url = f"{endpoint}/v1/metrics"
            async with self._session.post(url, data=body, headers={"content-type": "application/json"}) as answer:
                if answer.status >= 300:
                    raise WireError(
                        f"it answered {answer.status}: {(await answer.content.read(200)).decode('latin-1')}"
                    )
        except (aiohttp.ClientError, TimeoutError, OSError, WireError) as error:
            self.exports["failed"] += 1
            if self.exports["failed"] == 1 or not self.exports["failed"] % 20:
                log.warning(
                    "metrics cannot be sent on; the next reading's are", to=endpoint, why=str(error) or "timeout"
                )
        else:
            self.exports["sent"] += 1

    # Showing ----------------------------------------------------------------------------------------------------------

    def families(self) -> list[Metric]:
        """Return what is shown: what the targets said, and how reading them went."""
        return joined([*(target.families for target in self.targets), self._own()])

    def _own(self) -> list[Metric]:
        up = families.gauges("tierline_collector_target_up", {})
        seconds = families.gauges("tierline_collector_target_seconds", {})
        samples = families.gauges("tierline_collector_target_samples", {})
        failures = families.counters("tierline_collector_target_failures_total", {})
        for target in self.targets:
            values = tuple(target.labels[label] for label in HYPERPOD_LABELS)
            up.add_metric(values, target.is_up)
            seconds.add_metric(values, target.seconds)
            samples.add_metric(values, sum(len(family.samples) for family in target.families))
            failures.add_metric(values, target.failures)
        exports = families.counters("tierline_collector_exports_total", self.exports)
        duties = families.counters("tierline_collector_failed_duties_total", self._duties.failures)
        return [up, seconds, samples, failures, exports, duties]

    async def _metrics(self, request: web.Request) -> web.Response:  # noqa: ARG002
        page = await asyncio.to_thread(exposition, self.families())
        return web.Response(body=page, headers={"content-type": CONTENT_TYPE})

    async def _healthz(self, request: web.Request) -> web.Response:  # noqa: ARG002
        return web.Response(text="ok\n")


@contextlib.asynccontextmanager
async def running(
    config: CollectorConfig, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> AsyncIterator[CollectorServer]:
    """Run a collector for the time of a ``with`` block; ``pause`` as in :class:`CollectorServer`."""
    server = CollectorServer(config, pause=pause)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def serve(config: CollectorConfig) -> None:
    """Collect until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with running(config) as server:
        gc.collect()
        gc.freeze()  # what is alive now stays: no collection need look at it again
        log.info("collector is ready", url=f"http://{config.host}:{server.port}/metrics", targets=config.urls)
        await stopped.wait()
        log.info("collector stops")


def run(config: CollectorConfig) -> None:
    """Run the collector as a program."""
    logs.configure(config.log_level, json=config.log_format == "json")
    uvloop.run(serve(config))
