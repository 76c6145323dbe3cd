"""What engines and node stores say of themselves, read while somebody watches, and never for a request.

What does not answer, or says what is not understood, is shown as such; it delays nobody.
"""

import asyncio
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from tierline import logs
from tierline.bearer import file_stamp
from tierline.errors import UsageError
from tierline.router.dashboard.documents import BucketView, EngineFigures, StoreView
from tierline.router.endpointkeys import read_key
from tierline.wire.admin import NamespaceList, NodeStats

if TYPE_CHECKING:
    from tierline.router.endpoints import Endpoint
    from tierline.router.proxy.services import Services

log = logs.get(__name__)

TIMEOUT_S = 2.0
TOKEN_KEY = "dashboard_store_token_file"  # noqa: S105  (a setting's name)
PAGE_BYTES = 2 * 1024**2
_BUCKETS_BYTES = 64 * 1024
"""Of a store's series of buckets: a node tells of a few, and what is parsed here holds requests up meanwhile."""
_SAMPLE = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|generation_tokens_total"
    rb"|prompt_tokens_by_source_total|tierline_loaded_tokens_total)(\{[^\n]*\})? (\S+)",
    re.MULTILINE,
)
_SOURCE = re.compile(rb'[{,]source="([^"]{1,64})"')
_WHOLE = "@all"
"""Stands for a bucket with a quota as a whole, among its tenants."""
_OF_BUCKET = {
    "tierline_node_bucket_objects": "objects",
    "tierline_node_bucket_bytes": "bytes",
    "tierline_node_bucket_hits_total": "hits",
    "tierline_node_bucket_misses_total": "misses",
    "tierline_node_bucket_evictions_total": "evictions",
}
"""A node store's series by bucket, and what of a bucket they are."""
_BUCKET_LINE = re.compile(rb"^tierline_node_bucket_.*\n", re.MULTILINE)


