"""Routers in processes of their own that know of each other: one is killed under load, and comes back knowing much."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from tests.integration.router.backend import (
    DONE,
    EVENT,
    STREAM_HEAD,
    Backend,
    Client,
    Received,
    answering,
    backends,
    chat,
    chunk,
    client,
    request_bytes,
    until,
    whole,
)
from tests.integration.router.processes import RouterProcess, ask, metric, started, until_metric
from tests.ports import free_ports

PROMPT = "tell me of the sea " * 200


@contextlib.asynccontextmanager
async def replica(
    tmp_path: Path, ports: list[int], which: int, *endpoints: Backend, workers: int = 1
) -> AsyncIterator[RouterProcess]:
    secret = tmp_path / "secret"
    secret.write_text("a secret of some length\n")
    own, other = ports[which], ports[1 - which]
    listen, peer = f"127.0.0.1:{own}", f"127.0.0.1:{other}"
    async with started(
        *endpoints, workers=workers, gossip_listen=listen, peer=peer, gossip_secret_file=secret
    ) as running:
        yield running


async def explained(peer: Client) -> tuple[str, str]:
    choice = (await ask(peer, "/admin/explain", "POST", chat(PROMPT)))[1]["choice"]
    return choice["reason"], choice["endpoint"]


async def until_known(peer: Client, endpoint: str) -> None:
    async with asyncio.timeout(60):
        while await explained(peer) != ("prefix", endpoint):  # noqa: ASYNC110  (another program's state)
            await asyncio.sleep(0.02)


async def test_a_router_that_is_killed_costs_the_other_nothing_and_comes_back_knowing_what_both_knew(
    tmp_path: Path,
) -> None:
    release, ports = asyncio.Event(), free_ports(2)

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b'"stream"' not in request.body:
            writer.write(whole())
            return
        writer.write(STREAM_HEAD + chunk(EVENT))
        await release.wait()
        writer.write(chunk(DONE) + b"0\r\n\r\n")

    async with backends(behave, behave) as both, contextlib.AsyncExitStack() as first_run:
        first = await first_run.enter_async_context(replica(tmp_path, ports, 0, *both))
        async with replica(tmp_path, ports, 1, *both, workers=2) as second:
            # what one is told, the other knows: its placements, and its load
            async with client(first) as to_first, client(second) as to_second:
                endpoint = (await to_first.ask(chat(PROMPT))).fields["x-tierline-endpoint"]
                await until_known(to_second, endpoint)
                await until_metric(to_second, "tierline_router_peers", 1)

            async with contextlib.AsyncExitStack() as stack:
                doomed = [await stack.enter_async_context(client(first)) for _ in range(8)]
                safe = [await stack.enter_async_context(client(second)) for _ in range(8)]
                for number, peer in enumerate([*doomed, *safe]):
                    await peer.send(request_bytes(chat(f"prompt {number}", stream=True)))
                for peer in [*doomed, *safe]:
                    await peer.head()

                # the second one sees sixteen, has eight, and counts the first one's off when it dies
                async with client(second) as operator:
                    assert await least_weighed(operator) == 16
                    for process in (*first.workers, first.process.pid):
                        os.kill(process, signal.SIGKILL)
                    assert await least_weighed(operator, 8) == 8
                    for number in range(20):
                        assert (await operator.ask(chat(f"new {number}"))).status == 200
                release.set()
                for peer in safe:
                    assert (await peer.reader.readuntil(b"0\r\n\r\n")).count(b"data: ") == 2

            await first.process.wait()
            async with replica(tmp_path, ports, 0, *both) as again, client(again) as to_again:
                await until_known(to_again, endpoint)
                assert await metric(to_again, "tierline_router_gossip_refused_total") == 0


async def least_weighed(operator: Client, wanted: int = 16) -> int:
    """Return the requests in flight that a worker sees at all endpoints, once they are as many as ``wanted``."""
    async with asyncio.timeout(60):
        while (seen := await everywhere(operator)) != wanted:  # noqa: ASYNC110  (another program's state)
            await asyncio.sleep(0.05)
    return seen


async def everywhere(operator: Client) -> int:
    listed = (await ask(operator, "/admin/endpoints"))[1]["endpoints"]
    return sum(entry["inflight"] + entry["inflight_elsewhere"] for entry in listed)


async def test_a_router_whose_peers_are_not_there_serves(tmp_path: Path) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        replica(tmp_path, free_ports(2), 0, backend) as running,
        client(running) as peer,
    ):
        assert (await peer.ask(chat())).status == 200
        assert await metric(peer, "tierline_router_peers") == 0
        await until(lambda: running.events("another router cannot be listened to") == 1)
