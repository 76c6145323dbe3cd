"""Active health checks: each endpoint's ``/health``, what it serves, how large its cache is. One task an endpoint.

A control plane, so aiohttp does the talking. An endpoint that does not answer in time, or with 5xx, is down; one that
refuses the connection has lost its cache too. A check that fails for the router's own reasons says nothing.
"""

import asyncio
import errno
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import aiohttp
import msgspec

from tierline import logs
from tierline.duties import Duties
from tierline.router.capacity import cache_capacity
from tierline.router.choosing import Choosing
from tierline.router.endpointkeys import EndpointKeys
from tierline.router.endpoints import OWN_SHORTAGES, Endpoint
from tierline.router.tls import EndpointTls

log = logs.get(__name__)

WARNING_INTERVAL_SECONDS = 60.0
METRICS_BYTES = 4 * 1024**2
"""Most that is read of an endpoint's ``/metrics``; vLLM's is about 100 KiB."""


class _ModelCard(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[msgspec.Raw]


class HealthChecker:
    """Keeps :attr:`Endpoint.is_up`, models and capacity right, of each endpoint from its joining to its leaving.

    Parameters
    ----------
    choosing
        Told when an endpoint refuses connections.
    duties
        Guards the checks.
    tls
        For ``https`` endpoints.
    keys
        For endpoints that ask for one.
    clock
        The router's.
    interval_s, timeout_s
        Between two checks of one endpoint, and for each of its requests.
    """

    def __init__(
        self,
        choosing: Choosing,
        duties: Duties,
        *,
        interval_s: float,
        timeout_s: float,
        tls: EndpointTls,
        keys: EndpointKeys,
        clock: Callable[[], float],
    ) -> None:
        self._choosing = choosing
        self._duties = duties
        self._interval_s = interval_s
        self._tls = tls
        self._keys = keys
        self._clock = clock
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}
        self._next_warning: dict[str, float] = {}
        self._has_told_capacity: set[Endpoint] = set()
        """Endpoints that answered the question since they came up; an engine's cache has one size while it runs."""

    async def start(self) -> None:
        """Be ready to check."""
        # A new connection each time: a check on one that is open says nothing about whether another can be had.
        self._session = aiohttp.ClientSession(timeout=self._timeout, connector=aiohttp.TCPConnector(force_close=True))

    async def stop(self) -> None:
        """End all checks."""
        tasks = list(self._tasks.values())
        for endpoint in list(self._tasks):
            self.left(endpoint)
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()

    def joined(self, endpoint: Endpoint) -> None:
        """Check it from now on."""
        self._tasks[endpoint] = asyncio.create_task(self._watch(endpoint))

    def left(self, endpoint: Endpoint) -> None:
        """Check it no more."""
        self._tasks.pop(endpoint).cancel()
        self._has_told_capacity.discard(endpoint)
        self._next_warning.pop(endpoint.url, None)

    async def _watch(self, endpoint: Endpoint) -> None:
        while True:
            with self._duties.guarded("health"):
                await self.check(endpoint)
            await asyncio.sleep(self._interval_s)

    def _get(self, endpoint: Endpoint, path: str) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._session.get(
            endpoint.url + path,
            headers=self._keys.fields(endpoint),
            ssl=self._tls.context if endpoint.is_encrypted else True,
            allow_redirects=False,  # a key is shown to nobody else
        )

    async def check(self, endpoint: Endpoint) -> None:
        """Check one endpoint, once."""
        was_up, is_refused = endpoint.is_up, False
        try:
            async with self._get(endpoint, "/health") as response:
                is_up, why = response.status < 500, f"/health answered {response.status}"
            if is_up:
                await self._learn_models(endpoint)
                if not was_up or endpoint not in self._has_told_capacity:
                    await self._learn_capacity(endpoint)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            number = error.errno if isinstance(error, OSError) else None
            if number in OWN_SHORTAGES:
                self._warn(endpoint, "health cannot be checked", str(error))
                return
            is_up, why = False, str(error) or type(error).__name__
            is_refused = number == errno.ECONNREFUSED
        endpoint.checked(is_up=is_up)
        if is_up and not was_up:
            log.info("endpoint is up", endpoint=endpoint.url, models=sorted(endpoint.models or ()))
        elif not is_up and was_up is not False:
            log.warning("endpoint is down", endpoint=endpoint.url, why=why)
        if is_refused:
            endpoint.refused()
            self._choosing.forget(endpoint)
        elif is_up and endpoint.is_gone:
            endpoint.came_back(self._clock())

    async def _learn_models(self, endpoint: Endpoint) -> None:
        """Ask for the models; an endpoint that cannot say is healthy all the same, and keeps what is known of it."""
        try:
            async with self._get(endpoint, "/v1/models") as response:
                response.raise_for_status()
                body = await response.read()
            cards = tuple(bytes(card) for card in msgspec.json.decode(body, type=_ModelList).data)
            names = [msgspec.json.decode(card, type=_ModelCard).id for card in cards]
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            self._warn(endpoint, "models cannot be learnt", str(error) or type(error).__name__)
            return
        endpoint.learn_models(dict(zip(names, cards, strict=True)))

    async def _learn_capacity(self, endpoint: Endpoint) -> None:
        """Ask for the size of the cache; many an endpoint has no ``/metrics``, or none that says so, and need not."""
        self._has_told_capacity.discard(endpoint)
        try:
            async with self._get(endpoint, "/metrics") as response:
                page = bytearray()
                async for data in response.content.iter_any():
                    page += data
                    if len(page) > METRICS_BYTES:
                        break
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._warn(endpoint, "capacity cannot be learnt", str(error) or type(error).__name__)
            return
        self._has_told_capacity.add(endpoint)
        capacity = cache_capacity(bytes(page))
        if capacity is not None:
            endpoint.capacity_blocks, endpoint.block_tokens = capacity

    def _warn(self, endpoint: Endpoint, what: str, why: str) -> None:
        """Once a minute for each endpoint, however often it is checked."""
        now = asyncio.get_running_loop().time()
        if now >= self._next_warning.get(endpoint.url, 0.0):
            self._next_warning[endpoint.url] = now + WARNING_INTERVAL_SECONDS
            log.warning(what, endpoint=endpoint.url, why=why)
