"""HTTP to an endpoint from outside the cluster: through the Kubernetes API, which hands requests on, or by a URL.

Through the API a request needs no more than the right to ``create`` (for GET: ``get``) ``services/proxy``; the API
passes an answer on five times a second, and takes the header ``Authorization`` for itself.
"""

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import msgspec

from tierline.errors import ClusterRefused, EndpointRefused, EndpointUnavailable, UsageError
from tierline.kube.cluster import Cluster, Kind, behind_service
from tierline.operator import names

SILENCE_S = 600.0
CONNECT_S = 10.0
SERVICE = Kind("v1", "Service", "services", is_namespaced=True)


class Way(Protocol):
    """How an endpoint is reached."""

    def answer(
        self, method: str, path: str, *, body: object = None, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send a request with a JSON body; gives an answer that is no refusal, to be read as it comes.

        Raises
        ------
        EndpointRefused
            It answers with an error.
        EndpointUnavailable
            It cannot be reached.
        """
        ...


@dataclass(frozen=True)
class ThroughCluster:
    """By the endpoint's Service, through the Kubernetes API."""

    cluster: Cluster
    namespace: str
    service: str
    port: int

    @asynccontextmanager
    async def answer(
        self, method: str, path: str, *, body: object = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request."""
        behind = behind_service(self.namespace, self.service, self.port, path)
        try:
            async with self.cluster.answer(
                method, behind, body=body, headers=(headers or {}).items(), silence_s=SILENCE_S
            ) as reply:
                yield reply
        except ClusterRefused as refusal:
            who = f"Service {self.namespace}/{self.service}"
            if refusal.reason in ("ServiceUnavailable", "NotFound"):
                raise EndpointUnavailable(f"{who}: nobody is ready behind it ({refusal})") from refusal
            if refusal.reason:  # of the API itself
                raise
            raise EndpointRefused(f"{who}: {refusal}", refusal.status) from refusal


@dataclass(frozen=True)
class ByUrl:
    """By its address."""

    session: aiohttp.ClientSession
    url: str

    @asynccontextmanager
    async def answer(
        self, method: str, path: str, *, body: object = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request."""
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_read=SILENCE_S)
        _require_http(self.url)
        try:
            async with self.session.request(
                method, f"{self.url.rstrip('/')}/{path.lstrip('/')}", json=body, headers=headers, timeout=timeout
            ) as reply:
                if reply.status >= HTTPStatus.MULTIPLE_CHOICES:
                    said = said_in(await reply.read())
                    raise EndpointRefused(f"{self.url}: {reply.status} {said}".rstrip(), reply.status)
                yield reply
        except aiohttp.InvalidURL as error:
            raise _wrong_url(self.url) from error
        except TimeoutError as error:
            raise EndpointUnavailable(f"{self.url}: no answer in time") from error
        except aiohttp.ClientConnectorError as error:
            code = error.os_error.errno
            reason = os.strerror(code) if code is not None and code > 0 else str(error.os_error)
            raise EndpointUnavailable(f"{self.url}: cannot be reached ({reason})") from error
        except aiohttp.ClientError as error:
            raise EndpointUnavailable(f"{self.url}: the connection ended before the answer: {error}") from error


def _require_http(url: str) -> None:
    """Refuse an address before it is asked: what goes wrong while an answer is printed is no fault of it.

    Raises
    ------
    UsageError
        It is none, or not of HTTP.
    """
    try:
        parts = urlsplit(url)
        is_http = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise _wrong_url(url) from error
    if not is_http:
        raise _wrong_url(url)


def _wrong_url(url: str) -> UsageError:
    return UsageError(f"--url: got {url!r}; allowed: http://HOST:PORT or https://HOST:PORT")


class _ServicePort(msgspec.Struct):
    port: int
    name: str = ""


class _ServiceSpec(msgspec.Struct):
    ports: list[_ServicePort] = []


class _Service(msgspec.Struct):
    spec: _ServiceSpec


async def through_cluster(cluster: Cluster, namespace: str, name: str, system_namespace: str) -> ThroughCluster:
    """Return the way by the endpoint's Service, which is beside it or in the operator's namespace.

    Raises
    ------
    UsageError
        It has no Service yet.
    """
    service = names.routing_service_name(name, namespace)
    for place in dict.fromkeys((namespace, system_namespace)):
        found = await cluster.get(SERVICE, place, service)
        if found is not None:
            ports = msgspec.convert(found, _Service).spec.ports
            return ThroughCluster(cluster, place, service, ports[0].port)
    raise UsageError(
        f"endpoint {name} has no Service {service} in {namespace} or {system_namespace} yet: "
        f"`tierline endpoint status {name}` says why; --url reaches it another way"
    )


def said_in(body: bytes) -> str:
    """Return what an error's body says, in OpenAI's shape or any other."""
    try:
        document: Any = json.loads(body)
    except ValueError:
        return " ".join(body.decode(errors="replace").split())[:300]
    error = document.get("error", document) if isinstance(document, dict) else document
    return str(error.get("message", error) if isinstance(error, dict) else error)[:600]
