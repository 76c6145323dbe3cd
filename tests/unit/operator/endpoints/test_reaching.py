"""Reaching an endpoint by its address: what is wrong with the address, and what is not."""

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tierline.errors import UsageError
from tierline.operator.endpoints.reaching import ByUrl


@pytest.mark.parametrize("url", ["host:8000", "ftp://host", "http://", "http://host:port", "http://[::1"])
async def test_an_address_that_is_none_is_refused_before_it_is_asked(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(UsageError, match="--url: got"):
            async with ByUrl(session, url).answer("GET", "v1/models"):
                pass


async def test_what_goes_wrong_with_an_answer_is_no_fault_of_the_address() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="ü")

    app = web.Application()
    app.router.add_get("/v1/models", answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        with pytest.raises(UnicodeEncodeError):
            async with ByUrl(session, str(server.make_url(""))).answer("GET", "v1/models") as reply:
                (await reply.text()).encode("ascii")
