"""Fuzz targets of what stands beside a model: the proxy's HTTP to both sides, and pages that the collector reads.

The proxy is held to what the router is: the same bytes go through the same reader, :mod:`tests.fuzz.router`.
"""

import asyncio
from collections.abc import Iterator
from functools import partial

import msgspec
from tests.fuzz.router import cut, read_answer, requests_run, responses_run
from tests.fuzz.world import Recorder

from tierline.collector.otlp import export_request
from tierline.collector.pages import exposition, joined, read_page
from tierline.errors import WireError
from tierline.proxy.config import ProxyConfig
from tierline.proxy.metrics import ProxyMetrics
from tierline.proxy.relay import relay
from tierline.proxy.services import ProxyServices
from tierline.router.proxy.client import ClientConnection
from tierline.router.proxy.upstream import UpstreamConnection, UpstreamPool
from tierline.router.tls import EndpointTls

CONFIG = ProxyConfig(
    upstream="http://model:1", head_bytes=2048, body_bytes=4096, buffered_bytes=8192, max_concurrent_requests=1
)


class ProxyWorld:
    """One proxy, and what went over each connection to its model."""

    def __init__(self) -> None:
        self.services = ProxyServices(CONFIG, ProxyMetrics(CONFIG.dimensions("reverse-proxy")), lambda: 0.0)
        self.pool = self.services.pool = _Pool(self)
        self.upstreams: list[tuple[UpstreamConnection, Recorder]] = []
        self.client = ClientConnection(self.services, partial(relay, self.services))
        self.transport = Recorder()
        self.client.connection_made(self.transport)

    def receive(self, piece: bytes) -> None:
        """A client sends something."""
        if not self.transport.is_closing():
            self.client.data_received(piece)

    def waiting(self) -> Iterator[UpstreamConnection]:
        """Yield the connections on which the model is to answer."""
        return (upstream for upstream, _ in self.upstreams if upstream._attempt is not None)

    def require_nothing_left(self) -> None:
        """Both sides are gone: nothing is held for anybody."""
        services = self.services
        self.client.connection_lost(None)
        for upstream, transport in self.upstreams:
            if not transport.is_closing():
                transport.close()
                upstream.connection_lost(None)
        assert services.admission is not None
        assert (services.held_bytes, services.clients, services.metrics.concurrent) == (0, set(), 0)
        assert (services.admission.running, services.admission.waiting) == (0, 0)


class _Pool(UpstreamPool):
    """Connects to nobody."""

    def __init__(self, world: ProxyWorld) -> None:
        services = world.services
        super().__init__(
            services.model,
            connect_timeout_s=1.0,
            head_bytes=CONFIG.head_bytes,
            tls=EndpointTls(None, None, None),
            clock=services.clock,
        )
        self._world = world

    async def connect(self) -> UpstreamConnection:
        connection, transport = UpstreamConnection(self), Recorder()
        connection.connection_made(transport)
        self._world.upstreams.append((connection, transport))
        return connection


def passed_on(data: bytes) -> None:
    """A client's bytes, cut in several ways: the same goes on to the model, and is read as the same by another."""
    runs = [asyncio.run(requests_run(pieces, ProxyWorld)) for pieces in cut(data)]
    assert all(run == runs[0] for run in runs), (data, runs)


def passed_back(data: bytes) -> None:
    """A model's bytes, cut in several ways: the client has one answer, or it knows that it has none."""
    runs = [asyncio.run(responses_run(pieces, ProxyWorld, _read)) for pieces in cut(data)]
    assert all(run == runs[0] for run in runs), (data, runs)


def _read(sent: bytes) -> tuple[int, bytes] | None:
    answer = read_answer(sent)
    return answer if answer is not None and b'"code":"model_' not in answer[1] else None


def metric_pages(data: bytes) -> None:
    """A page is refused, or all of its samples are shown; the next reader takes that page, and OTLP has no more."""
    try:
        families = joined([read_page(data, {"pod_name": "demo"})])
    except WireError:
        return
    again = read_page(exposition(families), {})
    assert sum(len(family.samples) for family in again) == sum(len(family.samples) for family in families)
    msgspec.json.encode(export_request(families, 1.0, "1"))
