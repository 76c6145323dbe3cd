"""The way to a node store that is not on this machine, or whose memory is not to be read: a lease, ``GET``, ``PUT``.

Rule: one request for a lookup, and its lease until the last read, as through shared memory. A lease whose answer
nobody waited for any more ends with its time to live.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from urllib.parse import quote

import aiohttp
import msgspec
import xxhash
from yarl import URL

from tierline.connectors.lmcache.settings import Settings
from tierline.connectors.lmcache.ways import Found, Holding, Prepare, Written
from tierline.errors import AccessDenied, NodeUnavailable, StoreError, WireError
from tierline.tracing.context import NOWHERE, current
from tierline.wire.http import PrefixLeaseReply, PrefixLeaseRequest

_MESSAGE_CHARACTERS = 200
_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class HttpWay:
    """One node store over HTTP, through a session that others share.

    Parameters
    ----------
    session
        Bounds connections; belongs to the caller.
    url
        ``http(s)://host:port``.
    settings
        Bucket, pieces of a ``PUT``, token.
    requests
        Bounds what is under way, over all node stores.
    client
        Who holds the leases, as operators see it.
    """

    is_open = True

    def __init__(
        self, session: aiohttp.ClientSession, url: str, settings: Settings, requests: asyncio.Semaphore, client: str
    ) -> None:
        self._session = session
        self._url = url
        self._bucket_url = f"{url}/v1/kv/{quote(settings.bucket, safe='')}"
        self._leases_url = URL(f"{self._bucket_url}/leases", encoded=True)
        self._settings = settings
        self._requests = requests
        self._headers = {"X-Tierline-Client": client}
        if settings.token:
            self._headers["Authorization"] = f"Bearer {settings.token}"

    async def find(self, names: Sequence[str], *, across_gaps: bool) -> Holding:
        """One prefix lease, whatever the number of names."""
        asked = asyncio.get_running_loop().time()
        lease = PrefixLeaseRequest(list(names), self._settings.lease_ttl_s, across_gaps=across_gaps)
        async with (
            self._requests,
            self._session.post(self._leases_url, data=msgspec.json.encode(lease), headers=self._sent()) as reply,
        ):
            if reply.status != HTTPStatus.OK:
                _raise_for_node(reply)
                raise StoreError(f"a lookup of {len(names)} names: {(await reply.text())[:_MESSAGE_CHARACTERS]}")
            leased = msgspec.json.decode(await reply.read(), type=PrefixLeaseReply)
        places = leased.places if across_gaps else range(len(leased.objects))
        try:
            found = {
                place: Found(names[place], item.size, int(item.checksum, 16))
                for place, item in zip(places, leased.objects, strict=True)
            }
        except (IndexError, ValueError) as error:
            raise WireError(f"a lease that does not fit the {len(names)} names asked for: {error}") from error
        return Holding(self, found, leased.id, asked + leased.ttl_s)

    async def read(self, found: Found, header_bytes: int, prepare: Prepare) -> bool:
        """``GET`` into the destination, summed as it comes."""
        async with self._requests, self._session.get(self._object_url(found.name), headers=self._sent()) as reply:
            if reply.status != HTTPStatus.OK or reply.content_length is None or _checksum(reply) is None:
                _raise_for_node(reply)
                return False
            header = await reply.content.readexactly(min(header_bytes, reply.content_length))
            destination = prepare(header)
            if destination is None or len(header) + destination.nbytes != reply.content_length:
                return False
            hasher = xxhash.xxh3_64(header)
            filled = 0
            async for piece in reply.content.iter_any():
                destination[filled : filled + len(piece)] = piece
                hasher.update(piece)
                filled += len(piece)
            return filled == destination.nbytes and hasher.intdigest() == _checksum(reply)

    async def release(self, holding: Holding) -> None:
        """Give the lease back."""
        url = URL(f"{self._url}/v1/leases/{holding.lease}/release", encoded=True)
        async with self._requests, self._session.post(url, headers=self._headers) as reply:
            _raise_for_node(reply)

    async def write(self, names: Sequence[str], contents: Sequence[Sequence[memoryview]]) -> list[Written]:
        """One ``PUT`` an object."""
        return list(await asyncio.gather(*map(self._put, names, contents)))

    async def close(self) -> None:
        """The session belongs to the caller."""

    async def _put(self, name: str, parts: Sequence[memoryview]) -> Written:
        headers = {"Content-Length": str(sum(part.nbytes for part in parts)), **self._sent()}
        body = _pieces(parts, self._settings.put_stream_chunk_bytes)
        async with self._requests, self._session.put(self._object_url(name), data=body, headers=headers) as reply:
            if reply.status == HTTPStatus.OK:
                return Written.STORED
            if reply.status == HTTPStatus.CONFLICT:
                return Written.ALREADY_THERE
            _raise_for_node(reply)
            return Written.REFUSED

    def _sent(self) -> dict[str, str]:
        """Return the headers of a request: who sends it, and whose work it is."""
        origin = current()
        return self._headers if origin is NOWHERE else self._headers | origin.headers()

    def _object_url(self, name: str) -> URL:
        return URL(f"{self._bucket_url}/{quote(name, safe='')}", encoded=True)


def _raise_for_node(reply: aiohttp.ClientResponse) -> None:
    """Raise where an answer says that the node itself is at fault, and not that an object is absent or has no room."""
    if reply.status in _REFUSED:
        raise AccessDenied(f"{reply.url.host} answered {reply.status}; does it ask for a token?")
    if reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR and reply.status != HTTPStatus.INSUFFICIENT_STORAGE:
        raise NodeUnavailable(f"{reply.url.host} answered {reply.status} {reply.reason}")


def _checksum(reply: aiohttp.ClientResponse) -> int | None:
    tag = reply.headers.get("ETag", "").strip('"')
    try:
        return int(tag, 16)
    except ValueError:
        return None


async def _pieces(parts: Sequence[memoryview], size: int) -> AsyncIterator[memoryview]:
    for part in parts:
        for start in range(0, part.nbytes, size):
            yield part[start : start + size]
