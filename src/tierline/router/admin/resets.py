"""Emptying what endpoints keep of prefixes: each is asked as vLLM is asked, and says whether it did."""

import asyncio
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp
import msgspec

from tierline.router.admin.documents import CacheReset
from tierline.router.endpointkeys import EndpointKeys
from tierline.router.tls import EndpointTls

if TYPE_CHECKING:
    from tierline.router.endpoints import Endpoint

RESET = "reset_prefix_cache?reset_external=true"
"""What is posted to an engine: vLLM's route, for its own blocks and its connector's."""
RESET_SECONDS = 60.0
AT_ONCE = 32


class _Said(msgspec.Struct):
    success: bool = True


def refused(url: str, status: int, said: str) -> CacheReset:
    """Return what an engine's refusal of :data:`RESET` means."""
    hint = "; vLLM has that route with VLLM_SERVER_DEV_MODE=1 only" if status == HTTPStatus.NOT_FOUND else ""
    return CacheReset(url=url, is_empty=False, why=f"{said}{hint}")


def answered(url: str, body: bytes) -> CacheReset:
    """Return what an engine's answer to :data:`RESET` means."""
    try:
        is_empty = not body.strip() or msgspec.json.decode(body, type=_Said).success
    except msgspec.DecodeError as error:
        return CacheReset(url=url, is_empty=False, why=f"it answered what is not understood: {error}")
    why = "" if is_empty else "requests that run hold its blocks; try again"
    return CacheReset(url=url, is_empty=is_empty, why=why)


async def reset(endpoints: "Sequence[Endpoint]", keys: EndpointKeys, tls: EndpointTls) -> list[CacheReset]:
    """Ask endpoints to forget all prefixes; returns what became of each.

    Parameters
    ----------
    endpoints
        Who is asked.
    keys, tls
        What they are shown, and how ``https`` ones are reached.
    """
    connector = aiohttp.TCPConnector(limit=AT_ONCE, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=RESET_SECONDS, sock_read=RESET_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        return await asyncio.gather(
            *(_ask(session, each.url, keys.fields(each), tls if each.is_encrypted else None) for each in endpoints)
        )


async def _ask(
    session: aiohttp.ClientSession, url: str, headers: Mapping[str, str], tls: EndpointTls | None
) -> CacheReset:
    try:
        async with session.post(
            f"{url}/{RESET}",
            headers=headers,
            ssl=True if tls is None else tls.context,
            allow_redirects=False,  # a key is shown to nobody else
        ) as response:
            if response.status != HTTPStatus.OK:
                return refused(url, response.status, f"it answered {response.status}")
            return answered(url, await response.read())
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return CacheReset(url=url, is_empty=False, why=f"it cannot be asked: {str(error) or type(error).__name__}")
