"""The way to a node store that is not on this machine, or whose memory is not to be read: ``HEAD``, ``GET``, ``PUT``.

Rule: nothing is held between a lookup and the read that follows; an object that goes in between is a miss.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from urllib.parse import quote

import aiohttp
import xxhash
from yarl import URL

from tierline.connectors.lmcache.settings import Settings
from tierline.connectors.lmcache.ways import Found, Holding, Prepare, Written
from tierline.errors import AccessDenied, NodeUnavailable

NAMES_AT_ONCE = 16
"""Names that a lookup of a leading run asks for side by side; the first miss ends it."""

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
    """

    is_open = True

    def __init__(
        self, session: aiohttp.ClientSession, url: str, settings: Settings, requests: asyncio.Semaphore
    ) -> None:
        self._session = session
        self._bucket_url = f"{url}/v1/kv/{quote(settings.bucket, safe='')}"
        self._settings = settings
        self._requests = requests

    async def find(self, names: Sequence[str], *, across_gaps: bool) -> Holding:
        """One ``HEAD`` a name."""
        holding = Holding(self)
        step = len(names) if across_gaps else NAMES_AT_ONCE
        for start in range(0, len(names), max(step, 1)):
            asked = names[start : start + step]
            answers = await asyncio.gather(*(self._head(name) for name in asked))
            for place, found in enumerate(answers, start):
                if found is not None:
                    holding.found[place] = found
                elif not across_gaps:
                    return holding
        return holding

    async def read(self, found: Found, header_bytes: int, prepare: Prepare) -> bool:
        """``GET`` into the destination, summed as it comes."""
        async with self._requests, self._session.get(self._url(found.name), headers=self._headers()) as reply:
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
        """Nothing was held."""

    async def write(self, names: Sequence[str], contents: Sequence[Sequence[memoryview]]) -> list[Written]:
        """One ``PUT`` an object."""
        return list(await asyncio.gather(*map(self._put, names, contents)))

    async def close(self) -> None:
        """The session belongs to the caller."""

    async def _head(self, name: str) -> Found | None:
        async with self._requests, self._session.head(self._url(name), headers=self._headers()) as reply:
            checksum = _checksum(reply)
            if reply.status != HTTPStatus.OK or reply.content_length is None or checksum is None:
                _raise_for_node(reply)
                return None
            return Found(name, reply.content_length, checksum)

    async def _put(self, name: str, parts: Sequence[memoryview]) -> Written:
        headers = {"Content-Length": str(sum(part.nbytes for part in parts)), **self._headers()}
        body = _pieces(parts, self._settings.put_stream_chunk_bytes)
        async with self._requests, self._session.put(self._url(name), data=body, headers=headers) as reply:
            if reply.status == HTTPStatus.OK:
                return Written.STORED
            if reply.status == HTTPStatus.CONFLICT:
                return Written.ALREADY_THERE
            _raise_for_node(reply)
            return Written.REFUSED

    def _url(self, name: str) -> URL:
        return URL(f"{self._bucket_url}/{quote(name, safe='')}", encoded=True)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._settings.token}"} if self._settings.token else {}


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
