"""What engines and node stores say of themselves, read while somebody watches, and never for a request.

What does not answer, or says what is not understood, is shown as such; it delays nobody.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import aiohttp
import msgspec

from tierline.router.dashboard.documents import BucketView, EngineFigures, StoreView
from tierline.wire.admin import NamespaceList, NodeStats

if TYPE_CHECKING:
    from tierline.router.endpoints import Endpoint
    from tierline.router.proxy.services import Services

TIMEOUT_S = 2.0
PAGE_BYTES = 2 * 1024**2
_SAMPLE = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|generation_tokens_total"
    rb"|prompt_tokens_by_source_total|tierline_loaded_tokens_total)(\{[^\n]*\})? (\S+)",
    re.MULTILINE,
)
_SOURCE = re.compile(rb'[{,]source="([^"]{1,64})"')
_WHOLE = "@all"
"""Stands for a bucket with a quota as a whole, among its tenants."""


class Reader:
    """Reads them, and keeps what was read last.

    Attributes
    ----------
    engines
        By endpoint's URL.
    stores
        In the order in which they were named.
    """

    def __init__(self, services: "Services", stores: Sequence[str]) -> None:
        self._services = services
        self._addresses = stores
        self.engines: dict[str, EngineFigures] = {}
        self.stores: list[StoreView] = []

    async def read(self, http: aiohttp.ClientSession) -> None:
        """Read all, side by side."""
        endpoints = self._services.endpoints.all
        found, self.stores = await asyncio.gather(  # one for both: whoever is cancelled here leaves neither behind
            asyncio.gather(*(self._engine(http, endpoint) for endpoint in endpoints)),
            asyncio.gather(*(_store(http, url) for url in self._addresses)),
        )
        self.engines = {
            endpoint.url: figures for endpoint, figures in zip(endpoints, found, strict=True) if figures is not None
        }

    async def _engine(self, http: aiohttp.ClientSession, endpoint: "Endpoint") -> EngineFigures | None:
        services = self._services
        try:
            async with http.get(
                f"{endpoint.url}/metrics",
                headers=services.endpoint_keys.fields(endpoint),
                ssl=services.endpoint_tls.context if endpoint.is_encrypted else True,
                allow_redirects=False,  # a key is shown to nobody else
            ) as answer:
                page = await _content(answer)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        figures = engine_figures(page, time.time())
        last = self.engines.get(endpoint.url)
        return figures if last is None else _with_rates(figures, last)


def session() -> aiohttp.ClientSession:
    """Return what :meth:`Reader.read` asks with."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))


def engine_figures(page: bytes, now: float) -> EngineFigures | None:
    """Return what an engine's page in Prometheus' text format says; ``None`` where it has none of vLLM's figures.

    >>> page = b'vllm:num_requests_running{engine="0"} 3\\nvllm:num_requests_running{engine="1"} 1\\n'
    >>> engine_figures(page, now=0.0).running
    4.0
    """
    sums: dict[str, float] = {}
    series: dict[str, int] = {}
    sources: dict[str, dict[str, float]] = {}
    for name_bytes, labels, text in _SAMPLE.findall(page):
        try:
            value, name = float(text), name_bytes.decode()
        except ValueError:
            continue
        source = _SOURCE.search(labels)
        if source is not None:
            by_source = sources.setdefault(name, {})
            named = source[1].decode("utf-8", "replace")
            by_source[named] = by_source.get(named, 0.0) + value
        else:
            sums[name] = sums.get(name, 0.0) + value
            series[name] = series.get(name, 0) + 1
    if not sums and not sources:
        return None
    usage, origins = sums.get("kv_cache_usage_perc"), sources.get("prompt_tokens_by_source_total", {})
    return EngineFigures(
        read_at=now,
        running=sums.get("num_requests_running"),
        waiting=sums.get("num_requests_waiting"),
        kv_usage=None if usage is None else usage / series["kv_cache_usage_perc"],
        computed_tokens=origins.get("local_compute"),
        engine_tokens=origins.get("local_cache_hit"),
        external_tokens=origins.get("external_kv_transfer"),
        loaded_tokens=sources.get("tierline_loaded_tokens_total", {}),
        generated_tokens=sums.get("generation_tokens_total"),
    )


def _with_rates(figures: EngineFigures | None, last: EngineFigures) -> EngineFigures | None:
    if figures is not None and (passed := figures.read_at - last.read_at) > 0:
        figures.computed_per_s = _rate(figures.computed_tokens, last.computed_tokens, passed)
        figures.generated_per_s = _rate(figures.generated_tokens, last.generated_tokens, passed)
    return figures


def _rate(now: float | None, before: float | None, seconds: float) -> float | None:
    return None if now is None or before is None or now < before else (now - before) / seconds


async def _store(http: aiohttp.ClientSession, url: str) -> StoreView:
    try:
        stats = msgspec.json.decode(await _asked(http, f"{url}/v1/stats"), type=NodeStats)
        namespaces = msgspec.json.decode(await _asked(http, f"{url}/v1/buckets"), type=NamespaceList).namespaces
    except aiohttp.ClientResponseError as error:
        return StoreView(name=url, source="store", wrong=f"it answered {error.status}")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return StoreView(name=url, source="store", wrong=str(error) or "it did not answer in time")
    except msgspec.DecodeError:
        return StoreView(name=url, source="store", wrong="what it answers is not understood")
    figures = [segment.store for segment in stats.segments] or [stats.store]
    buckets: dict[str, BucketView] = {}
    for each in namespaces:
        if each.salt == _WHOLE:
            continue
        known = buckets.setdefault(
            each.bucket, BucketView(bucket=each.bucket, objects=0, bytes=0, hits=0, misses=0, evictions=0)
        )
        known.objects += each.objects
        known.bytes = (known.bytes or 0) + each.bytes
        known.hits = (known.hits or 0) + each.hits
        known.misses = (known.misses or 0) + each.misses
        known.evictions = (known.evictions or 0) + each.evictions
    return StoreView(
        name=stats.node,
        source="store",
        capacity_bytes=sum(each.capacity_bytes for each in figures),
        used_bytes=sum(each.used_bytes for each in figures),
        objects=sum(each.objects for each in figures),
        hits=sum(each.hits for each in figures),
        misses=sum(each.misses for each in figures),
        evictions=sum(sum(each.evictions.values()) for each in figures),
        buckets=sorted(buckets.values(), key=lambda bucket: bucket.bucket),
    )


async def _asked(http: aiohttp.ClientSession, url: str) -> bytes:
    async with http.get(url, allow_redirects=False) as answer:
        answer.raise_for_status()
        return await _content(answer)


async def _content(answer: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for data in answer.content.iter_any():
        content += data
        if len(content) > PAGE_BYTES:
            break
    return bytes(content)
