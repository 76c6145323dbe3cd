"""Fuzz targets of a controller and of a router that asks one; ``lookups`` and ``depths`` are bytes of one connection.

``lookups``: a greeted router sends them. ``depths``: a controller that has welcomed a router answers with them.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec
from tests.fuzz.world import Recorder

from tierline.errors import WireError
from tierline.router.controller.connection import Answering, RouterConnection
from tierline.router.controller.holdings import Holdings, Lmcache
from tierline.router.endpoints import Endpoint
from tierline.router.events.addresses import ControllerAddress
from tierline.router.events.keys import PromptTokens
from tierline.router.events.lmcache import LmcacheInstances
from tierline.router.events.lmcache_messages import KVAdmitMsg
from tierline.router.events.messages import (
    CONTROLLER_VERSION,
    OWN_SCHEME,
    Depths,
    Hello,
    Lookup,
    Refused,
    Reply,
    Request,
    Welcome,
)
from tierline.router.events.remote import Cut, RemoteIndex, Told, _Connection
from tierline.router.events.source import EventSource
from tierline.wire.framing import FrameDecoder, encode_frame

URL = "http://engine:1"
SIZE = 16
IDS = list(range(100, 100 + 5 * SIZE))
SCHEME = "lmcache/builtin/7"
ENGINE, OTHER = Endpoint(URL, 0), Endpoint("http://other:1", 1)


def lookups(data: bytes) -> None:
    """Each lookup has one answer, no deeper than its keys; what is held stays; what is no request ends it all."""
    asyncio.run(_lookups_run(data))


async def _lookups_run(data: bytes) -> None:
    holdings = _Held(2**20, lambda: 0.0, lambda: 0.0)
    blocks = holdings.fill()
    answering = Answering(holdings, 1, None, True, 4)
    connection, transport = RouterConnection(answering, needs_token=False), Recorder()
    connection.connection_made(transport)
    connection.data_received(encode_frame(Hello(CONTROLLER_VERSION, "fuzz")))
    for piece in (data[:7], data[7:]):
        connection.data_received(piece)
    decoder: FrameDecoder[Any] = FrameDecoder(Reply)  # type: ignore[arg-type]
    replies = list(decoder.feed(bytes(transport.sent)))
    assert isinstance(replies[0], Welcome)
    sent = [request for request in _whole(data) if isinstance(request, Lookup)]
    answers = [reply for reply in replies[1:] if isinstance(reply, Depths)]
    assert [answer.id for answer in answers] == [lookup.id for lookup in sent][: len(answers)]
    assert len(answers) == len(sent) or isinstance(replies[-1], Refused)
    assert transport.is_closing() == isinstance(replies[-1], Refused)
    for answer, lookup in zip(answers, sent, strict=False):
        assert len(answer.endpoints) == len(lookup.endpoints)
        for place, found in enumerate(answer.endpoints):
            for source in found:
                chain = lookup.chains[source.chain] if source.chain >= 0 else None
                assert chain is None or not chain.endpoints or place in chain.endpoints
                most = 0 if chain is None else len(chain.keys) // 8
                assert 0 <= max(source.tiers) <= most
    assert len(holdings.index) == blocks
    connection.connection_lost(None)
    assert not answering.connections
    await holdings.close()


class _Held(Holdings):
    """Holdings of one engine; it listens to nobody, whatever routers say."""

    def want(self, who: str, addresses: Mapping[str, str]) -> None:
        pass

    def fill(self) -> int:
        source = EventSource(self.index.open(), has_replay=False, clock=lambda: 0.0)
        event = {"type": "BlockStored", "block_hashes": [1, 2, 3], "token_ids": IDS[: 3 * SIZE], "block_size": SIZE}
        source.received(0, msgspec.msgpack.encode([0.0, [event]]))
        self.sources[URL] = [source]
        instances = LmcacheInstances({}, lambda: 0.0, str)
        instances.pushed(KVAdmitMsg(URL, 0, 1, "LocalCPUBackend"))
        self.lmcache = Lmcache(instances, SCHEME, SIZE)
        return len(self.index)


def _whole(data: bytes) -> list[Any]:
    """The requests before the first that is none."""
    decoder: FrameDecoder[Any] = FrameDecoder(Hello | Request)  # type: ignore[arg-type]
    found = []
    with contextlib.suppress(WireError):
        for request in decoder.feed(data):
            if isinstance(request, Hello):
                break
            found.append(request)
    return found


def depths(data: bytes) -> None:
    """Questions are answered with what can be true of the prompt, or not at all; nothing else comes of it."""
    asyncio.run(_depths_run(data))


async def _depths_run(data: bytes) -> None:
    remote = RemoteIndex(ControllerAddress(path="/nowhere"), "fuzz")
    remote.now = lambda: 0.0
    remote._cuts = {URL: (Cut(OWN_SCHEME, SIZE), Cut(SCHEME, SIZE))}
    connection, transport = _Connection(remote._answered), Recorder()
    connection.connection_made(transport)
    connection.data_received(encode_frame(Welcome(CONTROLLER_VERSION, 1)))
    remote._connection = connection
    tokens = PromptTokens(IDS)
    chunks = {Cut(SCHEME, SIZE): [1, 2, 3, 4, 5]}
    asked = [remote._ask(tokens, "", [ENGINE, OTHER], chunks) for _ in range(2)]
    for piece in (data[:7], data[7:]):
        if not transport.is_closing():
            connection.data_received(piece)
    for question in asked:
        assert question is not None
        if not question.answered.done():
            continue
        told = question.answered.result()
        assert isinstance(told, Told)
        for endpoint in (ENGINE, OTHER):
            found = told.found(endpoint)
            assert found is None or 0 <= found[0] <= found[1] < len(IDS)
    assert all(cut.scheme in (OWN_SCHEME, SCHEME) or cut.scheme.startswith("lmcache/") for cut in remote._cuts[URL])
    remote._lost(connection)
    assert all(question is not None and question.answered.done() for question in asked)
    assert not remote._questions
