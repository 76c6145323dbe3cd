"""A proxy in front of a scripted model, and what it counts."""

import contextlib
from collections.abc import AsyncIterator

from prometheus_client.parser import text_string_to_metric_families
from tests.integration.router.backend import Backend, client, request_bytes

from tierline.proxy.config import ProxyConfig
from tierline.proxy.server import ProxyServer, running


@contextlib.asynccontextmanager
async def proxy(model: Backend | str, **settings: object) -> AsyncIterator[ProxyServer]:
    upstream = model if isinstance(model, str) else model.url
    config = ProxyConfig.model_validate(
        {"port": 0, "metrics_port": 0, "upstream": upstream, "shutdown_timeout_s": 0} | settings
    )
    async with running(config) as server:
        yield server
        services = server.services
        assert services.held_bytes == 0 or services.clients
        assert services.metrics.concurrent >= 0


class Page:
    """The port with the metrics."""

    def __init__(self, server: ProxyServer) -> None:
        self.port = server.metrics_port


async def metrics(server: ProxyServer) -> dict[str, float]:
    """Return each sample, by its name and the labels that tell it from others: those of HyperPod are on all of them."""
    async with client(Page(server)) as peer:
        answer = await peer.ask(method="GET", path="/metrics")
    assert answer.status == 200
    samples = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            names = [sample.name, *(f"{key}={sample.labels[key]}" for key in _TELLING if key in sample.labels)]
            samples[" ".join(names)] = sample.value
    return samples


_TELLING = ("kind", "status", "side", "reason", "outcome", "duty", "le")


def post(body: bytes = b'{"prompt":"hello"}', path: str = "/v1/completions", **more: str) -> bytes:
    return request_bytes(body, path=path, **more)
