"""Ends of connections that come together, in every order: nobody who is gone gets anything."""

import asyncio
import itertools

import pytest
from tests.fuzz.world import Recorder, new_node, settle

from tierline.node.access import Access, Pass
from tierline.node.local_protocol import LocalConnection
from tierline.node.server import Node
from tierline.wire import messages
from tierline.wire.framing import encode_frame


class _Nobody:
    def socket_request(self, verb: str, outcome: str, seconds: float) -> None:
        pass


def connect(node: Node, client: str) -> LocalConnection:
    connection = LocalConnection(
        node.segments.first,
        lambda _: True,
        messages.Hello(messages.PROTOCOL_VERSION, client, writer=True),
        1,
        Pass(Access(None), ""),
        max_reserved_bytes=2**20,
        observer=_Nobody(),
        stats=node.stats,
        connections=set(),
    )
    connection.connection_made(Recorder())
    return connection


def reserve(connection: LocalConnection, name: str, wait_s: float) -> None:
    connection.data_received(bytes(encode_frame(messages.Reserve(1, "b", [name], [1000], wait_s))))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
async def test_whoever_waits_for_a_key_and_dies_with_its_writer_does_not_get_it(order: tuple[int, ...]) -> None:
    """A process that dies takes all its connections along in one round of the loop."""
    async with new_node() as node:
        connections = [connect(node, f"engine-{number}") for number in range(3)]
        reserve(connections[0], "wanted", 0)
        for waiting in connections[1:]:
            reserve(waiting, "wanted", 20)
        await asyncio.sleep(0.01)
        assert node.service.store.stats().slots == 1

        for number in order:
            connections[number].connection_lost(None)
        await settle()

        assert node.service.store.stats().slots == 0
        latest = connect(node, "latest")
        reserve(latest, "wanted", 0)
        await settle()
        assert latest.slots == 1
        latest.connection_lost(None)


async def test_a_flush_that_forgot_the_name_of_its_bucket_is_refused() -> None:
    async with new_node() as node:
        connection, transport = node._http_connection("", lambda: None), Recorder()
        connection.connection_made(transport)
        request = b"DELETE /v1/kv/?flush HTTP/1.1\r\n\r\n"
        connection.get_buffer(-1)[: len(request)] = request
        connection.buffer_updated(len(request))
        await settle()
        assert transport.sent.startswith(b"HTTP/1.1 400 ")
        assert node.service.store.stats().objects == 2
        connection.connection_lost(None)
