"""The operators' client of a node store: its HTTP API as coroutines, on any machine that reaches the port.

Rules: a reply is decoded into a struct of :mod:`tierline.wire.admin` or it is an error; every error's message begins
with the address that was asked. No token appears in a message.
"""

import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
import xxhash
from yarl import URL

from tierline.errors import AccessDenied, ChecksumMismatch, NodeRefused, NodeUnavailable, UsageError, WireError
from tierline.wire.admin import (
    MAX_LISTED,
    Explanation,
    LeaseEntry,
    LeasePage,
    NamespaceFigures,
    NamespaceList,
    NodeStats,
    NotStored,
    ObjectPage,
    OrphanEntry,
    OrphanList,
    Pinned,
    Removed,
    StoredObject,
    Verified,
    VerifyResult,
)
from tierline.wire.cluster import ClusterView

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
WORK_TIMEOUT_S = 600.0
"""A flush or a verification is answered when it is done: of a terabyte, or behind others."""
_READ_BYTES = 1024 * 1024


class NodeAdmin:
    """One node as its operator sees it; made inside a running loop, closed by ``async with`` or :meth:`close`.

    Every method raises :class:`~tierline.errors.NodeUnavailable` when the node cannot be reached or falls silent,
    :class:`~tierline.errors.AccessDenied` when the token does not suffice, :class:`~tierline.errors.NodeRefused` for
    any other refusal (``status`` 404: not stored), and :class:`~tierline.errors.UsageError` when the address speaks no
    TLS or shows a certificate that is not trusted.

    Parameters
    ----------
    url
        ``http://HOST:PORT`` or ``https://HOST:PORT``.
    token
        Bearer token; none is sent when it is empty.
    ca
        File with the certificates to trust instead of the system's, for ``https``.
    certificate
        File with a certificate of our own and its key, for a node that asks for one.
    timeout_s
        Longest silence of the node inside one request.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        ca: Path | None = None,
        certificate: Path | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self.url = _checked_url(url)
        headers = {"Authorization": f"Bearer {_checked_token(token)}"} if token else {}
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=_timeout(timeout_s),
            connector=aiohttp.TCPConnector(ssl=_tls(ca, certificate)),
            auto_decompress=False,
            read_bufsize=_READ_BYTES,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # The node -----------------------------------------------------------------------------------------------------

    async def stats(self) -> NodeStats:
        """Return what the node holds and has done."""
        return await self._call("GET", "/v1/stats", NodeStats)

    async def stats_document(self) -> dict[str, Any]:
        """Return all of ``GET /v1/stats``, also what :class:`NodeStats` does not name."""
        return await self._call("GET", "/v1/stats", dict[str, Any])

    async def buckets(self) -> list[NamespaceFigures]:
        """Return the namespaces that the node tracks."""
        return (await self._call("GET", "/v1/buckets", NamespaceList)).namespaces

    async def cluster(self) -> ClusterView:
        """Return the pool that the node is in, as it sees it."""
        return await self._call("GET", "/v1/cluster", ClusterView)

    async def leases(self, *, cursor: str = "", limit: int = MAX_LISTED) -> LeasePage:
        """Return up to ``limit`` live leases from ``cursor`` on, in as many requests as that takes."""
        found: list[LeaseEntry] = []
        while True:
            query = {"cursor": cursor, "limit": str(min(limit - len(found), MAX_LISTED))}
            page = await self._call("GET", f"/v1/leases?{_query(query)}", LeasePage)
            found += page.leases
            cursor = page.cursor
            if not cursor or len(found) >= limit:
                return LeasePage(leases=found, cursor=cursor)

    async def orphans(self) -> list[OrphanEntry]:
        """Return the clients of a former process of the node that may be writing still."""
        return (await self._call("GET", "/v1/orphans", OrphanList)).orphans

    async def release_orphans(self, client: str) -> int:
        """Free the slots of such a client, which writes no more; returns how many."""
        return (await self._call("DELETE", f"/v1/orphans?{_query({'client': client})}", Removed)).removed

    # Objects ------------------------------------------------------------------------------------------------------

    async def objects(
        self,
        bucket: str | None = None,
        *,
        prefix: str = "",
        salt: str | None = None,
        cursor: str = "",
        limit: int = MAX_LISTED,
    ) -> ObjectPage:
        """Return up to ``limit`` objects from ``cursor`` on, in as many requests as that takes.

        Parameters
        ----------
        bucket
            Only of this bucket; None is every bucket.
        prefix
            Only names that start so.
        salt
            Only of this tenant; None is every tenant, an empty one those without.
        """
        found: list[StoredObject] = []
        while True:
            query = {"prefix": prefix, "cursor": cursor, "limit": str(min(limit - len(found), MAX_LISTED))}
            if salt is not None:
                query["salt"] = salt
            page = await self._call("GET", f"{_bucket_path(bucket)}?list&{_query(query)}", ObjectPage)
            found += page.objects
            cursor = page.cursor
            if not cursor or len(found) >= limit:
                return ObjectPage(objects=found, cursor=cursor)

    async def stat(self, bucket: str, name: str) -> StoredObject:
        """Return what the node knows of one object."""
        return await self._call("GET", f"{_path(bucket, name)}/stat", StoredObject)

    async def explain(self, bucket: str, name: str) -> Explanation:
        """Return why a key is stored, or is not."""
        return await self._call("GET", f"{_path(bucket, name)}/explain", Explanation)

    async def read(self, bucket: str, name: str, write: Callable[[bytes], object]) -> int:
        """Hand an object's bytes to ``write``, piece by piece, and return how many they were.

        Raises
        ------
        ChecksumMismatch
            The bytes that came differ from what their writer summed; ``write`` has had them by then.
        """
        hasher, size = xxhash.xxh3_64(), 0
        async with self._answer("GET", _path(bucket, name)) as reply:
            async for piece in reply.content.iter_any():
                hasher.update(piece)
                size += len(piece)
                write(piece)
            stated = reply.headers.get("ETag", "").strip('"')
        if hasher.hexdigest() != stated:
            raise ChecksumMismatch(
                f"{self.url}: {bucket}/{name} came with bytes whose checksum is {hasher.hexdigest()}, not {stated}"
            )
        return size

    async def write(self, bucket: str, name: str, body: BinaryIO) -> None:
        """Store what a file has from its position on; the file must know its size."""
        # Asks before it sends: a key that is stored already costs no upload.
        async with self._answer("PUT", _path(bucket, name), data=body, expect100=True):
            pass

    async def delete(self, bucket: str, name: str) -> None:
        """Remove one object; a reader who holds a lease on it keeps its bytes."""
        async with self._answer("DELETE", _path(bucket, name)):
            pass

    async def flush(self, bucket: str | None = None, salt: str | None = None) -> int:
        """Remove every object of a tenant, of a bucket or of the node; returns how many went."""
        query = "" if salt is None else f"&{_query({'salt': salt})}"
        return (await self._call("DELETE", f"{_bucket_path(bucket)}?flush{query}", Removed, WORK_TIMEOUT_S)).removed

    async def verify(self, bucket: str, name: str) -> VerifyResult:
        """Let the node compare an object's bytes with its checksum; what does not match is dropped."""
        return (await self._call("POST", f"{_path(bucket, name)}/verify", Verified, WORK_TIMEOUT_S)).result

    async def pin(self, bucket: str, name: str, ttl_s: float) -> Pinned:
        """Keep an object while anything that is not pinned can go in its place."""
        return await self._call("POST", f"{_path(bucket, name)}/pin?ttl_s={ttl_s}", Pinned)

    async def unpin(self, bucket: str, name: str) -> Pinned:
        """End a pin."""
        return await self._call("DELETE", f"{_path(bucket, name)}/pin", Pinned)

    # Requests -----------------------------------------------------------------------------------------------------

    async def _call(self, method: str, target: str, kind: type[T], timeout_s: float | None = None) -> T:
        options = {} if timeout_s is None else {"timeout": _timeout(timeout_s)}
        async with self._answer(method, target, **options) as reply:
            body = await reply.read()
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.DecodeError as error:
            raise WireError(f"{self.url}: what it answers to {method} {target} is no reply of ours: {error}") from error

    @asynccontextmanager
    async def _answer(self, method: str, target: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; yields an answer that is no refusal, and says in our words what goes wrong until its end."""
        try:
            url = URL(self.url + target, encoded=True)
            async with self._session.request(method, url, allow_redirects=False, **options) as reply:
                if reply.status != HTTPStatus.OK:
                    raise self._refusal(reply, await reply.read())
                yield reply
        except aiohttp.ClientConnectorCertificateError as error:
            reason = getattr(error.certificate_error, "verify_message", "") or error.certificate_error
            raise UsageError(f"{self.url}: its certificate is not trusted: {reason}; name its authority") from error
        except aiohttp.ClientSSLError as error:
            raise UsageError(f"{self.url}: it speaks no TLS that we do; is it an http:// address?") from error
        except TimeoutError as error:  # aiohttp's are of both kinds
            hint = "; does it speak TLS there?" if self.url.startswith("https:") else ""
            raise NodeUnavailable(f"{self.url}: the node store did not answer in time{hint}") from error
        except aiohttp.ClientConnectorError as error:
            code = error.os_error.errno
            reason = os.strerror(code) if code is not None and code > 0 else error.os_error.strerror
            raise NodeUnavailable(
                f"{self.url}: no node store answers there ({reason}); is `tierline node` running?"
            ) from error
        except aiohttp.ClientError as error:
            hint = "" if self.url.startswith("https:") else "; if it speaks TLS, its address is an https:// one"
            raise NodeUnavailable(
                f"{self.url}: the connection ended before the answer did: {error or type(error).__name__}{hint}"
            ) from error

    def _refusal(self, reply: aiohttp.ClientResponse, body: bytes) -> Exception:
        try:
            said = msgspec.json.decode(body, type=NotStored)
        except msgspec.DecodeError:
            said = NotStored(error=f"{reply.status} {reply.reason}")
        if reply.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return AccessDenied(f"{self.url}: {said.error}")
        again = f"; try again in {after} s" if (after := reply.headers.get("Retry-After")) else ""
        why = f" ({said.reason})" if said.reason else ""
        return NodeRefused(f"{self.url}: {said.error}{why}{again}", reply.status, said.reason)


def _timeout(silence_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=silence_s)


def _bucket_path(bucket: str | None) -> str:
    return "/v1/kv" if bucket is None else f"/v1/kv/{_quoted(bucket)}"


def _path(bucket: str, name: str) -> str:
    return f"/v1/kv/{_quoted(bucket)}/{_quoted(name)}"


def _query(parameters: dict[str, str]) -> str:
    return "&".join(f"{name}={_quoted(value)}" for name, value in parameters.items())


def _quoted(text: str) -> str:
    try:
        return quote(text, safe="")
    except UnicodeEncodeError as error:  # from a command line whose bytes are no UTF-8
        raise UsageError(f"got {text!r}; allowed: a name in UTF-8") from error


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        is_address = False
    if not is_address or parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
        raise UsageError(f"url: got {url!r}; allowed: http://HOST:PORT or https://HOST:PORT")
    return f"{parts.scheme}://{parts.netloc}"


def _checked_token(token: str) -> str:
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UsageError("token: allowed: printable ASCII without spaces, on one line")
    return token


def _tls(ca: Path | None, certificate: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(f"ca: cannot take certificates from {ca}: {error.strerror or error}") from error
    if certificate is not None:
        try:
            context.load_cert_chain(certificate)
        except OSError as error:
            raise UsageError(
                f"certificate: cannot take a certificate and its key from {certificate}: {error.strerror or error}"
            ) from error
    return context