class StoreToken:
    """What node stores are shown as ``Authorization``.

    Invariant: it is in no message, and one that was read stays in force while its file cannot be used, of which
    ``_problem`` has been logged.

    Parameters
    ----------
    file
        Holds it and nothing else; ``None``: they are shown nothing.

    Raises
    ------
    UsageError
        ``file`` cannot be used.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._stamp = (0, 0, 0)
        self._problem = ""
        self.fields: Mapping[str, str] = {}
        if file is not None:
            self._read(file)

    def reload(self) -> None:
        """Read the file again if it has changed."""
        try:
            if self._file is not None and file_stamp(self._file, TOKEN_KEY) != self._stamp:
                self._read(self._file)
                log.info("the token that node stores are shown was read", file=str(self._file))
        except UsageError as error:
            if str(error) != self._problem:
                log.error("the file with the token of node stores cannot be used; the former stays", why=str(error))
            self._problem = str(error)

    def _read(self, file: Path) -> None:
        self._stamp = file_stamp(file, TOKEN_KEY)
        self.fields = {"authorization": f"Bearer {read_key(file, TOKEN_KEY).decode()}"}
        self._problem = ""


class Reader:
    """Reads them, and keeps what was read last.

    Attributes
    ----------
    engines
        By endpoint's URL.
    stores
        In the order in which they were named.
    """

    def __init__(self, services: "Services", stores: Sequence[str], token: StoreToken) -> None:
        self._services = services
        self._addresses = stores
        self._token = token
        self.engines: dict[str, EngineFigures] = {}
        self.stores = [StoreView(name=url, source="store", wrong="not asked yet") for url in stores]

    async def read(self, http: aiohttp.ClientSession) -> None:
        """Read all, side by side."""
        endpoints = self._services.endpoints.all
        self._token.reload()
        found, self.stores = await asyncio.gather(  # one for both: whoever is cancelled here leaves neither behind
            asyncio.gather(*(self._engine(http, endpoint) for endpoint in endpoints)),
            asyncio.gather(*(_store(http, url, self._token.fields) for url in self._addresses)),
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


async def _store(http: aiohttp.ClientSession, url: str, token: Mapping[str, str]) -> StoreView:
    try:
        stats = msgspec.json.decode(await _asked(http, f"{url}/v1/stats", token), type=NodeStats)
        buckets = await _buckets(http, url, token)
    except aiohttp.ClientResponseError as error:
        return StoreView(name=url, source="store", wrong=_refusal(error.status, is_shown_token=bool(token)))
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return StoreView(name=url, source="store", wrong=str(error) or "it did not answer in time")
    except (ValueError, LookupError, OverflowError):
        # msgspec's, or too many buckets; one without a name; a count that is infinite.
        return StoreView(name=url, source="store", wrong="what it answers is not understood")
    figures = [segment.store for segment in stats.segments] or [stats.store]
    return StoreView(
        name=stats.node,
        source="store",
        capacity_bytes=sum(each.capacity_bytes for each in figures),
        used_bytes=sum(each.used_bytes for each in figures),
        objects=sum(each.objects for each in figures),
        hits=sum(each.hits for each in figures),
        misses=sum(each.misses for each in figures),
        evictions=sum(sum(each.evictions.values()) for each in figures),
        buckets=sorted(buckets or (), key=lambda bucket: bucket.bucket),
        buckets_wrong="the token has no right on every bucket, so their names are not told" if buckets is None else "",
    )


def _refusal(status: int, *, is_shown_token: bool) -> str:
    if status != HTTPStatus.UNAUTHORIZED:
        return f"it answered {status}"
    if is_shown_token:
        return f"it does not know the token of {TOKEN_KEY}"
    return f"it asks for a token ({TOKEN_KEY} names a file with one)"


async def _buckets(http: aiohttp.ClientSession, url: str, token: Mapping[str, str]) -> Iterable[BucketView] | None:
    """Return a store's buckets; ``None`` where it does not tell this token of them.

    A list with their tenants is for who may administer all of them, which a page that only looks should not need; the
    sums are in the metrics for whoever has some right on all.
    """
    try:
        listed = msgspec.json.decode(await _asked(http, f"{url}/v1/buckets", token), type=NamespaceList)
    except aiohttp.ClientResponseError as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        return _buckets_counted(await _asked(http, f"{url}/metrics", token))
    buckets: dict[str, BucketView] = {}
    for each in listed.namespaces:
        if each.salt != _WHOLE:
            for figure in _OF_BUCKET.values():
                _add(buckets, each.bucket, figure, getattr(each, figure))
    return buckets.values()


def _buckets_counted(page: bytes) -> Iterable[BucketView] | None:
    if b" tierline_node_bucket_objects " not in page:  # its HELP: who may know of buckets is told that there are none
        return None
    lines = b"".join(_BUCKET_LINE.findall(page))
    if len(lines) > _BUCKETS_BYTES:
        raise ValueError
    buckets: dict[str, BucketView] = {}
    for family in text_string_to_metric_families(lines.decode()):
        for sample in family.samples:
            if sample.name in _OF_BUCKET:
                _add(buckets, sample.labels["bucket"], _OF_BUCKET[sample.name], int(sample.value))
    return buckets.values()


def _add(buckets: dict[str, BucketView], bucket: str, figure: str, count: int) -> None:
    known = buckets.setdefault(bucket, BucketView(bucket=bucket, objects=0, bytes=0, hits=0, misses=0, evictions=0))
    setattr(known, figure, getattr(known, figure) + count)


async def _asked(http: aiohttp.ClientSession, url: str, fields: Mapping[str, str]) -> bytes:
    async with http.get(url, headers=fields, allow_redirects=False) as answer:  # a token is shown to nobody else
        answer.raise_for_status()
        return await _content(answer)


async def _content(answer: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for data in answer.content.iter_any():
        content += data
        if len(content) > PAGE_BYTES:
            break
    return bytes(content)
