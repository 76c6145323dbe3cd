"""A gate before a Kubernetes API that reads what passes: it notes requests, and answers some in the API's place.

Unlike :class:`tests.kube.Gate` it ends TLS itself, with the API's own certificate. A :class:`Rule` says of a request
what becomes of it; without one that wants it, it is passed on as it is, watches included.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from tests.kube import Cluster

LONGEST_BODY_BYTES = 2**24
_NOT_PASSED_ON = ("host", "content-length", "transfer-encoding", "connection")


@dataclass(frozen=True)
class Asked:
    """A request, and once it was answered, how."""

    method: str
    path: str
    body: bytes
    status: int = 0

    @property
    def is_write(self) -> bool:
        """Whether it changes what the cluster is to be; who renews a Lease says only that he is there."""
        return self.method != "GET" and "/leases" not in self.path


Answer = Callable[[web.Request, Asked], Awaitable[web.StreamResponse]]
"""What a client gets in the place of the API's answer."""


@dataclass
class Rule:
    """What becomes of the first requests of a kind.

    Parameters
    ----------
    wants
        Whether a request is one of them.
    answer
        What it gets.
    times
        So many of them; the API itself is asked from then on.
    """

    wants: Callable[[Asked], bool]
    answer: Answer
    times: int = 1_000_000
    used: int = 0


@dataclass
class ReadingGate:
    """See the module; made by :func:`reading_gate`."""

    cluster: Cluster
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    """All that was answered by the API, but for watches."""
    rules: list[Rule] = field(default_factory=list)
    answered: Callable[[Asked], None] = lambda asked: None
    """Called when the API has answered, before the client hears of it."""

    @property
    def writes(self) -> list[Asked]:
        """What was written, or tried to be."""
        return [each for each in self.asked if each.is_write]

    async def serve(self, request: web.Request, session: aiohttp.ClientSession) -> web.StreamResponse:
        asked = Asked(request.method, request.path_qs, await request.read())
        for rule in self.rules:
            if rule.used < rule.times and rule.wants(asked):
                rule.used += 1
                return await rule.answer(request, asked)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _NOT_PASSED_ON}
        async with session.request(asked.method, asked.path, data=asked.body or None, headers=headers) as answer:
            is_watch = "watch=true" in asked.path
            passed = web.StreamResponse(status=answer.status)
            for name in ("Content-Type", "Retry-After"):
                if name in answer.headers:
                    passed.headers[name] = answer.headers[name]
            if is_watch:
                await passed.prepare(request)
                async for data in answer.content.iter_any():
                    await passed.write(data)
                return passed
            body = await answer.read()
            asked = Asked(asked.method, asked.path, asked.body, answer.status)
            self.asked.append(asked)
            self.answered(asked)
            passed.content_length = len(body)
            await passed.prepare(request)
            await passed.write(body)
            return passed


@contextlib.asynccontextmanager
async def reading_gate(cluster: Cluster, rules: Sequence[Rule] = ()) -> AsyncIterator[ReadingGate]:
    """Stand before the API."""
    standing = ReadingGate(cluster, rules=list(rules))
    to_api = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=cluster.authority), limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(cluster.url, connector=to_api, timeout=timeout, auto_decompress=True) as session:

        async def serve(request: web.Request) -> web.StreamResponse:
            try:
                return await standing.serve(request, session)
            except (aiohttp.ClientError, ConnectionError):  # one of the two has gone
                if request.transport is not None:
                    request.transport.abort()
                return web.Response()

        app = web.Application(client_max_size=LONGEST_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", serve)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(cluster.folder / "api.pem")
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        standing.port = runner.addresses[0][1]
        try:
            yield standing
        finally:
            await runner.cleanup()


# Answers ------------------------------------------------------------------------------------------------------------


def says(status: int, reason: str, **headers: str) -> Answer:
    """Answer as the API does that refuses; the API itself is not asked."""

    async def answer(request: web.Request, asked: Asked) -> web.StreamResponse:
        said = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": status}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response({**said, "message": f"the gate says {status}"}, status=status, headers=named)

    return answer


async def silence(request: web.Request, asked: Asked) -> web.StreamResponse:
    """Say nothing, until the client has had enough."""
    await asyncio.Event().wait()
    raise AssertionError


async def half_a_body(request: web.Request, asked: Asked) -> web.StreamResponse:
    """Break off in the middle of an answer that began well."""
    begun = web.StreamResponse(headers={"Content-Type": "application/json"})
    begun.content_length = 1000
    await begun.prepare(request)
    await begun.write(b'{"metadata":')
    assert request.transport is not None
    request.transport.abort()
    raise ConnectionResetError
